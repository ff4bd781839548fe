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
    """A kernel.

    name         the function's
    takes        the names of its arguments: arrays of one float dtype, but for those below
    lines        its body
    functions    plain functions that it calls, by the names that it calls them: a cell's, a rule
    outer        what else it refers to, besides numba's cuda
    threads      of a block
    shared       bytes of dynamic shared memory of a block
    cooperative  the blocks wait for each other: all must be resident at once
    """

    name: str
    takes: tuple[str, ...]
    lines: Sequence[str]
    functions: Mapping[str, Any]
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

        outer = {"cuda": cuda, **self.functions, **self.outer}
        file = f"<{self.name}>"
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


# arguments that are no arrays of the kernel's dtype
INTEGERS = {"t", "T", "N", "H", "size"}
NUMBERS = tuple(f"number{k}" for k in range(8))  # of that dtype
COUNTERS = {"counters"}  # uint32
INDICES = {"rows", "order"}  # int64

Launch = Callable[[Kernel, tuple[int, int], Sequence[Any]], None]


def functions_of(cell: Cell) -> dict[str, Any]:
    """What the kernels of a cell call."""
    names = "forward", "backward", "operand", "operand_backward"
    return {name: getattr(cell, name) for name in names if getattr(cell, name) is not None}
