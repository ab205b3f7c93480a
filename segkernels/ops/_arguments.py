"""Argument parsing shared by the public functions: torch's conventions, and errors that name the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def pair(value: int | Sequence[int], name: str, minimum: int | None = None) -> list[int]:
    """``3`` or ``(3, 5)`` as a list of two ints."""
    if type(value) is int and (minimum is None or value >= minimum):
        return [value, value]  # the usual case, called several times an op
    if isinstance(value, int):
        result = [value, value]
    else:
        result = list(value)
        if len(result) == 1:
            result *= 2
        if len(result) != 2:
            raise ValueError(f"{name}: expected one int or two (height, width), got {value!r}")
    if minimum is not None and (result[0] < minimum or result[1] < minimum):
        raise ValueError(f"{name}: expected values of at least {minimum}, got {value!r}")
    return result


def single(value: int | Sequence[int], name: str, minimum: int) -> int:
    """``3`` or ``(3,)`` as an int."""
    if type(value) is not int:
        values = [value] if isinstance(value, int) else list(value)
        if len(values) != 1:
            raise ValueError(f"{name}: expected one int, got {value!r}")
        value = int(values[0])
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value!r}")
    return value


def check_floating(tensor: torch.Tensor, name: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {tensor.dtype}")


def check_same_device(a: torch.Tensor, b: torch.Tensor, name_a: str, name_b: str) -> None:
    if a.device != b.device:
        raise ValueError(f"{name_a} and {name_b}: expected one device, got {a.device} and {b.device}")


def check_rank(tensor: torch.Tensor, name: str, ranks: tuple[int, ...], layout: str) -> None:
    if tensor.dim() not in ranks:
        raise ValueError(f"{name}: expected {layout}, got shape {list(tensor.shape)}")


def check_boxes(tensor: torch.Tensor, name: str) -> None:
    check_floating(tensor, name)
    if tensor.dim() < 2 or tensor.shape[-1] != 4:
        raise ValueError(f"{name}: expected [N, 4], got shape {list(tensor.shape)}")


def check_scored_boxes(boxes: torch.Tensor, scores: torch.Tensor) -> None:
    check_boxes(boxes, "boxes")
    check_floating(scores, "scores")
    if boxes.dim() != 2:
        raise ValueError(f"boxes: expected [N, 4], got shape {list(boxes.shape)}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores: expected one for each of {boxes.shape[0]} boxes, got shape {list(scores.shape)}")
    check_same_device(boxes, scores, "boxes", "scores")


def resampled_size(
    input: torch.Tensor, size: int | Sequence[int] | None, scale_factor: float | Sequence[float] | None
) -> tuple[list[int], float | None, float | None]:
    """``([H, W], scales_h, scales_w)`` as torch.nn.functional.interpolate takes them: one of the two is given."""
    if (size is None) == (scale_factor is None):
        raise ValueError(f"size and scale_factor: expected exactly one of them, got {size!r} and {scale_factor!r}")
    if size is not None:
        return pair(size, "size", 1), None, None
    assert scale_factor is not None
    scales = [scale_factor] * 2 if isinstance(scale_factor, (int, float)) else list(scale_factor)
    if len(scales) != 2:
        raise ValueError(f"scale_factor: expected one number or two (height, width), got {scale_factor!r}")
    scale_h, scale_w = float(scales[0]), float(scales[1])
    output = [torch.sym_int(input.shape[2] * scale_h), torch.sym_int(input.shape[3] * scale_w)]
    if output[0] < 1 or output[1] < 1:
        raise ValueError(f"scale_factor: expected an output of at least 1x1, got {scale_factor!r} for {list(input.shape)}")
    return output, scale_h, scale_w


def check_resampled(input: torch.Tensor, name: str) -> None:
    """A floating-point [N, C, h, w] with pixels to sample from."""
    check_floating(input, name)
    check_rank(input, name, (4,), "[N, C, h, w]")
    if input.shape[2] == 0 or input.shape[3] == 0:
        raise ValueError(f"{name}: expected a height and width of at least 1, got shape {list(input.shape)}")
