"""The binary focal loss from the sums of pixels, against torchvision's composition; and Dice + BCE from small logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Work
from segkernels.losses._region import Region
from segkernels.losses._sigmoid import sigmoid_dice_bce_loss, sigmoid_pixel_loss


def focal(logits, target):
    return sigmoid_pixel_loss(logits, target, 0.25, 0.75, 2.0, mode="multilabel")


def eager_focal(logits, target):
    p = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    return ((0.25 * target + 0.75 * (1 - target)) * ce * (1 - p_t) ** 2).mean()


def upsample_dice_bce(logits, target):
    return sigmoid_dice_bce_loss(logits, target, 1.0, 1.0, Region.dice(1.0), None, mode="multilabel", upsample=True)


def eager_upsample_dice_bce(logits, target):
    full = F.interpolate(logits, target.shape[2:], mode="bilinear", align_corners=False)
    p = torch.sigmoid(full)
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return dice + F.binary_cross_entropy_with_logits(full, target)


def case(name, shape, size, ours, baseline, **rest):
    def inputs(dtype, device):
        target = torch.rand(*shape[:2], *size, device=device) > 0.7
        return torch.randn(shape, device=device).to(dtype), target.to(dtype)

    def work(element):
        values, pixels = torch.Size(shape).numel(), torch.Size((*shape[:2], *size)).numel()
        read = (values + pixels) * element
        return Work({"fwd": read, "fwdbwd": 2 * read + values * element})

    return Case(name=name, inputs=inputs, ours=ours, baselines={"eager": baseline}, work=work, **rest)


GPU = {mode: GpuGoal(roofline=0.8) for mode in ("fwd", "fwdbwd")}
CASES = [
    case("8x1x512x512 focal", (8, 1, 512, 512), (512, 512), focal, eager_focal, goals={"fwdbwd": 4.0}),
    case("gpu 32x1x1024x1024 focal", (32, 1, 1024, 1024), (1024, 1024), focal, eager_focal, devices=("cuda",), gpu_goals=GPU),
    case("8x8 overhead focal", (1, 1, 8, 8), (8, 8), focal, eager_focal, modes=("fwd",), overhead_goals={"fwd": 15.0}),
    case("8x1x128x128 to 512x512 dice_bce", (8, 1, 128, 128), (512, 512), upsample_dice_bce, eager_upsample_dice_bce),
]
