from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import OpTest, Sample

import segkernels
from segkernels.ops import paste_masks
from segkernels.reference import paste_masks as reference

MASKS = torch.ones(2, 4, 4)
BOXES = torch.tensor([[2.0, 2, 6, 6], [10, 10, 18, 18]])


def oracle(masks, boxes, image_size, threshold=0.5, style="torchvision"):
    flat = masks[:, 0] if masks.dim() == 4 else masks
    return reference.paste_masks(flat, boxes, list(image_size), threshold, ["torchvision", "detectron2"].index(style))


def random_masks(count: int, h: int, w: int, device: str = "cpu", dtype=torch.float32):
    corner = torch.rand(count, 2, device=device) * 60 - 10
    boxes = torch.cat([corner, corner + torch.rand(count, 2, device=device) * 50], 1)
    return torch.rand(count, h, w, device=device).to(dtype), boxes.to(dtype)


class TestPasteMasks(OpTest):
    op = "paste_masks"
    function = staticmethod(paste_masks)
    oracle = staticmethod(oracle)
    differentiable = False
    not_interpreted = ("detectron2", "one channel", "not square")

    def samples(self, device, dtype):
        masks, boxes = random_masks(4, 14, 14, device, dtype)
        return [
            Sample("masks", (*random_masks(6, 28, 28, device, dtype), (48, 64))),
            Sample("detectron2", (*random_masks(6, 28, 28, device, dtype), (48, 64), 0.5, "detectron2")),
            Sample("one channel", (masks[:, None], boxes, (40, 30), 0.3)),
            Sample("not square", (*random_masks(3, 7, 12, device, dtype), (33, 50), 0.4)),
            Sample("not square detectron2", (*random_masks(3, 7, 12, device, dtype), (33, 50), 0.4, "detectron2")),
            Sample("one pixel", (*random_masks(3, 1, 1, device, dtype), (33, 50))),
            Sample("none", (*random_masks(0, 7, 7, device, dtype), (10, 10))),
        ]

    @pytest.mark.parametrize("size", [(28, 28), (14, 14)])
    def test_equals_torchvision(self, size):
        heads = pytest.importorskip("torchvision.models.detection.roi_heads")
        masks, boxes = random_masks(50, *size)
        boxes[::3] = boxes[::3].round()
        boxes[:, 2:].clamp_(min=2)  # torchvision pastes at the far end, or fails, where a box ends before the image
        soft = heads.paste_masks_in_image(masks[:, None], boxes, (70, 90))[:, 0]
        pasted = paste_masks(masks, boxes, (70, 90))
        assert torch.equal(pasted | ((soft - 0.5).abs() < 1e-6), (soft >= 0.5) | ((soft - 0.5).abs() < 1e-6))
        assert pasted.sum() > 1000

    def test_equals_grid_sample(self):
        masks, boxes = random_masks(20, 28, 28)
        y, x = (torch.arange(n) + 0.5 for n in (70, 90))
        x = (x - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
        y = (y - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
        grid = torch.stack([x[:, None].expand(-1, 70, -1), y[..., None].expand(-1, -1, 90)], -1)
        soft = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
        tie = (soft - 0.5).abs() < 1e-5
        pasted = paste_masks(masks, boxes, (70, 90), style="detectron2")
        assert torch.equal(pasted | tie, (soft >= 0.5) | tie)
        assert pasted.sum() > 1000

    def test_full_masks_fill_their_boxes(self):
        pasted = paste_masks(MASKS, BOXES, (20, 20), style="detectron2")
        expected = torch.zeros(2, 20, 20, dtype=torch.bool)
        expected[0, 2:6, 2:6] = True
        expected[1, 10:18, 10:18] = True
        assert torch.equal(pasted, expected)

    @pytest.mark.parametrize("style", ["torchvision", "detectron2"])
    def test_odd_boxes(self, tier, style):
        """Outside, reversed, NaN and infinite boxes set nothing; huge ones cover the image."""
        nan, inf = float("nan"), float("inf")
        boxes = torch.tensor(
            [[-50.0, -50, -20, -20], [100, 100, 120, 120], [18, 18, 2, 2], [nan, 0, 9, 9], [0, 0, inf, 9], [-inf, 0, inf, 9],
             [-3e38, 0, 3e38, 9], [-1e9, -1e9, 1e9, 1e9], [-1e20, -1e20, 1e20, 1e20]],
            device=tier[0],
        )  # fmt: skip
        with segkernels.backend(tier[1]):
            filled = paste_masks(torch.ones(9, 4, 4, device=tier[0]), boxes, (10, 12), style=style).flatten(1).sum(1)
        assert filled.tolist() == [0] * 7 + [120] * 2

    def test_nothing_outside_the_box_at_any_threshold(self):
        for style in ("torchvision", "detectron2"):
            pasted = paste_masks(MASKS, BOXES, (40, 40), -1.0, style)
            assert 0 < pasted[0].sum() < 81
        assert not paste_masks(torch.full((1, 3, 3), float("nan")), BOXES[:1], (9, 9)).any()

    def test_more_than_32_megabytes(self):
        """Where the kernel asks Linux for huge pages: the same masks, one by one."""
        masks, boxes = random_masks(35, 14, 14)
        boxes *= 12
        pasted = paste_masks(masks, boxes, (1000, 1001))
        assert all(torch.equal(pasted[i], paste_masks(masks[i : i + 1], boxes[i : i + 1], (1000, 1001))[0]) for i in range(35))
        assert pasted.sum() > 100_000

    def test_empty_image(self):
        assert paste_masks(MASKS, BOXES, (0, 7)).shape == (2, 0, 7)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((MASKS[0], BOXES, (9, 9)), ValueError, r"masks: expected \[N, h, w\]"),
            ((MASKS[:, None].expand(2, 3, 4, 4), BOXES, (9, 9)), ValueError, r"masks: expected \[N, h, w\]"),
            ((MASKS.bool(), BOXES, (9, 9)), TypeError, "masks: expected float32"),
            ((MASKS, BOXES[:1], (9, 9)), ValueError, r"boxes: expected shape \[2, 4\]"),
            ((MASKS, BOXES.long(), (9, 9)), TypeError, "boxes: expected float32"),
            ((MASKS[:, :0], BOXES, (9, 9)), ValueError, "at least one pixel"),
            ((MASKS, BOXES, (-1, 9)), ValueError, "image_size"),
            ((MASKS, BOXES, (9, 9), 0.5, "mmdet"), ValueError, "style: expected one of torchvision, detectron2"),
            ((MASKS, BOXES.to("meta"), (9, 9)), ValueError, "one device"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            paste_masks(*arguments)
