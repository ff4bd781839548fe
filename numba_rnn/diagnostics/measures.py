"""What can be measured of a layer: how far gradients reach, how gates saturate, what Wh does.

Shapes: N rows, T steps, H units. A table is a dict of columns of one length, one row an
observation. All is computed in float64, in host memory.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from ..backend import to_host
from ..checks import Array, expect_choice, expect_finite
from ..kernels import cells
from ..kernels.cells import Cell
from ..layers.recurrent import _CellLayer
from ..layers.trace import Trace

Table = dict[str, Array]


def expect_trace(trace: Any, name: str = "trace") -> Trace:
    """Refuse what is not a trace, saying where one comes from."""
    if isinstance(trace, Trace):
        return trace
    if trace is None:
        raise ValueError(
            f"{name}: expected the trace of a layer, got None; "
            "layer.forward(xs, trace=True) leaves one in layer.trace"
        )
    also = "; it has one in .trace after forward(xs, trace=True)" * hasattr(trace, "trace")
    raise TypeError(f"{name}: expected the trace of a layer, got {type(trace).__name__}{also}")


# ---- gradients


def rows_by_lag(trace: Trace, state: str) -> tuple[Array, Array]:
    """The norm of dL/d(state) over units, by how many steps back; and which of them there are.

    Both (N, T), [n, k]: row n, k steps before the last step that the loss looks at.
    """
    trace = expect_trace(trace)
    expect_choice("state", state, trace.cell.states)
    gradients = trace.gradients
    # the loss looks at a step if any state of it gets a gradient: an LSTM's last c gets none
    reached = np.any([(d != 0).any(axis=2) for d in gradients.values()], axis=0)
    if trace.mask is not None:
        reached = reached & trace.mask
    norms = norms_over_units(gradients[state].astype(np.float64))
    found, there = np.zeros(norms.shape), np.zeros(norms.shape, bool)
    for n, seen in enumerate(reached):
        if not seen.any():
            continue
        last, first = int(np.flatnonzero(seen)[-1]), 0
        if trace.resets is not None:  # no gradient goes back over one
            first = max(np.flatnonzero(trace.resets[n, : last + 1]).tolist(), default=0)
        steps = np.arange(first, last + 1)
        if trace.mask is not None:
            steps = steps[trace.mask[n, first : last + 1]]
        found[n, : len(steps)] = norms[n, steps[::-1]]
        there[n, : len(steps)] = True
    return found, there


def norms_over_units(values: Array) -> Array:
    """Euclidean norms (N, T) of values (N, T, H), also where squares would overflow or be 0."""
    largest = np.abs(values).max(axis=2)
    sound = np.isfinite(largest) & (largest > 0)
    with np.errstate(all="ignore"):
        scaled = values / np.where(sound, largest, 1)[:, :, None]
        return np.where(sound, largest * np.linalg.norm(scaled, axis=2), largest)


def gradient_flow(trace: Trace, state: str | None = None) -> Table:
    """How much gradient reached the steps before: dL/dh_t by lag.

    state   the name of a state, such as "h"; None: all of them

    One row for each (state, lag):

    lag     steps back from the last step that the loss looks at: the last one of a row that any
            gradient reached. Steps that a mask left out are not counted, and what lies before a
            reset is another sequence
    rows    how many rows of the batch reach so far back
    mean    of the Euclidean norm over units of dL/d(state after the step), over those rows
    low, high   the smallest and the largest of them

    To see what gets lost on the way, let the loss look at the last step alone (dhs zero
    elsewhere): where it looks at every step, the gradient is made anew at every step.

    >>> from numba_rnn import TimeRNN
    >>> Wh, b = 0.5 * np.eye(2), np.zeros(2)
    >>> layer = TimeRNN(np.eye(2), Wh, b)
    >>> hs = layer.forward(np.zeros((1, 4, 2)), trace=True)
    >>> hs[:, -1] = 1
    >>> dxs = layer.backward(hs)
    >>> gradient_flow(layer.trace)["mean"].round(3).tolist()
    [1.414, 0.707, 0.354, 0.177]
    """
    trace = expect_trace(trace)
    names = trace.cell.states if state is None else (state,)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("state", "lag", "rows", "mean", "low", "high")
    }
    for name in names:
        norms, there = rows_by_lag(trace, name)
        for lag in np.flatnonzero(there.any(axis=0)):
            of_lag = norms[there[:, lag], lag]
            values = name, lag, len(of_lag), of_lag.mean(), of_lag.min(), of_lag.max()
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    kinds = {"state": str, "lag": int, "rows": int}
    return {name: np.array(values, kinds.get(name, float)) for name, values in columns.items()}


def gradient_growth(trace: Trace, state: str = "h") -> float:
    """By what factor the gradient's norm changes for each step back: vanishing below 1,
    exploding above 1 (Bengio et al. 1994; Pascanu et al. 2013).

    The geometric mean of the ratio between neighbouring lags of one row, over all lags and rows
    where neither is 0, infinite or NaN; NaN where there are none. It is the slope of the log of
    the norm: ``growth ** 20`` is what is left of a gradient after 20 steps.
    """
    norms, there = rows_by_lag(trace, state)
    sound = there & np.isfinite(norms) & (norms > 0)
    pairs = sound[:, 1:] & sound[:, :-1]
    if not pairs.any():
        return float("nan")
    logs = np.log(norms, where=sound, out=np.zeros_like(norms))
    return float(np.exp(np.diff(logs, axis=1)[pairs].mean()))


# ---- gates


@lru_cache(maxsize=256)
def value_range(cell: str | Cell, gate: str) -> tuple[float, float] | None:
    """The smallest and the largest value that a gate of a cell can take; None: there is no bound.

    Found by trying: the cell is given pre-activations and states of either sign and of two sizes,
    30 and 1000, beside some that are 0 or moderate. What takes the same range of values with both
    is bounded by it: sigmoid 0 to 1, tanh -1 to 1. So a gate that is a tanh of more than its own
    pre-activation is known too, as the reset-after GRU's, and any gate of a cell of one's own.

    cell  a Cell or its name
    gate  one of ``cell.gate_names``

    >>> value_range("lstm", "f"), value_range("rnn_relu", "h")
    ((0.0, 1.0), None)
    """
    cell = cells.get(cell)
    expect_choice("gate", gate, cell.gate_names)
    rng, tries = np.random.default_rng(0), 4096
    count = len(cell.gates) + len(cell.states)
    signs = rng.choice([-1.0, 1.0], (count, tries))
    moderate = rng.choice([0.0, *rng.uniform(-3, 3, 9)], (count, tries))
    huge = rng.random((count, tries)) < 0.7
    ranges = []
    for size in (30.0, 1000.0):
        numbers = tuple(np.where(huge, size * signs, moderate))
        with np.errstate(all="ignore"):
            inside = cell.inside(numbers[: len(cell.gates)], numbers[len(cell.gates) :])
        values = inside[cell.gate_names.index(gate)]
        ranges.append((float(values.min()), float(values.max())))
    smaller, larger = np.array(ranges)
    if not np.isfinite(ranges).all() or not np.allclose(smaller, larger, rtol=1e-6, atol=1e-6):
        return None
    low, high = (round(end, 6) + 0.0 for end in larger.tolist())  # + 0.0: no -0.0
    return (low, high) if low < high else None


def thresholds(low: float, high: float) -> tuple[float, float]:
    """Below and above which a value from low to high counts as saturated.

    As Karpathy et al. (2015) have it for gates from 0 to 1, a tenth of the range from its ends:
    0.1 and 0.9. For ranges that go through 0, nine tenths of either end: -0.9 and 0.9 for tanh.
    """
    if low < 0 < high:
        return 0.9 * low, 0.9 * high
    return low + 0.1 * (high - low), high - 0.1 * (high - low)


def bounded_gates(trace: Trace) -> dict[str, tuple[float, float]]:
    """The gates that have a range, with it."""
    found = {name: value_range(trace.cell, name) for name in trace.gate_names}
    return {name: ends for name, ends in found.items() if ends is not None}


def values_there(trace: Trace, gate: str) -> Array:
    """The values (K, H) that a gate took, at all K steps of all rows that no mask left out."""
    values = trace.gates[gate]
    there = np.ones(values.shape[:2], bool) if trace.mask is None else trace.mask
    return values[there].astype(np.float64)


def saturation(trace: Trace, by: str = "gate") -> Table:
    """How often gates are near the ends of their range, where their gradient is near 0.

    by      "gate": one row a gate; "unit": one for each (gate, unit)

    gate, unit    which
    below, above  the thresholds: 0.1 and 0.9 for gates from 0 to 1, -0.9 and 0.9 for tanh
    left, right   the share, 0 to 1, of values that are below and above (Karpathy et al. 2015,
                  "left-saturated" and "right-saturated"); steps that a mask left out do not count
    mean          of the values
    values        how many there were

    Gates without bounds, such as relu, have no ends and are left out (``value_range``).
    """
    trace = expect_trace(trace)
    expect_choice("by", by, ("gate", "unit"))
    names = "gate", "unit", "below", "above", "left", "right", "mean", "values"
    rows = []
    for gate, ends in bounded_gates(trace).items():
        below, above = thresholds(*ends)
        values = values_there(trace, gate)
        units = [values] if by == "gate" else list(values.T)
        for unit, seen in enumerate(units):
            share = seen.size or 1  # of none, nothing is saturated
            left, right = (seen < below).sum() / share, (seen > above).sum() / share
            mean = seen.mean() if seen.size else np.nan
            rows.append((gate, unit, below, above, left, right, mean, seen.size))
    kinds = {"gate": str, "unit": int, "values": int}
    table: Table = {
        name: np.array([row[k] for row in rows], kinds.get(name, float))
        for k, name in enumerate(names)
    }
    if by == "gate":
        del table["unit"]
    return table


# ---- recurrent weights


def recurrent_blocks(layer: Any) -> dict[str, Array]:
    """The block (H, H) of Wh of each gate that has one, float64 in host memory."""
    if not isinstance(layer, _CellLayer):
        also = "; its forward_layer and backward_layer are such" * hasattr(layer, "forward_layer")
        raise TypeError(
            f"layer: expected a recurrent layer, such as TimeLSTM, got {type(layer).__name__}{also}"
        )
    cell, H = layer.cell, layer.hidden_size
    if not cell.recurrent_gates:
        raise ValueError(
            f"layer: expected a cell with recurrent weights Wh, got {cell.name}, which has none"
        )
    if layer.params[layer.param_names.index("Wh")].shape[0] != H:
        raise ValueError(
            f"layer: expected blocks (H, H) of Wh, got {layer!r}, where h is narrower than c: the "
            "way from h to h leads through its projection as well"
        )
    Wh = to_host(layer.params[layer.param_names.index("Wh")]).astype(np.float64)
    expect_finite("Wh", Wh)
    return {cell.gates[g]: Wh[:, k * H : (k + 1) * H] for k, g in enumerate(cell.recurrent_gates)}


def spectrum(layer: Any) -> Table:
    """What multiplying by each gate's block (H, H) of Wh, again and again, does to a vector.

    One row for each gate:

    radius      the spectral radius, the largest |eigenvalue|: the growth of a vector in the long
                run. A simple RNN whose units are not saturated shrinks gradients where it is below
                1; a radius above 1 is necessary for them to explode (Pascanu et al. 2013)
    largest     the largest singular value: no vector grows by more in one step
    smallest    the smallest one: no vector shrinks by more
    condition   largest / smallest; 1 for an orthogonal block, inf for a singular one

    In gated cells this is the way through the gates alone: an LSTM's c goes back through f, a
    GRU's h through 1 - z, without any matrix.

    layer  a recurrent layer, TimeLSTM or LSTM say; Wh as it is now
    """
    blocks = recurrent_blocks(layer)
    singular = [np.linalg.svd(block, compute_uv=False) for block in blocks.values()]
    largest, smallest = (np.array([values[k] for values in singular]) for k in (0, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = np.where(smallest > 0, largest / smallest, np.inf)
    return {
        "gate": np.array(list(blocks)),
        "radius": np.array([np.abs(np.linalg.eigvals(block)).max() for block in blocks.values()]),
        "largest": largest,
        "smallest": smallest,
        "condition": condition,
    }


def singular_values(layer: Any) -> Table:
    """All singular values of each gate's block of Wh, the largest first.

    One row for each (gate, index): gate, index, value.
    """
    blocks = recurrent_blocks(layer)
    H = layer.hidden_size
    return {
        "gate": np.repeat(list(blocks), H),
        "index": np.tile(np.arange(H), len(blocks)),
        "value": np.concatenate([
            np.linalg.svd(block, compute_uv=False) for block in blocks.values()
        ]),
    }  # fmt: skip
