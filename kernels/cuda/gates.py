"""The gate kernels of a cell: a step's arithmetic between two products.

Where a cell has no recurrent product there is nothing between the steps: a thread runs through all
of them (``forward_scan``, ``backward_scan``).

A thread has one row of the batch and ``count`` units side by side:

    blockIdx.x = n           |<- blockDim.x threads ->|   blockIdx.y of them side by side
                             j = 0, count, 2 count ... < H

The results of the step's products, beside the arrays of ``step_codegen.py``:

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
from .kernel import Kernel
from .step_codegen import StepCode


def names(cell: Cell) -> tuple[str, ...]:
    """The kernels that a cell needs."""
    if scans(cell):
        return "forward_scan", "backward_scan"
    second = ("operand_gates", "operand_backward_gates") if cell.operand is not None else ()
    return "forward_gates", "backward_gates", *second


def scans(cell: Cell) -> bool:
    """Whether nothing lies between its steps."""
    return not (cell.recurrent_gates or cell.normalised or cell.operand_gate)


@cache
def kernel(
    cell: Cell,
    name: str,
    count: int,
    threads: int,
    features: frozenset[str] = frozenset(),
) -> Kernel:
    """A gate kernel for ``count`` units a thread."""
    step = StepCode(cell, features=features)
    lines = [*step.offsets(), *_MAKERS[name](step)]
    if name in _STEPS:
        lines = [_STEPS[name], *("    " + line for line in lines)]
    head = [
        "j_0 = (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x) * COUNT",
        "if j_0 >= H:",
        "    return",
        "n_0 = cuda.blockIdx.x",
    ]
    return Kernel(f"{cell.name}_{name}_{count}", [*head, *lines], threads, step.functions, count)


def _product(cell: Cell) -> Callable[[int], str]:
    early, late = layout(cell).early, layout(cell).late + layout(cell).operand_gate

    def product(k: int) -> str:
        if k < early:
            return f"load(early, n_0 * {early} * H + {k} * H + j_0)"
        return f"load(late, n_0 * {late} * H + {k - early} * H + j_0)"

    return product


def _forward(step: StepCode) -> list[str]:
    return [*step.load_inputs(), *step.forward(_product(step.cell)), *step.store_forward()]


def _operand(step: StepCode) -> list[str]:
    place = "late, unit_0" if step.cell.operand_gate else "operands, t * N * H + unit_0"
    return [*step.load_inputs(), *step.operand(_product(step.cell)), f"store(operand_0, {place})"]


def _backward(step: StepCode, through_h: str = "load(through_h, unit_0)") -> list[str]:
    return [
        *step.load_saved(),
        *step.load_grads(),
        *step.backward(through_h),
        *step.store_backward(),
    ]


def _operand_backward(step: StepCode) -> list[str]:
    doperand = "load(doperand, unit_0)"
    if step.cell.operand_gate:
        doperand = f"load(dgates, dgates_at_0 + {step.layout.after_operand[0]} * H)"
    return [*step.load_saved(), *step.operand_backward(doperand)]


_STEPS = {
    "forward_scan": "for t in range(T):",
    "backward_scan": "for t in range(T - 1, -1, -1):",
}
_MAKERS: dict[str, Callable[[StepCode], list[str]]] = {
    "forward_scan": _forward,
    "backward_scan": partial(_backward, through_h="zero_0"),
    "forward_gates": _forward,
    "operand_gates": _operand,
    "backward_gates": _backward,
    "operand_backward_gates": _operand_backward,
}
