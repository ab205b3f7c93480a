"""Mask R-CNN on a ResNet-50 feature pyramid against torchvision's: a training step, and detection with pasted masks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, Work
from benchmarks.models._case import call
from segkernels.models import maskrcnn_resnet50_fpn

SIZE = (320, 416)
#: Regions that are drawn in training and kept in detection, and at most that many masks.
REGIONS, MASKS = 512, 128


class Summed(nn.Module):
    """A batch of one to a scalar: the sum of the losses of eight objects, or of the scores of what is detected."""

    def __init__(self, build: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.detector = build(min_size=SIZE[0], max_size=SIZE[1], rpn_post_nms_top_n_test=REGIONS, box_score_thresh=0.005)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not self.training:
            (found,) = self.detector(list(image))
            return found["scores"].sum() + found["masks"].mean()
        torch.manual_seed(0)  # every variant draws the same
        corner = torch.arange(8, device=image.device)[:, None] * torch.tensor([24, 16], device=image.device)
        boxes = torch.cat([corner, corner + torch.tensor([100, 80], device=image.device)], 1)
        masks = torch.zeros(8, *SIZE, dtype=torch.uint8, device=image.device)
        for i in range(8):
            masks[i, 16 * i : 16 * i + 80, 24 * i : 24 * i + 90] = 1
        labels = torch.arange(1, 9, device=image.device)
        losses = self.detector(list(image), [{"boxes": boxes.to(image.dtype), "labels": labels, "masks": masks}])
        return torch.stack(list(losses.values())).sum()


def ours() -> nn.Module:
    return Summed(maskrcnn_resnet50_fpn)


def torchvision() -> nn.Module:
    from torchvision.models import detection

    return Summed(functools.partial(detection.maskrcnn_resnet50_fpn, weights=None, weights_backbone=None))


def inputs(dtype: torch.dtype, device: str) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    network = ours().to(device)
    values = [p.detach().to(dtype) for p in network.parameters()]
    buffers = [b.to(dtype) if b.is_floating_point() else b for b in network.buffers()]
    return torch.rand(1, 3, *SIZE, device=device).to(dtype), values, buffers


@functools.cache
def flops() -> int:
    """Of the dense layers; those on regions for the largest number of them."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        detector = ours().eval().detector
        detector.rpn.head(list(detector.backbone(torch.empty(1, 3, *SIZE)).values()))
        heads = detector.roi_heads
        heads.box_predictor(heads.box_head(torch.empty(REGIONS, 256, 7, 7)))
        heads.mask_predictor(heads.mask_head(torch.empty(MASKS, 256, 14, 14)))
    return counter.get_total_flops()


def work(size: int) -> Work:
    values = 44_454_513 * size
    return Work({"fwd": values, "fwdbwd": 3 * values}, {"fwd": flops(), "fwdbwd": 3 * flops()})


CASES = [
    Case(
        name="1x3x320x416",
        inputs=inputs,
        ours=call(ours),
        baselines={"torchvision": call(torchvision)},
        work=work,
        grad=(1,),
        gradients_as_one=True,
        goals={"fwd": 1.1, "fwdbwd": 1.15},
    )
]
