"""Export to ONNX: the operators of this package as standard ONNX ops, which any runtime has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["translation_table"]


def translation_table() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """How :func:`torch.onnx.export` writes the operators of this package, in standard ops of opset 18 and later.

    ``torch.onnx.export(model.eval(), args, dynamo=True, custom_translation_table=segkernels.onnx.translation_table())``

    - ``conv2d``, ``conv_transpose1d``, ``conv_transpose2d``, ``depthwise_separable_conv2d``, ``multi_dilation_conv2d``:
      Conv, ConvTranspose, Relu and Concat.
    - ``max_pool2d``, with int64 and uint8 indices: MaxPool.
    - ``max_unpool2d``: MaxUnpool for the default output size; else, and where sizes are dynamic, ScatterElements, since
      runtimes disagree on MaxUnpool's ``output_shape``. Where pooling windows overlap, the runtime chooses among duplicates.
    - ``upsample_bilinear2d``, ``upsample_nearest2d``: Resize; for a fixed size whose coordinates Resize does not reproduce
      Gather, and for bilinear weights. ``upsample_argmax``: Resize and ArgMax.
    - ``roi_align``: RoiAlign, of a fixed output size.
    - ``bed_of_nails``: Pad. ``nms``: NonMaxSuppression.

    Absent, for want of a standard op of the same meaning: ``multiscale_roi_align``, ``roi_pool`` (MaxRoiPool rounds
    otherwise), ``batched_nms``, ``box_iou``, ``paste_masks``, ``paste_masks_rle``, ``confusion_matrix``, the losses and
    their statistics, and all backward ops. A model that uses one of them does not export.

    Returns:
        dict: a new one at each call, from ``torch.ops.segkernels.<name>.default`` to a function of the same arguments.

    Raises:
        ImportError: without onnxscript; the extra ``segkernels[onnx]`` has it.
    """
    try:
        from segkernels.onnx import _translations
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("onnx", "onnx_ir", "onnxscript"):
            raise
        raise ImportError("translation_table needs onnxscript: pip install 'segkernels[onnx]'") from None
    return {getattr(torch.ops.segkernels, function.__name__).default: function for function in _translations.TRANSLATIONS}
