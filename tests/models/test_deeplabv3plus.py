"""DeepLab v3+, and DeepLab v3 with SMP's weights: outputs, gradients, keys, output strides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_test import assert_parity, assert_promises, assert_trains

from segkernels import models
from segkernels.models import deeplabv3_resnet50, deeplabv3plus_resnet50
from segkernels.models._smp import from_smp

PEERS = {"deeplabv3_resnet50": "DeepLabV3", "deeplabv3plus_resnet50": "DeepLabV3Plus"}


@pytest.mark.parametrize("name, peer, encoder", [
    ("deeplabv3_resnet50", "DeepLabV3", "resnet50"), ("deeplabv3_resnet101", "DeepLabV3", "resnet101"),
    ("deeplabv3plus_resnet50", "DeepLabV3Plus", "resnet50"), ("deeplabv3plus_resnet101", "DeepLabV3Plus", "resnet101"),
])  # fmt: skip
def test_state_dicts_have_the_same_keys_and_shapes(name: str, peer: str, encoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    with torch.device("meta"):
        theirs = getattr(smp, peer)(encoder, encoder_weights=None, classes=5)
        ours = getattr(models, name)(num_classes=5)
    expected = {key: value.shape for key, value in from_smp(theirs.state_dict()).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize("name, peer, output_stride", [
    ("deeplabv3_resnet50", "DeepLabV3", 8), ("deeplabv3plus_resnet50", "DeepLabV3Plus", 8),
    ("deeplabv3plus_resnet50", "DeepLabV3Plus", 16),
])  # fmt: skip
def test_smp(name: str, peer: str, output_stride: int, shallow: tuple[int, ...], tmp_path: Path, monkeypatch) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    encoders = smp.encoders.encoders
    params = encoders["resnet50"]["params"] | {"layers": list(shallow)}
    monkeypatch.setitem(encoders, "resnet50", encoders["resnet50"] | {"params": params})
    theirs = getattr(smp, peer)("resnet50", encoder_weights=None, encoder_output_stride=output_stride, classes=5)
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    ours = getattr(models, name)(weights=tmp_path / "smp.pth", num_classes=5, output_stride=output_stride)
    names = {ours: theirs for theirs, ours in zip(theirs.state_dict(), from_smp(theirs.state_dict()))}
    # SMP wants multiples of the output stride.
    assert_parity(ours, theirs, torch.randn(2, 3, 32, 48), names)
    # Its weights in another style compute something else.
    other = getattr(models, name)(weights=tmp_path / "smp.pth", num_classes=5, style="torchvision").eval()
    assert other.align_corners is False and ours.align_corners is True


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_strides(output_stride: int, shallow: tuple[int, ...]) -> None:
    model = deeplabv3plus_resnet50(output_stride=output_stride, num_classes=2).eval()
    sizes = {}
    model.classifier.aspp.register_forward_hook(lambda module, inputs, output: sizes.update(aspp=output.shape[2:]))
    model.classifier.logits.register_forward_hook(lambda module, inputs, output: sizes.update(logits=output.shape[2:]))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96))["out"].shape == (1, 2, 64, 96)
    assert sizes == {"aspp": (64 // output_stride, 96 // output_stride), "logits": (16, 24)}


def test_promises(shallow: tuple[int, ...]) -> None:
    model = deeplabv3plus_resnet50(num_classes=3, aux_loss=True)
    assert_trains(model, 3)
    assert_promises(model, 3, compile=True)


def test_bad_arguments(shallow: tuple[int, ...], tmp_path: Path) -> None:
    for builder in (deeplabv3_resnet50, deeplabv3plus_resnet50):
        with pytest.raises(ValueError, match="style: expected 'torchvision', 'smp' or None, got 'keras'"):
            builder(style="keras")
        with pytest.raises(ValueError, match="output_stride: expected 8, 16 or 32, got 4"):
            builder(output_stride=4)
    torch.save(deeplabv3_resnet50(num_classes=2).state_dict(), tmp_path / "v3.pth")
    with pytest.raises(ValueError, match="v3.pth is not for this DeepLabV3Plus"):
        deeplabv3plus_resnet50(weights=tmp_path / "v3.pth", num_classes=2)
