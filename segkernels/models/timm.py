"""Encoders of timm, where it is installed, with the interface of our own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from segkernels.models.mobilenet import STAGES


class TimmEncoder(nn.Module):
    """Any of timm's models that has ``features_only``: one map for each stride.

    Args:
        name: of timm's model, for example ``"convnext_tiny"``.
        in_channels: channels of the input.
        output_stride: 32, or 16 or 8 for models that dilate.
        config: further arguments of ``timm.create_model``, for example ``pretrained=True``.

    ``forward`` returns an ``OrderedDict`` with ``stem`` (half the input's size; not all models have it) and ``layer1`` (a
    quarter) to ``layer4``, in ``[N, C, h, w]``; ``channels`` has their channels. The ``state_dict`` is that of timm's model
    under ``model.``.

    Raises:
        ImportError: without timm.
        ValueError: for a name that timm does not have, a model without ``features_only``, and one that does not dilate.
    """

    def __init__(self, name: str, in_channels: int = 3, output_stride: int = 32, **config: Any) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
        try:
            import timm
        except ImportError:
            raise ImportError("TimmEncoder needs timm: pip install 'segkernels[timm]'") from None
        if not timm.is_model(name):
            raise ValueError(f"name: expected one of timm.list_models(), got {name!r}")
        # Models that cannot dilate do not know the argument.
        if output_stride != 32:
            config["output_stride"] = output_stride
        try:
            model: Any = timm.create_model(name, features_only=True, in_chans=in_channels, **config)
        except (RuntimeError, TypeError, AttributeError, NotImplementedError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"name: timm's {name!r} has no maps at output stride {output_stride} ({reason})") from error
        self.model = model
        channels = model.feature_info.channels()[-len(STAGES) :]
        self.names = list(STAGES.values())[-len(channels) :]
        self.channels = dict(zip(self.names, channels))
        self.channels_first = getattr(model, "output_fmt", "NCHW") == "NCHW"

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps = self.model(input)[-len(self.names) :]
        if not self.channels_first:
            maps = [value.permute(0, 3, 1, 2) for value in maps]
        return OrderedDict(zip(self.names, maps))
