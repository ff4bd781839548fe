"""Pictures of what goes on inside a layer, drawn with matplotlib.

Each returns a matplotlib Figure: ``.savefig("picture.png")`` writes it. It draws on the figure or
axes it is given (``plt.figure()`` where a notebook is to show it), else on one of its own, which
pyplot does not know and which so needs no closing. Hangul and the like are written in
any installed font that has them.

Colours are those of Okabe & Ito (2008) and maps that stay apart for the colour-blind.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..fonts import choose_fonts
from ..layers.cell_layer import CellLayer
from ..layers.trace import Trace
from ..optional_deps import optional_import
from ..typing import Array, BoolArray
from ..validation import expect_choice, expect_int
from .metrics import (
    bounded_gates,
    expect_trace,
    gradient_growth,
    recurrent_blocks,
    rows_by_lag,
    saturation,
    thresholds,
    value_range,
    values_there,
)
from .quantisation import QuantisationReport

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
LINES = "-", "--", ":", "-."
LEFT_OUT = "0.75"  # grey, which neither map has
VANISHED, EXPLODED = 1e-3, 1e3  # a convention: what is left of the gradient, to the eye nothing


def _matplotlib() -> ModuleType:
    with optional_import("matplotlib", "a picture"):
        import matplotlib.figure
    return matplotlib


def _figure(figure: Any, width: float, height: float) -> Any:
    """The figure given, or a new one (inches)."""
    matplotlib = _matplotlib()
    if figure is None:
        return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    if not isinstance(figure, matplotlib.figure.FigureBase):
        raise TypeError(f"figure: expected a matplotlib Figure, got {type(figure).__name__}")
    return figure


# ---- gates over time


def plot_gates(
    trace: Trace,
    row: int = 0,
    gates: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    figure: Any = None,
) -> Any:
    """Draw heat maps, units by steps, of every gate in one row of the batch.

    Colours span the whole range of the gate, 0 to 1 or -1 to 1; for a gate without bounds, the
    range of its values. Steps that a mask leaves out are grey; dashed lines mark resets.

    Parameters
    ----------
    trace : Trace
        The trace of a layer.
    row : int, default 0
        The row of the batch.
    gates : sequence of str, optional
        The names of the gates; all if left out.
    labels : sequence of str, optional
        T strings that stand at the steps instead of their numbers, such as the tokens of a text.
    figure : matplotlib Figure, optional
        The figure to draw in; a new one if left out.

    Returns
    -------
    matplotlib Figure
        The figure.

    Raises
    ------
    TypeError, ValueError
        If a name, the row or the number of labels does not fit.
    ImportError
        Without matplotlib.
    """
    trace = expect_trace(trace)
    known = tuple(trace.gate_names)
    if isinstance(gates, str):
        raise TypeError(f"gates: expected a list of names, got the string {gates!r}")
    names = known if gates is None else tuple(expect_choice("gates", g, known) for g in gates)
    if not names:
        raise ValueError(f"gates: expected some of {', '.join(known)}, got none")
    values = trace.gates
    N, T = values[names[0]].shape[:2]
    if expect_int("row", row, 0) >= N:
        raise ValueError(f"row: expected 0 to {N - 1}, got {row}")
    if labels is not None and len(labels) != T:
        raise ValueError(f"labels: expected {T}, one a step, got {len(labels)}")

    width = 2.5 + (0.1 if labels is None else 0.2) * T
    figure = _figure(
        figure, min(max(8.0, width), 24 if labels is None else 60), 0.9 + 1.7 * len(names)
    )
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    left_out = np.zeros(T, bool) if trace.mask is None else ~trace.mask[row]
    resets = np.flatnonzero(np.zeros(T) if trace.resets is None else trace.resets[row])
    for axes, name in zip(panels, names, strict=True):
        _heat_map(figure, axes, trace, name, values[name][row].T, left_out)
        for step in resets:
            axes.axvline(step - 0.5, color="white", linewidth=3)  # seen on dark cells too
            axes.axvline(step - 0.5, color="black", linestyle="--", linewidth=1.5)
        axes.set_ylabel(f"{name}\nunit", fontsize=13)
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        axes.tick_params(labelsize=11)
    _name_steps(panels[-1], T, labels)
    _explain_marks(figure, bool(left_out.any()), len(resets) > 0)
    return choose_fonts(figure)


def _heat_map(
    figure: Any, axes: Any, trace: Trace, name: str, values: Array, left_out: BoolArray
) -> None:
    """values (H, T) of one gate, with their colour bar."""
    matplotlib = _matplotlib()
    ends = value_range(trace.cell, name)
    if ends is None:
        seen = values[:, ~left_out]
        seen = seen[np.isfinite(seen)]
        size = float(np.abs(seen).max(initial=0)) or 1.0
        ends = (-size if (seen < 0).any() else 0.0), size
    low, high = ends
    colours = matplotlib.colormaps["RdBu_r" if low < 0 else "viridis"]
    image = axes.imshow(
        np.ma.array(values, mask=np.broadcast_to(left_out, values.shape)),
        cmap=colours.with_extremes(bad=LEFT_OUT),
        vmin=low, vmax=high, aspect="auto", interpolation="nearest",
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.05, aspect=12)
    bar.set_ticks(_ticks(low, high), labels=[f"{v:.3g}" for v in _ticks(low, high)])
    bar.ax.tick_params(labelsize=11)


def _ticks(low: float, high: float) -> tuple[float, float, float]:
    """The ends of a range and its middle."""
    return low, (low + high) / 2, high


def _name_steps(axes: Any, T: int, labels: Sequence[str] | None) -> None:
    if labels is None:
        axes.set_xlabel("step", fontsize=13)
        axes.xaxis.get_major_locator().set_params(integer=True)
        return
    shown = [label.replace("\n", "↵").replace(" ", "␣") for label in labels]
    long = max(map(len, shown)) > 1
    axes.set_xticks(
        range(T), labels=shown, family="monospace", fontsize=12, rotation=90 if long else 0,
        parse_math=False,
    )  # fmt: skip


def _explain_marks(figure: Any, masked: bool, reset: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    if masked:
        handles.append(Patch(color=LEFT_OUT, label="left out by the mask"))
    if reset:
        handles.append(Line2D([], [], color="black", linestyle="--", label="state reset"))
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=12)


# ---- gradients by lag


def plot_gradient_flow(
    traces: Trace | Mapping[str, Trace], state: str | None = "h", axes: Any = None
) -> Any:
    """Draw the norm of the gradient by lag on a log scale: how it fades or grows.

    Lines are means over rows, shaded from the smallest to the largest row, relative to the mean at
    the first lag that any gradient reached. The legend shows ``gradient_growth``. Two grey areas
    mark, by convention, norms below 1/1000 and above 1000 times the start.

    Parameters
    ----------
    traces : Trace or mapping of str to Trace
        A trace after backward, or several by name, for comparison.
    state : str or None, default "h"
        The state whose gradient is drawn; None: all states of the cell.
    axes : matplotlib Axes, optional
        The axes to draw in; those of a new figure if left out.

    Returns
    -------
    matplotlib Figure
        The figure.
    """
    given = dict(traces) if isinstance(traces, Mapping) else {"": traces}
    if not given:
        raise ValueError("traces: expected at least one, got none")
    for name, trace in given.items():
        expect_trace(trace, f"traces[{name!r}]" if name else "traces")
    matplotlib = _matplotlib()
    if axes is None:
        axes = _figure(None, 8, 5.2).subplots()
    elif not isinstance(axes, matplotlib.axes.Axes):
        raise TypeError(f"axes: expected matplotlib Axes, got {type(axes).__name__}")

    axes.set_yscale("log")
    axes.set_autoscaley_on(False)  # which overflows where a gradient does
    ends = [VANISHED / 10, EXPLODED * 10]
    for k, (name, trace) in enumerate(given.items()):
        for n, which in enumerate(trace.cell.states if state is None else (state,)):
            colour = COLOURS[(k if len(given) > 1 else n) % len(COLOURS)]
            label, line = f"{name} {which}".strip(), LINES[n % len(LINES)]
            ends += _draw_flow(axes, trace, which, label, colour, line)
    low, high = max(min(ends) / 2, 1e-30), min(max(ends) * 2, 1e30)
    axes.set_ylim(low, high)
    axes.set_xlim(left=0)
    axes.axhspan(low, VANISHED, color="0.9", zorder=0)
    axes.axhspan(EXPLODED, high, color="0.9", zorder=0)
    words = {"fontsize": 12, "color": "0.3", "transform": axes.transAxes, "zorder": 4}
    # in the corners where no line is: all start at 1, in the middle of the left edge
    axes.text(0.02, 0.02, "vanishing: under 1/1000", va="bottom", **words)
    axes.text(0.02, 0.98, "exploding: over 1000 times", va="top", **words)
    axes.axhline(1, color="0.6", linewidth=1, zorder=1)
    axes.set_xlabel("lag: steps back from the last one the loss looks at", fontsize=13)
    axes.set_ylabel("gradient's norm, relative", fontsize=13)
    axes.tick_params(labelsize=12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend = axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=12, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are shown as they are
    return choose_fonts(axes).figure


def _draw_flow(
    axes: Any, trace: Trace, state: str, label: str, colour: str, line: str
) -> list[float]:
    """One line and its band; returns the ends of the line, above 0 and finite."""
    norms, there = rows_by_lag(trace, state)
    lags = np.flatnonzero(there.any(axis=0))
    rows = [norms[there[:, lag], lag] for lag in lags]
    mean, low, high = (
        np.array([measure(row) for row in rows], float) for measure in (np.mean, np.min, np.max)
    )
    drawn = np.isfinite(mean) & (mean > 0)
    if not drawn.any():
        axes.plot([], [], color=colour, linestyle=line, label=f"{label}: none arrives")
        return []
    lags, mean, low, high = (a[drawn] for a in (lags, mean, low, high))
    with np.errstate(over="ignore"):
        mean, low, high = mean / mean[0], low / mean[0], high / mean[0]
    growth = gradient_growth(trace, state)
    axes.plot(
        lags, mean, color=colour, linestyle=line, linewidth=2.5, zorder=3,
        marker="o" if len(lags) < 40 else "", markersize=4, label=f"{label}: × {growth:.2f} a step",
    )  # fmt: skip
    if len(norms) > 1:
        axes.fill_between(lags, low, high, color=colour, alpha=0.2, linewidth=0)
    return [float(mean.min()), float(mean.max())]


# ---- saturation


def plot_saturation(trace: Trace, figure: Any = None) -> Any:
    """Draw histograms of every gate's values over its range, with the saturated ends shaded.

    The share of values stands above each end (``saturation``). Steps that a mask leaves out do not
    count; gates without bounds are left out.

    Parameters
    ----------
    trace : Trace
        The trace of a layer.
    figure : matplotlib Figure, optional
        The figure to draw in; a new one if left out.

    Returns
    -------
    matplotlib Figure
        The figure.

    Raises
    ------
    ValueError
        If no gate of the cell has bounds.
    """
    ranges = bounded_gates(expect_trace(trace))
    if not ranges:
        raise ValueError(
            f"trace: expected a cell with bounded gates, got {trace.cell.name}, with "
            f"{', '.join(trace.gate_names)}"
        )
    figure = _figure(figure, 1.2 + 3.1 * len(ranges), 3.6)
    panels = figure.subplots(1, len(ranges), sharey=True, squeeze=False)[0]
    table = saturation(trace)
    for k, (axes, (gate, (low, high))) in enumerate(zip(panels, ranges.items(), strict=True)):
        values = values_there(trace, gate)
        counts, edges = np.histogram(values, bins=40, range=(low, high))
        axes.stairs(100 * counts / max(values.size, 1), edges, fill=True, color=COLOURS[0])
        below, above = thresholds(low, high)
        for ends, share, side in (
            ((low, below), table["left"][k], "left"),
            ((above, high), table["right"][k], "right"),
        ):
            axes.axvspan(*ends, color=COLOURS[1], alpha=0.25, linewidth=0, zorder=0)
            axes.text(
                0.02 if side == "left" else 0.98, 1.02, f"{share:.0%}",
                transform=axes.transAxes, ha=side, va="bottom", fontsize=13, color="#A04000",
            )  # fmt: skip
        axes.set_title(gate, fontsize=15)
        axes.set_xlim(low, high)
        axes.set_xticks(_ticks(low, high), labels=[f"{v:g}" for v in _ticks(low, high)])
        for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
            label.set_horizontalalignment(side)  # clear of the neighbouring panel's
        axes.tick_params(labelsize=12)
    panels[0].set_ylabel("share of values in each bin, %", fontsize=13)
    figure.supxlabel("value of the gate; shaded: saturated", fontsize=13)
    return choose_fonts(figure)


# ---- recurrent weights


def plot_spectrum(layer: CellLayer, figure: Any = None) -> Any:
    """Draw the eigenvalues of Wh in the complex plane, and its singular values.

    There is a column for each gate's block (H, H). Components along eigenvalues outside the unit
    circle grow at every step, those inside shrink; see ``spectrum``.

    Parameters
    ----------
    layer : layer with a cell
        A recurrent layer, such as TimeLSTM or LSTM.
    figure : matplotlib Figure, optional
        The figure to draw in; a new one if left out.

    Returns
    -------
    matplotlib Figure
        The figure.
    """
    blocks = recurrent_blocks(layer)
    several = len(blocks) > 1
    figure = _figure(figure, 1 + 3 * len(blocks) if several else 8, 6.2 if several else 4)
    shape = (2, len(blocks)) if several else (1, 2)
    share = "row" if several else False  # one scale for all gates; a single one has a row of two
    panels = figure.subplots(*shape, squeeze=False, sharey=share).reshape(2, len(blocks))
    singular = [np.linalg.svd(block, compute_uv=False) for block in blocks.values()]
    eigen = [np.linalg.eigvals(block) for block in blocks.values()]
    reach = 1.08 * max(1.0, *(float(np.abs(values).max()) for values in eigen))
    top = 1.08 * max(1.0, *(float(values.max()) for values in singular))
    turn = np.linspace(0, 2 * np.pi, 200)
    for k, gate in enumerate(blocks):
        plane, bars = panels[:, k]
        plane.plot(np.cos(turn), np.sin(turn), color="0.4", linewidth=1)
        plane.axhline(0, color="0.85", linewidth=1, zorder=0)
        plane.axvline(0, color="0.85", linewidth=1, zorder=0)
        plane.plot(
            eigen[k].real, eigen[k].imag, linestyle="", marker="o", markersize=4, alpha=0.7,
            color=COLOURS[0],
        )  # fmt: skip
        plane.set_aspect("equal")
        plane.set_xlim(-reach, reach)
        plane.set_ylim(-reach, reach)
        radius = np.abs(eigen[k]).max()
        plane.set_title(f"{gate}: radius {radius:.2f}", fontsize=13)
        plane.set_xlabel("real", fontsize=12)

        bars.axhline(1, color="0.4", linewidth=1)
        index = np.arange(1, len(singular[k]) + 1)
        bars.plot(
            index, singular[k], color=COLOURS[1], linewidth=2,
            marker="o" if len(index) <= 40 else "", markersize=4,
        )  # fmt: skip
        bars.set_ylim(0, top)
        bars.set_title(f"from {singular[k][0]:.2f} to {singular[k][-1]:.2g}", fontsize=13)
        bars.set_xlabel("number", fontsize=12)
        bars.xaxis.get_major_locator().set_params(integer=True)
        for axes in (plane, bars):
            axes.tick_params(labelsize=11)
    panels[0, 0].set_ylabel("eigenvalues of Wh,\nimaginary", fontsize=12)
    panels[1, 0].set_ylabel("singular values of Wh", fontsize=12)
    return choose_fonts(figure)


# ---- weights in int8


def plot_quantisation(report: QuantisationReport, figure: Any = None) -> Any:
    """Draw the change of a metric where each layer alone has weights in int8, and where all have.

    Parameters
    ----------
    report : QuantisationReport
        The result of ``quantisation_report``.
    figure : matplotlib Figure, optional
        The figure to draw in; a new one if left out.

    Returns
    -------
    matplotlib Figure
        The figure.
    """
    layers, changes = report.table["layer"], report.table["change"]
    figure = _figure(figure, 7, 1.4 + 0.4 * len(layers))
    axes, places = figure.subplots(), np.arange(len(layers))
    colours = [COLOURS[0]] * (len(layers) - 1) + [COLOURS[1]]
    axes.barh(places, changes, color=colours)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(places, labels=[str(layer) for layer in layers])
    axes.invert_yaxis()
    axes.set_xlabel(f"change of the metric, {report.metric:.4g} in float32", fontsize=13)
    axes.set_ylabel("weights in int8", fontsize=13)
    axes.tick_params(labelsize=12)
    return choose_fonts(figure)
