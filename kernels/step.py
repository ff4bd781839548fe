"""The step around a cell: zoneout, mask and reset, forward and backward, once for all engines.

    forward                                  backward
      new, saved = cell.forward(gates, old)    dstate, dreset = reset_backward(dstate, is_reset)
      new, out = apply_options(new, old)       dstate = add_output_gradient(dout, dstate)
      state = apply_reset(new, is_reset)       dnew, bypass = options_backward(dstate)
                                               dgates, dold = cell.backward(dnew, saved, old)
                                               dold = add_bypass(dold, bypass)

They are plain functions on tuples of numbers, as a cell's are: a tuple has a member for each state.
Each returns two tuples, of which the second may be empty. The NumPy engine calls them with arrays;
compiled engines compile what ``straight_line`` makes of them. Common arguments:

    features  the options that are used, ``StepFeatures``; arguments of other options are ignored
    live      whether the step takes place: the mask
    is_reset  whether the state is reset before the step
    initial   the state that a reset returns to
    zoneout   for each state: whether the unit keeps its old value (zoneout "sampled"), or the
              share of its old value that it keeps ("mean")

A condition may only be used in ``where``. It selects a gradient and is never multiplied with it:
the derivative of a masked step may be infinite, and 0 times infinity is NaN.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from .autodiff.graph import Node
from .autodiff.source import NodeNames, function_source, make_function
from .autodiff.tracing import Tracer
from .functions import where
from .step_options import StepFeatures

Numbers = tuple[Any, ...]


def apply_options(
    features: StepFeatures, new: Numbers, old: Numbers, live: Any, zoneout: Numbers
) -> Any:
    """Apply zoneout and the mask: the state after a step, and a tuple of its output."""
    if features.zoneout == "sampled":
        new = tuple(where(z, o, n) for z, o, n in zip(zoneout, old, new, strict=True))
    if features.zoneout == "mean":
        new = tuple(z * o + (1 - z) * n for z, o, n in zip(zoneout, old, new, strict=True))
    out = new[0]
    if features.mask:
        new = tuple(where(live, n, o) for n, o in zip(new, old, strict=True))
        out = where(live, out, 0.0)
    return new, (out,)


def apply_reset(features: StepFeatures, state: Numbers, is_reset: Any, initial: Numbers) -> Any:
    """Apply a reset: the state that the next step reads, and an empty tuple."""
    if features.resets:
        state = tuple(where(is_reset, i, s) for i, s in zip(initial, state, strict=True))
    return state, ()


def reset_backward(features: StepFeatures, dstate: Numbers, is_reset: Any) -> Any:
    """Backward of ``apply_reset``: the gradients of its state, and of ``initial`` if any."""
    if not features.resets:
        return dstate, ()
    passed = tuple(where(is_reset, 0.0, d) for d in dstate)
    return passed, tuple(where(is_reset, d, 0.0) for d in dstate)


def add_output_gradient(
    features: StepFeatures, dout: Any, h_grad: Any, dstate: Numbers, live: Any
) -> Any:
    """The gradient of the state after a step with its output's, and an empty tuple.

    h_grad  the gradient that came back to h through products, where dstate lacks it; else None
    """
    if features.mask:
        dout = where(live, dout, 0.0)
    if h_grad is not None:
        dout = dout + h_grad
    return (dstate[0] + dout, *dstate[1:]), ()


def options_backward(features: StepFeatures, dstate: Numbers, live: Any, zoneout: Numbers) -> Any:
    """Backward of ``apply_options``: gradients of the new state, and of the old around the cell."""
    bypass: Numbers = ()
    if features.mask:
        bypass = tuple(where(live, 0.0, d) for d in dstate)
        dstate = tuple(where(live, d, 0.0) for d in dstate)
    if features.zoneout == "sampled":
        kept = tuple(where(z, d, 0.0) for z, d in zip(zoneout, dstate, strict=True))
        dstate = tuple(where(z, 0.0, d) for z, d in zip(zoneout, dstate, strict=True))
    elif features.zoneout == "mean":
        kept = tuple(z * d for z, d in zip(zoneout, dstate, strict=True))
        dstate = tuple((1 - z) * d for z, d in zip(zoneout, dstate, strict=True))
    else:
        return dstate, bypass
    return dstate, tuple(k + p for k, p in zip(kept, bypass, strict=True)) if bypass else kept


def select_live(features: StepFeatures, values: Numbers, others: Numbers, live: Any) -> Any:
    """The values where the step takes place, else the others; and an empty tuple."""
    if features.mask:
        values = tuple(where(live, v, o) for v, o in zip(values, others, strict=True))
    return values, ()


def add_bypass(dold: Numbers, bypass: Numbers) -> Any:
    """The gradient of the old state, through the cell and around it, and an empty tuple."""
    return tuple(d + p for d, p in zip(dold, bypass, strict=True)) if bypass else dold, ()


# ---- for compiled engines


@cache
def straight_line(
    function: Callable[..., Any], features: StepFeatures, sizes: tuple[int | None, ...]
) -> Callable[..., Any]:
    """One of these functions for certain features, without options that are not used.

    sizes  of each argument but features the length of the tuple; None: it is no tuple
    """
    trace, names = Tracer("step"), NodeNames()
    code = function.__code__
    arguments = code.co_varnames[: code.co_argcount]
    has_features = arguments[0] == "features"
    members: dict[str, Node | tuple[Node, ...]] = {}
    for name, size in zip(arguments[has_features:], sizes, strict=True):
        flag = name in ("live", "is_reset") or (name == "zoneout" and features.zoneout == "sampled")
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
