"""What the tests of upsample_bilinear2d and upsample_nearest2d share."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from op_test import INTERPRETED, OpTest

import segkernels


class ResizeTest(OpTest):
    #: Of the output against torch's, in float64.
    tolerance: ClassVar[float]

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize(("in_size", "out_size"), [((2, 1), (3, 5000)), ((3, 1500), (2, 5)), ((1, 1), (70, 65))])
    def test_extreme_widths(self, in_size, out_size, channels_last, tier):
        """One source column with more outputs than a GPU's block takes, and far fewer outputs than source columns."""
        if INTERPRETED and max(in_size[1], out_size[1]) > 1000:
            pytest.skip("a loop over thousands of outputs is slow in the interpreter")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        image = torch.randn(1, 8, *in_size, dtype=torch.float64, device=tier[0]).contiguous(memory_format=layout)
        image.requires_grad_()
        with segkernels.backend(tier[1]):
            output = self.function(image, out_size)
            expected = self.oracle(image, out_size)
            torch.testing.assert_close(output, expected, rtol=self.tolerance, atol=self.tolerance)
            grad = torch.randn_like(expected)
            ours, theirs = (torch.autograd.grad(value, image, grad)[0] for value in (output, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)

    def test_empty(self):
        for shape in ((0, 3, 2, 2), (2, 0, 2, 2)):
            image = torch.randn(shape, requires_grad=True)
            output = self.function(image, scale_factor=3)
            assert output.shape == (*shape[:2], 6, 6)
            output.sum().backward()
            assert image.grad.shape == shape
