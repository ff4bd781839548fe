"""The kernels of training: an optimiser's rule, an embedding's gradient, dropout."""

from collections.abc import Callable
from functools import cache
from typing import Any

from .kernel import NUMBERS, Kernel

THREADS = 256


def _memory(count: int) -> dict[str, Any]:
    from . import lanes

    return {"load": lanes.LOADS[count], "store": lanes.store, "COUNT": count}


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
    takes = (*names, "gradient", *NUMBERS[:numbers], "size")
    name = f"{rule.__name__.strip('_')}_{count}"
    return Kernel(name, takes, lines, {"rule": rule}, THREADS, _memory(count))


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
        f"    end = min(size, k + {32 * ahead})",
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
    takes = "out", "values", "rows", "order", "H", "size"
    return Kernel(f"add_rows_{count}", takes, lines, {}, THREADS, _memory(count))


@cache
def dropout_kernel() -> Kernel:
    """out (N, T, H) = 0 where a unit is drawn (``draws.py``), else the one number of ``left``.

    words   the seed, the threshold and the origin of the mask
    """
    from . import lanes

    lines = [
        "i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x",
        "if i >= size:",
        "    return",
        "one = load(left, 0)",
        "row = i // H",
        "n = row // T",
        "place = words[2] + ((row - n * T) << 32) + n",
        "gone = drawn(one, words[0], words[1], place, i - row * H)",
        "store(where(gone, 0.0, one), out, i)",
    ]
    takes = "out", "left", "words", "T", "H", "size"
    outer = {**_memory(1), "drawn": lanes.drawn, "where": lanes.where}
    return Kernel("dropout", takes, lines, {}, THREADS, outer)
