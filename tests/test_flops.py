"""FLOP counts of the convolutions are those of torch's own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from segkernels.ops import conv2d, conv_transpose1d, conv_transpose2d, depthwise_separable_conv2d, multi_dilation_conv2d


def count(function, *shapes, **arguments):
    """Of the forward, and of the backward by every tensor alone."""
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    with FlopCounterMode(display=False) as counter:
        output = function(*leaves, **arguments)
    counts = [counter.get_total_flops()]
    for leaf in leaves:
        with FlopCounterMode(display=False) as counter:
            output = function(*(t if t is leaf else t.detach() for t in leaves), **arguments)
            output.sum().backward()
        counts.append(counter.get_total_flops() - counts[0])
    return counts


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("ours", "theirs", "dims"),
    [
        (conv2d, F.conv2d, 2),
        (conv_transpose1d, F.conv_transpose1d, 1),
        (conv_transpose2d, F.conv_transpose2d, 2),
    ],
)
def test_counts_are_those_of_torch(ours, theirs, dims, groups):
    weight = (4, 8 // groups) if "transpose" in ours.__name__ else (8, 4 // groups)
    shapes = (2, 4, 9, 10)[: 2 + dims], (*weight, 3, 5)[: 2 + dims]
    actual = count(ours, *shapes, stride=2, padding=1, groups=groups)
    expected = count(theirs, *shapes, stride=2, padding=1, groups=groups)
    assert expected[0] > 0
    # Torch counts the weight's gradient as if there were no groups.
    assert actual == [*expected[:2], expected[2] // groups]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_separable_counts_both_convolutions(activation):
    shapes = (2, 6, 9, 10), (6, 1, 3, 3), (8, 6, 1, 1)

    def pair(input, depthwise, pointwise):
        return F.conv2d(F.conv2d(input, depthwise, None, 1, 1, 1, 6), pointwise)

    expected = count(pair, *shapes)
    actual = count(depthwise_separable_conv2d, *shapes, padding=1, activation=activation)
    again = 2 * 2 * 9 * 10 * 6 * 9  # the hidden map of the backward
    assert actual[0] == expected[0]
    assert actual[1] - again == expected[1] and actual[3] - again == expected[3]
    assert actual[2] == actual[1]  # torch counts the depthwise weight's gradient as if there were no groups


@pytest.mark.parametrize("shared", [False, True])
def test_multi_dilation_counts_every_rate(shared):
    shapes = (2, 6, 9, 10), *[(8, 6, 3, 3)] * (1 if shared else 2)

    def separate(input, *weights):
        pairs = zip(weights * 2 if shared else weights, (2, 4))
        return torch.cat([F.conv2d(input, weight, None, 1, rate, rate) for weight, rate in pairs], 1)

    expected = count(separate, *shapes)
    assert expected[0] > 0
    actual = count(lambda input, *weights: multi_dilation_conv2d(input, weights, (2, 4)), *shapes)
    # One weight's gradient alone asks the op for those of all.
    assert actual[:2] == expected[:2]
    assert actual[2] == expected[0]


@pytest.mark.parametrize("order", ["segkernels, torch.utils.flop_counter", "torch.utils.flop_counter, segkernels"])
def test_formulas_are_registered_in_any_order_of_imports(order):
    code = (
        f"import torch, {order}; registry = torch.utils.flop_counter.flop_registry; "
        "assert torch.ops.segkernels.conv2d in registry and torch.ops.segkernels.conv_transpose1d_backward in registry"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
