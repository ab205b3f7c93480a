from __future__ import annotations

import pytest
import torch
from op_test import OpTest, Sample

import segkernels
from segkernels.ops import batched_nms, nms
from segkernels.reference import batched_nms as reference

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]])
SCORES = torch.tensor([0.5, 0.9, 0.9])
CLASSES = torch.tensor([7, 7, -3])


def classified_boxes(count: int, classes: int, device: str = "cpu", dtype=torch.float32):
    corner = (torch.rand(count, 2, device=device) * 50).round()
    boxes = torch.cat([corner, corner + (torch.rand(count, 2, device=device) * 40).round()], 1)
    scores = torch.randint(0, 64, (count,), device=device) / 64
    return boxes.to(dtype), scores.to(dtype), torch.randint(0, classes, (count,), device=device)


def oracle(*arguments):
    order, kept = reference.batched_nms(*arguments)
    return order[kept]


class TestBatchedNms(OpTest):
    op = "batched_nms"
    function = staticmethod(batched_nms)
    oracle = staticmethod(oracle)
    differentiable = False

    def samples(self, device, dtype):
        return [
            Sample("classes", (*classified_boxes(200, 5, device, dtype), 0.5)),
            Sample("one class", (*classified_boxes(100, 1, device, dtype), 0.375)),
            Sample("many classes", (*classified_boxes(100, 1000, device, dtype), 0.375)),
            Sample("none", (*classified_boxes(0, 3, device, dtype), 0.5)),
        ]

    def test_compile(self):
        # How many boxes stay is known only when the op has run.
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            super().test_compile()

    @pytest.mark.parametrize("count", [500, 3000])
    def test_equals_torchvision(self, count):
        peer = pytest.importorskip("torchvision").ops.batched_nms
        boxes, _, classes = classified_boxes(count, 8)
        scores = torch.randperm(count) / count
        assert torch.equal(batched_nms(boxes, scores, classes, 0.5), peer(boxes, scores, classes, 0.5))

    def test_many_boxes(self, tier):
        """One class has more boxes than any tier compares at once, others few or one."""
        if tier[1] == "reference":
            pytest.skip("box by box")
        boxes, scores, classes = classified_boxes(4500, 1)
        classes[::50] = torch.arange(90) % 60 - 30
        expected = batched_nms(boxes, scores, classes, 0.2)
        with segkernels.backend(tier[1]):
            result = batched_nms(*(t.to(tier[0]) for t in (boxes, scores, classes)), 0.2)
        assert torch.equal(result.cpu(), expected)

    def test_classes_far_apart(self):
        assert batched_nms(BOXES, SCORES, CLASSES, 0.5).tolist() == [1, 2]
        assert batched_nms(BOXES, SCORES, CLASSES.to(torch.int8), 0.5).tolist() == [1, 2]
        far = torch.tensor([2**62, 2**62 + 1, -(2**62)])
        assert batched_nms(BOXES, SCORES, far, 0.5).tolist() == [1, 2, 0]

    def test_one_class_is_nms(self):
        boxes, scores, classes = classified_boxes(2000, 1)
        assert torch.equal(batched_nms(boxes, scores, classes, 0.4), nms(boxes, scores, 0.4))

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((BOXES[:, :2], SCORES, CLASSES, 0.5), ValueError, r"boxes: expected \[N, 4\]"),
            ((BOXES, SCORES[:1], CLASSES, 0.5), ValueError, "scores: expected one for each of 3"),
            ((BOXES, SCORES, CLASSES.float(), 0.5), TypeError, "idxs: expected an integer dtype"),
            ((BOXES, SCORES, CLASSES[:1], 0.5), ValueError, "idxs: expected one for each of 3"),
            ((BOXES, SCORES, CLASSES.to("meta"), 0.5), ValueError, "one device"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            batched_nms(*arguments)
