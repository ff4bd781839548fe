"""The step around a cell, forward and backward, once for all engines: zoneout, clip, mask, reset.

    forward                                      backward
      new, saved = cell.forward(gates, old)        dnew, dskip, ... = begin_backward(dstate, dout)
      state, out, extra = end_step(new, old)       dgates, dold = cell.backward(dnew, saved, old)
                                                   dgates, dold = end_backward(dgates, dold, dskip)

A masked step leaves the state (``apply_options``), and its gates and the operand of a second
product have no gradient (``select_live``): so it adds nothing to those of the weights. The reset
before step t + 1 is applied at the end of step t, and the host applies the one before step 0. The
NumPy engine applies each at the beginning of its own step, which is the same: it calls the parts.

The functions take tuples of numbers, as a cell's do: ``new``, ``old`` and the like have a member
for each state. A last argument has the step's options, ``StepValues``. The NumPy engine calls them
with arrays; compiled engines compile what ``specialised`` makes of them.

A condition may only be used in ``where``. It selects a gradient and is never multiplied with it:
the derivative of a masked step may be infinite, and 0 times infinity is NaN.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from .autodiff.graph import Node
from .autodiff.source import Argument, NodeNames, function_source, make_function
from .autodiff.tracing import Tracer
from .functions import where
from .step_options import VALUE_KINDS, StepValues

Members = tuple[Any, ...]


def apply_options(new: Members, old: Members, options: StepValues) -> tuple[Members, ...]:
    """Apply zoneout, clipping and the mask: the state after a step, a tuple of its output, and the
    numbers that ``options_backward`` needs of forward, which every engine keeps.
    """
    extra: Members = ()
    if options.zoneout is not None:
        new = tuple(where(z, o, n) for z, o, n in zip(options.zoneout, old, new, strict=True))
    if options.zoneout_rates is not None:
        rates = zip(options.zoneout_rates, old, new, strict=True)
        new = tuple(rate * o + (1 - rate) * n for rate, o, n in rates)
    if options.clip is not None:
        extra, limit = new, options.clip
        new = tuple(where(n > limit, limit, where(n < -limit, -limit, n)) for n in new)
    out = new[:1]
    if options.mask is not None:
        new, out = select_live(new, old, options), select_live(out, (0.0,), options)
    return new, out, extra


def apply_reset(state: Members, options: StepValues) -> Members:
    """Apply a reset: the state that the next step reads."""
    if options.resets is None:
        return state
    initial = (0.0,) * len(state) if options.initial is None else options.initial
    return tuple(where(options.resets, i, s) for i, s in zip(initial, state, strict=True))


def reset_backward(dstate: Members, h_grad: Members, options: StepValues) -> tuple[Members, ...]:
    """Backward of ``apply_reset``: the gradients of its state, and that of ``initial`` if any.

    h_grad  a tuple of what came back to h through products, where dstate lacks it; else empty
    """
    if options.resets is None:
        return dstate, h_grad, ()
    dinitial = tuple(where(options.resets, d, 0.0) for d in add_states(dstate, h_grad))
    dstate, h_grad = (
        tuple(where(options.resets, 0.0, d) for d in gradients) for gradients in (dstate, h_grad)
    )
    return dstate, h_grad, dinitial


def add_output_gradient(
    dstate: Members, dout: Members, h_grad: Members, options: StepValues
) -> Members:
    """The gradient of the state after a step, with that of its output and h_grad."""
    return add_states(dstate, add_states(select_live(dout, (0.0,), options), h_grad))


def options_backward(
    dstate: Members, extra: Members, options: StepValues
) -> tuple[Members, Members]:
    """Backward of ``apply_options``: the gradients of the new state, and of the old state as far
    as they skip the cell.
    """
    dskip: Members = ()
    if options.mask is not None:
        dskip = tuple(where(options.mask, 0.0, d) for d in dstate)
        dstate = tuple(where(options.mask, d, 0.0) for d in dstate)
    if options.clip is not None:
        limit, pairs = options.clip, tuple(zip(extra, dstate, strict=True))
        dstate = tuple(where(n > limit, 0.0, where(n < -limit, 0.0, d)) for n, d in pairs)
    if options.zoneout is not None:
        pairs = tuple(zip(options.zoneout, dstate, strict=True))
        dskip = add_states(tuple(where(z, d, 0.0) for z, d in pairs), dskip)
        dstate = tuple(where(z, 0.0, d) for z, d in pairs)
    if options.zoneout_rates is not None:
        pairs = tuple(zip(options.zoneout_rates, dstate, strict=True))
        dskip = add_states(tuple(rate * d for rate, d in pairs), dskip)
        dstate = tuple((1 - rate) * d for rate, d in pairs)
    return dstate, dskip


def select_live(values: Members, others: Members, options: StepValues) -> Members:
    """The values where the step takes place, else the others."""
    if options.mask is None:
        return values
    return tuple(where(options.mask, v, o) for v, o in zip(values, others, strict=True))


def add_states(a: Members, b: Members) -> Members:
    """The sum of two tuples, of which the second may be shorter."""
    return tuple(x + y for x, y in zip(a, b, strict=False)) + a[len(b) :]


# ---- whole steps, for compiled engines


def end_step(new: Members, old: Members, options: StepValues) -> tuple[Members, ...]:
    """``apply_options`` and ``apply_reset``: the state that the next step reads, a tuple of the
    output, and the numbers that backward needs besides those that the cell saved.
    """
    new, out, extra = apply_options(new, old, options)
    return apply_reset(new, options), out, extra


def begin_backward(
    dstate: Members, h_grad: Members, dout: Members, extra: Members, options: StepValues
) -> tuple[Members, ...]:
    """Backward of ``end_step``, and of the output: the gradients of the cell's new state, of the
    old state as far as they skip the cell, of ``initial``, and of the state after the step.
    """
    dstate, h_grad, dinitial = reset_backward(dstate, h_grad, options)
    dstate = add_output_gradient(dstate, dout, h_grad, options)
    return *options_backward(dstate, extra, options), dinitial, dstate


def end_backward(
    dgates: Members, dold: Members, dskip: Members, options: StepValues
) -> tuple[Members, ...]:
    """The gradients of the gates and of the old state, from the cell's."""
    dgates, dold = (select_live(d, (0.0,) * len(d), options) for d in (dgates, dold))
    return dgates, add_states(dold, dskip)


def step_values(features: frozenset[str], states: int, make: Callable[[str, str], Any]) -> Any:
    """The ``StepValues`` of some features: what ``make`` makes of the name and kind of each, which
    for a cell of so many states.
    """

    def value(name: str, kind: str) -> Any:
        if kind in ("flag", "scalar"):
            return make(name, kind)
        return tuple(make(f"{name}[{k}]", kind) for k in range(states))

    used = {name: kind for name, kind in VALUE_KINDS.items() if name in features}
    return StepValues(**{name: value(name, kind) for name, kind in used.items()})


@cache
def specialised(
    function: Callable[..., Any], features: frozenset[str], states: int, sizes: tuple[int, ...]
) -> Callable[..., Any]:
    """One of these functions for certain features, without options that are not used.

    sizes  of each argument but options the length of the tuple
    """
    trace, names, of_options = Tracer("step"), NodeNames(), dict[Node, str]()
    code = function.__code__
    arguments: dict[str, Any] = {}
    for name, size in zip(code.co_varnames, sizes, strict=False):
        arguments[name] = tuple(trace.graph.input("number", f"{name}_{k}") for k in range(size))
        for k, node in enumerate(arguments[name]):
            names.give(node, f"{name}_{k}")

    def make(name: str, kind: str) -> Node:
        condition = kind in ("flag", "mask per state")
        node = trace.graph.input("condition" if condition else "number", name)
        of_options[node] = f"options.{name}"
        return node

    printed: list[Argument] = list(arguments.items())
    if len(sizes) < code.co_argcount:
        arguments["options"] = step_values(features, states, make)
        printed.append(("options", of_options))
    result = trace.run(function, arguments).result
    tuples = result if isinstance(result[0], tuple) else (result,)
    results = tuple(tuple(number._node for number in members) for members in tuples)
    source = function_source(function.__name__, printed, results, names)
    return make_function(source, function.__name__)
