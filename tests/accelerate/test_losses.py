"""Losses of torch, SMP and MONAI: the same values and gradients, argument by argument."""

from __future__ import annotations

import copy

import pytest
import torch
from same_results import assert_equal_results, calls, needs_kernels
from torch import nn

import segkernels
from segkernels._accelerate import _losses

pytestmark = needs_kernels

N, C, H, W = 2, 4, 24, 32


def logits(channels=C):
    return 2 * torch.randn(N, channels, H, W)


def labels(classes=C, ignored=None):
    target = torch.randint(0, classes, (N, H, W))
    target[target == classes - 1] = 0  # an absent class
    if ignored is not None:
        target[:, :3] = ignored
    return target


def check(loss, input, target, accelerated=True, rtol=1e-5):
    reference = copy.deepcopy(loss)
    report = segkernels.accelerate(loss)
    assert report[""].after is not None, report[""].reason
    assert bool(calls(loss, input, target)) == accelerated
    assert_equal_results(lambda x: loss(x, target), lambda x: reference(x, target), input, rtol=rtol)
    assert segkernels.restore(loss) >= 1 and type(loss) is type(reference)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(_losses, "_LARGE", 1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy(small, reduction, label_smoothing):
    check(nn.CrossEntropyLoss(reduction=reduction, label_smoothing=label_smoothing), logits(), labels(ignored=-100))
    weight = torch.tensor([0.5, 1, 2, 3])
    loss = nn.CrossEntropyLoss(weight, ignore_index=1, reduction=reduction, label_smoothing=label_smoothing)
    check(loss, logits(), labels())


def test_cross_entropy_elsewhere(small):
    loss = nn.CrossEntropyLoss()
    segkernels.accelerate(loss)
    ignored = torch.full((N, H, W), -100)
    assert loss(logits(), ignored).isnan()
    assert calls(loss, logits(), torch.rand(N, C, H, W)) == set()  # probabilities
    assert calls(loss, torch.randn(2000, C), torch.randint(0, C, (2000,))) == set()
    assert loss(logits().bfloat16(), labels()).dtype == torch.bfloat16
    assert calls(loss, logits().bfloat16(), labels()) == set()
    with torch.autocast("cpu", torch.bfloat16):
        assert calls(loss, logits().bfloat16(), labels()) == {"softmax_statistics"}
        assert loss(logits().bfloat16(), labels()).dtype == torch.float32
    with pytest.raises(RuntimeError):
        loss(logits(), labels()[:, 1:])


def test_small_cross_entropy_is_torchs():
    loss = nn.CrossEntropyLoss()
    segkernels.accelerate(loss)
    assert calls(loss, logits(), labels()) == set()


@pytest.mark.parametrize("name", ["DiceLoss", "JaccardLoss", "TverskyLoss"])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("options", [{}, {"log_loss": True, "smooth": 1.0}, {"ignore_index": 2}], ids=str)
def test_smp_regions(name, mode, options):
    smp = pytest.importorskip("segmentation_models_pytorch")
    if name == "TverskyLoss":
        options = {**options, "alpha": 0.3, "beta": 0.7, "gamma": 1.5}
    loss = getattr(smp.losses, name)(mode, **options)
    channels = {"binary": 8, "multiclass": C, "multilabel": C}[mode]
    if mode == "multiclass":
        return check(loss, logits(), labels(ignored=options.get("ignore_index")))
    input = torch.randn(channels, 1, H, W) if mode == "binary" else logits()
    hard = torch.randint(0, 2, input.shape)
    if "ignore_index" in options:
        hard[:, :, :3] = 2
    check(loss, input, hard.squeeze(1) if mode == "binary" else hard)
    check(loss, input, hard.float())
    if not options.get("ignore_index"):
        check(loss, input, torch.rand(input.shape))


def test_smp_class_weights_and_what_is_kept():
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    check(losses.DiceLoss("multiclass", class_weights=[1, 2, 3, 4]), logits(), labels())
    check(losses.JaccardLoss("multilabel", class_weights=[1, 2, 3, 4]), logits(), torch.randint(0, 2, (N, C, H, W)))
    check(losses.TverskyLoss("multiclass", class_weights=[1, 2, 3, 4], gamma=2.0), logits(), labels())
    for loss, reason in [
        (losses.DiceLoss("multiclass", classes=[0, 1]), "classes"),
        (losses.DiceLoss("multilabel", from_logits=False), "from_logits"),
        (losses.TverskyLoss("multiclass", eps=1e-3), "eps"),
        (losses.JaccardLoss("multiclass", class_weights=[0, 0]), "class_weights"),
        (losses.FocalLoss("multiclass"), "multiclass: a sigmoid"),
        (losses.FocalLoss("binary", normalized=True), "from_logits=False, normalized"),
        (losses.FocalLoss("binary", reduction="none"), "reduction='none'"),
        (losses.FocalLoss("multilabel", ignore_index=3), "ignore_index"),
        (losses.SoftCrossEntropyLoss(), "dim other than 1, or no smooth_factor"),
        (losses.SoftCrossEntropyLoss("none", 0.1), "reduction='none'"),
    ]:
        assert segkernels.accelerate(loss)[""].reason.startswith(reason)
    half = losses.DiceLoss("multiclass")
    segkernels.accelerate(half)
    assert calls(half, logits().bfloat16(), labels()) == set()


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_smp_focal(alpha, reduction):
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    options = {"alpha": alpha, "reduction": reduction, "gamma": 1.5}
    input, target = torch.randn(8, 1, H, W), torch.randint(0, 2, (8, H, W))
    check(losses.FocalLoss("binary", **options), input, target)
    check(losses.FocalLoss("binary", **options), input, target.float(), accelerated=False)
    target[:, :3] = 255
    check(losses.FocalLoss("binary", ignore_index=255, **options), input, target)
    weights = {"class_weights": [1, 2, 3, 4]}
    check(losses.FocalLoss("multilabel", **options, **weights), logits(), torch.randint(0, 2, (N, C, H, W)))


@pytest.mark.parametrize("per_image", [False, True])
def test_smp_lovasz(per_image):
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    for ignored in (None, 9):
        options = {"per_image": per_image, "ignore_index": ignored}
        check(losses.LovaszLoss("multiclass", **options), logits(), labels(ignored=ignored))
        target = torch.randint(0, 2, (8, 1, H, W))
        if ignored is not None:
            target[:, :, :3] = ignored
        check(losses.LovaszLoss("binary", **options), torch.randn(8, 1, H, W), target)
        check(losses.LovaszLoss("multilabel", **options), torch.randn(8, 1, H, W), target)


@pytest.mark.parametrize("ignored", [None, 255])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_smp_soft_cross_entropy(small, ignored, reduction):
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    check(losses.SoftCrossEntropyLoss(reduction, 0.1, ignored), logits(), labels(ignored=ignored))


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("include_background", [False, True])
def test_monai_regions(batch, reduction, include_background):
    losses = pytest.importorskip("monai.losses")
    options = {"batch": batch, "reduction": reduction, "include_background": include_background}
    softmax = {"softmax": True, "to_onehot_y": True, **options}
    target = labels()[:, None]
    check(losses.DiceLoss(**softmax), logits(), target)
    check(losses.DiceLoss(jaccard=True, smooth_nr=1.0, smooth_dr=1.0, **softmax), logits(), target.float())
    check(losses.TverskyLoss(alpha=0.3, beta=0.7, **softmax), logits(), target)
    hard, soft = torch.randint(0, 2, (N, C, H, W)), torch.rand(N, C, H, W)
    for mask in (hard, hard.float(), soft):
        check(losses.DiceLoss(sigmoid=True, **options), logits(), mask)
        check(losses.TverskyLoss(sigmoid=True, **options), logits(), mask)
    one = torch.randn(8, 1, H, W)
    if include_background:
        check(losses.DiceLoss(sigmoid=True, **options), one, torch.randint(0, 2, one.shape).float())


def test_monai_others():
    losses = pytest.importorskip("monai.losses")
    target, softmax = labels()[:, None], {"softmax": True, "to_onehot_y": True}
    weight = torch.tensor([1.0, 2, 3, 4])
    check(losses.DiceLoss(**softmax, weight=weight), logits(), target)
    check(losses.DiceCELoss(**softmax), logits(), target)
    check(losses.DiceCELoss(**softmax, weight=weight, lambda_dice=0.3, lambda_ce=2.0, label_smoothing=0.1), logits(), target)
    check(losses.DiceCELoss(**softmax, include_background=False, reduction="sum", batch=True), logits(), target.float())
    volume = torch.randn(1, 3, 12, 12, 12)
    check(losses.DiceLoss(**softmax), volume, torch.randint(0, 3, (1, 1, 12, 12, 12)), accelerated=False)
    for alpha in (None, 0.25):
        for reduction in ("mean", "sum"):
            focal = losses.FocalLoss(to_onehot_y=True, use_softmax=True, alpha=alpha, reduction=reduction)
            check(focal, logits(), target)
    check(losses.FocalLoss(to_onehot_y=True, use_softmax=True, weight=weight, gamma=1.0), logits(), target)
    for loss, reason in [
        (losses.DiceLoss(), "ours takes sigmoid"),
        (losses.DiceLoss(softmax=True), "ours takes sigmoid"),
        (losses.DiceLoss(sigmoid=True, squared_pred=True), "squared_pred"),
        (losses.DiceLoss(sigmoid=True, smooth_nr=0), "smooth_nr"),
        (losses.DiceLoss(sigmoid=True, ignore_index=2), "ignore_index"),
        (losses.DiceLoss(sigmoid=True, reduction="none"), "reduction='none'"),
        (losses.DiceLoss(sigmoid=True, weight=2.0), "one weight"),
        (losses.DiceCELoss(sigmoid=True), "ours takes softmax"),
        (losses.DiceCELoss(**softmax, jaccard=True), "ours takes softmax"),
        (losses.FocalLoss(), "ours takes use_softmax"),
        (losses.MaskedDiceLoss(sigmoid=True), "MaskedDiceLoss.forward is its own"),
    ]:
        assert segkernels.accelerate(loss)[""].reason.startswith(reason)
