"""One direction of one layer as a node of autograd.

Tensors become arrays, and arrays tensors, without a copy: through NumPy on the CPU, through DLPack
on a GPU. ``numba_rnn.functional`` runs on them. The node holds the record of forward, in which is
everything that backward needs: both go together.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad

from .. import functional
from ..backend import Engine, engine
from ..functional import Record, StepOptions
from ..kernels.step_options import NO_OPTIONS
from .weights import Form, array_of, tensor_of

FLOATS = (torch.float32, torch.float64)
_REMEDY = "numba_rnn.torch.restore(model) restores its torch modules"


def run(
    module: Any,
    place: int,
    xs: torch.Tensor,
    state: Sequence[torch.Tensor] | None,
    weights: Sequence[torch.Tensor],
    options: StepOptions | torch.Tensor = NO_OPTIONS,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """xs (N, T, D) -> hs (N, T, H), and the states (N, H) after each row's last step.

    module, place  which direction of which layer it is: its form is ``module._form(place)``
    state          the states before, None: zeros
    options        which steps are there, and before which the state is reset; or the batch sizes
                   of a PackedSequence, whose data xs is, and hs

    torch.compile leaves it as it is. Raises TypeError for other dtypes than float32 and float64,
    RuntimeError while something records the operations that it cannot see, and for
    derivatives other than first ones in reverse mode.
    """
    if getattr(torch.compiler, "is_exporting", bool)():  # torch has it from 2.7 on
        refuse_recording()
    if torch.compiler.is_dynamo_compiling():
        outside = torch.compiler.disable(run)  # type: ignore[no-untyped-call]
        return outside(module, place, xs, state, weights, options)
    given = tuple(state or ())
    tensors = xs, *given, *weights
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    _expect_runs_here(tensors)
    _expect_reverse_mode(tensors, keep)
    call: Callable[..., Any] = _Node.apply if keep else _without_gradient
    hs, *after = call(module._form(place), options, len(given), xs, *given, *weights)
    return hs, tuple(after)


def refuse_recording() -> NoReturn:
    """Raise the error of whatever would write down torch's operations in a module of ours."""
    raise RuntimeError(
        "torch.jit (trace, script), torch.export and torch.fx record only torch operations: "
        f"they would miss the results of numba_rnn or treat them as constants; {_REMEDY}"
    )


def is_exported() -> bool:
    """Whether torch.jit.trace or torch.export, or the ONNX exporter through them, looks on."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    exporting = getattr(torch.compiler, "is_exporting", bool)()  # torch has it from 2.7 on
    # (strict export takes no LSTM of torch's, either)
    return tracing or bool(exporting and not torch.compiler.is_dynamo_compiling())


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
                "input and weights: expected numbers, got a tensor on the meta device, which holds "
                f"none; {_REMEDY}, which accept it"
            )
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"input and weights: expected float32 or float64, got {tensor.dtype}; "
                f"module.float() and input.float() make it float32; {_REMEDY}"
            )


def _expect_reverse_mode(tensors: Sequence[torch.Tensor | None], keep: bool) -> None:
    """Refuse tensors whose derivatives would be lost here: those of torch.func, and tangents.

    keep  whether a node of autograd would be made, which torch.func's functions do not take
    """
    of, dual = torch._C._functorch, forward_ad._current_level >= 0
    if (keep and torch._C._are_functorch_transforms_active()) or any(
        of.is_functorch_wrapped_tensor(t)
        or of.is_legacy_batchedtensor(t)
        or (dual and forward_ad.unpack_dual(t).tangent is not None)  # type: ignore[no-untyped-call]
        for t in tensors
        if t is not None
    ):
        raise RuntimeError(
            "numba_rnn.torch supports only backward and torch.autograd.grad: for torch.func "
            "(grad, jvp, vmap ...), batched gradients and forward mode "
            f"(torch.autograd.forward_ad), {_REMEDY}"
        )


def _forward(
    form: Form,
    options: StepOptions,
    states: int,
    xs: torch.Tensor,
    rest: Sequence[torch.Tensor],
    same: bool,
) -> tuple[tuple[torch.Tensor, ...], Record]:
    """hs and the states after, and the record.

    same  look first whether the weights are those of the last call
    """
    state, weights = rest[:states], rest[states:]
    params = form.params_again(weights) if same else form.params(weights)
    given = form.cell, array_of(xs)
    with _torch_threads(engine()):
        if isinstance(options, torch.Tensor):
            sizes = options.numpy()
            found = functional.forward_packed(*given, sizes, _arrays(state) or None, params)
        else:
            found = functional.forward(*given, _arrays(state) or None, params, options)
    hs, after, record = found
    return tuple(tensor_of(array) for array in (hs, *after)), record


def _arrays(tensors: Sequence[Any]) -> list[Any]:
    """The arrays of tensors, of which some may be None."""
    return [None if tensor is None else array_of(tensor) for tensor in tensors]


def _without_gradient(
    form: Form, options: StepOptions, states: int, xs: torch.Tensor, *rest: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return _forward(form, options, states, xs, rest, True)[0]


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: Any, options: Any, states: int, xs: Any, *rest: Any) -> Any:
        outputs, ctx.record = _forward(form, options, states, xs, rest, False)
        ctx.form, ctx.states = form, states
        # so that autograd sees where they are changed meanwhile, and who depends on them
        ctx.save_for_backward(xs, *rest)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *douts: Any) -> Any:
        run: Callable[..., Any] = _Gradient.apply if torch.is_grad_enabled() else _backward
        _expect_reverse_mode(douts, run is not _backward)
        return None, None, None, *run(ctx, douts, *ctx.saved_tensors, *douts)


def _backward(node: Any, douts: Any, xs: torch.Tensor, *rest: Any) -> tuple[Any, ...]:
    """The gradients by xs, states and weights, from those by hs and the states after.

    rest  the states, the weights and douts, as ``_Gradient`` wants them
    """
    form, record, states = node.form, node.record, node.states
    weights = rest[states : len(rest) - len(douts)]
    dhs, *dstate = _arrays(douts)
    with _torch_threads(record.engine):
        found = functional.backward(record, dhs, dstate, inputs=node.needs_input_grad[3])
    dxs = None if found.xs is None else tensor_of(found.xs)
    dstate = [tensor_of(d) for d in found.state[:states]]
    return dxs, *dstate, *form.gradients(found.params, weights)


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
            "numba_rnn.torch computes first derivatives only: for gradients of gradients "
            f"(create_graph=True, hessian, hvp, a gradient penalty), {_REMEDY}"
        )


def _torch_threads(engine: Engine) -> AbstractContextManager[None]:
    """Let the engine work with torch's own threads in the block, and with as many at most.

    After each operation these look out for more to do for some milliseconds, on the processors
    that other threads would want.
    """
    return engine.using_openmp(_openmp(), torch.get_num_threads())


@cache
def _openmp() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that torch uses; 0: it has no such."""
    found = list((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
    try:
        function = ctypes.CDLL(str(found[0])).GOMP_parallel  # found in what the library needs, too
    except (AttributeError, IndexError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
