"""Mask R-CNN on a ResNet-50 feature pyramid (He et al. 2017), with torchvision's keys and contract."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from segkernels.models._registry import register_model
from segkernels.models._weights import Weights, check_member, load_backbone, load_weights
from segkernels.models.detection._anchors import AnchorGenerator
from segkernels.models.detection._checks import check_images, check_targets
from segkernels.models.detection._fpn import FrozenBatchNorm2d, ResNetFPN, freeze_norms
from segkernels.models.detection._heads import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    TwoMLPHead,
)
from segkernels.models.detection._roi_heads import RoIHeads
from segkernels.models.detection._rpn import RegionProposalNetwork, RPNHead
from segkernels.models.detection._transform import Transform
from segkernels.nn import MultiScaleRoIAlign

_MAPS = ["0", "1", "2", "3"]
#: Layers that torchvision named otherwise before version 0.13; its published weights of the first model still do.
_OLD_KEYS = (
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
    (re.compile(r"(mask_head)\.mask_fcn(\d+)\.(weight|bias)$"), lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}"),
)
#: torchvision trained this file before its frozen normalisation had an epsilon, and removes it as well.
_WITHOUT_EPS = "maskrcnn_resnet50_fpn_coco-bf2d0c1e"


class MaskRCNN(nn.Module):
    """Boxes, classes and masks of the objects in an image.

    In training ``model(images, targets)`` returns a dict of scalar losses: ``loss_classifier``, ``loss_box_reg``,
    ``loss_mask``, ``loss_objectness`` and ``loss_rpn_box_reg``. In evaluation ``model(images)`` returns for each image a dict
    of N detections by decreasing score, in pixels of the image as it was passed: ``boxes`` [N, 4] ``(x1, y1, x2, y2)``,
    ``labels`` [N] int64 (0, the background, is never one), ``scores`` [N], and ``masks`` [N, 1, H, W], probabilities of at
    least float32 that are zero outside the box; with ``mask_threshold`` bool.

    ``images`` is a list of floating-point ``[3, H, W]``, mostly from 0 to 1, of any sizes. ``targets`` is a list with a dict
    for each image: ``boxes`` [M, 4] with ``x1 < x2`` and ``y1 < y2``, ``labels`` [M] int64 from 1 to ``num_classes - 1``, and
    ``masks`` [M, H, W] of 0 and 1; M may be 0.

    In evaluation the host waits for a GPU once for a batch of any size: for how many detections are whose, before their masks
    are computed. Until then sizes are the largest there can be: ``rpn_post_nms_top_n_test`` proposals an image, and as many
    candidates as classes of one proposal can be above ``box_score_thresh``. A CPU computes what there is.

    Args:
        backbone: from ``[N, 3, H, W]`` to maps by name, finest first; its ``out_channels`` says their width.
        num_classes: with the background; None where ``box_predictor`` and ``mask_predictor`` are given.
        min_size, max_size: images are resized so that the shorter side is ``min_size``, and the longer one at most
            ``max_size``. Of several ``min_size`` training draws one for each image and evaluation takes the last. Default: 800
            and 1333.
        image_mean, image_std: to normalise each channel. Default: ImageNet's.
        size_divisible: padded sizes are multiples of it. Default: 32.
        fixed_size: ``(width, height)`` of all images instead of ``min_size`` and ``max_size``. Default: None.
        mask_threshold: probability from which a pixel belongs to its object; the masks are then bool, a quarter of the memory
            and faster. Default: None, masks of probabilities.
        rpn_anchor_generator, rpn_head: modules in place of the default :class:`AnchorGenerator` and :class:`RPNHead`.
        rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test: proposals of each map before suppression. Default: 2000 and 1000.
        rpn_post_nms_top_n_train, rpn_post_nms_top_n_test: proposals of each image after it. Default: 2000 and 1000.
        rpn_nms_thresh: overlap above which a proposal is suppressed. Default: 0.7.
        rpn_fg_iou_thresh, rpn_bg_iou_thresh: overlaps from which an anchor is positive, and below which it is negative.
            Default: 0.7 and 0.3.
        rpn_batch_size_per_image, rpn_positive_fraction: anchors drawn for the losses, and the largest share of positive ones.
            Default: 256 and 0.5.
        rpn_score_thresh: proposals of a smaller objectness are dropped. Default: 0.
        box_roi_pool, box_head, box_predictor: modules in place of the default ones.
        box_score_thresh: detections of a score not above it are dropped. Default: 0.05.
        box_nms_thresh: overlap above which a detection of the same class is suppressed. Default: 0.5.
        box_detections_per_img: largest number of detections. Default: 100.
        box_fg_iou_thresh, box_bg_iou_thresh: as for anchors, for proposals. Default: 0.5 both.
        box_batch_size_per_image, box_positive_fraction: as for anchors. Default: 512 and 0.25.
        bbox_reg_weights: of the four values of the box regression. Default: 10, 10, 5, 5.
        mask_roi_pool, mask_head, mask_predictor: modules in place of the default ones.

    Deterministic for a given state of torch's random numbers, which draw ``min_size``, anchors and proposals in training.

    Raises:
        ValueError, TypeError: for an image or a target of a wrong rank, shape or dtype, a target without one of its keys, or
            a box without area; the error names the image's position.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        *,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        size_divisible: int = 32,
        fixed_size: tuple[int, int] | None = None,
        mask_threshold: float | None = None,
        rpn_anchor_generator: AnchorGenerator | None = None,
        rpn_head: nn.Module | None = None,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        box_roi_pool: nn.Module | None = None,
        box_head: nn.Module | None = None,
        box_predictor: nn.Module | None = None,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: Sequence[float] | None = None,
        mask_roi_pool: nn.Module | None = None,
        mask_head: nn.Module | None = None,
        mask_predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if num_classes is None and (box_predictor is None or mask_predictor is None):
            raise ValueError("num_classes: expected an int where box_predictor or mask_predictor is not given, got None")
        channels: Any = backbone.out_channels
        anchors = rpn_anchor_generator or AnchorGenerator()
        self.transform = Transform(
            min_size,
            max_size,
            image_mean or (0.485, 0.456, 0.406),
            image_std or (0.229, 0.224, 0.225),
            size_divisible,
            fixed_size,
            mask_threshold,
        )
        self.backbone = backbone
        self.rpn = RegionProposalNetwork(
            anchors,
            rpn_head or RPNHead(channels, anchors.num_anchors_per_location()[0]),
            rpn_fg_iou_thresh,
            rpn_bg_iou_thresh,
            rpn_batch_size_per_image,
            rpn_positive_fraction,
            (rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test),
            (rpn_post_nms_top_n_train, rpn_post_nms_top_n_test),
            rpn_nms_thresh,
            rpn_score_thresh,
        )
        classes = num_classes or 0
        self.roi_heads = RoIHeads(
            box_roi_pool or MultiScaleRoIAlign(_MAPS, 7, 2),
            box_head or TwoMLPHead(channels * 7 * 7, 1024),
            box_predictor or FastRCNNPredictor(1024, classes),
            mask_roi_pool or MultiScaleRoIAlign(_MAPS, 14, 2),
            mask_head or MaskRCNNHeads(channels, (256,) * 4),
            mask_predictor or MaskRCNNPredictor(256, 256, classes),
            box_fg_iou_thresh,
            box_bg_iou_thresh,
            box_batch_size_per_image,
            box_positive_fraction,
            bbox_reg_weights or (10.0, 10.0, 5.0, 5.0),
            box_score_thresh,
            box_nms_thresh,
            box_detections_per_img,
        )
        self.register_load_state_dict_pre_hook(_rename_keys)

    def forward(self, images: Sequence[torch.Tensor], targets: Sequence[Mapping[str, torch.Tensor]] | None = None) -> Any:
        """Losses in training, detections in evaluation, where ``targets`` are ignored."""
        check_images(images, len(self.transform.image_mean))
        if not self.training:
            targets = None
        elif targets is None:
            raise ValueError("targets: expected a dict for each image in training, got None")
        else:
            check_targets(targets, images)
        batch, sizes, targets = self.transform(images, targets)
        features = self.backbone(batch)
        proposals, losses = self.rpn(batch.shape[2:], sizes, features, targets)
        detections, region_losses = self.roi_heads(features, proposals, sizes, targets)
        if self.training:
            return region_losses | losses
        return self.transform.postprocess(detections, sizes, [(image.shape[1], image.shape[2]) for image in images])


def _current_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(state)
    for pattern, replacement in _OLD_KEYS:
        result = {pattern.sub(replacement, key): value for key, value in result.items()}
    return result


def _rename_keys(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    renamed = _current_keys(state)
    state.clear()
    state.update(renamed)


def _trainable_layers(pretrained: bool, layers: int | None) -> int:
    """Only what is trained already can stay as it is."""
    if layers is not None and not 0 <= layers <= 5:
        raise ValueError(f"trainable_backbone_layers: expected 0 to 5, got {layers}")
    if not pretrained:
        return 5
    return 3 if layers is None else layers


@register_model
def maskrcnn_resnet50_fpn(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 91,
    weights_backbone: Weights | None = None,
    trainable_backbone_layers: int | None = None,
    **config: Any,
) -> MaskRCNN:
    """Mask R-CNN on a ResNet-50 feature pyramid, torchvision's ``maskrcnn_resnet50_fpn``.

    Args:
        weights: a member of :class:`MaskRCNN_ResNet50_FPN_Weights`, or the path of a state dict of this model or of
            torchvision's.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: classes with the background. Default: COCO's 91.
        weights_backbone: a member of :class:`ResNet50_Weights`, or the path of a state dict of torchvision's ``resnet50``;
            not read where ``weights`` is given.
        trainable_backbone_layers: with weights of either kind, how many of the backbone's five parts are trained, from
            the last one on. Default: 3; without weights all are.
        config: other keyword arguments of :class:`MaskRCNN`, such as ``min_size`` or ``box_score_thresh``.

    Returns:
        MaskRCNN: its normalisation layers train from scratch without weights, and are frozen with weights of either kind, as
        in torchvision.

    Raises:
        ValueError: for ``trainable_backbone_layers`` outside 0 to 5, weights of another model or with other classes, and
            truncated or changed files.
    """
    check_member(weights, "maskrcnn_resnet50_fpn", num_classes)
    pretrained = weights is not None or weights_backbone is not None
    layers = _trainable_layers(pretrained, trainable_backbone_layers)
    backbone = ResNetFPN()
    if pretrained:
        freeze_norms(backbone.body)
    if weights is None:
        load_backbone(backbone.body, weights_backbone, progress, name="resnet50")
    backbone.train_layers(layers)
    model = MaskRCNN(backbone, num_classes, **config)
    load_weights(model, weights, progress, _current_keys)
    if _WITHOUT_EPS in str(getattr(weights, "url", weights)):
        for module in backbone.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = 0.0
    return model


@register_model
def maskrcnn_resnet50_fpn_v2(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 91,
    weights_backbone: Weights | None = None,
    trainable_backbone_layers: int | None = None,
    **config: Any,
) -> MaskRCNN:
    """Mask R-CNN with batch normalisation throughout, torchvision's ``maskrcnn_resnet50_fpn_v2`` (Li et al. 2021).

    The proposals' head has two convolutions and the boxes' head four. Arguments, result and errors are those of
    :func:`maskrcnn_resnet50_fpn`, with :class:`MaskRCNN_ResNet50_FPN_V2_Weights`; batch normalisation is trained with
    weights too.
    """
    check_member(weights, "maskrcnn_resnet50_fpn_v2", num_classes)
    pretrained = weights is not None or weights_backbone is not None
    layers = _trainable_layers(pretrained, trainable_backbone_layers)
    backbone = ResNetFPN(norm=True)
    if weights is None:
        load_backbone(backbone.body, weights_backbone, progress, name="resnet50")
    backbone.train_layers(layers)
    channels, anchors = backbone.out_channels, AnchorGenerator()
    parts: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), (256,) * 4, (1024,)),
        "mask_head": MaskRCNNHeads(channels, (256,) * 4, norm=True),
    }
    model = MaskRCNN(backbone, num_classes, **(parts | config))
    load_weights(model, weights, progress, _current_keys)
    return model
