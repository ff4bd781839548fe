"""Derivatives beyond the gradient, of any cell, in any direction and of any order.

With f a pass and x all that goes in (xs, state, params, ``initial``):

    jvp    D f(x) [u]               the tangent of forward
    hvp    D (J(x)^T y) [u]         the tangent of backward, for the gradient y of what comes out

and with directions u, v, ... the derivatives D^n [u, v, ...] of the same. All others are made of
these two. The gradient of y D^n f [u, v, ...] is the second kind: by x, for all directions; by u,
for the other ones. So backward of backward, for a cotangent u of J^T y, is a jvp by y and an hvp by
x.

The specification runs the NumPy engine on dual numbers (``dual.py``): nothing of a cell or of an
option is written here.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .cells import Cell
from .dual import highest, lifted
from .engine import Array, Gradients, State
from .quantisation import expect_trainable
from .reference import NumpyEngine
from .step_options import StepOptions


class Inputs(NamedTuple):
    """All that a pass goes from, or the tangents of it, of which each may be None: zeros."""

    xs: Array
    state: Sequence[Array]
    params: Sequence[Array]
    initial: Array | None = None


def jvp(
    cell: Cell, inputs: Inputs, steps: StepOptions, directions: Sequence[Inputs]
) -> tuple[Array, State]:
    """The derivatives of hs and of the state after the last step."""
    hs, after, _ = _dual_pass(cell, inputs, steps, directions)
    order = len(directions)
    return highest(hs, order), tuple(highest(s, order) for s in after)


def hvp(
    cell: Cell,
    inputs: Inputs,
    steps: StepOptions,
    directions: Sequence[Inputs],
    dout: Sequence[Array],
    dout_tangents: Sequence[Array | None],
) -> Gradients:
    """The derivatives of all gradients.

    dout           the gradients of hs and of each state after the last step
    dout_tangents  their tangents, None: zeros; of a derivative of the first order
    """
    *_, saved = _dual_pass(cell, inputs, steps, directions)
    order, none = len(directions), (None,) * (len(directions) - 1)
    dhs, *dstate = (lifted(d, (t, *none)) for d, t in zip(dout, dout_tangents, strict=True))
    found = NumpyEngine().backward(cell, dhs, tuple(dstate), saved)
    xs, state, params, *rest = found
    state, params = (tuple(highest(d, order) for d in of) for of in (state, params))
    initial, states = (None if d is None else highest(d, order) for d in rest)
    return Gradients(highest(xs, order), state, params, initial, states)


def _dual_pass(
    cell: Cell, inputs: Inputs, steps: StepOptions, directions: Sequence[Inputs]
) -> tuple[Array, State, Any]:
    """Run the NumPy engine's ``forward`` on duals."""
    expect_trainable(inputs.params)

    def each(field: str) -> tuple[Array, ...]:
        tangents = zip(*(getattr(u, field) for u in directions), strict=True)
        return tuple(map(lifted, getattr(inputs, field), tangents))

    if steps.initial is not None:
        initial = lifted(inputs.initial, [u.initial for u in directions])
        steps = replace(steps, initial=initial)
    xs, steps = lifted(inputs.xs, [u.xs for u in directions]), replace(steps, checkpoint_every=0)
    return NumpyEngine().forward(cell, xs, each("state"), each("params"), steps)
