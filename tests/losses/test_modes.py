"""The modes of the losses that have three of them; each mode's numerics are tested with its operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segkernels import losses


@pytest.fixture
def pixels():
    torch.manual_seed(0)
    return torch.randn(2, 1, 17, 23, dtype=torch.float64) * 3, torch.randint(0, 2, (2, 1, 17, 23))


def written_out(name, p, t):
    dims = (0, 2, 3)
    i, p, t = (p * t).sum(dims), p.sum(dims), t.sum(dims)
    if name == "dice":
        return (1 - (2 * i + 1) / (p + t + 1)).mean()
    if name == "jaccard":
        return (1 - (i + 1) / (p + t - i + 1)).mean()
    return (1 - (i + 1) / (i + 0.3 * (p - i) + 0.7 * (t - i) + 1)).mean()


REGIONS = {
    "dice": losses.DiceLoss,
    "jaccard": losses.JaccardLoss,
    "tversky": lambda **kw: losses.TverskyLoss(0.3, 0.7, **kw),
}


@pytest.mark.parametrize("name", REGIONS)
def test_binary_and_multilabel(name, pixels):
    logits, target = pixels
    p = torch.sigmoid(logits)
    expected = written_out(name, p, target)
    torch.testing.assert_close(REGIONS[name](mode="binary")(logits, target), expected)
    torch.testing.assert_close(REGIONS[name](mode="binary")(logits[:, 0], target[:, 0]), expected)
    torch.testing.assert_close(REGIONS[name](mode="binary", from_logits=False)(p, target), expected)
    many = torch.cat([logits, -logits, logits / 2], 1)
    labels = torch.cat([target, target, 1 - target], 1)
    expected = written_out(name, torch.sigmoid(many), labels)
    torch.testing.assert_close(REGIONS[name](mode="multilabel")(many, labels), expected)


UPSAMPLED = {
    "dice": (losses.UpsampleDiceLoss, losses.DiceLoss),
    "jaccard": (losses.UpsampleJaccardLoss, losses.JaccardLoss),
    "tversky": (losses.UpsampleTverskyLoss, losses.TverskyLoss),
    "focal": (losses.UpsampleFocalLoss, losses.FocalLoss),
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", UPSAMPLED)
def test_upsampled_binary(name, align_corners, pixels):
    small = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    upsampled, plain = UPSAMPLED[name]
    actual = upsampled(mode="binary", align_corners=align_corners)(small, pixels[1])
    large = F.interpolate(small, (17, 23), mode="bilinear", align_corners=align_corners)
    expected = plain(mode="binary")(large, pixels[1])
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, small)[0], torch.autograd.grad(expected, small)[0])


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_focal(alpha, reduction, pixels):
    logits, target = pixels
    p, t = torch.sigmoid(logits), target.double()
    right = p * t + (1 - p) * (1 - t)
    weight = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    each = -weight * (1 - right) ** 2 * right.log()
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    actual = losses.FocalLoss(alpha, reduction=reduction, mode="binary")(logits, target)
    torch.testing.assert_close(actual, expected)


def test_smp_binary_dice_of_soft_targets(pixels):
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, soft = pixels[0].float(), torch.rand(2, 1, 17, 23)
    for peer, ours in ((smp.losses.DiceLoss, losses.DiceLoss), (smp.losses.JaccardLoss, losses.JaccardLoss)):
        expected = peer("binary", smooth=0.5)(logits, soft)
        torch.testing.assert_close(ours(0.5, mode="binary", style="smp")(logits, soft), expected, rtol=1e-6, atol=1e-6)


def test_unknown_mode(pixels):
    with pytest.raises(ValueError, match="mode: expected"):
        losses.DiceLoss(mode="ternary")(*pixels)
    with pytest.raises(ValueError, match="from_logits"):
        losses.FocalLoss(from_logits=False)(pixels[0].expand(2, 3, 17, 23), pixels[1][:, 0])
