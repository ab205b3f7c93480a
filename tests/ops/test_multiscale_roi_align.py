from __future__ import annotations

import pytest
import torch
from op_test import OpTest, Sample

from segkernels.ops import multiscale_roi_align
from segkernels.reference import multiscale_roi_align as reference

SCALES = [0.5, 0.25, 0.125]
# Sides from 1 to 32 pixels, so that each of three levels has boxes; reversed and empty ones have no area.
BOXES = [
    [0, 1.0, 1.5, 4.0, 5.0],
    [1, 0.0, 0.0, 10.0, 9.0],
    [1, -3.0, -2.5, 28.0, 30.0],
    [0, 5.5, 4.0, 24.0, 12.0],
    [0, 30.0, 30.0, 46.0, 46.0],
    [1, 3.0, 3.0, 3.0, 3.0],
    [0, 6.0, 5.0, 2.0, 1.0],
    [1, 6.0, 1.0, 2.0, 5.0],
]


def on_three_maps(fine, middle, coarse, boxes, *arguments, function=multiscale_roi_align):
    return function([fine, middle, coarse], boxes, *arguments)


def oracle(fine, middle, coarse, boxes, output_size, scales, sampling_ratio=2, aligned=False, size=224, level=4):
    pair = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    maps = [fine, middle, coarse]
    return reference.multiscale_roi_align(maps, boxes, pair, scales, sampling_ratio, aligned, size, level)


class TestMultiscaleRoiAlign(OpTest):
    op = "multiscale_roi_align"
    function = staticmethod(on_three_maps)
    oracle = staticmethod(oracle)
    gradcheck_samples = ("ratio 2",)
    not_interpreted = ("ratio 2", "adaptive aligned", "channels_last", "all on one level")

    def samples(self, device, dtype):
        boxes = torch.tensor(BOXES, device=device).to(dtype)

        def sample(name, channels, *arguments, count=None, channels_last=False):
            maps = [torch.randn(2, channels, 16 >> i, 20 >> i, device=device).to(dtype) for i in range(3)]
            if channels_last:
                maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
            return Sample(name, (*maps, boxes[:count], *arguments), grad=(0, 1, 2))

        return [
            sample("three boxes", 2, 1, SCALES, 2, False, 8, 2, count=3),
            sample("ratio 2", 2, 2, SCALES, 2, False, 8, 2),
            sample("adaptive aligned", 3, (2, 3), SCALES, -1, True, 8, 2),
            sample("channels_last", 9, 3, SCALES, 2, False, 8, 2, channels_last=True),
            sample("all on one level", 4, 2, SCALES, 2),
        ]

    @pytest.mark.parametrize("levels", [1, 4])
    def test_agrees_with_torchvision(self, levels):
        torchvision = pytest.importorskip("torchvision")
        generator = torch.Generator().manual_seed(0)
        names = [str(i) for i in range(levels)]
        maps = [torch.randn(2, 6, 64 >> i, 80 >> i, generator=generator) for i in range(levels)]
        corner = torch.rand(60, 2, generator=generator) * torch.tensor([200.0, 160.0])
        extent = 2 ** (2 + 6 * torch.rand(60, 2, generator=generator))
        boxes = torch.cat([corner, corner + extent], 1)
        # Exactly at the border between two levels.
        boxes[0] = torch.tensor([0.0, 0.0, 112.0, 112.0])
        boxes[1] = torch.tensor([0.0, 0.0, 224.0, 224.0])
        parts = [boxes[:25], boxes[25:]]
        pool = torchvision.ops.MultiScaleRoIAlign(names, 7, 2)
        expected = pool(dict(zip(names, maps)), parts, [(256, 320), (250, 300)])
        scales = [2.0 ** -(2 + i) for i in range(levels)]
        torch.testing.assert_close(multiscale_roi_align(maps, parts, 7, scales, 2), expected)

    def test_no_boxes(self):
        maps = [torch.randn(2, 3, 8 >> i, 8 >> i, requires_grad=True) for i in range(3)]
        output = multiscale_roi_align(maps, torch.zeros(0, 5), 2, SCALES)
        assert output.shape == (0, 3, 2, 2)
        output.sum().backward()
        assert all(torch.equal(m.grad, torch.zeros_like(m)) for m in maps)

    def test_gradient_of_some_maps(self):
        maps = [torch.randn(1, 3, 8 >> i, 8 >> i) for i in range(3)]
        maps[1].requires_grad_()
        output = multiscale_roi_align(maps, torch.tensor([[0.0, 0, 0, 9, 9]]), 2, SCALES, 2, False, 8, 2)
        (grad,) = torch.autograd.grad(output.sum(), maps[1])
        torch.testing.assert_close(grad.sum(), torch.tensor(12.0))

    @pytest.mark.parametrize("coordinate", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9])
    @pytest.mark.parametrize("sampling_ratio", [-1, 2])
    def test_degenerate_boxes(self, coordinate, sampling_ratio):
        maps = [torch.randn(1, 3, 8 >> i, 8 >> i) for i in range(3)]
        for position in range(1, 5):
            boxes = torch.tensor([[0.0, 1, 1, 6, 6]])
            boxes[0, position] = coordinate
            arguments = (boxes, [2, 2], SCALES, sampling_ratio, False, 8.0, 2.0)
            output = multiscale_roi_align(maps, *arguments)
            assert torch.isfinite(output).all()
            torch.testing.assert_close(output, reference.multiscale_roi_align(maps, *arguments))

    @pytest.mark.parametrize(
        ("maps", "scales", "error", "match"),
        [
            ([], [], ValueError, "spatial_scales: expected one for each of 0"),
            ([torch.randn(1, 3, 8, 8)], [0.5, 0.25], ValueError, "spatial_scales: expected one for each of 1"),
            ([torch.randn(1, 3, 8, 8)], [0.0], ValueError, "spatial_scales: expected positive"),
            ([torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4)], [0.5, 0.25], ValueError, "features: expected maps of one"),
            ([torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4).half()], [0.5, 0.25], ValueError, "features: expected maps"),
            ([torch.randn(3, 8, 8)], [0.5], ValueError, "features: expected"),
        ],
    )  # fmt: skip
    def test_bad_input(self, maps, scales, error, match):
        with pytest.raises(error, match=match):
            multiscale_roi_align(maps, torch.zeros(1, 5), 2, scales)
