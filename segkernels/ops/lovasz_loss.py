"""The Lovasz losses: the hinge of binary and multilabel logits, and Lovasz-softmax."""

from __future__ import annotations

from typing import Any

import torch

from segkernels._layout import memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_floating, check_same_device
from segkernels.ops._loss_arguments import REDUCTIONS, choice, planes

HINGE, SOFTMAX, PROBABILITIES = range(3)
_CLASSES = {"present": 0, "all": 1}
_LABELS = (torch.uint8, torch.bool, torch.int32, torch.int64)


def _fake(input, target, errors, ignore_index, per_image, all_classes):
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    loss = torch.empty(input.shape[0] if per_image else 1, dtype=dtype, device=input.device)
    return loss, torch.empty(input.shape, dtype=dtype, device=input.device)


def _backward_fake(grad_output, input, slopes, errors, per_image):
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    input, _, errors, _, per_image, _ = inputs
    slopes = output[1]
    ctx.mark_non_differentiable(slopes)
    ctx.options = errors, per_image
    ctx.save_for_backward(input, slopes)


def _backward(ctx: Any, grad: torch.Tensor, grad_slopes: torch.Tensor | None) -> tuple[Any, ...]:
    return _op_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), *(None,) * 5


_op = register(
    "lovasz_loss",
    "(Tensor input, Tensor target, int errors, int? ignore_index, bool per_image, bool all_classes) "
    "-> (Tensor loss, Tensor slopes)",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_op_backward = register(
    "lovasz_loss_backward",
    "(Tensor grad_output, Tensor input, Tensor slopes, int errors, bool per_image) -> Tensor",
    fake=_backward_fake,
)


def lovasz_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    mode: str = "binary",
    per_image: bool = False,
    ignore_index: int | None = None,
    from_logits: bool = True,
    *,
    classes: str = "present",
    reduction: str = "mean",
) -> torch.Tensor:
    r"""The Lovasz extension of the Jaccard loss (Berman, Triki and Blaschko 2018), with one sort per class.

    With the errors :math:`m` of a class sorted in decreasing order and :math:`J_k` one minus the Jaccard index of a
    prediction that has the first k pixels wrong, the class costs :math:`\sum_k m_k (J_k - J_{k-1})`. Errors are
    :math:`\max(0, 1 - (2t - 1) x)` of logits in the modes binary and multilabel (the hinge) and :math:`|t_c - p_c|` of the
    softmax in mode multiclass, whose loss is the mean over classes. Replaces ``LovaszLoss`` of
    segmentation-models-pytorch, where every class is a sort and a host sync of its own.

    Args:
        input (Tensor[N, 1, H, W] or Tensor[N, H, W] for binary; Tensor[N, C, H, W] otherwise): logits; float32, float64,
            float16 or bfloat16.
        target (Tensor[N, H, W] or Tensor[N, 1, H, W]; the shape of ``input`` for multilabel): 0 and 1, or for multiclass
            classes in [0, C); uint8, int32 or int64, or for the hinge also a floating type.
        mode: ``"binary"``, ``"multilabel"`` (all channels are one set of pixels, as in SMP) or ``"multiclass"``.
        per_image: one loss for each sample instead of one for the batch.
        ignore_index: label of pixels that take no part.
        from_logits: False, in mode multiclass, takes ``input`` as probabilities.
        classes: of multiclass: the mean is over those ``"present"`` in the target, or ``"all"``.
        reduction: over samples with ``per_image``: ``"mean"``, ``"sum"`` or ``"none"`` (Tensor[N]; Tensor[1] without).

    Returns:
        Tensor: scalar; float64 for float64 input and float32 otherwise. The gradient has the dtype and the memory format of
        ``input``.

    Without a valid pixel the loss is 0 and so is the gradient. Deterministic: equal errors are ranked in the order of their
    pixels, and results are bit-equal between runs and numbers of threads. For backward one float for each logit is kept.

    Raises:
        ValueError, TypeError: for a wrong mode, name, rank, dtype, device or shape.
        RuntimeError: on CPU, for another label; for the second derivative, which is 0 almost everywhere or undefined.
    """
    check_floating(input, "input")
    reduced = choice(reduction, "reduction", REDUCTIONS)
    if mode == "multiclass":
        values, labels = _classes(input, target)
        errors = SOFTMAX if from_logits else PROBABILITIES
    else:
        values, labels = planes(input, target, mode)
        errors = HINGE
        if not from_logits:
            raise ValueError(f"from_logits: expected True, got False: the hinge of mode={mode!r} is one of logits")
    loss, _ = _op(values, labels, errors, ignore_index, per_image, bool(choice(classes, "classes", _CLASSES)))
    if reduced == REDUCTIONS["none"]:
        return loss
    if loss.numel() == 1:
        return loss.squeeze(0)
    return loss.mean() if reduced == REDUCTIONS["mean"] and loss.numel() else loss.sum()


def _classes(input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target: expected a Tensor, got {type(target).__name__}")
    if target.dtype not in _LABELS:
        raise TypeError(f"target: expected uint8, int32 or int64 for mode='multiclass', got {target.dtype}")
    check_same_device(input, target, "input", "target")
    shape, target_shape = input.shape, target.shape
    if len(shape) != 4:
        raise ValueError(f"input: expected [N, C, H, W] for mode='multiclass', got shape {list(shape)}")
    if len(target_shape) == 4 and target_shape[1] == 1:
        target = target.squeeze(1)
    if target.shape != (shape[0], shape[2], shape[3]):
        raise ValueError(f"target: expected [N, H, W] for input {list(shape)}, got shape {list(target_shape)}")
    return input, target
