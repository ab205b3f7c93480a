"""Models that torchvision has too: its state dict loads strictly, and outputs and gradients agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_test import assert_parity, assert_promises, assert_trains

import segkernels.nn
from segkernels import models
from segkernels.models import ResNetEncoder

SEMANTIC = ["fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"]


@pytest.mark.parametrize("name, output_stride", [("resnet18", 32), ("resnet50", 16), ("resnet50", 8)])
def test_resnet_encoder(name: str, output_stride: int) -> None:
    resnets = pytest.importorskip("torchvision.models")
    dilated = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}[output_stride]
    theirs = getattr(resnets, name)(replace_stride_with_dilation=dilated)
    ours = ResNetEncoder(name, output_stride=output_stride)
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    image = torch.randn(2, 3, 33, 49)
    with torch.no_grad():
        maps = ours(image)
        expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            expected = getattr(theirs, layer)(expected)
            torch.testing.assert_close(maps[layer], expected, rtol=1e-4, atol=1e-4)
            assert maps[layer].shape[1] == ours.channels[layer]


def test_dilated_convolutions_are_ours() -> None:
    for module in ResNetEncoder("resnet50", output_stride=8).modules():
        if isinstance(module, torch.nn.Conv2d) and module.dilation != (1, 1):
            assert isinstance(module, segkernels.nn.Conv2d)


@pytest.mark.parametrize("name", SEMANTIC)
def test_state_dicts_have_the_same_keys_and_shapes(name: str) -> None:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    with torch.device("meta"):
        theirs = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
        ours = getattr(models, name)(num_classes=5, aux_loss=True)
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_semantic_models(name: str, shallow: tuple[int, ...], tmp_path: Path) -> None:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    theirs = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = getattr(models, name)(weights=tmp_path / "weights.pth", num_classes=5)
    assert_parity(ours, theirs, torch.randn(2, 3, 33, 33))


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_promises(name: str, shallow: tuple[int, ...]) -> None:
    model = getattr(models, name)(num_classes=3, aux_loss=True)
    assert_trains(model, 3)
    assert_promises(model, 3, compile=True)
