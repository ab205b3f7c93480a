"""SegNet: layer counts, odd sizes, indices of one byte, training, state dicts, compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.contract import check_autocast, check_export
from torch import nn

from segkernels.models import SegNet, get_model, segnet
from segkernels.nn import MaxPool2d, MaxUnpool2d


@pytest.fixture
def net() -> SegNet:
    torch.manual_seed(0)
    return segnet(num_classes=5)


def convolutions(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_channels, m.out_channels) for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_layers() -> None:
    net = segnet()
    encoder, decoder = convolutions(net.encoder), convolutions(net.decoder)
    assert len(encoder) == len(decoder) == 13
    mirrored = [(b, a) for a, b in reversed(encoder)]
    assert decoder[:-1] == mirrored[:-1]
    assert decoder[-1] == (64, 21)
    assert sum(isinstance(m, MaxPool2d) for m in net.modules()) == 5
    # VGG16's convolutions, and two numbers per batch-normalised channel.
    assert sum(p.numel() for p in net.encoder.parameters()) == 14_714_688 + 2 * 4_224
    assert sum(p.numel() for p in net.parameters()) == 29_455_125


def test_keys_of_the_encoder_are_vgg16_bn(net: SegNet) -> None:
    """torchvision's vgg16_bn numbers ``features`` 0 to 43, poolings at 6, 13, 23, 33 and 43."""
    shapes = {key: tuple(value.shape) for key, value in net.encoder.state_dict().items()}
    assert shapes["0.weight"] == (64, 3, 3, 3) and shapes["1.running_mean"] == (64,)
    assert shapes["40.weight"] == (512, 512, 3, 3) and shapes["41.weight"] == (512,)
    assert [i for i, m in enumerate(net.encoder) if isinstance(m, MaxPool2d)] == [6, 13, 23, 33, 43]
    assert len(shapes) == 13 * 7


def test_one_byte_of_index_per_window(net: SegNet) -> None:
    dtypes = []
    for module in net.encoder:
        if isinstance(module, MaxPool2d):
            module.register_forward_hook(lambda module, inputs, output: dtypes.append(output[1].dtype))
    with torch.no_grad():
        net(torch.randn(1, 3, 32, 32))
    assert dtypes == [torch.uint8] * 5


def test_unpools_with_the_encoders_indices() -> None:
    """Pooling and unpooling alone keep each window's largest value in its place and zero the rest."""
    input = torch.rand(1, 2, 7, 9) + 0.1
    pooled, indices = MaxPool2d(2, return_indices=True, index_dtype=torch.uint8)(input)
    output = MaxUnpool2d(2)(pooled, indices, output_size=input.shape[2:])
    assert output.shape == input.shape
    kept = output != 0
    assert torch.equal(output[kept], input[kept])
    assert kept.sum() == pooled.numel()
    assert torch.equal(F.max_pool2d(output, 2), pooled)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (63, 40)])
def test_odd_sizes(net: SegNet, size: tuple[int, int]) -> None:
    output = net(torch.randn(2, 3, *size))
    assert list(output) == ["out"]
    assert output["out"].shape == (2, 5, *size)
    assert output["out"].isfinite().all()


def test_training_lowers_the_loss(net: SegNet) -> None:
    input = torch.randn(2, 3, 32, 48)
    target = (input.mean(1) > 0).long()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(net(input)["out"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert losses[-1] < 0.8 * losses[0]


def test_weights_from_a_path(net: SegNet, tmp_path: Path) -> None:
    path = tmp_path / "segnet.pth"
    torch.save(net.state_dict(), path)
    loaded = get_model("segnet", num_classes=5, weights=path)
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_weights_of_the_backbone(net: SegNet, tmp_path: Path) -> None:
    vgg16_bn = {f"features.{key}": value for key, value in net.encoder.state_dict().items()}
    vgg16_bn["classifier.6.weight"] = torch.zeros(3, 2)
    path = tmp_path / "vgg16_bn.pth"
    torch.save(vgg16_bn, path)
    loaded = segnet(weights_backbone=path)
    for key, value in net.encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[key], value)


def test_compile(net: SegNet) -> None:
    net.eval()
    input = torch.randn(1, 3, 33, 40)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(input)["out"], net(input)["out"])


def test_export_and_autocast(net: SegNet) -> None:
    image = torch.randn(1, 3, 33, 40)
    check_export(net, image)
    # Of a map of 2x2 a rounding that moves one switch changes much.
    check_autocast(net, image, tolerance=0.4)


def test_channels_last(net: SegNet) -> None:
    # Odd sizes, in evaluation: the running statistics are fresh, so no place sums up rounding.
    net.eval()
    input = torch.randn(1, 3, 35, 64)
    with torch.no_grad():
        expected = net(input)["out"]
        net.to(memory_format=torch.channels_last)
        output = net(input.contiguous(memory_format=torch.channels_last))["out"]
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 31, 32)])
def test_bad_input(net: SegNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"input: expected \[N, 3, H, W\] with H and W of at least 32, got"):
        net(torch.zeros(shape))
