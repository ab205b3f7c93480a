from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import OpTest, Sample

from segkernels.ops import conv_transpose1d, conv_transpose2d

X = torch.randn(1, 4, 9)
W = torch.randn(4, 6, 2)


class TestConvTranspose1d(OpTest):
    op = "conv_transpose1d"
    function = staticmethod(conv_transpose1d)
    oracle = staticmethod(F.conv_transpose1d)
    autocast_dtype = torch.bfloat16
    equal_between_thread_counts = False
    gradcheck_samples = ("small", "small strided")
    not_interpreted = ("no bias", "3 stride 3", "unbatched", "small", "small strided")

    def samples(self, device, dtype):
        def make(name, shape, out_channels, kernel, *geometry, groups=1, dilation=1, bias=True):
            geometry = (*geometry, *(1, 0, 0)[len(geometry) :], groups, dilation)
            image = torch.randn(shape, device=device).to(dtype)
            weight = (torch.randn(shape[-2], out_channels // groups, kernel, device=device) / 4).to(dtype)
            offset = torch.randn(out_channels, device=device).to(dtype) if bias else None
            return Sample(name, (image, weight, offset, *geometry), {}, (0, 1, 2) if bias else (0, 1))

        return [
            make("2 stride 2", (2, 5, 13), 6, 2, 2),
            make("no bias", (2, 4, 30), 3, 2, 2, bias=False),
            make("3 stride 3", (2, 3, 19), 5, 3, 3),
            make("4 stride 2", (2, 3, 15), 4, 4, 2, 1),
            make("everything", (2, 4, 11), 6, 3, 3, 1, 2, groups=2, dilation=2),
            make("depthwise", (2, 4, 11), 4, 4, 2, 1, groups=4),
            make("1", (2, 4, 6), 3, 1),
            make("unbatched", (4, 7), 6, 2, 2),
            make("small", (1, 2, 3), 2, 2, 2),
            make("small strided", (1, 2, 3), 2, 3, 2, 1, 1),
        ]

    def test_permuted_sequence(self):
        """[N, L, C] read as [N, C, L] has the strides of channels_last once a height of 1 is put in."""
        image = torch.randn(2, 9, 4).transpose(1, 2)
        output = conv_transpose1d(image, W, None, 2)
        torch.testing.assert_close(output, F.conv_transpose1d(image, W, None, 2))
        assert output.is_contiguous()

    def test_is_conv_transpose2d_of_height_1(self):
        output = conv_transpose1d(X, W, None, 2)
        assert torch.equal(output[:, :, None], conv_transpose2d(X[:, :, None], W[:, :, None], None, (1, 2)))

    def test_empty_batch(self):
        image, weight = torch.randn(0, 4, 3, requires_grad=True), W.clone().requires_grad_()
        output = conv_transpose1d(image, weight, torch.randn(6), 2)
        assert output.shape == (0, 6, 6)
        output.sum().backward()
        assert image.grad.shape == image.shape
        assert torch.equal(weight.grad, torch.zeros_like(weight))

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((torch.randn(3), W), ValueError, "input: expected"),
            ((X.long(), W), TypeError, "input: expected float32"),
            ((X, W[0]), ValueError, "weight: expected"),
            ((X, W.double()), TypeError, "weight: expected the dtype"),
            ((X, W[:3]), ValueError, "weight: expected"),
            ((X, W, None, 1, 0, 0, 3), ValueError, "groups = 3"),
            ((X, W, torch.randn(5)), ValueError, r"bias: expected \[Cout\] with Cout = 6"),
            ((X, W, None, 0), ValueError, "stride: expected at least 1, got 0"),
            ((X, W, None, (1, 2)), ValueError, "stride: expected one int"),
            ((X, W, None, 1, -1), ValueError, "padding"),
            ((X, W, None, 2, 0, 2), ValueError, "output_padding"),
            ((X, W, None, 1, 9), ValueError, "positive output"),
            ((X, W.to("meta")), ValueError, "device"),
            ((X[:, :, :0], W), ValueError, "positive output"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            conv_transpose1d(*arguments)
