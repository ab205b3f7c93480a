from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_test import OpTest, Sample, assert_close_as_torch

from segkernels.ops import multi_dilation_conv2d

X = torch.randn(1, 3, 6, 6)
W = torch.randn(4, 3, 3, 3)


def spread(dilations, input, *weights):
    """The weights as arguments of their own, where OpTest looks for tensors."""
    return multi_dilation_conv2d(input, weights, dilations)


def separate(dilations, input, *weights):
    weights = weights * len(dilations) if len(weights) == 1 else weights
    results = [F.conv2d(input, w, padding=[d * (k // 2) for k in w.shape[2:]], dilation=d) for w, d in zip(weights, dilations)]
    return torch.cat(results, -3)


def case(name, shape, out_channels, dilations, device, dtype, kernels=None, channels_last=False):
    image = torch.randn(shape, device=device).to(dtype)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    weights = []
    for kernel in kernels or [3] * len(dilations):
        size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        scale = (shape[-3] * size[0] * size[1]) ** -0.5
        weights.append((torch.randn(out_channels, shape[-3], *size, device=device) * scale).to(dtype))
    return Sample(name, (dilations, image, *weights), grad=tuple(range(1, 2 + len(weights))))


class TestMultiDilationConv2d(OpTest):
    op = "multi_dilation_conv2d"
    function = staticmethod(spread)
    oracle = staticmethod(separate)
    autocast_dtype = torch.bfloat16
    equal_between_thread_counts = False  # the reference is torch's
    not_interpreted = (
        "three rates",
        "shared",
        "shared channels_last",
        "mixed kernels",
        "only the centre inside",
        "deep",
        "deep channels_last",
        "wide",
        "many pixels",
    )
    gradcheck_samples = ("small", "small shared")

    def samples(self, device, dtype):
        def make(name, shape, out_channels, dilations, **more):
            return case(name, shape, out_channels, dilations, device, dtype, **more)

        return [
            make("three rates", (2, 5, 9, 11), 6, [1, 2, 4]),
            make("shared", (2, 5, 9, 11), 6, [1, 2, 4], kernels=[3]),
            make("channels_last", (2, 9, 11, 8), 7, [2, 3], channels_last=True),
            make("shared channels_last", (2, 9, 11, 8), 7, [2, 3], kernels=[3], channels_last=True),
            make("with 1x1", (1, 4, 7, 7), 3, [1, 2, 5], kernels=[1, 3, 3]),
            make("mixed kernels", (1, 4, 13, 12), 3, [1, 2], kernels=[(5, 3), (1, 7)]),
            make("only the centre inside", (2, 3, 5, 6), 4, [6, 12]),
            make("deep", (1, 300, 5, 4), 30, [1, 2]),
            make("deep channels_last", (1, 300, 5, 4), 30, [1, 2], channels_last=True),
            make("wide", (1, 4, 9, 40), 270, [3], channels_last=True),
            make("many pixels", (1, 3, 40, 41), 5, [6, 12]),
            make("unbatched", (3, 6, 5), 4, [1, 2]),
            make("small", (1, 2, 3, 4), 2, [1, 2]),
            make("small shared", (1, 2, 3, 4), 2, [1, 2], kernels=[3]),
        ]

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def test_geometry_agrees_with_torch(self, data):
        draw = data.draw
        rates = draw(st.integers(1, 4))
        kernels = [(draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 7]))) for _ in range(rates)]
        shape = [draw(st.integers(1, high)) for high in (3, 30, 30, 30)]
        sample = case(
            "drawn", shape, draw(st.integers(1, 30)), [draw(st.integers(1, 20)) for _ in range(rates)], "cpu",
            torch.float32, draw(st.sampled_from([kernels, kernels[:1]])), draw(st.booleans()),
        )  # fmt: skip
        grad = torch.randn(separate(*sample.args).shape)
        expected, expected_grads = self.gradients(separate, sample, torch.float64, grad)
        peer, peer_grads = self.gradients(separate, sample, torch.float32, grad)
        output, grads = self.gradients(spread, sample, torch.float32, grad)
        assert_close_as_torch(output, expected, peer, "output", 64)
        for i, (a, b, c) in enumerate(zip(grads, expected_grads, peer_grads)):
            assert_close_as_torch(a, b, c, f"gradient {i}", 64)

    @pytest.mark.parametrize("name", ["three rates", "shared channels_last", "deep", "wide", "many pixels"])
    def test_does_not_depend_on_threads(self, name):
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sample, leaves = self.sample(name, "cpu", torch.float32).leaves()
            output = spread(*sample.args)
            results.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
        assert all(torch.equal(a, b) for a, b in zip(*results))

    @pytest.mark.parametrize("channels", [(20, 21), (70, 5), (5, 150)])
    @pytest.mark.parametrize("value_type", [torch.float32, torch.bfloat16])
    def test_memory_format_of_weights(self, channels, value_type):
        """As ``model.to(memory_format=torch.channels_last)`` leaves them: the same bits."""
        sample = case("", (1, channels[0], 5, 4), channels[1], (1, 2), "cpu", value_type)
        results = []
        for format in (torch.contiguous_format, torch.channels_last):
            inputs = [value.detach().clone(memory_format=format).requires_grad_() for value in sample.args[1:]]
            output = spread(sample.args[0], *inputs)
            output.square().sum().backward()
            results.append([output, *(value.grad for value in inputs)])
        assert all(torch.equal(a, b) for a, b in zip(*results))

    @pytest.mark.parametrize("frozen", ["input", "weights", "one weight"])
    def test_only_what_is_asked_for(self, frozen):
        inputs = [X.clone(), W.clone(), W.clone() * 2]
        for i in {"input": (1, 2), "weights": (0,), "one weight": (0, 2)}[frozen]:
            inputs[i].requires_grad_()
        spread([1, 2], *inputs).square().sum().backward()
        twins = [value.detach().requires_grad_() for value in inputs]
        separate([1, 2], *twins).square().sum().backward()
        for value, twin in zip(inputs, twins):
            assert value.requires_grad or value.grad is None
            if value.requires_grad:
                torch.testing.assert_close(value.grad, twin.grad, rtol=1e-4, atol=1e-4)

    def test_third_order(self):
        image = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

        def thrice(function):
            first = torch.autograd.grad(function([1, 2], image, weight).pow(4).sum(), image, create_graph=True)[0]
            second = torch.autograd.grad(first.square().sum(), weight, create_graph=True)[0]
            return torch.autograd.grad(second.square().sum(), (image, weight))

        for a, b in zip(thrice(spread), thrice(separate)):
            torch.testing.assert_close(a, b)

    def test_gradient_under_autocast(self):
        image, weight = X.clone().requires_grad_(), W.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = multi_dilation_conv2d(image, weight, [1, 2])
        output.sum().backward()
        assert (output.dtype, image.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)

    def test_infinity_in_the_padding_is_no_nan(self):
        """A skipped tap is not a multiplication by zero: an infinite weight of it does nothing."""
        weight = W.clone()
        weight[:, :, 0, 0] = float("inf")
        assert multi_dilation_conv2d(X, weight, [6]).isfinite().all()

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_empty(self, channels_last):
        image = torch.randn(0, 3, 6, 6, requires_grad=True)
        weight = W.clone().requires_grad_()
        output = multi_dilation_conv2d(image, [weight, weight], [1, 2])
        assert output.shape == (0, 8, 6, 6)
        output.sum().backward()
        assert image.grad.shape == image.shape
        assert torch.equal(weight.grad, torch.zeros_like(weight))

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((X[0, 0], W, [1]), ValueError, "input: expected"),
            ((X.long(), W, [1]), TypeError, "input: expected float32"),
            ((X, W[0], [1]), ValueError, "weights: expected"),
            ((X, [W, W], [1, 2, 3]), ValueError, "weights: expected one, or one for each of 3"),
            ((X, W, []), ValueError, "weights: expected one, or one for each of 0"),
            ((X, W, [1, 0]), ValueError, "dilations: expected at least 1"),
            ((X, [W, W[:2]], [1, 2]), ValueError, r"weights: expected \[4, 3, KH, KW\]"),
            ((X, W[:, :2], [1]), ValueError, r"weights: expected \[4, 3, KH, KW\]"),
            ((X, W[..., :2], [1]), ValueError, "of odd sizes"),
            ((X, W.double(), [1]), TypeError, "weights: expected the dtype"),
            ((X, W.to("meta"), [1]), ValueError, "weights: expected the device"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            multi_dilation_conv2d(*arguments)
