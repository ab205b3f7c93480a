from __future__ import annotations

import pytest
import torch
from op_test import OpTest, Sample

from segkernels.ops import box_iou
from segkernels.reference import box_iou as reference

BOXES = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15]])


def random_boxes(*shape: int, device: str = "cpu", size: float = 20) -> torch.Tensor:
    corner = torch.rand(*shape, 2, device=device) * size
    return torch.cat([corner, corner + torch.rand(*shape, 2, device=device) * size + 0.5], -1)


class TestBoxIou(OpTest):
    op = "box_iou"
    function = staticmethod(box_iou)
    oracle = staticmethod(reference.box_iou)
    gradcheck_samples = ("pairs", "batched")

    def samples(self, device, dtype):
        def boxes(*shape):
            return random_boxes(*shape, device=device).to(dtype)

        disjoint = torch.cat([boxes(3, 4), boxes(3, 4) + 100])
        return [
            Sample("pairs", (boxes(5), boxes(7)), grad=(0, 1)),
            Sample("batched", (boxes(2, 3), boxes(2, 4)), grad=(0, 1)),
            Sample("many", (boxes(70), boxes(33)), grad=(0, 1)),
            Sample("disjoint", (disjoint.flatten(0, 1)[:, :4], boxes(4)), grad=(0, 1)),
        ]

    def test_dtype_of_gradients_and_values(self):
        assert box_iou(BOXES.half(), BOXES.half()).dtype == torch.float32
        assert torch.allclose(box_iou(BOXES, BOXES), torch.tensor([[1, 25 / 175], [25 / 175, 1]]))

    @pytest.mark.parametrize("precision", [torch.float32, torch.float64])
    def test_equals_torchvision(self, precision):
        peer = pytest.importorskip("torchvision").ops.box_iou
        # Whole numbers: equal edges and touching boxes occur, and share the gradient.
        a, b = (random_boxes(n, size=6).round().to(precision) for n in (40, 50))
        a[:, 2:] += 1
        b[:, 2:] += 1
        ours, theirs = ([t.clone().requires_grad_() for t in (a, b)] for _ in range(2))
        output, expected = box_iou(*ours), peer(*theirs)
        assert torch.equal(output, expected)
        grad = torch.randn(40, 50, dtype=precision)
        for x, y in zip(torch.autograd.grad(output, ours, grad), torch.autograd.grad(expected, theirs, grad)):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)

    def test_broadcasts_and_empties(self):
        assert box_iou(BOXES.expand(3, 1, 2, 4), BOXES.expand(5, 2, 4)).shape == (3, 5, 2, 2)
        assert box_iou(BOXES[:0], BOXES).shape == (0, 2)
        leaf = BOXES.clone().requires_grad_()
        box_iou(leaf, BOXES[:0]).sum().backward()
        assert torch.equal(leaf.grad, torch.zeros(2, 4))

    def test_special_values(self):
        nan, inf = float("nan"), float("inf")
        boxes = torch.tensor([[0, 0, nan, 1], [0, 0, inf, 1], [3, 3, 3, 3], [1e30, 0, 3e30, 1e30], [5, 5, 1, 1]])
        torch.testing.assert_close(box_iou(boxes, boxes), reference.box_iou(boxes, boxes), equal_nan=True)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((BOXES[0], BOXES), ValueError, r"boxes1: expected \[N, 4\]"),
            ((BOXES, BOXES[:, :3]), ValueError, r"boxes2: expected \[N, 4\]"),
            ((BOXES.long(), BOXES), TypeError, "boxes1: expected float32"),
            ((BOXES.double(), BOXES), TypeError, "one dtype"),
            ((BOXES, BOXES.to("meta")), ValueError, "one device"),
            ((BOXES.expand(2, 2, 4), BOXES.expand(3, 2, 4)), ValueError, "broadcast"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            box_iou(*arguments)
