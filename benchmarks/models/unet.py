"""The lecture's U-Net on these operators, against the same network on torch.nn's."""

from __future__ import annotations

import functools

from torch import nn

from benchmarks.models._case import model_case
from segkernels.models import UNet


def case(shape, width):
    ours, theirs = functools.partial(UNet, width=width), functools.partial(UNet, width=width, layers=nn)
    return model_case(f"width {width}, {'x'.join(map(str, shape))}", ours, {"torch.nn": theirs}, shape)


CASES = [
    case((1, 3, 112, 112), 64),
    case((1, 3, 208, 208), 32),
]
