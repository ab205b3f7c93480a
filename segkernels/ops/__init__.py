"""Operators as functions; every one is also a dispatcher op ``torch.ops.segkernels.<name>``."""

from segkernels.ops.dice_bce_loss import dice_bce_loss
from segkernels.ops.max_unpool2d import max_unpool2d

__all__ = ["dice_bce_loss", "max_unpool2d"]
