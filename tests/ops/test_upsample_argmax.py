from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import OpTest, Sample

import segkernels
from segkernels.ops import upsample_argmax

LOGITS = torch.randn(1, 3, 4, 5)


def oracle(logits, size, align_corners=False, dtype=torch.int64):
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.interpolate(wide, size, mode="bilinear", align_corners=align_corners).argmax(1).to(dtype)


class TestUpsampleArgmax(OpTest):
    op = "upsample_argmax"
    function = staticmethod(upsample_argmax)
    oracle = staticmethod(oracle)
    differentiable = False

    def samples(self, device, dtype):
        def values(*shape, channels_last=False):
            logits = torch.randn(shape, device=device).to(dtype)
            return logits.contiguous(memory_format=torch.channels_last) if channels_last else logits

        return [
            Sample("4x", (values(2, 5, 4, 6), (16, 24)), grad=()),
            Sample("4x channels_last", (values(2, 21, 4, 6, channels_last=True), (16, 24)), grad=()),
            Sample("odd sizes", (values(1, 21, 5, 7), (33, 41)), grad=()),
            Sample("align_corners", (values(2, 4, 5, 7), (33, 41), True), grad=()),
            Sample("uint8", (values(1, 200, 3, 3), (7, 9), False, torch.uint8), grad=()),
            Sample("int32", (values(1, 6, 3, 3), (7, 9), True, torch.int32), grad=()),
            Sample("one class", (values(1, 1, 3, 3), (7, 9)), grad=()),
            Sample("one pixel", (values(1, 6, 1, 1), (7, 9)), grad=()),
            Sample("same size", (values(1, 6, 5, 4), (5, 4)), grad=()),
            Sample("downsampling", (values(1, 6, 9, 11), (4, 5)), grad=()),
        ]

    def test_lowest_of_equal_classes(self, tier):
        logits = torch.zeros(1, 4, 3, 3, device=tier[0])
        logits[:, 2:] = 1.5
        with segkernels.backend(tier[1]):
            assert (upsample_argmax(logits, (9, 12)) == 2).all()

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_not_a_number_is_the_largest(self, channels_last, tier):
        logits = torch.randn(2, 6, 5, 4, device=tier[0])
        logits[0, 3, 1, 2] = logits[0, 5, 1, 2] = logits[1, 4, 4, 3] = float("nan")
        logits[1, 2, 0, 0] = float("inf")
        if channels_last:
            logits = logits.contiguous(memory_format=torch.channels_last)
        with segkernels.backend(tier[1]):
            for size in ((20, 16), (5, 4), (5, 11), (2, 2), (90, 35)):
                assert torch.equal(upsample_argmax(logits, size), oracle(logits.contiguous(), size)), size

    def test_has_no_gradient(self):
        assert not upsample_argmax(LOGITS.clone().requires_grad_(), 8).requires_grad

    def test_empty(self):
        assert upsample_argmax(torch.randn(0, 3, 2, 2), 4).shape == (0, 4, 4)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((LOGITS[0], 4), ValueError, r"logits: expected \[N, C, h, w\]"),
            ((LOGITS.long(), 4), TypeError, "logits: expected float32"),
            ((LOGITS[:, :0], 4), ValueError, "logits: expected at least one class"),
            ((LOGITS[..., :0], 4), ValueError, "logits: expected a height and width"),
            ((LOGITS.expand(1, 3, 4, 5).repeat(1, 100, 1, 1), 4, False, torch.uint8), ValueError, "at most 256 for uint8"),
            ((LOGITS, 0), ValueError, "size"),
            ((LOGITS, 4, False, torch.int16), TypeError, "dtype: expected uint8, int32 or int64"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            upsample_argmax(*arguments)
