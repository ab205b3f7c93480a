"""Puts this package's operators under the modules of models that exist already, and takes them away again."""

from __future__ import annotations

import copy

import torch
from torch import nn

from segkernels._accelerate._classes import accelerated_class, devices, original_class, why_no_kernel
from segkernels._accelerate._functional import accelerated
from segkernels._accelerate._report import Entry, Report
from segkernels._accelerate._rules import Rule, targets

__all__ = ["Entry", "Report", "accelerate", "accelerated", "restore"]


def accelerate(model: nn.Module, inplace: bool = True) -> Report:
    """Runs the modules of a model on segkernels where that is faster and equal; :func:`restore` undoes it.

    Takes any module: models of torchvision, segmentation-models-pytorch (SMP), MONAI, timm and your own, or a loss. Replaced:
    ConvTranspose1d and 2d, depthwise Conv2d, on a CPU dense atrous Conv2d of dilation 4 and more, MaxPool2d, MaxUnpool2d,
    Upsample (bilinear, nearest), torchvision's RoIAlign, RoIPool and MultiScaleRoIAlign, torch's CrossEntropyLoss, SMP's Dice,
    Jaccard, Tversky, focal, Lovasz and SoftCrossEntropy losses, MONAI's Dice, DiceCE, Tversky and focal losses. Functions that
    a forward calls (``F.interpolate``, ``torchvision.ops.nms``) are not modules: see :func:`accelerated`.

    A replaced module is the same object with the same parameters; only its class is exchanged for a subclass of it. So
    hooks, names, ``state_dict``, ``requires_grad``, training mode, shared modules, optimizers and DDP keep, and the model can
    be copied and pickled (unpickling needs segkernels). Inputs that an op does not take, or not faster, go to torch's code at
    each call. Results are equal to rounding; integer labels outside their range raise where SMP and MONAI count them.

    Kept, with the reason: what torch does as fast (dense convolutions), modules that are parametrized, pruned, quantised,
    lazy or scripted, subclasses with a forward of their own, and what has no kernel on the model's device. Call it after the
    model is on its device and in its dtype; calling it again takes in what has changed. Restore before exporting to ONNX
    or TorchScript.

    Args:
        model (nn.Module): is changed, unless ``inplace`` is False.
        inplace: False leaves ``model`` alone and changes a deep copy, the report's ``model``. Default: True.

    Returns:
        Report: ``entries`` with ``path``, ``before``, ``after`` (None: kept) and ``reason``; ``replaced``, ``kept``,
        ``to_dict()``, ``report["decoder.up1"]``; printing it gives a table, ``report.print()`` one in colour.

    Raises:
        TypeError: for something other than a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not inplace:
        model = copy.deepcopy(model)
    rules = targets()
    device = next((tensor.device.type for tensor in (*model.parameters(), *model.buffers())), "cpu")
    entries: list[Entry] = []
    others = 0
    for path, module in model.named_modules():
        entry = _accelerate_module(path, module, rules, device)
        if entry is None:
            others += 1
        else:
            entries.append(entry)
    return Report(model, entries, others)


def restore(model: nn.Module) -> int:
    """Gives the modules of an accelerated model their own classes back.

    They are the same objects with the parameters, buffers and hooks they have now, trained or loaded since.

    Args:
        model (nn.Module): any model; one that was never accelerated stays as it is.

    Returns:
        int: number of modules restored, 0 for a model that was not accelerated.

    Raises:
        RuntimeError: for a module that was parametrized after :func:`accelerate`; remove the parametrization first. Nothing
            is restored then.
    """
    found = []
    for path, module in model.named_modules():
        original = original_class(module)
        if original is not None:
            found.append((module, original))
        elif hasattr(type(module), "_accelerated_from"):
            raise RuntimeError(
                f"restore: expected {path or 'model'} as accelerate() left it, got {type(module).__name__} on top"
            )
    for module, original in found:
        module.__class__ = original
    return len(found)


def _accelerate_module(path: str, module: nn.Module, rules: dict[type[nn.Module], Rule], device: str) -> Entry | None:
    """Exchanges the class if a rule says so; None for a module of a kind that no rule knows."""
    original = original_class(module)
    kind = original or type(module)
    target = next((cls for cls in kind.__mro__ if cls in rules), None)
    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    if target is None:
        reason = _foreign(module, rules)
        return None if reason is None else Entry(path, name, None, reason)
    rule = rules[target]
    after = f"segkernels {rule.ops[0]}" if rule.ops else None
    if original is not None:
        return Entry(path, name, after, "accelerated before")
    reason = _kept(module, target, rule, device)
    if reason is None:
        assert rule.by is not None
        module.__class__ = accelerated_class(kind, rule.by, rule.ops)
    return Entry(path, name, None if reason else after, reason)


def _kept(module: nn.Module, target: type[nn.Module], rule: Rule, device: str) -> str | None:
    cls = type(module)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "lazy: accelerate again after the first batch"
    if nn.utils.parametrize.is_parametrized(module):
        return "parametrized"
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            return f"its weight is made by {type(hook).__name__}"
    if "forward" in vars(module):
        return "its forward was set on the instance"
    if cls.__module__.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.qat", "torch.nn.intrinsic")):
        return "quantised"
    for method in rule.methods:
        if getattr(cls, method) is not getattr(target, method):
            return f"{cls.__name__}.{method} is its own"
    reason = rule.keep(module)
    if reason is not None or rule.by is None:
        return reason
    ready = devices(rule.ops)
    if (device != "meta" and device not in ready) or not ready:
        return why_no_kernel(rule.ops, device if device != "meta" else "cpu")
    return None


def _foreign(module: nn.Module, rules: dict[type[nn.Module], Rule]) -> str | None:
    """Modules that are named as those of a rule without being one."""
    names = {rule.name for rule in rules.values()}
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript" if getattr(module, "original_name", None) in names else None
    quantised = type(module).__module__.startswith(("torch.ao.", "torch.nn.quantized"))
    return "quantised" if quantised and type(module).__name__ in names else None
