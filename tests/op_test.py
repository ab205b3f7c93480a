"""The base class of every operator's test.

A test file declares the op, an oracle and named samples; the class below turns them into the checks that every operator must
pass (ARCHITECTURE: correctness in every dtype and tier, gradients to second order, opcheck, compile, autocast, layouts,
determinism). The file adds only what its op alone needs.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

import segkernels
from segkernels._register import DEVICES, TIERS

#: The kernels of Triton run on the CPU, one program after the other, at ten milliseconds a call.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

#: Orders of threads and blocks in the emulation of CUDA (csrc/emulation); 0 is index order.
EMULATION_SEEDS = (0, 1, 2, 3)

#: Tiers of the GPU, which do not wait for the device and so cannot raise for a value they meet in a tensor.
NO_SYNC = ("cuda", "triton", "emulated")

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass
class Sample:
    """One call: ``function(*args, **kwargs)``; ``grad`` are the positions of the arguments that take a gradient."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    grad: tuple[int, ...] = (0,)

    def converted(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        args = tuple(convert(a) if isinstance(a, torch.Tensor) else a for a in self.args)
        return Sample(self.name, args, self.kwargs, self.grad)

    def leaves(self, dtype: torch.dtype | None = None) -> tuple[Sample, list[torch.Tensor]]:
        """A copy whose gradient arguments are fresh leaves, and those leaves; floating tensors in ``dtype``."""

        def convert(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

        sample = self.converted(convert)
        args = list(sample.args)
        for i in self.grad:
            args[i] = args[i].detach().clone(memory_format=torch.preserve_format).requires_grad_()
        return Sample(self.name, tuple(args), self.kwargs, self.grad), [args[i] for i in self.grad]


def set_seed(value: int) -> None:
    """torch.manual_seed, which without a GPU writes down a stack trace for each kind of device that is not there: an eighth of
    the time of these tests."""
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(value)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Uninitialised tensors hold NaN (largest integer for integers), and a nondeterministic op of torch's own raises.

    Reaches the kernels' own allocations, which go through aten::empty.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@functools.cache
def available_tiers(op: str, *, only: str | None = None) -> list[tuple[str, str]]:
    """(device, tier) pairs of our own that can run here; ``only`` restricts to one tier."""
    table = segkernels.tiers()[op]
    pairs = []
    for device in DEVICES:
        if device == "cuda" and not torch.cuda.is_available():
            continue
        for tier in TIERS[device]:
            ours = tier == only or (only is None and tier != "vendor")
            if ours and table[device]["tiers"][tier] is None:
                pairs.append((device, tier))
    return pairs


def first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, (tuple, list)) else value


def max_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    return (actual.double() - expected.double()).abs().max().item()


def assert_close_as_torch(
    actual: torch.Tensor, expected: torch.Tensor, peer: torch.Tensor | None, what: str, floor: float = 2.0
) -> None:
    """Error against the float64 ``expected`` at most twice that of ``peer`` (PyTorch in the same dtype), plus a floor.

    The floor is ``floor`` units in the last place of the largest expected value: PyTorch's error can be zero by luck.
    """
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)} instead of {list(expected.shape)}"
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN in other places than expected"
    actual, expected = actual.nan_to_num(), expected.nan_to_num()
    scale = expected.abs().max().item() if expected.numel() else 0.0
    if actual.dtype == torch.float64:
        floor *= 16  # the oracle's own rounding, which no peer measures
    allowed = floor * torch.finfo(actual.dtype).eps * max(scale, torch.finfo(actual.dtype).tiny)
    if peer is not None:
        allowed += 2 * max_error(peer.nan_to_num(), expected)
    error = max_error(actual, expected)
    assert error <= allowed, f"{what}: error {error:.3e} against float64, allowed {allowed:.3e}"


class OpTest:
    """Subclass as ``TestMyOp(OpTest)`` and set the class variables."""

    #: dispatcher name
    op: ClassVar[str]
    #: the public function
    function: ClassVar[Callable[..., Any]]
    #: the same call in plain differentiable PyTorch, exact in float64
    oracle: ClassVar[Callable[..., Any]]
    #: PyTorch's own op or composition in the tested dtype, whose error sets the tolerance; None: the oracle in that dtype
    peer: ClassVar[Callable[..., Any] | None] = None
    dtypes: ClassVar[tuple[torch.dtype, ...]] = FLOATING
    #: values are moved, not computed: results must be equal, not close
    exact: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    #: False where torch's own kernels run, whose sums depend on the number of threads
    equal_between_thread_counts: ClassVar[bool] = True
    #: output dtype under autocast for float32 inputs, per device type; None: unchanged
    autocast_dtype: ClassVar[torch.dtype | None] = None
    #: names of samples small enough for gradcheck
    gradcheck_samples: ClassVar[tuple[str, ...]] = ()
    #: names of samples left out in Triton's interpreter, which is slow, where others take the same paths of the kernels
    not_interpreted: ClassVar[tuple[str, ...]] = ()

    def samples(self, device: str, dtype: torch.dtype) -> list[Sample]:
        """Named cases, the same for the same arguments; the first one is used where one is enough."""
        raise NotImplementedError

    # -- plumbing ---------------------------------------------------------------------------------------------------------

    def sample(self, name: str, device: str, dtype: torch.dtype) -> Sample:
        if name in self.not_interpreted and INTERPRETED:
            pytest.skip("other samples take the same paths")
        set_seed(sum(map(ord, name)))
        return next(s for s in self.samples(device, dtype) if s.name == name)

    def call(self, sample: Sample) -> Any:
        return type(self).function(*sample.args, **sample.kwargs)

    def expect(self, sample: Sample) -> Any:
        return type(self).oracle(*sample.args, **sample.kwargs)

    def gradients(
        self, function: Callable[..., Any], sample: Sample, dtype: torch.dtype, grad: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        sample, leaves = sample.leaves(dtype)
        output = first(function(*sample.args, **sample.kwargs))
        grads = torch.autograd.grad(output, leaves, grad.to(output.dtype))
        return output.detach(), list(grads)

    # -- checks -----------------------------------------------------------------------------------------------------------

    def test_forward_and_backward(self, tier: tuple[str, str], dtype: torch.dtype, case: str) -> None:
        device, name = tier
        sample = self.sample(case, device, dtype)
        function, oracle, peer = type(self).function, type(self).oracle, type(self).peer or type(self).oracle
        with segkernels.backend(name):
            with poisoned_memory():
                output = first(self.call(sample))
            exact_sample, _ = sample.leaves(torch.float64)
            expected = first(oracle(*exact_sample.args, **exact_sample.kwargs)).detach()
            if not output.is_floating_point():
                assert torch.equal(output, expected), f"{case}: differs from the oracle"
                return
            if not self.differentiable:
                self._compare(output, expected, first(peer(*sample.args, **sample.kwargs)), f"{case}: output")
                return
            grad = torch.randn(output.shape, dtype=torch.float64, device=device).to(output.dtype)
            with poisoned_memory():
                output, grads = self.gradients(function, sample, dtype, grad)
        expected, expected_grads = self.gradients(oracle, sample, torch.float64, grad)
        peer_output, peer_grads = self.gradients(peer, sample, dtype, grad)
        self._compare(output, expected, peer_output, f"{case}: output")
        for i, actual in enumerate(grads):
            assert actual.dtype == dtype
            self._compare(actual, expected_grads[i], peer_grads[i], f"{case}: gradient {sample.grad[i]}")

    def _compare(self, actual: torch.Tensor, expected: torch.Tensor, peer: torch.Tensor, what: str) -> None:
        if self.exact:
            assert torch.equal(actual, expected.to(actual.dtype)), f"{what}: not equal"
        else:
            assert_close_as_torch(actual, expected, peer, what)

    def test_deterministic(self, tier: tuple[str, str], case: str) -> None:
        device, name = tier
        sample = self.sample(case, device, self.dtypes[0])
        with segkernels.backend(name):
            results = []
            for threads in (1, 2, 2) if self.equal_between_thread_counts else (2, 2):
                torch.set_num_threads(threads)
                run, leaves = sample.leaves() if self.differentiable else (sample, [])
                output = first(self.call(run))
                grads = torch.autograd.grad(output, leaves, torch.ones_like(output)) if leaves else ()
                results.append((output, *grads))
        for again in results[1:]:
            for a, b in zip(results[0], again):
                equal = torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num())
                assert equal, f"{case}: differs between runs or thread counts"

    def test_schedules(self, tier: tuple[str, str], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The CUDA source gives the same bits in whatever order its blocks and threads advance."""
        device, name = tier
        sample = self.sample(case, device, self.dtypes[0])
        results = []
        with segkernels.backend(name):
            for seed in EMULATION_SEEDS:
                monkeypatch.setenv("SEGKERNELS_EMULATION_SEED", str(seed))
                run, leaves = sample.leaves() if self.differentiable else (sample, [])
                output = first(self.call(run))
                set_seed(0)
                grads = torch.autograd.grad(output, leaves, torch.randn_like(output)) if leaves else ()
                results.append((output, *grads))
        for seed, again in zip(EMULATION_SEEDS[1:], results[1:]):
            for a, b in zip(results[0], again):
                assert torch.equal(a.nan_to_num(), b.nan_to_num()), f"{case}: seed {seed} differs from index order"

    def test_memory_formats(self, tier: tuple[str, str]) -> None:
        """channels_last, non-contiguous and expanded-gradient inputs give the values of the contiguous call."""
        device, name = tier
        sample = self.samples(device, self.dtypes[0])[0]
        with segkernels.backend(name):
            expected, expected_grads = self._with_ones(sample)
            for what, convert in (
                ("channels_last", lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t),
                ("strided", lambda t: torch.stack([t, t], -1)[..., 0] if t.dim() else t),
                ("offset", lambda t: torch.cat([t[:1], t])[1:] if t.dim() else t),
            ):
                actual, grads = self._with_ones(sample.converted(convert))
                if actual.is_floating_point():
                    torch.testing.assert_close(actual, expected, msg=lambda m, w=what: f"{w}: {m}")
                else:
                    assert torch.equal(actual, expected), what
                if what == "channels_last" and actual.dim() == 4:
                    assert actual.is_contiguous(memory_format=torch.channels_last), "memory format is not kept"
                for a, b in zip(grads, expected_grads):
                    torch.testing.assert_close(a, b, msg=lambda m, w=what: f"{w} gradient: {m}")

    def _with_ones(self, sample: Sample) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        if not self.differentiable:
            return first(self.call(sample)), ()
        sample, leaves = sample.leaves()
        output = first(self.call(sample))
        # sum() hands over a gradient of stride 0.
        return output.detach(), torch.autograd.grad(output.sum(), leaves)

    def test_gradcheck(self, gradcheck_case: str) -> None:
        sample, leaves = self.sample(gradcheck_case, "cpu", torch.float64).leaves()

        def function(*values: torch.Tensor) -> torch.Tensor:
            args = list(sample.args)
            for i, value in zip(sample.grad, values):
                args[i] = value
            return first(type(self).function(*args, **sample.kwargs))

        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)

    def test_opcheck(self) -> None:
        """opcheck on the dispatcher op with the very arguments that the public function hands to it."""
        for sample in self.samples("cpu", torch.float32)[:2]:
            for overload, args in self.dispatcher_calls(sample):
                torch.library.opcheck(overload, args)

    def dispatcher_calls(self, sample: Sample) -> list[tuple[Any, tuple[Any, ...]]]:
        """Every segkernels op that one forward and backward calls, with its arguments."""
        recorder = _Recorder()
        with recorder:
            if self.differentiable:
                self._with_ones(sample)
            else:
                self.call(sample)
        assert recorder.calls, f"{self.op}: the public function calls no dispatcher op"
        return recorder.calls

    def test_compile(self) -> None:
        sample = self.samples("cpu", torch.float32)[0]
        torch._dynamo.reset()
        compiled = torch.compile(type(self).function, fullgraph=True, backend="aot_eager")
        expected, expected_grads = self._with_ones(sample)
        if not self.differentiable:
            assert torch.equal(first(compiled(*sample.args, **sample.kwargs)), expected)
            return
        run, leaves = sample.leaves()
        output = first(compiled(*run.args, **run.kwargs))
        grads = torch.autograd.grad(output.sum(), leaves)
        torch.testing.assert_close(output.detach(), expected)
        for a, b in zip(grads, expected_grads):
            torch.testing.assert_close(a, b)

    def test_autocast(self) -> None:
        sample = self.samples("cpu", torch.float32)[0]
        with torch.autocast("cpu", torch.bfloat16):
            output = first(self.call(sample))
        assert output.dtype == (self.autocast_dtype or first(self.call(sample)).dtype)
        if self.differentiable:
            sample, leaves = sample.leaves()
            with torch.autocast("cpu", torch.bfloat16):
                output = first(self.call(sample))
            grads = torch.autograd.grad(output.sum(), leaves)
            assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in leaves]

    def test_functorch(self) -> None:
        """torch.func.vmap over a stacked argument and torch.func.grad agree with plain calls."""
        sample = self.samples("cpu", torch.float32)[0]
        if not self.differentiable:
            return
        position = sample.grad[0]
        value = sample.args[position]

        def function(tensor: torch.Tensor) -> torch.Tensor:
            args = list(sample.args)
            args[position] = tensor
            return first(type(self).function(*args, **sample.kwargs))

        stacked = torch.stack([value, value * 0.5])
        mapped = torch.func.vmap(function)(stacked)
        torch.testing.assert_close(mapped, torch.stack([function(value), function(value * 0.5)]))
        _, grads = self._with_ones(sample)
        torch.testing.assert_close(torch.func.grad(lambda t: function(t).sum())(value), grads[0])

    @pytest.mark.gpu
    def test_devices_agree(self, case: str) -> None:
        on_cpu = first(self.call(self.sample(case, "cpu", self.dtypes[0])))
        on_gpu = first(self.call(self.sample(case, "cpu", self.dtypes[0]).converted(lambda t: t.cuda())))
        torch.testing.assert_close(on_gpu.cpu(), on_cpu)


class _Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "segkernels":
            detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
            self.calls.append((func, detached))
        return func(*args, **(kwargs or {}))
