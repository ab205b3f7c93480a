"""The parallel rates of ASPP at output strides 16 and 8, against one convolution a rate and a concatenation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GroupGoal, Work
from benchmarks.ops._convolutions import EVERY_ROW, OVERHEAD
from segkernels.ops import multi_dilation_conv2d

# Every call gets the map in NCHW and in channels_last and takes the one that it is fast with, as a model would hold it.


def separate(image, weights, dilations):
    weights = weights * len(dilations) if len(weights) == 1 else weights
    return torch.cat([F.conv2d(image, w, None, 1, d * (w.shape[2] // 2), d) for w, d in zip(weights, dilations)], 1)


def case(shape, out_channels, dilations, shared=False, **rest):
    n, c, h, w = shape
    rates = len(dilations)

    def inputs(dtype, device):
        weights = [
            (torch.randn(out_channels, c, 3, 3, device=device) * (9 * c) ** -0.5).to(dtype)
            for _ in range(1 if shared else rates)
        ]
        image = torch.randn(shape, device=device).to(dtype)
        return image, dilations, *weights

    def inside(size, dilation):
        """Pixels of one axis that the three taps of a kernel find inside the map."""
        return size + 2 * max(0, size - dilation)

    def work(size):
        weights = 9 * c * out_channels * (1 if shared else rates)
        tensors = n * (c + rates * out_channels) * h * w + weights
        flops = 2 * n * c * out_channels * sum(inside(h, d) * inside(w, d) for d in dilations)
        backward = (2 * tensors - n * rates * out_channels * h * w) * size
        return Work({"fwd": tensors * size, "fwdbwd": tensors * size + backward}, {"fwd": flops, "fwdbwd": 3 * flops})

    return Case(
        name=f"{'shared ' if shared else ''}{n}x{c}x{h}x{w} to {out_channels} d{','.join(map(str, dilations))}",
        inputs=inputs,
        ours=lambda image, dilations, *weights: multi_dilation_conv2d(image, weights, dilations),
        baselines={
            "eager": lambda image, dilations, *weights: separate(image, weights, dilations),
            "channels_last": lambda image, dilations, *weights: separate(image, weights, dilations),
        },
        channels_last=("segkernels", "channels_last"),
        work=work,
        grad=(0, *range(2, 2 + (1 if shared else rates))),
        **(EVERY_ROW | rest),
    )


def atrous(shape, out_channels, dilations, shared=False):
    return case(shape, out_channels, dilations, shared, goals={"fwd": 0.97, "fwdbwd": 0.97}, group="atrous")


CASES = [
    atrous((2, 2048, 33, 33), 256, (6, 12, 18)),
    atrous((2, 2048, 33, 33), 256, (6, 12, 18), shared=True),
    atrous((1, 2048, 65, 65), 256, (12, 24, 36)),
    atrous((1, 512, 33, 33), 256, (6, 12, 18)),
    case((1, 1, 8, 8), 1, (1,), **OVERHEAD),
]
GROUP_GOALS = [GroupGoal("atrous", "fwd", 1.0), GroupGoal("atrous", "fwdbwd", 1.0)]
