"""FLOP formulas of the convolutions for :class:`torch.utils.flop_counter.FlopCounterMode`.

A formula takes the op's arguments with shapes in the place of tensors. Like torch's it counts a multiplication and its
addition as two, and neither bias nor padding. Unlike torch's it divides the weight gradient of a grouped convolution by the
groups.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from math import prod
from typing import Any

Shape = list[int]

_MODULE = "torch.utils.flop_counter"
_waiting: list[tuple[Any, Callable[..., int]]] = []


class _WhenImported(importlib.abc.MetaPathFinder):
    """Registers what waits as soon as somebody imports torch's flop counter, which costs 0.3 s and imports Triton."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            for packet, formula in _waiting:
                module.register_flop_formula(packet)(formula)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_flops(packet: Any, formula: Callable[..., int]) -> None:
    """``packet`` is ``torch.ops.segkernels.<name>``; importing the flop counter is left to those who count."""
    if _MODULE in sys.modules:
        sys.modules[_MODULE].register_flop_formula(packet)(formula)
        return
    if not _waiting:
        sys.meta_path.insert(0, _WhenImported())
    _waiting.append((packet, formula))


def _product(positions: Shape, weight: Shape) -> int:
    """Every weight meets ``positions``: batch and places of the output, or of the input if transposed."""
    return 2 * positions[0] * prod(positions[2:]) * prod(weight)


def conv_flops(input: Shape, weight: Shape, *_: Any, out_shape: Shape) -> int:
    return _product(out_shape, weight)


def conv_backward_flops(grad_output: Shape, input: Shape, weight: Shape, *arguments: Any, out_shape: Any) -> int:
    need_input, need_weight, _ = arguments[-3:]
    return (need_input + need_weight) * _product(grad_output, weight)


def conv_transpose_flops(input: Shape, weight: Shape, *_: Any, out_shape: Shape) -> int:
    return _product(input, weight)


def conv_transpose_backward_flops(grad_output: Shape, input: Shape, weight: Shape, *arguments: Any, out_shape: Any) -> int:
    need_input, need_weight, _ = arguments[-3:]
    return (need_input + need_weight) * _product(input, weight)


def separable_flops(input: Shape, depthwise: Shape, pointwise: Shape, *_: Any, out_shape: Shape) -> int:
    return _product(out_shape, depthwise) + _product(out_shape, pointwise)


def separable_backward_flops(
    grad_output: Shape, output: Any, input: Shape, depthwise: Shape, pointwise: Shape, *arguments: Any, out_shape: Any
) -> int:
    """The hidden map is computed once more."""
    need_input, need_depthwise, need_pointwise, need_depthwise_bias, _ = arguments[-5:]
    need_hidden = need_input or need_depthwise or need_depthwise_bias
    return (1 + need_input + need_depthwise) * _product(grad_output, depthwise) + (need_hidden + need_pointwise) * _product(
        grad_output, pointwise
    )


def multi_dilation_flops(input: Shape, weights: list[Shape], dilations: list[int], *, out_shape: Shape) -> int:
    """As of one convolution a rate: taps in the padding are counted, as torch counts them."""
    return sum(_product(out_shape, weight) for weight in weights) * (len(dilations) if len(weights) == 1 else 1)


def multi_dilation_backward_flops(
    grad_output: Shape, input: Shape, weights: list[Shape], dilations: list[int], need_input: bool, need_weights: bool,
    *, out_shape: Any,
) -> int:  # fmt: skip
    return (need_input + need_weights) * multi_dilation_flops(input, weights, dilations, out_shape=grad_output)
