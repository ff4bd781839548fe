"""A cell's step between products that its caller makes: the shortest way there from Python.

The kernels are in ``gate_rows_kernels.py``. They take the caller's memory by address, and its gates
in whatever order they stand: no weight is copied or reordered for a single step.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..cells import Cell
from ..engine import GateRows
from ..layout import layout
from .kernel_cache import compiled, python_function
from .plans import compiling, known

_MOST_ARGUMENTS = 32


class Call(NamedTuple):
    """The words of a function that Python calls; behind them the arguments of its kernel.

    Python calls it under the GIL, which it keeps: so one call at a time writes there.
    """

    array_type: int
    dtype: int
    true: int
    false: int
    kernel: int
    blocks: int  # the address of a table, the first argument of every call


@lru_cache(maxsize=256)
def gate_rows(cell: Cell, blocks: tuple[tuple[int, int, int], ...], dtype: str) -> GateRows | None:
    """See ``Engine.gate_rows``."""
    if cell.operand is not None or cell.normalised or cell.weights or cell.projected:
        return None
    entry, steps = compiled("gate_rows_kernels.enter"), []
    with compiling(cell, "single step", dtype):
        for name in ("forward_rows", "backward_rows"):
            kernel, head = compiled(f"gate_rows_kernels.{name}", dtype, cell), len(Call._fields)
            words = np.zeros(head + _MOST_ARGUMENTS + 3 * len(blocks), np.int64)
            table = words[head + _MOST_ARGUMENTS :]
            table[:] = np.ravel(blocks)
            words[:head] = (*known(np.dtype(dtype)), kernel, table.ctypes.data)
            steps.append(python_function(entry, True, words))
    at = layout(cell)
    forward, backward = steps
    return GateRows(forward, backward, at.n_stored, any(at.saved_from))
