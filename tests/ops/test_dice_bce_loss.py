from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from op_test import NO_SYNC, OpTest, Sample, assert_close_as_torch

import segkernels
from segkernels.losses import DiceBCELoss, dice_bce_loss
from segkernels.ops._loss_arguments import REDUCTIONS, STYLES
from segkernels.reference import dice_bce_loss as reference


def oracle(
    input, target, dice_weight=1.0, bce_weight=1.0, smooth=1.0, pos_weight=None, ignore_index=None, reduction="mean",
    mode="binary", from_logits=True, class_weights=None, batch_dice=None, include_background=True, log_loss=False,
    style="lecture",
):  # fmt: skip
    values = input if input.dim() == 4 else input[:, None]
    weights = [None if w is None else torch.as_tensor(w, dtype=torch.float64) for w in (pos_weight, class_weights)]
    loss, _ = reference.dice_bce_loss(
        values, target.reshape(values.shape), *weights, dice_weight, bce_weight, smooth, ignore_index, REDUCTIONS[reduction],
        STYLES[style], style != "monai" if batch_dice is None else batch_dice, include_background, log_loss, from_logits,
    )  # fmt: skip
    return loss[:, 0] if loss.dim() > input.dim() else loss


def written_out(logits, target, smooth=1.0, pos_weight=None):
    """The lecture's sum of two losses, in torch ops."""
    p, t = torch.sigmoid(logits), target.to(logits.dtype)
    dice = 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)
    return dice + F.binary_cross_entropy_with_logits(logits, t, pos_weight=pos_weight)


def value_and_grad(function, logits, *args, **kwargs):
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def assert_same(actual, expected, tolerance=1e-6):
    """Values to `tolerance`, gradients to `tolerance` of the largest one."""
    assert abs(actual[0].item() - expected[0].item()) <= tolerance * max(1.0, abs(expected[0].item()))
    assert (actual[1] - expected[1]).abs().max().item() <= tolerance * expected[1].abs().max().item()


class TestDiceBCELoss(OpTest):
    op = "dice_bce_loss"
    function = staticmethod(dice_bce_loss)
    oracle = staticmethod(oracle)
    gradcheck_samples = (
        "binary", "soft smp", "multilabel", "none", "none multilabel ignore", "monai log", "per sample smp", "probabilities",
    )  # fmt: skip

    def samples(self, device, dtype):
        def logits(*shape):
            return (torch.randn(shape, device=device) * 3).to(dtype)

        def labels(*shape, kind=torch.int64, ignore=None):
            target = torch.randint(0, 2, shape, device=device)
            if ignore is not None:
                target[torch.rand(shape, device=device) < 0.3] = ignore
            return target.to(kind)

        def soft(*shape):
            return torch.rand(shape, device=device).to(dtype)

        def last(tensor):
            return tensor.contiguous(memory_format=torch.channels_last)

        multi = {"mode": "multilabel", "pos_weight": [1.0, 2.0, 0.5], "class_weights": [0.5, 1.0, 2.0]}
        many = {"mode": "multilabel"}
        return [
            Sample("binary", (logits(2, 1, 5, 7), labels(2, 5, 7))),
            Sample("no channel, uint8", (logits(2, 9, 11), labels(2, 1, 9, 11, kind=torch.uint8))),
            Sample("int32 ignore", (logits(2, 1, 9, 60), labels(2, 9, 60, kind=torch.int32, ignore=-1)),
                   {"ignore_index": -1, "pos_weight": 3.0}),
            Sample("uint8 ignore 255", (logits(3, 1, 40, 40), labels(3, 40, 40, kind=torch.uint8, ignore=255)),
                   {"ignore_index": 255}),
            Sample("uint8 unreachable ignore", (logits(1, 1, 8, 9), labels(1, 8, 9, kind=torch.uint8)),
                   {"ignore_index": -100}),
            Sample("bool", (logits(1, 1, 8, 9), labels(1, 8, 9, kind=torch.bool))),
            Sample("soft", (logits(2, 1, 6, 7), soft(2, 1, 6, 7)), {"dice_weight": 0.3, "bce_weight": 2.0, "smooth": 0.5}),
            Sample("soft smp", (logits(2, 1, 6, 7), soft(2, 1, 6, 7)), {"style": "smp", "smooth": 0.0}),
            Sample("soft ignore", (logits(2, 1, 6, 8), labels(2, 6, 8, kind=dtype, ignore=-1)), {"ignore_index": -1}),
            Sample("many blocks", (logits(2, 1, 100, 101), labels(2, 100, 101, kind=torch.uint8))),
            Sample("multilabel", (logits(2, 3, 5, 6), labels(2, 3, 5, 6)), multi),
            Sample("multilabel channels_last", (last(logits(2, 3, 50, 61)), last(labels(2, 3, 50, 61))), multi),
            Sample("multilabel mixed layouts", (last(logits(2, 3, 5, 6)), soft(2, 3, 5, 6)), multi),
            Sample("multilabel ignore, no background", (logits(2, 3, 5, 6), labels(2, 3, 5, 6, ignore=2)),
                   {**multi, "ignore_index": 2, "include_background": False}),
            Sample("none", (logits(2, 1, 4, 5), labels(2, 4, 5)), {"reduction": "none"}),
            Sample("none, no channel, half target", (logits(2, 4, 5), soft(2, 4, 5).half()), {"reduction": "none"}),
            Sample("none multilabel ignore", (last(logits(2, 3, 4, 5)), labels(2, 3, 4, 5, ignore=7)),
                   {**multi, "ignore_index": 7, "reduction": "none", "style": "smp"}),
            Sample("none monai", (logits(2, 3, 4, 5), labels(2, 3, 4, 5)), {**multi, "reduction": "none", "style": "monai"}),
            Sample("sum", (logits(2, 3, 4, 5), labels(2, 3, 4, 5)), {**multi, "reduction": "sum"}),
            Sample("monai log", (logits(2, 3, 4, 5), labels(2, 3, 4, 5)), {**many, "style": "monai", "log_loss": True}),
            Sample("monai pooled", (logits(3, 2, 4, 5), labels(3, 2, 4, 5)), {**many, "style": "monai", "batch_dice": True}),
            Sample("per sample smp", (logits(3, 2, 4, 5), soft(3, 2, 4, 5)),
                   {**many, "style": "smp", "batch_dice": False, "log_loss": True}),
            Sample("dice alone", (logits(2, 1, 5, 7), labels(2, 5, 7)), {"bce_weight": 0.0}),
            Sample("bce alone", (logits(2, 1, 5, 7), labels(2, 5, 7)), {"dice_weight": 0.0}),
            Sample("probabilities", (torch.sigmoid(logits(2, 1, 5, 7).float()).to(dtype).clamp(0.02, 0.98), labels(2, 5, 7)),
                   {"from_logits": False, "pos_weight": 2.0}),
        ]  # fmt: skip

    def _compare(self, actual, expected, peer, what):
        # The oracle of float64 is float64 too: its own rounding is part of the difference.
        floor = 16.0 if actual.dtype == torch.float64 else 2.0
        assert_close_as_torch(actual, expected, peer, what, floor)

    # -- values -----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("shape", [(4, 1, 64, 64), (2, 1, 37, 53)])
    @pytest.mark.parametrize("pos_weight", [None, 2.5])
    def test_sum_of_the_two_losses(self, shape, pos_weight):
        logits = torch.randn(shape) * 4
        target = (torch.rand(shape) > 0.7).float()
        weight = None if pos_weight is None else torch.tensor(pos_weight)
        expected = value_and_grad(written_out, logits, target, pos_weight=weight)
        for kind in (torch.float32, torch.uint8, torch.int32, torch.int64, torch.bool):
            actual = value_and_grad(dice_bce_loss, logits, target.to(kind), pos_weight=pos_weight)
            assert_same(actual, expected)
        assert_same(value_and_grad(DiceBCELoss(pos_weight=pos_weight), logits, target), expected)

    @pytest.mark.parametrize("soft", [False, True])
    @pytest.mark.parametrize("log_loss", [False, True])
    def test_smp_formula(self, soft, log_loss):
        def smp(logits, target, smooth, eps=1e-7):
            p, dims = F.logsigmoid(logits).exp(), (0, 2, 3)
            total = p.sum(dims) + target.sum(dims)
            intersection = (total - (p - target).abs().sum(dims)) / 2
            score = (intersection + smooth) / (total / 2 + smooth).clamp_min(eps)
            loss = -score.clamp_min(eps).log() if log_loss else 1 - score
            dice = (loss * (target.sum(dims) > 0)).mean()
            return dice + F.binary_cross_entropy_with_logits(logits, target)

        logits, target = torch.randn(3, 4, 9, 10) * 2, torch.rand(3, 4, 9, 10)
        target = target if soft else target.round()
        target[:, 2] = 0
        for smooth in (0.0, 1.0):
            actual = value_and_grad(dice_bce_loss, logits, target, 1.0, 1.0, smooth, mode="multilabel", style="smp",
                                    log_loss=log_loss)  # fmt: skip
            assert_same(actual, value_and_grad(smp, logits, target, smooth))

    @pytest.mark.parametrize("batch", [False, True])
    def test_monai_formula(self, batch):
        def monai(logits, target, smooth, include_background):
            p, dims = torch.sigmoid(logits), (0, 2, 3) if batch else (2, 3)
            bce = F.binary_cross_entropy_with_logits(logits, target)
            if not include_background:
                p, target = p[:, 1:], target[:, 1:]
            score = (2 * (p * target).sum(dims) + smooth) / (p.sum(dims) + target.sum(dims) + smooth)
            return (1 - score).mean() + bce

        logits, target = torch.randn(3, 4, 9, 10) * 2, (torch.rand(3, 4, 9, 10) > 0.6).float()
        for background in (True, False):
            actual = value_and_grad(dice_bce_loss, logits, target, 1.0, 1.0, 1e-5, mode="multilabel", style="monai",
                                    batch_dice=batch, include_background=background)  # fmt: skip
            assert_same(actual, value_and_grad(monai, logits, target, 1e-5, background))

    @pytest.mark.skipif(importlib.util.find_spec("segmentation_models_pytorch") is None, reason="SMP is not installed")
    @pytest.mark.parametrize("ignore_index", [None, 255])
    @pytest.mark.parametrize("log_loss", [False, True])
    def test_smp_itself(self, ignore_index, log_loss):
        from segmentation_models_pytorch.losses import DiceLoss

        logits, target = torch.randn(3, 4, 9, 10) * 2, (torch.rand(3, 4, 9, 10) > 0.6).long()
        target[:, 3] = 0
        if ignore_index is not None:
            target[torch.rand(target.shape) < 0.2] = ignore_index
        for mode, weights in (("binary", None), ("multilabel", None), ("multilabel", [1.0, 0.5, 3.0, 2.0])):
            x, t = (logits, target) if mode == "multilabel" else (logits[:, :1], target[:, 0])
            theirs = DiceLoss(mode, log_loss=log_loss, smooth=0.5, ignore_index=ignore_index, class_weights=weights)
            ours = DiceBCELoss(1.0, 0.0, 0.5, None, ignore_index, mode=mode, style="smp", log_loss=log_loss,
                               class_weights=weights)  # fmt: skip
            # In float64: SMP's float32 loses digits in P + T - |p - t|.
            expected = value_and_grad(theirs, x.double(), t)
            assert_same(value_and_grad(ours, x, t), expected)
            assert_same(value_and_grad(ours, x.double(), t), expected, 1e-12)

    @pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="MONAI is not installed")
    @pytest.mark.parametrize("batch", [False, True])
    def test_monai_itself(self, batch):
        from monai.losses import DiceCELoss, DiceLoss

        logits, target = torch.randn(3, 4, 9, 10) * 2, (torch.rand(3, 4, 9, 10) > 0.6).float()
        options = {"sigmoid": True, "batch": batch, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
        theirs = DiceLoss(weight=[1.0, 0.5, 3.0, 2.0], **options)
        ours = DiceBCELoss(1.0, 0.0, 1e-5, mode="multilabel", style="monai", batch_dice=batch,
                           class_weights=[1.0, 0.5, 3.0, 2.0])  # fmt: skip
        assert_same(value_and_grad(ours, logits, target), value_and_grad(theirs, logits, target))
        ours = DiceBCELoss(0.5, 2.0, 1e-5, style="monai", batch_dice=batch)
        theirs = DiceCELoss(lambda_dice=0.5, lambda_ce=2.0, **options)
        x, t = logits[:, :1], target[:, :1]
        assert_same(value_and_grad(ours, x, t), value_and_grad(theirs, x, t))

    def test_ignored_pixels_are_as_if_absent(self):
        logits, target = torch.randn(2, 1, 16, 20), torch.randint(0, 2, (2, 16, 20))
        cut = target.clone()
        cut[:, :, 12:] = 255
        logits[:, :, :, 12:] = float("nan")
        expected = value_and_grad(dice_bce_loss, logits[..., :12], target[..., :12])
        for kind in (torch.uint8, torch.int32, torch.int64, torch.float32):
            loss, grad = value_and_grad(dice_bce_loss, logits, cut.to(kind), ignore_index=255)
            torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
            torch.testing.assert_close(grad[..., :12], expected[1], rtol=1e-5, atol=1e-9)
            assert torch.equal(grad[..., 12:], torch.zeros(2, 1, 16, 8))

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("style", ["lecture", "smp", "monai"])
    def test_all_ignored(self, reduction, style, tier):
        logits = torch.randn(2, 1, 9, 10, device=tier[0])
        target = torch.full((2, 9, 10), 255, device=tier[0])
        with segkernels.backend(tier[1]):
            for smooth in (0.0, 1.0):
                loss, grad = value_and_grad(dice_bce_loss, logits, target, 1.0, 1.0, smooth, None, 255, reduction, style=style)
                assert not loss.any() and not grad.any()

    @pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4), (2, 0, 4, 4)])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_empty(self, shape, reduction, tier):
        logits = torch.randn(shape, device=tier[0])
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(dice_bce_loss, logits, logits.round(), reduction=reduction, mode="multilabel")
        assert loss.shape == (shape if reduction == "none" else ()) and not loss.any()
        assert grad.shape == shape

    def test_extreme_logits(self, tier, dtype):
        """No overflow, no NaN: +-1e4 are certain and right, or cost 1e4."""
        logits = torch.tensor([1e4, -1e4, 1e4, -1e4, 60.0, -60.0], dtype=dtype, device=tier[0]).reshape(1, 1, 1, 6)
        right = torch.tensor([1, 0, 1, 0, 1, 0], device=tier[0]).reshape(1, 1, 6)
        with segkernels.backend(tier[1]):
            loss, grad = value_and_grad(dice_bce_loss, logits, right)
            assert loss.item() < 1e-6 and not grad.isnan().any() and grad.abs().max() < 1e-6
            loss, grad = value_and_grad(dice_bce_loss, logits, 1 - right)
        cost = (logits.double().abs().sum() / 6 + 6 / 7).item()
        assert loss.item() == pytest.approx(cost, rel=1e-6)
        assert grad.double().sign().flatten().tolist() == [1, -1] * 3

    def test_nan_logits_propagate(self, tier):
        logits = torch.randn(2, 1, 30, 40, device=tier[0])
        logits[1, 0, 3, 5] = float("nan")
        with segkernels.backend(tier[1]):
            for options in ({}, {"style": "smp"}, {"bce_weight": 0.0}, {"dice_weight": 0.0}, {"reduction": "sum"}):
                loss, grad = value_and_grad(dice_bce_loss, logits, torch.ones(2, 30, 40, device=tier[0]), **options)
                assert loss.isnan() and grad[1, 0, 3, 5].isnan()

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_half_sums_do_not_overflow(self, half):
        logits = torch.full((1, 1, 512, 512), 9.0, dtype=half)
        loss = dice_bce_loss(logits, torch.zeros(1, 512, 512, dtype=torch.uint8), reduction="sum")
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(512 * 512 * 9.000123 + 1, rel=1e-6)

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_half_conversions(self, half):
        """Every finite half goes in exactly, and gradients come out rounded as torch rounds."""
        bits = torch.arange(-(2**15), 2**15).to(torch.int16)
        values = bits.view(half)
        values = values[values.isfinite() & (values.abs() < 1e4)].reshape(1, 1, 1, -1)
        target = torch.zeros(values.shape, dtype=torch.uint8)
        options = {"reduction": "none", "dice_weight": 0.0}
        loss, grad = value_and_grad(dice_bce_loss, values, target, **options)
        full, full_grad = value_and_grad(dice_bce_loss, values.float(), target, **options)
        assert torch.equal(loss, full)
        assert torch.equal(grad, full_grad.to(half))

    def test_elementary_functions(self):
        """softplus and sigmoid of the kernels, in units in the last place of the exact value."""
        x = torch.cat([torch.linspace(-80, 80, 400_001), torch.randn(100_000), torch.randn(100_000) * 1e-3])[None, None, None]
        options = {"reduction": "none", "dice_weight": 0.0}
        for label in (0, 1):
            target = torch.full(x.shape, label)
            loss, grad = value_and_grad(dice_bce_loss, x, target, **options)
            sign = 1 - 2 * label
            for actual, exact in ((loss, F.softplus(x.double() * sign)), (grad, sign * torch.sigmoid(x.double() * sign))):
                ulp = torch.abs(torch.nextafter(exact.float(), torch.tensor(float("inf"))) - exact.float()).double()
                assert ((actual.double() - exact).abs() / ulp).max() < 3

    def test_nothing_of_full_size_is_saved(self):
        logits = torch.randn(4, 1, 64, 64, requires_grad=True)
        target = torch.randint(0, 2, (4, 64, 64))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            dice_bce_loss(logits, target)
        own = {t.data_ptr() for t in (logits, target)}
        assert sum(t.numel() for t in saved if t.data_ptr() not in own) <= 4 * 5

    def test_module(self):
        module = DiceBCELoss(0.5, 2.0, 1.0, [2.0, 3.0], 255, "sum", mode="multilabel", class_weights=[1.0, 4.0])
        assert set(module.state_dict()) == {"pos_weight", "class_weights"}
        assert "dice_weight=0.5" in repr(module) and not DiceBCELoss().state_dict()
        logits, target = torch.randn(2, 2, 5, 6), torch.randint(0, 2, (2, 2, 5, 6))
        expected = dice_bce_loss(logits, target, 0.5, 2.0, 1.0, [2.0, 3.0], 255, "sum", mode="multilabel",
                                 class_weights=[1.0, 4.0])  # fmt: skip
        assert torch.equal(module(logits, target), expected)

    # -- bad input --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
    @pytest.mark.parametrize("label", [2, 255, -1, 2**31, 2**32 + 1, -(2**63)])
    def test_label_outside(self, kind, label, tier):
        if not torch.iinfo(kind).min <= label <= torch.iinfo(kind).max:
            pytest.skip("the dtype cannot hold it")
        target = torch.zeros(2, 33, 34, dtype=kind, device=tier[0])
        target[1, 20, 7] = label
        logits = torch.randn(2, 1, 33, 34, device=tier[0])
        with segkernels.backend(tier[1]):
            if tier[1] in NO_SYNC:
                assert dice_bce_loss(logits, target).isnan()
                assert dice_bce_loss(logits, target, ignore_index=label).isfinite()
                return
            with pytest.raises(RuntimeError, match="expected labels 0 and 1 in target, found another"):
                dice_bce_loss(logits, target)
            with pytest.raises(RuntimeError, match="ignore_index"):
                dice_bce_loss(logits, target, ignore_index=7)
            assert dice_bce_loss(logits, target, ignore_index=label).isfinite()

    def test_probability_outside(self, tier):
        outside = torch.full((1, 1, 2, 2), 1.5, device=tier[0]), torch.ones(1, 2, 2, device=tier[0])
        with segkernels.backend(tier[1]):
            if tier[1] in NO_SYNC:
                assert dice_bce_loss(*outside, from_logits=False).isnan()
                return
            with pytest.raises(RuntimeError, match=r"probabilities in \[0, 1\]"):
                dice_bce_loss(*outside, from_logits=False)

    X = torch.randn(2, 1, 3, 4)
    T = torch.zeros(2, 3, 4, dtype=torch.int64)

    @pytest.mark.parametrize(
        ("args", "kwargs", "error", "match"),
        [
            ((T, T), {}, TypeError, "input: expected float32"),
            ((X, T.to(torch.int16)), {}, TypeError, "target: expected uint8"),
            ((X, None), {}, TypeError, "target: expected a Tensor"),
            ((X, T[:, :2]), {}, ValueError, r"target: expected \[N, 1, H, W\] or \[N, H, W\]"),
            ((X, T[:1]), {}, ValueError, r"got shape \[1, 3, 4\]"),
            ((X.expand(2, 3, 3, 4), T), {}, ValueError, "input: expected .* mode='binary'"),
            ((X[0, 0], T[0]), {}, ValueError, "input: expected"),
            ((X, T), {"mode": "multilabel"}, ValueError, "target: expected the shape of input"),
            ((X[:, 0], T), {"mode": "multilabel"}, ValueError, r"input: expected \[N, C, H, W\]"),
            ((X, T), {"mode": "multiclass"}, ValueError, "dice_ce_loss"),
            ((X, T), {"mode": "ternary"}, ValueError, "mode"),
            ((X, T), {"reduction": "median"}, ValueError, "reduction: expected one of 'none', 'mean', 'sum', got 'median'"),
            ((X, T), {"style": "keras"}, ValueError, "style"),
            ((X, T), {"pos_weight": [1.0, 2.0]}, ValueError, "pos_weight: expected one value or 1"),
            ((X, T), {"class_weights": torch.ones(3)}, ValueError, "class_weights"),
            ((X, T.to("meta")), {}, ValueError, "input and target: expected one device"),
            ((X, T), {"pos_weight": torch.ones(1, device="meta")}, ValueError, "input and pos_weight: expected one device"),
        ],
    )  # fmt: skip
    def test_bad_input(self, args, kwargs, error, match):
        with pytest.raises(error, match=match):
            dice_bce_loss(*args, **kwargs)

    def test_bad_module_arguments(self):
        for options in ({"mode": "multiclass"}, {"style": "x"}, {"reduction": "x"}):
            with pytest.raises(ValueError, match=next(iter(options))):
                DiceBCELoss(**options)

    def test_target_has_no_gradient(self):
        logits, target = torch.randn(1, 1, 3, 3, requires_grad=True), torch.rand(1, 1, 3, 3, requires_grad=True)
        with pytest.raises(RuntimeError, match="target, pos_weight and class_weights have no gradient"):
            dice_bce_loss(logits, target).backward()
