"""Max-unpooling: puts each pooled value back to the place its maximum was taken from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from segkernels._layout import memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_floating, check_rank, check_same_device, pair

Size = int | Sequence[int]


def _fake(input, indices, output_size, kernel_size, stride, padding):
    shape = (input.shape[0], input.shape[1], output_size[0], output_size[1])
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _backward_fake(grad_output, indices, kernel_size, stride, padding):
    return torch.empty(indices.shape, dtype=grad_output.dtype, device=grad_output.device, memory_format=memory_format(indices))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, indices, _, *ctx.window = inputs
    ctx.save_for_backward(indices)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    return _op_backward(grad, indices, *ctx.window), None, None, None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    grad_output, indices, *ctx.window = inputs
    ctx.output_size = list(grad_output.shape[2:])
    ctx.save_for_backward(indices)


def _double_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    # Linear in grad_output, and its transpose is the forward op.
    (indices,) = ctx.saved_tensors
    return _op(grad, indices, ctx.output_size, *ctx.window), None, None, None, None


def _vendor(input, indices, output_size, kernel_size, stride, padding):
    if indices.dtype == torch.int64:
        return torch.ops.aten.max_unpool2d(input, indices, output_size)
    from segkernels.reference.max_unpool2d import flat_positions

    positions = flat_positions(indices, output_size[0], output_size[1], kernel_size, stride, padding)
    return torch.ops.aten.max_unpool2d(input, positions.view(indices.shape), output_size)


_op = register(
    "max_unpool2d",
    "(Tensor input, Tensor indices, SymInt[2] output_size, int[2] kernel_size, int[2] stride, int[2] padding) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    vendor=_vendor,
)
_op_backward = register(
    "max_unpool2d_backward",
    "(Tensor grad_output, Tensor indices, int[2] kernel_size, int[2] stride, int[2] padding) -> Tensor",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
)


def max_unpool2d(
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """Partial inverse of :func:`max_pool2d`: zeros, and each value at the position its index names.

    Replaces :func:`torch.nn.functional.max_unpool2d` (Zeiler & Fergus 2011; SegNet, Badrinarayanan et al. 2015).

    Args:
        input (Tensor[N, C, h, w] or Tensor[C, h, w]): pooled values; float32, float64, float16 or bfloat16.
        indices (Tensor of the shape of input): int64 positions in the flattened output plane, as
            :func:`torch.nn.functional.max_pool2d` returns them, or uint8 offsets inside the pooling window, as
            :func:`max_pool2d` returns them with ``index_dtype=torch.uint8``.
        kernel_size, stride, padding: of the pooling; ``stride=None`` is ``kernel_size``.
        output_size: ``(H, W)``, or the full shape; default ``(h - 1) * stride - 2 * padding + kernel_size``. Accepted
            within one stride of the default, as torch does.

    Returns:
        Tensor[N, C, H, W]: in the memory format and dtype of ``input``.

    Duplicate indices (overlapping windows): the last one in raster order of ``indices`` wins, on every device, every time;
    the gradient of an overwritten entry is 0, since it had no effect on the output (torch hands it the winner's).
    Deterministic, forward and backward; twice differentiable.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, device, shape or output size.
        RuntimeError: on CPU, for an index outside the output plane. On a GPU such an entry is left out and its gradient
            is 0, unless ``SEGKERNELS_DEBUG=1``, which checks (one host sync) and raises.
    """
    check_floating(input, "input")
    check_rank(input, "input", (3, 4), "[N, C, h, w] or [C, h, w]")
    if indices.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"indices: expected int64 or uint8 (window offsets), got {indices.dtype}")
    if indices.shape != input.shape:
        raise ValueError(f"indices: expected the shape of input {list(input.shape)}, got {list(indices.shape)}")
    check_same_device(input, indices, "input", "indices")
    kernel = pair(kernel_size, "kernel_size", 1)
    step = kernel if stride is None else pair(stride, "stride", 1)
    pad = pair(padding, "padding", 0)
    if indices.dtype == torch.uint8 and kernel[0] * kernel[1] > 256:
        raise ValueError(f"kernel_size: expected at most 256 window positions for uint8 indices, got {kernel_size!r}")
    size = _output_size(input, kernel, step, pad, output_size)
    if input.dim() == 3:
        return max_unpool2d(input[None], indices[None], kernel, step, pad, size)[0]
    if _DEBUG and input.device.type != "cpu":
        from segkernels.reference.max_unpool2d import flat_positions

        flat_positions(indices, size[0], size[1], kernel, step, pad)
    return _op(input, indices, size, kernel, step, pad)


_DEBUG = os.environ.get("SEGKERNELS_DEBUG") == "1"


def _output_size(
    input: torch.Tensor, kernel: list[int], stride: list[int], padding: list[int], output_size: Sequence[int] | None
) -> list[int]:
    default = [(input.shape[d - 2] - 1) * stride[d] - 2 * padding[d] + kernel[d] for d in range(2)]
    if output_size is None:
        size = default
    else:
        size = list(output_size)
        if len(size) == input.dim():
            size = size[-2:]
        if len(size) != 2:
            raise ValueError(f"output_size: expected (H, W) or the full shape, got {tuple(output_size)}")
        for d in range(2):
            low, high = default[d] - stride[d], default[d] + stride[d]
            if not low < size[d] < high:
                raise ValueError(
                    f"output_size: expected {'height' if d == 0 else 'width'} strictly between {low} and {high}, "
                    f"got {tuple(output_size)}"
                )
    if input.numel() and (size[0] <= 0 or size[1] <= 0):
        raise ValueError(f"output_size: expected positive sizes, got {size} from input {list(input.shape)}")
    return [max(0, s) for s in size]
