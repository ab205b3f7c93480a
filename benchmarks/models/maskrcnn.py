"""Both Mask R-CNNs against torchvision's: a training step, and detection with pasted masks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, Work
from benchmarks.models._case import NEVER_LARGER, NEVER_SLOWER, call
from segkernels import models

SIZE = (128, 160)
#: Regions that are drawn in training and kept in detection, and at most that many masks.
REGIONS, MASKS = 64, 16


class Summed(nn.Module):
    """A batch of one to a scalar: the sum of the losses of eight objects, or of the scores of what is detected."""

    def __init__(self, build: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.detector = build(
            min_size=SIZE[0],
            max_size=SIZE[1],
            rpn_post_nms_top_n_test=REGIONS,
            box_batch_size_per_image=REGIONS,
            box_detections_per_img=MASKS,
            box_score_thresh=0.005,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not self.training:
            (found,) = self.detector(list(image))
            return found["scores"].sum() + found["masks"].mean()
        torch.manual_seed(0)  # every variant draws the same
        corner = torch.arange(8, device=image.device)[:, None] * torch.tensor([9, 6], device=image.device)
        boxes = torch.cat([corner, corner + torch.tensor([60, 48], device=image.device)], 1)
        masks = torch.zeros(8, *SIZE, dtype=torch.uint8, device=image.device)
        for i in range(8):
            masks[i, 6 * i : 6 * i + 48, 9 * i : 9 * i + 54] = 1
        labels = torch.arange(1, 9, device=image.device)
        losses = self.detector(list(image), [{"boxes": boxes.to(image.dtype), "labels": labels, "masks": masks}])
        return torch.stack(list(losses.values())).sum()


def ours(name: str) -> nn.Module:
    return Summed(getattr(models, name))


def torchvision(name: str) -> nn.Module:
    from torchvision.models import detection

    return Summed(functools.partial(getattr(detection, name), weights=None, weights_backbone=None))


@functools.cache
def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in ours(name).parameters())


@functools.cache
def flops(name: str) -> int:
    """Of the dense layers; those on regions for the largest number of them."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        detector = ours(name).eval().detector
        detector.rpn.head(list(detector.backbone(torch.empty(1, 3, *SIZE)).values()))
        heads = detector.roi_heads
        heads.box_predictor(heads.box_head(torch.empty(REGIONS, 256, 7, 7)))
        heads.mask_predictor(heads.mask_head(torch.empty(MASKS, 256, 14, 14)))
    return counter.get_total_flops()


def case(name: str, **goals: float) -> Case:
    def inputs(dtype: torch.dtype, device: str) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        network = ours(name).to(device)
        values = [p.detach().to(dtype) for p in network.parameters()]
        buffers = [b.to(dtype) if b.is_floating_point() else b for b in network.buffers()]
        return torch.rand(1, 3, *SIZE, device=device).to(dtype), values, buffers

    def work(size: int) -> Work:
        values = parameters(name) * size
        return Work({"fwd": values, "fwdbwd": 3 * values}, {"fwd": flops(name), "fwdbwd": 3 * flops(name)})

    return Case(
        name=f"{name} 1x3x{SIZE[0]}x{SIZE[1]}",
        inputs=inputs,
        ours=call(functools.partial(ours, name)),
        baselines={"torchvision": call(functools.partial(torchvision, name))},
        work=work,
        grad=(1,),
        gradients_as_one=True,
        goals=goals,
        memory_goals=NEVER_LARGER,
    )


CASES = [case("maskrcnn_resnet50_fpn", fwd=1.1, fwdbwd=1.15), case("maskrcnn_resnet50_fpn_v2", **NEVER_SLOWER)]
