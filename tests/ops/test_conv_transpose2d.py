from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_test import OpTest, Sample, assert_close_as_torch

import segkernels
from segkernels.ops import conv_transpose2d

X = torch.randn(1, 4, 3, 3)
W = torch.randn(4, 6, 2, 2)


def case(
    name, shape, out_channels, kernel, device, dtype, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    bias=True, channels_last=False,
):  # fmt: skip
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    image = torch.randn(shape, device=device).to(dtype)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(shape[-3], out_channels // groups, *kernel, device=device) / 4).to(dtype)
    args = (image, weight, torch.randn(out_channels, device=device).to(dtype) if bias else None)
    geometry = (stride, padding, output_padding, groups, dilation)
    return Sample(name, (*args, *geometry), {}, (0, 1, 2) if bias else (0, 1))


class TestConvTranspose2d(OpTest):
    op = "conv_transpose2d"
    function = staticmethod(conv_transpose2d)
    oracle = staticmethod(F.conv_transpose2d)
    autocast_dtype = torch.bfloat16
    equal_between_thread_counts = False
    gradcheck_samples = ("small 2x2", "small phases", "small depthwise", "small strided")
    not_interpreted = (
        "2x2 deep", "2x2 many pixels", "2x2 no bias", "3x3", "FCN stride 8", "FCN uncropped", "FCN 32", "FCN deep",
        "small 2x2", "small phases", "small strided", "4x4 stride 2 deep", "6x6 stride 2", "8x8 stride 4",
        "tiles", "tiles 4x4", "tiles channels_last", "tiles deep channels_last", "depthwise wide", "depthwise wide, odd",
        "depthwise 3x3 wide",
    )  # fmt: skip

    def samples(self, device, dtype):
        def make(name, shape, out_channels, kernel, *rest, **more):
            return case(name, shape, out_channels, kernel, device, dtype, *rest, **more)

        return [
            make("2x2", (2, 5, 6, 7), 6, 2, 2),
            make("2x2 channels_last", (2, 6, 5, 7), 5, 2, 2, channels_last=True),
            make("2x2 no bias", (2, 4, 3, 30), 3, 2, 2, bias=False),
            make("2x2 deep", (1, 300, 9, 11), 7, 2, 2),
            make("2x2 deep channels_last", (1, 300, 9, 11), 12, 2, 2, channels_last=True),
            make("2x2 many pixels", (2, 3, 40, 41), 2, 2, 2),
            make("3x3", (2, 3, 9, 4), 5, 3, 3),
            make("2x3", (2, 3, 9, 4), 5, (2, 3), (2, 3)),
            make("FCN stride 8", (2, 5, 4, 6), 3, 16, 8, 4),
            make("FCN uncropped", (1, 3, 23, 24), 2, 16, 8),
            make("FCN 32", (1, 1, 3, 2), 2, 64, 32, 16),
            make("FCN deep", (1, 70, 3, 20), 1, 16, 8, 4),
            make("FCN output padding", (1, 3, 6, 5), 2, (8, 16), (4, 8), (2, 4), (1, 0)),
            make("4x4 stride 2", (2, 3, 6, 5), 4, 4, 2, 1),
            make("4x4 stride 2 deep", (1, 150, 5, 30), 6, 4, 2, 1),
            make("6x6 stride 2", (2, 3, 6, 5), 4, 6, 2, 2, 1),
            make("8x8 stride 4", (1, 3, 5, 27), 5, 8, 4, 3, 1, bias=False),
            make("tiles", (2, 9, 10, 12), 34, 2, 2),
            make("tiles 4x4", (2, 5, 4, 6), 4, 4, 4),
            make("tiles channels_last", (2, 16, 9, 10), 24, 2, 2, channels_last=True),
            make("tiles deep channels_last", (1, 72, 4, 6), 40, 2, 2, channels_last=True),
            make("4x3 channels_last", (2, 3, 6, 5), 4, (4, 3), 2, 1, (0, 1), channels_last=True),
            make("everything", (2, 4, 6, 5), 6, 3, (2, 3), (1, 0), (1, 2), 2, 2),
            make("depthwise", (2, 4, 6, 5), 4, 4, 2, 1, groups=4),
            make("depthwise 3x5", (2, 3, 7, 10), 3, (3, 5), (2, 3), (1, 4), (1, 2), groups=3),
            make("depthwise wide", (2, 3, 5, 21), 3, 4, 2, 1, groups=3),
            make("depthwise wide, odd", (1, 2, 3, 20), 2, 4, 2, 1, 1, groups=2),
            make("depthwise 3x3 wide", (1, 2, 4, 19), 2, 3, 2, 1, 1, groups=2),
            make("depthwise kernel under stride", (1, 3, 5, 4), 3, (1, 2), 3, 0, 2, groups=3, bias=False),
            make("depthwise channels_last", (2, 4, 6, 5), 4, 4, 2, 1, groups=4, channels_last=True),
            make("1x1", (2, 4, 6, 5), 3, 1),
            make("unbatched", (4, 3, 5), 6, 2, 2),
            make("small 2x2", (1, 2, 2, 3), 2, 2, 2),
            make("small phases", (1, 2, 2, 1), 1, 16, 8, 4),
            make("small depthwise", (1, 2, 2, 3), 2, 4, 2, 1, groups=2),
            make("small strided", (1, 2, 2, 3), 2, 3, 2, 1, 1),
        ]  # fmt: skip

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_geometry_agrees_with_torch(self, data):
        """Random geometry, half of it on the kernel == stride path, and some of it depthwise."""
        draw = data.draw
        kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        tiled = draw(st.booleans())
        groups = 1 if tiled else draw(st.integers(1, 3))
        widths = (1, 1) if draw(st.booleans()) and not tiled else (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
        stride = kernel if tiled else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        padding = (0, 0) if tiled else draw(st.tuples(st.integers(0, kernel[0] - 1), st.integers(0, kernel[1] - 1)))
        output_padding = (0, 0) if tiled else tuple(draw(st.integers(0, s - 1)) for s in stride)
        size = draw(st.tuples(st.integers(0, 2), st.integers(3, 9), st.integers(3, 40)))
        # Of an empty batch torch makes maps without a pixel; of any other it raises, as we do.
        positive = [(n - 1) * s - 2 * p + k > 0 for n, s, p, k in zip(size[1:], stride, padding, kernel)]
        assume(all(positive))
        sample = case(
            "drawn", (size[0], groups * widths[0], *size[1:]), groups * widths[1], kernel,
            "cpu", torch.float32, stride, padding, output_padding, groups, 1, draw(st.booleans()), draw(st.booleans()),
        )  # fmt: skip
        expected = self._both(F.conv_transpose2d, sample, torch.float64)
        peer = self._both(F.conv_transpose2d, sample)
        for ours, exact, theirs in zip(self._both(conv_transpose2d, sample), expected, peer):
            # Torch's error can be zero by luck in sums this small.
            assert_close_as_torch(ours, exact, theirs, "drawn", floor=64)

    def _both(self, function, sample, dtype=None):
        run, leaves = sample.leaves(dtype)
        output = function(*run.args)
        # Positive, so that no sum of it cancels.
        grad = torch.linspace(0.1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        return output.detach(), *torch.autograd.grad(output, leaves, grad)

    @pytest.mark.parametrize("kernel, stride", [(2, 2), (16, 8), (3, 2)])
    def test_is_the_adjoint_of_convolution(self, kernel, stride):
        """<conv(y), x> == <y, conv_transpose(x)>."""
        x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
        weight = torch.randn(5, 3, kernel, kernel, dtype=torch.float64)
        output = conv_transpose2d(x, weight, None, stride)
        y = torch.randn_like(output)
        torch.testing.assert_close((output * y).sum(), (F.conv2d(y, weight, None, stride) * x).sum())

    @pytest.mark.parametrize(
        "name", ["2x2 many pixels", "2x2 deep", "3x3", "FCN uncropped", "FCN deep", "depthwise", "depthwise wide"]
    )
    def test_own_paths_do_not_depend_on_threads(self, name):
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(self._both(conv_transpose2d, self.sample(name, "cpu", torch.float32)))
        assert all(map(torch.equal, *results))

    def test_weight_gradient_sums_many_pixels(self, tier):
        """More pixels than one block sums, in half precision."""
        if tier[1] == "triton":
            pytest.skip("slow in the interpreter; its chunks are tested with float32 samples")
        sample = case("many", (1, 8, 72, 64), 8, 2, *(tier[0], torch.bfloat16), 2, channels_last=True)
        with segkernels.backend(tier[1]):
            ours = self._both(conv_transpose2d, sample)
        for result, exact, peer in zip(
            ours, self._both(F.conv_transpose2d, sample, torch.float64), self._both(F.conv_transpose2d, sample)
        ):
            assert_close_as_torch(result, exact, peer, "many pixels")

    def test_lecture_examples(self):
        """The lectures' transposed convolutions (the S3 numbers, and output sizes)."""
        a = torch.tensor([[1.0, 3], [2, 4]])[None, None]
        b = torch.tensor([[2.0, 0], [4, 1]])[None, None]
        assert conv_transpose2d(a, b).squeeze().tolist() == [[2, 6, 0], [8, 21, 3], [8, 18, 4]]
        expected = [[2, 0, 6, 0], [4, 1, 12, 3], [4, 0, 8, 0], [8, 2, 16, 4]]
        assert conv_transpose2d(a, b, stride=2).squeeze().tolist() == expected
        # 3x3, stride 2, padding 1 takes 2x2 to 4x4 with output_padding=1 only.
        three = torch.randn(1, 1, 3, 3)
        assert conv_transpose2d(a, three, None, 2, 1, 1).shape[2:] == (4, 4)
        assert conv_transpose2d(a, three, None, 2, 1).shape[2:] == (3, 3)
        # 2x2 kernel: stride 1 gives 3x3, stride 2 doubles; padding crops the output (a slide says it pads the input).
        assert conv_transpose2d(a, b, stride=1).shape[2:] == (3, 3)
        assert conv_transpose2d(a, b, stride=2).shape[2:] == (4, 4)
        assert conv_transpose2d(a, b, stride=2, padding=1).shape[2:] == (2, 2)
        # 4x4 * 3x3 is 2x2, and the transposed convolution goes back; stride 2 and padding 1 too.
        assert conv_transpose2d(a, three).shape[2:] == (4, 4)
        assert F.conv2d(torch.randn(1, 1, 4, 4), three, stride=2, padding=1).shape[2:] == (2, 2)

    def test_empty_batch(self):
        weight = W.clone().requires_grad_()
        for kernel in (W, torch.randn(4, 6, 16, 16), torch.randn(4, 6, 3, 3)):
            weight = kernel.clone().requires_grad_()
            image = torch.randn(0, 4, 3, 3, requires_grad=True)
            output = conv_transpose2d(image, weight, torch.randn(6), kernel.shape[2] // 2 or 1)
            assert output.shape[:2] == (0, 6)
            output.sum().backward()
            assert image.grad.shape == image.shape
            assert torch.equal(weight.grad, torch.zeros_like(weight))

    def test_zero_insertion_and_flipped_convolution(self):
        """Fractional stride: the reference's construction, against the kernel."""
        from segkernels.reference.conv_transpose2d import conv_transpose2d as reference

        image, weight = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
        geometry = ([3, 2], [1, 1], [2, 1], 2, [1, 2])
        bias = torch.randn(6, dtype=torch.float64)
        expected = F.conv_transpose2d(image, weight, bias, *geometry)
        torch.testing.assert_close(reference(image, weight, bias, *geometry), expected)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((torch.randn(3, 3), W), ValueError, "input: expected"),
            ((X.long(), W), TypeError, "input: expected float32"),
            ((X, W[0]), ValueError, "weight: expected"),
            ((X, W.double()), TypeError, "weight: expected the dtype"),
            ((X, W[:3]), ValueError, "weight: expected"),
            ((X, W, None, 1, 0, 0, 3), ValueError, "groups = 3"),
            ((X, W, torch.randn(5)), ValueError, r"bias: expected \[Cout\] with Cout = 6"),
            ((X, W, None, 0), ValueError, "stride"),
            ((X, W, None, (1, 2, 3)), ValueError, "stride"),
            ((X, W, None, 1, -1), ValueError, "padding"),
            ((X, W, None, 2, 0, 2), ValueError, "output_padding"),
            ((X, W, None, 1, 9), ValueError, "positive output"),
            ((X, W.to("meta")), ValueError, "device"),
            ((X[:, :, :0], W), ValueError, "positive output"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            conv_transpose2d(*arguments)
