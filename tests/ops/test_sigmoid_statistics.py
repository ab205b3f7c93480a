from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import NO_SYNC, OpTest, Sample, assert_close_as_torch

import segkernels
from segkernels.losses import UpsampleDiceBCELoss, balanced_bce_loss, dice_bce_loss
from segkernels.losses._region import Region
from segkernels.losses._sigmoid import sigmoid_dice_bce_loss, sigmoid_pixel_loss, sigmoid_region_loss
from segkernels.ops import sigmoid_statistics


def sums(*args, **kwargs):
    region, pixel, losses = sigmoid_statistics(*args, **kwargs)
    return torch.cat([region.flatten(), pixel[..., 0].flatten(), losses.double().flatten()])


def oracle(
    input, target, positive=1.0, negative=1.0, gamma=0.0, ignore_index=None, *, mode="binary", min_intersection=False,
    losses=False, upsample=False, align_corners=False,
):  # fmt: skip
    x = input.double() if input.dtype == torch.float64 else input.float()
    x = x[:, None] if x.dim() == 3 else x
    t = target[:, None] if target.dim() == 3 else target
    if upsample:
        x = F.interpolate(x, t.shape[2:], mode="bilinear", align_corners=align_corners)
    valid = torch.ones_like(t, dtype=torch.bool) if ignore_index is None else t != ignore_index
    t = torch.where(valid, t.to(x.dtype), 0)
    p = torch.sigmoid(x)
    weight = torch.as_tensor(positive, dtype=x.dtype).reshape(-1, 1, 1)
    loss = -weight * t * F.logsigmoid(x) - negative * (1 - t) * F.logsigmoid(-x)
    if gamma:
        loss = loss * (p * (1 - t) + torch.sigmoid(-x) * t) ** gamma
    first = torch.minimum(p, t) if min_intersection else p * t
    region = torch.stack([(part * valid).sum((2, 3)) for part in (first, p, t)], 2)
    parts = [region.flatten(), (loss * valid).sum((2, 3)).flatten()]
    if losses:
        parts.append((loss * valid).flatten())
    return torch.cat(parts).double()


def value_and_grad(function, logits, *args, **kwargs):
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def assert_same(actual, expected):
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=1e-7)
    assert (actual[1] - expected[1]).abs().max() <= 1.5e-6 * expected[1].abs().max()


class TestSigmoidStatistics(OpTest):
    op = "sigmoid_statistics"
    function = staticmethod(sums)
    oracle = staticmethod(oracle)
    gradcheck_samples = ("focal", "multilabel", "upsample", "focal 1.5")
    not_interpreted = ("blocks", "upsample chunks", "upsample wide")

    def samples(self, device, dtype):
        def logits(*shape):
            return (torch.randn(shape, device=device) * 2).to(dtype)

        def labels(*shape, kind=torch.int64, ignore=None):
            target = torch.randint(0, 2, shape, device=device)
            if ignore is not None:
                target[torch.rand(shape, device=device) < 0.3] = ignore
            return target.to(kind)

        def last(tensor):
            return tensor.contiguous(memory_format=torch.channels_last)

        many = {"mode": "multilabel"}
        return [
            Sample("focal", (logits(2, 1, 5, 7), labels(2, 5, 7), 0.25, 0.75, 2.0)),
            Sample("multilabel", (last(logits(2, 3, 5, 6)), labels(2, 3, 5, 6), [1.0, 2.0, 0.5]), many),
            Sample("focal 1.5", (logits(2, 5, 7), labels(2, 1, 5, 7, kind=torch.uint8), 0.25, 0.75, 1.5), {"losses": True}),
            Sample("ignore", (logits(2, 1, 9, 60), labels(2, 9, 60, kind=torch.int32, ignore=-1), 3.0, 1.0, 0.5, -1),
                   {"losses": True}),
            Sample("soft", (logits(2, 1, 6, 7), torch.rand(2, 1, 6, 7, device=device).to(dtype), 0.3, 0.7, 2.0),
                   {"min_intersection": True}),
            Sample("blocks", (logits(2, 1, 100, 101), labels(2, 100, 101, kind=torch.uint8))),
            Sample("upsample", (logits(2, 1, 3, 9), labels(2, 7, 25), 2.0, 1.0, 2.0), {"upsample": True}),
            Sample("upsample corners", (last(logits(2, 2, 5, 4)), labels(2, 2, 9, 12, ignore=7), 1.0, 1.0, 0.0, 7),
                   {**many, "upsample": True, "align_corners": True, "losses": True}),
            Sample("upsample chunks", (logits(1, 1, 30, 40), labels(1, 1, 121, 160)), {"upsample": True}),
            Sample("upsample wide", (last(logits(1, 2, 2, 40)), labels(1, 2, 3, 600)), {**many, "upsample": True}),
            Sample("upsample one", (logits(1, 1, 1, 1), labels(1, 4, 600)), {"upsample": True}),
        ]  # fmt: skip

    def _compare(self, actual, expected, peer, what):
        if "output" in what:
            # Sums are float64 of float32 blocks, whatever the dtype.
            rtol = 1e-12 if "float64" in what else 1e-6
            torch.testing.assert_close(actual, expected, rtol=rtol, atol=2e-7)
        else:
            assert_close_as_torch(actual, expected, peer, what, 16.0 if actual.dtype == torch.float64 else 4.0)

    # -- the losses that follow -------------------------------------------------------------------------------------------

    def test_dice_bce(self):
        logits, target = torch.randn(2, 3, 37, 53) * 2, (torch.rand(2, 3, 37, 53) > 0.6).float()
        for style in ("lecture", "smp", "monai"):
            actual = value_and_grad(sigmoid_dice_bce_loss, logits, target, 0.5, 2.0, Region.dice(1.0, style), [1.0, 2.0, 3.0],
                                    mode="multilabel")  # fmt: skip
            expected = value_and_grad(dice_bce_loss, logits, target, 0.5, 2.0, 1.0, [1.0, 2.0, 3.0], mode="multilabel",
                                      style=style)  # fmt: skip
            assert_same(actual, expected)

    @pytest.mark.parametrize("align_corners", [False, True])
    def test_upsampled_dice_bce(self, align_corners):
        logits, target = torch.randn(2, 1, 16, 20), torch.randint(0, 2, (2, 61, 80))

        def full(x, target):
            x = F.interpolate(x, target.shape[1:], mode="bilinear", align_corners=align_corners)
            return dice_bce_loss(x, target)

        actual = value_and_grad(UpsampleDiceBCELoss(align_corners=align_corners), logits, target)
        assert_same(actual, value_and_grad(full, logits, target))

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("style", ["lecture", "smp", "monai"])
    def test_upsampled_dice_bce_has_every_argument(self, style, reduction):
        logits, target = torch.randn(2, 3, 8, 9), torch.randint(0, 2, (2, 3, 16, 18))
        target[0, :, :3] = 7
        options = {"class_weights": [0.5, 1.0, 2.0], "batch_dice": style == "monai", "include_background": False,
                   "log_loss": True, "pos_weight": 2.0, "ignore_index": 7, "mode": "multilabel"}  # fmt: skip

        def full(x, target):
            x = F.interpolate(x, target.shape[2:], mode="bilinear")
            return dice_bce_loss(x, target, 0.5, 2.0, style=style, reduction=reduction, **options)

        module = UpsampleDiceBCELoss(0.5, 2.0, style=style, reduction=reduction, **options)
        assert sorted(module.state_dict()) == ["class_weights", "pos_weight"] and "log_loss=True" in repr(module)
        actual = value_and_grad(module, logits, target)
        assert actual[0].shape == (target.shape if reduction == "none" else ())
        assert_same(actual, value_and_grad(full, logits, target))

    @pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
    def test_focal_is_torchvisions(self, gamma):
        ops = pytest.importorskip("torchvision.ops")
        logits, target = torch.randn(2, 1, 37, 53) * 3, (torch.rand(2, 1, 37, 53) > 0.6).float()
        for reduction in ("mean", "sum", "none"):
            actual = value_and_grad(sigmoid_pixel_loss, logits, target, 0.25, 0.75, gamma, reduction=reduction)
            expected = value_and_grad(ops.sigmoid_focal_loss, logits.double(), target.double(), 0.25, gamma, reduction)
            assert_same(actual, tuple(value.float() for value in expected))

    def test_region_losses_are_smps(self):
        losses = pytest.importorskip("segmentation_models_pytorch.losses")
        logits, target = torch.randn(3, 4, 9, 10).double(), (torch.rand(3, 4, 9, 10) > 0.6).long()
        target[:, 3] = 0
        for theirs, region in (
            (losses.DiceLoss("multilabel", smooth=0.5), Region.dice(0.5, "smp")),
            (losses.JaccardLoss("multilabel", smooth=0.5), Region.jaccard(0.5, "smp")),
            (losses.TverskyLoss("multilabel", smooth=0.5, alpha=0.3, beta=0.7), Region(0.3, 0.7, 1.0, 0.5, "smp")),
        ):
            actual = value_and_grad(sigmoid_region_loss, logits, target, region, mode="multilabel")
            assert_same(actual, value_and_grad(theirs, logits, target))

    def test_balanced_bce(self):
        logits, target = torch.randn(2, 1, 9, 10), torch.randint(0, 2, (2, 9, 10))

        def written_out(x, target):
            p, t = torch.sigmoid(x[:, 0]), target.float()
            return -(0.8 * t * p.log() + 0.2 * (1 - t) * (1 - p).log()).mean()

        expected = value_and_grad(written_out, logits, target)
        assert_same(value_and_grad(balanced_bce_loss, logits, target, 0.8), expected)
        module = segkernels.losses.BalancedBCELoss(0.8)
        assert_same(value_and_grad(module, logits, target), expected)
        assert "beta=0.8" in repr(module)
        probabilities = balanced_bce_loss(torch.sigmoid(logits), target, 0.8, from_logits=False)
        torch.testing.assert_close(probabilities, expected[0])
        with pytest.raises(ValueError, match="beta: expected"):
            balanced_bce_loss(logits, target, 1.5)

    # -- edges ------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
    def test_all_ignored(self, gamma, tier):
        x, target = torch.randn(2, 1, 9, 10, device=tier[0]), torch.full((2, 9, 10), 255, device=tier[0])
        x[0, 0, 1, 2] = float("nan")
        with segkernels.backend(tier[1]):
            value, grad = value_and_grad(sums, x, target, 0.25, 0.75, gamma, 255)
            assert not value.any() and not grad.any()
            loss, grad = value_and_grad(balanced_bce_loss, x, target, ignore_index=255)
            assert loss.item() == 0 and not grad.any()

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
    def test_extreme_logits(self, gamma, tier, dtype):
        x = torch.tensor([1e4, -1e4, 1e4, -1e4], dtype=dtype, device=tier[0]).reshape(1, 1, 1, 4)
        right = torch.tensor([1, 0, 1, 0], device=tier[0]).reshape(1, 1, 4)
        with segkernels.backend(tier[1]):
            value, grad = value_and_grad(sums, x, right, None, 1.0, gamma)
            assert value[3].item() < 1e-6 and not grad.isnan().any()
            value, grad = value_and_grad(sums, x, 1 - right, None, 1.0, gamma)
        assert value[3].item() == pytest.approx(x.double().abs().sum().item(), rel=1e-6) and not grad.isnan().any()

    def test_nan_logits_propagate(self, tier):
        x = torch.randn(2, 1, 30, 40, device=tier[0])
        x[1, 0, 3, 5] = float("nan")
        with segkernels.backend(tier[1]):
            for gamma in (0.0, 1.5, 2.0):
                value, grad = value_and_grad(sums, x, torch.ones(2, 30, 40, device=tier[0]), 0.25, 0.75, gamma)
                assert value.isnan().any() and grad[1, 0, 3, 5].isnan()

    @pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4)])
    def test_empty(self, shape, tier):
        x = torch.randn(shape, device=tier[0])
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(balanced_bce_loss, x, x.detach().round(), mode="multilabel")
        assert loss.item() == 0 and grad.shape == shape

    @pytest.mark.parametrize("size", [(5, 6), (11, 12)])
    def test_label_outside(self, size, tier):
        x, target = torch.randn(2, 1, 5, 6, device=tier[0]), torch.zeros(2, *size, dtype=torch.uint8, device=tier[0])
        target[1, 2, 3] = 2
        with segkernels.backend(tier[1]):
            if tier[1] in NO_SYNC:
                value, grad = value_and_grad(sums, x, target, upsample=True)
                assert value.isnan().any()
                assert grad[1, 0, 2 * 5 // size[0], 3 * 6 // size[1]].isnan() and grad[0].isfinite().all()
                return
            with pytest.raises(RuntimeError, match="labels 0 and 1 in target, found another"):
                sigmoid_statistics(x, target, upsample=True)

    X = torch.randn(2, 1, 3, 4)
    T = torch.zeros(2, 3, 4, dtype=torch.int64)

    @pytest.mark.parametrize(
        ("args", "kwargs", "error", "match"),
        [
            ((X.long(), T), {}, TypeError, "input: expected float32"),
            ((X, T[:1]), {}, ValueError, "target: expected"),
            ((X, T, None, 1.0, -1.0), {}, ValueError, "gamma: expected"),
            ((X, T, [1.0, 2.0]), {}, ValueError, "positive: expected one value"),
            ((X, T), {"mode": "multiclass"}, ValueError, "mode: expected"),
            ((X, T[:, :2]), {"upsample": True}, ValueError, "at least the size of input"),
            ((X[0], T), {"upsample": True, "mode": "multilabel"}, ValueError, "input: expected"),
            ((X, 1), {"upsample": True}, TypeError, "target: expected a Tensor"),
        ],
    )
    def test_errors(self, args, kwargs, error, match):
        with pytest.raises(error, match=match):
            sigmoid_statistics(*args, **kwargs)
