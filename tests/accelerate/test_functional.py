"""The mode for functions that forwards call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from same_results import Calls, assert_equal_results, calls, needs_kernels

import segkernels
from segkernels._accelerate import _losses

pytestmark = needs_kernels


def inside(function):
    def run(*inputs):
        with segkernels.accelerated():
            return function(*inputs)

    return run


@pytest.mark.parametrize(
    ("function", "op", "shapes"),
    [
        (lambda x: F.interpolate(x, scale_factor=2), "upsample_nearest2d", [(2, 8, 20, 20)]),
        (lambda x: F.interpolate(x, size=50), "upsample_nearest2d", [(2, 8, 20, 20)]),
        (lambda x: F.interpolate(x, (41, 50), mode="bilinear"), "upsample_bilinear2d", [(2, 8, 20, 20)]),
        (
            lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear", align_corners=True),
            "upsample_bilinear2d",
            [(2, 8, 20, 20)],
        ),
        (lambda x: F.max_pool2d(x, 3, 2, 1), "max_pool2d", [(2, 8, 20, 20)]),
        (lambda x: F.conv_transpose2d(x, torch.ones(8, 4, 2, 2), stride=2), "conv_transpose2d", [(2, 8, 20, 20)]),
    ],
)
def test_functions(function, op, shapes):
    inputs = [torch.randn(shape) for shape in shapes]
    assert calls(inside(function), *inputs) == {op}
    assert calls(function, *inputs) == set()
    assert_equal_results(inside(function), function, *inputs)


def test_indices_and_unpooling():
    def function(x):
        values, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(values, indices, 2, output_size=x.shape)

    image = torch.randn(2, 16, 33, 32)
    assert calls(inside(function), image) == {"max_pool2d", "max_unpool2d"}
    assert_equal_results(inside(function), function, image)


def test_cross_entropy(monkeypatch):
    monkeypatch.setattr(_losses, "_LARGE", 1)
    logits, target = torch.randn(2, 5, 24, 24), torch.randint(0, 5, (2, 24, 24))
    weight = torch.rand(5)

    def function(x):
        return F.cross_entropy(x, target, weight, ignore_index=1, label_smoothing=0.1)

    assert calls(inside(function), logits) == {"softmax_statistics"}
    assert_equal_results(inside(function), function, logits)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        lambda x: F.interpolate(x, size=10, mode="bilinear", antialias=True),
        lambda x: F.interpolate(x, scale_factor=1.5, recompute_scale_factor=True),
        lambda x: F.interpolate(x.flatten(2), scale_factor=2.0),
        lambda x: F.max_pool2d(x, 1, 2),
        lambda x: F.max_pool2d(x[:, :1, :8, :8], 2),
        lambda x: F.conv_transpose2d(x, torch.ones(8, 4, 3, 3), stride=2),
        lambda x: F.cross_entropy(x, x.softmax(1)),
        lambda x: x.relu() + 1,
    ],
)
def test_everything_else_is_torchs(function):
    image = torch.randn(2, 8, 20, 20)
    assert calls(inside(function), image) == set()
    assert torch.equal(inside(function)(image), function(image))


def test_errors_are_torchs():
    with segkernels.accelerated(), pytest.raises(ValueError, match="only one of size or scale_factor"):
        F.interpolate(torch.randn(2, 8, 20, 20), size=3, scale_factor=2)


def test_torchvision_functions():
    ops = pytest.importorskip("torchvision").ops
    image = torch.randn(2, 8, 32, 32)
    corner = torch.rand(1500, 2) * 100
    boxes = torch.cat([corner, corner + 1 + torch.rand(1500, 2) * 40], 1)
    scores, classes = torch.rand(1500), torch.randint(0, 2, (1500,))
    rois = [boxes[:6], boxes[6:9]]
    assert_equal_results(
        inside(lambda x: ops.roi_align(x, rois, 3, 0.25, 2, True)), lambda x: ops.roi_align(x, rois, 3, 0.25, 2, True), image
    )
    with Calls() as recorded, segkernels.accelerated():
        ops.roi_align(image, rois, 3, 0.25)
        kept = ops.nms(boxes, scores, 0.5)
        batched = ops.batched_nms(boxes, scores, classes, 0.5)
    assert recorded.names == {"roi_align", "nms"}
    assert torch.equal(batched, ops.batched_nms(boxes, scores, classes, 0.5)) and torch.equal(
        kept, ops.nms(boxes, scores, 0.5)
    )
