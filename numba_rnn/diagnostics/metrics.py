"""Measures of a layer: how far gradients reach, how gates saturate, how Wh acts on a state.

Shapes: N rows, T steps, H units. A table is a dict of columns of one length, one row an
observation. All is computed in float64, in host memory.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from ..backend import to_host
from ..kernels import cells
from ..kernels.cells import Cell
from ..layers.cell_layer import CellLayer
from ..layers.trace import Trace
from ..typing import AnyArray, Array, BoolArray
from ..validation import expect_choice, expect_finite

Table = dict[str, AnyArray]


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


def rows_by_lag(trace: Trace, state: str) -> tuple[Array, BoolArray]:
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
    result, valid = np.zeros(norms.shape), np.zeros(norms.shape, bool)
    for n, seen in enumerate(reached):
        if not seen.any():
            continue
        last, first = int(np.flatnonzero(seen)[-1]), 0
        if trace.resets is not None:  # no gradient goes back over one
            first = max(np.flatnonzero(trace.resets[n, : last + 1]).tolist(), default=0)
        steps = np.arange(first, last + 1)
        if trace.mask is not None:
            steps = steps[trace.mask[n, first : last + 1]]
        result[n, : len(steps)] = norms[n, steps[::-1]]
        valid[n, : len(steps)] = True
    return result, valid


def norms_over_units(values: Array) -> Array:
    """Euclidean norms (N, T) of values (N, T, H), also where squares would overflow or be 0."""
    largest = np.abs(values).max(axis=2)
    sound = np.isfinite(largest) & (largest > 0)
    with np.errstate(all="ignore"):
        scaled = values / np.where(sound, largest, 1)[:, :, None]
        return np.where(sound, largest * np.linalg.norm(scaled, axis=2), largest)


def gradient_flow(trace: Trace, state: str | None = None) -> Table:
    """Measure how much gradient reaches the earlier steps: dL/dh_t by lag.

    Parameters
    ----------
    trace : Trace
        The trace of a layer after backward.
    state : str, optional
        The name of a state, such as "h"; all states if left out.

    Returns
    -------
    table : dict of str to array
        One row for each (state, lag), with the columns

        - state: the name of the state
        - lag: the number of steps back from the last step that the loss depends on, which is the
          last step of a row that any gradient reached. Steps that a mask leaves out are not
          counted; steps before a reset belong to another sequence.
        - rows: the number of rows of the batch that reach so far back
        - mean: the mean over those rows of the Euclidean norm, over units, of dL/d(state after the
          step)
        - low, high: the smallest and the largest of these norms

    Notes
    -----
    To see how the gradient fades, let the loss depend on the last step alone (dhs zero elsewhere).
    Otherwise every step adds gradient of its own.

    Examples
    --------
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
        norms, valid = rows_by_lag(trace, name)
        for lag in np.flatnonzero(valid.any(axis=0)):
            of_lag = norms[valid[:, lag], lag]
            values = name, lag, len(of_lag), of_lag.mean(), of_lag.min(), of_lag.max()
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    kinds = {"state": str, "lag": int, "rows": int}
    return {name: np.array(values, kinds.get(name, float)) for name, values in columns.items()}


def gradient_growth(trace: Trace, state: str = "h") -> float:
    """Compute the factor by which the norm of the gradient changes for each step back.

    Gradients vanish if it is below 1 and explode if it is above 1. It is the geometric mean of the
    ratio between neighbouring lags of one row, over all lags and rows where neither norm is 0,
    infinite or NaN: the slope of the logarithm of the norm. ``growth ** 20`` is left of a gradient
    after 20 steps.

    Parameters
    ----------
    trace : Trace
        The trace of a layer after backward.
    state : str, default "h"
        The name of a state.

    Returns
    -------
    growth : float
        The factor; NaN if no lag counts.

    References
    ----------
    - Bengio et al. 1994, *Learning long-term dependencies with gradient descent is difficult*.
    - Pascanu et al. 2013, *On the difficulty of training recurrent neural networks*.
    """
    norms, valid = rows_by_lag(trace, state)
    sound = valid & np.isfinite(norms) & (norms > 0)
    pairs = sound[:, 1:] & sound[:, :-1]
    if not pairs.any():
        return float("nan")
    logs = np.log(norms, where=sound, out=np.zeros_like(norms))
    return float(np.exp(np.diff(logs, axis=1)[pairs].mean()))


# ---- gates


@lru_cache(maxsize=256)
def value_range(cell: str | Cell, gate: str) -> tuple[float, float] | None:
    """Return the smallest and the largest value that a gate of a cell can take.

    Parameters
    ----------
    cell : Cell or str
        A cell or its name.
    gate : str
        One of ``cell.gate_names``.

    Returns
    -------
    (low, high) : tuple of float, or None
        None: there is no bound.

    Notes
    -----
    The range is found by trial: the cell gets pre-activations and states of both signs and of two
    sizes, 30 and 1000, next to some that are 0 or moderate. A gate with the same range in both
    trials is bounded by it: sigmoid 0 to 1, tanh -1 to 1. So the range is also known for a gate
    that is a tanh of more than its own pre-activation, as in the reset-after GRU, and for every
    gate of a cell of your own.

    Examples
    --------
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
    result = {name: value_range(trace.cell, name) for name in trace.gate_names}
    return {name: ends for name, ends in result.items() if ends is not None}


def values_there(trace: Trace, gate: str) -> Array:
    """The values (K, H) that a gate took, at all K steps of all rows that no mask left out."""
    values = trace.gates[gate]
    valid = np.ones(values.shape[:2], bool) if trace.mask is None else trace.mask
    return values[valid].astype(np.float64)


def saturation(trace: Trace, by: str = "gate") -> Table:
    """Measure how often gates are near the ends of their range, where their gradient is near 0.

    Gates without bounds, such as relu, have no ends and are left out (``value_range``).

    Parameters
    ----------
    trace : Trace
        The trace of a layer.
    by : {"gate", "unit"}
        One row for each gate, or for each (gate, unit).

    Returns
    -------
    table : dict of str to array
        The columns

        - gate, unit: the gate and, with by="unit", the unit
        - below, above: the thresholds, 0.1 and 0.9 for gates from 0 to 1, -0.9 and 0.9 for tanh
        - left, right: the share, 0 to 1, of values below and above them ("left-saturated" and
          "right-saturated"); steps that a mask leaves out do not count
        - mean: the mean of the values
        - values: the number of values

    References
    ----------
    - Karpathy et al. 2015, *Visualizing and understanding recurrent networks*.
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


def recurrent_blocks(layer: CellLayer) -> dict[str, Array]:
    """The block (H, H) of Wh of each gate that has one, float64 in host memory."""
    if not isinstance(layer, CellLayer):
        also = "; pass its forward_layer or its backward_layer" * hasattr(layer, "forward_layer")
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
            f"layer: expected blocks (H, H) of Wh, got {layer!r}, where h is narrower than c: h "
            "reaches the next h through the projection as well"
        )
    Wh = np.asarray(to_host(layer.params[layer.param_names.index("Wh")]), np.float64)
    expect_finite("Wh", Wh)
    return {cell.gates[g]: Wh[:, k * H : (k + 1) * H] for k, g in enumerate(cell.recurrent_gates)}


def spectrum(layer: CellLayer) -> Table:
    """Measure the effect of repeated multiplication by each gate's block (H, H) of Wh.

    Parameters
    ----------
    layer : layer with a cell
        A recurrent layer, such as TimeLSTM or LSTM, with its current Wh.

    Returns
    -------
    table : dict of str to array
        One row for each gate, with the columns

        - gate: the name of the gate
        - radius: the spectral radius, the largest absolute eigenvalue; it is the growth of a vector
          in the long run. A simple RNN whose units are not saturated shrinks gradients if it is
          below 1; a radius above 1 is necessary for them to explode.
        - largest: the largest singular value; no vector grows by more in one step
        - smallest: the smallest singular value; no vector shrinks by more
        - condition: largest / smallest, 1 for an orthogonal block, inf for a singular one

    Notes
    -----
    In gated cells this is the path through the gates alone: the c of an LSTM is carried back
    through f, the h of a GRU through 1 - z, without any matrix.

    References
    ----------
    - Pascanu et al. 2013, *On the difficulty of training recurrent neural networks*.
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


def singular_values(layer: CellLayer) -> Table:
    """Compute all singular values of each gate's block of Wh.

    Parameters
    ----------
    layer : layer with a cell
        A recurrent layer, such as TimeLSTM or LSTM.

    Returns
    -------
    table : dict of str to array
        One row for each (gate, index), with the columns gate, index and value, the largest first.
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
