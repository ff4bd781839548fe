"""A kernel: its text, what it refers to, and how it is launched.

The text is made for a cell and sizes, and is plain Python: it compiles for a GPU (``build.py``)
and runs in an emulator; a ``Gpu`` starts it.
"""

import linecache
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..cells import Cell
from ..once import cached_property


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel.

    name         the function's
    takes        the names of its arguments, which say what they are: arrays of one float dtype,
                 but for INTEGERS, NUMBERS, COUNTERS, INDICES and FLAGS below
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
        file = f"<{self.name} {hash(self.text):x}>"
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
INTEGERS = {"t", "T", "N", "H", "size", "stride", "row", "block"}
NUMBERS = tuple(f"number{k}" for k in range(8))  # of that dtype
COUNTERS = {"counters"}  # uint32
INDICES = {"rows", "order", "seeds", "thresholds", "origin", "words"}  # int64
FLAGS = {"mask", "resets"}  # uint8


class Gpu(Protocol):
    """What the engine needs: CuPy's is in ``gpu.py``; tests have an emulator.

    xp      the library of the arrays
    device  what there is room for
    """

    xp: Any
    device: Device

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        """Start a kernel on arrays and numbers."""

    def fits(self, kernel: Kernel, blocks: int) -> bool:
        """Whether so many blocks can run at once."""

    def address(self, array: Any) -> int:
        """Where an array starts."""

    def products(self, precision: str) -> AbstractContextManager[None]:
        """Within it the library's float32 products may be as rough as ``precision``."""

    def describe(self) -> str:
        """The device in words."""


def functions_of(cell: Cell) -> dict[str, Any]:
    """What the kernels of a cell call."""
    names = "forward", "backward", "operand", "operand_backward"
    return {name: getattr(cell, name) for name in names if getattr(cell, name) is not None}
