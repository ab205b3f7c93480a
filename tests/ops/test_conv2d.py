from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_test import OpTest, Sample, assert_close_as_torch

import segkernels.nn
from segkernels.ops import conv2d, conv_transpose2d

X = torch.randn(1, 4, 5, 5)
W = torch.randn(6, 4, 3, 3)


def case(
    name, shape, out_channels, kernel, device, dtype, stride=1, padding=0, dilation=1, groups=1, bias=True,
    channels_last=False,
):  # fmt: skip
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    image = torch.randn(shape, device=device).to(dtype)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(out_channels, shape[-3] // groups, *kernel, device=device) / 4).to(dtype)
    args = (image, weight, torch.randn(out_channels, device=device).to(dtype) if bias else None)
    return Sample(name, (*args, stride, padding, dilation, groups), {}, (0, 1, 2) if bias else (0, 1))


class TestConv2d(OpTest):
    op = "conv2d"
    function = staticmethod(conv2d)
    oracle = staticmethod(F.conv2d)
    autocast_dtype = torch.bfloat16
    equal_between_thread_counts = False
    gradcheck_samples = ("small depthwise", "small dense")
    not_interpreted = ("5x5 channels_last", "7x7 channels_last", "stride 2 channels_last", "many rows")

    def samples(self, device, dtype):
        def make(name, shape, out_channels, kernel, *rest, **more):
            return case(name, shape, out_channels, kernel, device, dtype, *rest, **more)

        return [
            make("depthwise", (2, 5, 6, 37), 5, 3, 1, 1, groups=5),
            make("depthwise channels_last", (2, 21, 6, 9), 21, 3, 1, 1, groups=21, channels_last=True),
            make("depthwise everything", (2, 4, 9, 12), 12, (3, 4), (2, 3), (5, 1), (3, 2), 4),
            make("everything channels_last", (2, 18, 9, 12), 36, (3, 4), (2, 3), (5, 1), (3, 2), 18, channels_last=True),
            make("dilation 12", (1, 3, 9, 11), 3, 3, 1, 12, 12, 3),
            make("dilation 36 channels_last", (1, 16, 5, 6), 16, 3, 1, 36, 36, 16, channels_last=True),
            make("5x5 channels_last", (2, 16, 9, 12), 16, 5, 1, 4, 2, 16, channels_last=True),
            make("7x7 channels_last", (1, 16, 8, 11), 16, 7, 1, 3, groups=16, channels_last=True),
            make("stride 2 channels_last", (2, 16, 9, 10), 16, 3, 2, 1, groups=16, channels_last=True),
            make("7x7 no bias", (1, 2, 12, 10), 2, 7, 1, 3, groups=2, bias=False),
            make("7x7 stride 2", (1, 3, 15, 13), 3, 7, 2, 3, groups=3),
            make("1x1", (1, 3, 5, 4), 3, 1, groups=3),
            make("stride over the kernel", (1, 2, 9, 10), 2, (1, 2), (3, 4), groups=2),
            make("many rows", (1, 2, 90, 20), 2, 3, 1, 1, groups=2),
            make("dense", (2, 4, 7, 6), 6, 3, 1, 1),
            make("atrous", (1, 4, 9, 9), 3, 3, 1, 6, 6),
            make("atrous of many channels", (2, 33, 9, 11), 20, 3, 1, 6, 6),
            make("dense of many channels channels_last", (1, 256, 3, 4), 257, (1, 3), 1, (0, 2), 2, channels_last=True),
            make("grouped", (2, 4, 7, 6), 6, 3, 2, 1, groups=2),
            make("same", (1, 3, 6, 7), 3, (4, 3), 1, "same", (3, 2), 3),
            make("valid", (1, 3, 6, 7), 3, 3, 1, "valid", groups=3),
            make("unbatched", (4, 5, 6), 4, 3, 1, 1, groups=4),
            make("small depthwise", (1, 2, 3, 3), 4, (2, 3), (2, 1), 1, (1, 2), 2),
            make("small dense", (1, 2, 3, 3), 2, 2, 1, 1),
        ]  # fmt: skip

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_geometry_agrees_with_torch(self, data):
        """Random geometry, most of it depthwise."""
        draw = data.draw

        def pairs(low, high):
            return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

        kernel, stride, dilation, padding = pairs(1, 5), pairs(1, 3), pairs(1, 6), pairs(0, 7)
        depthwise = draw(st.integers(0, 3)) > 0
        groups = draw(st.integers(1, 20 if depthwise else 3))
        channels = groups * (1 if depthwise else draw(st.integers(1, 3)))
        size = [max(1, dilation[d] * (kernel[d] - 1) + 1 - 2 * padding[d]) + draw(st.integers(0, 20)) for d in range(2)]
        sample = case(
            "drawn", (draw(st.integers(0, 2)), channels, *size), groups * draw(st.integers(1, 3)), kernel, "cpu",
            torch.float32, stride, padding, dilation, groups, draw(st.booleans()),
        )  # fmt: skip
        expected = self._both(F.conv2d, sample, torch.float64)
        peer = self._both(F.conv2d, sample)
        runs = [self._both(conv2d, sample)]
        if depthwise:
            # Torch is asked in NCHW alone: in channels_last its kernel breaks the heap for some of these (torch 2.13).
            image, *rest = sample.args
            image = image.contiguous(memory_format=torch.channels_last)
            runs.append(self._both(conv2d, dataclasses.replace(sample, args=(image, *rest))))
        for run in runs:
            for ours, exact, theirs in zip(run, expected, peer):
                # Torch's error can be zero by luck in sums this small.
                assert_close_as_torch(ours, exact, theirs, "drawn", floor=64)

    def test_windows_in_the_padding(self):
        """Windows without a pixel: the bias alone, and no gradient from there. Torch calls a null pointer in this layout."""
        sample = case("padding", (1, 16, 3, 3), 16, 4, "cpu", torch.float32, 1, 8, 2, 16, channels_last=True)
        ours, exact = self._both(conv2d, sample), self._both(F.conv2d, sample, torch.float64)
        for value, expected in zip(ours, exact):
            torch.testing.assert_close(value, expected, check_dtype=False, rtol=1e-5, atol=1e-5)
        assert torch.equal(ours[0][0, :, 0, 0], sample.args[2])

    def _both(self, function, sample, dtype=None):
        run, leaves = sample.leaves(dtype)
        output = function(*run.args)
        # Positive, so that no sum of it cancels.
        grad = torch.linspace(0.1, 1, output.numel(), dtype=output.dtype, device=output.device).view(output.shape)
        return output.detach(), *torch.autograd.grad(output, leaves, grad)

    @pytest.mark.parametrize("groups", [1, 6])
    @pytest.mark.parametrize(
        ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 6, 6), (4, 3, 2, 2)]
    )
    def test_transposed_convolution_is_the_adjoint(self, groups, kernel, stride, padding, dilation):
        """<conv(x), y> == <x, conv_transpose(y)>."""
        x = torch.randn(2, 6, 13, 13, dtype=torch.float64)
        weight = torch.randn(6, 6 // groups, kernel, kernel, dtype=torch.float64)
        output = conv2d(x, weight, None, stride, padding, dilation, groups)
        y = torch.randn_like(output)
        extra = (13 + 2 * padding - dilation * (kernel - 1) - 1) % stride
        back = conv_transpose2d(y, weight, None, stride, padding, extra, groups, dilation)
        torch.testing.assert_close((output * y).sum(), (x * back).sum())

    @pytest.mark.parametrize(
        "name",
        [
            "depthwise",
            "everything channels_last",
            "7x7 channels_last",
            "many rows",
            "dilation 12",
            "atrous of many channels",
            "dense of many channels channels_last",
        ],
    )
    def test_own_paths_do_not_depend_on_threads(self, name):
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(self._both(conv2d, self.sample(name, "cpu", torch.float32)))
        assert all(map(torch.equal, *results))

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_31x31(self, tier, channels_last):
        device, name = tier
        if name == "triton" and device == "cpu":
            pytest.skip("takes minutes in the interpreter")
        sample = case("31x31", (1, 5, 12, 18), 5, 31, device, torch.float32, 1, 15, 1, 5, True, channels_last)
        exact = self._both(F.conv2d, sample, torch.float64)
        peer = self._both(F.conv2d, sample)
        with segkernels.backend(name):
            for results in zip(self._both(conv2d, sample), exact, peer):
                assert_close_as_torch(*results, "31x31", floor=16)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_infinity_stays_in_its_window(self, tier, channels_last):
        """Columns that no tap of a window reads must not reach it, in the weight's gradient neither."""
        device, name = tier
        image = torch.randn(1, 3, 6, 11, device=device)
        image[..., -1] = float("inf")  # a stride of 2 never reads the last column
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(3, 1, 2, 2, device=device, requires_grad=True)
        with segkernels.backend(name):
            output = conv2d(image, weight, None, 2, 0, 1, 3)
            output.sum().backward()
        assert output.isfinite().all() and weight.grad.isfinite().all()

    def test_reference_is_the_definition(self):
        from segkernels.reference.conv2d import conv2d as reference

        image, weight = torch.randn(2, 6, 9, 8, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
        bias = torch.randn(4, dtype=torch.float64)
        geometry = ([2, 1], [1, 2], [2, 3], 2)
        torch.testing.assert_close(reference(image, weight, bias, *geometry), F.conv2d(image, weight, bias, *geometry))

    def test_empty_batch(self):
        for groups in (1, 4):
            image = torch.randn(0, 4, 5, 5, requires_grad=True)
            weight = torch.randn(4, 4 // groups, 3, 3, requires_grad=True)
            output = conv2d(image, weight, None, 1, 1, 1, groups)
            assert output.shape == (0, 4, 5, 5)
            output.sum().backward()
            assert image.grad.shape == image.shape
            assert torch.equal(weight.grad, torch.zeros_like(weight))

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((torch.randn(3, 3), W), ValueError, "input: expected"),
            ((X.long(), W), TypeError, "input: expected float32"),
            ((X, W[0]), ValueError, "weight: expected"),
            ((X, W.double()), TypeError, "weight: expected the dtype"),
            ((X, W[:, :3]), ValueError, "weight: expected"),
            ((X, W[:, :1], None, 1, 0, 1, 4), ValueError, "groups = 4"),
            ((X, W, None, 1, 0, 1, 0), ValueError, "groups = 0"),
            ((X, W, torch.randn(5)), ValueError, r"bias: expected \[Cout\] with Cout = 6"),
            ((X, W, None, 0), ValueError, "stride"),
            ((X, W, None, (1, 2, 3)), ValueError, "stride"),
            ((X, W, None, 1, -1), ValueError, "padding"),
            ((X, W, None, 1, "full"), ValueError, "padding: expected"),
            ((X, W, None, 2, "same"), ValueError, "stride 1"),
            ((X, W, None, 1, 0, 3), ValueError, "padded size"),
            ((X, W.to("meta")), ValueError, "device"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            conv2d(*arguments)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_module_agrees_with_torch(padding_mode, padding):
    module = segkernels.nn.Conv2d(4, 8, 3, padding=padding, dilation=2, groups=4, padding_mode=padding_mode)
    peer = torch.nn.Conv2d(4, 8, 3, padding=padding, dilation=2, groups=4, padding_mode=padding_mode)
    peer.load_state_dict(module.state_dict())
    image = torch.randn(2, 4, 9, 8)
    assert isinstance(module, torch.nn.Conv2d) and repr(module) == repr(peer)
    torch.testing.assert_close(module(image), peer(image))
