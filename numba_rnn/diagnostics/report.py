"""The essential of a layer, as text."""

import math
from typing import Any

import numpy as np

from ..layers.cell_layer import CellLayer
from .metrics import gradient_growth, recurrent_blocks, rows_by_lag, saturation, spectrum

STUCK = 0.95  # a unit that is at one end at more than this share of the steps


def summary(layer: CellLayer) -> str:
    """Report on a recurrent layer: its weights and, from its trace, gates and gradients.

    Units that are stuck are at one end of their range at over 95 % of the steps. If the trace or
    its gradients are missing, a line says how to get them.

    Parameters
    ----------
    layer : layer with a cell
        A recurrent layer, such as TimeLSTM.

    Returns
    -------
    str
        The report.

    Examples
    --------
    >>> from numba_rnn import TimeRNN
    >>> layer = TimeRNN(np.eye(2), 0.5 * np.eye(2), np.zeros(2))
    >>> hs = layer.forward(np.full((1, 11, 2), 1e-3), trace=True)
    >>> hs[:, :-1] = 0
    >>> dxs = layer.backward(hs)
    >>> print(summary(layer))
    TimeRNN(cell rnn, D 2, H 2, float64)
    <BLANKLINE>
    Recurrent weights: the block of Wh of each gate
      gate          spectral radius   singular values   condition
      h                       0.500    0.500 to 0.500           1
    <BLANKLINE>
    Gates over 11 steps of 1 row: share of values near the ends of their range
      gate             mean   low end         high end         units stuck there
      h               0.002    0.0 % < -0.9    0.0 % > 0.9     0 of 2
    <BLANKLINE>
    Gradient from the last step that the loss looks at, back through time
      h  shrinks by a factor of 0.50 a step: after 10 steps 0.098 % is left
    """
    return "\n\n".join([repr(layer), *_weights(layer), *_inside(layer)])


def _weights(layer: Any) -> list[str]:
    if hasattr(layer, "cell") and not layer.cell.recurrent_gates:
        return ["Recurrent weights: none, the gates see only the input"]
    if hasattr(layer, "cell") and layer.cell.projected:
        return ["Recurrent weights: (P, 4H), no block of which maps h to h"]
    recurrent_blocks(layer)  # refuses what is no recurrent layer
    table = spectrum(layer)
    lines = [
        "Recurrent weights: the block of Wh of each gate",
        "  gate          spectral radius   singular values   condition",
    ]
    for gate, radius, largest, smallest, condition in zip(*table.values(), strict=True):
        ends = f"{smallest:.3f} to {largest:.3f}"
        size = f"{condition:.3g}" if condition < 1e4 else f"{condition:.1e}"
        lines.append(f"  {gate:<13} {radius:>15.3f}   {ends:>15}   {size:>9}")
    return ["\n".join(lines)]


def _inside(layer: Any) -> list[str]:
    trace = getattr(layer, "trace", None)
    if trace is None:
        return ["Gates and gradients: no trace; forward(xs, trace=True) leaves one, and backward"]
    parts = [_gates(trace)]
    try:
        trace.gradients  # noqa: B018 (raises before backward)
    except RuntimeError:
        return [*parts, "Gradient: none before backward"]
    lines = ["Gradient from the last step that the loss looks at, back through time"]
    lines += [f"  {state}  {_flow(trace, state)}" for state in trace.cell.states]
    return [*parts, "\n".join(lines)]


def _gates(trace: Any) -> str:
    by_gate, by_unit = saturation(trace), saturation(trace, by="unit")
    N, T = next(iter(trace.states.values())).shape[:2]
    steps = N * T if trace.mask is None else int(trace.mask.sum())
    lines = [
        f"Gates over {steps:,} steps of {N:,} row{'s' * (N > 1)}: "
        "share of values near the ends of their range"
    ]
    if len(by_gate["gate"]):
        lines.append("  gate             mean   low end         high end         units stuck there")
    for gate, below, above, left, right, mean, _ in zip(*by_gate.values(), strict=True):
        of_gate = by_unit["gate"] == gate
        stuck = np.maximum(by_unit["left"], by_unit["right"])[of_gate] > STUCK
        lines.append(
            f"  {gate:<13} {mean:>7.3f}   {left:>5.1%} < {below:<6g} {right:>5.1%} > {above:<6g}"
            f"  {stuck.sum()} of {len(stuck)}"
        )
    without = [name for name in trace.gate_names if name not in by_gate["gate"]]
    if without:
        lines.append(f"  without bounds, so without ends: {', '.join(without)}")
    return "\n".join(lines).replace("%", " %")


def _flow(trace: Any, state: str) -> str:
    """A sentence on how the gradient fades or grows through one state."""
    norms, there = rows_by_lag(trace, state)
    if not there.any():
        return "none: the loss looks at no step"
    if not np.isfinite(norms).all():
        first = np.flatnonzero((there & ~np.isfinite(norms)).any(axis=0))[0]
        return f"is infinite or NaN from lag {first} on: it has exploded"
    growth = gradient_growth(trace, state)
    lags = int(np.flatnonzero(there.any(axis=0))[-1])
    if math.isnan(growth):
        return "reaches no two steps in a row: nothing to compare"
    steps = f"after {lags} step{'s' * (lags > 1)}"
    left = growth**lags
    if f"{growth:.2f}" == "1.00":
        said = f"keeps its size ({growth:.3f} a step): {steps} {left:.0%} is left"
    elif growth < 1:
        said = f"shrinks by a factor of {growth:.2f} a step: {steps} {100 * left:.2g}% is left"
    else:
        said = f"grows by a factor of {growth:.2f} a step: {steps} it is {left:.3g} times as large"
    reached = int(np.flatnonzero((norms > 0).any(axis=0))[-1])
    if reached < lags:
        said += f"; nothing at all arrives beyond lag {reached}"
    return said.replace("%", " %")
