"""U-Net on ResNet and VGG16 encoders: SMP's keys, outputs and gradients, odd sizes, training, exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.contract import check_all, check_compile, check_training
from torch import nn

from segkernels.models import EncoderUNet, get_model
from segkernels.models._encoders import ENCODERS
from segkernels.models.weights import ResNet34_Weights

CHANNELS = (16, 12, 8, 6, 4)


def build(encoder_name: str = "resnet18", **config: object) -> EncoderUNet:
    torch.manual_seed(0)
    config = {"num_classes": 3, "decoder_channels": CHANNELS, **config}
    return get_model("encoder_unet", encoder_name=encoder_name, **config)


def smp_unet(encoder_name: str, **config: object) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    config = {"classes": 3, "decoder_channels": CHANNELS, **config}
    return smp.Unet(encoder_name, encoder_weights=None, **config)


@pytest.mark.parametrize(
    "encoder_name, training",
    [("resnet18", False), ("resnet18", True), ("resnet50", True), ("vgg16", False), ("vgg16_bn", True)],
)
def test_same_as_smp(encoder_name: str, training: bool) -> None:
    theirs = smp_unet(encoder_name, in_channels=4).train(training)
    ours = build(encoder_name, in_channels=4).train(training)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 4, 64, 64)
    results = []
    for model in (ours, theirs):
        out = model(image)
        out = out["out"] if isinstance(out, dict) else out
        out.square().mean().backward()
        results.append((out.detach(), {key: p.grad for key, p in model.named_parameters()}))
    (out, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert list(gradients) == list(expected_gradients)
    for key, gradient in expected_gradients.items():
        # A convolution's bias before a BatchNorm has a gradient of rounding errors.
        assert (gradients[key] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, key
    for key, value in theirs.state_dict().items():
        # Running statistics too.
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("encoder_name", sorted(name for name in ENCODERS if not name.startswith("mobilenet")))
def test_keys_are_smps(encoder_name: str) -> None:
    """Of every encoder, at full size, on the meta device."""
    with torch.device("meta"):
        theirs = smp_unet(encoder_name, classes=1, decoder_channels=(256, 128, 64, 32, 16))
        ours = get_model("encoder_unet", encoder_name=encoder_name)
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    if encoder_name == "resnet34":
        assert sum(p.numel() for p in ours.parameters()) == 24_436_369


@pytest.mark.parametrize("encoder_name", ["resnet18", "vgg16", "mobilenet_v3_small"])
def test_odd_sizes(encoder_name: str) -> None:
    net = build(encoder_name, in_channels=1).eval()
    for size in ((32, 32), (33, 47), (64, 95)):
        with torch.no_grad():
            output = net(torch.randn(1, 1, *size))
        assert list(output) == ["out"]
        assert output["out"].shape == (1, 3, *size) and output["out"].isfinite().all()


@pytest.mark.parametrize("encoder_name", ["resnet18", "mobilenet_v2"])
def test_smps_file_and_odd_sizes(encoder_name: str, tmp_path: Path) -> None:
    theirs = smp_unet(encoder_name).eval()
    torch.save(theirs.state_dict(), tmp_path / "unet.pth")
    ours = build(encoder_name, weights=tmp_path / "unet.pth").eval()
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    build(encoder_name, weights=tmp_path / "ours.pth")
    image = torch.randn(1, 3, 47, 77)
    with torch.no_grad():
        expected = theirs(image)
        torch.testing.assert_close(ours(image)["out"], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_training() -> None:
    check_training(build(num_classes=2), (2, 3, 64, 65), steps=4)


def test_contract() -> None:
    check_all(build, torch.randn(1, 3, 65, 96))


def test_compile() -> None:
    check_compile(build(), torch.randn(1, 3, 65, 96))


def test_weights_of_the_backbone(tmp_path: Path) -> None:
    state = {key: torch.rand_like(value.float()) for key, value in build().encoder.state_dict().items()}
    torch.save(state | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "resnet18.pth")
    loaded = build(weights_backbone=tmp_path / "resnet18.pth")
    assert torch.equal(loaded.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="expected a path or a member of the enum for resnet18, got ResNet34_Weights"):
        build(weights_backbone=ResNet34_Weights.IMAGENET1K_V1)
    with pytest.raises(ValueError, match="encoder_name: expected one of .*resnet18.*, got 'resnet19'"):
        build("resnet19")
    with pytest.raises(ValueError, match=r"decoder_channels: expected 5 numbers, got \(8, 4\)"):
        build(decoder_channels=(8, 4))
    with pytest.raises(ValueError, match=r"input: expected \[N, 3, H, W\] with H and W of at least 32, got \[1, 3, 31, 64\]"):
        build()(torch.zeros(1, 3, 31, 64))
