from __future__ import annotations

import pytest
import torch
from torch import nn

import segkernels.nn


@pytest.mark.parametrize("name, shape", [("ConvTranspose1d", (2, 4, 7)), ("ConvTranspose2d", (2, 4, 7, 6))])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "stride": 3, "padding": 1, "output_padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 4, "bias": False},
    ],
)
def test_transposed_convolutions_are_torchs(name, shape, kwargs):
    ours, theirs = (getattr(module, name)(4, 8, **kwargs) for module in (segkernels.nn, nn))
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(shape)
    torch.testing.assert_close(ours(image), theirs(image))
    torch.testing.assert_close(ours(image[0]), theirs(image[0]))
    size = [s + kwargs["stride"] - 1 for s in theirs(image).shape[2:]] if "output_padding" not in kwargs else None
    torch.testing.assert_close(ours(image, size), theirs(image, size))
