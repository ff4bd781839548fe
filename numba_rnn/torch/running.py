"""One direction of one layer as a node of autograd.

Tensors become arrays, and arrays tensors, without a copy: through NumPy on the CPU, through DLPack
on a GPU. What runs is a layer of ``numba_rnn.layers``, which keeps in itself what backward needs,
so that every node has one of its own; a node that is gone gives its layer back to be used again.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch.autograd import forward_ad

from ..backend import engine_of
from ..layers import TimeRecurrent

FLOATS = (torch.float32, torch.float64)
_REMEDY = "numba_rnn.torch.restore(model) makes its modules torch's own again"


class Form(Protocol):
    """How the weights of a module become a layer's parameters, and its gradients theirs."""

    def make(self, weights: Sequence[torch.Tensor]) -> TimeRecurrent: ...
    def fill(self, layer: TimeRecurrent, weights: Sequence[torch.Tensor]) -> None: ...
    def gradients(self, layer: TimeRecurrent) -> list[torch.Tensor]: ...


class Runner:
    """Runs one direction of one layer; may do so several times before autograd comes back."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._free: list[_Borrowed] = []

    def __call__(
        self,
        xs: torch.Tensor,
        state: Sequence[torch.Tensor] | None,
        weights: Sequence[torch.Tensor],
        mask: Any = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """xs (N, T, D) -> hs (N, T, H), and the states (N, H) after each row's last step.

        state  the states before, None: zeros
        mask   (N, T) bool array: the steps that are there; None: all

        torch.compile leaves it as it is. Raises TypeError for other dtypes than float32 and
        float64, RuntimeError while torch.jit.trace or torch.export records what it cannot see, and
        for derivatives other than first ones in reverse mode.
        """
        if getattr(torch.compiler, "is_exporting", bool)():  # torch has it from 2.7 on
            refuse_recording()
        if torch.compiler.is_dynamo_compiling():
            outside = torch.compiler.disable(self.__call__)  # type: ignore[no-untyped-call]
            return outside(xs, state, weights, mask)
        given = tuple(state or ())
        tensors = xs, *given, *weights
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        _expect_runs_here(tensors)
        _expect_reverse_mode(tensors, keep)
        run: Callable[..., Any] = _Node.apply if keep else _without_gradient
        hs, *after = run(self, mask, len(given), xs, *given, *weights)
        return hs, tuple(after)

    def borrow(self, weights: Sequence[torch.Tensor], compare: bool) -> "_Borrowed":
        """A layer with these weights that nobody else uses.

        compare  look first whether the layer has them already, which takes a fraction of the time
                 (numbers are compared: torch counts no writes through ``.data``)
        """
        try:
            one = self._free.pop()
        except IndexError:
            one = _Borrowed(self)
        now = [(w.shape, w.dtype, w.device) for w in weights]
        if one.layer is None or one.sizes != now:
            one.layer, one.sizes, one.seen = self._form.make(weights), now, None
        elif not (compare and one.seen and all(map(torch.equal, one.seen, weights))):
            self._form.fill(one.layer, weights)
            one.seen = None
        if compare and not one.seen:
            one.seen = [weight.detach().clone() for weight in weights]
        return one

    def gradients(self, layer: TimeRecurrent) -> list[torch.Tensor]:
        """Of the weights, after the layer's backward."""
        return self._form.gradients(layer)


class _Borrowed:
    """A layer in use; when this is gone, its runner may use the layer again."""

    def __init__(self, owner: Runner) -> None:
        self._owner = owner
        self.layer: Any = None
        self.sizes: list[Any] = []  # of the weights that it was made for
        self.seen: list[torch.Tensor] | None = None  # the weights that it has, if they are known

    def give_back(self) -> None:
        """Drop what the layer keeps, and let it be used again."""
        self.layer.forget()
        self.layer.reset_state()
        self._owner._free.append(self)


class _Lease:
    """Gives a layer back when autograd has dropped its node."""

    def __init__(self, borrowed: _Borrowed) -> None:
        self.borrowed = borrowed

    def __del__(self) -> None:
        self.borrowed.give_back()


def refuse_recording() -> NoReturn:
    """Raise the error of whatever would write down torch's operations in a module of ours."""
    raise RuntimeError(
        "torch.jit (trace, script), torch.export and torch.fx record operations of torch: they "
        f"would miss what numba_rnn computes, or take it for constants; {_REMEDY}"
    )


def _is_recording() -> bool:
    """Whether torch.jit.trace, or make_fx, writes down the operations that are run."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or (proxies is not None and proxies.get_proxy_mode() is not None)


def _expect_runs_here(tensors: Sequence[torch.Tensor]) -> None:
    if _is_recording():
        refuse_recording()
    for tensor in tensors:
        if tensor.is_meta:
            raise TypeError(
                "input and weights: expected numbers, got a tensor on the device meta, which has "
                f"none; {_REMEDY}, which take it"
            )
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"input and weights: expected float32 or float64, got {tensor.dtype}; "
                "torch.autocast has to be off where the module is called"
            )


def _expect_reverse_mode(tensors: Sequence[torch.Tensor | None], keep: bool) -> None:
    """Refuse tensors whose derivatives would be lost here: those of torch.func, and tangents.

    keep  whether a node of autograd would be made, which torch.func's functions do not take
    """
    of = torch._C._functorch
    if (keep and torch._C._are_functorch_transforms_active()) or any(
        of.is_functorch_wrapped_tensor(t)
        or of.is_legacy_batchedtensor(t)
        or forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]
        for t in tensors
        if t is not None
    ):
        raise RuntimeError(
            "numba_rnn.torch computes derivatives by backward and torch.autograd.grad alone: for "
            "torch.func (grad, jvp, vmap ...), batched gradients and forward mode "
            f"(torch.autograd.forward_ad) {_REMEDY}"
        )


def _forward(
    runner: Runner,
    mask: Any,
    states: int,
    xs: torch.Tensor,
    rest: Sequence[torch.Tensor],
    compare: bool,
) -> tuple[_Borrowed, tuple[torch.Tensor, ...]]:
    borrowed = runner.borrow(rest[states:], compare)
    layer = borrowed.layer
    if states:
        layer.set_state(*(array_of(state) for state in rest[:states]))
    with torch_threads(layer):
        hs = layer.forward(array_of(xs), mask=mask)
    return borrowed, (tensor_of(hs), *map(tensor_of, layer.state))


def _without_gradient(
    runner: Runner, mask: Any, states: int, xs: torch.Tensor, *rest: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    borrowed, outputs = _forward(runner, mask, states, xs, rest, True)
    borrowed.give_back()
    return outputs


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, runner: Any, mask: Any, states: int, xs: Any, *rest: Any) -> Any:
        borrowed, outputs = _forward(runner, mask, states, xs, rest, False)
        ctx.lease, ctx.runner, ctx.states = _Lease(borrowed), runner, states
        # so that autograd sees where they are changed meanwhile, and who depends on them
        ctx.save_for_backward(xs, *rest)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *douts: Any) -> Any:
        run: Callable[..., Any] = _Gradient.apply if torch.is_grad_enabled() else _backward
        _expect_reverse_mode(douts, run is not _backward)
        return None, None, None, *run(ctx, douts, *ctx.saved_tensors, *douts)


def _backward(node: Any, douts: Any, xs: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    """The gradients by xs, states and weights, from those by hs and the states after."""
    dhs, *dstate = douts
    layer = node.lease.borrowed.layer
    if dhs is None:
        dhs = xs.new_zeros((*xs.shape[:2], layer.output_size))
    given = [None if d is None else array_of(d) for d in dstate]
    with torch_threads(layer):
        dxs = layer.backward(array_of(dhs), *given, inputs=node.needs_input_grad[3])
    dstates = [tensor_of(d) for d in layer.dstate[: node.states]]
    weights = node.runner.gradients(layer)
    return None if dxs is None else tensor_of(dxs), *dstates, *weights


class _Gradient(torch.autograd.Function):
    """The gradients as a node of everything that they depend on: to differentiate them is refused.

    Without it autograd would take them for constants.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        return _backward(*args)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "numba_rnn.torch computes first derivatives alone: for gradients of gradients "
            f"(create_graph=True, hessian, hvp, a gradient penalty) {_REMEDY}"
        )


def array_of(tensor: torch.Tensor) -> Any:
    """The same memory as a NumPy array, or as what a layer on a GPU takes by DLPack."""
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"input: expected a tensor on the CPU or a CUDA GPU, got {tensor.device}")
    # parts of conjugate numbers have their sign beside them, of which others know nothing
    tensor = tensor.detach().resolve_neg()
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def torch_threads(layer: TimeRecurrent) -> AbstractContextManager[None]:
    """Let the layer work with torch's own threads in the block, and with as many at most.

    After each operation these look out for more to do for some milliseconds, on the processors
    that other threads would want.
    """
    return engine_of(layer.params[0]).borrowing(_openmp(), torch.get_num_threads())


@cache
def _openmp() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that torch uses; 0: it has no such."""
    found = list((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
    try:
        function = ctypes.CDLL(str(found[0])).GOMP_parallel  # found in what the library needs, too
    except (AttributeError, IndexError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def placed(layer: TimeRecurrent, weight: torch.Tensor) -> TimeRecurrent:
    """The layer, moved to where the weight is."""
    return layer.to("cuda") if weight.device.type == "cuda" else layer


def tensor_of(array: Any) -> torch.Tensor:
    """The same memory as a tensor."""
    if isinstance(array, torch.Tensor):
        return array
    if isinstance(array, np.ndarray):
        return torch.from_numpy(array)
    return torch.from_dlpack(array)  # type: ignore[attr-defined]
