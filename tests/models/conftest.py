"""Fixtures for the tests of models."""

from __future__ import annotations

import pytest

from segkernels.models.resnet import RESNETS

#: Blocks of the shallow ResNet-50: two where the first and the second may dilate differently.
DEPTHS = (1, 1, 2, 2)


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """ResNet-50 with six blocks instead of sixteen, here and in torchvision, where it is there: all kinds of layers, fast."""
    monkeypatch.setitem(RESNETS, "resnet50", RESNETS["resnet50"]._replace(depths=DEPTHS))
    try:
        from torchvision.models import resnet, segmentation
    except ImportError:
        return DEPTHS

    def resnet50(weights: None = None, **config: object) -> resnet.ResNet:
        return resnet.ResNet(resnet.Bottleneck, list(DEPTHS), **config)

    for module in (segmentation.fcn, segmentation.deeplabv3):
        monkeypatch.setattr(module, "resnet50", resnet50)
    return DEPTHS
