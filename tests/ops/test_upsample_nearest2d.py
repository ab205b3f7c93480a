from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import Sample
from resize_test import ResizeTest

import segkernels
from segkernels.ops import upsample_nearest2d

MAP = torch.randn(1, 2, 3, 4)


def interpolate(input, size=None, scale_factor=None):
    return F.interpolate(input, size, scale_factor, mode="nearest")


class TestUpsampleNearest2d(ResizeTest):
    op = "upsample_nearest2d"
    function = staticmethod(upsample_nearest2d)
    oracle = staticmethod(interpolate)
    tolerance = 0.0
    not_interpreted = ("4x", "many channels", "downsampling", "one pixel", "huge factor")
    gradcheck_samples = ("2x", "downsampling")

    def samples(self, device, dtype):
        def values(*shape, channels_last=False):
            image = torch.randn(shape, device=device).to(dtype)
            return image.contiguous(memory_format=torch.channels_last) if channels_last else image

        return [
            Sample("2x", (values(2, 3, 4, 5),), {"scale_factor": 2}),
            Sample("4x", (values(1, 3, 9, 7),), {"scale_factor": 4}),
            Sample("2x channels_last", (values(2, 21, 5, 6, channels_last=True),), {"scale_factor": 2}),
            Sample("many channels", (values(1, 512, 2, 3, channels_last=True),), {"size": (5, 7)}),
            Sample("factor unlike the ratio of the sizes", (values(2, 3, 7, 9),), {"scale_factor": (2.3, 1.7)}),
            Sample("downsampling", (values(1, 2, 9, 11), (4, 3))),
            Sample("downsampling channels_last", (values(1, 9, 9, 11, channels_last=True), (4, 3))),
            Sample("one pixel", (values(2, 3, 1, 1), (7, 4))),
            Sample("to one pixel", (values(2, 3, 5, 7), 1)),
            Sample("huge factor", (values(1, 1, 2, 3),), {"scale_factor": 150}),
        ]

    @pytest.mark.parametrize("image", [[[1.0, 2], [3, 4]], [[10.0, 20], [30, 40]]])
    def test_worked_example(self, image):
        (a, b), (c, d) = image
        expected = [[a, a, b, b], [a, a, b, b], [c, c, d, d], [c, c, d, d]]
        assert upsample_nearest2d(torch.tensor(image)[None, None], scale_factor=2).squeeze().tolist() == expected

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_takes_the_pixels_that_torch_takes(self, channels_last):
        for in_size in (1, 2, 3, 7, 10, 49):
            image = torch.arange(float(2 * 3 * in_size * in_size)).view(2, 3, in_size, in_size)
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            for out_size in range(1, 120):
                assert torch.equal(upsample_nearest2d(image, out_size), interpolate(image, out_size)), (in_size, out_size)
            for factor in (0.6, 1.05, 4 / 3, 2.3, 3, 8.9):
                if in_size * factor >= 1:
                    ours, theirs = (f(image, scale_factor=factor) for f in (upsample_nearest2d, interpolate))
                    assert torch.equal(ours, theirs), (in_size, factor)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_infinite_gradient_stays_with_its_pixel(self, channels_last, tier):
        image = torch.randn(1, 9, 4, 4, device=tier[0])
        grad = torch.ones(1, 9, 11, 13, device=tier[0])
        grad[0, 1, 5, 6] = float("inf")
        if channels_last:
            image, grad = (t.contiguous(memory_format=torch.channels_last) for t in (image, grad))
        image.requires_grad_()
        with segkernels.backend(tier[1]):
            ours, theirs = (torch.autograd.grad(f(image, (11, 13)), image, grad)[0] for f in (upsample_nearest2d, interpolate))
        assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("factor", [2, 3, 4])
    def test_gradient_of_wide_rows(self, factor, channels_last):
        image = torch.randn(2, 9, 5, 45, dtype=torch.float64)
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        image.requires_grad_()
        ours, theirs = (f(image, scale_factor=factor) for f in (upsample_nearest2d, interpolate))
        grad = torch.randn_like(theirs)
        ours, theirs = (torch.autograd.grad(output, image, grad)[0] for output in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((MAP[0], 4), ValueError, r"input: expected \[N, C, h, w\]"),
            ((MAP.long(), 4), TypeError, "input: expected float32"),
            ((MAP[:, :, :0], 4), ValueError, "input: expected a height and width of at least 1"),
            ((MAP,), ValueError, "size and scale_factor: expected exactly one"),
            ((MAP, 4, 2.0), ValueError, "size and scale_factor: expected exactly one"),
            ((MAP, 0), ValueError, "size"),
            ((MAP, None, 0.1), ValueError, "scale_factor: expected an output of at least 1x1"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            upsample_nearest2d(*arguments)
