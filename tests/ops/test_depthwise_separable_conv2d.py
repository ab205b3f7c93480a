from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_test import OpTest, Sample, assert_close_as_torch

from segkernels.ops import depthwise_separable_conv2d

X = torch.randn(1, 4, 5, 5)
D = torch.randn(8, 1, 3, 3)
P = torch.randn(6, 8, 1, 1)


def composition(
    input, depthwise_weight, pointwise_weight, depthwise_bias=None, pointwise_bias=None, stride=1, padding=0, dilation=1,
    activation=None,
):  # fmt: skip
    hidden = F.conv2d(input, depthwise_weight, depthwise_bias, stride, padding, dilation, input.shape[-3])
    output = F.conv2d(hidden if activation is None else hidden.relu(), pointwise_weight, pointwise_bias)
    return output if activation is None else output.relu()


def case(
    name, shape, out_channels, device, dtype, kernel=3, stride=1, padding=0, dilation=1, activation=None, multiplier=1,
    bias=True, channels_last=False,
):  # fmt: skip
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    hidden = shape[-3] * multiplier
    image = torch.randn(shape, device=device).to(dtype)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    weights = [
        (torch.randn(hidden, 1, *kernel, device=device) / (kernel[0] * kernel[1]) ** 0.5).to(dtype),
        (torch.randn(out_channels, hidden, 1, 1, device=device) / hidden**0.5).to(dtype),
    ]
    biases = [torch.randn(size, device=device).to(dtype) if bias else None for size in (hidden, out_channels)]
    args = (image, *weights, *biases, stride, padding, dilation, activation)
    return Sample(name, args, {}, tuple(range(5 if bias else 3)))


class TestDepthwiseSeparableConv2d(OpTest):
    op = "depthwise_separable_conv2d"
    function = staticmethod(depthwise_separable_conv2d)
    oracle = staticmethod(composition)
    autocast_dtype = torch.bfloat16
    equal_between_thread_counts = False  # backward is torch's
    not_interpreted = (
        "3x3",
        "channels_last relu",
        "many rows",
        "many rows channels_last",
        "deep",
        "deep channels_last",
        "atrous",
        "atrous channels_last",
        "stride 2",
        "stride 2 channels_last",
        "multiplier channels_last",
        "same, even kernel",
        "unbatched",
        "small",
    )
    gradcheck_samples = ("small", "small relu")

    def samples(self, device, dtype):
        def make(name, shape, out_channels, **more):
            return case(name, shape, out_channels, device, dtype, **more)

        return [
            make("3x3", (2, 5, 6, 7), 6, padding=1),
            make("3x3 relu", (2, 5, 6, 7), 6, padding=1, activation="relu"),
            make("channels_last", (2, 20, 6, 7), 29, padding=1, channels_last=True),
            make("channels_last relu", (2, 16, 9, 4), 24, padding=1, activation="relu", channels_last=True),
            make("many rows", (2, 3, 40, 41), 5, padding=1),
            make("many rows channels_last", (2, 3, 40, 41), 5, padding=1, channels_last=True),
            make("deep", (1, 300, 3, 3), 70, padding=1, bias=False),
            make("deep channels_last", (1, 300, 3, 3), 70, padding=1, channels_last=True),
            make("atrous", (1, 5, 15, 13), 4, padding=12, dilation=12),
            make("atrous channels_last", (1, 5, 15, 13), 4, padding=6, dilation=6, channels_last=True),
            make("stride 2", (2, 4, 9, 11), 3, stride=2, padding=1),
            make("stride 2 channels_last", (2, 4, 9, 11), 3, stride=2, padding=1, channels_last=True),
            make("multiplier", (2, 3, 6, 7), 5, padding=1, multiplier=2, activation="relu"),
            make("multiplier channels_last", (2, 18, 6, 7), 5, padding=1, multiplier=3, channels_last=True),
            make("everything", (2, 4, 9, 8), 6, kernel=(2, 3), stride=(2, 3), padding=(1, 2), dilation=(3, 2)),
            make("same, even kernel", (1, 4, 5, 6), 3, kernel=(2, 4), padding="same", dilation=(1, 3)),
            make("unbatched", (4, 5, 5), 6),
            make("small", (1, 2, 3, 4), 2, padding=1, multiplier=2),
            make("small relu", (1, 2, 3, 4), 2, stride=2, padding=1, activation="relu"),
        ]

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_geometry_agrees_with_torch(self, data):
        draw = data.draw
        two = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
        kernel, dilation, padding = two(1, 4), two(1, 3), two(0, 4)
        reach = [dilation[d] * (kernel[d] - 1) + 1 for d in range(2)]
        size = [max(1, reach[d] - 2 * padding[d]) + draw(st.integers(0, 20)) for d in range(2)]
        sample = case(
            "drawn", (draw(st.integers(1, 3)), draw(st.integers(1, 35)), *size), draw(st.integers(1, 30)), "cpu",
            torch.float32, kernel, two(1, 3), padding, dilation, draw(st.sampled_from([None, "relu"])),
            draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans()),
        )  # fmt: skip
        exact, _ = sample.leaves(torch.float64)
        assert_close_as_torch(
            depthwise_separable_conv2d(*sample.args), composition(*exact.args).detach(), composition(*sample.args), "drawn", 64
        )

    @pytest.mark.parametrize("name", ["3x3 relu", "many rows", "atrous", "multiplier"])
    def test_tiles_do_not_depend_on_threads(self, name):
        sample = self.sample(name, "cpu", torch.float32)
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(depthwise_separable_conv2d(*sample.args))
        assert torch.equal(*results)

    def test_tiles_allocate_no_hidden_map(self):
        """Inference with few channels asks torch's allocator for the output alone."""
        sample = case("wide", (1, 64, 40, 40), 8, "cpu", torch.float32, padding=1)
        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
            output = depthwise_separable_conv2d(*sample.args)
        allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
        assert allocated <= output.nbytes

    def test_nan_passes_the_activation(self):
        image = torch.full((1, 4, 5, 5), float("nan"))
        assert depthwise_separable_conv2d(image, D, P, activation="relu").isnan().all()

    def test_parameters_saved(self):
        """k^2 C M of a dense convolution become C (k^2 + M)."""
        channels, out_channels, k = 64, 128, 3
        dense = torch.nn.Conv2d(channels, out_channels, k, bias=False).weight.numel()
        separable = torch.empty(channels, 1, k, k).numel() + torch.empty(out_channels, channels, 1, 1).numel()
        assert (dense, separable) == (k * k * channels * out_channels, channels * (k * k + out_channels))

    def test_empty_batch(self):
        image, weights = torch.randn(0, 4, 5, 5, requires_grad=True), [D.clone().requires_grad_(), P.clone().requires_grad_()]
        output = depthwise_separable_conv2d(image, *weights, torch.randn(8), torch.randn(6), activation="relu")
        assert output.shape == (0, 6, 3, 3)
        output.sum().backward()
        assert image.grad.shape == image.shape
        assert all(torch.equal(w.grad, torch.zeros_like(w)) for w in weights)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((X[0, 0], D, P), ValueError, "input: expected"),
            ((X.long(), D, P), TypeError, "input: expected float32"),
            ((X, D[0], P), ValueError, "depthwise_weight: expected"),
            ((X, D[:7], P), ValueError, "depthwise_weight: expected .* C = 4"),
            ((X, D, P[:, :7]), ValueError, r"pointwise_weight: expected \[O, 8, 1, 1\]"),
            ((X, D, P.double()), TypeError, "pointwise_weight: expected the dtype"),
            ((X, D.to("meta"), P), ValueError, "depthwise_weight: expected the device"),
            ((X, D, P, torch.randn(6)), ValueError, r"depthwise_bias: expected \[8\]"),
            ((X, D, P, None, torch.randn(8)), ValueError, r"pointwise_bias: expected \[6\]"),
            ((X, D, P, None, None, 0), ValueError, "stride"),
            ((X, D, P, None, None, 1, -1), ValueError, "padding"),
            ((X, D, P, None, None, 1, "full"), ValueError, "padding: expected ints, 'same'"),
            ((X, D, P, None, None, 2, "same"), ValueError, "'same' is defined for stride 1"),
            ((X, D, P, None, None, 1, 0, 3), ValueError, "positive output"),
            ((X, D, P, None, None, 1, 0, 1, "gelu"), ValueError, "activation: expected None or 'relu'"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            depthwise_separable_conv2d(*arguments)
