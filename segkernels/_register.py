"""The only file that knows torch.library: schema, fake, autograd, autocast, vmap and the choice of tier.

An operator's file in ``segkernels/ops`` calls :func:`register` once for the forward and once for the backward op. The tier
is chosen below the dispatcher, per device: the compiled libraries register themselves on their dispatch key, and this file
registers Triton and the reference where no compiled kernel stands. :func:`backend` swaps that choice.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.library import Library

from segkernels import _load
from segkernels._eager import caller, no_gradient, vmap_loop
from segkernels._flops import register_flops

NAMESPACE = "segkernels"
#: Where csrc/cuda compiled for the CPU registers itself; exists in tests only.
EMULATED = "segkernels_emulated"
#: Tiers in the order of preference, per device. `emulated` and Triton's interpreter are never chosen on their own.
TIERS = {
    "cpu": ("cpu", "vendor", "triton", "reference", "emulated"),
    "cuda": ("cuda", "triton", "vendor", "reference"),
}
DEVICES = tuple(TIERS)
BACKENDS = ("default", "cpu", "cuda", "triton", "vendor", "reference", "emulated")
#: A compiled tier and the dispatch key its library registers on.
_COMPILED = {"cpu": "CPU", "cuda": "CUDA"}
#: How the table says that a tier could run, where the name alone would mislead.
_AVAILABLE = {"emulated": "available (the CUDA source run on the CPU, for tests only)"}

_library = Library(NAMESPACE, "DEF")
_emulated: Library | None = None
_operators: dict[str, Operator] = {}
_override: list[Library] = []
_forced = "default"


@dataclass(frozen=True)
class Operator:
    """One dispatcher op and what Python knows of it."""

    name: str
    stem: str
    schema: str
    vendor: Callable[..., Any] | None
    differentiable: bool

    @property
    def overload(self) -> Any:
        return getattr(getattr(torch.ops, NAMESPACE), self.name).default


def register(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    vendor: Callable[..., Any] | None = None,
    autocast: str = "keep",
    stem: str | None = None,
    flops: Callable[..., int] | None = None,
) -> Any:
    """Defines ``segkernels::<name>`` and returns a function that calls it; public functions call that.

    Args:
        name: op name; the backward of ``op`` is ``op_backward``.
        schema: the argument list and the returns, ``"(Tensor input, ...) -> Tensor"``.
        fake: shape, dtype and strides of the result for meta and fake tensors.
        backward, setup_context: as in ``torch.library.register_autograd``. Without them the gradient of a floating-point
            result raises; it is never silently absent.
        vendor: torch's own kernel with this op's arguments, where torch has one.
        autocast: ``"keep"`` leaves dtypes alone, ``"lower"`` casts floating-point tensors to autocast's dtype,
            ``"float32"`` casts them up; as torch does for the op that this one replaces.
        stem: file name of the operator when it is not ``name`` without ``_backward``.
        flops: counts floating-point operations for torch's flop counter (segkernels/_flops.py).
    """
    op = Operator(name, stem or name.removesuffix("_backward"), schema, vendor, backward is not None)
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _operators[name] = op
    if _emulated is not None:
        _emulated.define(name + schema)
    overload = op.overload
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}",
        backward or functools.partial(no_gradient, f"{NAMESPACE}::{name}"),
        setup_context=setup_context,
        lib=_library,
    )
    torch.library.register_vmap(f"{NAMESPACE}::{name}", functools.partial(vmap_loop, overload), lib=_library)
    if autocast != "keep":
        for device in ("CPU", "CUDA"):
            _library.impl(name, _autocast_kernel(overload, device, autocast), f"Autocast{device}")
    if flops is not None:
        register_flops(overload.overloadpacket, flops)
    _library.impl(name, _tier_function("reference", op), "CompositeExplicitAutograd")
    chosen = _default_tier(op, "cuda")
    if chosen == "triton":
        _library.impl(name, _tier_function("triton", op), "CUDA")
    return caller(overload, backward, setup_context, autocast != "keep")


def double_backward_through(reference_backward: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``(backward, setup_context)`` of a ``<op>_backward`` op that differentiates its reference with autograd.

    For ops whose double backward is rare: it runs plain differentiable PyTorch.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(value, torch.Tensor) for value in inputs]
        ctx.constants = [None if isinstance(value, torch.Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, torch.Tensor)))

    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        saved = iter(ctx.saved_tensors)
        third_order = torch.is_grad_enabled()
        with torch.enable_grad():
            values = [next(saved) if tensor else value for tensor, value in zip(ctx.is_tensor, ctx.constants)]
            wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
            if not third_order:
                for i in wanted:
                    values[i] = values[i].detach().requires_grad_()
            outputs = reference_backward(*values)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = [(o, g) for o, g in zip(outputs, grads) if g is not None and o is not None and o.requires_grad]
            result: list[torch.Tensor | None] = [None] * len(values)
            if pairs:
                found = torch.autograd.grad(
                    [o for o, _ in pairs],
                    [values[i] for i in wanted],
                    [g for _, g in pairs],
                    create_graph=third_order,
                    allow_unused=True,
                )
                for i, grad in zip(wanted, found):
                    result[i] = grad
        return tuple(result)

    return backward, setup_context


def _autocast_kernel(overload: Any, device: str, policy: str) -> Callable[..., Any]:
    device_type = device.lower()
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (list, tuple)):
            return [cast(part, dtype) for part in value]
        eligible = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible else value

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type) if policy == "lower" else torch.float32
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return overload(*(cast(value, dtype) for value in args))

    return kernel


def _module(tier: str, op: Operator) -> ModuleType:
    return importlib.import_module(f"{NAMESPACE}.{tier}.{op.stem}")


def _tier_function(tier: str, op: Operator) -> Callable[..., Any]:
    if tier == "vendor":
        assert op.vendor is not None
        return op.vendor
    if tier in ("reference", "triton"):
        # Imported at the first call: `import segkernels` must not import Triton.
        def kernel(*args: Any) -> Any:
            return getattr(_module(tier, op), op.name)(*args)

        return kernel
    if tier == "emulated":
        return getattr(getattr(torch.ops, EMULATED), op.name).default
    raise AssertionError(f"{tier} registers itself")


@functools.cache
def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _absence(op: Operator, device: str, tier: str) -> str | None:
    """Why this tier cannot run this op on this device, or None when it can."""
    if tier in _COMPILED:
        reason = _load.library_reasons[tier]
        if reason is not None:
            return reason
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op.name}", _COMPILED[tier]):
            return "no such kernel in the library"
        return None
    if tier == "triton":
        if not _exists(f"{NAMESPACE}.triton.{op.stem}"):
            return "no Triton kernel written"
        if not _exists("triton"):
            return "triton is not installed"
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "runs on a CPU only in Triton's interpreter (TRITON_INTERPRET=1), for tests"
        return None
    if tier == "vendor":
        return None if op.vendor is not None else "torch has no such op"
    if tier == "emulated":
        what = "the CUDA source run on the CPU, for tests only"
        if _emulated is None:
            return f"{what}: not loaded"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{EMULATED}::{op.name}", "CPU"):
            return f"{what}: no such kernel in the library"
        return None
    return None


def _default_tier(op: Operator, device: str) -> str:
    compiled = "cpu" if device == "cpu" else "cuda"
    if _absence(op, device, compiled) is None:
        return compiled
    if device != "cpu" and _absence(op, device, "triton") is None:
        return "triton"
    return "reference"


def _chosen_tier(op: Operator, device: str) -> str:
    if _forced in TIERS[device] and _absence(op, device, _forced) is None:
        return _forced
    return _default_tier(op, device)


def load_emulated(path: Path) -> None:
    """Loads the CUDA kernels compiled for the CPU (csrc/emulation) as the tier ``emulated``; the tests' conftest calls it."""
    global _emulated
    torch.ops.load_library(str(path))
    if _emulated is None:
        _emulated = Library(EMULATED, "DEF")
        for op in _operators.values():
            _emulated.define(op.name + op.schema)


def operators() -> list[str]:
    """Names of all registered dispatcher ops, forward and backward."""
    return sorted(_operators)


class TierTable(dict[str, dict[str, dict[str, Any]]]):
    """``table[op][device]`` is ``{"chosen": tier, "tiers": {tier: None or the reason why not}}``; prints as a table."""

    def __str__(self) -> str:
        lines = [f"{'op':<28}{'device':<8}{'chosen':<11}others"]
        for op, devices in self.items():
            for device, entry in devices.items():
                others = "; ".join(
                    f"{tier}: {reason or _AVAILABLE.get(tier, 'available')}"
                    for tier, reason in entry["tiers"].items()
                    if tier != entry["chosen"]
                )
                lines.append(f"{op:<28}{device:<8}{entry['chosen']:<11}{others}")
        return "\n".join(lines)


def tiers() -> TierTable:
    """Which implementation of each operator runs on each device, and why each other one does not.

    Returns:
        TierTable: ``{op: {device: {"chosen": tier, "tiers": {tier: reason or None}}}}``. A reason of None means that the
        tier can run there. Backward ops follow their forward op and are listed under their own names.
    """
    table = TierTable()
    for name in operators():
        op = _operators[name]
        table[name] = {
            device: {
                "chosen": _chosen_tier(op, device),
                "tiers": {tier: _absence(op, device, tier) for tier in TIERS[device]},
            }
            for device in DEVICES
        }
    return table


def _force(name: str) -> None:
    """Puts one tier in front on every device and op where it can run."""
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    switched = False
    reasons = set()
    overrides: list[tuple[Operator, str, str]] = []
    for op in _operators.values():
        for device in DEVICES if name != "default" else ():
            if name not in TIERS[device]:
                continue
            reason = _absence(op, device, name)
            if reason is not None:
                reasons.add(reason)
                continue
            switched = True
            if name != _default_tier(op, device):
                overrides.append((op, device.upper(), name))
    if name != "default" and not switched:
        raise RuntimeError(f"backend: {name!r} can run no operator here: {'; '.join(sorted(reasons)) or 'no operators'}")
    for library in _override:
        library._destroy()
    _override.clear()
    if overrides:
        library = Library(NAMESPACE, "IMPL")
        with warnings.catch_warnings():
            # Overriding is what this library is for.
            warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered kernel.*")
            for op, key, tier in overrides:
                library.impl(op.name, _tier_function(tier, op), key)
        _override.append(library)
    _forced = name


class backend(contextlib.AbstractContextManager):
    """Selects a tier for all operators: ``segkernels.backend("triton")``, or ``with segkernels.backend("reference"): ...``.

    Operators or devices for which that tier cannot run keep their default; :func:`tiers` says why. Process-wide, like the
    environment variable ``SEGKERNELS_BACKEND``, and not meant to be switched while other threads call operators.

    Args:
        name: ``"default"``, ``"cpu"``, ``"cuda"``, ``"triton"``, ``"vendor"`` (torch's own kernels), ``"reference"``, or
            in this package's own tests ``"emulated"`` (the CUDA source run on the CPU).

    Raises:
        ValueError: for another name.
        RuntimeError: when that tier can run no operator here.
    """

    def __init__(self, name: str) -> None:
        self._before = _forced
        _force(name)

    def __exit__(self, *exception: object) -> None:
        _force(self._before)


def apply_environment() -> None:
    """Obeys ``SEGKERNELS_BACKEND``; a value that cannot be obeyed is a warning, since an import must not fail."""
    name = os.environ.get("SEGKERNELS_BACKEND")
    if not name:
        return
    try:
        _force(name)
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"segkernels: SEGKERNELS_BACKEND is ignored: {error}", RuntimeWarning, stacklevel=2)
