"""VOC's confusion matrix (21 classes, 255 ignored), against argmax and bincount as evaluation scripts do it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Sweep, Work
from segkernels.ops import confusion_matrix

CLASSES = 21
IGNORED = 255


def from_labels(prediction, target, num_classes, ignore_index):
    valid = target != ignore_index
    joint = target[valid] * num_classes + prediction[valid]
    return torch.bincount(joint, minlength=num_classes**2).view(num_classes, num_classes)


def from_logits(logits, target, num_classes, ignore_index):
    return from_labels(logits.argmax(1), target, num_classes, ignore_index)


def from_small_logits(logits, target, num_classes, ignore_index):
    full = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    return from_logits(full, target, num_classes, ignore_index)


def labels(shape, device):
    """Regions of one label each, as in a segmentation, with an ignored border."""
    coarse = torch.randint(0, CLASSES, (shape[0], 1, 1 + shape[1] // 32, 1 + shape[2] // 32), device=device)
    result = F.interpolate(coarse.float(), shape[1:]).long()[:, 0]
    result[:, ::37] = IGNORED
    return result


def case(name, shape, baseline, logits=None, **rest):
    def inputs(dtype, device):
        target = labels(shape, device)
        if logits is not None:
            prediction = torch.randn(logits, device=device).to(dtype)
        else:
            prediction = torch.where(torch.rand(shape, device=device) < 0.9, target, labels(shape, device))
            prediction = prediction.clamp(max=CLASSES - 1)
        return prediction, target, CLASSES, IGNORED

    def work(size):
        pixels = torch.Size(shape).numel()
        return Work({"fwd": pixels * 8 + (torch.Size(logits).numel() * size if logits else pixels * 8)})

    return Case(
        name=name,
        inputs=inputs,
        ours=confusion_matrix,
        baselines={"eager": baseline},
        work=work,
        modes=("fwd",),
        grad=(),
        exact=True,
        **rest,
    )


CASES = [
    case("logits 8x21x512x512", (8, 512, 512), from_logits, (8, CLASSES, 512, 512), goals={"fwd": 25.0}),
    case("labels 8x512x512", (8, 512, 512), from_labels, goals={"fwd": 4.0}),
    case("logits 4x21x65x65 to 513x513", (4, 513, 513), from_small_logits, (4, CLASSES, 65, 65), goals={"fwd": 10.0}),
    case("8x8 labels overhead", (1, 8, 8), from_labels, overhead_goals={"fwd": 15.0}),
    case("8x8 logits overhead", (1, 8, 8), from_logits, (1, CLASSES, 8, 8), overhead_goals={"fwd": 15.0}),
]
SWEEPS = [
    Sweep("side", (64, 128, 256, 512, 1024, 2048, 4096, 8192), lambda s: case(f"labels 4x{s}x{s}", (4, s, s), from_labels))
]
