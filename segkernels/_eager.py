"""How a public function calls its dispatcher op in eager mode: with an autograd formula outside of the dispatcher.

segkernels/_register.py says which op; under a compiler it is called as registered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_TENSOR_LIST = "List[Tensor]"


def caller(
    overload: Any, backward: Callable[..., Any] | None, setup_context: Callable[..., Any] | None, autocasts: bool
) -> Callable[..., Any]:
    """The function that public functions call: the op with this autograd formula and, on request, autocast's casts."""
    kinds = [str(value.type) for value in (*overload._schema.arguments, overload._schema.returns[0])]
    call = (_list_call if _TENSOR_LIST in kinds else _call)(overload, backward, setup_context, overload._schema.name)
    return _autocast_call(overload, call) if autocasts else call


def _autocast_call(overload: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """Under autocast the op goes through the dispatcher, where the casts stand above autograd and have gradients."""
    is_autocast = torch._C._is_any_autocast_enabled

    def autocast_call(*args: Any) -> Any:
        return overload(*args) if is_autocast() else call(*args)

    return autocast_call


def _list_call(
    overload: Any, backward: Callable[..., Any] | None, setup_context: Callable[..., Any] | None, name: str
) -> Callable[..., Any]:
    """_call for an op with lists of tensors: autograd.Function sees only tensors that are arguments themselves.

    Lists are laid out as arguments, behind their lengths (None: no list). A returned list becomes a tuple.
    """
    is_compiling = torch.compiler.is_compiling
    returns_list = str(overload._schema.returns[0].type) == _TENSOR_LIST
    lists = [str(argument.type) == _TENSOR_LIST for argument in overload._schema.arguments]

    def grouped(lengths: tuple[int | None, ...], flat: tuple[Any, ...]) -> tuple[Any, ...]:
        values = iter(flat)
        return tuple(next(values) if n is None else [next(values) for _ in range(n)] for n in lengths)

    def flat_op(lengths: tuple[int | None, ...], *flat: Any) -> Any:
        result = overload(*grouped(lengths, flat))
        return tuple(result) if returns_list else result

    def flat_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.lengths = inputs[0]
        if setup_context is not None:
            setup_context(ctx, grouped(inputs[0], inputs[1:]), output)

    def flat_backward(ctx: Any, *grads: Any) -> Any:
        assert backward is not None
        flat_needs = ctx.needs_input_grad
        ctx.needs_input_grad = grouped(ctx.lengths, flat_needs[1:])
        found = backward(ctx, list(grads)) if returns_list else backward(ctx, *grads)
        ctx.needs_input_grad = flat_needs  # a retained graph comes back
        flat: list[Any] = [None]
        for n, grad in zip(ctx.lengths, found):
            flat += [grad] if n is None else ([None] * n if grad is None else grad)
        return tuple(flat)

    flat_call = _call(flat_op, backward and flat_backward, flat_setup_context, name)

    def call(*args: Any) -> Any:
        if is_compiling():
            return overload(*args)
        flat: list[Any] = []
        for is_list, value in zip(lists, args):
            flat += value if is_list else (value,)
        return flat_call(tuple(len(value) if is_list else None for is_list, value in zip(lists, args)), *flat)

    return call


def _call(
    overload: Any, backward: Callable[..., Any] | None, setup_context: Callable[..., Any] | None, name: str
) -> Callable[..., Any]:
    """Calls the op past the Python kernel on its Autograd key, with the same autograd formula around it.

    That kernel costs 15 us a call on a 2-core machine, gradient or not, where the op itself takes 8 (inference mode skips
    it), and it does not know torch.func; an outside autograd.Function costs half of it and knows, and no gradient costs
    nothing. Under a compiler the op is called as registered.
    """
    below_autograd = torch._C._AutoDispatchBelowAutograd
    functorch_active = torch._C._are_functorch_transforms_active
    any_requires_grad = torch._C._any_requires_grad
    is_grad_enabled = torch.is_grad_enabled
    is_compiling = torch.compiler.is_compiling
    # The dispatcher's entry without OpOverload's Python frame around it.
    dispatch = getattr(overload, "_op", overload)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            with below_autograd():
                return overload(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if setup_context is not None:
                setup_context(ctx, inputs, output)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
            return vmap_loop(call, info, in_dims, *args)

    Eager.backward = staticmethod(backward or functools.partial(no_gradient, name))  # type: ignore[method-assign]
    Eager.__name__ = Eager.__qualname__ = name.replace("::", "_")

    # Function.apply binds the arguments to forward's signature and looks for functorch at every call, 20 us on that machine.
    apply = super(torch.autograd.Function, Eager).apply

    def call(*args: Any) -> Any:
        if is_compiling():
            return overload(*args)
        if functorch_active():
            return Eager.apply(*args)
        if is_grad_enabled() and any_requires_grad(*args):
            return apply(*args)
        with below_autograd():
            return dispatch(*args)

    return call


def no_gradient(name: str, ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(f"{name} has no gradient: its derivative is not defined")


def vmap_loop(call: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    # One call per element of the mapped dimension: right for every op, and what PyTorch's own fallback does.
    def element(value: Any, dim: Any, i: int) -> Any:
        if isinstance(dim, (list, tuple)):
            return [element(part, d, i) for part, d in zip(value, dim)]
        return value.select(dim, i) if isinstance(dim, int) else value

    results = [call(*(element(a, d, i) for a, d in zip(args, in_dims))) for i in range(info.batch_size)]
    if isinstance(results[0], (list, tuple)):
        return tuple(torch.stack(parts) for parts in zip(*results)), (0,) * len(results[0])
    return torch.stack(results), 0
