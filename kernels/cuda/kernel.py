"""A kernel: its text, what it refers to, and how it is launched.

The text is made for a cell and sizes, and is plain Python: it compiles for a GPU (``build.py``)
and runs in an emulator; a ``Gpu`` starts it.
"""

import builtins
import linecache
import symtable
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..once import cached_property
from ..step_options import StepValues


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel.

    name         the function's
    lines        its body
    threads      of a block
    functions    plain functions that it calls, by the names that it calls them: a cell's, a rule
    count        how many numbers a thread loads and stores at once; COUNT in the lines
    shared       bytes of dynamic shared memory of a block
    cooperative  the blocks wait for each other: all must be resident at once
    """

    name: str
    lines: Sequence[str]
    threads: int
    functions: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1
    shared: int = 0
    cooperative: bool = False

    @cached_property
    def outer(self) -> dict[str, Any]:
        """The instructions and functions that its lines refer to, by name."""
        from . import ptx, vector_type
        from .numba_cuda_compat import cuda

        return {
            **ptx.INSTRUCTIONS, **vector_type.instructions(self.count), **self.functions,
            "cuda": cuda, "StepValues": StepValues,
        }  # fmt: skip

    @cached_property
    def takes(self) -> tuple[str, ...]:
        """The names of its arguments: those that its lines use and that nothing else defines.

        They say what the arguments are: arrays of one float dtype, which come first, but for
        INTEGERS, NUMBERS, COUNTERS, INDICES and FLAGS below.
        """
        (function,) = symtable.symtable(self._source(()), self.name, "exec").get_children()
        used = {symbol.get_name() for symbol in function.get_symbols() if symbol.is_global()}
        used -= {*self.outer, *dir(builtins)}
        special = *COUNTERS, *INDICES, *FLAGS, *NUMBERS, *INTEGERS
        return *sorted(used - {*special}), *(name for name in special if name in used)

    def arguments(self, **arrays: Any) -> list[Any]:
        """Arrays and numbers in the order of its arguments."""
        return [arrays[name] for name in self.takes]

    @property
    def text(self) -> str:
        """The function's source."""
        return self._source(self.takes)

    def _source(self, takes: Sequence[str]) -> str:
        body = "\n".join("    " + line for line in self.lines)
        return f"def {self.name}({', '.join(takes)}):\n{body}\n"

    @cached_property
    def function(self) -> Any:
        """The function, to be compiled or emulated."""
        outer, file = dict(self.outer), f"<{self.name} {hash(self.text):x}>"
        linecache.cache[file] = len(self.text), None, self.text.splitlines(True), file
        exec(compile(self.text, file, "exec"), outer)
        return outer[self.name]


@dataclass(frozen=True)
class DeviceLimits:
    """The limits of a GPU.

    multiprocessors  how many blocks can surely run at once
    shared           bytes of shared memory that a block may have
    threads          of a gate kernel's block
    cooperative      blocks may wait for each other
    """

    multiprocessors: int
    shared: int
    threads: int = 128
    cooperative: bool = True


# arguments that are no arrays of the kernel's dtype
INTEGERS = "t", "T", "N", "H", "stride", "row", "block", "size", "seed", "limit", "start"
NUMBERS = tuple(f"number{k}" for k in range(8))  # of that dtype
COUNTERS = "counters", "report"  # uint32
INDICES = "rows", "order", "seeds", "thresholds", "first_counter"  # int64
FLAGS = "mask", "resets"  # uint8


class Gpu(Protocol):
    """The interface that the engine needs: CuPy's is in ``cupy_gpu.py``; tests have an emulator.

    xp      the library of the arrays
    device  what there is room for
    """

    xp: Any
    device: DeviceLimits

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
