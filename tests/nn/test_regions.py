from __future__ import annotations

import pytest
import torch

from segkernels import nn, ops

BOXES = [torch.tensor([[4.0, 4, 40, 60], [0, 0, 63, 63]]), torch.tensor([[1.5, 2.5, 120.0, 90.0]])]


def test_roi_align():
    image = torch.randn(2, 3, 16, 16)
    module = nn.RoIAlign((3, 2), 0.25, 2, True)
    assert repr(module) == "RoIAlign(output_size=(3, 2), spatial_scale=0.25, sampling_ratio=2, aligned=True)"
    assert torch.equal(module(image, BOXES), ops.roi_align(image, BOXES, (3, 2), 0.25, 2, True))


def test_roi_pool():
    image = torch.randn(2, 3, 16, 16)
    module = nn.RoIPool(3, 0.25)
    assert repr(module) == "RoIPool(output_size=3, spatial_scale=0.25)"
    assert torch.equal(module(image, BOXES), ops.roi_pool(image, BOXES, 3, 0.25))


def test_multiscale_roi_align_ignores_other_maps():
    maps = {"a": torch.randn(2, 3, 32, 32), "b": torch.randn(2, 7, 16, 16), "c": torch.randn(2, 3, 16, 16)}
    module = nn.MultiScaleRoIAlign(["a", "c"], 3, 2, canonical_scale=32)
    output = module(maps, BOXES, [(120, 128), (128, 100)])
    assert module.scales == [0.25, 0.125]
    expected = ops.multiscale_roi_align([maps["a"], maps["c"]], BOXES, 3, [0.25, 0.125], 2, canonical_scale=32)
    assert torch.equal(output, expected)


def test_multiscale_roi_align_is_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    maps = {str(i): torch.randn(2, 3, 50 >> i, 42 >> i) for i in range(3)}
    arguments = (["0", "1", "2"], 5, 2)
    ours, theirs = nn.MultiScaleRoIAlign(*arguments), torchvision.ops.MultiScaleRoIAlign(*arguments)
    assert repr(ours) == repr(theirs)
    shapes = [(200, 168), (190, 160)]
    torch.testing.assert_close(ours(maps, BOXES, shapes), theirs(maps, BOXES, shapes))
    assert ours.scales == theirs.scales
    aligned = torchvision.ops.RoIAlign(7, 0.5, -1)
    assert repr(nn.RoIAlign(7, 0.5, -1)) == repr(aligned)


def test_multiscale_roi_align_needs_maps_and_images():
    module = nn.MultiScaleRoIAlign(["a"], 3, 2)
    with pytest.raises(ValueError, match="x: expected maps named"):
        module({"b": torch.randn(1, 3, 8, 8)}, BOXES, [(8, 8)])
    with pytest.raises(ValueError, match="image_shapes"):
        module({"a": torch.randn(1, 3, 8, 8)}, BOXES, [])
