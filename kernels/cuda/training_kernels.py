"""The kernels of training: an optimiser's rule, an embedding's gradient, dropout."""

from collections.abc import Callable
from functools import cache
from typing import Any

from .kernel import NUMBERS, Kernel

THREADS = 256


@cache
def rule_kernel(rule: Callable[..., Any], arrays: int, numbers: int, count: int) -> Kernel:
    """new arrays = rule(*arrays, gradient, *numbers), ``count`` places a thread."""
    names = [f"array{k}" for k in range(arrays)]
    loads = [f"load({name}, i)" for name in (*names, "gradient")]
    lines = [
        "i = (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) * COUNT",
        "if i >= size:",
        "    return",
        f"new = rule({', '.join((*loads, *NUMBERS[:numbers]))})",
        *(f"store(new[{k}], {name}, i)" for k, name in enumerate(names)),
    ]
    name = f"{rule.__name__.strip('_')}_{count}"
    return Kernel(name, lines, THREADS, {"rule": rule}, count)


@cache
def add_rows_kernel(count: int) -> Kernel:
    """out (V, H) [rows[k]] += values (size, H) [order[k]], rows sorted.

    The first of equal rows adds them all up, in their order: the sum is the same every time. It
    loads several of them at once where there are as many, and adds up some before it adds these to
    the others.

        blockIdx.x = k        |<- blockDim.x threads, count columns each ->|  blockIdx.y of them
    """
    ahead = 8
    lines = [
        "j = (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x) * COUNT",
        "if j >= H:",
        "    return",
        "k = cuda.blockIdx.x",
        "row = rows[k]",
        "if k > 0:",
        "    if rows[k - 1] == row:",
        "        return",
        "total = load(out, row * H + j)",
        "while k < size and rows[k] == row:",
        "    part = load(values, order[k] * H + j)",
        "    k += 1",
        f"    end = k + {32 * ahead} if k + {32 * ahead} < size else size",
        f"    while k + {ahead} <= end and rows[k + {ahead - 1}] == row:",
        *(f"        value{i} = load(values, order[k + {i}] * H + j)" for i in range(ahead)),
        *(f"        part = part + value{i}" for i in range(ahead)),
        f"        k += {ahead}",
        "    while k < end and rows[k] == row:",
        "        part = part + load(values, order[k] * H + j)",
        "        k += 1",
        "    total = total + part",
        "store(total, out, row * H + j)",
    ]
    return Kernel(f"add_rows_{count}", lines, THREADS, count=count)


@cache
def dropout_kernel() -> Kernel:
    """out (N, T, H) = 0 where a unit is drawn (``counter_rng.py``), else ``number0``.

    limit, start   the threshold and the first_counter of the mask
    """
    lines = [
        "i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x",
        "if i >= size:",
        "    return",
        "one = load(out, i)",
        "one = where(one < one, one, number0)",  # in numbers of its type
        "row = i // H",
        "n = row // T",
        "place = start + ((row - n * T) << 32) + n",
        "gone = drawn(one, seed, limit, place, i - row * H)",
        "store(where(gone, 0.0, one), out, i)",
    ]
    return Kernel("dropout", lines, THREADS)
