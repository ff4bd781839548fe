"""The computation graph of one step of a layer, as the book draws it."""

from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from ..fonts import choose_fonts
from ..typing import Array
from ..validation import expect_choice
from . import style
from .drawing import GraphPicture, Highlight, Labels
from .operations import is_simple
from .recording import StepRecord, cell_of, display_name, record_step
from .step_graph import (
    AFFINE,
    INPUT,
    OUTPUT,
    PARAMETER,
    Edge,
    StepGraph,
    StepNode,
    StepValues,
    affine_option,
)

SCREEN = 16 / 9
SHOWN = "values", "gradients", "both", "shapes"


def graph(
    layer: Any,
    xs: Array | None = None,
    dhs: Array | None = None,
    *,
    show: str | None = None,
    step: int = -1,
    state: Sequence[Array] | None = None,
    affine: str = "fused",
    large: str = "norm",
    title: str | None = None,
    figure: Any = None,
) -> Any:
    """Draw the computation graph of one step of a layer.

    The elementwise part is the cell's own function, traced. The run is that of a copy of the layer
    without its regularisers: the layer and its state stay as they are.

    Parameters
    ----------
    layer : layer with one cell
        RNN, LSTM, GRU, TimeRNN, TimeLSTM, TimeGRU, or the layer of any other cell, your own too.
    xs : (N, T, D) or (N, D) array, optional
        The inputs of the run whose numbers are shown, or one step of them, in the dtype of the
        layer.
    dhs : (N, T, H) or (N, H) array, optional
        The gradient of the outputs; 1 for each output of the step if left out.
    show : {"values", "gradients", "both", "shapes"} or None, default None
        The text on the edges. "gradients" includes the gradient from later steps; "both" puts
        gradients below the edges; "shapes" spells N as a letter without xs; None: names alone.
    step : int, default -1
        The step that is drawn, one of T.
    state : sequence of (N, H) arrays, optional
        The states from which the run starts; zeros if left out.
    affine : {"fused", "apart"}
        "fused": gates with the same inputs are one Affine, cut by a slice. "apart": each gate
        has an Affine of its own.
    large : {"norm", "mean"}
        How arrays of more than 2 rows or 3 columns are summarised.
    title : str, optional
        The title of the figure.
    figure : matplotlib Figure, optional
        The figure to draw in; a new one if left out.

    Returns
    -------
    matplotlib Figure
        The figure.

    Raises
    ------
    TypeError
        If the layer or a dtype does not fit.
    ValueError
        If a shape does not fit, or numbers are to be shown without xs.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import RNN, viz
    >>> layer = RNN.create(2, 3, rng=0)
    >>> x = np.ones((1, 2), np.float32)
    >>> picture = viz.graph(layer, x, show="values")  # picture.savefig("graph.png")
    """
    if show is not None:
        expect_choice("show", show, SHOWN)
    affine = affine_option(affine)
    expect_choice("large", large, ("norm", "mean"))
    step_graph = StepGraph(cell_of(layer), affine)
    if xs is None and show in SHOWN[:3]:
        raise ValueError(f"xs: expected an array (N, T, D), to show {show}, got None")
    seen = _nothing(layer) if xs is None else record_step(layer, xs, dhs, state, step)
    heading = [f"One step of {display_name(step_graph.cell)}" if title is None else title]
    picture = picture_of(
        step_graph, seen.numbers(step_graph), show, large, heading, named_batch=xs is None
    )
    figure, axes, scale = style.new_figure(figure, picture.width, picture.height)
    picture.draw(axes, scale, heading, Highlight())
    return choose_fonts(figure)


def _nothing(layer: Any) -> StepRecord:
    """One row of zeros."""
    return record_step(layer, np.zeros((1, layer.input_size), layer.dtype), None, None, -1)


def _note(show: str | None, words: Labels) -> str:
    """A note on the numbers that are shown."""
    texts = [*words.values.values(), *words.gradients.values()]
    texts += [text for lines in words.inside.values() for text, _ in lines]
    parts = {
        "values": ["numbers: values"],
        "gradients": ["numbers: gradients of the loss"],
        "both": ["above a line: the value, below it: the gradient of the loss"],
    }.get(show or "", [])
    if parts and any("‖" in text for text in texts):
        parts.append("‖·‖: norm of a larger array")
    return "; ".join(parts)


def picture_of(
    step_graph: StepGraph,
    values: StepValues,
    show: str | None,
    large: str,
    heading: Sequence[str],
    named_batch: bool = False,
    numbered: bool = False,
) -> GraphPicture:
    """A graph with its numbers, side by side or stacked: what is closer to a screen's shape.

    numbered  whether the names are shown of what has but a number, as equations use them
    """
    hidden = frozenset() if numbered else step_graph.numbered
    tried = []
    for stacked in (False, True):
        words = _words(step_graph, values, show, large, named_batch, stacked, hidden)
        tried.append(GraphPicture(step_graph, words, heading, _note(show, words)))
    return min(tried, key=lambda p: abs(np.log(p.width / p.height / SCREEN)))


def _words(
    step_graph: StepGraph,
    found: StepValues,
    show: str | None,
    large: str,
    named_batch: bool,
    stacked: bool,
    hidden: Set[str],
) -> Labels:
    values: dict[Edge, str] = {}
    gradients: dict[Edge, str] = {}
    for node, k in step_graph.edges:
        use = node.uses[k]
        name = use.name if _has_name(use.source, node) and use.name not in hidden else ""
        text = ""
        if show in ("values", "both"):
            text = style.numbers(found.seen(use), large, stacked)
        elif show == "shapes":
            text = _shape(found.seen(use), named_batch and not use.source.is_of_weights)
        between = "\n" if stacked or "\n" in text else " = "
        values[node, k] = between.join(filter(None, (name, text)))
        if show in ("gradients", "both") and (node, k) in found.edges:
            gradients[node, k] = style.numbers(found.edges[node, k], large, stacked)
        if show == "gradients":
            values[node, k] = name
    inside: dict[StepNode, list[tuple[str, frozenset[Edge] | None]]] = {}
    for node in step_graph.nodes:
        if node.kind == AFFINE:
            inside[node] = _inside_affine(node, found, show, large)
        elif node.kind == INPUT and len(node.users) > 1 and show in ("gradients", "both"):
            edges = frozenset(
                (user, k) for user, k in step_graph.edges if user.uses[k].source is node
            )
            total = style.numbers(found.gradients[node], large)
            inside[node] = [(f"{node.delta}\n{total}", edges)]
    return Labels(values, gradients, inside)


def _inside_affine(
    node: StepNode, values: StepValues, show: str | None, large: str
) -> list[tuple[str, frozenset[Edge] | None]]:
    """Its parameters, a line each."""
    uses = [(k, use) for k, use in enumerate(node.uses) if use.source.kind == PARAMETER]
    if show is None:
        return [(" ".join(use.name for _, use in uses), None)]
    lines: list[tuple[str, frozenset[Edge] | None]] = []
    for k, use in uses:
        if show in ("values", "both"):
            lines.append((f"{use.name} = {_one_line(values.seen(use), large)}", None))
        if show in ("gradients", "both"):
            edge = node, k
            text = f"d{use.name} = {_one_line(values.edges[edge], large)}"
            lines.append((text, frozenset([edge])))
        if show == "shapes":
            lines.append((f"{use.name} {_shape(values.seen(use), False)}", None))
    return lines


def _one_line(array: Array, large: str) -> str:
    text = style.numbers(array, large)
    return text if "\n" not in text else style.numbers(np.ravel(array), large)


def _has_name(source: StepNode, user: StepNode) -> bool:
    """Whether the name of what travels says something that the nodes do not."""
    return not source.is_source and user.kind != OUTPUT and is_simple(source.name)


def _shape(array: Array, named_batch: bool) -> str:
    sizes = list(map(str, array.shape))
    if named_batch and sizes:
        sizes[0] = "N"
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
