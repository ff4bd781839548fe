"""The gate kernels of a cell: a step's arithmetic between two products.

A kernel is a plain Python function, whose text is made for a cell: all that depends on the cell is
spelled out (how many gates, where each lies), its arithmetic is the cell's own functions. The same
function compiles for a GPU (``build.py``) and runs in an emulator.

A thread has one row of the batch and ``count`` units side by side:

    blockIdx.y = n           |<- blockDim.x threads ->|
                             j = 0, count, 2 count ... < H

Arrays lie row by row, (N, columns) of a step, the gates in the order of the cell's ``Layout``:

    x_side (N, x_gates H), early (N, early H), late (N, late H)   the products; late: the second one
    before, after (states, N, H), saved (stored, N, H)            of the step
    hs, dhs (N, T, H)              from index ``at`` on, rows ``row`` numbers apart
    dgates (N, gates H)            gradients of the pre-activations
    dstate (states, N, H)          on the way from step to step, in place
    through_h (N, H)               what came back through h Wh of the step after; 0 at first
"""

import linecache
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ..cells import Cell
from ..layout import layout

# ---- the text


def _head(name: str, *arguments: str) -> list[str]:
    return [
        f"def {name}({', '.join(arguments)}, N, H):",
        "    j = (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) * COUNT",
        "    if j >= H:",
        "        return",
        "    n = cuda.blockIdx.y",
        "    p, NH = n * H + j, N * H",
    ]


def _members(array: str, count: int) -> str:
    """A tuple of numbers (k, N, H)."""
    return f"({''.join(f'load({array}, {k} * NH + p), ' for k in range(count))})"


def _pre_activations(cell: Cell, late: bool) -> list[str]:
    """gates = (...), with or without the second product."""
    at = layout(cell)
    first_early, first_late = len(at.order) - at.early - at.late, len(at.order) - at.late
    lines = ["    gates = ("]
    for g, name in enumerate(cell.gates):
        place, terms = at.order.index(g), []
        if place < at.x_gates:
            terms.append(f"load(x_side, n * {at.x_gates} * H + {place} * H + j)")
            terms.append(f"load(b, {cell.input_gates.index(g)} * H + j)")
        if first_early <= place < first_late:
            terms.append(f"load(early, n * {at.early} * H + {place - first_early} * H + j)")
        if late and place >= first_late:
            terms.append(f"load(late, n * {at.late} * H + {place - first_late} * H + j)")
        if cell.biases == 2 and g in cell.recurrent_gates:
            k = len(cell.input_gates) + cell.recurrent_gates.index(g)
            terms.append(f"load(b, {k} * H + j)")
        lines.append(f"        {' + '.join(terms)},  # {name}")
    return [*lines, "    )", f"    state = {_members('before', len(cell.states))}"]


def forward_source(cell: Cell) -> str:
    """From the products of a step to the state after it."""
    lines = _head(
        "forward_gates", "x_side", "early", "late", "b", "before", "after", "saved",
        "hs", "at", "row",
    )  # fmt: skip
    lines += _pre_activations(cell, late=True)
    lines.append("    state, keep = forward(gates, state)")
    lines += [f"    store(state[{k}], after, {k} * NH + p)" for k in range(len(cell.states))]
    stored = (k for k, state in enumerate(layout(cell).found_in_state) if state is None)
    lines += [f"    store(keep[{k}], saved, {i} * NH + p)" for i, k in enumerate(stored)]
    lines.append("    store(state[0], hs, at + n * row + j)")
    return "\n".join(lines)


def operand_source(cell: Cell) -> str:
    """What the second product multiplies."""
    lines = _head("operand_gates", "x_side", "early", "b", "before", "out")
    lines += _pre_activations(cell, late=False)
    return "\n".join([*lines, "    store(operand(gates, state), out, p)"])


def _saved(cell: Cell) -> str:
    """keep = (...): stored, or found in the state after the step."""
    terms, stored = [], 0
    for state in layout(cell).found_in_state:
        terms.append(f"load(saved, {stored} * NH + p), " if state is None
                     else f"load(after, {state} * NH + p), ")  # fmt: skip
        stored += state is None
    return f"    keep = ({''.join(terms)})"


def _store_gates(cell: Cell, zero: set[int], leave: int = 0) -> list[str]:
    """dgates, each at its place; but for the last ``leave`` places."""
    order = layout(cell).order
    lines = []
    for g, name in enumerate(cell.gates):
        place = order.index(g)
        if place < len(order) - leave:
            value = "zero" if g in zero else f"dgates[{g}]"
            target = f"n * {len(order)} * H + {place} * H + j"
            lines.append(f"    store({value}, dgates_out, {target})  # {name}")
    return lines


def backward_source(cell: Cell) -> str:
    """From the gradient of the state after a step to its gates', and the state's before it."""
    zero_gates, zero_states = _zeros(cell)
    lines = _head(
        "backward_gates", "dhs", "at", "row", "through_h", "dstate", "before", "after", "saved",
        "dgates_out",
    )  # fmt: skip
    S = len(cell.states)
    lines += [
        f"    incoming = {_members('dstate', S)}",
        "    dh = incoming[0] + load(dhs, at + n * row + j) + load(through_h, p)",
        _saved(cell),
        f"    state = {_members('before', S)}",
        f"    dgates, dold = backward((dh, {''.join(f'incoming[{k}], ' for k in range(1, S))}),"
        " keep, state)",
        "    zero = where(dh < dh, dh, 0.0)",
    ]
    lines += [
        f"    store({'zero' if k in zero_states else f'dold[{k}]'}, dstate, {k} * NH + p)"
        for k in range(S)
    ]
    return "\n".join([*lines, *_store_gates(cell, zero_gates)])


def operand_backward_source(cell: Cell) -> str:
    """Completes a step's gradients by what comes back through the second product."""
    order = layout(cell).order
    lines = _head(
        "operand_backward_gates", "doperand", "dstate", "before", "after", "saved", "dgates_out",
    )  # fmt: skip
    gates = "".join(
        f"load(dgates_out, n * {len(order)} * H + {order.index(g)} * H + j), "
        for g in range(len(order))
    )
    S = len(cell.states)
    lines += [
        f"    dgates = ({gates})",
        f"    dold = {_members('dstate', S)}",
        _saved(cell),
        f"    state = {_members('before', S)}",
        "    dgates, dold = operand_backward(load(doperand, p), dgates, dold, keep, state)",
    ]
    lines += [f"    store(dold[{k}], dstate, {k} * NH + p)" for k in range(S)]
    return "\n".join([*lines, *_store_gates(cell, set(), leave=layout(cell).late)])


def _zeros(cell: Cell) -> tuple[set[int], set[int]]:
    """Which gradients Cell.backward gives as None: of gates, of states."""

    def some(names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(np.full(1, 0.5, np.float32) for _ in names)

    dgates, dold = cell.backward(some(cell.states), some(cell.saved), some(cell.states))
    return (
        {k for k, d in enumerate(dgates) if d is None},
        {k for k, d in enumerate(dold) if d is None},
    )


SOURCES: dict[str, Callable[[Cell], str]] = {
    "forward_gates": forward_source,
    "operand_gates": operand_source,
    "backward_gates": backward_source,
    "operand_backward_gates": operand_backward_source,
}
INTEGERS = {"at", "row", "N", "H"}  # arguments that are no arrays


# ---- the function


@cache
def kernel(cell: Cell, name: str, count: int) -> Any:
    """A kernel for ``count`` units a thread, to be compiled or emulated."""
    from . import lanes
    from .target import cuda

    text = SOURCES[name](cell)
    outer = {
        "cuda": cuda, "load": lanes.LOADS[count], "store": lanes.store, "where": lanes.where,
        "COUNT": count,
        "forward": cell.forward, "backward": cell.backward,
        "operand": cell.operand, "operand_backward": cell.operand_backward,
    }  # fmt: skip
    file = f"<{name} of {cell.name}, {count} a thread>"
    linecache.cache[file] = len(text), None, text.splitlines(True), file
    exec(compile(text, file, "exec"), outer)
    return outer[name]
