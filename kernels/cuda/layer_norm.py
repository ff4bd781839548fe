"""The kernels of normalised gates: a block has one row of the batch and one gate.

A row's units are in several blocks of a gate kernel, so its mean is nothing that one could make in
passing. Kernels of their own run before those that see what they make, and after them on the way
back (``engine.py`` has the order), for the gates that do not wait for the operand and for those
that do:

    blockIdx.x = n, blockIdx.y: a gate      threads: units i, i + threads, i + 2 threads ... < H

    normalised (T, N, K, H)    K gates, in the order of ``Layout.normalised``
    factors (T, N, K)          1 / deviation

Sums go through shared memory, in pairs that are always the same: so are the results.
"""

from functools import cache

from ..cells import Cell
from ..functions import maximum, sqrt
from ..layout import EPSILON, layout
from .kernel import Kernel
from .step_codegen import StepCode


@cache
def kernel(cell: Cell, late: bool, backward: bool, threads: int) -> Kernel:
    """The kernel of the early or the late gates, for blocks of so many threads (a power of 2)."""
    at = layout(cell)
    first = len(at.normalised_early) if late else 0
    places = at.normalised_late if late else at.normalised_early
    head = [
        "n, gate, i = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x",
        f"threads = {threads}",
        f"k = (t * N + n) * {len(at.normalised)} + {first} + gate",
        "start = k * H",
    ]
    lines = _backward(cell, places, threads) if backward else _forward(cell, places, late, threads)
    name = f"{cell.name}_{'denormalise' if backward else 'normalise'}_{'late' if late else 'early'}"
    functions = {"maximum": maximum, "sqrt": sqrt}
    return Kernel(name, [*head, *lines], threads, functions, shared=8 * threads)


def _units(lines: list[str]) -> list[str]:
    """For all units of the thread."""
    return ["j = i", "while j < H:", *("    " + line for line in lines), "    j += threads"]


def _mean(name: str, threads: int) -> list[str]:
    """A thread's sum becomes the mean of all units, in every thread."""
    lines, half = [f"store({name}, memory, i)", "cuda.syncthreads()"], threads // 2
    while half:
        lines += [
            f"if i < {half}:",
            f"    store(load(memory, i) + load(memory, i + {half}), memory, i)",
            "cuda.syncthreads()",
        ]
        half //= 2
    return [*lines, f"{name} = load(memory, 0) / H", "cuda.syncthreads()"]


def _choice(name: str, values: list[str]) -> list[str]:
    """One of several expressions, by the gate."""
    lines = []
    for k, value in enumerate(values):
        lines += ["else:" if k == len(values) - 1 else f"{'elif' if k else 'if'} gate == {k}:"]
        lines += [f"    {name} = {value}"]
    return lines if len(values) > 1 else [f"{name} = {values[0]}"]


def _forward(cell: Cell, places: tuple[int, ...], late: bool, threads: int) -> list[str]:
    at, step = layout(cell), StepCode(cell)
    products, count = ("late", at.late + at.operand_gate) if late else ("early", at.early)
    skip = at.early if late else 0

    def product(k: int) -> str:
        return f"load({products}, n * {count} * H + {k - skip} * H + j)"

    numbers = [step.pre_activation(at.order[place], product) for place in places]
    return [
        "memory = shared_of(b)",
        "one = load(b, 0)",
        "zero = where(one < one, one, 0.0)",
        "mean = zero",
        *_units([
            f"x_proj_at_0, j_0 = (t * N + n) * {at.x_gates} * H + j, j",
            *_choice("a", numbers),
            "store(a, normalised, start + j)",
            "mean = mean + a",
        ]),
        *_mean("mean", threads),
        # the mean was rounded as roughly as the numbers are: what it is off is taken off as well
        "off, squares = zero, zero",
        *_units([
            "d = load(normalised, start + j) - mean",
            "off, squares = off + d, squares + d * d",
        ]),
        *_mean("off", threads),
        *_mean("squares", threads),
        f"factor = 1.0 / sqrt(maximum(squares - off * off, 0.0) + {EPSILON!r})",
        *_units([
            "d = load(normalised, start + j) - mean - off",
            "store(d * factor, normalised, start + j)",
        ]),
        "if i == 0:",
        "    store(factor, factors, k)",
    ]  # fmt: skip


def _backward(cell: Cell, places: tuple[int, ...], threads: int) -> list[str]:
    count = len(layout(cell).order)
    return [
        "memory = shared_of(factors)",
        "factor = load(factors, k)",
        "mean = where(factor < factor, factor, 0.0)",
        "along = mean",
        *_choice("place", [str(place) for place in places]),
        f"here = ((t * N + n) * {count} + place) * H",
        *_units([
            "d = load(dgates, here + j)",
            "mean, along = mean + d, along + d * load(normalised, start + j)",
        ]),
        *_mean("mean", threads),
        *_mean("along", threads),
        *_units([
            "d = load(dgates, here + j) - mean - load(normalised, start + j) * along",
            "store(d * factor, dgates, here + j)",
        ]),
    ]  # fmt: skip
