"""The cells. Each file here defines one kind; to add a file, import it below.

Every module-level :class:`Cell` in this folder, and every cell that is written with the decorator
of ``decorator.py``, is found by its ``name``. Layers, models, the command line and the conformance
tests take it from there.
"""

import copyreg
from functools import cache
from typing import Any

# by name: a program that is packed into one file has no folder to search
from . import (
    elementwise,
    gru,
    gru_variants,
    layer_norm,
    lstm,
    lstm_projected,
    lstm_variants,
    rnn,
    rnn_variants,
    slstm,
)
from .cell import Cell
from .decorator import WrittenCell

__all__ = ["Cell", "WrittenCell", "get", "names", "register"]


_FILES = (
    elementwise, gru, gru_variants, layer_norm, lstm, lstm_projected, lstm_variants, rnn,
    rnn_variants, slstm,
)  # fmt: skip


@cache
def _registry() -> dict[str, Cell | WrittenCell]:
    values = [value for module in _FILES for value in vars(module).values()]
    found: dict[str, Cell | WrittenCell] = {}
    for cell in values:
        if isinstance(cell, Cell | WrittenCell) and found.setdefault(cell.name, cell) is not cell:
            raise ValueError(f"two cells are named {cell.name!r}")
    return found


def names() -> list[str]:
    """Return the names of all cells, sorted.

    Returns
    -------
    list of str
        The names.

    Examples
    --------
    >>> "lstm" in names()
    True
    """
    return sorted(_registry())


def register(cell: Cell | WrittenCell, *, replace: bool = False) -> None:
    """Register a cell of one's own, so that models and their checkpoints find it by its name.

    Parameters
    ----------
    cell : Cell or WrittenCell
        The cell.
    replace : bool, default False
        Whether to replace another cell of that name, such as an earlier version of the same cell.

    Raises
    ------
    ValueError
        If another cell has that name.
    TypeError
        If it is not a cell.
    """
    if not isinstance(cell, Cell | WrittenCell):
        raise TypeError(f"cell: expected a cell, got {cell!r}")
    if replace:
        _registry()[cell.name] = cell
    if _registry().setdefault(cell.name, cell) is not cell:
        raise ValueError(
            f"cell: a cell named {cell.name!r} is already registered; replace=True replaces it"
        )


def get(cell: str | Cell | WrittenCell) -> Cell:
    """Return a cell by its name.

    Parameters
    ----------
    cell : str, Cell or WrittenCell
        The name. A Cell is returned as it is; a WrittenCell is derived now, unless it has been.

    Returns
    -------
    Cell
        The cell.

    Raises
    ------
    ValueError
        If no cell has that name; the message lists the names.

    Examples
    --------
    >>> get("lstm").gates
    ('f', 'g', 'i', 'o')
    """
    if not isinstance(cell, Cell | WrittenCell):
        try:
            cell = _registry()[cell]
        except (KeyError, TypeError):
            raise ValueError(f"cell: expected one of {', '.join(names())}, got {cell!r}") from None
    return cell.cell if isinstance(cell, WrittenCell) else cell


def _reduce(cell: Cell) -> tuple[Any, ...]:
    """Pickle a cell by its name, which must be known where it is unpickled."""
    if cell.name not in names() or get(cell.name) is not cell:
        raise TypeError(
            f"cell {cell.name!r}: a cell can only be pickled if it is registered; "
            "call numba_rnn.cells.register in the module that defines it"
        )
    return get, (cell.name,)


copyreg.pickle(Cell, _reduce)
_registry()  # built now: later, two threads could build it at once
