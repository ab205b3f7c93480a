"""Max-pooling with indices of one byte, of eight, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._geometry import output_size
from segkernels._layout import memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_floating, check_rank, pair
from segkernels.reference.max_pool2d import flat_positions, max_pool2d_double_backward

Size = int | Sequence[int]


def _fake(input, kernel_size, stride, padding, dilation, ceil_mode, index_bits):
    shape = (*input.shape[:2], *output_size(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode))
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if index_bits == 0:
        return output, torch.empty(0, dtype=torch.uint8, device=input.device)
    return output, torch.empty_like(output, dtype=torch.int64 if index_bits == 64 else torch.uint8)


def _backward_fake(grad_output, indices, input_size, kernel_size, stride, padding, dilation):
    shape = (*indices.shape[:2], *input_size)
    return torch.empty(shape, dtype=grad_output.dtype, device=grad_output.device, memory_format=memory_format(indices))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    input, *ctx.window, _, index_bits = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.input_size = list(input.shape[2:])
    ctx.has_indices = index_bits != 0
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    if not ctx.has_indices:
        raise RuntimeError("max_pool2d: the gradient needs indices: call the op with index_bits of 8 or 64")
    (indices,) = ctx.saved_tensors
    return _op_backward(grad, indices, ctx.input_size, *ctx.window), None, None, None, None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, indices, _, *ctx.window = inputs
    ctx.save_for_backward(indices)


def _double_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    return max_pool2d_double_backward(grad, indices, *ctx.window), None, None, None, None, None, None


def _vendor(input, kernel_size, stride, padding, dilation, ceil_mode, index_bits):
    output, positions = torch.ops.aten.max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    if index_bits == 64:
        return output, positions
    if index_bits == 0:
        return output, positions.new_empty(0, dtype=torch.uint8)
    h, w = output.shape[2:]
    row = torch.arange(h, device=input.device)[:, None] * stride[0] - padding[0]
    column = torch.arange(w, device=input.device) * stride[1] - padding[1]
    kh = (positions // input.shape[3] - row) // dilation[0]
    kw = (positions % input.shape[3] - column) // dilation[1]
    return output, (kh * kernel_size[1] + kw).to(torch.uint8)


def _backward_vendor(grad_output, indices, input_size, kernel_size, stride, padding, dilation):
    positions = indices
    if indices.dtype == torch.uint8:
        positions = flat_positions(indices, input_size, kernel_size, stride, padding, dilation)
    # Only the shape of aten's `self` is used.
    shaped = torch.empty_like(grad_output, memory_format=memory_format(indices)).new_empty((*indices.shape[:2], *input_size))
    return torch.ops.aten.max_pool2d_with_indices_backward(
        grad_output, shaped, kernel_size, stride, padding, dilation, False, positions
    )


_op = register(
    "max_pool2d",
    "(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, int index_bits)"
    " -> (Tensor, Tensor)",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    vendor=_vendor,
)
_op_backward = register(
    "max_pool2d_backward",
    "(Tensor grad_output, Tensor indices, SymInt[2] input_size, int[2] kernel_size, int[2] stride, int[2] padding,"
    " int[2] dilation) -> Tensor",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
)

_is_compiling = torch.compiler.is_compiling
_functorch_active = torch._C._are_functorch_transforms_active


def max_pool2d(
    input: torch.Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    index_dtype: torch.dtype = torch.int64,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Maximum over windows of the last two dimensions, and on request where it was.

    Replaces :func:`torch.nn.functional.max_pool2d`, with its signature and its indices.

    Args:
        input (Tensor[N, C, H, W] or Tensor[C, H, W]): float32, float64, float16 or bfloat16.
        kernel_size, stride, padding, dilation: one int or ``(height, width)``; ``stride=None`` is ``kernel_size``.
            ``padding`` is of -inf and at most half of the (dilated) kernel.
        ceil_mode: rounds the output size up instead of down; a window must still start inside the input or its leading
            padding.
        return_indices: also return where each maximum was.
        index_dtype: ``torch.int64``, positions in the flattened H*W plane as torch returns them, or ``torch.uint8``, the
            offset inside the window, ``kh * kernel_width + kw`` (kernels of at most 256 positions; an eighth of the
            memory). :func:`max_unpool2d` takes both.

    Returns:
        Tensor[N, C, h, w], or a tuple of it and of the indices of the same shape; both in the memory format of ``input``.
        ``h = floor((H + 2 * padding - dilation * (kernel_size - 1) - 1) / stride) + 1``.

    The first of several equal maxima in raster order is taken; a NaN counts as the maximum, the last of several. A window
    without any position inside the input, which needs padding and dilation at once, gives -inf, index -1 (uint8: 0) and no
    gradient. Indices that are not returned are not kept either: training saves one byte per output, inference nothing.
    Deterministic, forward and backward; twice differentiable; float32 sums for half types where windows overlap.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, kernel size, stride, padding or dilation, or an empty output plane.
    """
    check_floating(input, "input")
    kernel = pair(kernel_size, "kernel_size", 1)
    # torch takes an empty stride, too.
    step = pair(stride, "stride", 1) if stride or stride == 0 else kernel
    pad = pair(padding, "padding", 0)
    spread = pair(dilation, "dilation", 1)
    check_rank(input, "input", (3, 4), "[N, C, H, W] or [C, H, W]")
    if input.dim() == 3:
        result = max_pool2d(input[None], kernel, step, pad, spread, ceil_mode, return_indices, index_dtype)
        return (result[0][0], result[1][0]) if return_indices else result[0]
    _, _, height, width = input.shape
    tall, wide = spread[0] * (kernel[0] - 1) + 1, spread[1] * (kernel[1] - 1) + 1
    if (
        2 * pad[0] > tall or 2 * pad[1] > wide or height == 0 or width == 0
        or height + 2 * pad[0] < tall or width + 2 * pad[1] < wide
    ):  # fmt: skip
        _check_geometry(input.shape, kernel, step, pad, spread, ceil_mode)
    small = kernel[0] * kernel[1] <= 256
    if return_indices:
        if index_dtype == torch.uint8:
            if not small:
                raise ValueError(f"kernel_size: expected at most 256 window positions for uint8 indices, got {kernel_size!r}")
            return _op(input, kernel, step, pad, spread, ceil_mode, 8)
        if index_dtype != torch.int64:
            raise TypeError(f"index_dtype: expected torch.int64 or torch.uint8, got {index_dtype}")
        return _op(input, kernel, step, pad, spread, ceil_mode, 64)
    may_need_gradient = _is_compiling() or _functorch_active() or (input.requires_grad and torch.is_grad_enabled())
    index_bits = 0 if not may_need_gradient else 8 if small else 64
    return _op(input, kernel, step, pad, spread, ceil_mode, index_bits)[0]


def _check_geometry(
    shape: torch.Size, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> None:
    """Raises for windows that do not fit, but for those that ceil_mode still lets in."""
    for d in range(2):
        if 2 * padding[d] > dilation[d] * (kernel[d] - 1) + 1:
            raise ValueError(
                f"padding: expected at most half of the kernel, got {tuple(padding)} for kernel_size {tuple(kernel)} and "
                f"dilation {tuple(dilation)}"
            )
    h, w = output_size(shape[2:], kernel, stride, padding, dilation, ceil_mode)
    if shape[2] == 0 or shape[3] == 0 or h <= 0 or w <= 0:
        raise ValueError(f"input: expected planes that hold the window, got shape {list(shape)} and an output of {h}x{w}")
