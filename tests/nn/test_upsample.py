from __future__ import annotations

import pytest
import torch
from torch import nn

import segkernels.nn


@pytest.mark.parametrize(
    ("kwargs", "ours"),
    [
        ({"scale_factor": 2}, "upsample_nearest2d"),
        ({"size": (9, 11)}, "upsample_nearest2d"),
        ({"scale_factor": 2, "mode": "bilinear"}, "upsample_bilinear2d"),
        ({"scale_factor": (2.3, 1.5), "mode": "bilinear"}, "upsample_bilinear2d"),
        ({"size": 17, "mode": "bilinear", "align_corners": True}, "upsample_bilinear2d"),
        ({"scale_factor": 2.3, "mode": "bilinear", "recompute_scale_factor": True}, None),
        ({"scale_factor": 2, "mode": "bicubic"}, None),
        ({"scale_factor": 2, "mode": "nearest-exact"}, None),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_is_torchs(kwargs, ours, channels_last, monkeypatch):
    called = []
    for name in ("upsample_bilinear2d", "upsample_nearest2d"):
        function = getattr(segkernels.ops, name)
        monkeypatch.setattr(segkernels.ops, name, lambda *args, n=name, f=function: called.append(n) or f(*args))
    module, theirs = segkernels.nn.Upsample(**kwargs), nn.Upsample(**kwargs)
    assert isinstance(module, nn.Upsample)
    assert repr(module) == repr(theirs)
    assert module.state_dict() == theirs.state_dict()
    image = torch.randn(2, 3, 5, 7)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    output = module(image)
    torch.testing.assert_close(output, theirs(image))
    assert output.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert called == ([ours] if ours else [])


@pytest.mark.parametrize(
    ("mode", "image"),
    [
        ("nearest", torch.randn(2, 3, 5)),
        ("nearest", torch.randint(0, 255, (1, 3, 5, 5), dtype=torch.uint8)),
        ("bilinear", torch.randint(0, 255, (1, 3, 5, 5), dtype=torch.uint8)),
        ("trilinear", torch.randn(1, 2, 3, 4, 5)),
    ],
)
def test_other_ranks_and_dtypes_are_torchs(mode, image):
    assert torch.equal(segkernels.nn.Upsample(scale_factor=2, mode=mode)(image), nn.Upsample(scale_factor=2, mode=mode)(image))
