"""A step around its cell: zoneout, mask and reset, forward and backward, for every engine.

    forward                                     backward
      new, saved = cell.forward(gates, old)       dstate, stopped = reset_backward(dstate, again)
      new, out = settle(new, old)                 dstate = arrive(dout, dstate)
      state = reset(new, again)                   dnew, past = settle_backward(dstate)
                                                  dgates, dold = cell.backward(dnew, saved, old)
                                                  dold = meet(dold, past)

Plain functions on tuples of numbers, in the manner of a cell's: a member for each state. The NumPy
engine calls them with arrays; compiled engines compile ``straight_line`` of them. Their arguments:

    features  which options there are, ``StepFeatures``; an argument of another option is not used
    live      whether the step is there: the mask
    again     whether the state is reset before the step
    initial   what the state is reset to
    zoned     of each state: whether the unit keeps its old value (zoneout "sampled"), or the share
              of its old value that it keeps ("mean")

A condition is for ``where`` alone. Gradients past a condition are chosen, never multiplied by 0:
the derivative of what a step left out may be infinite.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from .derivation.graph import Node
from .derivation.source import Names, function_source, make_function
from .derivation.tracing import Trace
from .functions import where
from .step_options import StepFeatures

Numbers = tuple[Any, ...]


def settle(features: StepFeatures, new: Numbers, old: Numbers, live: Any, zoned: Numbers) -> Any:
    """The state after a step, and a tuple of its output; new: what the cell made of old."""
    if features.zoneout == "sampled":
        new = tuple(where(z, o, n) for z, o, n in zip(zoned, old, new, strict=True))
    if features.zoneout == "mean":
        new = tuple(z * o + (1 - z) * n for z, o, n in zip(zoned, old, new, strict=True))
    out = new[0]
    if features.mask:
        new = tuple(where(live, n, o) for n, o in zip(new, old, strict=True))
        out = where(live, out, 0.0)
    return new, (out,)


def reset(features: StepFeatures, state: Numbers, again: Any, initial: Numbers) -> Any:
    """The state that the next step sees, and an empty tuple."""
    if features.resets:
        state = tuple(where(again, i, s) for i, s in zip(initial, state, strict=True))
    return state, ()


def reset_backward(features: StepFeatures, dstate: Numbers, again: Any) -> Any:
    """The gradient of the state before the reset, and that of ``initial``, if any."""
    if not features.resets:
        return dstate, ()
    return tuple(where(again, 0.0, d) for d in dstate), tuple(where(again, d, 0.0) for d in dstate)


def arrive(features: StepFeatures, dout: Any, through: Any, dstate: Numbers, live: Any) -> Any:
    """The gradient of the state after a step, its output's included, and an empty tuple.

    through  what came back to h through products, where that is not in dstate; else None
    """
    if features.mask:
        dout = where(live, dout, 0.0)
    if through is not None:
        dout = dout + through
    return (dstate[0] + dout, *dstate[1:]), ()


def settle_backward(features: StepFeatures, dstate: Numbers, live: Any, zoned: Numbers) -> Any:
    """The gradient of what the cell made, and that of the old state past the cell, if any."""
    past: Numbers = ()
    if features.mask:
        past = tuple(where(live, 0.0, d) for d in dstate)
        dstate = tuple(where(live, d, 0.0) for d in dstate)
    if features.zoneout == "sampled":
        kept = tuple(where(z, d, 0.0) for z, d in zip(zoned, dstate, strict=True))
        dstate = tuple(where(z, 0.0, d) for z, d in zip(zoned, dstate, strict=True))
    elif features.zoneout == "mean":
        kept = tuple(z * d for z, d in zip(zoned, dstate, strict=True))
        dstate = tuple((1 - z) * d for z, d in zip(zoned, dstate, strict=True))
    else:
        return dstate, past
    return dstate, tuple(k + p for k, p in zip(kept, past, strict=True)) if past else kept


def only_live(features: StepFeatures, values: Numbers, others: Numbers, live: Any) -> Any:
    """Numbers of a step that is there, else the others, and an empty tuple."""
    if features.mask:
        values = tuple(where(live, v, o) for v, o in zip(values, others, strict=True))
    return values, ()


def meet(dold: Numbers, past: Numbers) -> Any:
    """The gradient of the old state, through the cell and past it, and an empty tuple."""
    return tuple(d + p for d, p in zip(dold, past, strict=True)) if past else dold, ()


# ---- for compiled engines


@cache
def straight_line(
    function: Callable[..., Any], features: StepFeatures, sizes: tuple[int | None, ...]
) -> Callable[..., Any]:
    """One of these functions without the options that there are not, and without loops.

    sizes  of each argument but features its number of members; None: it is no tuple
    """
    trace, names = Trace("step"), Names()
    code = function.__code__
    arguments = code.co_varnames[: code.co_argcount]
    has_features = arguments[0] == "features"
    members: dict[str, Node | tuple[Node, ...]] = {}
    for name, size in zip(arguments[has_features:], sizes, strict=True):
        flag = name in ("live", "again") or (name == "zoned" and features.zoneout == "sampled")
        role = "condition" if flag else "number"
        count = 1 if size is None else size
        nodes = tuple(trace.graph.input(role, f"{name}_{k}") for k in range(count))
        for k, node in enumerate(nodes):
            names.give(node, f"{name}_{k}")
        members[name] = nodes[0] if size is None else nodes
    given = {"features": features, **members} if has_features else members
    first, second = trace.run(function, given).result
    results = tuple(n._node for n in first), tuple(n._node for n in second)
    source = function_source(function.__name__, list(members.items()), results, names)
    return make_function(source, function.__name__)
