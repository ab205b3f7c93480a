from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import Sample
from resize_test import ResizeTest

import segkernels
from segkernels.ops import upsample_bilinear2d

MAP = torch.randn(1, 2, 3, 4)


def interpolate(input, size=None, scale_factor=None, align_corners=False):
    return F.interpolate(input, size, scale_factor, mode="bilinear", align_corners=align_corners)


class TestUpsampleBilinear2d(ResizeTest):
    op = "upsample_bilinear2d"
    function = staticmethod(upsample_bilinear2d)
    oracle = staticmethod(interpolate)
    tolerance = 1e-12
    not_interpreted = (
        "4x", "many channels", "align_corners channels_last", "downsampling", "one pixel", "to one pixel align_corners",
        "huge factor", "wide row",
    )  # fmt: skip
    gradcheck_samples = ("2x", "align_corners", "downsampling")

    def samples(self, device, dtype):
        def values(*shape, channels_last=False):
            image = torch.randn(shape, device=device).to(dtype)
            return image.contiguous(memory_format=torch.channels_last) if channels_last else image

        return [
            Sample("2x", (values(2, 3, 4, 5),), {"scale_factor": 2}),
            Sample("4x", (values(1, 3, 9, 7),), {"scale_factor": 4}),
            Sample("4x channels_last", (values(2, 21, 5, 6, channels_last=True),), {"scale_factor": 4}),
            Sample("many channels", (values(1, 512, 2, 3, channels_last=True),), {"size": (5, 7)}),
            Sample("align_corners", (values(2, 3, 4, 5), (9, 13), None, True)),
            Sample("align_corners channels_last", (values(2, 3, 4, 5, channels_last=True), (9, 13), None, True)),
            Sample("factor unlike the ratio of the sizes", (values(2, 3, 7, 9),), {"scale_factor": (2.3, 1.7)}),
            Sample("factor that keeps the size", (values(1, 2, 8, 8),), {"scale_factor": 1.05}),
            Sample("downsampling", (values(1, 2, 9, 11), (4, 3))),
            Sample("downsampling channels_last", (values(1, 9, 9, 11, channels_last=True), (4, 3))),
            Sample("down in one, up in the other", (values(1, 2, 9, 4), (3, 10))),
            Sample("one pixel", (values(2, 3, 1, 1), (7, 4))),
            Sample("to one pixel", (values(2, 3, 5, 7), 1)),
            Sample("to one pixel align_corners", (values(2, 3, 5, 7), 1, None, True)),
            Sample("huge factor", (values(1, 1, 2, 3),), {"scale_factor": 150}),
            Sample("wide row", (values(1, 1, 2, 700), (4, 2800))),
        ]  # fmt: skip

    def test_worked_example(self):
        image = torch.tensor([[10.0, 20], [30, 40]])[None, None]
        expected = [[10, 12, 17, 20], [15, 17, 22, 25], [25, 27, 32, 35], [30, 32, 37, 40]]
        assert upsample_bilinear2d(image, scale_factor=2).floor().squeeze().tolist() == expected

    @pytest.mark.parametrize("align_corners", [False, True])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_sizes(self, align_corners, channels_last):
        """Values and gradients of torch at every pair of small sizes."""
        for in_size in (1, 2, 3, 8):
            for out_size in (1, 2, 3, 5, 8, 16, 31):
                image = torch.randn(2, 5, in_size, in_size + 1, dtype=torch.float64)
                if channels_last:
                    image = image.contiguous(memory_format=torch.channels_last)
                image.requires_grad_()
                output = upsample_bilinear2d(image, (out_size, out_size + 2), None, align_corners)
                expected = interpolate(image, (out_size, out_size + 2), None, align_corners)
                grad = torch.randn_like(expected)
                torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
                ours, theirs = (torch.autograd.grad(value, image, grad)[0] for value in (output, expected))
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("floating", [torch.float64, torch.float16])
    @pytest.mark.parametrize("align_corners", [False, True])
    @pytest.mark.parametrize("width", [23, 90, 100, 184])
    def test_wide_rows(self, width, align_corners, floating):
        """Rows of several vectors, at half, twice, four times and no whole multiple of the width."""
        image = torch.randn(2, 3, 6, 46 if width != 90 else 45, dtype=floating, requires_grad=True)
        exact = image.detach().double().requires_grad_()
        output = upsample_bilinear2d(image, (3 if width == 23 else 24, width), None, align_corners)
        expected = interpolate(exact, output.shape[2:], None, align_corners)
        grad = torch.randn_like(output)
        tolerance = 1e-12 if floating == torch.float64 else 4e-3
        torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
        (ours,), (theirs,) = torch.autograd.grad(output, image, grad), torch.autograd.grad(expected, exact, grad.double())
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("scale_factor", [1.05, 4 / 3, 3, 0.7, 33.3])
    def test_coordinates_are_torchs_to_the_bit(self, scale_factor):
        """A ramp shows the coordinates; a column of zeros beside a large one shows which neighbours are read."""
        ramp = torch.arange(300.0).expand(1, 1, 2, 300)
        torch.testing.assert_close(
            upsample_bilinear2d(ramp, scale_factor=scale_factor),
            interpolate(ramp, scale_factor=scale_factor),
            rtol=2e-7,
            atol=0,
        )

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_not_a_number_stays_where_torch_has_it(self, channels_last, tier):
        image = torch.randn(1, 9, 5, 6, device=tier[0])
        image[0, 2, 2, 3], image[0, 4, 1, 1] = float("nan"), float("inf")
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with segkernels.backend(tier[1]):
            for size in ((5, 6), (5, 17), (15, 6), (3, 3), (20, 24)):
                expected = F.interpolate(image.contiguous(), size, mode="bilinear")
                assert torch.equal(upsample_bilinear2d(image, size).isfinite(), expected.isfinite()), size

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_infinite_gradient_stays_where_torch_has_it(self, channels_last, tier):
        if tier[1] == "reference":
            pytest.skip("a product with a matrix has zeros beside every weight")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        image = torch.randn(1, 9, 5, 6, device=tier[0]).contiguous(memory_format=layout).requires_grad_()
        with segkernels.backend(tier[1]):
            for size in ((5, 6), (5, 17), (15, 6), (20, 24)):
                grad = torch.ones(1, 9, *size, device=tier[0])
                grad[0, 2, 2, 3] = grad[0, 4, 1, 1] = float("inf")
                grad = grad.contiguous(memory_format=layout)
                ours, theirs = (
                    torch.autograd.grad(f(image, size), image, grad)[0] for f in (upsample_bilinear2d, interpolate)
                )
                assert torch.equal(ours.isfinite(), theirs.isfinite()), size

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((MAP[0], 4), ValueError, r"input: expected \[N, C, h, w\]"),
            ((MAP.long(), 4), TypeError, "input: expected float32"),
            ((MAP[:, :, :0], 4), ValueError, "input: expected a height and width of at least 1"),
            ((MAP,), ValueError, "size and scale_factor: expected exactly one"),
            ((MAP, 4, 2.0), ValueError, "size and scale_factor: expected exactly one"),
            ((MAP, 0), ValueError, "size"),
            ((MAP, (1, 2, 3)), ValueError, "size"),
            ((MAP, None, (1.0, 2.0, 3.0)), ValueError, "scale_factor: expected one number or two"),
            ((MAP, None, -1), ValueError, "scale_factor: expected an output of at least 1x1"),
            ((MAP, None, 0.1), ValueError, "scale_factor: expected an output of at least 1x1"),
        ],
    )  # fmt: skip
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            upsample_bilinear2d(*arguments)
