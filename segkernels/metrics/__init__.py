"""Evaluation that accumulates on the device and waits for it only when a figure is read."""

from segkernels.metrics.coco_ap import CocoAP
from segkernels.metrics.confusion_matrix import ConfusionMatrix
from segkernels.metrics.panoptic_quality import PanopticQuality

__all__ = ["CocoAP", "ConfusionMatrix", "PanopticQuality"]
