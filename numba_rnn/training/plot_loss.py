"""The loss curve, as a picture."""

from pathlib import Path
from typing import Any

from ..files import written_atomically
from ..fonts import choose_fonts
from ..kernels import deprecated
from ..layers.losses import perplexity_of
from ..optional_deps import optional_import
from .history import History

HIGHEST = 1e100  # no picture goes further: past 1e300 a logarithmic axis overflows


def plot_loss(history: History, path: str | Path, title: str = "") -> Path:
    """Draw perplexity over iterations, training and validation, to a PNG file.

    If the model is no language model, it is the loss that is drawn.

    Raises ImportError, naming the remedy, where matplotlib is missing.
    """
    with optional_import("matplotlib", "the loss curve"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FormatStrFormatter, NullFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    losses = any("valid_loss" in epoch for epoch in history.epochs)
    shown = "loss" if losses else "perplexity"
    valid = f"valid_{shown}"
    axes.plot(
        [iteration for iteration, _, _ in history.train],
        [loss if losses else min(perplexity_of(loss), HIGHEST) for _, loss, _ in history.train],
        color="#0072B2", linewidth=1, label="training",
    )  # fmt: skip
    validated = [e for e in history.epochs if e[valid] is not None]
    if validated:
        best = min(validated, key=lambda e: e[valid])
        axes.plot(
            [e["iteration"] for e in validated],
            [min(e[valid], HIGHEST) for e in validated],
            color="#D55E00", marker="o", linewidth=2, label="validation",
        )  # fmt: skip
        axes.annotate(
            f"best {best[valid]:.4g}",
            (best["iteration"], min(best[valid], HIGHEST)),
            textcoords="offset points", xytext=(0, 8), ha="center", color="#D55E00",
        )  # fmt: skip
    if not losses:  # which may be below 0
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        low, high = axes.get_ylim()
        if high < 30 * low:  # else the labels would overlap
            axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
        else:
            axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("iteration")
    axes.set_ylabel(shown)
    choose_fonts(axes.set_title(title))
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    path = Path(path)
    with written_atomically(path) as part:
        figure.savefig(part, dpi=120)
    return path


__getattr__ = deprecated.names_of(__name__)
