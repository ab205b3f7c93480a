"""Models that torchvision has too: its state dict loads strictly, and outputs and gradients agree."""

from __future__ import annotations

import pytest
import torch

from segkernels import models
from segkernels.models import ResNetEncoder


@pytest.mark.parametrize(
    "name, output_stride", [("resnet18", 32), ("resnet34", 32), ("resnet50", 32), ("resnet50", 16), ("resnet50", 8)]
)
def test_resnet_encoder(name: str, output_stride: int) -> None:
    resnets = pytest.importorskip("torchvision.models")
    dilated = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}[output_stride]
    theirs = getattr(resnets, name)(replace_stride_with_dilation=dilated)
    ours = ResNetEncoder(name, output_stride=output_stride)
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    image = torch.randn(2, 3, 65, 97)
    maps = ours(image)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        expected = getattr(theirs, layer)(expected)
        torch.testing.assert_close(maps[layer], expected, rtol=1e-4, atol=1e-4)
        assert maps[layer].shape[1] == ours.channels[layer]


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
@pytest.mark.parametrize("training", [False, True])
def test_semantic_models(name: str, training: bool, tmp_path) -> None:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    theirs = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = getattr(models, name)(weights=tmp_path / "weights.pth", num_classes=5, aux_loss=True)
    for model in (ours, theirs):
        model.train(training)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    image = torch.randn(2, 3, 65, 97)
    ours_out, theirs_out = ours(image), theirs(image)
    assert list(ours_out) == list(theirs_out) == ["out", "aux"]
    for key in ours_out:
        scale = float(theirs_out[key].detach().abs().max())
        torch.testing.assert_close(ours_out[key], theirs_out[key], rtol=0, atol=1e-4 * scale)
    for out in (ours_out, theirs_out):
        (out["out"].square().mean() + out["aux"].mean()).backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        difference = (parameter.grad - expected[key].grad).norm()
        assert difference <= 1e-3 * expected[key].grad.norm() + 1e-6, key
