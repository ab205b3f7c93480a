"""VOC's confusion matrix (21 classes, 255 ignored), against argmax and bincount as evaluation scripts do it."""

from __future__ import annotations

import dataclasses
import importlib.util

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Sweep, Work
from segkernels.metrics import ConfusionMatrix
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


def update(prediction, target, ours, theirs):
    ours.reset()
    ours.update(prediction, target)
    return ours.matrix


def torchmetrics_update(prediction, target, ours, theirs):
    theirs.reset()
    theirs.update(prediction, target)
    return theirs.confmat


def metric_case(shape):
    """An epoch's step: a batch of labels is added to what was counted before."""
    from torchmetrics.classification import MulticlassJaccardIndex

    plain = case("", shape, from_labels)

    def inputs(dtype, device):
        prediction, target = plain.inputs(dtype, device)[:2]
        ours, theirs = ConfusionMatrix(CLASSES, IGNORED), MulticlassJaccardIndex(CLASSES, ignore_index=IGNORED)
        return prediction, target, ours.to(device), theirs.to(device)

    return dataclasses.replace(
        plain,
        name="ConfusionMatrix.update 8x512x512",
        inputs=inputs,
        ours=update,
        baselines={"torchmetrics": torchmetrics_update},
        goals={"fwd": 10.0},
    )


def skewed(shape):
    """99.9% of the pixels are of one class: all threads count into one place."""
    plain = case("gpu labels of one class 32x1024x1024", shape, from_labels, devices=("cuda",), gpu_goals=GPU)

    def inputs(dtype, device):
        rare = torch.rand(shape, device=device) < 0.001
        target = torch.where(rare, torch.randint(0, CLASSES, shape, device=device), 0)
        return target.clone(), target, CLASSES, IGNORED

    return dataclasses.replace(plain, inputs=inputs)


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


GPU = {"fwd": GpuGoal(roofline=0.8)}
CASES = [
    case("logits 8x21x512x512", (8, 512, 512), from_logits, (8, CLASSES, 512, 512), goals={"fwd": 25.0}),
    case("labels 8x512x512", (8, 512, 512), from_labels, goals={"fwd": 4.0}),
    case("logits 4x21x65x65 to 513x513", (4, 513, 513), from_small_logits, (4, CLASSES, 65, 65), goals={"fwd": 10.0}),
    *([metric_case((8, 512, 512))] if importlib.util.find_spec("torchmetrics") else []),
    case("gpu labels 32x1024x1024", (32, 1024, 1024), from_labels, devices=("cuda",), gpu_goals=GPU),
    skewed((32, 1024, 1024)),
    case("gpu logits 16x21x512x512", (16, 512, 512), from_logits, (16, CLASSES, 512, 512), devices=("cuda",), gpu_goals=GPU),
    case("8x8 labels overhead", (1, 8, 8), from_labels, overhead_goals={"fwd": 15.0}),
    case("8x8 logits overhead", (1, 8, 8), from_logits, (1, CLASSES, 8, 8), overhead_goals={"fwd": 15.0}),
]
SWEEPS = [
    Sweep("side", (64, 128, 256, 512, 1024, 2048, 4096, 8192), lambda s: case(f"labels 4x{s}x{s}", (4, s, s), from_labels))
]
