"""Operators as functions; every one is also a dispatcher op ``torch.ops.segkernels.<name>``."""

from segkernels.ops.max_pool2d import max_pool2d
from segkernels.ops.max_unpool2d import max_unpool2d

__all__ = ["max_pool2d", "max_unpool2d"]
