"""One step of a real run of a layer, forward and backward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import to_host
from ..kernels.cells import Cell
from ..layers.recurrent import TimeRecurrent
from ..typing import Array
from ..validation import expect_array, expect_finite
from .step_graph import StepGraph, StepValues


@dataclass(frozen=True)
class StepRecord:
    """The numbers that went into one step of a run, forward and backward.

    inputs  x (N, D) and the states before the step, (N, H), by the names of a graph's inputs
    params  the cell's parameters
    dnext   the gradient of every state after the step, (N, H)
    """

    inputs: dict[str, Array]
    params: list[Array]
    dnext: list[Array]

    def numbers(self, graph: StepGraph) -> StepValues:
        """The step's numbers, node by node."""
        return StepValues(graph, self.inputs, self.params, self.dnext)


def cell_of(layer: Any) -> Cell:
    """The cell of a layer, which must have one of its own."""
    cell = getattr(layer, "cell", None)
    if not isinstance(cell, Cell):
        raise TypeError(
            "layer: expected a layer of one cell, such as RNN, TimeLSTM or time_layer(...).create"
            f"(...), got {type(layer).__name__}"
        )
    return cell


def display_name(cell: Cell) -> str:
    """A cell's name as one writes it: RNN, LSTM, GRU, peephole."""
    return cell.name.upper() if len(cell.name) <= 4 else cell.name


def run_forward(layer: Any, xs: Array, state: Sequence[Array] | None = None) -> Array:
    """hs (N, T, H) of xs (N, T, D); the layer is left as it is."""
    expect_array("xs", xs, ("rows", "T", layer.input_size), layer.dtype)
    expect_finite("xs", xs)
    return to_host(copy_layer(layer, state).forward(xs))


def upstream_grads(
    layer: Any, xs: Array, dhs: Array, state: Sequence[Array] | None, block: int
) -> dict[str, Array]:
    """By the state's name: the gradient (N, T, H) that each step got from those after it.

    dhs    (N, T, H), what the loss sends to every output
    block  of so many steps; the gradient does not come back from the next one
    """
    expect_array("dhs", dhs, (*xs.shape[:2], layer.output_size), layer.dtype)
    expect_finite("dhs", dhs)
    found: dict[str, list[Array]] = {name: [] for name in cell_of(layer).states}
    for start in range(0, xs.shape[1], block):
        part = slice(start, start + block)
        twin = copy_layer(layer, state)
        twin.forward(xs[:, part], trace=True)
        twin.backward(dhs[:, part])
        assert twin.trace is not None
        for name, gradient in twin.trace.gradients.items():
            found[name].append(gradient)
        state = [to_host(one) for one in twin.state or ()]
    together = {name: np.concatenate(parts, axis=1) for name, parts in found.items()}
    output = next(iter(together))
    return {**together, output: together[output] - dhs}


def copy_layer(layer: Any, state: Sequence[Array] | None = None) -> TimeRecurrent:
    """A layer over time with copies of a layer's parameters, from a state; None: zeros."""
    cell = cell_of(layer)
    params = [np.array(to_host(param)) for param in layer.params[: len(cell.shapes(1, 1))]]
    twin = TimeRecurrent(*params, cell=cell)
    if state is not None:
        twin.set_state(*state)
    return twin


def record_step(
    layer: Any, xs: Array, dhs: Array | None, state: Sequence[Array] | None, step: int
) -> StepRecord:
    """Run forward and backward over xs (N, T, D), or one step (N, D), and look at a step.

    dhs    the gradient of every output; None: ones at that step, zeros elsewhere
    state  what the first step starts from, (N, H) each; None: zeros

    The layer itself is left as it is.
    """
    cell, dtype = cell_of(layer), layer.dtype
    if getattr(xs, "ndim", 0) == 2:
        xs = xs[:, None]
        dhs = dhs[:, None] if dhs is not None and getattr(dhs, "ndim", 0) == 2 else dhs
    expect_array("xs", xs, ("rows", "T", layer.input_size), dtype)
    expect_finite("xs", xs)
    T = xs.shape[1]
    if not isinstance(step, (int, np.integer)) or isinstance(step, bool):
        raise TypeError(f"step: expected a whole number, got {step!r}")
    if not -T <= step < T:
        raise ValueError(f"step: expected {-T} to {T - 1}, got {step}")
    twin = copy_layer(layer, state)
    hs = twin.forward(xs, trace=True)
    if dhs is None:
        dhs = np.zeros(hs.shape, dtype)
        dhs[:, step] = 1
    expect_array("dhs", dhs, hs.shape, dtype)
    expect_finite("dhs", dhs)
    twin.backward(dhs)
    assert twin.trace is not None
    before, gradients = twin.trace.before, twin.trace.gradients
    inputs = {"x": xs[:, step], **{f"{s}_prev": before[s][:, step] for s in cell.states}}
    params = [to_host(param) for param in twin.params]
    return StepRecord(inputs, params, [gradients[s][:, step] for s in cell.states])
