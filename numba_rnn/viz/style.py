"""Shared by all pictures of this room: figures measured in inches, colours, short numbers."""

from typing import Any
from unicodedata import east_asian_width

import numpy as np

from ..diagnostics.plots import COLOURS
from ..typing import Array

BLUE, ORANGE, *_, BLACK = COLOURS
GREY = "0.35"
GRADIENT = "#B34700"  # Okabe & Ito's vermilion, darker: it is read on white
FONT = 14.0  # points at a figure's own size
LETTER = 0.62 / 72  # the width of a letter in inches, for each point; DejaVu Sans on average
LINE = 1.35 / 72  # the height of a line
LARGEST = 2, 3  # rows and columns of an array whose numbers are written


def figure_of(figure: Any, width: float, height: float, layout: str) -> Any:
    """The figure given, or a new one (inches). Without matplotlib the error names the extra."""
    try:
        from matplotlib.figure import Figure, FigureBase
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "numba-rnn[viz]"') from error
    if figure is None:
        return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]  # "none"
    if not isinstance(figure, FigureBase):
        raise TypeError(f"figure: expected a matplotlib Figure, got {type(figure).__name__}")
    return figure


def new_figure(figure: Any, width: float, height: float) -> tuple[Any, Any, float]:
    """A figure, axes that fill it and measure width by height inches, and the scale of its fonts.

    Drawn on a figure that is given it all shrinks or grows to fit.
    """
    figure = figure_of(figure, width, height, "none")
    axes = figure.add_axes((0, 0, 1, 1))
    clear_axes(axes, width, height)
    box = figure.bbox
    scale = min(box.width / width, box.height / height) / figure.dpi
    return figure, axes, float(scale)


def clear_axes(axes: Any, width: float, height: float) -> None:
    """Empty axes, one unit an inch."""
    axes.clear()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.axis("off")


def write(
    axes: Any, scale: float, x: float, y: float, text: str, size: float = FONT, **more: Any
) -> None:
    """Text around a point, in the size that it has at a figure's own size."""
    words = {"ha": "center", "va": "center", "parse_math": False, **more}
    axes.text(x, y, text, fontsize=size * scale, **words)


def text_size(text: str, size: float = FONT) -> tuple[float, float]:
    """Width and height in inches, about."""
    lines = text.split("\n") if text else []
    return max(map(_letters, lines), default=0) * LETTER * size, len(lines) * LINE * size


def _letters(line: str) -> float:
    """How many letters wide a line is; a Hangul or Chinese one is as wide as it is high."""
    wide = sum(east_asian_width(character) in "WF" for character in line)
    return len(line) + wide * (1 / 72 / LETTER - 1)


def number(value: Any) -> str:
    """Two significant digits, or three before the point."""
    value = float(value)
    if not np.isfinite(value):
        return str(value)
    shown = f"{value:.0f}" if 99.5 <= abs(value) < 1e5 else f"{value:.2g}"
    return "0" if shown in ("0", "-0") else shown.replace("e-0", "e-").replace("-", "−")


def numbers(array: Array, large: str, stacked: bool = False) -> str:
    """An array's numbers where they are few, else its norm or mean, as ``large`` says.

    stacked  those of a single row one below the other
    """
    rows = np.atleast_2d(np.asarray(array, float))
    if all(n <= most for n, most in zip(rows.shape, LARGEST, strict=True)):
        if stacked and len(rows) == 1:
            rows = rows.T
        return "\n".join(" ".join(map(number, row)) for row in rows)
    if large == "norm":
        with np.errstate(over="ignore"):
            return f"‖{number(np.linalg.norm(rows))}‖"
    return f"mean {number(rows.mean())}"
