from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import OpTest, Sample

from segkernels.ops import bed_of_nails

MAP = torch.randn(1, 2, 3, 4)


def oracle(input, scale):
    """The transposed convolution with a 1x1 kernel of ones."""
    step = (scale, scale) if isinstance(scale, int) else tuple(scale)
    weight = input.new_ones(input.shape[1], 1, 1, 1)
    padding = (step[0] - 1, step[1] - 1)
    return F.conv_transpose2d(input, weight, stride=step, output_padding=padding, groups=input.shape[1])


class TestBedOfNails(OpTest):
    op = "bed_of_nails"
    function = staticmethod(bed_of_nails)
    oracle = staticmethod(oracle)
    exact = True
    gradcheck_samples = ("2", "3x1")

    def samples(self, device, dtype):
        def values(*shape, channels_last=False):
            image = torch.randn(shape, device=device).to(dtype)
            return image.contiguous(memory_format=torch.channels_last) if channels_last else image

        return [
            Sample("2", (values(2, 3, 4, 5), 2)),
            Sample("2 channels_last", (values(2, 3, 4, 5, channels_last=True), 2)),
            Sample("3x1", (values(1, 2, 5, 3), (3, 1))),
            Sample("1x4", (values(1, 2, 5, 3), (1, 4))),
            Sample("5 channels_last", (values(1, 21, 3, 2, channels_last=True), 5)),
            Sample("1", (values(1, 2, 5, 3), 1)),
            Sample("one pixel", (values(2, 3, 1, 1), 7)),
        ]

    def test_worked_example(self):
        image = torch.tensor([[1.0, 2], [3, 4]])[None, None]
        expected = [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]
        assert bed_of_nails(image, 2).squeeze().tolist() == expected

    def test_is_not_its_input(self):
        image = torch.randn(1, 2, 3, 4)
        assert bed_of_nails(image, 1).data_ptr() != image.data_ptr()

    def test_empty(self):
        for shape in ((0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)):
            image = torch.randn(shape, requires_grad=True)
            output = bed_of_nails(image, 3)
            assert output.shape == (*shape[:2], 3 * shape[2], 6)
            output.sum().backward()
            assert image.grad.shape == shape

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((MAP[0], 2), ValueError, r"input: expected \[N, C, h, w\]"),
            ((MAP.long(), 2), TypeError, "input: expected float32"),
            ((MAP, 0), ValueError, "scale"),
            ((MAP, (1, 2, 3)), ValueError, "scale"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            bed_of_nails(*arguments)

    def test_gradient_in_whole_blocks(self):
        with pytest.raises(RuntimeError, match="whole blocks of 2x2"):
            torch.ops.segkernels.bed_of_nails_backward(torch.randn(1, 1, 5, 4), [2, 2])
