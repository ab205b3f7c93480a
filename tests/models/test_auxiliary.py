"""The auxiliary heads of the models that no peer has with one: what they add, and that weights bring theirs along."""

from __future__ import annotations

import pytest
import torch

from segkernels.models import get_model

# Builder, arguments for a small network, smallest size, and where the head reads: channels of its input.
CASES = [
    ("fcn32s_vgg16", {"width": 4}, 32, 32),
    ("fcn16s_vgg16", {"width": 4}, 32, 32),
    ("fcn8s_vgg16", {"width": 4}, 32, 32),
    ("deconvnet", {"width": 4}, 224, 32),
    ("segnet", {}, 32, 512),
    ("unet", {"width": 4}, 16, 64),
    ("encoder_unet", {"encoder_name": "resnet18"}, 32, 512),
]


@pytest.mark.parametrize(("name", "config", "size", "channels"), CASES, ids=[case[0] for case in CASES])
def test_auxiliary_head(name, config, size, channels, tmp_path):
    model = get_model(name, num_classes=2, aux_loss=True, **config)
    assert model.aux_classifier[0].in_channels == channels
    image = torch.randn(2, 3, size + 5, size + 33)
    result = model(image)
    assert list(result) == ["out", "aux"]
    assert result["aux"].shape == result["out"].shape == (2, 2, size + 5, size + 33)
    result["aux"].sum().backward()
    first = next(model.parameters())
    assert first.grad is not None and first.grad.abs().max() > 0, "the head's loss reaches the first layer"

    torch.save(model.state_dict(), tmp_path / "with.pth")
    again = get_model(name, num_classes=2, weights=tmp_path / "with.pth", **config)
    with torch.no_grad():
        expected, got = model.eval()(image), again.eval()(image)
    for key in ("out", "aux"):
        assert torch.equal(got[key], expected[key])
    with pytest.raises(ValueError, match="aux_loss: expected None or True"):
        get_model(name, num_classes=2, weights=tmp_path / "with.pth", aux_loss=False, **config)
    plain = get_model(name, num_classes=2, aux_loss=None, **config)
    assert plain.aux_classifier is None and list(plain(image)) == ["out"]
    assert not [key for key in plain.state_dict() if key.startswith("aux")]


def test_unet_has_no_pretrained_encoder():
    with pytest.raises(ValueError, match="weights_backbone: expected None"):
        get_model("unet", weights_backbone="vgg16.pth")
