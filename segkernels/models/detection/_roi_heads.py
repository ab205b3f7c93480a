"""From proposals to losses, or to boxes, labels, scores and masks (Mask R-CNN, He et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

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
from segkernels.ops import box_iou, roi_align
from segkernels.ops.batched_nms import suppress

_SMALLEST = 1e-2

Features = Mapping[str, torch.Tensor]
Sizes = Sequence[tuple[int, int]]
Targets = Sequence[Mapping[str, torch.Tensor]]


class RoIHeads(nn.Module):
    """Box and mask branch.

    Args:
        box_roi_pool, box_head, box_predictor: pooling of the regions from the maps (:class:`segkernels.nn.MultiScaleRoIAlign`
            or a module with its call), and the layers on them.
        mask_roi_pool, mask_head, mask_predictor: likewise, for the masks.
        fg_iou_thresh, bg_iou_thresh: a proposal of at least the first overlap with an object is positive, one below the
            second with all of them background.
        batch_size_per_image, positive_fraction: proposals drawn for the losses, and the largest share of positive ones.
        bbox_reg_weights: of the regression's four values.
        score_thresh: detections of a score not above it are dropped.
        nms_thresh: overlap above which a detection of the same class is suppressed.
        detections_per_img: kept of each image.
    """

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_roi_pool: nn.Module,
        mask_head: nn.Module,
        mask_predictor: nn.Module,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        bbox_reg_weights: Sequence[float],
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
    ) -> None:
        super().__init__()
        self.box_roi_pool = box_roi_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_roi_pool = mask_roi_pool
        self.mask_head = mask_head
        self.mask_predictor = mask_predictor
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.bbox_reg_weights = tuple(bbox_reg_weights)
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img

    def forward(
        self, features: Features, proposals: list[torch.Tensor], image_sizes: Sizes, targets: Targets | None = None
    ) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """
        Args:
            features: maps by name, from the finest to the coarsest.
            proposals (list of Tensor[K, 4]): of each image.
            image_sizes: ``(height, width)`` of each image in the batch.
            targets: for training, each image's ``boxes``, ``labels`` and ``masks``.

        Returns:
            In evaluation, each image's ``boxes``, ``labels``, ``scores`` and ``masks`` [N, 1, 28, 28], and no losses; in
            training no detections, and the losses.
        """
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_sizes, targets)
        logits, deltas = self._boxes(features, proposals, image_sizes)
        detections = self._detect(logits, deltas, proposals, image_sizes)
        boxes = [detection["boxes"] for detection in detections]
        counts = [len(box) for box in boxes]
        masks = self._of_class(
            self._masks(features, boxes, image_sizes), torch.cat([detection["labels"] for detection in detections])
        )
        for detection, part in zip(detections, masks.sigmoid()[:, None].split(counts)):
            detection["masks"] = part
        return detections, {}

    def _boxes(self, features: Features, boxes: list[torch.Tensor], sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
        """[K, classes] and [K, classes, 4]."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, sizes)))
        return full_precision(logits), full_precision(deltas).reshape(*logits.shape, 4)

    def _masks(self, features: Features, boxes: list[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        """[K, classes, 28, 28]."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, sizes)))

    @staticmethod
    def _of_class(masks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[K, classes, h, w] -> [K, h, w], each region's mask of its class."""
        return full_precision(masks[torch.arange(len(labels), device=labels.device), labels])

    def _losses(
        self, features: Features, proposals: list[torch.Tensor], sizes: Sizes, targets: Targets
    ) -> dict[str, torch.Tensor]:
        """Cross entropy of the drawn proposals; smooth L1 and binary cross entropy of the positive ones."""
        drawn = [self._draw(*pair) for pair in zip(proposals, targets)]
        boxes, labels, objects = map(list, zip(*drawn))
        logits, deltas = self._boxes(features, boxes, sizes)
        positives = [label.nonzero()[:, 0] for label in labels]
        boxes = [box[positive] for box, positive in zip(boxes, positives)]
        objects = [object[positive] for object, positive in zip(objects, positives)]
        label = torch.cat(labels)
        positive = label.nonzero()[:, 0]
        regions = torch.cat(boxes)
        reference = torch.cat([target["boxes"].to(regions)[object] for target, object in zip(targets, objects)])
        difference = F.smooth_l1_loss(
            deltas[positive, label[positive]],
            encode(reference, regions, self.bbox_reg_weights),
            beta=1 / 9,
            reduction="sum",
        )
        masks = self._masks(features, boxes, sizes)
        return {
            "loss_classifier": F.cross_entropy(logits, label),
            "loss_box_reg": difference / len(label),
            "loss_mask": self._mask_loss(masks, label[positive], boxes, objects, targets),
        }

    def _draw(
        self, proposals: torch.Tensor, target: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Some of one image's proposals [K, 4] and of its objects' boxes, their classes, and the numbers of their objects."""
        objects = target["boxes"].to(proposals)
        boxes = torch.cat([proposals, objects])
        if len(objects) == 0:
            matches = labels = torch.zeros_like(boxes[:, 0], dtype=torch.int64)
        else:
            matches = match(box_iou(objects, boxes), self.fg_iou_thresh, self.bg_iou_thresh)
            labels = target["labels"][matches.clamp(min=0)]
            labels = torch.where(matches == BACKGROUND, 0, torch.where(matches == BETWEEN, -1, labels))
        drawn = torch.cat(sample(labels, self.batch_size_per_image, self.positive_fraction)).sort().values
        return boxes[drawn], labels[drawn], matches[drawn]

    @staticmethod
    def _mask_loss(
        masks: torch.Tensor,
        labels: torch.Tensor,
        boxes: list[torch.Tensor],
        objects: list[torch.Tensor],
        targets: Targets,
    ) -> torch.Tensor:
        if len(labels) == 0:
            return masks.sum() * 0  # the mean of nothing would be NaN
        expected = []
        for box, object, target in zip(boxes, objects, targets):
            regions = torch.cat([object[:, None].to(box), box], 1)  # each on the mask of its own object
            expected.append(roi_align(target["masks"][:, None].to(box), regions, masks.shape[2:])[:, 0])
        return F.binary_cross_entropy_with_logits(RoIHeads._of_class(masks, labels), torch.cat(expected))

    def _detect(
        self, logits: torch.Tensor, deltas: torch.Tensor, proposals: list[torch.Tensor], sizes: Sizes
    ) -> list[dict[str, torch.Tensor]]:
        """All images in one suppression; one host sync a batch: how many detections are whose."""
        images = len(sizes)
        image = torch.cat([torch.full_like(part[:, 0], i, dtype=torch.int64) for i, part in enumerate(proposals)])
        box = decode(deltas, torch.cat(proposals)[:, None], self.bbox_reg_weights)
        box = clip(box, limits(sizes, box)[image][:, None])[:, 1:]  # [K, classes - 1, 4]
        score = logits.softmax(-1)[:, 1:]
        region, label = self._candidates((score > self.score_thresh) & at_least(box, _SMALLEST))
        valid = region >= 0
        box, score = box[region, label], score[region, label]
        image = torch.where(valid, image[region], images)
        # What is no candidate has a class of its own and an image that is none.
        alone = -1 - torch.arange(len(region), device=region.device)
        classes = torch.where(valid, image * deltas.shape[1] + label, alone)
        order, kept = suppress(box, score, classes, self.nms_thresh)
        index, counts = first_of_each(order, kept, image, images, self.detections_per_img)
        rows = [row[:count] for row, count in zip(index, counts.tolist())]
        return [{"boxes": box[row], "labels": label[row] + 1, "scores": score[row]} for row in rows]

    def _candidates(self, wanted: torch.Tensor) -> torch.Tensor:
        """[2, M]: regions and classes where ``wanted`` [K, classes] is set. Where the host would wait for their number, M is
        the largest there can be, and -1 follows them."""
        if not waits(wanted):
            return wanted.nonzero().T
        # The scores of a region sum to one, but for rounding.
        most = wanted.shape[1] if self.score_thresh <= 0 else min(wanted.shape[1], int(1 / self.score_thresh) + 1)
        return torch.nonzero_static(wanted, size=most * len(wanted)).T
