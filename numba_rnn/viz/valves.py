"""A gate as a valve on a water pipe: how far it is open is how much goes through."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..fonts import choose_fonts
from ..typing import Array
from ..validation import expect_float, expect_plain_array
from . import style
from .gif import expect_gif, write_gif

WIDTH, HEIGHT = 8.0, 4.6  # inches
LEFT, GATE, RIGHT = 0.4, 4.0, 7.6  # along the pipe
FLOOR, TALL, WALL = 0.95, 1.3, 0.12  # of the pipe
WATER, STEEL = "#8CCBEF", "0.55"


def valve(opening: float, *, title: str | None = None, figure: Any = None) -> Any:
    """Draw a gate as a valve on a water pipe.

    Parameters
    ----------
    opening : float
        How far the gate is open, from 0.0, nothing passes, to 1.0, everything passes.
    title : str, optional
        The title; the gate and its opening if left out.
    figure : matplotlib Figure, optional
        The figure to draw in; a new one if left out.

    Returns
    -------
    matplotlib Figure
        The figure.

    Examples
    --------
    >>> from numba_rnn import viz
    >>> picture = viz.valve(0.7)  # picture.savefig("valve.png")
    """
    opening = _opening("opening", opening)
    figure, axes, scale = style.new_figure(figure, WIDTH, HEIGHT)
    _draw(axes, scale, opening, "A gate controls what flows" if title is None else title)
    return choose_fonts(figure)


def animate_valve(
    openings: Sequence[float] | Array,
    path: Any,
    *,
    labels: Sequence[str] | None = None,
    seconds: float = 0.5,
    dpi: int = 80,
) -> None:
    """Write an animated GIF of a valve, one frame for each opening, such as those of a gate.

    Parameters
    ----------
    openings : sequence of float or (T,) array
        How far the gate is open at each step, from 0.0 to 1.0.
    path : str or Path
        The file, a name in .gif. It is written whole or not at all.
    labels : sequence of str, optional
        The titles of the frames; the number of the step if left out.
    seconds : float, default 0.5
        The time that each frame stays, 0.01 to 655.
    dpi : int, default 80
        Dots per inch.

    Raises
    ------
    TypeError, ValueError
        If openings or labels do not fit.

    Examples
    --------
    The forget gate of one unit, over time:

    >>> import numpy as np
    >>> from numba_rnn import TimeLSTM, viz
    >>> layer = TimeLSTM.create(2, 3, rng=0)
    >>> hs = layer.forward(np.ones((1, 5, 2), np.float32), trace=True)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     viz.animate_valve(layer.trace.gates["f"][0, :, 0], f"{folder}/valve.gif")
    """
    expect_plain_array("openings", openings)
    try:
        found = np.asarray(openings, float)
    except (TypeError, ValueError):
        raise TypeError(f"openings: expected numbers, one a step, got {openings!r}") from None
    if found.ndim != 1 or not found.size:
        raise ValueError(f"openings: expected numbers, one a step, got shape {found.shape}")
    numbers = [_opening(f"openings[{t}]", number) for t, number in enumerate(found.tolist())]
    if labels is not None and len(labels) != len(numbers):
        raise ValueError(f"labels: expected {len(numbers)}, one a step, got {len(labels)}")
    path = expect_gif(path, seconds, dpi)
    figure, axes, scale = style.new_figure(None, WIDTH, HEIGHT)
    titles = [f"step {t}" for t in range(len(numbers))] if labels is None else labels
    draws = [
        partial(_draw, axes, scale, number, title)
        for number, title in zip(numbers, titles, strict=True)
    ]
    write_gif(path, figure, draws, seconds, dpi)


def _opening(name: str, value: float) -> float:
    found = expect_float(name, value, -np.inf)
    if not 0 <= found <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return found


def _draw(axes: Any, scale: float, opening: float, title: str) -> None:
    from matplotlib.patches import FancyArrowPatch, Rectangle

    style.clear_axes(axes, WIDTH, HEIGHT)

    def box(x: float, y: float, width: float, height: float, colour: str, order: int) -> None:
        style: dict[str, Any] = {"facecolor": colour, "edgecolor": "none", "zorder": order}
        axes.add_patch(Rectangle((x, y), width, height, **style))

    write = partial(style.write, axes, scale, zorder=9)
    level = opening * TALL
    box(LEFT, FLOOR, GATE - LEFT, TALL, WATER, 1)
    box(GATE, FLOOR, RIGHT - GATE, level, WATER, 1)
    for y in (FLOOR - WALL, FLOOR + TALL):
        box(LEFT, y, RIGHT - LEFT, WALL, "0.25", 3)
    top = FLOOR + level + TALL  # of the plate, which slides up into its housing
    box(GATE - 0.14, FLOOR + level, 0.28, TALL, STEEL, 4)
    box(GATE - 0.05, top, 0.1, 0.25, "0.25", 4)
    box(GATE - 0.55, top + 0.2, 1.1, 0.13, style.ORANGE, 5)
    for start, share in ((LEFT + 0.4, 1.0), (GATE + 0.9, opening)):
        if share > 0:
            axes.add_patch(
                FancyArrowPatch(
                    (start, FLOOR + share * TALL / 2), (start + 1.8, FLOOR + share * TALL / 2),
                    arrowstyle="simple,head_length=0.7,head_width=0.9,tail_width=0.35",
                    mutation_scale=(8 + 32 * share) * scale, shrinkA=0, shrinkB=0,
                    color=style.BLUE, linewidth=0, zorder=2,
                )
            )  # fmt: skip
    little = 0 < opening < 0.01
    shown = "< 0.01 (< 1%)" if little else f"{opening:.2g} ({opening:.0%})"
    write(RIGHT - 1.5, FLOOR + TALL + 0.75, shown, 26, color=style.BLUE)
    write(WIDTH / 2, HEIGHT - 0.3, title, 17)
    write(WIDTH / 2, 0.4, "0.0: closed          1.0: wide open", style.FONT, color=style.GREY)
