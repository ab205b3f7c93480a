"""The losses on softmax probabilities, against segmentation-models-pytorch's Dice and torch's cross entropy."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Sweep, Work
from segkernels.losses import cross_entropy_loss, dice_ce_loss, focal_loss, upsample_cross_entropy_loss


def eager_dice_ce(logits, target):
    p = torch.softmax(logits, 1)
    one_hot = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2)
    dims = (0, 2, 3)
    dice = 1 - (2 * (p * one_hot).sum(dims) + 1) / (p.sum(dims) + one_hot.sum(dims) + 1)
    return dice.mean() + F.cross_entropy(logits, target)


def smp_dice_ce(logits, target):
    from segmentation_models_pytorch.losses import DiceLoss

    # Adds `smooth` after halving: 1/2 is the lecture's 1.
    return DiceLoss("multiclass", smooth=0.5)(logits, target) + F.cross_entropy(logits, target)


def eager_focal(logits, target):
    loss = F.cross_entropy(logits, target, reduction="none")
    return ((1 - torch.exp(-loss)) ** 2 * loss).mean()


def monai_focal(logits, target):
    from monai.losses import FocalLoss

    # Its mean counts the classes, too.
    return FocalLoss(to_onehot_y=True, use_softmax=True)(logits, target[:, None]) * logits.shape[1]


def upsampled_cross_entropy(logits, target):
    return F.cross_entropy(F.interpolate(logits, size=target.shape[1:], mode="bilinear"), target)


def case(name, shape, ours, baselines, size=None, **rest):
    n, c, h, w = shape
    size = size or (h, w)

    def inputs(dtype, device):
        # Every class occurs: smp counts an absent one as 0.
        target = torch.arange(n * size[0] * size[1], device=device).remainder(c)
        target = target[torch.randperm(target.numel(), device=device)].reshape(n, *size)
        return torch.randn(shape, device=device).to(dtype), target

    def work(bytes_each):
        read = n * c * h * w * bytes_each + n * size[0] * size[1] * 8
        return Work({"fwd": read, "fwdbwd": 2 * read + n * c * h * w * bytes_each})

    return Case(name=name, inputs=inputs, ours=ours, baselines=baselines, work=work, **rest)


dice_ce = {"eager": eager_dice_ce}
if importlib.util.find_spec("segmentation_models_pytorch"):
    dice_ce = {"smp": smp_dice_ce}
focal = {"eager": eager_focal}
if importlib.util.find_spec("monai"):
    focal = {"monai": monai_focal}
cross_entropy = {"eager": F.cross_entropy}
upsampled = {"eager": upsampled_cross_entropy}

GPU = {mode: GpuGoal(roofline=0.8) for mode in ("fwd", "fwdbwd")}


def gradient(classes):
    """Little more than the gradient that is returned."""
    return {"fwdbwd": int(1.1 * 4 * classes * 256 * 256 * 4)}


def five_percent(*full):
    """Of the full-resolution logits, which are never made."""
    return {"fwdbwd": torch.Size(full).numel() * 4 // 20}


CASES = [
    *(
        case(
            f"dice_ce 4x{c}x256x256", (4, c, 256, 256), dice_ce_loss, dice_ce, goals={"fwdbwd": 6.0}, memory_goals=gradient(c)
        )
        for c in (21, 150)
    ),
    case("focal 4x21x256x256", (4, 21, 256, 256), focal_loss, focal, goals={"fwdbwd": 4.0}),
    case("focal from cross_entropy 4x21x256x256", (4, 21, 256, 256), focal_loss, {"eager": eager_focal}),
    case("cross_entropy 4x21x256x256", (4, 21, 256, 256), cross_entropy_loss, cross_entropy),
    case(
        "upsample cross_entropy 2x150x64x64 to 256",
        (2, 150, 64, 64),
        upsample_cross_entropy_loss,
        upsampled,
        (256, 256),
        goals={"fwdbwd": 5.0},
        memory_goals=five_percent(2, 150, 256, 256),
    ),
    case(
        "upsample cross_entropy 4x21x65x65 to 513",
        (4, 21, 65, 65),
        upsample_cross_entropy_loss,
        upsampled,
        (513, 513),
        goals={"fwdbwd": 5.0},
        memory_goals=five_percent(4, 21, 513, 513),
    ),
    *(
        case(f"gpu {name} 16x21x512x512", (16, 21, 512, 512), loss, {"eager": eager}, devices=("cuda",), gpu_goals=GPU)
        for name, loss, eager in (
            ("dice_ce", dice_ce_loss, eager_dice_ce),
            ("cross_entropy", cross_entropy_loss, F.cross_entropy),
            ("focal", focal_loss, eager_focal),
        )
    ),
    case(
        "gpu upsample cross_entropy 8x150x128x128 to 512",
        (8, 150, 128, 128),
        upsample_cross_entropy_loss,
        upsampled,
        (512, 512),
        devices=("cuda",),
        gpu_goals={"fwdbwd": GpuGoal({"eager": 3.0, "compile": 1.5}, peak=0.05)},
    ),
    case("8x8 overhead", (1, 3, 8, 8), cross_entropy_loss, cross_entropy, modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
eager_dice = {"eager": eager_dice_ce}
SWEEPS = [
    Sweep("side", (64, 128, 256, 512, 1024, 2048), lambda s: case(f"1x21x{s}x{s}", (1, 21, s, s), dice_ce_loss, eager_dice)),
    Sweep("classes", (2, 8, 32, 128, 512), lambda c: case(f"1x{c}x128x128", (1, c, 128, 128), dice_ce_loss, eager_dice)),
]
