"""Where to draw a graph: columns from left to right, in the manner of Sugiyama et al. (1981).

Nodes stand in even columns, as far right as their longest path from the left; what is written on
an edge stands in an odd column between, and so has a place of its own, as have the edges that pass
a column: nothing lies on anything else.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Size = tuple[float, float]
Text = tuple[float, float, float]
SWEEPS, STARTS = 8, 8
STEEP, MOST = 0.12, 0.5  # of the height that an edge climbs; inches


@dataclass(eq=False)
class Box:
    """Something with a place: a node, what is written on an edge, or an edge that passes.

    above, below  how far it reaches from y, where edges meet it
    x             its middle
    span          the width of its column
    """

    width: float
    above: float
    below: float
    column: int
    is_node: bool = False
    x: float = 0.0
    y: float = 0.0
    span: float = 0.0
    before: list["Box"] = field(default_factory=list, repr=False)
    after: list["Box"] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class GraphLayout:
    """A layout.

    nodes          for each node its item
    paths          for each edge its items, from node to node
    labels         for each edge that one of them where its text goes
    width, height  of all; y goes up
    """

    nodes: list[Box]
    paths: list[list[Box]]
    labels: list[Box]
    width: float
    height: float


def place(
    sizes: Sequence[Size],
    edges: Sequence[tuple[int, int]],
    texts: Sequence[Text],
    late: Sequence[int] = (),
    last: Sequence[int] = (),
    gap: Size = (0.42, 0.22),
) -> GraphLayout:
    """Place nodes, which are numbered so that edges lead from lower to higher numbers.

    sizes  of the nodes: width, height
    edges  (from, to)
    texts  of what is written on each edge: width, height above it, height below it
    late   nodes without predecessors that stand right before what they lead to
    last   nodes in the last column
    gap    between columns, and between what stands in one
    """
    columns = _columns(len(sizes), edges, late, last)
    nodes = [
        Box(width, height / 2, height / 2, column, is_node=True)
        for (width, height), column in zip(sizes, columns, strict=True)
    ]
    paths, labels = _paths(nodes, edges, texts)
    rows: list[list[Box]] = [[] for _ in range(max(columns) + 1)]
    for item in dict.fromkeys([*nodes, *(item for path in paths for item in path)]):
        rows[item.column].append(item)
    for path in paths:
        for a, b in pairwise(path):
            a.after.append(b)
            b.before.append(a)
    _order(rows)
    _heights(rows, gap[1])
    _straighten(rows, gap[1], paths)
    _align(rows, gap[0])
    low = min(item.y - item.below for row in rows for item in row)
    for row in rows:
        for item in row:
            item.y -= low
    height = max(item.y + item.above for row in rows for item in row)
    width = max(item.x + item.width / 2 for item in rows[-1])
    return GraphLayout(nodes, paths, labels, width, height)


def _columns(
    count: int, edges: Sequence[tuple[int, int]], late: Sequence[int], last: Sequence[int]
) -> list[int]:
    columns = [0] * count
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        columns[b] = max(columns[b], columns[a] + 2)
    for node in last:
        columns[node] = max(columns)
    for node in late:
        columns[node] = min(columns[b] for a, b in edges if a == node) - 2
    return columns


def _paths(
    nodes: Sequence[Box], edges: Sequence[tuple[int, int]], texts: Sequence[Text]
) -> tuple[list[list[Box]], list[Box]]:
    """Each edge as a chain of items, an item a column; its text in the emptiest odd one."""
    load: dict[int, float] = {}
    paths, labels = [], []
    for (a, b), (width, above, below) in zip(edges, texts, strict=True):
        first, end = nodes[a], nodes[b]
        odd = range(first.column + 1, end.column, 2)
        chosen = min(odd, key=lambda column: (load.get(column, 0.0), column))
        load[chosen] = load.get(chosen, 0.0) + above + below
        passing = [
            Box(width, above, below, c) if c == chosen else Box(0.0, 0.05, 0.05, c)
            for c in range(first.column + 1, end.column)
        ]
        paths.append([first, *passing, end])
        labels.append(passing[chosen - first.column - 1])
    return paths, labels


# ---- the order in a column: as few crossings as barycentres find


def _order(rows: list[list[Box]]) -> None:
    """From several starts, the same every time."""
    rng, found = random.Random(0), []
    for start in range(STARTS):
        tried = [list(row) for row in rows]
        if start:
            for row in tried:
                rng.shuffle(row)
        found.append(_swept(tried))
    rows[:] = min(found, key=lambda result: result[0])[1]


def _swept(rows: list[list[Box]]) -> tuple[int, list[list[Box]]]:
    """Crossings, and the order that has them."""
    place_of = {item: k for row in rows for k, item in enumerate(row)}
    best = _crossings(rows), [list(row) for row in rows]
    for sweep in range(SWEEPS):
        ahead = sweep % 2 == 0
        for row in rows[1:] if ahead else rows[-2::-1]:
            centres = {}
            for item in row:
                beside = item.before if ahead else item.after
                places = [place_of[b] for b in beside] or [place_of[item]]
                centres[item] = sum(places) / len(places)
            row.sort(key=centres.__getitem__)
            place_of |= {item: k for k, item in enumerate(row)}
        count = _crossings(rows)
        if count < best[0]:
            best = count, [list(row) for row in rows]
    return best


def _crossings(rows: Sequence[Sequence[Box]]) -> int:
    count = 0
    for row, following in pairwise(rows):
        at = {item: k for k, item in enumerate(following)}
        ends = [(k, at[b]) for k, item in enumerate(row) for b in item.after]
        count += sum(
            (a[0] - b[0]) * (a[1] - b[1]) < 0 for k, a in enumerate(ends) for b in ends[:k]
        )
    return count


# ---- heights: everything beside what it is joined to, as near as its neighbours let it


def _heights(rows: Sequence[Sequence[Box]], gap: float) -> None:
    for row in rows:
        _settle(row, gap, dict.fromkeys(row, 0.0))
    for sweep in range(4 * SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            _settle(row, gap, {item: _beside(item) for item in row})


def _beside(item: Box) -> float:
    """The height of its neighbours; above all of those that pass, so that lines are straight."""
    beside = [(b.y, 1 if b.is_node else 6) for b in (*item.before, *item.after)]
    return sum(y * w for y, w in beside) / sum(w for _, w in beside) if beside else item.y


def _settle(row: Sequence[Box], gap: float, wanted: Mapping[Box, float]) -> None:
    """Heights closest to those wanted that keep order and distance: isotonic regression.

    A column's first item is its lowest.
    """
    offset, offsets, blocks = 0.0, [], list[tuple[float, float, int]]()
    for k, item in enumerate(row):
        if k:
            offset += row[k - 1].above + item.below + gap
        offsets.append(offset)
        weight = 1.0 if item.is_node else 3.0
        blocks.append((weight * (wanted[item] - offset), weight, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            a, b = blocks.pop(), blocks.pop()
            blocks.append((a[0] + b[0], a[1] + b[1], a[2] + b[2]))
    shifts = [total / weight for total, weight, count in blocks for _ in range(count)]
    for item, shift, offset in zip(row, shifts, offsets, strict=True):
        item.y = shift + offset


def _straighten(rows: Sequence[Sequence[Box]], gap: float, paths: Sequence[Sequence[Box]]) -> None:
    """Let as much of an edge as can lie at one height."""
    place_of = {item: k for row in rows for k, item in enumerate(row)}

    def fits(item: Box, y: float) -> bool:
        row, k = rows[item.column], place_of[item]
        low = row[k - 1].y + row[k - 1].above + gap + item.below if k else y
        high = y
        if k + 1 < len(row):
            high = row[k + 1].y - row[k + 1].below - gap - item.above
        return low - 1e-9 <= y <= high + 1e-9

    for path in sorted(paths, key=len, reverse=True):
        first, *inner, end = path
        ends = [
            item for item, beside in ((first, first.after), (end, end.before)) if len(beside) == 1
        ]

        def straight(y: float, inner: list[Box] = inner, ends: list[Box] = ends) -> float:
            reached = sum(abs(item.y - y) < 1e-9 for item in ends)
            return sum(fits(item, y) for item in inner) + 0.5 * reached

        best = max((item.y for item in (*ends, *inner)), key=straight)
        for item in inner:
            if fits(item, best):
                item.y = best
        for item, beside in ((first, path[1]), (end, path[-2])):
            if len(item.before) + len(item.after) == 1 and fits(item, beside.y):
                item.y = beside.y


def _align(rows: Sequence[Sequence[Box]], gap: float) -> None:
    """Columns as wide as what stands in them, farther apart where edges between them are steep."""
    right = 0.0
    for row in rows:
        width = max((item.width for item in row), default=0.0)
        for item in row:
            item.x, item.span = right + width / 2, width
        rise = max((abs(item.y - b.y) for item in row for b in item.after), default=0.0)
        right += width + gap + min(STEEP * rise, MOST)
