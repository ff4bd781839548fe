"""A kernel: its text, what it refers to, and how it is launched.

The text is made for a cell and sizes, and is plain Python: it compiles for a GPU (``build.py``)
and runs in an emulator. ``launch(kernel, grid, arguments)`` starts it, as the engine gets it.
"""

import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..cells import Cell


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel of a cell.

    name         unique among the cell's
    takes        the names of its arguments: arrays, but for INTEGERS
    lines        its body
    outer        what it refers to besides the cell's functions and numba's cuda
    threads      of a block
    shared       bytes of dynamic shared memory of a block
    cooperative  the blocks wait for each other: all must be resident at once
    """

    cell: Cell
    name: str
    takes: tuple[str, ...]
    lines: Sequence[str]
    threads: int
    outer: Mapping[str, Any] = field(default_factory=dict)
    shared: int = 0
    cooperative: bool = False

    @property
    def text(self) -> str:
        """The function's source."""
        body = "\n".join("    " + line for line in self.lines)
        return f"def {self.name}({', '.join(self.takes)}):\n{body}\n"

    @cached_property
    def function(self) -> Any:
        """The function, to be compiled or emulated."""
        from .target import cuda

        cell = self.cell
        outer = {
            "cuda": cuda, "forward": cell.forward, "backward": cell.backward,
            "operand": cell.operand, "operand_backward": cell.operand_backward, **self.outer,
        }  # fmt: skip
        file = f"<{self.name} of {cell.name}>"
        linecache.cache[file] = len(self.text), None, self.text.splitlines(True), file
        exec(compile(self.text, file, "exec"), outer)
        return outer[self.name]


@dataclass(frozen=True)
class Device:
    """What a GPU has room for.

    multiprocessors  how many blocks can surely run at once
    shared           bytes of shared memory that a block may have
    threads          of a gate kernel's block
    """

    multiprocessors: int
    shared: int
    threads: int = 128


INTEGERS = {"t", "T", "N", "H", "tiles"}  # arguments that are no arrays
COUNTERS = {"counters"}  # arrays of uint32; the others have the parameters' dtype

Launch = Callable[[Kernel, tuple[int, int], Sequence[Any]], None]
