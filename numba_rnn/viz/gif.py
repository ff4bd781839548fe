"""Animated GIFs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import written_atomically
from ..fonts import choose_fonts
from ..validation import expect_float, expect_int


def expect_gif(path: Any, seconds: float, dpi: int) -> Path:
    """The path of a GIF that can be written with such frames; GIFs count hundredths of seconds."""
    expect_float("seconds", seconds, 0.01, 655.36)
    expect_int("dpi", dpi)
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"path: expected a name that ends in .gif, got {path.name!r}")
    return path


def write_gif(
    path: Path, figure: Any, draws: Sequence[Callable[[], Any]], seconds: float, dpi: int
) -> None:
    """A frame after each of ``draws``, which draw on the figure; the file is whole or not there."""
    from matplotlib.animation import PillowWriter

    writer = PillowWriter(fps=1 / seconds)  # type: ignore[arg-type]  # it takes any number
    with written_atomically(path) as part, writer.saving(figure, str(part), dpi):
        for draw in draws:
            draw()
            choose_fonts(figure)
            writer.grab_frame()
