"""Max-pooling with indices of SegNet's encoder and U-Net's pooling without, against torch.nn.functional.max_pool2d."""

from __future__ import annotations

import dataclasses
import functools

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Sweep, Work
from segkernels.ops import max_pool2d


def case(name, shape, kernel=2, stride=2, padding=0, index_bytes=8, channels_last=False, exact=True, **rest):
    n, c, h, w = shape
    pooled = n * c * ((h + 2 * padding - kernel) // stride + 1) * ((w + 2 * padding - kernel) // stride + 1)

    def inputs(dtype, device):
        image = torch.randn(shape, device=device).to(dtype)
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return image, kernel, stride, padding

    def work(size):
        image = n * c * h * w
        forward = image * size + pooled * (size + index_bytes)
        # Backward reads the gradient and the indices and writes all of the image's gradient.
        backward = pooled * (size + (index_bytes or 8)) + image * size
        return Work({"fwd": forward, "fwdbwd": forward + backward})

    options = {"return_indices": index_bytes > 0}
    ours = functools.partial(max_pool2d, **options, **({"index_dtype": torch.uint8} if index_bytes == 1 else {}))
    baselines = {"eager": functools.partial(F.max_pool2d, **options)}
    return Case(name=name, inputs=inputs, ours=ours, baselines=baselines, work=work, exact=exact, **rest)


SEGNET = (4, 64, 224, 224)
ON_GPU = {"devices": ("cuda",), "gpu_goals": {mode: GpuGoal(roofline=0.8) for mode in ("fwd", "fwdbwd")}}
CASES = [
    case("indices 4x64x224x224", SEGNET, goals={"fwd": 6.0, "fwdbwd": 3.0}),
    case("uint8 indices 4x64x224x224", SEGNET, index_bytes=1, goals={"fwd": 6.0, "fwdbwd": 3.0}),
    dataclasses.replace(
        case("uint8 to int64 indices 4x64x224x224", SEGNET, index_bytes=1, goals={"fwd": 1.0, "fwdbwd": 1.0}),
        baselines={"int64": functools.partial(max_pool2d, return_indices=True)},
    ),
    case("indices 4x64x224x224 channels_last", SEGNET, channels_last=True),
    case("no indices 4x64x224x224", SEGNET, index_bytes=0),
    case("indices 4x512x28x28", (4, 512, 28, 28)),
    # Overlapping windows: gradients are added up, so not equal to the last bit.
    case("resnet stem k3 s2 p1 4x64x112x112", (4, 64, 112, 112), 3, 2, 1, index_bytes=0, exact=False),
    case("gpu indices 16x64x224x224", (16, 64, 224, 224), **ON_GPU),
    case("gpu uint8 indices 16x64x224x224 channels_last", (16, 64, 224, 224), index_bytes=1, channels_last=True, **ON_GPU),
    case("8x8 overhead", (1, 1, 8, 8), index_bytes=0, modes=("fwd",), overhead_goals={"fwd": 15.0}),
    case("8x8 indices overhead", (1, 1, 8, 8), modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
SWEEPS = [
    Sweep("side", (64, 128, 256, 512, 1024, 2048, 4096, 8192), lambda s: case(f"1x32x{s}x{s}", (1, 32, s, s))),
    Sweep("channels", (4, 16, 64, 256, 1024), lambda c: case(f"2x{c}x64x64", (2, c, 64, 64))),
]
