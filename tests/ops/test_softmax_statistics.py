from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_test import INTERPRETED, NO_SYNC, OpTest, Sample, assert_close_as_torch

import segkernels
from segkernels import losses
from segkernels.losses import (
    CrossEntropyLoss,
    DiceCELoss,
    DiceLoss,
    FocalLoss,
    JaccardLoss,
    TverskyLoss,
    UpsampleCrossEntropyLoss,
    UpsampleDiceCELoss,
    UpsampleDiceLoss,
    UpsampleFocalLoss,
    UpsampleJaccardLoss,
    UpsampleTverskyLoss,
    cross_entropy_loss,
    dice_ce_loss,
    dice_loss,
    focal_loss,
    tversky_loss,
    upsample_cross_entropy_loss,
)

NAMES = ("cross_entropy", "dice_ce", "dice", "jaccard", "tversky", "focal")
# Every loss is one or both of these to the kernels.
TIER_NAMES = ("dice_ce", "focal") if INTERPRETED else NAMES
RESIZED = [((9, 10), (14, 23))] if INTERPRETED else [((9, 13), (33, 50)), ((2, 40), (3, 300))]
MODULES = (
    CrossEntropyLoss, DiceCELoss, DiceLoss, JaccardLoss, TverskyLoss, FocalLoss, UpsampleCrossEntropyLoss, UpsampleDiceCELoss,
    UpsampleDiceLoss, UpsampleFocalLoss, UpsampleJaccardLoss, UpsampleTverskyLoss,
)  # fmt: skip


def loss(input, target, name, upsample=False, **options):
    return getattr(losses, f"{'upsample_' if upsample else ''}{name}_loss")(input, target, **options)


def written_out(
    input, target, name, upsample=False, align_corners=False, class_weights=None, ignore_index=None, reduction="mean",
    label_smoothing=0.0, alpha=None, beta=0.5, gamma=None, smooth=1.0,
):  # fmt: skip
    """Textbook formulas in torch ops: style lecture, pooled over the batch."""
    x = input if input.dtype == torch.float64 else input.float()
    if upsample:
        x = F.interpolate(x, size=target.shape[1:], mode="bilinear", align_corners=align_corners)
    classes = x.shape[1]
    weights = torch.ones(classes) if class_weights is None else torch.as_tensor(class_weights)
    weights = weights.to(x)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    labels = target.long().masked_fill(~valid, 0)
    x = torch.where(valid[:, None], x, 0.0)
    logs = torch.log_softmax(x, 1)
    p = logs.exp() * valid[:, None]
    t = F.one_hot(labels, classes).movedim(3, 1) * valid[:, None]
    if name in ("cross_entropy", "dice_ce", "focal"):
        log_t = (logs * t).sum(1)
        if name == "focal":
            factor = torch.ones_like(weights) if alpha is None else torch.full_like(weights, alpha)
            if alpha is not None:
                factor[0] = 1 - alpha
            weights = weights * factor
            ce = -weights[labels] * valid * (1 - log_t.exp()) ** (2.0 if gamma is None else gamma) * log_t
        else:
            ce = -(1 - label_smoothing) * weights[labels] * valid * log_t
            ce = ce - label_smoothing / classes * (weights.reshape(1, -1, 1, 1) * logs).sum(1) * valid
        if reduction == "none" and name != "dice_ce":
            return ce
        count = valid.sum() if name == "focal" else (weights[labels] * valid).sum()
        pixel = ce.sum() if reduction == "sum" else ce.sum() / torch.where(count == 0, 1, count)
        if name != "dice_ce":
            return pixel
        weights = torch.ones(classes).to(x) if class_weights is None else torch.as_tensor(class_weights).to(x)
    dims = (0, 2, 3)
    i, fp, fn = (p * t).sum(dims), (p * (1 - t)).sum(dims), ((1 - p) * t).sum(dims)
    if name in ("dice", "dice_ce"):
        score = (2 * i + smooth) / (2 * i + fp + fn + smooth)
    elif name == "jaccard":
        score = (i + smooth) / (i + fp + fn + smooth)
    else:
        score = (i + smooth) / (i + (0.5 if alpha is None else alpha) * fp + beta * fn + smooth)
    region = (1 - score) * valid.any()
    if name == "tversky" and gamma is not None:
        region = region**gamma
    region = region * weights
    if name == "dice_ce" and reduction == "none":
        return torch.where(valid, ce + region.sum() / weights.sum(), 0.0)
    region = region if reduction == "none" else region.sum() / (1 if reduction == "sum" else weights.sum())
    return region + pixel if name == "dice_ce" else region


def value_and_grad(function, logits, *args, **kwargs):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def assert_same(actual, expected, tolerance=1e-6):
    """Values to `tolerance`, gradients to `tolerance` of the largest one."""
    assert (actual[0] - expected[0]).abs().max().item() <= tolerance * max(1.0, expected[0].abs().max().item())
    assert (actual[1] - expected[1]).abs().max().item() <= tolerance * expected[1].abs().max().item()


class TestSoftmaxStatistics(OpTest):
    op = "softmax_statistics"
    function = staticmethod(loss)
    oracle = staticmethod(written_out)
    gradcheck_samples = ("dice_ce", "cross_entropy all", "focal", "tversky", "upsampled dice_ce", "upsampled focal corners")
    not_interpreted = ("many blocks", "upsampled cross_entropy")

    def samples(self, device, dtype):
        def logits(*shape):
            return (torch.randn(shape, device=device) * 3).to(dtype)

        def labels(classes, *shape, kind=torch.int64, ignore=None):
            target = torch.randint(0, classes, shape, device=device)
            if ignore is not None:
                target[torch.rand(shape, device=device) < 0.3] = ignore
            return target.to(kind)

        def last(tensor):
            return tensor.contiguous(memory_format=torch.channels_last)

        def weights(classes):
            return torch.linspace(0.5, 2.0, classes).tolist()

        up = {"upsample": True}
        return [
            Sample("dice_ce", (logits(2, 3, 2, 4), labels(3, 2, 2, 4)), {"name": "dice_ce"}),
            Sample("cross_entropy all", (logits(2, 3, 2, 4), labels(3, 2, 2, 4, ignore=255)),
                   {"name": "cross_entropy", "class_weights": weights(3), "ignore_index": 255, "label_smoothing": 0.1}),
            Sample("cross_entropy map", (last(logits(2, 4, 5, 7)), labels(4, 2, 5, 7, kind=torch.uint8, ignore=255)),
                   {"name": "cross_entropy", "ignore_index": 255, "reduction": "none"}),
            Sample("many blocks", (logits(2, 21, 50, 101), labels(21, 2, 50, 101, kind=torch.int32)), {"name": "dice_ce"}),
            Sample("blocks of classes", (logits(1, 9, 20, 60), labels(9, 1, 20, 60)),
                   {"name": "dice_ce", "class_weights": weights(9), "label_smoothing": 0.2}),
            Sample("dice_ce map", (logits(2, 4, 5, 7), labels(4, 2, 5, 7, ignore=-1)),
                   {"name": "dice_ce", "ignore_index": -1, "reduction": "none", "class_weights": weights(4)}),
            Sample("dice", (logits(2, 4, 9, 8), labels(4, 2, 9, 8)), {"name": "dice", "class_weights": weights(4)}),
            Sample("jaccard", (logits(2, 4, 9, 8), labels(4, 2, 9, 8)), {"name": "jaccard", "reduction": "none"}),
            Sample("tversky", (logits(2, 3, 2, 5), labels(3, 2, 2, 5)),
                   {"name": "tversky", "alpha": 0.3, "beta": 0.7, "gamma": 0.75}),
            Sample("focal", (logits(2, 3, 2, 5), labels(3, 2, 2, 5, ignore=255)),
                   {"name": "focal", "alpha": 0.25, "gamma": 1.5, "ignore_index": 255}),
            Sample("focal 0", (logits(2, 3, 4, 7), labels(3, 2, 4, 7)), {"name": "focal", "gamma": 0.0, "reduction": "sum"}),
            Sample("upsampled dice_ce", (logits(1, 3, 2, 3), labels(3, 1, 5, 7)), {"name": "dice_ce", **up}),
            Sample("upsampled cross_entropy", (logits(2, 19, 20, 17), labels(19, 2, 80, 68, ignore=255)),
                   {"name": "cross_entropy", "ignore_index": 255, "class_weights": weights(19), "label_smoothing": 0.1, **up}),
            Sample("upsampled focal corners", (last(logits(1, 3, 3, 2)), labels(3, 1, 7, 5, ignore=255)),
                   {"name": "focal", "ignore_index": 255, "align_corners": True, "reduction": "none", **up}),
            Sample("upsampled wide", (logits(1, 5, 1, 2), labels(5, 1, 4, 600)), {"name": "dice", **up}),
        ]  # fmt: skip

    def _compare(self, actual, expected, peer, what):
        # Rounding of float64 and of the interpolation is part of the difference.
        assert_close_as_torch(actual, expected, peer, what, 64.0 if actual.dtype == torch.float64 else 4.0)

    # -- values -----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("align_corners", [False, True])
    @pytest.mark.parametrize("small, large", RESIZED)
    @pytest.mark.parametrize("name", TIER_NAMES[:1] if INTERPRETED else NAMES)
    def test_upsampled_is_interpolated(self, name, small, large, align_corners, tier):
        logits, target = torch.randn(2, 6, *small, dtype=torch.float64), torch.randint(0, 6, (2, *large))
        with segkernels.backend(tier[1]):
            actual = value_and_grad(loss, logits, target, name, upsample=True, align_corners=align_corners)
        expected = value_and_grad(
            lambda x: loss(F.interpolate(x, size=large, mode="bilinear", align_corners=align_corners), target, name), logits
        )
        assert_same(actual, expected, 1e-12)

    def test_cross_entropy_itself(self):
        logits, target = torch.randn(2, 7, 20, 30) * 4, torch.randint(0, 7, (2, 20, 30))
        target[0, :4] = 255
        for weights in (None, torch.rand(7)):
            for reduction in ("mean", "sum", "none"):
                for smoothing in (0.0, 0.2):
                    options = {"ignore_index": 255, "reduction": reduction, "label_smoothing": smoothing}
                    expected = value_and_grad(F.cross_entropy, logits, target, weights, **options)
                    assert_same(value_and_grad(cross_entropy_loss, logits, target, weights, **options), expected, 2e-6)
                    assert_same(value_and_grad(CrossEntropyLoss(weights, **options), logits, target), expected, 2e-6)

    @pytest.mark.parametrize("ignore_index", [None, 255])
    @pytest.mark.parametrize("log_loss", [False, True])
    def test_smp_itself(self, ignore_index, log_loss):
        smp = pytest.importorskip("segmentation_models_pytorch.losses")
        logits, target = torch.randn(3, 5, 9, 10) * 2, torch.randint(0, 4, (3, 9, 10))
        if ignore_index is not None:
            target[torch.rand(target.shape) < 0.2] = ignore_index
        for weights in (None, [1.0, 0.5, 3.0, 2.0, 1.0]):
            theirs = {"log_loss": log_loss, "smooth": 0.5, "ignore_index": ignore_index, "class_weights": weights}
            ours = {**theirs, "style": "smp"}
            tversky = {"alpha": 0.3, "beta": 0.7, "gamma": 1.5}
            for a, b in (
                (DiceLoss(**ours), smp.DiceLoss("multiclass", **theirs)),
                (JaccardLoss(**ours), smp.JaccardLoss("multiclass", **theirs)),
                (TverskyLoss(**tversky, **ours), smp.TverskyLoss("multiclass", **tversky, **theirs)),
            ):
                # In float64: SMP's float32 loses digits in P + T - |p - t|.
                expected = value_and_grad(b, logits.double(), target)
                assert_same(value_and_grad(a, logits, target), expected)
                assert_same(value_and_grad(a, logits.double(), target), expected, 1e-12)

    @pytest.mark.parametrize("background", [True, False])
    @pytest.mark.parametrize("batch", [False, True])
    def test_monai_itself(self, batch, background):
        monai = pytest.importorskip("monai.losses")
        logits, target = torch.randn(3, 5, 9, 10) * 2, torch.randint(0, 4, (3, 9, 10))
        theirs = {"softmax": True, "to_onehot_y": True, "batch": batch, "include_background": background}
        ours = {"style": "monai", "batch_dice": batch, "include_background": background, "smooth": 1e-5}
        weights = [1.0, 0.5, 3.0, 2.0, 1.0]
        used = weights if background else weights[1:]
        for a, b in (
            (DiceLoss(**ours), monai.DiceLoss(**theirs)),
            (DiceLoss(**ours, class_weights=weights), monai.DiceLoss(**theirs, weight=used)),
            (JaccardLoss(**ours), monai.DiceLoss(**theirs, jaccard=True)),
            (TverskyLoss(0.3, 0.7, **ours), monai.TverskyLoss(**theirs, alpha=0.3, beta=0.7)),
            (DiceCELoss(0.5, 2.0, **ours), monai.DiceCELoss(**theirs, lambda_dice=0.5, lambda_ce=2.0)),
        ):
            expected = value_and_grad(lambda x, b=b: b(x, target[:, None]), logits.double())
            assert_same(value_and_grad(a, logits, target), expected)

    def test_monai_focal(self):
        monai = pytest.importorskip("monai.losses")
        logits, target = torch.randn(3, 5, 9, 10) * 2, torch.randint(0, 5, (3, 9, 10))
        for alpha in (None, 0.25):
            theirs = monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0, alpha=alpha)
            # Its mean counts the classes, too.
            expected = value_and_grad(lambda x, f=theirs: f(x, target[:, None]) * 5, logits)
            assert_same(value_and_grad(FocalLoss(alpha, 2.0), logits, target), expected, 2e-6)

    # -- limits -----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("upsample", [False, True])
    @pytest.mark.parametrize("name", TIER_NAMES)
    def test_ignored_pixels(self, name, upsample, tier):
        """Nothing of an ignored pixel counts, NaN neither; all ignored: 0."""
        logits, target = torch.randn(2, 4, 8, 10), torch.randint(0, 4, (2, 16, 20) if upsample else (2, 8, 10))
        gamma = {"gamma": 0.5} if name in ("tversky", "focal") else {}
        with segkernels.backend(tier[1]):
            for smooth in ({}, {"smooth": 0.0}) if name not in ("cross_entropy", "focal") and not INTERPRETED else ({},):
                value, grad = value_and_grad(loss, logits, torch.full_like(target, 255), name, upsample, ignore_index=255,
                                             **gamma, **smooth)  # fmt: skip
                assert value.item() == 0 and not grad.any()
            logits[0] = float("nan")
            target[0] = 255
            actual = value_and_grad(loss, logits, target, name, upsample, ignore_index=255, **gamma)
            expected = value_and_grad(loss, logits[1:], target[1:], name, upsample, **gamma)
        assert_same((actual[0], actual[1][1:]), expected)
        assert not actual[1][0].any()

    @pytest.mark.parametrize("upsample", [False, True])
    @pytest.mark.parametrize("name", TIER_NAMES)
    def test_nan_logits_propagate(self, name, upsample, tier):
        logits, target = torch.randn(2, 4, 8, 10), torch.randint(0, 4, (2, 16, 20) if upsample else (2, 8, 10))
        logits[1, 2, 3, 4] = float("nan")
        with segkernels.backend(tier[1]):
            value, grad = value_and_grad(loss, logits, target, name, upsample)
        assert value.isnan() and grad[1, :, 3, 4].isnan().all()

    @pytest.mark.parametrize("upsample", [False, True])
    @pytest.mark.parametrize("name", TIER_NAMES)
    def test_extreme_logits(self, name, upsample, tier, dtype):
        """+-1e4 are certain and right, or wrong, without overflow."""
        target = torch.randint(0, 3, (2, 6, 7))
        logits = (F.one_hot(target, 3).movedim(3, 1) * 2e4 - 1e4).to(dtype)
        with segkernels.backend(tier[1]):
            right, grad = value_and_grad(loss, logits, target, name, upsample)
            assert right.item() < 1e-6 and not grad.isnan().any()
            wrong, grad = value_and_grad(loss, logits, (target + 1) % 3, name, upsample)
            assert not grad.isnan().any()
        if name in ("cross_entropy", "focal"):
            assert wrong.item() == pytest.approx(logits[logits > 0].double().mean().item() * 2, rel=1e-6)

    @pytest.mark.parametrize("upsample", [False, True])
    @pytest.mark.parametrize(
        "classes, layout", [(150, torch.contiguous_format), (400, torch.channels_last), (3300, torch.contiguous_format)]
    )
    def test_many_classes(self, classes, layout, upsample, tier):
        """The GPU's tiles hold fewer pixels then, and in the end none."""
        if tier[1] == "triton" and (classes > 150 or INTERPRETED):
            pytest.skip("Triton keeps no tile; a sample has more classes than it reads at once")
        logits = torch.randn(1, classes, 2, 3, dtype=torch.float16)
        target = torch.randint(0, classes, (1, 3, 5) if upsample else (1, 2, 3))
        options = {"class_weights": torch.rand(classes)}
        values = logits.contiguous(memory_format=layout)
        name = "dice_ce" if classes < 3000 else "cross_entropy"
        with segkernels.backend(tier[1]):
            actual = value_and_grad(loss, values, target, name, upsample, **options)
        assert_same(actual, value_and_grad(written_out, logits.double(), target, name, upsample, **options), 1e-3)

    @pytest.mark.parametrize("size", [(4, 7), (9, 10)])
    def test_one_class(self, size, tier):
        with segkernels.backend(tier[1]):
            value, grad = value_and_grad(loss, torch.randn(2, 1, 4, 7), torch.zeros(2, *size).long(), "dice_ce", True)
        assert value.item() == 0 and grad.abs().max() < 1e-7

    def test_absent_classes(self):
        logits, target = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
        assert dice_loss(logits, target, 0.0, reduction="none", style="smp")[1:].tolist() == [0, 0]
        assert dice_loss(logits, target, 0.0, reduction="none")[1:].tolist() == [1, 1]

    @pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
    @pytest.mark.parametrize("name", TIER_NAMES)
    def test_empty(self, shape, name, tier):
        logits, target = torch.randn(shape), torch.zeros((shape[0], *shape[2:]), dtype=torch.int64)
        with segkernels.backend(tier[1]):
            value, grad = value_and_grad(loss, logits, target, name)
        assert value.item() == 0 and grad.shape == shape

    def test_half_types_do_not_overflow(self):
        logits, target = torch.zeros(1, 2, 400, 400, dtype=torch.float16), torch.zeros(1, 400, 400, dtype=torch.uint8)
        value = cross_entropy_loss(logits, target, reduction="sum")
        assert value.dtype == torch.float32 and value.item() == pytest.approx(160000 * 0.6931472, rel=1e-6)

    def test_dice_ce_map_of_samples(self):
        logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
        actual = dice_ce_loss(logits, target, reduction="none", style="monai")
        for n in range(2):
            expected = dice_ce_loss(logits[n : n + 1], target[n : n + 1], style="monai")
            torch.testing.assert_close(actual[n].mean(), expected)

    # -- errors -----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("label", [-1, 3, 2**32])
    @pytest.mark.parametrize("size", [(4, 5), (8, 10)])
    def test_wrong_label(self, label, size, tier):
        logits, target = torch.randn(2, 3, 4, 5), torch.zeros(2, *size, dtype=torch.int64)
        target[1, 2, 3] = label
        with segkernels.backend(tier[1]):
            if tier[1] in NO_SYNC:
                for name in TIER_NAMES[:1] if INTERPRETED else NAMES:
                    value, grad = value_and_grad(loss, logits, target, name, True)
                    assert value.isnan() and grad[1, :, 2 * 4 // size[0], 3 * 5 // size[1]].isnan().all(), name
                return
            with pytest.raises(RuntimeError, match=r"expected labels in \[0, 3\) in target, found another"):
                upsample_cross_entropy_loss(logits, target)

    @pytest.mark.parametrize(
        "function, args, options, error, match",
        [
            (cross_entropy_loss, (torch.ones(2, 3, 4, 4), torch.ones(2, 4, 4)), {}, TypeError, "target: expected labels"),
            (cross_entropy_loss, (torch.ones(2, 3, 4, 4), [1]), {}, TypeError, "target: expected a Tensor"),
            (cross_entropy_loss, ("X", "T"), {"reduction": "x"}, ValueError, "reduction"),
            (cross_entropy_loss, ("X", "T"), {"class_weights": [1.0, 2.0]}, ValueError, "class_weights: expected one"),
            (cross_entropy_loss, ("X", "T"), {"label_smoothing": 1.5}, ValueError, "label_smoothing"),
            (cross_entropy_loss, ("X", torch.zeros(2, 1, 4, 4).long()), {}, ValueError, "target: expected labels"),
            (cross_entropy_loss, ("X", torch.zeros(2, 8, 8).long()), {}, ValueError, "Upsample"),
            (upsample_cross_entropy_loss, ("X", torch.zeros(2, 3, 8).long()), {}, ValueError, "at least as large"),
            (dice_loss, ("X", "T"), {"mode": "ternary"}, ValueError, "mode"),
            (dice_loss, ("X", "T"), {"style": "x"}, ValueError, "style"),
            (dice_loss, ("X", "T"), {"from_logits": False}, ValueError, "from_logits"),
            (focal_loss, ("X", "T"), {"gamma": -1.0}, ValueError, "gamma"),
            (tversky_loss, (torch.ones(3, 4, 4), "T"), {}, ValueError, "input: expected"),
            (dice_loss, (torch.ones(2, 3, 4, 4, dtype=torch.int64), "T"), {}, TypeError, "input: expected float32"),
        ],
    )  # fmt: skip
    def test_bad_input(self, function, args, options, error, match):
        named = {"X": torch.zeros(2, 3, 4, 4), "T": torch.zeros(2, 4, 4, dtype=torch.int64)}
        with pytest.raises(error, match=match):
            function(*(named[a] if isinstance(a, str) else a for a in args), **options)

    @pytest.mark.parametrize("module", MODULES)
    def test_modules(self, module):
        instance = module(class_weights=[1.0, 2.0, 0.5], ignore_index=255)
        assert "ignore_index=255" in repr(instance) and list(instance.state_dict()) == ["class_weights"]
        logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
        expected = module.function(logits, target, class_weights=[1.0, 2.0, 0.5], ignore_index=255)
        assert torch.equal(instance(logits, target), expected)
        with pytest.raises(ValueError, match="reduction"):
            module(reduction="x")
        with pytest.raises(TypeError):
            module(nonsense=1)
