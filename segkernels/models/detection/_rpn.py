"""Region proposals (Faster R-CNN, Ren et al. 2015), with torchvision's keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from segkernels.models.detection._anchors import AnchorGenerator
from segkernels.models.detection._boxes import (
    BACKGROUND,
    BETWEEN,
    at_least,
    clip,
    decode,
    encode,
    first_of_each,
    full_precision,
    limits,
    match,
    sample,
    waits,
)
from segkernels.models.detection._fpn import conv_block
from segkernels.ops import box_iou
from segkernels.ops.batched_nms import suppress

_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_SMALLEST = 1e-3


class RPNHead(nn.Module):
    """Objectness and regression of each anchor of each map.

    Args:
        in_channels: of the maps.
        num_anchors: at each place.
        conv_depth: 3x3 convolutions before the two outputs. Default: 1.

    ``forward`` maps a list of ``[N, C, h, w]`` to lists of ``[N, num_anchors, h, w]`` and ``[N, 4 * num_anchors, h, w]``.
    """

    def __init__(self, in_channels: int, num_anchors: int, conv_depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(conv_block(in_channels, in_channels, 3, False, True) for _ in range(conv_depth)))
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        hidden = [self.conv(map) for map in maps]
        return [self.cls_logits(map) for map in hidden], [self.bbox_pred(map) for map in hidden]


def _by_anchor(output: torch.Tensor, values: int) -> torch.Tensor:
    """[N, A * values, h, w] -> [N, h * w * A, values], the order of the anchors."""
    batch, _, height, width = output.shape
    output = output.reshape(batch, -1, values, height, width).permute(0, 3, 4, 1, 2)
    return full_precision(output.reshape(batch, -1, values))


class RegionProposalNetwork(nn.Module):
    """Anchors, their objectness, and the proposals that survive.

    Args:
        anchor_generator, head: :class:`AnchorGenerator` and :class:`RPNHead`, or modules with the same calls.
        fg_iou_thresh, bg_iou_thresh: an anchor of at least the first overlap with an object is positive, one below the
            second with all of them negative.
        batch_size_per_image, positive_fraction: anchors drawn for the losses, and the largest share of positive ones.
        pre_nms_top_n, post_nms_top_n: proposals kept of each map before, and of each image after suppression; each
            ``(in training, in evaluation)``.
        nms_thresh: overlap above which a proposal of the same map is suppressed.
        score_thresh: proposals of a smaller objectness are dropped.
    """

    def __init__(
        self,
        anchor_generator: AnchorGenerator,
        head: nn.Module,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_top_n: tuple[int, int],
        post_nms_top_n: tuple[int, int],
        nms_thresh: float,
        score_thresh: float = 0.0,
    ) -> None:
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh

    def forward(
        self,
        batch_size: Sequence[int],
        image_sizes: Sequence[tuple[int, int]],
        features: Mapping[str, torch.Tensor],
        targets: Sequence[Mapping[str, torch.Tensor]] | None = None,
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """
        Args:
            batch_size: ``(height, width)`` of the padded batch.
            image_sizes: ``(height, width)`` of each image in it.
            features: maps by name, from the finest to the coarsest.
            targets: for training, each image's objects; their ``boxes`` are used.

        Returns:
            Proposals, a Tensor[K, 4] for each image by decreasing objectness, without gradient; and in training the losses.
            In evaluation on a GPU every image has as many as one can have: zeros follow its own, which no detection comes
            from.
        """
        maps = list(features.values())
        outputs = self.head(maps)
        objectness = [_by_anchor(output, 1)[..., 0] for output in outputs[0]]
        deltas = [_by_anchor(output, 4) for output in outputs[1]]
        anchors = self.anchor_generator(batch_size, maps)
        with torch.no_grad():
            proposals = self._propose(objectness, deltas, anchors, image_sizes)
        if not self.training:
            return proposals, {}
        assert targets is not None
        return proposals, self._losses(torch.cat(objectness, 1), torch.cat(deltas, 1), torch.cat(anchors), targets)

    def _propose(
        self,
        objectness: list[torch.Tensor],
        deltas: list[torch.Tensor],
        anchors: list[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[torch.Tensor]:
        """All images in one suppression; a host sync a batch, how many are whose, but none in evaluation."""
        mode = 0 if self.training else 1
        boxes, logits = [], []
        for scores, codes, cells in zip(objectness, deltas, anchors):
            top = scores.topk(min(self.pre_nms_top_n[mode], scores.shape[1]))
            codes = codes.gather(1, top.indices[..., None].expand(-1, -1, 4))
            boxes.append(decode(codes, cells[top.indices], _WEIGHTS))
            logits.append(top.values)
        box = clip(torch.cat(boxes, 1), limits(image_sizes, boxes[0])[:, None])  # [B, L, 4]
        score = torch.cat(logits, 1).sigmoid()  # [B, L]
        images, levels = len(image_sizes), len(boxes)
        level = torch.cat([torch.full_like(part[0], i, dtype=torch.int64) for i, part in enumerate(logits)])
        image = torch.arange(images, device=score.device)[:, None]
        # Fixed sizes instead of a selection, which would cost a sync: an empty box suppresses none.
        valid = at_least(box, _SMALLEST) & (score >= self.score_thresh)
        box = torch.where(valid[..., None], box, 0.0)
        order, kept = suppress(
            box.reshape(-1, 4), torch.where(valid, score, -1.0).flatten(), (image * levels + level).flatten(), self.nms_thresh
        )
        group = torch.where(valid, image, images).flatten()
        index, counts = first_of_each(order, kept, group, images, self.post_nms_top_n[mode])
        box = box.reshape(-1, 4)[index]  # [B, K, 4]
        if self.training or not waits(box):
            return [part[:count] for part, count in zip(box, counts.tolist())]
        own = torch.arange(box.shape[1], device=box.device) < counts[:, None]
        return list(torch.where(own[..., None], box, 0.0))

    def _losses(
        self,
        objectness: torch.Tensor,
        deltas: torch.Tensor,
        anchors: torch.Tensor,
        targets: Sequence[Mapping[str, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        """Binary cross entropy of the drawn anchors [B, N], and smooth L1 of the positive ones' regression [B, N, 4]."""
        positives, negatives, expected = [], [], []
        for image, target in enumerate(targets):
            objects = target["boxes"].to(anchors)
            if len(objects) == 0:
                labels = torch.zeros_like(anchors[:, 0])
                matches = labels.long()
            else:
                matches = match(box_iou(objects, anchors), self.fg_iou_thresh, self.bg_iou_thresh, keep_best=True)
                labels = torch.where(matches == BETWEEN, -1, torch.where(matches == BACKGROUND, 0, 1))
            positive, negative = sample(labels, self.batch_size_per_image, self.positive_fraction)
            expected.append(encode(objects[matches[positive]], anchors[positive], _WEIGHTS))
            positives.append(positive + image * len(anchors))
            negatives.append(negative + image * len(anchors))
        positive = torch.cat(positives)
        drawn = torch.cat([positive, *negatives])
        logits = objectness.flatten()[drawn]
        labels = (torch.arange(len(drawn), device=drawn.device) < len(positive)).to(logits)
        difference = F.smooth_l1_loss(deltas.reshape(-1, 4)[positive], torch.cat(expected), beta=1 / 9, reduction="sum")
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(logits, labels),
            "loss_rpn_box_reg": difference / len(drawn),
        }
