from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import OpTest, Sample

import segkernels
from segkernels.ops import max_unpool2d
from segkernels.reference import max_unpool2d as reference

VALUES = torch.randn(1, 1, 2, 2)
INDICES = torch.zeros(1, 1, 2, 2, dtype=torch.int64)


def window_offsets(indices: torch.Tensor, kernel: int, stride: int, padding: int, width: int) -> torch.Tensor:
    """torch's flat indices as uint8 offsets inside the window."""
    h, w = indices.shape[-2:]
    row = indices // width - (torch.arange(h, device=indices.device)[:, None] * stride - padding)
    col = indices % width - (torch.arange(w, device=indices.device) * stride - padding)
    return (row * kernel + col).to(torch.uint8)


def pooled(
    shape: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
    kernel: int = 2,
    stride: int = 2,
    padding: int = 0,
    uint8: bool = False,
    channels_last: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    # Distinct values, so that the maximum is unique in every dtype.
    image = torch.randperm(torch.Size(shape).numel(), device=device).reshape(shape).float() / 64
    values, indices = F.max_pool2d(image, kernel, stride, padding, return_indices=True)
    if uint8:
        indices = window_offsets(indices, kernel, stride, padding, shape[-1])
    values = torch.randn_like(values).to(dtype)
    if channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
        indices = indices.contiguous(memory_format=torch.channels_last)
    return values, indices


def oracle(input, indices, kernel_size, stride=None, padding=0, output_size=None):
    kernel = [kernel_size] * 2
    step = [stride or kernel_size] * 2
    pad = [padding] * 2
    image = input if input.dim() == 4 else input[None]
    places = indices if input.dim() == 4 else indices[None]
    size = output_size or [(image.shape[2 + d] - 1) * step[d] - 2 * pad[d] + kernel[d] for d in range(2)]
    result = reference.max_unpool2d(image, places, list(size[-2:]), kernel, step, pad)
    return result if input.dim() == 4 else result[0]


class TestMaxUnpool2d(OpTest):
    op = "max_unpool2d"
    function = staticmethod(max_unpool2d)
    oracle = staticmethod(oracle)
    exact = True
    gradcheck_samples = ("2x2", "2x2 uint8", "overlapping")

    def samples(self, device, dtype):
        scattered = torch.randint(0, 6 * 8, (2, 3, 3, 4), device=device)
        values = torch.randn(2, 3, 3, 4, device=device).to(dtype)
        return [
            Sample("2x2", (*pooled((2, 3, 8, 10), device, dtype), 2)),
            Sample("2x2 uint8", (*pooled((2, 3, 8, 10), device, dtype, uint8=True), 2)),
            Sample("2x2 channels_last", (*pooled((2, 5, 8, 10), device, dtype, channels_last=True), 2)),
            Sample("2x2 uint8 channels_last", (*pooled((2, 5, 6, 6), device, dtype, uint8=True, channels_last=True), 2)),
            Sample("wide row", (*pooled((1, 2, 4, 530), device, dtype), 2)),
            Sample("many channels", (*pooled((1, 200, 4, 4), device, dtype, channels_last=True), 2)),
            Sample("odd size", (*pooled((2, 3, 9, 11), device, dtype), 2), {"output_size": (9, 11)}),
            Sample("odd size channels_last", (*pooled((2, 3, 9, 11), device, dtype, channels_last=True), 2),
                   {"output_size": (9, 11)}),
            Sample("3x3", (*pooled((2, 3, 9, 12), device, dtype, 3, 3), 3)),
            Sample("3x3 stride 4 uint8", (*pooled((1, 2, 11, 11), device, dtype, 3, 4, 0, True), 3, 4)),
            Sample("overlapping", (*pooled((2, 3, 7, 9), device, dtype, 3, 2, 1), 3, 2, 1)),
            Sample("overlapping uint8", (*pooled((2, 3, 7, 9), device, dtype, 3, 2, 1, True), 3, 2, 1)),
            Sample("overlapping channels_last", (*pooled((2, 3, 7, 9), device, dtype, 3, 2, 1, False, True), 3, 2, 1)),
            Sample("foreign and duplicate indices", (values, scattered, 2)),
            Sample("foreign channels_last", tuple(t.contiguous(memory_format=torch.channels_last)
                                                  for t in (values, scattered)) + (2,)),
            Sample("unbatched", (*pooled((3, 8, 10), device, dtype), 2)),
        ]  # fmt: skip

    @pytest.mark.parametrize("uint8", [False, True])
    def test_agrees_with_torch_where_indices_are_unique(self, uint8):
        values, indices = pooled((4, 8, 32, 48), "cpu", torch.float32)
        offsets = window_offsets(indices, 2, 2, 0, 48) if uint8 else indices
        grad = torch.randn(4, 8, 32, 48)
        ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
        output = max_unpool2d(ours, offsets, 2)
        expected = F.max_unpool2d(theirs, indices, 2)
        output.backward(grad)
        expected.backward(grad)
        assert torch.equal(output, expected)
        assert torch.equal(ours.grad, theirs.grad)

    def test_last_duplicate_wins_and_takes_the_gradient(self, tier):
        values = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], device=tier[0], requires_grad=True)
        indices = torch.tensor([[[[5, 5], [5, 0]]]], device=tier[0])
        with segkernels.backend(tier[1]):
            output = max_unpool2d(values, indices, 2)
            output.backward(torch.arange(16.0, device=tier[0]).view(1, 1, 4, 4) + 1)
        expected = torch.zeros(16)
        expected[5], expected[0] = 3.0, 4.0
        assert torch.equal(output.detach().cpu().flatten(), expected)
        assert torch.equal(values.grad.cpu().flatten(), torch.tensor([0.0, 0.0, 6.0, 1.0]))

    def test_lecture_example(self):
        """Pooling then unpooling of the lecture's 4x4 map."""
        image = torch.tensor([[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])[None, None]
        _, indices = F.max_pool2d(image, 2, return_indices=True)
        assert indices.flatten().tolist() == [5, 2, 12, 15]
        output = max_unpool2d(torch.tensor([[[[1.0, 2], [3, 4]]]]), indices, 2)
        assert output.squeeze().tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]]

    def test_gradient_of_another_batch(self, tier):
        """Nothing is read beyond a gradient that the op itself is handed, without the public function's checks."""
        if tier[1] not in ("cpu", "cuda", "emulated"):
            pytest.skip("this tier checks in Python only")
        grad, indices = torch.randn(1, 2, 4, 4, device=tier[0]), INDICES.to(tier[0]).repeat(3, 2, 1, 1)
        with segkernels.backend(tier[1]), pytest.raises(RuntimeError, match="agree in batch and channels"):
            torch.ops.segkernels.max_unpool2d_backward(grad, indices, [2, 2], [2, 2], [0, 0])

    def test_empty(self):
        for shape in ((0, 3, 2, 2), (2, 0, 2, 2)):
            values = torch.randn(shape, requires_grad=True)
            output = max_unpool2d(values, torch.zeros(shape, dtype=torch.int64), 2)
            assert output.shape == (*shape[:2], 4, 4)
            output.sum().backward()
            assert values.grad.shape == shape

    @pytest.mark.parametrize("index", [16, -1, 2**31, 2**32, 2**32 + 5, -(2**63)])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_index_outside_the_plane(self, index, channels_last):
        values = torch.randn(1, 2, 2, 2)
        indices = torch.tensor([0, 2, 8, 10] * 2).view(1, 2, 2, 2)
        indices[0, 1, 1, 0] = index
        if channels_last:
            values, indices = (t.contiguous(memory_format=torch.channels_last) for t in (values, indices))
        with pytest.raises(RuntimeError, match=rf"invalid max index in indices: {index} \(output planes are of size 4x4"):
            max_unpool2d(values, indices, 2)
        with pytest.raises(RuntimeError, match="invalid max index"):
            torch.ops.segkernels.max_unpool2d_backward(torch.randn(1, 2, 4, 4), indices, [2, 2], [2, 2], [0, 0])

    def test_window_offset_outside_the_window(self):
        with pytest.raises(RuntimeError, match="invalid max index in indices"):
            max_unpool2d(torch.randn(1, 1, 2, 2), torch.full((1, 1, 2, 2), 4, dtype=torch.uint8), 2)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((torch.randn(2, 2), INDICES[0, 0], 2), ValueError, r"input: expected \[N, C, h, w\]"),
            ((INDICES, INDICES, 2), TypeError, "input: expected float32"),
            ((VALUES, VALUES, 2), TypeError, "indices: expected int64 or uint8"),
            ((VALUES, INDICES[..., :1], 2), ValueError, "indices: expected the shape"),
            ((VALUES, INDICES, 0), ValueError, "kernel_size"),
            ((VALUES, INDICES, (2, 2, 2)), ValueError, "kernel_size"),
            ((VALUES, INDICES, 2, 2, 0, (9, 9)), ValueError, "output_size"),
            ((VALUES, INDICES, 2, 2, 0, (-1, 4)), ValueError, "output_size"),
            ((VALUES, INDICES.byte(), 17), ValueError, "kernel_size"),
            ((VALUES, INDICES.to("meta"), 2), ValueError, "one device"),
        ],
    )  # fmt: skip
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            max_unpool2d(*arguments)
