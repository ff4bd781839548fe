"""The cells. Each file here defines one kind; to add a file, import it below.

Every module-level :class:`Cell` in this folder, and every cell that is written with the decorator
of ``written.py``, is found by its ``name``: layers, models, the command line and the conformance
tests know it from then on.
"""

import copyreg
from functools import cache
from typing import Any

# by name, for programs that were packed into one file know of no folder to look into
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
from .written import WrittenCell

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
    """Names of all cells, sorted."""
    return sorted(_registry())


def register(cell: Cell | WrittenCell, *, replace: bool = False) -> None:
    """Let a cell of one's own be found by its name, by models and their checkpoints too.

    replace  True: in place of another one of that name, such as the one that you have just changed

    Raises ValueError where another cell has that name.
    """
    if not isinstance(cell, Cell | WrittenCell):
        raise TypeError(f"cell: expected a cell, got {cell!r}")
    if replace:
        _registry()[cell.name] = cell
    if _registry().setdefault(cell.name, cell) is not cell:
        raise ValueError(
            f"cell: there is one named {cell.name!r} already; replace=True takes its place"
        )


def get(cell: str | Cell | WrittenCell) -> Cell:
    """The cell of that name; a Cell is returned as it is, a written one is derived now.

    Raises ValueError, listing the names, where there is none.
    """
    if not isinstance(cell, Cell | WrittenCell):
        try:
            cell = _registry()[cell]
        except (KeyError, TypeError):
            raise ValueError(f"cell: expected one of {', '.join(names())}, got {cell!r}") from None
    return cell.cell if isinstance(cell, WrittenCell) else cell


def _reduce(cell: Cell) -> tuple[Any, ...]:
    """A cell is pickled by its name, which is to be known where it is unpickled."""
    if cell.name not in names() or get(cell.name) is not cell:
        raise TypeError(
            f"cell {cell.name!r}: to be pickled it has to be found by its name; "
            "numba_rnn.cells.register, in the module that defines it, sees to that"
        )
    return get, (cell.name,)


copyreg.pickle(Cell, _reduce)
_registry()  # made now, before there are threads that could make two
