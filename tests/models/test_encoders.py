"""MobileNet, Xception and timm's encoders: peers' state dicts, maps, strides, and the models built on them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from model_test import assert_parity, assert_promises, assert_trains
from torch import nn

import segkernels.nn
from segkernels.models import (
    MobileNetEncoder,
    TimmEncoder,
    XceptionEncoder,
    deeplabv3_mobilenet_v3_large,
    deeplabv3plus_xception,
)
from segkernels.models._weights import load_backbone
from segkernels.models.xception import from_timm

STRIDES = {"stem": 2, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}


def assert_strides(encoder: nn.Module, output_stride: int) -> None:
    with torch.no_grad():
        maps = encoder.eval()(torch.randn(1, 3, 64, 32))
    assert list(encoder.channels) == list(maps) == list(STRIDES)
    for name, value in maps.items():
        stride = min(STRIDES[name], output_stride)
        assert value.shape == (1, encoder.channels[name], 64 // stride, 32 // stride), name


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_mobilenet(name: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = getattr(models, name)().eval()
    torch.save(theirs.state_dict(), tmp_path / "classifier.pth")
    ours = MobileNetEncoder(name).eval()
    load_backbone(ours, tmp_path / "classifier.pth", head=("classifier.",), prefix="features.")
    image = torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        expected, maps = theirs.features(image), ours(image)
    torch.testing.assert_close(maps["layer4"], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert_strides(ours, 32)


def test_dilated_mobilenet_v3() -> None:
    mobilenetv3 = pytest.importorskip("torchvision.models.mobilenetv3")
    theirs = mobilenetv3.mobilenet_v3_large(dilated=True).features.eval()
    ours = MobileNetEncoder("mobilenet_v3_large", output_stride=16).eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 65, 47)
    with torch.no_grad():
        expected, maps = theirs(image), ours(image)
    torch.testing.assert_close(maps["layer4"], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large"])
def test_dilated_mobilenets_keep_the_size(name: str, output_stride: int) -> None:
    encoder = MobileNetEncoder(name, output_stride=output_stride)
    assert_strides(encoder, output_stride)
    depthwise = [module for module in encoder.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert all(isinstance(module, segkernels.nn.Conv2d) for module in depthwise)
    assert depthwise[-1].dilation == (32 // output_stride, 32 // output_stride)


def test_deeplabv3_mobilenet(tmp_path: Path) -> None:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    theirs = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = deeplabv3_mobilenet_v3_large(weights=tmp_path / "weights.pth", num_classes=5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_parity(ours, theirs, torch.randn(2, 3, 33, 33))


def test_promises_of_deeplabv3_mobilenet() -> None:
    model = deeplabv3_mobilenet_v3_large(num_classes=3, aux_loss=True)
    assert_trains(model, 3, lr=0.05)
    assert_promises(model, 3, compile=True)


@pytest.mark.parametrize("output_stride", [32, 8])
def test_xception_is_timms(output_stride: int) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("xception65", output_stride=output_stride).eval()
    ours = XceptionEncoder(output_stride=output_stride).eval()
    ours.load_state_dict(from_timm(theirs.state_dict()))
    image = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        expected, maps = theirs.forward_intermediates(image, intermediates_only=True), ours(image)
    assert len(maps) == len(expected)
    for value, other in zip(maps.values(), expected):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert_strides(ours, output_stride)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block in Xception's middle flow instead of sixteen equal ones."""
    monkeypatch.setattr("segkernels.models.xception.MIDDLE", 1)


def test_deeplabv3plus_xception(short: None, tmp_path: Path) -> None:
    model = deeplabv3plus_xception(num_classes=3)
    assert_trains(model, 3)
    assert_promises(model, 3, compile=True)
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    loaded = deeplabv3plus_xception(num_classes=3, weights=tmp_path / "whole.pth")
    torch.save(model.backbone.state_dict(), tmp_path / "backbone.pth")
    with_backbone = deeplabv3plus_xception(num_classes=4, weights_backbone=tmp_path / "backbone.pth", aux_loss=True)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(with_backbone.backbone.state_dict()[key], value)


def test_xception_has_sixteen_middle_blocks() -> None:
    with torch.device("meta"):
        encoder = XceptionEncoder()
    assert len(encoder.entry) == 3 and len(encoder.middle) == 16 and len(encoder.exit) == 2
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 37_867_312


@pytest.mark.parametrize("encoder", [MobileNetEncoder, XceptionEncoder])
def test_bad_arguments(encoder: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="output_stride: expected 8, 16 or 32, got 4"):
        encoder(output_stride=4)
    with pytest.raises(ValueError, match="name: expected one of mobilenet_v2, .*, got 'mobilenet'"):
        MobileNetEncoder("mobilenet")


@pytest.mark.parametrize("name, output_stride", [("resnet10t", 32), ("resnet10t", 8), ("mobilenetv3_small_050", 16)])
def test_timm(name: str, output_stride: int) -> None:
    pytest.importorskip("timm")
    assert_strides(TimmEncoder(name, output_stride=output_stride), output_stride)


def test_timm_channels() -> None:
    pytest.importorskip("timm")
    encoder = TimmEncoder("swin_tiny_patch4_window7_224", in_channels=2, img_size=64, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        maps = encoder(torch.randn(1, 2, 64, 64))
    # No stem, and timm's own layout is [N, h, w, C].
    assert [tuple(value.shape) for value in maps.values()] == [(1, 96, 16, 16), (1, 192, 8, 8), (1, 384, 4, 4), (1, 768, 2, 2)]
    assert list(maps) == list(encoder.channels) == ["layer1", "layer2", "layer3", "layer4"]


def test_timm_of_bad_names(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"name: expected one of timm.list_models\(\), got 'resnet0'"):
        TimmEncoder("resnet0")
    with pytest.raises(ValueError, match="output_stride: expected 8, 16 or 32, got 4"):
        TimmEncoder("resnet10t", output_stride=4)
    with pytest.raises(ValueError, match="timm's 'swin_tiny_patch4_window7_224' has no maps at output stride 8"):
        TimmEncoder("swin_tiny_patch4_window7_224", output_stride=8)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"TimmEncoder needs timm: pip install 'segkernels\[timm\]'"):
        TimmEncoder("resnet10t")
