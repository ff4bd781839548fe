"""The memory that forward keeps for backward, in bytes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..diagnostics.plots import COLOURS
from ..fonts import choose_fonts
from ..kernels import deprecated
from ..kernels.cells import Cell
from ..validation import expect_int
from . import style
from .recording import copy_layer

MARKS = "osD^vP*"
UNITS = (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "bytes")


def saved_bytes(layer: Any, N: int, T: int, checkpoint_every: int = 0) -> int:
    """Measure the memory that forward keeps for backward, without xs and the parameters.

    It is the sum of the sizes of all arrays that are held until backward, after a run over (N, T)
    on the engine of the layer. Work space that an engine keeps for its next call does not count.
    The layer stays as it is.

    Parameters
    ----------
    layer : layer with one cell
        A recurrent layer.
    N : int
        The number of rows.
    T : int
        The number of steps.
    checkpoint_every : int, default 0
        The setting of the layer for this run.

    Returns
    -------
    int
        The size in bytes.

    Examples
    --------
    >>> from numba_rnn import TimeLSTM, viz
    >>> layer = TimeLSTM.create(3, 16, rng=0)
    >>> viz.saved_bytes(layer, 8, 64) > viz.saved_bytes(layer, 8, 64, checkpoint_every=16)
    True
    """
    twin = copy_layer(layer)
    twin.checkpoint_every = expect_int("checkpoint_every", checkpoint_every, 0)
    shape = expect_int("N", N), expect_int("T", T), twin.input_size
    xs = twin._engine().to_device(np.zeros(shape, twin.dtype))
    hs = twin.forward(xs)
    known = {id(_whole(array)) for array in (xs, hs, *twin.params)}
    found = {id(array): array.nbytes for array in map(_whole, _arrays(twin._tape))}
    return sum(size for key, size in found.items() if key not in known)


def memory(
    layer: Any,
    T: Sequence[int] = (32, 64, 128, 256),
    checkpoint_every: Sequence[int] = (0, 8, 32),
    *,
    N: int = 32,
    figure: Any = None,
) -> Any:
    """Draw the memory that forward keeps for backward, over T and for several ``checkpoint_every``.

    Its numbers are ``saved_bytes``, measured on the engine of the layer.

    Parameters
    ----------
    layer : layer with one cell
        A recurrent layer.
    T : sequence of int, default (32, 64, 128, 256)
        Numbers of steps; forward runs once for each.
    checkpoint_every : sequence of int, default (0, 8, 32)
        Settings to compare; 0: everything is kept.
    N : int, default 32
        The number of rows.
    figure : matplotlib Figure, optional
        The figure to draw in; a new one if left out.

    Returns
    -------
    matplotlib Figure
        The figure.

    Examples
    --------
    >>> from numba_rnn import TimeLSTM, viz
    >>> layer = TimeLSTM.create(3, 16, rng=0)
    >>> picture = viz.memory(layer, T=(8, 16), N=4)  # picture.savefig("memory.png")
    """
    for name, given in (("T", T), ("checkpoint_every", checkpoint_every)):
        if not np.iterable(given):
            raise TypeError(f"{name}: expected some numbers, got {given!r}")
        if not len(given):
            raise ValueError(f"{name}: expected some numbers, got none")
    steps, dials = sorted(T), list(checkpoint_every)
    sizes = {k: [saved_bytes(layer, N, t, k) for t in steps] for k in dials}
    figure = style.figure_of(figure, 8, 5, "constrained")
    axes = figure.subplots()
    most = max(max(line) for line in sizes.values())
    unit, name = next((u, n) for u, n in UNITS if most >= u or u == 1)
    for k, (dial, line) in enumerate(sizes.items()):
        values = [size / unit for size in line]
        axes.plot(
            steps, values, color=COLOURS[k % len(COLOURS)], linewidth=2.5, markersize=7,
            marker=MARKS[k % len(MARKS)],
            label="everything" if dial == 0 else f"checkpoint_every = {dial}",
        )  # fmt: skip
        axes.annotate(
            style.number(values[-1]), (steps[-1], values[-1]), (8, 0), fontsize=12,
            textcoords="offset points", va="center", color=COLOURS[k % len(COLOURS)],
        )  # fmt: skip
    title = f"Kept by forward for backward, measured: N {N}, H {layer.hidden_size}"
    figure.suptitle(title, size=15)
    axes.set_xlabel("T, steps", fontsize=13)
    axes.set_ylabel(f"{name}, all steps", fontsize=13)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(steps, labels=map(str, steps))
    axes.set_xlim(min(steps) / 1.2, max(steps) * 1.35)
    axes.tick_params(labelsize=12)
    axes.legend(fontsize=12, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return choose_fonts(figure)


def _whole(array: Any) -> Any:
    """The array whose memory it is."""
    while isinstance(array.base, type(array)):
        array = array.base
    return array


def _arrays(thing: Any) -> Iterator[Any]:
    """All arrays in what forward kept."""
    if hasattr(thing, "nbytes") and hasattr(thing, "base"):
        yield thing
    elif isinstance(thing, tuple | list):
        for member in thing:
            yield from _arrays(member)
    elif isinstance(thing, dict):
        yield from _arrays(list(thing.values()))
    elif hasattr(thing, "__dict__") and not isinstance(thing, Cell) and not hasattr(thing, "xp"):
        yield from _arrays(vars(thing))


__getattr__ = deprecated.names_of(__name__)
