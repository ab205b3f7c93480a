"""Nearest-neighbour upsampling of feature maps, against torch.nn.functional.interpolate in both layouts."""

from __future__ import annotations

from benchmarks.ops._upsample import ON_GPU, cases_of
from segkernels.ops import upsample_nearest2d

case = cases_of(upsample_nearest2d, "nearest")
BOTH = {"fwd": 1.0, "fwdbwd": 1.0}

CASES = [
    case("4x64x112x112 to 224x224", (4, 64, 112, 112), (224, 224), goals=BOTH),
    case("4x256x28x28 to 56x56", (4, 256, 28, 28), (56, 56), goals=BOTH),
    case("4x64x112x112 to 224x224 channels_last", (4, 64, 112, 112), (224, 224), True),
    case("gpu 16x64x128x128 to 512x512", (16, 64, 128, 128), (512, 512), **ON_GPU),
    case("gpu 16x64x128x128 to 512x512 channels_last", (16, 64, 128, 128), (512, 512), True, **ON_GPU),
    case("8x8 overhead", (1, 1, 8, 8), (16, 16), modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
