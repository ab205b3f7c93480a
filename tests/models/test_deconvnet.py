"""DeconvNet: the paper's layers, one vector in the middle, switches, odd sizes, training, exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.contract import check_autocast, check_channels_last, check_compile, check_export, check_training
from torch import nn

from segkernels.models import DeconvNet, get_model
from segkernels.nn import ConvTranspose2d, MaxPool2d, MaxUnpool2d


def small(**config: object) -> DeconvNet:
    torch.manual_seed(0)
    return get_model("deconvnet", **{"width": 2, "num_classes": 3, **config})


def test_layers() -> None:
    with torch.device("meta"):
        net = get_model("deconvnet")
    layers = [m for m in net.modules() if isinstance(m, ConvTranspose2d)]
    deconvolutions = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in layers]
    assert deconvolutions == [
        (4096, 512, 7),
        (512, 512, 3), (512, 512, 3), (512, 512, 3),
        (512, 512, 3), (512, 512, 3), (512, 256, 3),
        (256, 256, 3), (256, 256, 3), (256, 128, 3),
        (128, 128, 3), (128, 64, 3),
        (64, 64, 3), (64, 64, 3),
    ]  # fmt: skip
    assert net.fc6[0].weight.shape == (4096, 512, 7, 7) and net.fc7[0].weight.shape == (4096, 4096, 1, 1)
    assert sum(p.numel() for p in net.parameters()) == 251_805_653
    assert sum(isinstance(m, (MaxPool2d, MaxUnpool2d)) for m in net.modules()) == 6


def test_one_vector_and_switches_of_a_byte() -> None:
    """At 224x224 the map after fc6 is 1x1, and each unpooling takes the indices of the pooling at its level."""
    net = small().eval()
    vectors, pooled, unpooled = [], [], []
    net.fc7.register_forward_hook(lambda module, inputs, output: vectors.append(tuple(output.shape)))
    for module in net.encoder:
        if isinstance(module, MaxPool2d):
            module.register_forward_hook(lambda module, inputs, output: pooled.append(output[1]))
    net.unpool.register_forward_hook(lambda module, inputs, output: unpooled.append(inputs[1]))
    with torch.no_grad():
        net(torch.randn(1, 3, 224, 224))
    assert vectors == [(1, 128, 1, 1)]
    assert len(pooled) == 5 and all(a is b for a, b in zip(pooled, reversed(unpooled)))
    assert {indices.dtype for indices in pooled} == {torch.uint8}


def test_odd_sizes() -> None:
    net = small(in_channels=1).eval()
    for size in ((224, 224), (241, 275)):
        output = net(torch.randn(1, 1, *size))
        assert list(output) == ["out"]
        assert output["out"].shape == (1, 3, *size) and output["out"].isfinite().all()


def test_training() -> None:
    check_training(small(num_classes=2), (2, 3, 224, 225), steps=3, lr=1e-2)


def test_channels_last_and_autocast() -> None:
    image = torch.randn(1, 3, 224, 230)
    check_channels_last(small(), image)
    # Each value that comes out of another window position is a large error: torch.nn's layers give the same one, 0.29.
    check_autocast(small(), image, tolerance=0.4)


def test_export_and_compile() -> None:
    image = torch.randn(1, 3, 224, 230)
    check_export(small(), image)
    check_compile(small(), image)


def test_weights(tmp_path: Path) -> None:
    net = small()
    torch.save(net.state_dict(), tmp_path / "deconvnet.pth")
    loaded = small(weights=tmp_path / "deconvnet.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    vgg16_bn = {f"features.{key}": torch.rand_like(value.float()) for key, value in net.encoder.state_dict().items()}
    torch.save(vgg16_bn | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16_bn.pth")
    loaded = small(weights_backbone=tmp_path / "vgg16_bn.pth")
    for name, module in loaded.encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            assert torch.equal(module.weight, vgg16_bn[f"features.{name}.weight"])


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match=r"input: expected \[N, 3, H, W\] with H and W of at least 224, got \[1, 3, 223, 300\]"
    ):
        small()(torch.zeros(1, 3, 223, 300))
