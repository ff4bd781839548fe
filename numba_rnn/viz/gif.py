"""Animated GIFs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import written_atomically


def write_gif(
    path: Path, figure: Any, draws: Sequence[Callable[[], Any]], seconds: float, dpi: int
) -> None:
    """A frame after each of ``draws``, which draw on the figure; the file is whole or not there."""
    from matplotlib.animation import PillowWriter

    writer = PillowWriter(fps=1 / seconds)  # type: ignore[arg-type]  # it takes any number
    with written_atomically(path) as part, writer.saving(figure, str(part), dpi):
        for draw in draws:
            draw()
            writer.grab_frame()
