"""Separable convolutions of MobileNet and DeepLabv3+ in eval, against the two torch calls, alone and with BatchNorm + ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Work
from segkernels.ops import depthwise_separable_conv2d

# Every call gets the image in NCHW and in channels_last and takes the one that it is fast with, as a model would hold it.


def separable(image, depthwise_weight, pointwise_weight):
    return depthwise_separable_conv2d(image, depthwise_weight, pointwise_weight, padding=1)


def two_calls(image, depthwise_weight, pointwise_weight):
    return F.conv2d(F.conv2d(image, depthwise_weight, None, 1, 1, 1, image.shape[1]), pointwise_weight)


def separable_norms(image, depthwise_weight, pointwise_weight, depthwise_norm, pointwise_norm):
    # As fuse_() leaves it: the norms' scales (1 here) lie in the weights, their shifts are the biases.
    return depthwise_separable_conv2d(
        image, depthwise_weight, pointwise_weight, depthwise_norm[1], pointwise_norm[1], 1, 1, 1, "relu"
    )


def six_calls(image, depthwise_weight, pointwise_weight, depthwise_norm, pointwise_norm):
    hidden = F.conv2d(image, depthwise_weight, None, 1, 1, 1, image.shape[1])
    return _norm(F.conv2d(_norm(hidden, depthwise_norm).relu(), pointwise_weight), pointwise_norm).relu()


def _norm(values, norm):
    scale, shift, mean, variance = norm
    return F.batch_norm(values, mean, variance, scale, shift, eps=0.0)


def case(shape, out_channels, norms=False, **rest):
    n, c, h, w = shape

    def inputs(dtype, device):
        image = torch.randn(shape, device=device).to(dtype)
        depthwise = (torch.randn(c, 1, 3, 3, device=device) / 3).to(dtype)
        pointwise = (torch.randn(out_channels, c, 1, 1, device=device) / c**0.5).to(dtype)
        pairs = []
        for size in (c, out_channels):
            one, zero = torch.ones(size, device=device, dtype=dtype), torch.zeros(size, device=device, dtype=dtype)
            pairs.append((one, torch.randn(size, device=device).to(dtype), zero, one))
        both = image, image.contiguous(memory_format=torch.channels_last)
        return *both, depthwise, pointwise, *(pairs if norms else ())

    def work(size):
        tensors = n * (c + out_channels) * h * w + 9 * c + c * out_channels
        return Work({"fwd": tensors * size}, {"fwd": 2 * n * c * h * w * (9 + out_channels)})

    ours, theirs = (separable_norms, six_calls) if norms else (separable, two_calls)
    return Case(
        name=f"{'norms ' if norms else ''}{n}x{c}x{h}x{w} to {out_channels}",
        inputs=inputs,
        ours=lambda nchw, nhwc, *more: ours(nhwc, *more),
        baselines={
            "eager": lambda nchw, nhwc, *more: theirs(nchw, *more),
            "channels_last": lambda nchw, nhwc, *more: theirs(nhwc, *more),
        },
        work=work,
        **({"modes": ("fwd",)} | rest),
    )


SHAPES = [((1, 32, 112, 112), 64), ((4, 256, 32, 32), 256), ((1, 304, 129, 129), 256), ((4, 728, 33, 33), 728)]
LARGE = [((32, 256, 64, 64), 256), ((16, 728, 64, 64), 728)]
GPU = {"fwd": GpuGoal({"best": 1.5, "compile": 1.1})}
CASES = [
    *(case(*shape, goals={"fwd": 1.2}) for shape in SHAPES),
    *(case(*shape, norms=True, goals={"fwd": 1.5}) for shape in SHAPES),
    *(case(shape, c, norms, devices=("cuda",), gpu_goals=GPU) for shape, c in LARGE for norms in (False, True)),
    case((1, 1, 8, 8), 1, modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
