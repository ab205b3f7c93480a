"""Evaluation that accumulates on the device and waits for it only when a figure is read."""

from segkernels.metrics.confusion_matrix import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
