"""One direction of one layer as a node of autograd.

Tensors become arrays, and arrays tensors, without a copy: through NumPy on the CPU, through DLPack
on a GPU. ``numba_rnn.functional`` runs on them. The node holds the record of forward, in which is
everything that backward needs: both go together.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from .. import functional
from ..backend import engine
from ..functional import Record
from ..kernels.step_options import NO_OPTIONS
from .derivatives import (
    Gradients,
    Options,
    Outputs,
    Pass,
    apply,
    arrays_of,
    run_pass,
    transformed,
)
from .threads import torch_threads
from .weights import Form, tensor_of

FLOATS = (torch.float32, torch.float64)
_REMEDY = "numba_rnn.torch.restore(model) restores its torch modules"


def run(
    module: Any,
    place: int,
    xs: torch.Tensor,
    state: Sequence[torch.Tensor] | None,
    weights: Sequence[torch.Tensor],
    options: Options = NO_OPTIONS,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """xs (N, T, D) -> hs (N, T, H), and the states (N, H) after each row's last step.

    module, place  which direction of which layer it is: its form is ``module._form(place)``
    state          the states before, None: zeros
    options        which steps are there, and before which the state is reset; or the batch sizes
                   of a PackedSequence, whose data xs is, and hs

    torch.compile leaves it as it is. Raises TypeError for other dtypes than float32 and float64,
    RuntimeError while something records the operations that it cannot see.
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
    if transformed(tensors, keep):
        this = Pass(module._form(place), options, len(given), len(tensors))
        hs, *after = apply(Outputs, this, *tensors)
        return hs, tuple(after)
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


def _forward(
    form: Form,
    options: Options,
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
    with torch_threads(engine()):
        found = run_pass(form, options, xs, state, params)
    hs, after, record = found
    return tuple(tensor_of(array) for array in (hs, *after)), record


def _without_gradient(
    form: Form, options: Options, states: int, xs: torch.Tensor, *rest: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return _forward(form, options, states, xs, rest, True)[0]


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: Any, options: Any, states: int, xs: Any, *rest: Any) -> Any:
        outputs, ctx.record = _forward(form, options, states, xs, rest, False)
        ctx.form, ctx.options, ctx.states = form, options, states
        # so that autograd sees where they are changed meanwhile, and who depends on them
        ctx.save_for_backward(xs, *rest)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *douts: Any) -> Any:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed(douts, False):  # to be differentiated again
            this = Pass(ctx.form, ctx.options, ctx.states, len(inputs), ctx.record)
            return None, None, None, *apply(Gradients, this, *inputs, *douts)
        return None, None, None, *_backward(ctx, douts, inputs)


def _backward(node: Any, douts: Any, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The gradients by xs, states and weights, from those by hs and the states after."""
    form, record, states = node.form, node.record, node.states
    weights = inputs[1 + states :]
    dhs, *dstate = arrays_of(douts)
    with torch_threads(record.engine):
        found = functional.backward(record, dhs, dstate, inputs=node.needs_input_grad[3])
    dxs = None if found.xs is None else tensor_of(found.xs)
    dstate = [tensor_of(d) for d in found.state[:states]]
    return dxs, *dstate, *form.gradients(found.params, weights)
