"""The cells. Each file here defines one kind; to add a cell, add a file.

Every module-level :class:`Cell` in this folder is found by its ``name``: layers, models, the
command line and the conformance tests know it from then on.
"""

import importlib
import pkgutil
from functools import cache

from .cell import Cell

__all__ = ["Cell", "get", "names"]


@cache
def _registry() -> dict[str, Cell]:
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    cells = [v for module in modules for v in vars(module).values() if isinstance(v, Cell)]
    found: dict[str, Cell] = {}
    for cell in cells:
        if found.setdefault(cell.name, cell) is not cell:
            raise ValueError(f"two cells are named {cell.name!r}")
    return found


def names() -> list[str]:
    """Names of all cells, sorted."""
    return sorted(_registry())


def get(cell: str | Cell) -> Cell:
    """The cell of that name; a Cell is returned as it is.

    Raises ValueError, listing the names, where there is none.
    """
    if isinstance(cell, Cell):
        return cell
    try:
        return _registry()[cell]
    except (KeyError, TypeError):
        raise ValueError(f"cell: expected one of {', '.join(names())}, got {cell!r}") from None
