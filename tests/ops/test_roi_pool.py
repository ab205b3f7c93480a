from __future__ import annotations

import pytest
import torch
from op_test import OpTest, Sample

from segkernels.ops import roi_pool
from segkernels.reference import roi_pool as reference

# Image, then corners: inside, at the edges, outside, reversed, empty, halves that round away from zero.
BOXES = [
    [0, 1.0, 1.5, 6.0, 7.0],
    [1, 0.0, 0.0, 10.0, 8.0],
    [1, -3.0, -2.5, 4.5, 3.0],
    [0, 5.5, 4.0, 14.0, 12.0],
    [0, 20.0, 20.0, 30.0, 30.0],
    [1, 3.0, 3.0, 3.0, 3.0],
    [0, 6.0, 5.0, 2.0, 1.0],
]


def oracle(input, boxes, output_size, spatial_scale=1.0):
    size = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    return reference.roi_pool(input, boxes, size, spatial_scale)[0]


class TestRoiPool(OpTest):
    op = "roi_pool"
    function = staticmethod(roi_pool)
    oracle = staticmethod(oracle)
    gradcheck_samples = ("3x3",)
    not_interpreted = ("3x3", "scaled", "channels_last", "more bins than pixels")

    def samples(self, device, dtype):
        boxes = torch.tensor(BOXES, device=device).to(dtype)

        def maps(channels, channels_last=False):
            # Distinct values, so that the maximum is unique in every dtype.
            values = torch.randperm(2 * channels * 80, device=device).view(2, channels, 8, 10).to(dtype) / 8
            return values.contiguous(memory_format=torch.channels_last) if channels_last else values

        return [
            Sample("two boxes", (maps(2), boxes[2:4], (2, 3))),
            Sample("one box channels_last", (maps(3, True), boxes[3:4], (3, 2))),
            Sample("3x3", (maps(1), boxes, 3)),
            Sample("scaled", (maps(1), boxes, (2, 3), 0.5)),
            Sample("channels_last", (maps(3, True), boxes[:4], (3, 4))),
            Sample("more bins than pixels", (maps(1), boxes[:3], 12)),
        ]

    def test_agrees_with_torchvision(self):
        torchvision = pytest.importorskip("torchvision")
        generator = torch.Generator().manual_seed(0)
        corner = torch.rand(40, 2, generator=generator) * 200 - 20
        extent = torch.rand(40, 2, generator=generator) * 150 - 10
        ids = torch.randint(0, 2, (40, 1), generator=generator)
        boxes = torch.cat([torch.cat([ids, corner, corner + extent], 1), torch.tensor(BOXES)])
        ours = torch.randn(2, 6, 25, 35, generator=generator).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        output = roi_pool(ours, boxes, (7, 5), 0.125)
        expected = torchvision.ops.roi_pool(theirs, boxes, (7, 5), 0.125)
        assert torch.equal(output, expected)
        grad = torch.randn(output.shape, generator=generator)
        output.backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(ours.grad, theirs.grad)

    @pytest.mark.parametrize("coordinate", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9])
    def test_degenerate_boxes(self, coordinate):
        image = torch.randn(2, 2, 8, 10)
        for position in range(1, 5):
            boxes = torch.tensor([[1.0, 1, 1, 6, 6]])
            boxes[0, position] = coordinate
            assert torch.equal(roi_pool(image, boxes, 2), oracle(image, boxes, 2))

    def test_nan_wins(self):
        image = torch.randn(1, 1, 4, 4)
        image[0, 0, 1, 1] = float("nan")
        output = roi_pool(image, torch.tensor([[0.0, 0, 0, 3, 3]]), 2)
        assert output.isnan().flatten().tolist() == [True, False, False, False]

    def test_no_boxes(self):
        image = torch.randn(2, 3, 8, 10, requires_grad=True)
        output = roi_pool(image, torch.zeros(0, 5), (2, 3))
        assert output.shape == (0, 3, 2, 3)
        output.sum().backward()
        assert torch.equal(image.grad, torch.zeros_like(image))

    @pytest.mark.parametrize("image", [2.0, -1.0, float("nan")])
    def test_image_outside_the_batch(self, image):
        with pytest.raises(RuntimeError, match="roi_pool: expected boxes to name an image from 0 to 1"):
            roi_pool(torch.randn(2, 3, 8, 10), torch.tensor([[image, 0, 0, 4, 4]]), 2)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="input: expected"):
            roi_pool(torch.randn(3, 8, 8), torch.zeros(1, 5), 2)
        with pytest.raises(ValueError, match="boxes: expected"):
            roi_pool(torch.randn(1, 3, 8, 8), torch.zeros(1, 4), 2)
        with pytest.raises(ValueError, match="output_size"):
            roi_pool(torch.randn(1, 3, 8, 8), torch.zeros(1, 5), 0)
