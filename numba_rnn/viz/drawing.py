"""Draws the graph of a step: boxes, edges that keep clear of them, numbers beside the edges."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from ..kernels.autodiff.graph import CALL
from . import style
from .graph_layout import Box, GraphLayout, place
from .step_graph import (
    AFFINE,
    INPUT,
    OUTPUT,
    PARAMETER,
    PRODUCT,
    SLICE,
    Edge,
    StepGraph,
    StepNode,
)

FILLS = {
    INPUT: "#D6E8F4", OUTPUT: "#D6E8F4", PARAMETER: "#D3EDE3", PRODUCT: "#ECECEC",
    AFFINE: "#ECECEC", SLICE: "#ECECEC",
}  # fmt: skip
ACTIVATION = "#FCEBC8"
ROUND = 0.26  # the radius of a node for one sign
TITLE, NOTE = 17.0, 13.0  # points
MARGIN = 0.25


@dataclass(frozen=True)
class Labels:
    """The texts on a graph: values above the edges, gradients below them.

    values, gradients  by edge
    inside             by node: lines below its label, each with the edges that must have been
                       gone through before it is known; None: a value, always known
    """

    values: Mapping[Edge, str] = field(default_factory=dict)
    gradients: Mapping[Edge, str] = field(default_factory=dict)
    inside: Mapping[StepNode, Sequence[tuple[str, frozenset[Edge] | None]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class Highlight:
    """How far the backward pass has come; ``known`` None: all is known, nothing is going on.

    live   nodes and edges that it is at
    known  edges that it has gone through
    """

    nodes: Collection[StepNode] = ()
    live: Collection[Edge] = ()
    known: Collection[Edge] | None = None


class GraphPicture:
    """A graph with its words, placed once and drawn in any state."""

    def __init__(self, graph: StepGraph, words: Labels, heading: Sequence[str], note: str) -> None:
        """heading: of all that may stand above it, the one with the most lines."""
        self.graph, self.words, self._note = graph, words, note
        self.nodes = [node for node in graph.nodes if not _stands_inside(node)]
        at = {node: k for k, node in enumerate(self.nodes)}
        self.edges = [edge for edge in graph.edges if edge[0].uses[edge[1]].source in at]
        self._sizes = [self._size(node) for node in self.nodes]
        self.placed: GraphLayout = place(
            self._sizes,
            [(at[node.uses[k].source], at[node]) for node, k in self.edges],
            [self._text_size(edge) for edge in self.edges],
            late=[k for k, node in enumerate(self.nodes) if node.kind == PARAMETER],
            last=[k for k, node in enumerate(self.nodes) if node.kind == OUTPUT],
        )
        self.item = dict(zip(self.nodes, self.placed.nodes, strict=True))
        below = MARGIN + (2 * style.LINE * NOTE if note else 0)
        top = sum(style.text_size(line, _points(k))[1] for k, line in enumerate(heading))
        reach = max(style.text_size(line, _points(k))[0] for k, line in enumerate([*heading, note]))
        self.width = max(self.placed.width, 0.95 * reach) + 2 * MARGIN
        self.height = self.placed.height + below + top + 0.35
        left = (self.width - self.placed.width) / 2
        for item in {i for path in self.placed.paths for i in path} | set(self.placed.nodes):
            item.x, item.y = item.x + left, item.y + below

    # ---- sizes

    def _size(self, node: StepNode) -> tuple[float, float]:
        lines = self.words.inside.get(node, ())
        if not lines and len(node.label) <= 2:
            return 2 * ROUND, 2 * ROUND
        sizes = [style.text_size(text) for text in (node.label, *(text for text, _ in lines))]
        width, height = max(w for w, _ in sizes) + 0.3, sum(h for _, h in sizes) + 0.24
        if node.kind == SLICE:
            height = max(height, 0.5 * len(node.users))
        return width, height

    def _text_size(self, edge: Edge) -> tuple[float, float, float]:
        above = style.text_size(self.words.values.get(edge, ""))
        below = style.text_size(self.words.gradients.get(edge, ""))
        return max(above[0], below[0], 0.1), above[1] + 0.05, below[1] + 0.05

    # ---- drawing

    def draw(self, axes: Any, scale: float, heading: Sequence[str], view: Highlight) -> None:
        """On axes that measure ``width`` by ``height``."""
        style.clear_axes(axes, self.width, self.height)
        entries, exits = self._ports()
        self._dots(axes, scale, exits)
        for edge, path in zip(self.edges, self.placed.paths, strict=True):
            self._edge(axes, scale, edge, _points_of(path, exits[edge], entries[edge]), view)
        for edge, item in zip(self.edges, self.placed.labels, strict=True):
            self._text(axes, scale, edge, item, view)
        for node in self.nodes:
            self._node(axes, scale, node, view)
        y = self.height - 0.12
        for k, line in enumerate(heading):
            colour = style.BLACK if k == 0 else style.GRADIENT
            style.write(axes, scale, self.width / 2, y, line, _points(k), va="top", color=colour)
            y -= style.text_size(line, _points(k))[1]
        if self._note:
            x, colour = self.width / 2, style.GREY
            style.write(axes, scale, x, 0.1, self._note, NOTE, va="bottom", color=colour)

    def _ports(self) -> tuple[dict[Edge, Any], dict[Edge, Any]]:
        """Where edges enter and leave nodes: side by side, in the order they come in."""
        entries: dict[Edge, tuple[float, float]] = {}
        exits: dict[Edge, tuple[float, float]] = {}
        paths = dict(zip(self.edges, self.placed.paths, strict=True))
        for node in self.nodes:
            item = self.item[node]
            arriving = sorted((e for e in self.edges if e[0] is node), key=lambda e: paths[e][-2].y)
            for k, edge in enumerate(arriving):
                entries[edge] = _port(item, -1, _share(k, len(arriving)), self._is_round(node))
            leaving = [e for e in self.edges if e[0].uses[e[1]].source is node]
            leaving.sort(key=lambda e: paths[e][1].y)
            for k, edge in enumerate(leaving):
                share = _share(k, len(leaving)) if node.kind == SLICE else 0.0
                exits[edge] = _port(item, 1, share, self._is_round(node))
        return entries, exits

    def _is_round(self, node: StepNode) -> bool:
        return self._sizes[self.nodes.index(node)] == (2 * ROUND, 2 * ROUND)

    def _dots(self, axes: Any, scale: float, exits: Mapping[Edge, tuple[float, float]]) -> None:
        """Where one value goes several ways."""
        places = list(exits.values())
        for x, y in sorted({at for at in places if places.count(at) > 1}):
            axes.plot([x + 0.05], [y], "o", color=style.BLACK, markersize=4.5 * scale, zorder=3)

    def _edge(self, axes: Any, scale: float, edge: Edge, points: Any, view: Highlight) -> None:
        from matplotlib.patches import FancyArrowPatch

        live = edge in view.live
        colour = style.ORANGE if live else style.BLACK if view.known is None else "0.55"
        axes.add_patch(
            FancyArrowPatch(
                path=_curve(points[::-1] if live else points), arrowstyle="-|>",
                mutation_scale=15 * scale, linewidth=(3.2 if live else 1.5) * scale, color=colour,
                zorder=4 if live else 2, shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip

    def _text(self, axes: Any, scale: float, edge: Edge, item: Box, view: Highlight) -> None:
        write = partial(style.write, axes, scale, item.x, zorder=5)
        above, below = self.words.values.get(edge), self.words.gradients.get(edge)
        if above:
            write(item.y + 0.04, above, va="bottom", color=style.BLACK)
        if below and (view.known is None or edge in view.known):
            weight = "bold" if edge in view.live else "normal"
            write(item.y - 0.05, below, va="top", color=style.GRADIENT, weight=weight)

    def _node(self, axes: Any, scale: float, node: StepNode, view: Highlight) -> None:
        from matplotlib.patches import Circle, FancyBboxPatch

        item, live = self.item[node], node in view.nodes
        line: dict[str, Any] = {
            "facecolor": _fill(node), "edgecolor": style.ORANGE if live else style.BLACK,
            "linewidth": (3.5 if live else 1.4) * scale, "zorder": 6,
        }  # fmt: skip
        if self._is_round(node):
            axes.add_patch(Circle((item.x, item.y), ROUND, **line))
        else:
            corner, box = (item.x - item.width / 2, item.y - item.below), "round,pad=0"
            axes.add_patch(
                FancyBboxPatch(
                    corner, item.width, item.above + item.below, mutation_scale=0.3, **line,
                    boxstyle=f"{box},rounding_size=0.3",
                )
            )  # fmt: skip
        lines = [(node.label, style.BLACK, True)]
        for text, needs in self.words.inside.get(node, ()):
            known = needs is None or view.known is None or needs <= set(view.known)
            lines.append((text, style.BLACK if needs is None else style.GRADIENT, known))
        write = partial(style.write, axes, scale, item.x, zorder=7)
        y = item.y + sum(style.text_size(text)[1] for text, _, _ in lines) / 2
        for k, (text, colour, known) in enumerate(lines):
            height = style.text_size(text)[1]
            if known:
                write(y - height / 2, text, style.FONT + (k == 0), color=colour)
            y -= height


def _stands_inside(node: StepNode) -> bool:
    """Whether it is a parameter of Affines, which are drawn with theirs inside."""
    return node.kind == PARAMETER and all(user.kind == AFFINE for user in node.users)


def _points(line: int) -> float:
    """The size of a heading's line: the first is the title."""
    return TITLE if line == 0 else style.FONT + 1


def _fill(node: StepNode) -> str:
    if node.operation is not None and node.operation.kind == CALL:
        return ACTIVATION
    return FILLS.get(node.kind, "white")


def _share(k: int, count: int) -> float:
    """From -0.6 to 0.6, evenly."""
    return 0.0 if count == 1 else 1.2 * k / (count - 1) - 0.6


def _port(item: Box, side: int, share: float, is_round: bool) -> tuple[float, float]:
    half = item.width / 2
    if is_round:
        return item.x + side * half * (1 - share * share) ** 0.5, item.y + share * half
    return item.x + side * half, item.y + share * item.above


def _points_of(path: Sequence[Box], start: Any, end: Any) -> list[tuple[float, float]]:
    """An edge's corners: straight through every column, curves between."""
    first, last = path[0], path[-1]
    points = [start]
    if first.x + first.span / 2 > start[0] + 0.05:  # a shorter piece gives an arrow no direction
        points.append((first.x + first.span / 2, start[1]))
    for item in path[1:-1]:
        points += [(item.x - item.span / 2, item.y), (item.x + item.span / 2, item.y)]
    if last.x - last.span / 2 < end[0] - 0.05:
        points.append((last.x - last.span / 2, end[1]))
    return [*points, end]


def _curve(points: Sequence[tuple[float, float]]) -> Any:
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for (x, y), (x2, y2) in pairwise(points):
        middle = (x + x2) / 2
        vertices += [(middle, y), (middle, y2), (x2, y2)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)
