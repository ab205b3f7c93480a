"""A model beside the same network on other layers: eval forward pass, and forward and backward of a training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import BASELINES_PEAK, Case, Work

Builder = Callable[[], torch.nn.Module]
#: Section 8 of what every operator promises, for models too: never slower, and never larger.
NEVER_SLOWER = {"fwd": 0.95, "fwdbwd": 0.95}
NEVER_LARGER = {"fwd": BASELINES_PEAK, "fwdbwd": BASELINES_PEAK}


def tensor(output: Any) -> torch.Tensor:
    return output["out"] if isinstance(output, dict) else output


@functools.cache
def shell(build: Builder) -> torch.nn.Module:
    """The network without values: each call brings its own, so that every variant computes with the same."""
    with torch.device("meta"):
        return build()


def call(build: Builder) -> Callable[..., torch.Tensor]:
    """``call(image, parameters, buffers)``: in eval mode where no gradient is asked for, else in training mode."""

    def run(image: torch.Tensor, parameters: list[torch.Tensor], buffers: list[torch.Tensor]) -> torch.Tensor:
        network = shell(build).train(torch.is_grad_enabled())
        values = dict(zip((name for name, _ in network.named_parameters()), parameters))
        values |= dict(zip((name for name, _ in network.named_buffers()), buffers))
        return tensor(functional_call(network, values, (image,)))

    return run


@functools.cache
def flops(build: Builder, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shell(build).eval()(torch.empty(shape, device="meta"))
    return counter.get_total_flops()


def model_case(name: str, ours: Builder, baselines: dict[str, Builder], shape: tuple[int, ...], **rest: Any) -> Case:
    """The parameters are those of ``ours()``; a baseline has the same names and shapes."""

    def inputs(dtype: torch.dtype, device: str) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        network = ours().to(device)
        image = torch.randn(shape, device=device).to(dtype)

        def converted(value: torch.Tensor) -> torch.Tensor:
            return value.detach().to(dtype) if value.is_floating_point() else value

        for weight in network.parameters():
            if weight.dim() > 1 and not weight.any():
                # A score that starts at zero would hide the whole network behind it.
                torch.nn.init.normal_(weight, std=0.01)
        return image, [converted(p) for p in network.parameters()], [converted(b) for b in network.buffers()]

    def work(size: int) -> Work:
        count = flops(next(iter(baselines.values())), shape)
        values = sum(p.numel() for p in shell(ours).parameters()) + torch.Size(shape).numel()
        return Work({"fwd": values * size, "fwdbwd": 3 * values * size}, {"fwd": count, "fwdbwd": 3 * count})

    return Case(
        name=name,
        inputs=inputs,
        ours=call(ours),
        baselines={key: call(build) for key, build in baselines.items()},
        work=work,
        grad=(1,),
        gradients_as_one=True,
        **({"goals": NEVER_SLOWER, "memory_goals": NEVER_LARGER} | rest),
    )
