"""DeepLab v2: the summed pyramid, three scales and their maximum, training, exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.contract import check_autocast, check_channels_last, check_compile, check_export, check_training
from torch import nn

from segkernels.models import DeepLabV2, get_model
from segkernels.nn import ASPP

SCALES = (1.0, 0.75, 0.5)


class Backbone(nn.Module):
    """Output stride 8 in two layers: what is tested here is behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, 4, 2)
        self.conv2 = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, input: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv1(input).relu()
        return {"layer3": x, "layer4": self.conv2(x).relu()}


def small(scales: tuple[float, ...] = SCALES, aux: bool = False) -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(Backbone(), ASPP(8, (6, 12, 18, 24), 3, variant="v2"), nn.Conv2d(8, 3, 1) if aux else None, scales)


@pytest.fixture(scope="module")
def full_size() -> DeepLabV2:
    torch.manual_seed(0)
    return get_model("deeplabv2_resnet101", num_classes=3, multi_scale=True)


def test_layers(full_size: DeepLabV2) -> None:
    convolutions = list(full_size.classifier.convs)
    assert [m.dilation for m in convolutions] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    assert all(m.weight.shape == (3, 2048, 3, 3) and m.bias is not None for m in convolutions)
    assert full_size.scales == SCALES
    with torch.device("meta"):
        net = get_model("deeplabv2_resnet101")
    assert net.scales == (1.0,)
    assert sum(p.numel() for p in net.parameters()) == 44_048_532


def test_resnet101(full_size: DeepLabV2) -> None:
    with torch.no_grad():
        output = full_size.eval()(torch.randn(1, 3, 65, 81))
    assert list(output) == ["out"] and output["out"].shape == (1, 3, 65, 81) and output["out"].isfinite().all()


def test_pyramid_is_a_sum() -> None:
    net = small((1.0,)).eval()
    image = torch.randn(2, 3, 65, 90)
    with torch.no_grad():
        map = net.backbone(image)["layer4"]
        rates = (6, 12, 18, 24)
        logits = [F.conv2d(map, c.weight, c.bias, 1, r, r) for c, r in zip(net.classifier.convs, rates)]
        expected = F.interpolate(sum(logits), (65, 90), mode="bilinear")
        torch.testing.assert_close(net(image)["out"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_maximum_of_scales(training: bool) -> None:
    net = small(aux=True).train(training)
    single = DeepLabV2(net.backbone, net.classifier, net.aux_classifier)
    image = torch.randn(2, 3, 65, 90)
    with torch.no_grad():
        logits = []
        for size in ((65, 90), (48, 67), (32, 45)):
            logits.append(net.classifier(net.backbone(F.interpolate(image, size, mode="bilinear"))["layer4"]))
        fused = torch.stack([F.interpolate(x, logits[0].shape[2:], mode="bilinear") for x in logits]).amax(0)
        expected = {"out": F.interpolate(fused, (65, 90), mode="bilinear"), "aux": single(image)["aux"]}
        if training:
            expected |= {f"out_{s}": F.interpolate(x, (65, 90), mode="bilinear") for s, x in zip(SCALES, logits)}
        output = net(image)
    assert list(output) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(output[key], value, rtol=1e-4, atol=1e-5)


def test_odd_sizes() -> None:
    for scales in ((1.0,), SCALES):
        for size in ((1, 1), (33, 47)):
            output = small(scales).eval()(torch.randn(2, 3, *size))
            assert output["out"].shape == (2, 3, *size) and output["out"].isfinite().all()


@pytest.mark.parametrize("scales", [(1.0,), SCALES])
def test_training(scales: tuple[float, ...]) -> None:
    check_training(small(scales, aux=True), (2, 3, 48, 65), lr=1e-2)


def test_contract() -> None:
    image = torch.randn(1, 3, 65, 90)
    for check in (check_export, check_compile, check_channels_last, check_autocast):
        check(small(), image)


def test_weights(full_size: DeepLabV2, tmp_path: Path) -> None:
    resnets = pytest.importorskip("torchvision.models")
    state = {key: value.clone() for key, value in full_size.backbone.state_dict().items()}
    with torch.device("meta"):
        theirs = resnets.resnet101().state_dict()
    assert {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")} == {k: v.shape for k, v in state.items()}
    torch.save(state | {"fc.weight": torch.zeros(1)}, tmp_path / "resnet101.pth")
    loaded = get_model("deeplabv2_resnet101", num_classes=2, aux_loss=True, weights_backbone=tmp_path / "resnet101.pth")
    assert torch.equal(loaded.backbone.conv1.weight, state["conv1.weight"])
    assert loaded.aux_classifier is not None and loaded.scales == (1.0,)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"input: expected \[N, 3, H, W\] with H and W of at least 1, got \[1, 4, 8, 8\]"):
        small()(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"scales: expected 1 and then scales below it, got \(0.5, 1.0\)"):
        small((0.5, 1.0))
