from __future__ import annotations

import importlib.util

import pytest
import torch
from op_test import NO_SYNC, OpTest, Sample, assert_close_as_torch

import segkernels
from segkernels.losses import LovaszLoss, lovasz_loss


def jaccard_extension(errors, positive):
    """The definition: every set of the k largest errors, and the Jaccard loss of getting just those pixels wrong."""
    value, order = errors.sort(descending=True, stable=True)
    sorted_positive = positive[order]
    previous, total = 0.0, errors.new_zeros(())
    false_negatives = false_positives = 0.0
    positives = positive.sum().item()
    for k in range(len(value)):
        false_negatives += sorted_positive[k].item()
        false_positives += 1 - sorted_positive[k].item()
        loss = (false_negatives + false_positives) / (positives + false_positives)
        total = total + value[k] * (loss - previous)
        previous = loss
    return total


def oracle(
    input, target, mode="binary", per_image=False, ignore_index=None, from_logits=True, *, classes="present", reduction="mean"
):
    x = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    x = x[:, None] if x.dim() == 3 else x
    t = target if mode == "multiclass" else target.reshape(x.shape)
    losses = []
    for index in ([i] for i in range(len(x))) if per_image else (list(range(len(x))),):
        values, labels = x[index], t[index]
        valid = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
        if mode == "multiclass":
            p = (values.softmax(1) if from_logits else values).movedim(1, -1)[valid]
            labels = labels[valid]
            present = [c for c in range(x.shape[1]) if (classes == "all" and len(labels)) or (labels == c).any()]
            terms = [jaccard_extension(((labels == c).to(p) - p[:, c]).abs(), (labels == c).to(p)) for c in present]
            losses.append(torch.stack(terms).mean() if terms else values.sum() * 0)
        else:
            labels = labels[valid].to(x.dtype)
            losses.append(jaccard_extension(torch.relu(1 - values[valid] * (2 * labels - 1)), labels))
    loss = torch.stack(losses)
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


def value_and_grad(function, logits, *args, **kwargs):
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


class TestLovaszLoss(OpTest):
    op = "lovasz_loss"
    function = staticmethod(lovasz_loss)
    oracle = staticmethod(oracle)
    gradcheck_samples = ("binary", "multiclass", "per image, probabilities")

    def samples(self, device, dtype):
        def logits(*shape):
            return (torch.randn(shape, device=device) * 2).to(dtype)

        def labels(*shape, count=2, kind=torch.int64, ignore=None):
            target = torch.randint(0, count, shape, device=device)
            if ignore is not None:
                target[torch.rand(shape, device=device) < 0.3] = ignore
            return target.to(kind)

        def last(tensor):
            return tensor.contiguous(memory_format=torch.channels_last)

        many = {"mode": "multiclass"}
        return [
            Sample("multiclass", (logits(2, 3, 5, 6), labels(2, 5, 6, count=3)), many),
            Sample("binary", (logits(2, 1, 5, 7), labels(2, 5, 7))),
            Sample("binary per image", (logits(3, 6, 7), labels(3, 1, 6, 7, kind=torch.uint8)),
                   {"per_image": True, "reduction": "sum"}),
            Sample("binary ignore", (logits(2, 1, 9, 10), labels(2, 9, 10, kind=torch.int32, ignore=-1)),
                   {"ignore_index": -1}),
            Sample("binary, floating", (logits(1, 1, 7, 9), labels(1, 1, 7, 9, kind=dtype))),
            Sample("multilabel", (last(logits(2, 3, 5, 6)), labels(2, 3, 5, 6)), {"mode": "multilabel"}),
            Sample("multiclass ignore", (logits(2, 4, 7, 8), labels(2, 7, 8, count=4, kind=torch.uint8, ignore=255)),
                   {**many, "ignore_index": 255}),
            Sample("multiclass per image", (last(logits(3, 4, 7, 8)), labels(3, 7, 8, count=3, kind=torch.int32)),
                   {**many, "per_image": True, "reduction": "none"}),
            Sample("multiclass all", (logits(2, 5, 6, 7), labels(2, 6, 7, count=3)), {**many, "classes": "all"}),
            Sample("per image, probabilities", (logits(2, 3, 4, 5).float().softmax(1).to(dtype), labels(2, 4, 5, count=3)),
                   {**many, "from_logits": False, "per_image": True}),
            Sample("blocks", (logits(1, 2, 27, 41), labels(1, 27, 41)), many),
        ]  # fmt: skip

    def _compare(self, actual, expected, peer, what):
        # The oracle of float64 is float64 too: its own rounding is part of the difference, of Jaccard losses near 1.
        if actual.dtype == torch.float64:
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)
        else:
            assert_close_as_torch(actual, expected, peer, what)

    def test_gradcheck(self, gradcheck_case):
        sample, leaves = self.sample(gradcheck_case, "cpu", torch.float64).leaves()
        assert torch.autograd.gradcheck(lambda x: lovasz_loss(x, *sample.args[1:], **sample.kwargs), leaves)

    def test_second_derivative_raises(self, tier):
        x = torch.randn(1, 1, 3, 4, device=tier[0], requires_grad=True)
        with segkernels.backend(tier[1]):
            (grad,) = torch.autograd.grad(lovasz_loss(x, torch.ones(1, 3, 4, device=tier[0])), x, create_graph=True)
            with pytest.raises(RuntimeError, match="lovasz_loss_backward has no gradient"):
                grad.sum().backward()

    # -- values -----------------------------------------------------------------------------------------------------------

    @pytest.mark.skipif(importlib.util.find_spec("segmentation_models_pytorch") is None, reason="SMP is not installed")
    @pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
    @pytest.mark.parametrize("per_image", [False, True])
    @pytest.mark.parametrize("ignore_index", [None, 255])
    def test_smp_itself(self, mode, per_image, ignore_index):
        from segmentation_models_pytorch.losses import LovaszLoss as Theirs

        logits = torch.randn(3, 5, 37, 41) * 2
        target = torch.randint(0, 4, (3, 37, 41)) if mode == "multiclass" else torch.randint(0, 2, (3, 5, 37, 41))
        if mode == "binary":
            logits, target = logits[:, 0], target[:, 0]
        if ignore_index is not None:
            target[torch.rand(target.shape) < 0.2] = ignore_index
        expected, expected_grad = value_and_grad(Theirs(mode, per_image, ignore_index), logits, target)
        loss, grad = value_and_grad(LovaszLoss(mode, per_image, ignore_index), logits, target)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        # Their differences of two Jaccard indices near 1 keep no more than float32's 6e-8.
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1.5e-7)

    def test_large_against_the_reference(self, tier):
        """Many more pixels than digits of the sort, and a digit that is the same for all."""
        x = torch.randn(1, 3, 160, 160, device=tier[0])
        target = torch.randint(0, 3, (1, 160, 160), device=tier[0])
        for values in (x, x * 1e-3, x * 100):
            with segkernels.backend(tier[1]):
                loss, grad = value_and_grad(lovasz_loss, values, target, "multiclass")
            with segkernels.backend("reference"):
                expected, expected_grad = value_and_grad(lovasz_loss, values.double(), target, "multiclass")
            torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=0)
            # Errors that float32 cannot tell apart may be ranked in another order.
            assert (grad - expected_grad).abs().sum() <= 1e-3 * expected_grad.abs().sum()

    def test_ties_are_ranked_in_pixel_order(self, tier):
        x = torch.zeros(1, 1, 1, 4, device=tier[0])
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(lovasz_loss, x, torch.tensor([[[1, 0, 1, 0]]], device=tier[0]))
        assert loss.item() == pytest.approx(1)
        # Jaccard losses of the first k pixels: 1/2, 2/3, 1, 1.
        torch.testing.assert_close(grad.flatten().cpu(), torch.tensor([-1 / 2, 1 / 6, -1 / 3, 0]))

    @pytest.mark.parametrize("mode", ["binary", "multiclass"])
    @pytest.mark.parametrize("per_image", [False, True])
    def test_all_ignored(self, mode, per_image, tier):
        x = torch.randn(2, 1 if mode == "binary" else 3, 9, 10, device=tier[0])
        x[1, 0, 2, 3] = float("nan")
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(lovasz_loss, x, torch.full((2, 9, 10), 255, device=tier[0]), mode, per_image, 255)
        assert loss.item() == 0 and not grad.any()

    def test_ignored_pixels_are_as_if_absent(self, tier):
        x, target = torch.randn(2, 3, 8, 9, device=tier[0]), torch.randint(0, 3, (2, 8, 9), device=tier[0])
        cut = target.clone()
        cut[:, :, 6:] = -1
        expected, expected_grad = value_and_grad(lovasz_loss, x[..., :6].contiguous(), target[..., :6], "multiclass")
        x[..., 6:] = float("nan")
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(lovasz_loss, x, cut, "multiclass", ignore_index=-1)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(grad[..., :6], expected_grad)
        assert not grad[..., 6:].any()

    @pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
    @pytest.mark.parametrize("mode", ["multilabel", "multiclass"])
    @pytest.mark.parametrize("per_image", [False, True])
    def test_empty(self, shape, mode, per_image, tier):
        x = torch.randn(shape, device=tier[0])
        target = torch.zeros(shape if mode == "multilabel" else (shape[0], *shape[2:]), dtype=torch.int64, device=tier[0])
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(lovasz_loss, x, target, mode, per_image)
        assert loss.shape == () and loss.item() == 0 and grad.shape == shape

    def test_empty_mask_and_one_class(self, tier):
        x = torch.tensor([2.0, -3.0, 0.5], device=tier[0]).reshape(1, 1, 1, 3)
        with segkernels.backend(tier[1]):
            # Without positives only the largest error counts.
            loss, grad = value_and_grad(lovasz_loss, x, torch.zeros(1, 1, 3, dtype=torch.uint8, device=tier[0]))
            assert loss.item() == 3 and grad.flatten().tolist() == [1, 0, 0]
            loss, grad = value_and_grad(lovasz_loss, x, torch.zeros(1, 1, 3, dtype=torch.int64, device=tier[0]), "multiclass")
            assert loss.item() == 0 and not grad.any()

    def test_extreme_logits(self, tier, dtype):
        x = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=dtype, device=tier[0]).reshape(1, 2, 1, 2)
        target = torch.tensor([[[0, 1]]], device=tier[0])
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(lovasz_loss, x, target, "multiclass")
            assert loss.item() == 0 and not grad.any()
            loss, grad = value_and_grad(lovasz_loss, x, 1 - target, "multiclass")
            assert loss.item() == 1 and not grad.isnan().any()

    @pytest.mark.parametrize("mode", ["binary", "multiclass"])
    def test_nan_logits_propagate(self, mode, tier):
        x = torch.randn(2, 1 if mode == "binary" else 3, 30, 40, device=tier[0])
        x[1, 0, 3, 5] = float("nan")
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(lovasz_loss, x, torch.ones(2, 30, 40, dtype=torch.int64, device=tier[0]), mode)
        if mode == "multiclass":
            assert grad[1, :, 3, 5].isnan().any() or tier[1] == "reference"
        assert loss.isnan()

    def test_module(self):
        module = LovaszLoss("multiclass", per_image=True, ignore_index=2, classes="all", reduction="sum")
        assert "per_image=True" in repr(module) and not module.state_dict()
        x, target = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 5, 6))
        expected = lovasz_loss(x, target, "multiclass", True, 2, classes="all", reduction="sum")
        assert torch.equal(module(x, target), expected)

    # -- bad input --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
    @pytest.mark.parametrize("label", [3, 255, -1, 2**32 + 1])
    def test_label_outside(self, kind, label, tier):
        if not torch.iinfo(kind).min <= label <= torch.iinfo(kind).max:
            pytest.skip("the dtype cannot hold it")
        target = torch.zeros(2, 5, 6, dtype=kind, device=tier[0])
        target[1, 3, 2] = label
        x = torch.randn(2, 3, 5, 6, device=tier[0])
        with segkernels.backend(tier[1]):
            if tier[1] in NO_SYNC:
                assert lovasz_loss(x, target, "multiclass").isnan()
                every = lovasz_loss(x, target, "multiclass", True, reduction="none")
                assert every[0].isfinite() and every[1].isnan()
                value, grad = value_and_grad(lovasz_loss, x[:, :1], target)
                assert value.isnan() and grad.isnan().any()
                return
            with pytest.raises(RuntimeError, match=r"labels in \[0, 3\) in target, found another"):
                lovasz_loss(x, target, "multiclass")
            with pytest.raises(RuntimeError, match="labels 0 and 1 in target .or ignore_index., found another"):
                lovasz_loss(x[:, :1], target, ignore_index=7)
            assert lovasz_loss(x, target, "multiclass", ignore_index=label).isfinite()

    X = torch.randn(2, 3, 4, 5)
    T = torch.zeros(2, 4, 5, dtype=torch.int64)

    @pytest.mark.parametrize(
        ("args", "kwargs", "error", "match"),
        [
            ((X.long(), T), {}, TypeError, "input: expected float32"),
            ((X, T), {}, ValueError, r"input: expected \[N, 1, H, W\]"),
            ((X, T, "multi"), {}, ValueError, "mode: expected 'binary' or 'multilabel'"),
            ((X, T[:1], "multiclass"), {}, ValueError, r"target: expected \[N, H, W\]"),
            ((X[0], T, "multiclass"), {}, ValueError, r"input: expected \[N, C, H, W\]"),
            ((X, T.float(), "multiclass"), {}, TypeError, "target: expected uint8, int32 or int64"),
            ((X, 1, "multiclass"), {}, TypeError, "target: expected a Tensor"),
            ((X[:, :1], T), {"from_logits": False}, ValueError, "from_logits: expected True"),
            ((X, T, "multiclass"), {"classes": "some"}, ValueError, "classes: expected one of 'present', 'all'"),
            ((X, T, "multiclass"), {"reduction": "max"}, ValueError, "reduction: expected one of"),
        ],
    )
    def test_errors(self, args, kwargs, error, match):
        with pytest.raises(error, match=match):
            lovasz_loss(*args, **kwargs)
