"""Weights that torchvision publishes: an enum for each model, with torchvision's names.

Pass a member as ``weights=`` or ``weights_backbone=``; each enum's ``DEFAULT`` is torchvision's. The files keep their own
licences and those of the data sets that they were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segkernels.models._preprocessing import Preprocessing
from segkernels.models._weights import WeightsEntry, WeightsEnum

VOC_CATEGORIES = (
    "__background__", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# By COCO's category ids, eleven of which are not in use.
COCO_CATEGORIES = (
    "__background__", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "N/A", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "N/A", "backpack", "umbrella", "N/A", "N/A", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "N/A", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "N/A", "dining table", "N/A",
    "N/A", "toilet", "N/A", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "N/A", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def _entry(
    file: str, num_params: int, metrics: Mapping[str, Any], categories: tuple[str, ...], preprocessing: Preprocessing
) -> WeightsEntry:
    meta = {"categories": categories, "num_params": num_params, "metrics": metrics}
    return WeightsEntry(f"https://download.pytorch.org/models/{file}.pth", meta, preprocessing)


def _semantic(file: str, num_params: int, miou: float, pixel_acc: float) -> WeightsEntry:
    metrics = {"COCO-val2017-VOC-labels": {"miou": miou, "pixel_acc": pixel_acc}}
    return _entry(file, num_params, metrics, VOC_CATEGORIES, Preprocessing(resize_size=520))


def _instances(file: str, num_params: int, box_map: float, mask_map: float) -> WeightsEntry:
    metrics = {"COCO-val2017": {"box_map": box_map, "mask_map": mask_map}}
    # The model itself resizes and normalises.
    return _entry(file, num_params, metrics, COCO_CATEGORIES, Preprocessing(mean=None, std=None))


def _classifier(file: str, num_params: int, acc1: float, acc5: float, resize_size: int = 256) -> WeightsEntry:
    metrics = {"ImageNet-1K": {"acc@1": acc1, "acc@5": acc5}}
    return _entry(file, num_params, metrics, (), Preprocessing(resize_size, crop_size=224))


class FCN_ResNet50_Weights(WeightsEnum):
    COCO_WITH_VOC_LABELS_V1 = _semantic("fcn_resnet50_coco-1167a1af", 35_322_218, 60.5, 91.4)
    DEFAULT = COCO_WITH_VOC_LABELS_V1


class FCN_ResNet101_Weights(WeightsEnum):
    COCO_WITH_VOC_LABELS_V1 = _semantic("fcn_resnet101_coco-7ecb50ca", 54_314_346, 63.7, 91.9)
    DEFAULT = COCO_WITH_VOC_LABELS_V1


class DeepLabV3_ResNet50_Weights(WeightsEnum):
    COCO_WITH_VOC_LABELS_V1 = _semantic("deeplabv3_resnet50_coco-cd0a2569", 42_004_074, 66.4, 92.4)
    DEFAULT = COCO_WITH_VOC_LABELS_V1


class DeepLabV3_ResNet101_Weights(WeightsEnum):
    COCO_WITH_VOC_LABELS_V1 = _semantic("deeplabv3_resnet101_coco-586e9e4e", 60_996_202, 67.4, 92.4)
    DEFAULT = COCO_WITH_VOC_LABELS_V1


class DeepLabV3_MobileNet_V3_Large_Weights(WeightsEnum):
    COCO_WITH_VOC_LABELS_V1 = _semantic("deeplabv3_mobilenet_v3_large-fc3c493d", 11_029_328, 60.3, 91.2)
    DEFAULT = COCO_WITH_VOC_LABELS_V1


class MaskRCNN_ResNet50_FPN_Weights(WeightsEnum):
    COCO_V1 = _instances("maskrcnn_resnet50_fpn_coco-bf2d0c1e", 44_401_393, 37.9, 34.6)
    DEFAULT = COCO_V1


class MaskRCNN_ResNet50_FPN_V2_Weights(WeightsEnum):
    COCO_V1 = _instances("maskrcnn_resnet50_fpn_v2_coco-73cbd019", 46_359_409, 47.4, 41.8)
    DEFAULT = COCO_V1


class ResNet18_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("resnet18-f37072fd", 11_689_512, 69.758, 89.078)
    DEFAULT = IMAGENET1K_V1


class ResNet34_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("resnet34-b627a593", 21_797_672, 73.314, 91.420)
    DEFAULT = IMAGENET1K_V1


class ResNet50_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("resnet50-0676ba61", 25_557_032, 76.130, 92.862)
    IMAGENET1K_V2 = _classifier("resnet50-11ad3fa6", 25_557_032, 80.858, 95.434, resize_size=232)
    DEFAULT = IMAGENET1K_V2


class ResNet101_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("resnet101-63fe2227", 44_549_160, 77.374, 93.546)
    IMAGENET1K_V2 = _classifier("resnet101-cd907fc2", 44_549_160, 81.886, 95.780, resize_size=232)
    DEFAULT = IMAGENET1K_V2


class ResNet152_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("resnet152-394f9c45", 60_192_808, 78.312, 94.046)
    IMAGENET1K_V2 = _classifier("resnet152-f82ba261", 60_192_808, 82.284, 96.002, resize_size=232)
    DEFAULT = IMAGENET1K_V2


class VGG16_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("vgg16-397923af", 138_357_544, 71.592, 90.382)
    DEFAULT = IMAGENET1K_V1


class VGG16_BN_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("vgg16_bn-6c64b313", 138_365_992, 73.360, 91.516)
    DEFAULT = IMAGENET1K_V1


class MobileNet_V2_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("mobilenet_v2-b0353104", 3_504_872, 71.878, 90.286)
    IMAGENET1K_V2 = _classifier("mobilenet_v2-7ebf99e0", 3_504_872, 72.154, 90.822, resize_size=232)
    DEFAULT = IMAGENET1K_V2


class MobileNet_V3_Large_Weights(WeightsEnum):
    IMAGENET1K_V1 = _classifier("mobilenet_v3_large-8738ca79", 5_483_032, 74.042, 91.340)
    IMAGENET1K_V2 = _classifier("mobilenet_v3_large-5c1a4163", 5_483_032, 75.274, 92.566, resize_size=232)
    DEFAULT = IMAGENET1K_V2
