"""Bilinear upsampling of logits and feature maps, against torch.nn.functional.interpolate in both layouts."""

from __future__ import annotations

from benchmarks.cases import Sweep
from benchmarks.ops._upsample import ON_GPU, cases_of
from segkernels.ops import upsample_bilinear2d

case = cases_of(upsample_bilinear2d, "bilinear")
BOTH = {"fwd": 3.0, "fwdbwd": 3.0}

CASES = [
    case("4x21x65x65 to 260x260", (4, 21, 65, 65), (260, 260), goals=BOTH),
    case("4x21x65x65 to 513x513", (4, 21, 65, 65), (513, 513), goals=BOTH),
    case("4x256x32x32 to 128x128", (4, 256, 32, 32), (128, 128), goals=BOTH),
    case("4x256x32x32 to 128x128 channels_last", (4, 256, 32, 32), (128, 128), True),
    case("2x21x256x256 to 128x128", (2, 21, 256, 256), (128, 128)),
    case("gpu 16x64x128x128 to 512x512", (16, 64, 128, 128), (512, 512), **ON_GPU),
    case("gpu 16x64x128x128 to 512x512 channels_last", (16, 64, 128, 128), (512, 512), True, **ON_GPU),
    case("8x8 overhead", (1, 1, 8, 8), (16, 16), modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
SWEEPS = [
    Sweep("side", (32, 64, 128, 256, 512, 1024, 2048), lambda s: case(f"1x21x{s}x{s} by 2", (1, 21, s, s), (2 * s, 2 * s))),
    Sweep("channels", (4, 16, 64, 256, 1024), lambda c: case(f"1x{c}x64x64 by 2", (1, c, 64, 64), (128, 128))),
]
