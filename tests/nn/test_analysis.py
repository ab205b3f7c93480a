"""The arithmetic of convolutions that the lectures teach."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segkernels.nn import analysis
from segkernels.ops import conv_transpose2d


def convolution_matrix(taps, length, stride, padding):
    """X with conv(a) == X @ a for a one-dimensional cross-correlation, column by column."""
    basis = torch.eye(length, dtype=taps.dtype)[:, None]
    return F.conv1d(basis, taps[None, None], stride=stride, padding=padding)[:, 0].T


def transposed(values, taps, stride=1, padding=0, output_padding=0):
    """The one-dimensional transposed convolution as one row of the two-dimensional op."""
    result = conv_transpose2d(
        values[None, None, None], taps[None, None, None], None, (1, stride), (0, padding), (0, output_padding)
    )
    return result.flatten()


TAPS = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
VALUES = torch.tensor([7.0, 11.0, 13.0, 17.0], dtype=torch.float64)


def test_transposed_convolution_is_the_transposed_matrix_stride_1():
    (x, y, z), (a, b, c, d) = TAPS.tolist(), VALUES.tolist()
    matrix = convolution_matrix(TAPS, 4, 1, 1)
    # The lecture's order of the letters: y in the middle, x to the left in the transpose.
    assert (matrix @ VALUES).tolist() == [a * y + b * z, a * x + b * y + c * z, b * x + c * y + d * z, c * x + d * y]
    full = [a * x, a * y + b * x, a * z + b * y + c * x, b * z + c * y + d * x, c * z + d * y, d * z]
    assert transposed(VALUES, TAPS).tolist() == full
    assert torch.equal(convolution_matrix(TAPS, 6, 1, 0).T @ VALUES, transposed(VALUES, TAPS))
    assert transposed(VALUES, TAPS, padding=1).tolist() == full[1:-1], "padding crops"
    assert torch.equal(matrix.T @ VALUES, transposed(VALUES, TAPS, padding=1))


def test_transposed_convolution_is_the_transposed_matrix_stride_2():
    (x, y, z), (a, b, c, d) = TAPS.tolist(), VALUES.tolist()
    matrix = convolution_matrix(TAPS, 4, 2, 1)
    assert (matrix @ VALUES).tolist() == [a * y + b * z, b * x + c * y + d * z]
    short = VALUES[:2]
    assert transposed(short, TAPS, 2, 0, 1).tolist() == [a * x, a * y, a * z + b * x, b * y, b * z, 0]
    assert torch.equal(matrix.T @ short, transposed(short, TAPS, 2, 1, 1))


@pytest.mark.parametrize("stride", [2, 3])
def test_fractional_stride_is_zero_insertion_and_convolution(stride):
    spread = torch.zeros(3 * stride + 1, dtype=torch.float64)
    spread[::stride] = VALUES
    expected = F.conv1d(spread[None, None], TAPS.flip(0)[None, None], padding=2).flatten()
    assert torch.equal(transposed(VALUES, TAPS, stride), expected)


def test_nearest_resize_and_convolution_is_a_transposed_convolution():
    a, b, c = TAPS.tolist()
    doubled = VALUES.repeat_interleave(2)
    expected = F.conv1d(doubled[None, None], TAPS[None, None], padding=1).flatten()
    kernel = torch.tensor([c, b + c, a + b, a], dtype=torch.float64)
    assert torch.equal(transposed(VALUES, kernel, 2, 1), expected)


@pytest.mark.parametrize("kernel", range(1, 9))
@pytest.mark.parametrize("stride", range(1, 5))
def test_checkerboard_score(kernel, stride):
    """Uniform iff the stride divides the kernel size, as a transposed convolution of ones shows."""
    ones = torch.ones(20, dtype=torch.float64)
    inside = transposed(ones, torch.ones(kernel, dtype=torch.float64), stride)[10 * stride : 11 * stride]
    counts = analysis.overlap_counts(kernel, stride)
    assert inside.tolist() == counts
    score = analysis.checkerboard_score(kernel, stride)
    assert (score == 0) == (kernel % stride == 0)
    assert score == 1 - (min(counts) / max(counts)) ** 2


def test_receptive_field():
    assert analysis.receptive_field([(3,), (3,)]) == (5, 1)
    assert analysis.receptive_field([(3, 1, 1), (3, 1, 2), (3, 1, 4)]) == (15, 1)
    vgg16 = [layer for count in (2, 2, 3, 3, 3) for layer in [(3,)] * count + [(2, 2)]]
    assert analysis.receptive_field(vgg16) == (212, 32)
    # The gradient of one output pixel reaches so far.
    image = torch.zeros(1, 1, 60, requires_grad=True)
    ones = torch.ones(1, 1, 3)
    hidden = F.max_pool1d(F.conv1d(F.conv1d(image, ones, dilation=3), ones, stride=2), 1)
    F.conv1d(hidden, ones)[..., 4].sum().backward()
    reached = image.grad.flatten().nonzero().flatten()
    assert analysis.receptive_field([(3, 1, 3), (3, 2), (1, 1), (3, 1)])[0] == reached.max() - reached.min() + 1


@pytest.mark.parametrize(
    ("dilations", "hybrid"), [((1, 2, 5), True), ((1, 2, 3), True), ((1, 2, 9), False), ((2, 4, 8), False), ((2, 2), False)]
)
def test_gridding(dilations, hybrid):
    """The impulse response of ones has a hole wherever a pixel has no influence."""
    assert analysis.is_hybrid_dilation(dilations) == hybrid
    image = torch.zeros(1, 1, 81, 81, requires_grad=True)
    output = image
    for dilation in dilations:
        output = F.conv2d(output, torch.ones(1, 1, 3, 3), padding=dilation, dilation=dilation)
    output[..., 40, 40].sum().backward()
    size, _ = analysis.receptive_field((3, 1, dilation) for dilation in dilations)
    field = image.grad[0, 0, 40 - size // 2 : 41 + size // 2, 40 - size // 2 : 41 + size // 2]
    assert analysis.gridding_coverage(dilations) == pytest.approx((field > 0).double().mean().item())


def test_bilinear_kernel():
    assert analysis.bilinear_kernel(4)[0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]
    assert analysis.bilinear_kernel(3, torch.float64)[1].tolist() == [0.5, 1.0, 0.5]
    dense = analysis.bilinear_(torch.randn(3, 3, 4, 4))
    assert torch.equal(dense, torch.eye(3)[:, :, None, None] * analysis.bilinear_kernel(4))
    with pytest.raises(ValueError, match="weight"):
        analysis.bilinear_(torch.randn(3, 2, 4, 4))
    with pytest.raises(ValueError, match="kernel_size"):
        analysis.bilinear_kernel(0)
