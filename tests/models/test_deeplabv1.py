"""DeepLab v1: output stride 8 by holes, LargeFOV, torchvision's keys, training, exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.contract import check_all, check_compile, check_training
from torch import nn

from segkernels.models import get_model


def small(**config: object) -> nn.Module:
    torch.manual_seed(0)
    return get_model("deeplabv1_vgg16", **{"width": 2, "num_classes": 3, **config})


def test_layers() -> None:
    with torch.device("meta"):
        net = get_model("deeplabv1_vgg16")
    convolutions = [m for m in net.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [m.dilation[0] for m in convolutions] == 10 * [1] + 3 * [2]
    fc6, fc7 = net.classifier.fc6, net.classifier.fc7
    assert (fc6.weight.shape, fc6.dilation, fc7.weight.shape) == ((1024, 512, 3, 3), (12, 12), (1024, 1024, 1, 1))
    assert sum(p.numel() for p in net.parameters()) == 20_505_429


def test_map_is_28_by_28() -> None:
    """The lecture's number for a 224x224 image, where VGG16 has 7x7."""
    net = small().eval()
    with torch.no_grad():
        maps = net.backbone(torch.randn(1, 3, 224, 224))
    assert maps["pool5"].shape == (1, 16, 28, 28)


def test_same_as_torch() -> None:
    """Layer by layer, with the numbers of the authors' network written out."""
    net = small().eval()
    image = torch.randn(2, 3, 65, 90)
    weights = [(m.weight, m.bias) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        x = image
        for stage, count in enumerate((2, 2, 3, 3, 3), 1):
            rate = 2 if stage == 5 else 1
            for _ in range(count):
                x = F.conv2d(x, *weights.pop(0), padding=rate, dilation=rate).relu()
            x = F.max_pool2d(x, 3, 2 if stage <= 3 else 1, 1)
        x = F.avg_pool2d(x, 3, 1, 1)
        x = F.conv2d(x, *weights.pop(0), padding=12, dilation=12).relu()
        x = F.conv2d(x, *weights.pop(0)).relu()
        x = F.conv2d(x, *weights.pop(0))
        assert not weights and x.shape[2:] == (9, 12)
        x = F.interpolate(x, image.shape[2:], mode="bilinear")
        torch.testing.assert_close(net(image)["out"], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aux_loss", [None, True])
def test_odd_sizes(aux_loss: bool | None) -> None:
    net = small(in_channels=2, aux_loss=aux_loss)
    for size in ((1, 1), (33, 47), (64, 95)):
        output = net.eval()(torch.randn(2, 2, *size))
        assert list(output) == (["out", "aux"] if aux_loss else ["out"])
        assert all(value.shape == (2, 3, *size) and value.isfinite().all() for value in output.values())


def test_training() -> None:
    check_training(small(width=4, num_classes=2, aux_loss=True), (2, 3, 64, 65))


def test_contract() -> None:
    check_all(small, torch.randn(1, 3, 65, 96))


def test_compile() -> None:
    check_compile(small(), torch.randn(1, 3, 65, 96))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights(batch_norm: bool, tmp_path: Path) -> None:
    net = small(batch_norm=batch_norm)
    torch.save(net.state_dict(), tmp_path / "deeplab.pth")
    loaded = small(batch_norm=batch_norm, weights=tmp_path / "deeplab.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    with_aux = small(batch_norm=batch_norm, aux_loss=True)
    torch.save(with_aux.state_dict(), tmp_path / "aux.pth")
    assert small(batch_norm=batch_norm, weights=tmp_path / "aux.pth").aux_classifier is not None
    vgg16 = {key: torch.rand_like(value.float()) for key, value in net.backbone.state_dict().items()}
    torch.save(vgg16 | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    loaded = small(batch_norm=batch_norm, weights_backbone=tmp_path / "vgg16.pth")
    assert torch.equal(loaded.backbone.features[0].weight, vgg16["features.0.weight"])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"input: expected \[N, 3, H, W\] with H and W of at least 1, got \[1, 4, 8, 8\]"):
        small()(torch.zeros(1, 4, 8, 8))
