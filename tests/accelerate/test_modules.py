"""Each kind of layer: when it is replaced, by which op, with the same results, and when it is kept and why."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from same_results import assert_equal_results, calls, needs_kernels
from torch import nn

import segkernels

pytestmark = needs_kernels


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(4, 4, 3), "dense: torch's own"),
        (nn.Conv2d(4, 4, 3, dilation=2), "atrous, dense: torch's own"),
        (nn.Conv2d(4, 4, 3, padding=4, dilation=6), "atrous, dense: torch's own"),
        (nn.Conv2d(32, 4, 3, padding=4, dilation=6), "atrous, dense: torch's own"),
        (nn.Conv2d(32, 4, 3, 2, padding=6, dilation=6), "atrous, dense: torch's own"),
        (nn.Conv2d(32, 4, 3, padding=6, dilation=6, padding_mode="circular"), "atrous, dense: torch's own"),
        (nn.Conv2d(4, 4, 3, groups=2), "grouped: torch's own"),
        (nn.Conv2d(4, 4, 3, 2, groups=4), "depthwise with a stride"),
        (nn.ConvTranspose2d(4, 4, 3, 2), "kernel (3, 3), stride (2, 2)"),
        (nn.ConvTranspose2d(4, 4, 2, 2, groups=2), "kernel (2, 2), stride (2, 2)"),
        (nn.ConvTranspose1d(4, 4, 2, 2, dilation=2), "kernel (2, 2), stride (2, 2)"),
        (nn.MaxPool2d(1, 2), "a kernel of 1"),
        (nn.MaxUnpool2d(3, 2), "overlapping windows"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "mode 'bicubic'"),
        (nn.Upsample(scale_factor=2, recompute_scale_factor=True), "recompute_scale_factor"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_kept_with_a_reason(module, reason):
    assert segkernels.accelerate(module)[""].reason.startswith(reason)


@pytest.mark.parametrize(
    ("module", "op", "shape"),
    [
        (nn.Conv2d(32, 64, 3, padding=6, dilation=6, groups=32), "conv2d", (2, 32, 24, 24)),
        (nn.Conv2d(32, 32, 7, padding=3, groups=32), "conv2d", (2, 32, 24, 24)),
        (nn.Conv2d(32, 32, 3, padding="same", padding_mode="reflect", dilation=6, groups=32), "conv2d", (2, 32, 24, 24)),
        (nn.Conv2d(32, 24, 3, padding=12, dilation=12), "conv2d", (2, 32, 24, 20)),
        (nn.Conv2d(32, 8, 5, padding="same", dilation=4, bias=False), "conv2d", (2, 32, 24, 24)),
        (nn.Conv2d(32, 8, (1, 3), padding=(0, 6), dilation=6), "conv2d", (2, 32, 24, 24)),
        (nn.ConvTranspose1d(32, 16, 2, 2), "conv_transpose1d", (2, 32, 96)),
        (nn.ConvTranspose2d(8, 8, 16, 8, 4), "conv_transpose2d", (2, 8, 20, 20)),
        (nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=32), "conv_transpose2d", (2, 32, 20, 20)),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), "max_pool2d", (2, 16, 33, 32)),
        (nn.UpsamplingBilinear2d(scale_factor=4), "upsample_bilinear2d", (2, 8, 20, 20)),
        (nn.Upsample(size=(50, 41)), "upsample_nearest2d", (2, 8, 20, 20)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_replaced_modules(module, op, shape):
    reference = copy.deepcopy(module)
    assert segkernels.accelerate(module)[""].after is not None
    input = torch.randn(shape)
    assert calls(module, input) == {op}
    assert_equal_results(module, reference, input)
    # Small inputs are torch's own, whatever they are.
    if not isinstance(module, nn.Conv2d) or module.padding_mode == "zeros":
        small = torch.randn(1, *shape[1:2], *(6 for _ in shape[2:])).narrow(1, 0, shape[1])
        assert small.numel() >= 4096 or calls(module, small) == set()


def test_atrous_convolutions():
    module = nn.Conv2d(32, 16, 3, padding=4, dilation=4)
    reference = copy.deepcopy(module)
    segkernels.accelerate(module)
    image = torch.randn(2, 32, 17, 17)
    assert calls(module, image) == {"conv2d"}
    with torch.autocast("cpu", torch.bfloat16):
        assert calls(module, image) == set()
    assert calls(copy.deepcopy(module).double(), image.double()) == set()
    copied = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(copied(image), reference(image))
    assert segkernels.restore(copied) == 1 and type(copied) is nn.Conv2d
    with torch.no_grad():
        assert calls(module, image) == {"conv2d"}
    image = image.contiguous(memory_format=torch.channels_last)
    assert_equal_results(module, reference, image)
    assert module(image).is_contiguous(memory_format=torch.channels_last)


def test_pooling_and_unpooling_with_indices():
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    image = torch.randn(2, 16, 32, 32)
    values, indices = pool(image)
    expected = unpool(values, indices, image.shape)
    model = nn.ModuleList([pool, unpool])
    assert len(segkernels.accelerate(model).replaced) == 2
    ours = pool(image)
    assert torch.equal(ours[0], values) and torch.equal(ours[1], indices)
    assert torch.equal(unpool(*ours, image.shape), expected)
    assert calls(lambda: unpool(*pool(image))) == {"max_pool2d", "max_unpool2d"}


def test_what_an_op_does_not_take_is_torchs():
    model = nn.Sequential(nn.Upsample(scale_factor=2))
    segkernels.accelerate(model)
    image = torch.randint(0, 255, (2, 8, 32, 32), dtype=torch.uint8)
    assert torch.equal(model(image), nn.functional.interpolate(image, scale_factor=2))
    assert model(torch.randn(2, 64, 64)).shape == (2, 64, 128)
    assert model(torch.empty(2, 64, 64, 64, device="meta")).shape == (2, 64, 128, 128)
    pool = nn.MaxPool2d(2)
    segkernels.accelerate(pool)
    images = torch.randn(3, 2, 4, 64, 64)
    assert calls(torch.vmap(pool), images) == set()
