"""The Lovasz losses, against one sort for each class (segmentation-models-pytorch's code, written out)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Sweep, Work
from segkernels.ops import lovasz_loss


def jaccard_steps(positive):
    positives = positive.sum()
    jaccard = 1 - (positives - positive.cumsum(0)) / (positives + (1 - positive).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def eager_softmax(logits, target, mode):
    p = logits.softmax(1).movedim(1, -1).reshape(-1, logits.shape[1])
    labels = target.reshape(-1)
    losses = []
    for c in range(logits.shape[1]):
        positive = (labels == c).to(p.dtype)
        if positive.sum() == 0:
            continue
        errors, order = (positive - p[:, c]).abs().sort(0, descending=True)
        losses.append(torch.dot(errors, jaccard_steps(positive[order])))
    return sum(losses) / len(losses)


def eager_hinge(logits, target, mode):
    labels = target.reshape(-1).to(logits.dtype)
    errors, order = (1 - logits.reshape(-1) * (2 * labels - 1)).sort(0, descending=True)
    return torch.dot(F.relu(errors), jaccard_steps(labels[order]))


def case(name, shape, mode, baseline, **rest):
    def inputs(dtype, device):
        pixels = (shape[0], *shape[2:])
        target = torch.randint(0, max(2, shape[1]), pixels, device=device)
        return torch.randn(shape, device=device).to(dtype), target, mode

    def work(size):
        values, pixels = torch.Size(shape).numel(), torch.Size(shape).numel() // shape[1]
        # The logits once; the slopes written; both read and the gradient written.
        forward = values * (size + 4) + pixels * 8
        return Work({"fwd": forward, "fwdbwd": forward + values * (2 * size + 4)})

    return Case(name=name, inputs=inputs, ours=lovasz_loss, baselines={"eager": baseline}, work=work, **rest)


CASES = [
    case("2x21x256x256 softmax", (2, 21, 256, 256), "multiclass", eager_softmax, goals={"fwdbwd": 3.0}),
    case("8x8 overhead", (1, 3, 8, 8), "multiclass", eager_softmax, modes=("fwd",), overhead_goals={"fwd": 15.0}),
    case("8x1x256x256 hinge", (8, 1, 256, 256), "binary", eager_hinge),
]
SWEEPS = [
    Sweep("side", (64, 128, 256, 512, 1024, 2048), lambda s: case(f"1x4x{s}x{s}", (1, 4, s, s), "multiclass", eager_softmax)),
]
