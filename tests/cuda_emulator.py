"""CUDA kernels run by Python, thread after thread in any order, every access checked."""

import random
from collections.abc import Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from numba_rnn.kernels.cells import Cell
from numba_rnn.kernels.cuda import gates

THREADS = 8  # of a block: few, so that there are several


class EmulationError(RuntimeError):
    """What a GPU would do wrong without a word."""


class Pointer:
    """An array's numbers one after the other, as a kernel sees them."""

    def __init__(self, array: np.ndarray) -> None:
        if not array.flags.c_contiguous:
            raise EmulationError(f"an array of strides {array.strides} was launched on")
        self.numbers = array.reshape(-1)

    def at(self, index: int, count: int) -> slice:
        if index % count:
            raise EmulationError(f"{count} numbers at index {index}: not aligned")
        if not 0 <= index <= self.numbers.size - count:
            raise EmulationError(f"{count} numbers at index {index} of {self.numbers.size}")
        return slice(index, index + count)


def emulate(
    kernel: Any, arguments: Sequence[Any], grid: tuple[int, int], count: int, seed: int = 0
) -> None:
    """Run a gate kernel's threads in a random order."""

    def load(pointer: Pointer, index: int) -> np.ndarray:
        return pointer.numbers[pointer.at(index, count)].copy()

    def store(value: np.ndarray, pointer: Pointer, index: int) -> None:
        dtype = pointer.numbers.dtype
        if value.dtype != dtype:
            raise EmulationError(f"{value.dtype} stored among {dtype}")
        pointer.numbers[pointer.at(index, count)] = value

    fake = SimpleNamespace(blockDim=SimpleNamespace(x=THREADS))
    outer = {**kernel.__globals__, "cuda": fake, "load": load, "store": store, "where": np.where}
    run = FunctionType(kernel.__code__, outer)
    given = [Pointer(a) if isinstance(a, np.ndarray) else a for a in arguments]
    threads = [(x, y, t) for x in range(grid[0]) for y in range(grid[1]) for t in range(THREADS)]
    random.Random(seed).shuffle(threads)
    for x, y, thread in threads:
        fake.blockIdx, fake.threadIdx = SimpleNamespace(x=x, y=y), SimpleNamespace(x=thread)
        run(*given)


def launch(cell: Cell, name: str, count: int, arguments: Sequence[Any], N: int, H: int) -> None:
    """What the engine launches with, in place of a GPU."""
    kernel = gates.kernel(cell, name, count)
    emulate(kernel, (*arguments, N, H), (-(-H // (THREADS * count)), N), count)
