"""What the cases of the two upsamplings share: one call, torch.nn.functional.interpolate in both layouts, and the work."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Work

ON_GPU = {"devices": ("cuda",), "gpu_goals": {mode: GpuGoal(roofline=0.8) for mode in ("fwd", "fwdbwd")}}


def cases_of(ours: Callable[..., torch.Tensor], mode: str) -> Callable[..., Case]:
    """``case(name, shape, size, channels_last=False, **rest)`` for ``interpolate``'s ``mode``."""

    def eager(image, size):
        return F.interpolate(image, size, mode=mode)

    def eager_channels_last(image, size):
        return eager(image.contiguous(memory_format=torch.channels_last), size)

    def case(name, shape, size, channels_last=False, **rest):
        def inputs(dtype, device):
            image = torch.randn(shape, device=device).to(dtype)
            return image.contiguous(memory_format=torch.channels_last) if channels_last else image, size

        def work(itemsize):
            forward = (shape[2] * shape[3] + size[0] * size[1]) * shape[0] * shape[1] * itemsize
            return Work({"fwd": forward, "fwdbwd": 2 * forward})

        return Case(
            name=name,
            inputs=inputs,
            ours=ours,
            baselines={"eager": eager, "eager channels_last": eager_channels_last},
            work=work,
            **rest,
        )

    return case
