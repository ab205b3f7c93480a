"""Operators as functions; every one is also a dispatcher op ``torch.ops.segkernels.<name>``."""

from segkernels.ops.confusion_matrix import confusion_matrix
from segkernels.ops.max_unpool2d import max_unpool2d

__all__ = ["confusion_matrix", "max_unpool2d"]
