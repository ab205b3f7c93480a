"""Forwards of the layers that are replaced, and why a particular one is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from segkernels import nn as ours
from segkernels._accelerate._classes import FLOATING, Accelerated, suits

#: From here on our undilated depthwise forward is faster than torch's.
_LARGE_PLANE, _LARGE_MAP = 32 * 32, 1 << 19


class Conv2d(Accelerated, ours.Conv2d):
    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if suits(input, self._accelerated_on) and self._is_faster(input):
            return ours.Conv2d._conv_forward(self, input, weight, bias)
        return nn.Conv2d._conv_forward(self, input, weight, bias)

    def _is_faster(self, input: torch.Tensor) -> bool:
        # Measured on a CPU against oneDNN, whose undilated forward is hard to beat and whose dilated backward is not.
        kernel, dilation = max(self.kernel_size), max(self.dilation)
        if self.groups == 1:
            single = input.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
            return single and input.device.type == "cpu"
        if dilation >= 6:
            return True
        if (dilation > 1 or kernel > 3) and torch.is_grad_enabled():
            return True
        return kernel <= 3 and max(self.stride) == 1 and _plane(input) >= _LARGE_PLANE and input.numel() >= _LARGE_MAP


class ConvTranspose1d(Accelerated, ours.ConvTranspose1d):
    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        forward = ours.ConvTranspose1d.forward if suits(input, self._accelerated_on) else nn.ConvTranspose1d.forward
        return forward(self, input, output_size)


class ConvTranspose2d(Accelerated, ours.ConvTranspose2d):
    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        forward = ours.ConvTranspose2d.forward if suits(input, self._accelerated_on) else nn.ConvTranspose2d.forward
        return forward(self, input, output_size)


class MaxPool2d(Accelerated, ours.MaxPool2d):
    index_dtype = torch.int64

    def forward(self, input: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return (ours.MaxPool2d if suits(input, self._accelerated_on) else nn.MaxPool2d).forward(self, input)


class MaxUnpool2d(Accelerated, ours.MaxUnpool2d):
    def forward(self, input: torch.Tensor, indices: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        forward = (ours.MaxUnpool2d if suits(input, self._accelerated_on) else nn.MaxUnpool2d).forward
        return forward(self, input, indices, output_size)


class Upsample(Accelerated, ours.Upsample):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if suits(input, self._accelerated_on) and resamples_faster(input, self.mode):
            return ours.Upsample.forward(self, input)
        return nn.Upsample.forward(self, input)


class RoIAlign(Accelerated, ours.RoIAlign):
    def forward(self, input: torch.Tensor, rois: Any) -> torch.Tensor:
        if suits(input, self._accelerated_on):
            return ours.RoIAlign.forward(self, input, rois)
        return super(ours.RoIAlign, self).forward(input, rois)


class RoIPool(Accelerated, ours.RoIPool):
    def forward(self, input: torch.Tensor, rois: Any) -> torch.Tensor:
        if suits(input, self._accelerated_on):
            return ours.RoIPool.forward(self, input, rois)
        return super(ours.RoIPool, self).forward(input, rois)


class MultiScaleRoIAlign(Accelerated, ours.MultiScaleRoIAlign):
    def forward(
        self, x: Mapping[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        maps = [value for name, value in x.items() if name in self.featmap_names]
        # Under autocast maps may differ in dtype. The largest decides: the others are the same maps at coarser scales.
        if maps and suits(maps[0], self._accelerated_on) and len({(map.dtype, map.device) for map in maps}) == 1:
            return ours.MultiScaleRoIAlign.forward(self, x, boxes, image_shapes)
        return super(ours.MultiScaleRoIAlign, self).forward(x, boxes, image_shapes)


def _plane(input: torch.Tensor) -> int:
    return input.shape[-2] * input.shape[-1]


def resamples_faster(input: torch.Tensor, mode: str) -> bool:
    """Torch copies whole pixels of channels_last maps at the memory's speed."""
    return mode != "nearest" or input.is_contiguous()


def runs_on_products(module: nn.Conv2d) -> bool:
    """Atrous convolutions that csrc/cpu/conv2d_products.h may take; which parts of them, the op decides for each input."""
    dilation = max(module.dilation)
    return (
        module.groups == 1
        and module.in_channels >= 32
        and dilation >= 4
        and module.padding_mode == "zeros"
        and max(module.kernel_size) > 1
        and all(size % 2 for size in module.kernel_size)
        and min(module.dilation) == dilation
        and max(module.stride) == 1
        and (module.padding == "same" or list(module.padding) == [dilation * (size // 2) for size in module.kernel_size])
    )


def keep_conv2d(module: nn.Module) -> str | None:
    assert isinstance(module, nn.Conv2d)
    if runs_on_products(module):
        on_gpu = module.weight.is_cuda
        return "atrous, dense: torch's own kernel is what segkernels would call on a GPU" if on_gpu else keep_dtype(module)
    if module.groups == 1 or module.groups != module.in_channels:
        kind = "grouped" if module.groups > 1 else "dense"
        return f"{'atrous, ' if max(module.dilation) > 1 else ''}{kind}: torch's own kernel is what segkernels would call"
    if max(module.dilation) == 1 and max(module.kernel_size) <= 3 and max(module.stride) > 1:
        return "depthwise with a stride and a small kernel: torch's own kernel is faster"
    return keep_dtype(module)


def keep_conv_transpose(module: nn.Module) -> str | None:
    assert isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    kernel, stride = pair(module.kernel_size), pair(module.stride)
    rest = pair(module.padding), pair(module.output_padding), pair(module.dilation)
    if not transposed_by_us(kernel, stride, *rest, module.groups, module.in_channels, module.out_channels):
        return f"kernel {kernel}, stride {stride}: torch's own kernel is what segkernels would call"
    return keep_dtype(module)


def transposed_by_us(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    in_channels: int,
    out_channels: int,
) -> bool:
    """The geometries of csrc/cpu/conv_transpose2d.cpp that are not torch's own kernel."""
    if max(dilation) > 1:
        return False
    if groups > 1:
        return groups == in_channels == out_channels
    product = list(kernel) == list(stride) and not any([*padding, *output_padding]) and max(kernel) > 1
    phases = list(kernel) == [2 * step for step in stride] and stride[-1] % 8 == 0
    return product or (phases and all(extra <= pad for extra, pad in zip(output_padding, padding)))


def keep_max_pool2d(module: nn.Module) -> str | None:
    return "a kernel of 1 only takes every n-th pixel" if _ones(module.kernel_size) else None


def keep_max_unpool2d(module: nn.Module) -> str | None:
    kernel, stride = pair(module.kernel_size), pair(module.stride)
    if any(step < size for step, size in zip(stride, kernel)):
        return "overlapping windows: torch's gradient of duplicate indices is another"
    return None


def keep_upsample(module: nn.Module) -> str | None:
    assert isinstance(module, nn.Upsample)
    if module.mode not in ("bilinear", "nearest"):
        return f"mode {module.mode!r}: no kernel of ours"
    return "recompute_scale_factor: torch's own" if module.recompute_scale_factor else None


def keep_dtype(module: nn.Module) -> str | None:
    dtypes = {parameter.dtype for parameter in module.parameters(recurse=False)} - set(FLOATING)
    return f"{str(dtypes.pop()).removeprefix('torch.')} parameters" if dtypes else None


def keep_separable(module: nn.Module) -> str:
    return "its convolutions are replaced one by one: faster than the fused op in training"


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _ones(value: Any) -> bool:
    return pair(value) == (1, 1)
