"""Dice + BCE of a U-Net's binary logits, against sigmoid, sums and binary_cross_entropy_with_logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Sweep, Work
from segkernels.losses import dice_bce_loss


def eager(logits, target):
    target = target.to(logits.dtype)
    p = torch.sigmoid(logits)
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return dice + F.binary_cross_entropy_with_logits(logits, target)


def smp(logits, target):
    """segmentation-models-pytorch's DiceLoss("binary", smooth=1), written out, and the cross entropy."""
    p, t = F.logsigmoid(logits).exp().flatten(2), target.flatten(2)
    p_sum, t_sum, apart = p.sum((0, 2)), t.sum((0, 2)), torch.linalg.vector_norm(p - t, ord=1, dim=(0, 2))
    intersection = (p_sum + t_sum - apart) / 2
    score = (intersection + 1) / (0.5 * (p_sum + t_sum) + 1).clamp_min(1e-7)
    return ((1 - score) * (t_sum > 0)).mean() + F.binary_cross_entropy_with_logits(logits, target)


def smp_style(logits, target):
    return dice_bce_loss(logits, target, style="smp")


def case(name, shape, target_dtype=None, ours=dice_bce_loss, baselines=None, **rest):
    def inputs(dtype, device):
        target = torch.rand(shape, device=device) > 0.7
        return torch.randn(shape, device=device).to(dtype), target.to(target_dtype or dtype)

    def work(size):
        pixels = torch.Size(shape).numel()
        read = pixels * (size + (target_dtype.itemsize if target_dtype else size))
        return Work({"fwd": read, "fwdbwd": 2 * read + pixels * size})

    return Case(name=name, inputs=inputs, ours=ours, baselines=baselines or {"eager": eager}, work=work, **rest)


GPU = {mode: GpuGoal(roofline=0.8) for mode in ("fwd", "fwdbwd")}
CASES = [
    case("8x1x512x512", (8, 1, 512, 512), goals={"fwd": 4.0, "fwdbwd": 4.0}),
    case("8x1x512x512 uint8 target", (8, 1, 512, 512), torch.uint8),
    case("8x1x512x512 smp", (8, 1, 512, 512), ours=smp_style, baselines={"smp": smp}, goals={"fwd": 6.0, "fwdbwd": 6.0}),
    case("gpu 32x1x1024x1024", (32, 1, 1024, 1024), devices=("cuda",), gpu_goals=GPU),
    case("2x1x224x224", (2, 1, 224, 224)),
    case("8x8 overhead", (1, 1, 8, 8), modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
SWEEPS = [Sweep("side", (64, 128, 256, 512, 1024, 2048, 4096, 8192), lambda s: case(f"4x1x{s}x{s}", (4, 1, s, s)))]
