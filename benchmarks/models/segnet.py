"""SegNet on these operators, with a byte an index, against torch's pooling and unpooling with eight."""

from __future__ import annotations

import functools

from benchmarks.models._case import model_case
from benchmarks.models._torch import on_torch
from segkernels.models import SegNet

CASES = [model_case("1x3x128x128", SegNet, {"torch.nn": functools.partial(on_torch, SegNet)}, (1, 3, 128, 128))]
