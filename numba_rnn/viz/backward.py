"""The backward pass through one step, node by node: as a list, and as an animated GIF."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

from ..fonts import choose_fonts
from ..typing import Array
from ..validation import expect_choice
from . import style
from .drawing import GraphPicture, Highlight
from .gif import expect_gif, write_gif
from .graph_figure import picture_of
from .operations import is_simple
from .recording import cell_of, record_step
from .step_graph import (
    AFFINE,
    NORMALISED,
    OUTPUT,
    PRODUCT,
    SLICE,
    SUM,
    Edge,
    StepGraph,
    StepNode,
    StepValues,
    Use,
    affine_option,
)

WIDEST, BETWEEN = 70, ",    "


@dataclass(frozen=True)
class BackwardStep:
    """One step of the backward pass through a computation graph.

    Attributes
    ----------
    title : str
        The title above the picture.
    equations : tuple of str
        The equations of the step.
    gradients : dict of str to array
        The gradients that the step computes, by name: (N, H), or in the shape of a parameter.
    nodes : tuple of Node
        The nodes that take part.
    edges : tuple of Edge
        The edges along which the gradients go.
    """

    title: str
    equations: tuple[str, ...]
    gradients: dict[str, Array]
    nodes: tuple[StepNode, ...] = field(repr=False)
    edges: tuple[Edge, ...] = field(repr=False)


def backward_steps(
    layer: Any,
    xs: Array,
    dhs: Array | None = None,
    *,
    step: int = -1,
    state: Sequence[Array] | None = None,
    affine: str = "fused",
) -> list[BackwardStep]:
    """List the backward pass through one step of a layer, in the order of ``animate_backward``.

    The first entry is the start, before any gradient. Then there is one entry for every node from
    right to left; products that do not depend on each other share one.

    Parameters
    ----------
    layer, xs, dhs, step, state, affine
        As in ``graph``.

    Returns
    -------
    list of BackwardStep
        The steps.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import RNN, viz
    >>> layer = RNN.create(2, 3, rng=0)
    >>> for step in viz.backward_steps(layer, np.ones((1, 2), np.float32)):
    ...     print(step.title, *step.equations, sep=" | ")
    Backward: start
    (1) dh_next arrives | dh_next comes from the output and from the next step
    (2) dtanh | dt = dh_next × (1 − h_next²)
    (3) addition node | db = Σ dt | dt goes on to both products
    (4) multiplication nodes | dWh = h_prevᵀ dt | dh_prev = dt Whᵀ | dWx = xᵀ dt | dx = dt Wxᵀ
    """
    step_graph, values = _observed(layer, xs, dhs, step, state, affine)
    return _steps(step_graph, values)


def animate_backward(
    layer: Any,
    path: Any,
    xs: Array,
    dhs: Array | None = None,
    *,
    step: int = -1,
    state: Sequence[Array] | None = None,
    affine: str = "fused",
    large: str = "norm",
    seconds: float = 2.0,
    dpi: int = 80,
) -> None:
    """Write an animated GIF of the backward pass through one step of a layer, node by node.

    Values stand above the edges. Gradients appear below them as they are computed, and stay. The
    title of every frame names the step and its equations. The frames are ``backward_steps``, then
    one with all gradients. The same run gives the same bytes.

    Parameters
    ----------
    layer, xs, dhs, step, state, affine, large
        As in ``graph``.
    path : str or Path
        The file, a name in .gif. It is written whole or not at all.
    seconds : float, default 2.0
        The time that each frame stays, 0.01 to 655.
    dpi : int, default 80
        Dots per inch.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import RNN, viz
    >>> layer = RNN.create(2, 3, rng=0)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     viz.animate_backward(layer, f"{folder}/backward.gif", np.ones((1, 2), np.float32))
    """
    path = expect_gif(path, seconds, dpi)
    picture, frames = _frames(layer, xs, dhs, step, state, affine, large)
    figure, axes, scale = style.new_figure(None, picture.width, picture.height)
    draws = [partial(picture.draw, axes, scale, *frame) for frame in frames]
    write_gif(path, figure, draws, seconds, dpi)


def backward_frames(
    layer: Any,
    xs: Array,
    dhs: Array | None = None,
    *,
    step: int = -1,
    state: Sequence[Array] | None = None,
    affine: str = "fused",
    large: str = "norm",
) -> list[Any]:
    """Draw the frames of ``animate_backward`` as a list of matplotlib Figures, for slides.

    Parameters
    ----------
    layer, xs, dhs, step, state, affine, large
        As in ``graph``.

    Returns
    -------
    list of matplotlib Figure
        The frames.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import RNN, viz
    >>> len(viz.backward_frames(RNN.create(2, 3, rng=0), np.ones((1, 2), np.float32)))
    6
    """
    picture, frames = _frames(layer, xs, dhs, step, state, affine, large)
    figures = []
    for heading, view in frames:
        figure, axes, scale = style.new_figure(None, picture.width, picture.height)
        picture.draw(axes, scale, heading, view)
        figures.append(choose_fonts(figure))
    return figures


def _observed(
    layer: Any, xs: Array, dhs: Any, step: int, state: Any, affine: str
) -> tuple[StepGraph, StepValues]:
    affine = affine_option(affine)
    step_graph = StepGraph(cell_of(layer), affine)
    return step_graph, record_step(layer, xs, dhs, state, step).numbers(step_graph)


Frame = tuple[list[str], Highlight]


def _frames(
    layer: Any, xs: Array, dhs: Any, step: int, state: Any, affine: str, large: str
) -> tuple[GraphPicture, list[Frame]]:
    """The picture, and what each frame has above it and shows of it."""
    expect_choice("large", large, ("norm", "mean"))
    step_graph, values = _observed(layer, xs, dhs, step, state, affine)
    frames, known = list[Frame](), set[Edge]()
    for one in _steps(step_graph, values):
        known |= set(one.edges)
        view = Highlight(one.nodes, one.edges, frozenset(known))
        frames.append(([one.title, *_lines(one.equations)], view))
    frames.append((["Backward: done"], Highlight(known=frozenset(known))))
    headings = [heading for heading, _ in frames]
    largest = [max(lines, key=len) for lines in zip_longest(*headings, fillvalue="")]
    return picture_of(step_graph, values, "both", large, largest, numbered=True), frames


def _lines(equations: Sequence[str]) -> list[str]:
    """Two or three equations a line."""
    lines: list[str] = []
    for equation in equations:
        if lines and len(lines[-1]) + len(equation) < WIDEST:
            lines[-1] += BETWEEN + equation
        else:
            lines.append(equation)
    return lines


# ---- the steps


def _steps(step_graph: StepGraph, values: StepValues) -> list[BackwardStep]:
    groups = _in_order(step_graph)
    words = [_words(group[0]) for group in groups]
    steps = [BackwardStep("Backward: start", (), {}, (), ())]
    passed: set[Edge] = set()
    for k, group in enumerate(groups):
        edges = [(node, n) for node in group for n in range(len(node.uses))]
        edges = [edge for edge in edges if edge in values.edges]
        passed |= set(edges)
        title = _arrival(group) if group[0].kind == OUTPUT else words[k]
        if words.count(words[k]) > 1:
            title += f": {' and '.join(_unique(_gradient(edge) for edge in edges))}"
        texts = _sources(group) if group[0].kind == OUTPUT else map(_equations, group)
        equations = tuple(text for equations_of in texts for text in equations_of if text)
        gradients = {
            name: array for edge in edges for name, array in _finished(edge, values, passed)
        }
        steps.append(
            BackwardStep(f"({k + 1}) {title}", equations, gradients, tuple(group), tuple(edges))
        )
    return steps


def _in_order(step_graph: StepGraph) -> list[list[StepNode]]:
    """Nodes from right to left; the outputs together, and products that wait for the same."""
    depth: dict[StepNode, int] = {}
    for node in reversed(step_graph.nodes):
        depth[node] = 1 + max((depth[user] for user in node.users), default=-1)
    nodes = [node for node in reversed(step_graph.nodes) if not node.is_source]
    nodes = [node for node in nodes if node.operation is None or not node.operation.compares]
    nodes.sort(key=lambda node: -1 if node.kind == OUTPUT else depth[node])
    groups: list[list[StepNode]] = []
    for node in nodes:
        if groups and node.kind == groups[-1][0].kind and node.kind in (OUTPUT, PRODUCT):
            groups[-1].append(node)
        else:
            groups.append([node])
    groups[0].reverse()
    return groups


def _words(node: StepNode) -> str:
    if node.operation is not None:
        return node.operation.words
    return {
        PRODUCT: "multiplication nodes", SUM: "addition node", SLICE: "slice", AFFINE: node.label,
        NORMALISED: "normalisation", OUTPUT: "",
    }[node.kind]  # fmt: skip


def _arrival(outputs: Sequence[StepNode]) -> str:
    names = " and ".join(f"d{node.name}" for node in outputs)
    return f"{names} arrive{'s' if len(outputs) == 1 else ''}"


def _sources(outputs: Sequence[StepNode]) -> list[list[str]]:
    """Where the gradients come from: the first state is the layer's output."""
    first, *others = (node.delta for node in outputs)
    return [
        [f"{first} comes from the output and from the next step"],
        [f"{d} comes from the next step" for d in others],
    ]


def _gradient(edge: Edge) -> str:
    """The name of the gradient that flows back along an edge."""
    node, k = edge
    use = node.uses[k]
    if use.source.kind == SLICE:
        return f"d{use.name}"
    if use.blocks is not None:  # a gate's share of a weight
        return f"d{use.name}[{node.label.removeprefix('Affine ')}]"
    return use.source.delta


def _equations(node: StepNode) -> list[str]:
    d, names = node.delta, [use.name for use in node.uses]
    made = [_gradient((node, k)) for k in range(len(names))]
    if node.kind == SLICE:
        return [f"{made[0]} = [{' '.join(f'd{name}' for name in _slices(node))}]"]
    if node.kind in (PRODUCT, AFFINE):
        count = 2 * (node.products if node.kind == AFFINE else 1)
        texts = []
        for k in range(0, count, 2):
            texts += [f"{d} {names[k + 1]}ᵀ", f"{_operand(names[k])}ᵀ {d}"]
        texts += [f"Σ {d}" for _ in names[count:]]
        found = [_assigned(node, k, made[k], text) for k, text in enumerate(texts)]
        return [found[k ^ 1] if k < count else found[k] for k in range(len(found))]  # weights first
    if node.passes:
        on = [k for k, use in enumerate(node.uses) if made[k] == d]
        rest = [_assigned(node, k, made[k], _over_rows(node, k, d)) for k in range(len(names))]
        goes = f"{d} goes on to {_both([node.uses[k].source for k in on])}" if on else ""
        return [*(text for k, text in enumerate(rest) if k not in on), goes]
    if node.kind == NORMALISED:
        return [f"{made[0]} = {d} back through the normalisation"]
    assert node.operation is not None
    texts = node.operation.equations(d, names, node.name)
    return [
        _assigned(node, k, made[k], _over_rows(node, k, text))
        for k, text in enumerate(texts)
        if text
    ]


def _assigned(node: StepNode, k: int, name: str, text: str) -> str:
    several = len(_beside(node.uses[k])) > 1 and "[" not in name
    return f"{name} {'+=' if several else '='} {text}"


def _beside(use: Use) -> list[Edge]:
    """The edges along which the same thing travels."""
    return [
        (user, n)
        for user in dict.fromkeys(use.source.users)
        for n, other in enumerate(user.uses)
        if other.source is use.source and (use.source.kind != SLICE or other.blocks == use.blocks)
    ]


def _over_rows(node: StepNode, k: int, text: str) -> str:
    """The term of a gradient: a sum over rows where its source is the same for all of them."""
    return f"Σ {text}" if node.uses[k].source.is_of_weights and not node.is_of_weights else text


def _operand(name: str) -> str:
    return name if is_simple(name) else f"({name})"


def _both(there: Sequence[StepNode]) -> str:
    if len(there) == 2:
        return "both products" if all(node.kind == PRODUCT for node in there) else "both"
    return "all" if there[1:] else "what is added"


def _slices(node: StepNode) -> list[str]:
    uses = {use for user in node.users for use in user.uses if use.source is node}
    return list(dict(sorted((use.blocks or (), use.name) for use in uses)).values())


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _finished(edge: Edge, values: StepValues, passed: set[Edge]) -> list[tuple[str, Any]]:
    """Gradients that are complete with this edge, by name."""
    node, k = edge
    use = node.uses[k]
    if node.kind == OUTPUT:
        return [(node.delta, values.gradients[node])]
    together = [other for other in _beside(use) if other in values.edges]
    if not passed.issuperset(together):
        return []
    if use.source.kind == SLICE:
        return [(f"d{use.name}", sum(values.edges[other] for other in together))]
    return [(use.source.delta, values.gradients[use.source])]
