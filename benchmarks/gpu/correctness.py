"""Every cell on the device against the NumPy engine in float64.

An item is one of

    LAYOUT / PRECISION / CELL     steps (step by step), planned (as the engine runs it), forced
                                  (persistent kernels, cut in many ways)
    gradients / float64 / CELL    backward against finite differences of forward
    updates / DTYPE / RULE        an optimiser's kernel
    rows / DTYPE / add            an embedding's gradient, the same bits twice
    products / float32 / large    3xTF32, of numbers of both signs and of positive ones alone
    again / LAYOUT / CELL         forward and backward twice: the same bits
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from numba_rnn import cells
from numba_rnn.kernels.cuda import persistent, tiling
from numba_rnn.kernels.layout import layout
from numba_rnn.kernels.reference import NumpyEngine

from .machine import Machine, forced, from_tests, step_by_step

LIMITS = {"float64": 1e-12, "float32": 1e-5, "tf32": 2e-3, "bfloat16": 2e-2}
LAYOUTS = ("steps", "planned", "forced")
RULES = ("SGD", "Momentum", "AdaGrad", "RMSProp", "Adam", "AdamW")

Sizes = tuple[int, int, int, int]  # N, T, D, H
SMALL: list[Sizes] = [
    (1, 1, 1, 1), (3, 4, 5, 6), (2, 3, 1, 8), (1, 5, 7, 13), (4, 2, 3, 40), (33, 3, 17, 100),
]  # fmt: skip
# those of the speed table, few steps
LARGE: list[Sizes] = [
    (20, 3, 650, 650), (32, 3, 256, 256), (64, 2, 512, 512), (16, 3, 768, 768),
    (64, 2, 1024, 1024), (128, 2, 128, 128), (1, 6, 256, 256),
]  # fmt: skip
# units, rows, split_k, split_n, tiles
CUTS: list[tuple[tuple[int, int, int, int, int], Sizes]] = [
    ((8, 16, 1, 1, 1), (3, 3, 4, 8)),  # a lone block
    ((16, 16, 2, 1, 2), (35, 2, 4, 15)),  # lone blocks, groups of two tiles
    ((8, 16, 1, 1, 1), (5, 4, 4, 21)),  # three blocks
    ((8, 16, 1, 2, 1), (18, 2, 3, 10)),  # groups
    ((16, 32, 1, 2, 1), (9, 1, 3, 17)),  # one step
    ((8, 16, 4, 2, 1), (32, 7, 33, 260)),
    ((16, 16, 2, 4, 2), (70, 9, 16, 200)),
    ((32, 32, 2, 4, 1), (64, 5, 64, 128)),
    ((8, 16, 8, 1, 1), (16, 20, 8, 1024)),  # 128 blocks meet
    ((16, 32, 2, 4, 1), (190, 12, 40, 300)),  # six groups
    ((8, 16, 8, 1, 1), (2, 700, 8, 96)),  # many meetings
]
TINY_CUTS = [CUTS[0], CUTS[3]]
MAIN = "lstm", "gru_reset_after", "rnn"  # those that have persistent kernels
FEW_CUTS, FEW_LARGE = [CUTS[2], CUTS[5], CUTS[8]], [LARGE[1], LARGE[3]]
TINY = [
    "steps/float64/lstm", "steps/float32/gru", "planned/float32/rnn", "forced/float32/lstm",
    "forced/tf32/rnn", "forced/bfloat16/gru_reset_after", "gradients/float64/rnn",
    "updates/float32/Adam", "rows/float32/add", "again/planned/rnn", "products/float32/large",
]  # fmt: skip


def items(cell: str | None = None, precision: str | None = None) -> list[str]:
    """The items to check, the telling ones first: cells with persistent kernels, training."""
    numbers = list(LIMITS)[1:]
    found = [f"{how}/{p}/lstm" for p in numbers for how in ("planned", "forced")]
    found += ["again/planned/lstm", "steps/float32/lstm", "products/float32/large"]
    found += [f"{how}/{p}/{name}" for name in MAIN[1:] for p in numbers for how in LAYOUTS[1:]]
    found += [f"again/planned/{name}" for name in MAIN[1:]]
    found += [f"updates/float32/{rule}" for rule in RULES] + ["rows/float32/add"]
    return _wanted(found, cell, precision)


def other_items(cell: str | None = None, precision: str | None = None) -> list[str]:
    """All other items: what goes step by step, float64, finite differences."""
    names, done = cells.names(), set(items())
    found = [f"steps/float32/{name}" for name in names]
    found += [f"steps/float64/{name}" for name in names]
    found += [f"gradients/float64/{name}" for name in names]
    found += [f"again/steps/{name}" for name in names]
    found += [f"updates/float64/{rule}" for rule in RULES] + ["rows/float64/add"]
    return [item for item in _wanted(found, cell, precision) if item not in done]


def _wanted(found: list[str], cell: str | None, precision: str | None) -> list[str]:
    names = cells.names()

    def wanted(item: str) -> bool:
        _, number, name = item.split("/")
        of_a_cell, of_a_choice = name in names, number in LIMITS
        fits = cell is None or not of_a_cell or name == cell
        return fits and (precision is None or not of_a_choice or number in (precision, "float64"))

    return [item for item in found if wanted(item)]


def check(machine: Machine, item: str) -> dict[str, Any]:
    """The worst relative error, where it was, and the kernels that ran."""
    kind, number, name = item.split("/")
    with machine.launched() as ran:
        if kind in LAYOUTS:
            found = _against_the_reference(machine, kind, number, name)
        elif kind == "again":
            found = _twice(machine, number, name)
        else:
            found = _OTHERS[kind](machine, number, name)
    limit = found.pop("limit", LIMITS.get(number, 0.0))
    found = {"limit": limit, **found, "kernels": sorted(set(ran))}
    if not found["worst"] <= limit:
        found["wrong"] = f"off by {found['worst']:.1e}, {limit:.0e} is allowed"
    return found


# ---- forward and backward


def error(got: Any, want: Any) -> float:
    """max|got - want| / max|want|; infinite where a NaN is anywhere."""
    if got.shape != want.shape:
        return float("inf")
    difference, size = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    if not (np.isfinite(difference) and np.isfinite(size)):
        return float("inf")
    return float(difference / size) if size else float(difference > 0)


def problem(cell: str, sizes: Sizes, dtype: Any) -> Any:
    """Random numbers; where there is a kink, no pre-activation comes near it."""
    made = from_tests("helpers").random_problem(cell, *sizes, dtype)
    if cell == "rnn_relu":
        Wx, Wh, b = made.params
        made = replace(made, params=(Wx, Wh * dtype(0.1), np.where(b > 0, 3, -3).astype(dtype)))
    return made


@cache
def _known(name: str, sizes: Sizes, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """A problem, and its outcome in float64."""
    given = problem(name, sizes, dtype)
    outcome = from_tests("helpers").outcome
    return given, outcome(NumpyEngine(), given.map(lambda array: array.astype(np.float64)))


def cases(machine: Machine, kind: str, number: str, name: str) -> Iterator[tuple[Any, Sizes, str]]:
    """Each size of an item, in a layout that is in force until the next is asked for."""
    engine = machine.engine(number)
    if kind == "forced":
        all_cuts = (name, number) == ("lstm", "float32")
        for cut, sizes in TINY_CUTS if machine.tiny else CUTS if all_cuts else FEW_CUTS:
            choose = _Cut(engine, cut)
            if all(choose.fits(name, sizes, forward) for forward in (True, False)):
                with forced(engine, choose):
                    yield engine, sizes, f"{sizes}, cut {cut}"
        return
    for sizes in _sizes(machine, kind, number, name):
        with forced(engine, step_by_step) if kind == "steps" else nullcontext():
            yield engine, sizes, str(sizes)


def _sizes(machine: Machine, kind: str, number: str, name: str) -> list[Sizes]:
    """Those of an item: of the LSTM those of the speed table, of other cells fewer."""
    if machine.tiny:
        return SMALL[1:2]
    some = SMALL if kind == "steps" else SMALL[4:]
    if number == "float64":
        return some
    return [*some, *(LARGE if name == "lstm" and kind != "steps" else FEW_LARGE)]


class _Cut:
    """A layout: persistent, cut in one way."""

    def __init__(self, engine: Any, cut: tuple[int, int, int, int, int]) -> None:
        self.engine, self.cut = engine, cut

    def __call__(
        self,
        cell: Any,
        N: int,
        T: int,
        H: int,
        dtype: Any,
        forward: bool = True,
        *_: Any,
        **__: Any,
    ) -> Any:
        units, rows, split_k, split_n, tiles = self.cut
        gates = layout(cell).early
        while units * (gates if forward else 1) % (8 * split_n):
            split_k, split_n = split_k * 2, split_n // 2
        precision = self.engine.precision
        made = tiling.Tiling(H, gates, forward, units, rows, split_k, split_n, precision)
        return tiling.LaunchPlan(made, tiles, -(-N // (rows * tiles)), 0.0, 1e9), "asked for"

    def fits(self, name: str, sizes: Sizes, forward: bool) -> bool:
        """Whether the device has room for it."""
        cell, (N, _, _, H), device = cells.get(name), sizes, self.engine.gpu.device
        plan, _ = self(cell, N, 1, H, np.float32, forward)
        blocks = plan.tiling.blocks * plan.groups
        if plan.tiling.shared(plan.tiles) > device.shared or blocks > device.multiprocessors:
            return False
        kernel = persistent.kernel(cell, plan.tiling, plan.tiles)
        return bool(self.engine.gpu.fits(kernel, blocks))


def _against_the_reference(machine: Machine, kind: str, number: str, name: str) -> dict[str, Any]:
    outcome = from_tests("helpers").outcome
    worst, where, count = 0.0, "", 0
    dtype = np.float64 if number == "float64" else np.float32
    for engine, sizes, what in cases(machine, kind, number, name):
        given, exact = _known(name, sizes, dtype)
        got = outcome(engine, given)
        count += 1
        for key, want in exact.items():
            off = error(got[key], want)
            if off > worst or not where:
                worst, where = off, f"{key} at N, T, D, H {what}"
    if not count:
        return {"worst": float("inf"), "where": "no case fits the device", "cases": 0}
    return {"worst": worst, "where": where, "cases": count}


def _twice(machine: Machine, how: str, name: str) -> dict[str, Any]:
    helpers, engine = from_tests("helpers"), machine.engine()
    differ, count = 0, 0
    for sizes in _sizes(machine, how, "float32", name):
        given = problem(name, sizes, np.float32)
        with forced(engine, step_by_step) if how == "steps" else nullcontext():
            first, *others = (
                helpers.outcome(engine, given) for _ in range(2 if machine.tiny else 5)
            )
        count += 1
        for other in others:
            differ += any(first[key].tobytes() != other[key].tobytes() for key in first)
    return {"worst": float(differ), "where": "runs that differ", "cases": count}


def _gradients(machine: Machine, number: str, name: str) -> dict[str, Any]:
    """Backward's gradients against central differences of forward, of one number at a time."""
    helpers, engine = from_tests("helpers"), machine.engine("float64")
    given = helpers.problem(name, 2, 1 if machine.tiny else 3, 2, 3)

    def loss() -> float:
        p = given.map(engine.to_device)
        hs, state, _ = engine.forward(p.cell, p.xs, p.state, p.params)
        pairs = zip((hs, *state), (given.dhs, *given.dstate), strict=True)
        return float(sum((engine.to_host(a) * by).sum() for a, by in pairs))

    got = helpers.outcome(engine, given)
    arrays = {"db": given.params[2]}
    if not machine.tiny:
        states = {
            f"d{s} at the start": a for s, a in zip(given.cell.states, given.state, strict=True)
        }
        arrays |= {"dxs": given.xs, "dWx": given.params[0], "dWh": given.params[1], **states}
    errors = {
        key: error(got[key], helpers.central_differences(loss, array))
        for key, array in arrays.items()
    }
    where = max(errors, key=errors.__getitem__)
    return {"worst": errors[where], "where": where, "cases": len(errors), "limit": 1e-7}


# ---- training


def _updates(machine: Machine, number: str, name: str) -> dict[str, Any]:
    from numba_rnn import training, use_backend

    random, engine, worst = np.random.default_rng(0), machine.engine(), 0.0
    optimiser = getattr(training, name)()
    with use_backend("numpy"):  # an update, so that it has numbers
        optimiser.update([np.ones(1)], [np.ones(1)])
    numbers = optimiser._numbers()
    sizes = (1, 7, 64) if machine.tiny else (1, 7, 64, 100_003, 1 << 20)
    for size in sizes:
        arrays = [random.random(size).astype(number) for _ in range(1 + len(optimiser.slots))]
        gradient = random.standard_normal(size).astype(number)
        there = [engine.to_device(array) for array in arrays]
        NumpyEngine().update(optimiser.rule, arrays, gradient, numbers)
        engine.update(optimiser.rule, there, engine.to_device(gradient), numbers)
        for got, want in zip(there, arrays, strict=True):
            worst = max(worst, error(engine.to_host(got), want))
    return {"worst": worst, "where": "", "cases": len(sizes)}


def _rows(machine: Machine, number: str, name: str) -> dict[str, Any]:
    """Sums of rows that come again and again, against NumPy's, and the same bits twice."""
    random, engine, worst = np.random.default_rng(0), machine.engine(), 0.0
    sizes = [(5, 12, 6)] if machine.tiny else [(5, 40, 1), (5, 40, 6), (1000, 20_000, 256)]
    for V, count, width in sizes:
        rows = random.integers(0, V, count)
        values = random.standard_normal((count, width)).astype(number)
        want = np.zeros((V, width))
        np.add.at(want, rows, values.astype(np.float64))
        results = []
        for _ in range(2):
            out = engine.xp.zeros((V, width), np.dtype(number))
            engine.add_rows(out, engine.to_device(rows), engine.to_device(values))
            results.append(engine.to_host(out))
        worst = max(worst, error(results[0], want))
        if results[0].tobytes() != results[1].tobytes():
            return {"worst": float("inf"), "where": "two runs differ", "cases": len(sizes)}
    return {"worst": worst, "where": "", "cases": len(sizes)}


def _products(machine: Machine, number: str, name: str) -> dict[str, Any]:
    """A product that is large enough for the tensor cores, against float64."""
    random, engine, errors = np.random.default_rng(0), machine.engine(), {}
    m, k, n = (8, 9, 7) if machine.tiny else (1024, 3000, 1024)
    for kind, least in (("both signs", -1), ("positive", 0)):
        a, b = (random.uniform(least, 1, size).astype(number) for size in ((m, k), (k, n)))
        got = engine.to_host(engine.product(engine.to_device(a), engine.to_device(b)))
        errors[kind] = error(got, a.astype(np.float64) @ b.astype(np.float64))
    where = max(errors, key=errors.__getitem__)
    return {"worst": errors[where], "where": where, "cases": len(errors), "errors": errors}


_OTHERS = {"gradients": _gradients, "updates": _updates, "rows": _rows, "products": _products}
