"""The gate kernels of a cell: a step's arithmetic between two products.

Where a cell has no recurrent product there is nothing between the steps: a thread runs through all
of them (``forward_scan``, ``backward_scan``).

A thread has one row of the batch and ``count`` units side by side:

    blockIdx.x = n           |<- blockDim.x threads ->|   blockIdx.y of them side by side
                             j = 0, count, 2 count ... < H

What the step's products give, beside the arrays of ``arithmetic.py``:

    early (N, early H), late (N, late H)    h Wh, and the second product
    through_h (N, H)                        what came back through h Wh from the step after
    operands (T, N, H)                      what the second product multiplies
    doperand (N, H)                         what came back through it

A gate that the operand itself feeds stands in ``late``, alone, and its gradient in ``dgates``.
"""

from collections.abc import Callable
from functools import cache, partial

from ..cells import Cell
from ..layout import layout
from ..step_options import NO_OPTIONS, StepFeatures
from .arithmetic import Step, arrays_of
from .kernel import Kernel, functions_of


def names(cell: Cell) -> tuple[str, ...]:
    """The kernels that a cell needs."""
    if scans(cell):
        return "forward_scan", "backward_scan"
    second = ("operand_gates", "operand_backward_gates") if cell.operand is not None else ()
    return "forward_gates", "backward_gates", *second


def scans(cell: Cell) -> bool:
    """Whether nothing lies between its steps."""
    return not (cell.recurrent_gates or cell.normalised or cell.fed)


@cache
def kernel(
    cell: Cell,
    name: str,
    count: int,
    threads: int,
    features: StepFeatures = NO_OPTIONS.features,
) -> Kernel:
    """A gate kernel for ``count`` units a thread."""
    from . import lanes

    step = Step(cell, features=features)
    takes, lines = _MAKERS[name](step)
    takes = (*takes, "normalised") if cell.normalised else takes
    lines = [*step.here(), *lines]
    takes = (*takes, *option_arrays(name, features))
    if name in _STEPS:
        lines = [_STEPS[name], *("    " + line for line in lines)]
    else:
        takes = (*takes, "t")
    head = [
        "j = (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x) * COUNT",
        "if j >= H:",
        "    return",
        "n = cuda.blockIdx.x",
    ]
    outer = {
        "load": lanes.LOADS[count], "store": lanes.store, "where": lanes.where,
        "drawn": lanes.drawn, "COUNT": count,
    }  # fmt: skip
    takes = (*takes, "T", "N", "H")
    name = f"{cell.name}_{name}_{count}"
    functions = {**functions_of(cell), **step.functions}
    return Kernel(name, takes, [*head, *lines], functions, threads, outer)


def option_arrays(name: str, features: StepFeatures) -> tuple[str, ...]:
    """The arrays of options that a kernel takes."""
    if name.startswith("operand"):
        return (*("mask",) * features.mask, *("scale",) * features.scale)
    return arrays_of(features, name.startswith("backward"))


def _side(cell: Cell):  # type: ignore[no-untyped-def]
    early, late = layout(cell).early, layout(cell).late + layout(cell).fed

    def side(k: int) -> str:
        if k < early:
            return f"load(early, n * {early} * H + {k} * H + j)"
        return f"load(late, n * {late} * H + {k - early} * H + j)"

    return side


def _forward(step: Step) -> tuple[tuple[str, ...], list[str]]:
    takes = "x_side", "early", "late", "b", "states", "saved", "hs"
    return takes, [*step.known(), *step.forward(_side(step.cell)), *step.store_forward()]


def _operand(step: Step) -> tuple[tuple[str, ...], list[str]]:
    lines = [*step.known(), *step.operand(_side(step.cell))]
    if step.cell.fed:
        return ("x_side", "early", "b", "states", "late"), [*lines, "store(factor, late, p)"]
    takes = "x_side", "early", "b", "states", "operands"
    return takes, [*lines, "store(factor, operands, t * N * H + p)"]


def _backward(step: Step) -> tuple[tuple[str, ...], list[str]]:
    takes, lines = _backward_but_for("load(through_h, p)", step)
    return ("through_h", *takes), lines


def _backward_but_for(through_h: str, step: Step) -> tuple[tuple[str, ...], list[str]]:
    takes = "dhs", "b", "states", "saved", "dgates", "dstate"
    lines = [*step.found(), *step.arriving(), *step.backward(through_h)]
    return takes, [*lines, *step.store_backward()]


def _operand_backward(step: Step) -> tuple[tuple[str, ...], list[str]]:
    takes = "b", "states", "saved", "dgates", "dstate"
    if step.cell.fed:
        doperand = f"load(dgates, d + {step.at.after_operand[0]} * H)"
        return takes, [*step.found(), *step.operand_backward(doperand)]
    return ("doperand", *takes), [*step.found(), *step.operand_backward("load(doperand, p)")]


def _forward_scan(step: Step) -> tuple[tuple[str, ...], list[str]]:
    takes = "x_side", "b", "states", "saved", "hs"
    lines = [*step.known(), *step.forward(lambda k: ""), *step.store_forward()]
    return takes, lines


_STEPS = {
    "forward_scan": "for t in range(T):",
    "backward_scan": "for t in range(T - 1, -1, -1):",
}
_MAKERS: dict[str, Callable[[Step], tuple[tuple[str, ...], list[str]]]] = {
    "forward_scan": _forward_scan,
    "backward_scan": partial(_backward_but_for, "0.0"),
    "forward_gates": _forward,
    "operand_gates": _operand,
    "backward_gates": _backward,
    "operand_backward_gates": _operand_backward,
}
