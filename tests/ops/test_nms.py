from __future__ import annotations

import importlib

import pytest
import torch
from op_test import INTERPRETED, OpTest, Sample

import segkernels
from segkernels.ops import nms
from segkernels.reference import nms as reference

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
SCORES = torch.tensor([0.5, 0.9, 0.1])


def scored_boxes(count: int, device: str = "cpu", dtype=torch.float32, size: float = 100, ties: bool = False):
    corner = torch.rand(count, 2, device=device) * size
    boxes = torch.cat([corner, corner + torch.rand(count, 2, device=device) * 40], 1)
    scores = torch.rand(count, device=device)
    # bfloat16 holds these, so that every dtype sees the same boxes.
    boxes = boxes.round() if not ties else (boxes / 4).round() * 4
    scores = (scores * 8).round() / 8 if ties else torch.randperm(count, device=device) / 256
    return boxes.bfloat16().to(dtype), scores.bfloat16().to(dtype)


def many(tier: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Boxes that are more than a tier's chunk; the reference goes box by box, and the interpreter is given a small chunk."""
    if tier == "reference":
        return 100
    if INTERPRETED:
        monkeypatch.setattr(importlib.import_module("segkernels.triton.nms"), "CHUNK", 64)
        return 150
    return 4500


class TestNms(OpTest):
    op = "nms"
    function = staticmethod(nms)
    oracle = staticmethod(reference.nms)
    differentiable = False
    not_interpreted = ("boxes", "ties", "crowded", "zero threshold")

    def samples(self, device, dtype):
        return [
            Sample("few", (*scored_boxes(40, device, dtype, 20, ties=True), 0.375)),
            Sample("boxes", (*scored_boxes(200, device, dtype), 0.5)),
            Sample("ties", (*scored_boxes(150, device, dtype, ties=True), 0.375)),
            Sample("crowded", (*scored_boxes(300, device, dtype, 10), 0.75)),
            Sample("one", (*scored_boxes(1, device, dtype), 0.5)),
            Sample("zero threshold", (*scored_boxes(100, device, dtype), 0.0)),
            Sample("none", (*scored_boxes(0, device, dtype), 0.5)),
        ]

    def test_compile(self):
        # How many boxes stay is known only when the op has run.
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            super().test_compile()

    @pytest.mark.parametrize("precision", [torch.float32, torch.float64])
    @pytest.mark.parametrize("count", [10, 1000, 9000])
    @pytest.mark.parametrize("ties", [False, True])
    def test_equals_torchvision(self, count, ties, precision):
        peer = pytest.importorskip("torchvision").ops.nms
        corner = torch.rand(count, 2, dtype=precision) * 300
        boxes = torch.cat([corner, corner + torch.rand(count, 2, dtype=precision) * 80], 1)
        if ties:
            boxes = boxes.round()
        scores = torch.rand(count, dtype=precision)
        scores = (scores * 50).round() / 50 if ties else scores
        for threshold in (0.0, 1 / 3, 0.5, 0.7):
            assert torch.equal(nms(boxes, scores, threshold), peer(boxes, scores, threshold))

    def test_many_boxes(self, tier, monkeypatch):
        """More than any tier compares at once."""
        boxes, scores = scored_boxes(many(tier[1], monkeypatch), size=300)
        expected = nms(boxes, scores, 0.4)
        with segkernels.backend(tier[1]):
            assert torch.equal(nms(boxes.to(tier[0]), scores.to(tier[0]), 0.4).cpu(), expected)

    def test_equal_overlap_stays(self, tier):
        boxes, scores = BOXES.to(tier[0]), SCORES.to(tier[0])
        with segkernels.backend(tier[1]):
            assert nms(boxes, scores, 0.5).tolist() == [1, 0, 2]
            assert nms(boxes, scores, 0.4999).tolist() == [1, 2]

    def test_special_values(self, tier):
        """NaN scores come first; NaN, infinite and empty boxes neither drop nor are dropped."""
        nan, inf = float("nan"), float("inf")
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [nan, 0, 4, 4], [0, 0, inf, 4], [2, 2, 2, 2], [0, 0, 4, 4],
                              [-1e30, -1e30, 1e30, 1e30], [4, 4, 0, 0]], device=tier[0])  # fmt: skip
        scores = torch.tensor([0.5, nan, 0.9, 0.8, 0.7, nan, inf, -inf], device=tier[0])
        with segkernels.backend(tier[1]):
            kept = nms(boxes, scores, 0.5).tolist()
        assert kept == [1, 6, 2, 3, 4, 7]

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((BOXES[0], SCORES, 0.5), ValueError, r"boxes: expected \[N, 4\]"),
            ((BOXES[None], SCORES, 0.5), ValueError, r"boxes: expected \[N, 4\]"),
            ((BOXES.long(), SCORES, 0.5), TypeError, "boxes: expected float32"),
            ((BOXES, SCORES.long(), 0.5), TypeError, "scores: expected float32"),
            ((BOXES, SCORES[:2], 0.5), ValueError, "scores: expected one for each of 3"),
            ((BOXES, SCORES.to("meta"), 0.5), ValueError, "one device"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            nms(*arguments)
