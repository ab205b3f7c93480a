from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_test import OpTest, Sample, _Recorder

import segkernels
from segkernels.ops import max_pool2d, max_unpool2d
from segkernels.reference import max_pool2d as reference

INF, NAN = float("inf"), float("nan")
IMAGE = torch.randn(1, 1, 6, 6)


def distinct(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values that differ within any window, in every dtype: finite differences and rounding change no maximum."""
    values = torch.randperm(torch.Size(shape).numel(), device=device).reshape(shape)
    return ((values % 251).to(torch.float64) / 8).to(dtype)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def positions(offsets, image, kernel, stride, padding=(0, 0), dilation=(1, 1)):
    return reference.flat_positions(offsets, list(image.shape[-2:]), kernel, stride, list(padding), list(dilation))


class TestMaxPool2d(OpTest):
    op = "max_pool2d"
    not_interpreted = ("more than 256 positions", "large overlapping channels_last")
    function = staticmethod(max_pool2d)
    oracle = staticmethod(F.max_pool2d)
    gradcheck_samples = ("3x3 stride 2", "2x2", "dilated", "unbatched")

    def samples(self, device, dtype):
        def image(*shape):
            return distinct(*shape, device=device, dtype=dtype)

        return [
            Sample("2x2", (image(2, 3, 8, 10), 2)),
            Sample("3x3 stride 2", (image(2, 3, 7, 9), 3, 2, 1)),
            Sample("2x2 channels_last", (channels_last(image(2, 5, 8, 10)), 2)),
            Sample("3x3 stride 2 channels_last", (channels_last(image(2, 5, 7, 9)), 3, 2, 1)),
            Sample("2x2 odd", (image(1, 2, 7, 9), 2)),
            Sample("2x2 ceil", (image(1, 2, 7, 9), 2), {"ceil_mode": True}),
            Sample("2x2 ceil channels_last", (channels_last(image(1, 3, 7, 9)), 2), {"ceil_mode": True}),
            Sample("2x2 stride 1", (image(1, 2, 6, 7), 2, 1)),
            Sample("3x3 stride 1", (image(1, 2, 6, 7), 3, 1, 1)),
            Sample("3x3 stride 3", (image(1, 2, 10, 11), 3)),
            Sample("gaps between windows", (image(1, 2, 11, 13), 2, 3)),
            Sample("wide row", (image(1, 2, 4, 301), 2)),
            Sample("wide row 3x3", (image(1, 1, 5, 301), 3, 2, 1)),
            Sample("many channels", (channels_last(image(1, 200, 4, 4)), 2)),
            Sample("rectangular", (image(2, 2, 9, 11), (2, 3), (3, 1), (1, 0))),
            Sample("dilated", (image(1, 2, 9, 9), 2, 1, 1, 2)),
            Sample("dilated channels_last", (channels_last(image(1, 3, 9, 9)), 3, 2, 1, 2)),
            Sample("large overlapping", (image(1, 2, 9, 10), 7, 2, 3)),
            Sample("large overlapping channels_last", (channels_last(image(1, 19, 9, 10)), 7, 2, 3)),
            Sample("more than 256 positions", (image(1, 2, 20, 21), 17, 1, 8)),
            Sample("unbatched", (image(3, 8, 10), 2)),
        ]

    def test_lecture_example(self):
        image = torch.tensor([[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])[None, None]
        values, indices = max_pool2d(image, 2, return_indices=True)
        assert values.squeeze().tolist() == [[5, 6], [7, 8]]
        assert indices.flatten().tolist() == [5, 2, 12, 15]
        _, offsets = max_pool2d(image, 2, return_indices=True, index_dtype=torch.uint8)
        assert offsets.flatten().tolist() == [3, 0, 2, 3]

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_random_geometry_as_torch(self, data):
        """Values and both kinds of indices, with ties, zeros of both signs, infinities and NaN."""
        kernel, stride, dilation = ([data.draw(st.integers(1, top)) for _ in range(2)] for top in (5, 4, 2))
        padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
        ceil_mode = data.draw(st.booleans())
        shape = (2, data.draw(st.sampled_from([1, 3, 18])), data.draw(st.integers(1, 15)), data.draw(st.integers(1, 40)))
        dtype = data.draw(st.sampled_from(self.dtypes))
        torch.manual_seed(data.draw(st.integers(0, 1000)))
        specials = torch.tensor([-2.0, -0.0, 0.0, 1.0, 1.5, INF, -INF, -INF, NAN, -NAN], dtype=dtype)
        image = specials[torch.randint(data.draw(st.sampled_from([8, 10])), shape)]
        if data.draw(st.booleans()):
            image = channels_last(image)
        window = (kernel, stride, padding, dilation, ceil_mode)
        try:
            expected, flat = F.max_pool2d(image, *window, return_indices=True)
        except RuntimeError:
            with pytest.raises(ValueError, match="input: expected planes that hold the window"):
                max_pool2d(image, *window)
            return
        for tier in ("cpu", "reference"):
            with segkernels.backend(tier):
                values, indices = max_pool2d(image, *window, return_indices=True)
                _, offsets = max_pool2d(image, *window, return_indices=True, index_dtype=torch.uint8)
                alone = max_pool2d(image, *window)
            some = indices >= 0  # torch's index of a window without any position is no position either
            torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(alone, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(indices[some], flat[some])
            assert torch.equal(positions(offsets, image, kernel, stride, padding, dilation), indices)
            assert bool((values[~some] == -INF).all())

    @pytest.mark.parametrize("index_dtype", [torch.int64, torch.uint8])
    @pytest.mark.parametrize("convert", [torch.Tensor.contiguous, channels_last])
    @pytest.mark.parametrize("window", [(2,), (3, 2, 1), (5, 3, 2, 1, True), (7, 2, 3), (2, 3), (3, 1, 1, 2)])
    def test_gradient_through_returned_indices(self, tier, window, convert, index_dtype):
        image = convert(distinct(2, 5, 13, 14, device=tier[0])).requires_grad_()
        expected = F.max_pool2d(image, *window)
        grad = torch.randn_like(expected)
        with segkernels.backend(tier[1]):
            actual, indices = max_pool2d(image, *window, return_indices=True, index_dtype=index_dtype)
            assert not indices.requires_grad
            (ours,) = torch.autograd.grad(actual, image, grad)
        (theirs,) = torch.autograd.grad(expected, image, grad)
        torch.testing.assert_close(ours, theirs)

    def test_nan_takes_the_gradient(self, tier):
        image = torch.tensor([[[[1.0, NAN, 3], [NAN, 5, 4], [2, 9, 1]]]], device=tier[0], requires_grad=True)
        with segkernels.backend(tier[1]):
            output, indices = max_pool2d(image, 3, return_indices=True)
            output.sum().backward()
        assert indices.item() == 3  # the last of several
        assert image.grad.flatten().tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]

    def test_window_without_any_position(self, tier):
        image = torch.ones(1, 1, 1, 2, device=tier[0], requires_grad=True)
        with segkernels.backend(tier[1]):
            for index_dtype, expected in ((torch.int64, [-1, -1]), (torch.uint8, [0, 0])):
                output, indices = max_pool2d(image, (2, 1), 1, (2, 0), (3, 1), True, True, index_dtype)
                assert output[0, 0, 0].tolist() == [-INF, -INF]
                assert indices[0, 0, 0].tolist() == expected
                (grad,) = torch.autograd.grad(output[:, :, :1].sum(), image)
                assert grad.tolist() == [[[[0, 0]]]]

    @pytest.mark.parametrize("index_dtype", [torch.int64, torch.uint8])
    @pytest.mark.parametrize("convert", [torch.Tensor.contiguous, channels_last])
    @pytest.mark.parametrize("shape", [(2, 3, 8, 10), (2, 3, 9, 11)])
    @pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0)])
    def test_round_trip(self, window, shape, convert, index_dtype):
        """Unpooling puts every maximum back where it was, also where windows overlap."""
        image = convert(distinct(*shape) + 1)
        values, indices = max_pool2d(image, *window, return_indices=True, index_dtype=index_dtype)
        output = max_unpool2d(values, indices, *window, output_size=shape)
        taken = output != 0
        assert torch.equal(output[taken], image[taken])
        _, flat = F.max_pool2d(image, *window, return_indices=True)
        expected = torch.zeros(*shape[:2], shape[2] * shape[3], dtype=torch.bool).scatter_(2, flat.flatten(2), True)
        assert torch.equal(taken.flatten(2), expected)

    @pytest.mark.parametrize("kernel", [2, 17])
    def test_saves_no_more_than_it_needs(self, kernel):
        saved = []
        image = torch.randn(1, 1, 40, 40, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.dtype) or t, lambda t: t):
            max_pool2d(image, kernel)
        assert saved == [torch.uint8 if kernel == 2 else torch.int64]
        # Without a gradient the op is called for no indices at all.
        recorder = _Recorder()
        with torch.no_grad(), recorder:
            max_pool2d(image, kernel)
        assert [args[-1] for _, args in recorder.calls] == [0]

    def test_gradient_without_indices_raises(self):
        image = torch.randn(1, 1, 4, 4, requires_grad=True)
        output, _ = torch.ops.segkernels.max_pool2d(image, [2, 2], [2, 2], [0, 0], [1, 1], False, 0)
        with pytest.raises(RuntimeError, match="the gradient needs indices"):
            output.sum().backward()

    def test_huge_window(self, dtype):
        """More positions than 16-bit lanes can count."""
        image = torch.randn(1, 1, 200, 200).to(dtype)
        values, indices = max_pool2d(image, 190, 10, return_indices=True)
        expected, flat = F.max_pool2d(image, 190, 10, return_indices=True)
        assert torch.equal(values, expected)
        assert torch.equal(indices, flat)

    def test_empty(self):
        for shape in ((0, 3, 4, 4), (2, 0, 4, 4)):
            image = torch.randn(shape, requires_grad=True)
            output, indices = max_pool2d(image, 2, return_indices=True)
            assert output.shape == indices.shape == (*shape[:2], 2, 2)
            output.sum().backward()
            assert image.grad.shape == shape

    def test_foreign_indices_stay_inside(self):
        """The backward op ignores an index outside of the plane."""
        grad = torch.ones(1, 1, 2, 2)
        for window in (2, 7):
            stride = [2, 2]
            for index in (-1, 16, 2**31, 2**32, -(2**63), 2**63 - 1):
                indices = torch.full((1, 1, 2, 2), index)
                args = ([4, 4], [window] * 2, stride, [0, 0], [1, 1])
                assert torch.ops.segkernels.max_pool2d_backward(grad, indices, *args).abs().sum() == 0
            outside = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
            assert torch.ops.segkernels.max_pool2d_backward(grad, outside, *args).abs().sum() == 0

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((torch.randn(4, 4), 2), ValueError, r"input: expected \[N, C, H, W\]"),
            ((torch.randn(1, 1, 1, 4, 4), 2), ValueError, r"input: expected \[N, C, H, W\]"),
            (([1.0], 2), TypeError, "input: expected a Tensor, got list"),
            ((IMAGE.long(), 2), TypeError, "input: expected float32"),
            ((IMAGE, 0), ValueError, "kernel_size: expected values of at least 1, got 0"),
            ((IMAGE, (2, 2, 2)), ValueError, "kernel_size: expected one int or two"),
            ((IMAGE, 2, 0), ValueError, "stride: expected values of at least 1, got 0"),
            ((IMAGE, 2, 1, -1), ValueError, "padding: expected values of at least 0, got -1"),
            ((IMAGE, 2, 1, (0, 2)), ValueError, r"padding: expected at most half of the kernel, got \(0, 2\)"),
            ((IMAGE, 2, 1, 0, 0), ValueError, "dilation: expected values of at least 1, got 0"),
            ((IMAGE, 7), ValueError, r"shape \[1, 1, 6, 6\] and an output of 0x0"),
            ((IMAGE[:, :, :0], 2, 1, 1), ValueError, r"input: expected planes that hold the window, got shape \[1, 1, 0, 6\]"),
            ((IMAGE, 2, None, 0, 1, False, True, torch.int32), TypeError, "index_dtype: expected torch.int64 or torch.uint8"),
            ((torch.randn(1, 1, 20, 20), 17, 1, 0, 1, False, True, torch.uint8), ValueError, "kernel_size: expected at most"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            max_pool2d(*arguments)
