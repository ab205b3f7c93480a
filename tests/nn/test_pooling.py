from __future__ import annotations

import pytest
import torch
from torch import nn

import segkernels.nn


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((2,), {}),
        ((3, 2, 1), {}),
        (((3, 2), 2), {"ceil_mode": True}),
        ((2, 2, 0, 1, True), {}),
        ((3, 1, 1, 2, True, True), {}),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_max_pool2d_is_torchs(args, kwargs, channels_last):
    ours, theirs = segkernels.nn.MaxPool2d(*args, **kwargs), nn.MaxPool2d(*args, **kwargs)
    assert isinstance(ours, nn.MaxPool2d)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict() == theirs.state_dict()
    image = torch.randn(2, 3, 11, 13)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    actual, expected = ours(image), theirs(image)
    if not ours.return_indices:
        actual, expected = (actual,), (expected,)
    for a, b in zip(actual, expected):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.uint8])
def test_max_unpool2d_undoes_max_pool2d(index_dtype):
    pool = segkernels.nn.MaxPool2d(2, return_indices=True, index_dtype=index_dtype)
    unpool = segkernels.nn.MaxUnpool2d(2)
    assert isinstance(unpool, nn.MaxUnpool2d)
    assert repr(unpool) == repr(nn.MaxUnpool2d(2))
    image = torch.rand(2, 3, 9, 12)
    values, indices = pool(image)
    assert indices.dtype == index_dtype
    expected = nn.MaxUnpool2d(2)(*nn.MaxPool2d(2, return_indices=True)(image), output_size=image.shape)
    assert torch.equal(unpool(values, indices, output_size=image.shape), expected)


def test_index_dtype_is_checked():
    with pytest.raises(TypeError, match="index_dtype: expected torch.int64 or torch.uint8, got torch.int32"):
        segkernels.nn.MaxPool2d(2, index_dtype=torch.int32)
