"""A recurrent layer unrolled over time, and where truncated BPTT cuts the gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..fonts import choose_fonts
from ..typing import Array
from ..validation import expect_int
from . import style
from .recording import cell_of, display_name, run_forward, upstream_grads

BOX, GAP, TALL = 1.45, 1.25, 1.25  # inches: a layer's box, the way to the next, its height
LONGEST = 30  # steps that one can draw


def unrolled(
    layer: Any,
    T: int | None = None,
    xs: Array | None = None,
    dhs: Array | None = None,
    *,
    state: Sequence[Array] | None = None,
    rolled: bool = True,
    backward: bool = False,
    truncated: int | None = None,
    row: int = 0,
    title: str | None = None,
    figure: Any = None,
) -> Any:
    """Draw a layer unrolled over T steps, next to its rolled-up form.

    Parameters
    ----------
    layer : layer with one cell
        A recurrent layer.
    T : int, optional
        The number of steps; that of xs, or 4, if left out.
    xs : (N, T, D) array, optional
        The inputs of a run. The numbers of one row stand next to x and h, or their norm if there
        are more than three.
    dhs : (N, T, H) array, optional
        The gradient of every output. With it and xs the gradient of each state stands next to its
        path.
    state : sequence of (N, H) arrays, optional
        The states from which the run starts; zeros if left out.
    rolled : bool, default True
        Whether to draw the layer with its loop on the left.
    backward : bool, default False
        Whether to draw the path of the gradient: backpropagation through time. With dhs it is
        always drawn.
    truncated : int, optional
        k for truncated BPTT: the gradient is cut after every k steps, the state goes on.
    row : int, default 0
        The row of the batch.
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
    ValueError
        If T, row or a shape does not fit, or dhs comes without xs.

    Examples
    --------
    >>> from numba_rnn import TimeLSTM, viz
    >>> layer = TimeLSTM.create(2, 3, rng=0)
    >>> picture = viz.unrolled(layer, T=6, truncated=3)  # picture.savefig("unrolled.png")
    """
    cell = cell_of(layer)
    if xs is not None:
        hs = run_forward(layer, xs, state)
        if T is not None and xs.shape[1] != T:
            raise ValueError(f"T: expected {xs.shape[1]}, as xs has, got {T}")
        T = xs.shape[1]
        if expect_int("row", row, 0) >= len(xs):
            raise ValueError(f"row: expected 0 to {len(xs) - 1}, got {row}")
    T = 4 if T is None else expect_int("T", T)
    if T > LONGEST:
        raise ValueError(f"T: expected at most {LONGEST} steps for a picture, got {T}")
    if truncated is not None:
        expect_int("truncated", truncated)
    backward = backward or dhs is not None
    cut = truncated if truncated is not None else T if backward else None
    read = [""] * T if xs is None else [style.numbers(x, "norm", True) for x in xs[row][:, None]]
    said = [""] * T if xs is None else [style.numbers(h, "norm", True) for h in hs[row][:, None]]
    returned = [""] * T
    if dhs is not None:
        if xs is None:
            raise ValueError(
                "dhs: expected xs as well, the input of the run whose gradients start from dhs"
            )
        found = upstream_grads(layer, xs, dhs, state, cut or T)
        returned = [_returned(found, row, t) for t in range(T)]
    picture = _Picture(display_name(cell), cell.states, read, said, returned, cut, rolled)
    width, height = picture.size
    lines = [] if title == "" else [_title(cell.states, truncated, backward, title)]
    figure, axes, scale = style.new_figure(figure, width, height + 0.5 * len(lines))
    style.clear_axes(axes, width, height + 0.5 * len(lines))
    picture.draw(axes, scale)
    for line in lines:
        style.write(axes, scale, width / 2, height + 0.15, line, 17, va="baseline")
    return choose_fonts(figure)


def _returned(found: Mapping[str, Array], row: int, t: int) -> str:
    """The gradients of a step's states; those of several states by their norms."""
    texts = []
    for name, gradient in found.items():
        values = gradient[row, t][None]
        if len(found) > 1 and values.size > 1:
            values = np.array([[np.linalg.norm(values)]])
            texts.append(f"d{name}_{t}\n‖{style.numbers(values, 'norm')}‖")
        else:
            texts.append(f"d{name}_{t}\n{style.numbers(values, 'norm', True)}")
    return "\n".join(texts)


def _title(states: Sequence[str], truncated: int | None, backward: bool, title: str | None) -> str:
    if title is not None:
        return title
    names = " and ".join(states)
    if truncated is not None:
        return (
            f"Truncated BPTT: {names} go{'es' if len(states) == 1 else ''} on, the gradient stops"
        )
    if backward:
        return "Backpropagation through time (BPTT)"
    return f"One layer, unrolled over time: {names} flow{'s' if len(states) == 1 else ''}"


class _Picture:
    """Where everything is; inches."""

    def __init__(
        self,
        name: str,
        states: Sequence[str],
        read: Sequence[str],
        said: Sequence[str],
        returned: Sequence[str],
        cut: int | None,
        rolled: bool,
    ) -> None:
        self.name, self.states, self.read, self.said = name, states, read, said
        self.returned, self.cut, self.rolled = returned, cut, rolled
        self.T = len(read)
        loops = 3.6 if len(states) == 1 else 3.64 + 0.28 * len(states)
        self.left = loops if rolled else 0.9  # of the first box
        below = max(style.text_size(text)[1] for text in read)
        above = max(style.text_size(text)[1] for text in said)
        self.tall = max(TALL, 0.45 * len(states) + 0.55 + (0.35 if cut else 0))
        self.foot = 0.6 + below + 0.6  # the lower edge of the boxes
        self.top = self.foot + self.tall
        note = 0.5 if cut else 0
        self.foot, self.top = self.foot + note, self.top + note
        self.note = note
        self.size = (
            self.left + self.T * (BOX + GAP) - GAP + 1.0,
            self.top + (0.95 if rolled else 0.6) + 0.45 + above,
        )

    def draw(self, axes: Any, scale: float) -> None:
        self.axes, self.scale = axes, scale
        if self.rolled:
            self._rolled()
        for t in range(self.T):
            x = self._x(t)
            self._box(x)
            self._column(x, f"x_{t}", f"h_{t}", self.read[t], self.said[t])
            self._between(x + BOX, t)
        if self.cut:
            self._say(
                self.size[0] / 2, 0.15, "black: forward; brown, dashed: the gradient, backward",
                size=style.FONT - 1, color=style.GREY, va="bottom",
            )  # fmt: skip

    def _x(self, t: int) -> float:
        return self.left + t * (BOX + GAP)

    def _box(self, x: float) -> None:
        from matplotlib.patches import FancyBboxPatch

        self.axes.add_patch(
            FancyBboxPatch(
                (x, self.foot), BOX, self.tall, boxstyle="round,pad=0,rounding_size=0.12",
                facecolor="#FCEBC8", edgecolor=style.BLACK, linewidth=1.6 * self.scale, zorder=3,
            )
        )  # fmt: skip
        size = min(style.FONT + 3, BOX / style.text_size(self.name, 1)[0] * 0.92)
        self._say(x + BOX / 2, self.foot + self.tall / 2, self.name, size=size)

    def _column(self, x: float, read: str, said: str, read_text: str, said_text: str) -> None:
        """Input and output of a box."""
        middle = x + BOX / 2
        below = self.foot - 0.6
        self._arrow((middle, below), (middle, self.foot))
        self._arrow((middle, self.top), (middle, self.top + 0.6))
        self._say(middle, below - 0.05, f"{read}\n{read_text}".strip(), va="top")
        self._say(middle, self.top + 0.65, f"{said_text}\n{said}".strip(), va="bottom")

    def _between(self, x: float, t: int) -> None:
        """Draw the states on their way to the next step, or out of the last one."""
        last = t == self.T - 1
        end = x + (0.7 if last else GAP)
        levels = self._levels()
        for state, y in zip(self.states, levels, strict=True):
            self._arrow((x, y), (end, y))
            self._say((x + end) / 2, y + 0.03, f"{state}_{t}", va="bottom")
        if not self.cut or last:
            return
        y = levels[0] - 0.32
        if (t + 1) % self.cut:
            self._arrow((end, y), (x, y), color=style.GRADIENT, dashed=True)
            middle, text = (x + end) / 2, self.returned[t]
            self._say(middle, y - 0.06, text, color=style.GRADIENT, va="top")
            return
        middle = (x + end) / 2
        self.axes.plot(
            [middle] * 2, [self.foot - 0.45, y - 0.15], color=style.GRADIENT,
            linewidth=1.6 * self.scale, linestyle=":", zorder=2,
        )  # fmt: skip
        self._arrow((end, y), (middle + 0.15, y), color=style.GRADIENT, dashed=True)
        self._say(middle, y, "✕", color=style.GRADIENT, size=style.FONT + 6, weight="bold")
        self._say(middle, self.foot - 0.5, "cut", color=style.GRADIENT, va="top")

    def _levels(self) -> list[float]:
        """The heights of the states' arrows: c, the memory, above h."""
        middle = self.foot + self.tall / 2
        spread = 0.45 * (len(self.states) - 1) / 2
        shift = 0.12 if self.cut else 0
        return [middle + shift - spread + 0.45 * k for k in range(len(self.states))]

    def _rolled(self) -> None:
        x, y, top, out = 0.9, self.foot + self.tall / 2, self.top + 0.3, 0.45
        self._box(x)
        self._column(x, "x_t", "h_t", "", "")
        # h: what goes out comes in again
        self.axes.plot([x + BOX / 2], [top], "o", color=style.BLACK, markersize=7 * self.scale)
        self._loop([(x + BOX / 2, top), (x - out, top), (x - out, y), (x, y)])
        self._say(x - out - 0.08, y + 0.2, self.states[0], ha="right")
        for k, state in enumerate(self.states[1:]):
            turn = x + BOX + out + 0.28 * k
            low, high = y - 0.15 - 0.15 * k, self.top + 0.2 + 0.14 * k
            start = x + BOX - 0.25 - 0.12 * k
            corners = [(start, self.top), (start, high), (turn, high), (turn, low), (x + BOX, low)]
            self._loop(corners)
            self._say(turn + 0.06, y + 0.2, state, ha="left")
        self._say(self.left - 0.7, y, "=", size=30)

    def _loop(self, corners: list[tuple[float, float]]) -> None:
        xs, ys = zip(*corners, strict=True)
        self.axes.plot(xs, ys, color=style.BLACK, linewidth=1.8 * self.scale, zorder=2)
        self._arrow(corners[-2], corners[-1])

    def _arrow(self, start: Any, end: Any, color: str = style.BLACK, dashed: bool = False) -> None:
        from matplotlib.patches import FancyArrowPatch

        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=18 * self.scale, shrinkA=0, shrinkB=0,
                linewidth=(2.2 if dashed else 1.8) * self.scale, color=color, zorder=2,
                linestyle="--" if dashed else "-",
            )
        )  # fmt: skip

    def _say(self, x: float, y: float, text: str, size: float = style.FONT, **more: Any) -> None:
        more |= {"zorder": 4, "linespacing": 1.15}
        style.write(self.axes, self.scale, x, y, text, size, **more)
