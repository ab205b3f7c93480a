"""U-Net: the lecture's numbers, odd sizes, training, state dicts, compile."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from models.contract import check_all, check_autocast, check_export
from torch import nn

import segkernels.nn
from segkernels.losses import dice_bce_loss
from segkernels.models import UNet, get_model, list_models, unet


@pytest.fixture(scope="module")
def full_size() -> UNet:
    return unet()


def small(**config: object) -> UNet:
    torch.manual_seed(0)
    return unet(width=4, **config)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_and_state_keys(full_size: UNet) -> None:
    assert parameters(full_size) == 31_043_521
    assert len(full_size.state_dict()) == 136
    # The lecture's "Params size (MB): 118.42".
    assert round(4 * parameters(full_size) / 2**20, 2) == 118.42


@pytest.mark.parametrize(
    "name, expected",
    [
        ("e1.conv.conv1", 1_792),
        ("e1.conv.bn1", 128),
        ("e1.conv.conv2", 36_928),
        ("e2.conv.conv1", 73_856),
        ("e2.conv.bn2", 256),
        ("e2.conv.conv2", 147_584),
        ("e3.conv.conv1", 295_168),
        ("e3.conv.conv2", 590_080),
        ("d3.up", 131_200),
        ("d3.conv.conv1", 295_040),
        ("d4.up", 32_832),
        ("d4.conv.conv1", 73_792),
        ("outputs", 65),
        ("e1.pool", 0),
        ("b.relu", 0),
    ],
)
def test_layer_table(full_size: UNet, name: str, expected: int) -> None:
    assert parameters(full_size.get_submodule(name)) == expected


def test_layer_shapes(full_size: UNet) -> None:
    """Of the lecture's table, at a seventh of its 224 x 224."""
    expected = {
        "e1.conv": (64, 32),
        "e1.pool": (64, 16),
        "e2.pool": (128, 8),
        "e3.pool": (256, 4),
        "e4.pool": (512, 2),
        "b": (1024, 2),
        "d1": (512, 4),
        "d3.up": (128, 16),
        "d4": (64, 32),
        "outputs": (1, 32),
    }
    seen = {}
    handles = [
        full_size.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (output.shape[1], output.shape[2])})
        )
        for name in expected
    ]
    with torch.no_grad():
        full_size(torch.randn(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    assert seen == expected


def test_runs_on_these_operators(full_size: UNet) -> None:
    kinds = [type(module) for module in full_size.modules()]
    assert kinds.count(segkernels.nn.MaxPool2d) == 4
    assert kinds.count(segkernels.nn.ConvTranspose2d) == 4


def test_upsampled_channels_come_before_the_skip() -> None:
    """The lecture's ``torch.cat([x, skip])``: checkpoints depend on the order."""
    net = small().eval()
    seen = {}
    net.d2.up.register_forward_hook(lambda module, inputs, output: seen.update(up=output))
    net.e3.conv.register_forward_hook(lambda module, inputs, output: seen.update(skip=output))
    net.d2.conv.register_forward_pre_hook(lambda module, inputs: seen.update(both=inputs[0]))
    with torch.no_grad():
        # 18 pixels are 4 at the skip and 2 below it; 22 are 5 and 2: one row and column of zeros.
        net(torch.randn(1, 3, 18, 22))
    up, skip = seen["both"].split(16, dim=1)
    assert torch.equal(skip, seen["skip"])
    assert torch.equal(up[..., :4, :4], seen["up"])
    assert up.shape == (1, 16, 4, 5) and not up[..., 4].any()


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 50), (47, 16)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    output = small(in_channels=2, num_classes=3)(torch.randn(2, 2, *size))
    assert isinstance(output, OrderedDict) and list(output) == ["out"]
    assert output["out"].shape == (2, 3, *size)
    assert output["out"].isfinite().all()


def test_same_as_torch_nn() -> None:
    ours, theirs = small(), UNet(width=4, layers=nn)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(2, 3, 37, 48)
    results = {}
    for name, net in (("ours", ours), ("theirs", theirs)):
        out = net(input)["out"]
        out.square().mean().backward()
        results[name] = (out, {key: p.grad for key, p in net.named_parameters()})
    torch.testing.assert_close(results["ours"][0], results["theirs"][0], rtol=1e-4, atol=1e-5)
    for key, grad in results["theirs"][1].items():
        # Convolutions before a batch normalisation have biases whose gradient is zero up to rounding.
        torch.testing.assert_close(results["ours"][1][key], grad, rtol=1e-3, atol=1e-5)


def test_training_lowers_the_loss() -> None:
    net = small()
    input = torch.randn(2, 3, 24, 40)
    target = (input.mean(1, keepdim=True) > 0).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = dice_bce_loss(net(input)["out"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_weights_from_a_path(tmp_path: Path) -> None:
    saved = small(num_classes=2)
    path = tmp_path / "unet.pth"
    torch.save(saved.state_dict(), path)
    torch.manual_seed(1)
    loaded = unet(width=4, num_classes=2, weights=path)
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    with pytest.raises(ValueError, match="unet.pth has other shapes.*num_classes"):
        unet(width=4, num_classes=3, weights=path)


def test_weights_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(small(), path)
    with pytest.raises(Exception, match="weights_only"):
        unet(width=4, weights=path)


def test_compile() -> None:
    net = small().eval()
    input = torch.randn(1, 3, 21, 32)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(input)["out"], net(input)["out"])


def test_export_and_autocast() -> None:
    check_all(small, torch.randn(1, 3, 37, 48), (check_export, check_autocast))


def test_channels_last() -> None:
    net, input = small().eval(), torch.randn(2, 3, 32, 48)
    expected = net(input)["out"]
    net.to(memory_format=torch.channels_last)
    output = net(input.contiguous(memory_format=torch.channels_last))["out"]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 15, 32)])
def test_bad_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"input: expected \[N, 3, H, W\] with H and W of at least 16, got"):
        small()(torch.zeros(shape))


def test_registry() -> None:
    assert {"segnet", "unet"} <= set(list_models())
    assert isinstance(get_model("unet", width=4), UNet)
    with pytest.raises(ValueError, match="expected one of .*unet.*, got 'nounet'"):
        get_model("nounet")
