"""VGG16 and the FCNs on it: torchvision's keys, the classifier as convolutions, the authors' crops, training, exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.contract import check_all, check_compile, check_training
from torch import nn

from segkernels.models import VGG16Encoder, convolutionalize, get_model
from segkernels.models.weights import ResNet50_Weights
from segkernels.nn import BilinearConvTranspose2d

NAMES = ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16")


def torchvision_vgg16(width: int, batch_norm: bool = False, num_classes: int = 10) -> nn.Module:
    """torchvision's VGG16 with fewer channels."""
    vgg = pytest.importorskip("torchvision.models.vgg")
    with torch.device("meta"):
        # Its layers are replaced: no memory for 500 MB of weights.
        model = vgg.VGG(nn.Identity(), init_weights=False)
    model.features = vgg.make_layers([v if v == "M" else v * width // 64 for v in vgg.cfgs["D"]], batch_norm)
    hidden = 64 * width
    model.classifier = nn.Sequential(
        nn.Linear(8 * width * 49, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip
    return model.eval()


def scored(model: nn.Module) -> nn.Module:
    """The scores start at zero, which would make most comparisons one of zeros."""
    for score in model.score.values():
        nn.init.normal_(score.weight, std=0.1)
    return model


def small(name: str = "fcn8s_vgg16", **config: object) -> nn.Module:
    return scored(get_model(name, **{"width": 2, "num_classes": 3, **config}))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_encoder(batch_norm: bool) -> None:
    theirs = torchvision_vgg16(4, batch_norm)
    ours = VGG16Encoder(batch_norm=batch_norm, width=4, maps=("pool1", "conv3", "pool4", "conv5", "pool5")).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k.startswith("features.")})
    image = torch.randn(2, 3, 65, 97)
    expected = [image]
    for layer in theirs.features:
        expected.append(layer(expected[-1]))
    pools = [i for i, layer in enumerate(theirs.features, 1) if isinstance(layer, nn.MaxPool2d)]
    maps = ours(image)
    assert list(maps) == list(ours.channels) == ["pool1", "conv3", "pool4", "conv5", "pool5"]
    for (name, map), i in zip(maps.items(), (pools[0], pools[2] - 1, pools[3], pools[4] - 1, pools[4])):
        torch.testing.assert_close(map, expected[i], rtol=1e-4, atol=1e-5)
        assert map.shape[1] == ours.channels[name]


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_keys_are_torchvisions(name: str) -> None:
    """At full size, on the meta device: names and shapes."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = getattr(models, name)()
        ours = get_model("fcn32s_vgg16", num_classes=1000, batch_norm=name.endswith("bn"))
    state = convolutionalize(theirs.state_dict())
    shapes = {key: value.shape for key, value in ours.state_dict().items() if key != "up.out.weight"}
    assert {key: value.shape for key, value in state.items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) - 1000 * 64 * 64 == sum(p.numel() for p in theirs.parameters())


def test_center_is_the_classifier() -> None:
    theirs = torchvision_vgg16(4)
    ours = get_model("fcn32s_vgg16", num_classes=10, width=4).eval()
    missing = ours.load_state_dict(convolutionalize(theirs.state_dict()), strict=False)
    assert missing.missing_keys == ["up.out.weight"] and not missing.unexpected_keys
    seen = {}
    ours.fc7.register_forward_hook(lambda module, inputs, output: seen.update(hidden=output))
    ours.score["pool5"].register_forward_hook(lambda module, inputs, output: seen.update(score=output))
    theirs.classifier[3].register_forward_hook(lambda module, inputs, output: seen.update(expected=output))
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        ours(image)
        expected = theirs(image)
    assert seen["score"].shape == (2, 10, 7, 7)
    # The hooks see the tensors that the ReLUs then overwrite.
    torch.testing.assert_close(seen["hidden"][:, :, 3, 3].relu(), seen["expected"].relu(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["score"][:, :, 3, 3], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(33, 97), (64, 50)])
def test_paper_padding_is_the_authors_net(name: str, size: tuple[int, int]) -> None:
    """Caffe's layers: transposed convolutions without padding, crops by 19, 27 or 31, and by 5 and 9."""
    net = small(name, padding="paper").eval()
    image = torch.randn(1, 3, *size)

    def up(x: torch.Tensor, layer: BilinearConvTranspose2d) -> torch.Tensor:
        return F.conv_transpose2d(x, layer.weight, stride=layer.stride, groups=layer.groups)

    with torch.no_grad():
        maps = net.backbone(image)
        x = net.fc7(net.fc6(maps["pool5"]).relu()).relu()
        x = net.score["pool5"](x)
        for pool, crop in (("pool4", 5), ("pool3", 9)):
            if pool in net.up:
                x = up(x, net.up[pool])
                skip = net.score[pool](maps[pool])
                x = x + skip[:, :, crop : crop + x.shape[2], crop : crop + x.shape[3]]
        x = up(x, net.up["out"])
        crop = {"fcn32s_vgg16": 19, "fcn16s_vgg16": 27, "fcn8s_vgg16": 31}[name]
        x = x[:, :, crop : crop + size[0], crop : crop + size[1]]
        torch.testing.assert_close(net(image)["out"], x, rtol=1e-4, atol=1e-5)


def test_upsampling_and_scores_at_the_start() -> None:
    net = get_model("fcn8s_vgg16", num_classes=3, width=2)
    geometry = [(up.kernel_size[0], up.stride[0], up.weight.requires_grad) for up in net.up.values()]
    assert geometry == [(4, 2, True), (4, 2, True), (16, 8, False)]
    (up,) = get_model("fcn32s_vgg16", num_classes=3, width=2).up.values()
    assert up.kernel_size == (64, 64) and up.stride == (32, 32)
    image = torch.randn(1, 3, 64, 64)
    assert not net(image)["out"].any()
    scored(net).eval()
    maps = net.backbone(image)
    skips = {name: net.score[name](maps[name]) for name in ("pool4", "pool3")}
    coarse = net.score["pool5"](net.fc7(net.fc6(maps["pool5"]).relu()).relu())
    expected = coarse
    for skip in skips.values():
        expected = net.up["pool4"](expected) + skip
    torch.testing.assert_close(net(image)["out"], net.up["out"](expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padding", ["same", "paper"])
def test_odd_sizes(name: str, padding: str) -> None:
    net = small(name, padding=padding, in_channels=2)
    for size in ((1, 1), (33, 47), (64, 95)):
        output = net(torch.randn(1, 2, *size))
        assert list(output) == ["out"]
        assert output["out"].shape == (1, 3, *size) and output["out"].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_training(name: str) -> None:
    check_training(get_model(name, width=4, num_classes=2), (2, 3, 64, 65))


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    check_all(lambda: small(name), torch.randn(1, 3, 65, 96))


def test_compile() -> None:
    check_compile(small(), torch.randn(1, 3, 65, 96))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights(batch_norm: bool, tmp_path: Path) -> None:
    net = small(batch_norm=batch_norm)
    torch.save(net.state_dict(), tmp_path / "fcn.pth")
    loaded = get_model("fcn8s_vgg16", width=2, num_classes=3, batch_norm=batch_norm, weights=tmp_path / "fcn.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    vgg16 = torchvision_vgg16(2, batch_norm).state_dict()
    torch.save(vgg16, tmp_path / "vgg16.pth")
    config = {"width": 2, "num_classes": 3, "batch_norm": batch_norm}
    loaded = get_model("fcn8s_vgg16", **config, weights_backbone=tmp_path / "vgg16.pth")
    assert torch.equal(loaded.backbone.features[0].weight, vgg16["features.0.weight"])
    assert torch.equal(loaded.fc6.weight.flatten(1), vgg16["classifier.0.weight"])
    assert torch.equal(loaded.fc7.bias, vgg16["classifier.3.bias"])
    assert not loaded.score["pool5"].weight.any()
    with pytest.raises(ValueError, match="weights: .*vgg16.pth is not for this FCNVGG16"):
        get_model("fcn8s_vgg16", **config, weights=tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match="weights: .*vgg16.pth has other shapes than this"):
        get_model("fcn8s_vgg16", **{**config, "width": 4}, weights_backbone=tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match="expected a path or a member of the enum for vgg16"):
        get_model("fcn8s_vgg16", **config, weights_backbone=ResNet50_Weights.IMAGENET1K_V1)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"input: expected \[N, 3, H, W\] with H and W of at least 1, got \[3, 8, 8\]"):
        small()(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="padding: expected 'same' or 'paper', got 'valid'"):
        small(padding="valid")
    with pytest.raises(ValueError, match="maps: expected names out of conv1, pool1, .*, got pool6"):
        VGG16Encoder(maps=("pool6",))
