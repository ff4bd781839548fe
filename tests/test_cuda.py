"""The CUDA engine where there is no GPU: its numbers in an emulator, its kernels compiled."""

import re
import shutil
import sys
from dataclasses import replace
from types import FunctionType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from test_steps import FEATURES, disagreements, random_options
from test_steps import outcome as outcome_with

from cuda_emulator import EmulatedGpu, EmulationError
from helpers import CALLING_ALL, DTYPES, REPRESENTATIVES, outcome, random_problem, relative_error
from numba_rnn import cells
from numba_rnn.kernels.cuda import (
    build,
    gates,
    gemm_3xtf32,
    layer_norm,
    persistent,
    tiling,
    training_kernels,
    vector_type,
)
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.cuda.kernel import DeviceLimits
from numba_rnn.kernels.layout import layout
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.kernels.step_options import VALUE_KINDS, StepOptions
from numba_rnn.training import SGD, AdaGrad, Adam, AdamW, Momentum, RMSProp, accumulation, averages

CELLS = pytest.mark.parametrize("name", REPRESENTATIVES)
ONE_PRODUCT = [name for name in REPRESENTATIVES if layout(cells.get(name)).early]
ONE_PRODUCT = [
    name for name in ONE_PRODUCT if not cells.get(name).operand and not cells.get(name).normalised
]
LIMITS = {"float32": 1e-5, "float64": 1e-12, "tf32": 2e-3, "bfloat16": 2e-2}
SIZES = [(1, 1, 1, 1), (3, 4, 5, 6), (2, 3, 1, 8), (1, 5, 7, 13), (4, 2, 3, 40)]  # N, T, D, H

SMALL = DeviceLimits(multiprocessors=6, shared=40_000, threads=8)  # for the emulator
H200 = DeviceLimits(multiprocessors=132, shared=227 * 1024)
A100 = DeviceLimits(multiprocessors=108, shared=163 * 1024)


class Emulated(CudaEngine):
    """The engine on an emulator; ``cut`` says how persistent kernels are cut, None: never."""

    def __init__(self, cut=None, precision="float32", **options):
        super().__init__(EmulatedGpu(SMALL, **options), precision)
        self.cut = cut

    def plan(self, cell, N, T, H, dtype, forward=True, features=frozenset()):
        persistent = layout(cell).early and not cell.operand and not cell.normalised
        if self.cut is None or dtype != np.float32 or not persistent:
            return None, "the test wants it step by step"
        units, rows, split_k, split_n, tiles = self.cut
        gates_ = layout(cell).early
        columns = units * (gates_ if forward else 1)
        while columns % (8 * split_n):
            split_k, split_n = split_k * 2, split_n // 2
        made = tiling.Tiling(H, gates_, forward, units, rows, split_k, split_n, self.precision)
        return tiling.LaunchPlan(
            made, tiles, -(-N // (rows * tiles)), 0.0, 1e9
        ), "the test wants it"


def worst_error(engine, problem):
    """Against the specification, of all that forward and backward give."""
    want, got = outcome(NumpyEngine(), problem), outcome(engine, problem)
    assert got.keys() == want.keys()
    for key, array in got.items():
        assert array.dtype == want[key].dtype
    return max(relative_error(got[key], want[key]) for key in want)


@CELLS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_step_by_step_it_computes_what_the_specification_says(name, dtype, sizes):
    engine = Emulated()
    error = worst_error(engine, random_problem(name, *sizes, dtype))
    assert error < LIMITS[np.dtype(dtype).name]
    assert not any("persistent" in kernel for kernel in engine.gpu.launched)


# units, rows, split_k, split_n, tiles; sizes N, T, D, H
CUTS = [
    pytest.param((8, 16, 1, 1, 1), (3, 3, 4, 8), id="a lone block"),
    pytest.param((16, 16, 2, 1, 2), (35, 2, 4, 15), id="lone blocks, groups of two tiles"),
    pytest.param((8, 16, 1, 1, 1), (5, 4, 4, 21), id="three blocks"),
    pytest.param((8, 16, 1, 2, 1), (18, 2, 3, 10), id="groups, warps across"),
    pytest.param((8, 16, 2, 1, 2), (33, 2, 3, 12), id="groups of two tiles, warps along"),
    pytest.param((16, 32, 1, 2, 1), (9, 1, 3, 17), id="one step, high tiles"),
]


@pytest.mark.parametrize("name", ONE_PRODUCT)
@pytest.mark.parametrize(("cut", "sizes"), CUTS)
def test_persistent_kernels_compute_what_the_specification_says(name, cut, sizes):
    engine = Emulated(cut, seed=sum(cut))
    assert worst_error(engine, random_problem(name, *sizes, np.float32)) < LIMITS["float32"]
    assert set(engine.gpu.launched) == {
        f"{name}_persistent_{way}" for way in ("forward", "backward")
    }


@pytest.mark.parametrize("features", [set(FEATURES), set(FEATURES) - {"expected"}, {"mask"}])
@pytest.mark.parametrize("name", ["lstm", "rnn"])
@pytest.mark.parametrize(("cut", "sizes"), [CUTS[0].values, CUTS[2].values])
def test_persistent_kernels_do_what_is_particular_about_steps(name, cut, sizes, features):
    engine, p = Emulated(cut, seed=sum(cut)), random_problem(name, *sizes, np.float32)
    steps = random_options(p, features)
    want = outcome_with(NumpyEngine(), p, steps)
    assert disagreements(outcome_with(engine, p, steps), want, LIMITS["float32"]) == {}
    assert all("persistent" in kernel for kernel in engine.gpu.launched)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_after"])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize(("cut", "sizes"), CUTS[1:4])
def test_lower_precision_is_as_good_as_it_says(name, precision, cut, sizes):
    problem = random_problem(name, *sizes, np.float32)
    error = worst_error(Emulated(cut, precision), problem)
    assert LIMITS["float32"] < error < LIMITS[precision]


def test_a_long_contraction_is_loaded_ahead():
    cut, sizes = (8, 16, 1, 1, 1), (2, 2, 3, 90)  # 6 sixteens, 4 of them loaded at once
    engine = Emulated(cut)
    assert worst_error(engine, random_problem("rnn", *sizes, np.float32)) < LIMITS["float32"]
    assert engine.plan(cells.get("rnn"), 2, 2, 90, np.float32)[0].tiling.chunks == 8


# ---- the functions that cells call

SPECIAL = {  # the GPU's instructions, exactly; it has them to 2 units in the last place
    "_power_of_two": lambda x: np.exp2(x.astype(np.float64)).astype(np.float32),
    "_reciprocal": lambda x: (1 / x.astype(np.float64)).astype(np.float32),
    "_fma32": lambda a, b, c: (a.astype(np.float64) * np.float32(b) + c).astype(np.float32),
    "_magnitude32": np.abs,
    "where": np.where,
}


def flushed(run):
    """An instruction that takes results below the smallest normal number for 0."""

    def ftz(x):
        y = run(x)
        return np.where(np.abs(y) < np.finfo(np.float32).tiny, y * 0, y)

    return ftz


def on_lanes(name, x):
    """A float32 function of vector_type.py on an array, with the instructions above."""
    outer = {**vars(vector_type), **SPECIAL}
    outer |= {name: flushed(outer[name]) for name in ("_power_of_two", "_reciprocal")}

    def emulated(name):
        return FunctionType(getattr(vector_type, f"_{name}_float32").__code__, outer)

    outer["functions"] = SimpleNamespace(exp=emulated("exp"))  # what they call of each other
    with np.errstate(all="ignore"):
        got = emulated(name)(x)
    assert got.dtype == np.float32
    return got


def units_off(got, want):
    """Units in the last place, of normal numbers; and how far off it is at all."""
    off, tiny = np.abs(got - want), np.float32(np.finfo(np.float32).tiny)
    return off / np.spacing(np.maximum(np.abs(want), tiny).astype(np.float32)), off


SPREAD = np.concatenate([10.0 ** np.arange(-30, 3, 0.01), np.arange(0, 20, 0.001), [0, np.inf]])


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_the_gpu_s_functions_are_exact_enough(name):
    x = np.concatenate([SPREAD, -SPREAD]).astype(np.float32)
    got, wide = on_lanes(name, x), x.astype(np.float64)
    with np.errstate(over="ignore"):
        want = np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))
    units, off = units_off(got, want)
    assert off[np.abs(want) < 1.2e-38].max() < 1.2e-38  # flushed to 0
    if name == "tanh":
        assert units.max() < 4
    else:  # x / log 2 is rounded before it becomes an exponent
        near = np.abs(x) < 80
        assert (units / (2 + np.abs(x)))[near].max() < 1
        assert off[~near].max() < 1e-34


@pytest.mark.parametrize("name", ["exp", "softplus"])
def test_the_gpu_s_functions_are_exact_to_a_few_units(name):
    x = np.concatenate([SPREAD, -SPREAD, np.linspace(-90, 90, 500_001)]).astype(np.float32)
    got, wide = on_lanes(name, x), x.astype(np.float64)
    with np.errstate(over="ignore"):
        e = np.exp(wide)
        want = e if name == "exp" else np.where(wide > 40, wide, np.log1p(e))
        too_large = want.astype(np.float32) == np.inf
    np.testing.assert_array_equal(got[too_large], np.inf)
    units, off = units_off(got[~too_large], want[~too_large])
    below = want[~too_large] < 1.0001 * np.finfo(np.float32).tiny
    assert below.any()
    assert off[below].max() < 1.2e-38  # flushed to 0
    assert units[~below].max() < (2 if name == "exp" else 4)  # on a GPU 2 more


@pytest.mark.parametrize("name", ["exp", "softplus"])
def test_the_gpu_s_functions_at_the_ends(name):
    inf, largest, tiny = np.inf, np.finfo(np.float32).max, np.finfo(np.float32).tiny / 4
    x = np.array([np.nan, inf, largest, 88.8, 0, -0.0, tiny, -tiny, -largest, -inf], np.float32)
    half = np.log(np.float32(2))
    want = {
        "exp": [np.nan, inf, inf, inf, 1, 1, 1, 1, 0, 0],
        "softplus": [np.nan, inf, largest, np.float32(88.8), half, half, half, half, 0, 0],
    }[name]
    np.testing.assert_array_max_ulp(on_lanes(name, x)[:-2], np.array(want, np.float32)[:-2], 1)
    np.testing.assert_array_equal(on_lanes(name, x)[-2:], 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cell_may_call_every_function(dtype):
    problem = random_problem(CALLING_ALL, 3, 4, 5, 13, dtype)
    assert worst_error(Emulated(), problem) < LIMITS[np.dtype(dtype).name]
    if dtype == np.float32:
        cut = (8, 16, 1, 2, 1)
        assert worst_error(Emulated(cut), problem) < LIMITS["float32"]


# ---- products over all steps


@pytest.mark.parametrize(("m", "k", "n"), [(50, 12, 8), (12, 50, 8), (31, 7, 9), (7, 31, 5)])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True)])
def test_three_rough_products_are_as_good_as_an_exact_one(m, k, n, turned, monkeypatch):
    monkeypatch.setattr(gemm_3xtf32, "MIN_FLOPS", 0)
    monkeypatch.setattr(gemm_3xtf32, "_BLOCK", 100)  # several blocks of rows
    monkeypatch.setattr(gemm_3xtf32, "_LONGEST", 20)  # and of the contraction
    random = np.random.default_rng(0)
    wide = [random.standard_normal((rows, columns + 4)) for rows, columns in ((m, k), (k, n))]
    whole = [(x.T if turn else x).astype(np.float32) for x, turn in zip(wide, turned, strict=True)]
    a, b = (x[:size].T if turn else x[:, :size]
            for x, turn, size in zip(whole, turned, (k, n), strict=True))  # fmt: skip
    gpu = EmulatedGpu(SMALL)
    got, want = gemm_3xtf32.product(gpu, a, b), a.astype(np.float64) @ b.astype(np.float64)
    assert got.dtype == np.float32
    assert relative_error(got, want) < 1e-6
    with gpu.products("tf32"):
        assert relative_error(gpu.xp.matmul(a, b), want) > 1e-4
    assert gpu.xp.precision == "float32"
    assert len(gpu.launched) > 2


# ---- training

RULES = [SGD, Momentum, AdaGrad, RMSProp, Adam, AdamW]
# of averages and of accumulated gradients: each has an array, a gradient, and so many numbers
MORE_RULES = {averages._towards: (0.3,), accumulation._add: (), accumulation._take: ()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_optimiser_s_rule_runs_in_one_kernel(kind, size, dtype):
    random, engine = np.random.default_rng(0), Emulated()
    optimiser = kind()
    numbers = (optimiser.update([np.ones(1)], [np.ones(1)]), optimiser._numbers())[1]
    arrays = [random.random(size).astype(dtype) for _ in range(1 + len(kind.slots))]
    gradient = random.standard_normal(size).astype(dtype)
    want = [array.copy() for array in arrays]
    NumpyEngine().update(kind.rule, want, gradient, numbers)
    engine.update(kind.rule, arrays, gradient, numbers)
    assert len(engine.gpu.launched) == 1
    for got, expected in zip(arrays, want, strict=True):
        assert got.dtype == dtype
        assert relative_error(got, expected) < LIMITS[np.dtype(dtype).name]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", MORE_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("factor", [1.0, 0.37])
def test_averages_and_sums_run_in_one_kernel(rule, factor, dtype):
    random, engine = np.random.default_rng(0), Emulated()
    array, gradient = (random.standard_normal(7).astype(dtype) for _ in range(2))
    want = array.copy()
    NumpyEngine().update_all(rule, [[want, gradient]], MORE_RULES[rule], factor)
    engine.update_all(rule, [[array, gradient]], MORE_RULES[rule], factor)
    assert len(engine.gpu.launched) == 1
    assert relative_error(array, want) < LIMITS[np.dtype(dtype).name]


@pytest.mark.parametrize("width", [1, 6, 8])
@pytest.mark.parametrize("count", [40, 600])
def test_rows_that_come_again_are_added_up_in_order(width, count):
    random, engine = np.random.default_rng(0), Emulated()
    engine.gpu.change = lambda kernel: replace(kernel, threads=8)  # more have nothing to do
    rows = np.minimum(random.integers(0, 9, count), 4)  # 4 comes often
    values = random.standard_normal((count, width)).astype(np.float32)
    first = random.standard_normal((6, width)).astype(np.float32)
    results = []
    for _ in range(3):
        out = first.copy()
        engine.add_rows(out, rows, values)
        results.append(out)
    want = first.astype(np.float64)
    np.add.at(want, rows, values)
    for out in results:  # bit for bit, whatever the order of the threads
        np.testing.assert_array_equal(out, results[0])
        assert relative_error(out, want) < 5e-7


# ---- faults that the emulator must find


def broken(right, wrong):
    """A change of every kernel that has ``right`` in its text."""

    def change(kernel):
        lines = [line.replace(right, wrong) for line in kernel.lines]
        return replace(kernel, lines=[line for line in lines if "REMOVED" not in line])

    return change


def finds_a_fault(engine, problem):
    try:
        error = worst_error(engine, problem)
    except EmulationError:
        return True
    return not error < 1e-3  # nor where it is NaN


@CELLS
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("if j_0 >= H", "if j_0 > H"), ("j_0 = (", "j_0 = 1 + ("), ("blockIdx.x", "blockIdx.y")],
)
def test_the_emulator_finds_faults_in_gate_kernels(name, right, wrong):
    problem = random_problem(name, 3, 2, 4, 9, np.float32)
    assert finds_a_fault(Emulated(change=broken(right, wrong)), problem)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("while load_acquire(counters, group * 32) <", "while 0 >", id="no meeting"),
        pytest.param("* step:", "* (step - 1):", id="meeting a step late"),
        pytest.param("red_release(counters, group * 32)", "pass", id="no arrival"),
        pytest.param("        cuda.syncthreads()", "REMOVED", id="no block barrier at all"),
        pytest.param("(step % 2)", "((step + 1) % 2)", id="the wrong half"),
        pytest.param("(step + 1) % 2", "0", id="one half for all"),
        pytest.param("if inside_0", "if True", id="no guard"),
        pytest.param("load4_volatile", "load4", id="stale reads"),
        pytest.param("+ 2 * q", "+ 2 * q + 1", id="the wrong column"),
        pytest.param("first + row_0", "first + row_0 + 1", id="the wrong row"),
        pytest.param("lane // 4, lane % 4", "lane % 8, lane // 8", id="fragments of other lanes"),
    ],
)
def test_the_emulator_finds_faults_in_persistent_kernels(right, wrong):
    problem = random_problem("lstm", 5, 4, 4, 13, np.float32)
    cut = 8, 16, 1, 2, 1
    assert not finds_a_fault(Emulated(cut), problem)
    assert any(
        finds_a_fault(Emulated(cut, seed=100 * n, change=broken(right, wrong)), problem)
        for n in range(4)
    )


LONE, BLOCKS, TILES = (16, 16, 2, 1, 2), (8, 16, 1, 2, 1), (8, 16, 1, 2, 2)  # cuts
BARRIERS = {  # where they are in the text: how many lines of it stand before
    "after the wait": 0,
    "between product and gates": -2,
    "between gates and the next product": -1,
}


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.parametrize("cut", [LONE, BLOCKS, TILES], ids=["lone", "blocks", "tiles"])
def test_the_emulator_misses_no_single_barrier(cut, barrier):
    if cut == LONE and barrier == "after the wait":
        barrier = "between product and gates"  # it waits for nobody

    def change(kernel):
        indented = [
            k for k, line in enumerate(kernel.lines) if line.endswith("    cuda.syncthreads()")
        ]
        gone = indented[BARRIERS[barrier]]
        return replace(kernel, lines=[line for k, line in enumerate(kernel.lines) if k != gone])

    problem = random_problem("lstm", 20, 3, 4, 13, np.float32)
    assert not finds_a_fault(Emulated(cut), problem)
    assert any(finds_a_fault(Emulated(cut, seed=50 * n, change=change), problem) for n in range(4))


# ---- waiting for ever


def test_a_debug_build_says_which_block_waited_at_which_step():
    """One block of three never arrives; the others count the arrivals that there were."""
    engine = Emulated(
        (8, 16, 1, 1, 1), change=broken("if thread == 0 and", "if block != 1 == thread + 1 and")
    )
    engine.polls, engine.report = 40, np.zeros(4 * 3, np.uint32)
    with pytest.raises(EmulationError, match=r"before its arrival is seen|read stale"):
        outcome(engine, random_problem("lstm", 5, 4, 4, 21, np.float32))
    waited = engine.report.reshape(3, 4)
    step, seen, wanted, _ = waited[waited[:, 2] > 0].T
    assert set(step) == {2}  # the second: the first one waits for nobody
    assert set(seen) == {2}
    assert set(wanted) == {3}


def test_a_debug_build_computes_the_same(monkeypatch):
    engine = Emulated((8, 16, 1, 2, 2))
    engine.polls, engine.report = 1 << 20, np.zeros(4 * 6, np.uint32)
    assert worst_error(engine, random_problem("lstm", 20, 3, 4, 13, np.float32)) < LIMITS["float32"]
    assert not engine.report.any()


def test_a_gpu_without_cooperative_launches_runs_blocks_that_need_not_meet():
    alone = replace(H200, cooperative=False)
    for H, single in ((8, True), (256, False)):
        plan, why = tiling.plan(cells.get("lstm"), 16, H, True, "float32", alone)
        assert (plan is not None) == single, why
        assert single or "blocks cannot wait for each other" in why
        assert tiling.plan(cells.get("lstm"), 16, H, True, "float32", H200)[0] is not None


def test_the_gpu_is_asked_about_the_kernel_that_is_launched():
    """One with options may need more registers than the plain one."""
    engine, asked = Emulated(), []
    engine.gpu.fits = lambda kernel, blocks: bool(asked.append(kernel))
    given = cells.get("lstm"), 16, 100, 256, np.float32
    engine.gpu.device = H200
    for features in (frozenset(), frozenset({"mask"})):
        plan, why = CudaEngine.plan(engine, *given, features=features)
        assert plan is None
        assert "cannot hold all thread blocks" in why
    assert ["mask" in kernel.takes for kernel in asked] == [False, True]


def test_arrays_that_start_anywhere_take_narrow_kernels():
    problem, engine = random_problem("lstm", 3, 4, 5, 8, np.float32), Emulated()
    mask = np.zeros(3 * 8 + 1, np.float32)[1:].reshape(3, 8)
    assert mask.ctypes.data % 16
    mask[:] = np.random.default_rng(0).uniform(0, 2, mask.shape)
    steps = StepOptions(recurrent_mask=mask)
    want = outcome_with(NumpyEngine(), problem, steps)
    assert disagreements(outcome_with(engine, problem, steps), want, LIMITS["float32"]) == {}
    assert {"lstm_forward_gates_1", "lstm_backward_gates_1"} <= {*engine.gpu.launched}


# ---- plans


@pytest.mark.parametrize("device", [H200, A100], ids=["H200", "A100"])
@pytest.mark.parametrize("precision", tiling.PRECISIONS)
def test_plans_fit_the_device_and_cover_the_work(device, precision):
    random, found = np.random.default_rng(0), 0
    for _ in range(60):
        N, H = int(random.integers(1, 400)), int(random.integers(1, 1300))
        cell = cells.get(str(random.choice(ONE_PRODUCT)))
        for forward in (True, False):
            plan, why = tiling.plan(cell, N, H, forward, precision, device)
            assert why
            if plan is None:
                continue
            found += 1
            c = plan.tiling
            assert c.blocks * plan.groups <= device.multiprocessors
            assert c.shared(plan.tiles) <= device.shared
            assert c.units * c.blocks >= H
            assert c.rows * plan.tiles * plan.groups >= N > c.rows * plan.tiles * (plan.groups - 1)
            assert 16 * c.chunks >= H * (1 if forward else c.gates)
            assert c.chunks % c.split_k == 0
            assert c.columns % (8 * c.split_n) == 0
    assert found > 40


def test_a_plan_says_why_there_is_none():
    for name, N, H, why in (
        ("gru", 1, 8, "two products"),
        ("lstm", 8, 4000, "do not fit"),
        ("rnn_layer_norm", 8, 64, "normalises over all units"),
    ):
        plan, reason = tiling.plan(cells.get(name), N, H, True, "float32", H200)
        assert plan is None
        assert why in reason


# ---- compiled, without a GPU

KERNELS = [(name, kernel) for name in REPRESENTATIVES for kernel in gates.names(cells.get(name))]
needs_compiler = pytest.mark.skipif(sys.platform != "linux", reason="needs CUDA's compiler")


def compiled(kernel, dtype, capability):
    """PTX, after the checks that every kernel has to pass."""
    text = build.ptx(kernel, dtype, capability)
    head = text[text.index(".entry") :]
    assert head[: head.index(")\n")].count(".param") == len(kernel.takes)
    assert ".local" not in text
    if dtype == np.float32:
        assert ".f64" not in text
    if build.NVIDIA:
        _, log = build.link(text, capability)
        assert "0 bytes spill stores, 0 bytes spill loads" in log
        assert int(re.search(r"Used (\d+) registers", log)[1]) * kernel.threads <= 65536
    return text


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "capability"), [(np.float32, (8, 0)), (np.float32, (9, 0)), (np.float64, (9, 0))]
)
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_every_gate_kernel_compiles(name, kernel, dtype, capability):
    wide = 16 // np.dtype(dtype).itemsize
    for count in (1, wide) if capability == (9, 0) else (wide,):
        text = compiled(gates.kernel(cells.get(name), kernel, count, 128), dtype, capability)
        loads = re.findall(r"ld\.global\S*", text)
        assert loads
        if count == wide:
            assert all(".v" in load for load in loads)


NORMALISING = [
    (name, late, backward)
    for name in REPRESENTATIVES
    for late, places in enumerate(
        (layout(cells.get(name)).normalised_early, layout(cells.get(name)).normalised_late)
    )
    for backward in (False, True)
    if places
]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "capability"), [(np.float32, (8, 0)), (np.float32, (9, 0)), (np.float64, (9, 0))]
)
@pytest.mark.parametrize(("name", "late", "backward"), NORMALISING)
def test_every_normalising_kernel_compiles(name, late, backward, dtype, capability):
    kernel = layer_norm.kernel(cells.get(name), bool(late), backward, 128)
    text = compiled(kernel, dtype, capability)
    assert kernel.shared == 128 * 8
    assert text.count("bar.sync") >= 16  # two sums at least, of 128 threads: 7 halves and 1 each
    assert ".extern .shared" in text


@pytest.mark.parametrize("name", ["gru_layer_norm", "lstm_layer_norm"])
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("while j < H", "while j < H - 1", id="a unit left out"),
        pytest.param("- mean - off", "- off", id="no mean"),
        pytest.param("load(memory, i + 4)", "load(memory, i)", id="half a sum"),
        pytest.param("store(factor, factors, k)", "store(factor, factors, 0)", id="another row"),
        pytest.param(" * along", " * mean", id="the wrong mean"),
    ],
)
def test_the_emulator_finds_faults_in_normalising_kernels(name, right, wrong):
    problem = random_problem(name, 3, 2, 4, 9, np.float32)
    assert not finds_a_fault(Emulated(), problem)
    assert finds_a_fault(Emulated(change=broken(right, wrong)), problem)


def test_the_barriers_of_a_sum_are_needed():
    """Two warps, which the emulator lets run in any order."""
    wide = replace(SMALL, threads=64)

    def engine(seed, change=lambda kernel: kernel):
        made = Emulated(seed=seed, change=change)
        made.gpu.device = wide
        return made

    problem = random_problem("rnn_layer_norm", 1, 2, 2, 50, np.float32)
    assert not finds_a_fault(engine(0), problem)
    without = broken("cuda.syncthreads()", "pass")
    assert any(finds_a_fault(engine(100 * n, without), problem) for n in range(4))


EVERYTHING = frozenset({*VALUE_KINDS, "recurrent_mask", "trace"}) - {"zoneout_rates"}


@needs_compiler
@pytest.mark.parametrize("form", [EVERYTHING, EVERYTHING - {"zoneout"} | {"zoneout_rates"}])
@pytest.mark.parametrize("name", ["gru", "lstm", "lstm_layer_norm"])
def test_kernels_of_particular_steps_compile(name, form):
    cell = cells.get(name)
    for kernel in gates.names(cell):
        compiled(gates.kernel(cell, kernel, 4, 128, form), np.float32, (9, 0))
    plan, _ = tiling.plan(cell, 32, 128, True, "float32", H200)
    if plan is not None:
        kernel = persistent.kernel(cell, plan.tiling, plan.tiles, form)
        compiled(kernel, np.float32, (9, 0))


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, "wide"])
def test_every_function_compiles(count, dtype):
    count = 16 // np.dtype(dtype).itemsize if count == "wide" else 1
    for kernel in ("forward_gates", "backward_gates"):
        text = compiled(gates.kernel(CALLING_ALL, kernel, count, 128), dtype, (8, 0))
        assert "ex2.approx.ftz.f32" in text or dtype == np.float64
        if kernel == "forward_gates":  # max alone would lose a NaN
            assert re.search(r"setp\.nan|max\.NaN", text)


@needs_compiler
@pytest.mark.parametrize("name", ["lstm", "gru_reset_after", "rnn"])
@pytest.mark.parametrize(
    ("precision", "N", "H", "device", "capability"),
    [
        ("float32", 20, 650, H200, (9, 0)),
        ("tf32", 20, 650, H200, (9, 0)),
        ("bfloat16", 20, 650, H200, (9, 0)),
        ("float32", 64, 1024, H200, (9, 0)),
        ("float32", 100, 32, A100, (8, 0)),
    ],
)
def test_every_persistent_kernel_compiles(name, precision, N, H, device, capability):
    for forward in (True, False):
        plan, why = tiling.plan(cells.get(name), N, H, forward, precision, device)
        if plan is None:  # only this is too much
            assert (name, H, forward) == ("lstm", 1024, False), why
            continue
        kernel = persistent.kernel(cells.get(name), plan.tiling, plan.tiles)
        text = compiled(kernel, np.float32, capability)
        assert kernel.shared <= device.shared
        kind = (
            "m16n8k16.row.col.f32.bf16" if precision == "bfloat16" else "m16n8k8.row.col.f32.tf32"
        )
        assert f"mma.sync.aligned.{kind}" in text
        assert "ld.shared.v" in text  # the weights
        if not plan.tiling.single_block:
            assert "ld.global.v4.f32" in text  # the exchange
            assert "ld.acquire.gpu" in text
            assert "red.release.gpu" in text


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, "wide"])
def test_the_kernels_of_training_compile(count, dtype):
    count = 16 // np.dtype(dtype).itemsize if count == "wide" else 1
    for kind in RULES:
        optimiser = kind()
        optimiser.updates = 1
        numbers = len(optimiser._numbers())
        compiled(
            training_kernels.rule_kernel(kind.rule, 1 + len(kind.slots), numbers, count),
            dtype,
            (9, 0),
        )
    for rule, given in MORE_RULES.items():
        compiled(training_kernels.rule_kernel(rule, 1, len(given), count), dtype, (9, 0))
    compiled(training_kernels.add_rows_kernel(count), dtype, (9, 0))
    if count == 1:
        compiled(training_kernels.dropout_kernel(), dtype, (9, 0))
    if dtype == np.float32:
        for order in ("large, small, large", "small, large, large"):
            text = compiled(gemm_3xtf32._kernel(order, count), dtype, (9, 0))
            assert ("st.global.v4.f32" in text) == (count == 4)


@needs_compiler
def test_a_debug_build_compiles():
    cell = cells.get("lstm")
    for forward in (True, False):
        plan, _ = tiling.plan(cell, 32, 256, forward, "float32", H200)
        kernel = persistent.kernel(cell, plan.tiling, plan.tiles, polls=1 << 21)
        assert compiled(kernel, np.float32, (9, 0)).count("st.global.u32") >= 3
        production = persistent.kernel(cell, plan.tiling, plan.tiles)
        assert "report" not in production.takes


@needs_compiler
def test_what_nvjitlink_does_not_link_the_toolkit_s_ptxas_does(tmp_path, monkeypatch):
    kernel = gates.kernel(cells.get("rnn"), "forward_gates", 4, 128)
    text = build.ptx(kernel, np.float32, (9, 0))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    if shutil.which("ptxas"):
        code, log = build.link(text, (9, 0))
        assert code[:4] == b"\x7fELF"
        assert "0 bytes spill stores" in log
    # nor is that there: the driver gets PTX, which is kept, too
    monkeypatch.setattr(build.shutil, "which", lambda *args, **options: None)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="rnn_forward_gates_4 was not assembled"):
        made = build.binary(kernel, np.float32, (9, 0))
    assert made.entry == build.entry_of(made.code.decode())
    with mock.patch.object(build, "ptx", side_effect=AssertionError("compiled again")):
        assert build.binary(kernel, np.float32, (9, 0)) == made


@needs_compiler
def test_compiled_kernels_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    kernel = gates.kernel(cells.get("rnn"), "forward_gates", 4, 128)
    made = build.binary(kernel, np.float32, (9, 0))
    with mock.patch.object(build, "ptx", side_effect=AssertionError("compiled again")):
        assert build.binary(kernel, np.float32, (9, 0)) == made
        with pytest.raises(AssertionError, match="compiled again"):
            build.binary(kernel, np.float32, (8, 0))
        with pytest.raises(AssertionError, match="compiled again"):
            build.binary(replace(kernel, threads=64), np.float32, (9, 0))
    assert made.entry.encode() in made.code


@needs_compiler
def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    kernel = gates.kernel(cells.get("rnn"), "forward_gates", 1, 128)
    assert build.binary(kernel, np.float64, (8, 0)).code


# ---- banks of shared memory


def wavefronts(places, width):
    """How often shared memory is accessed for a warp's numbers, ``width`` to a lane."""
    found = 0
    for start in range(0, 32, 32 // width):
        banks = {}
        for place in places[start : start + 32 // width]:
            for word in range(place, place + width):
                banks.setdefault(word % 32, set()).add(word)
        found += max(map(len, banks.values()))
    return found


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("gates_", [1, 3, 4])
@pytest.mark.parametrize("units", [8, 16, 32, 64])
def test_partial_sums_are_written_without_conflicts(units, gates_, forward):
    c = tiling.Tiling(1024, gates_, forward, units, 16, 8, 1, "float32")
    lanes, step = range(32), c.part_stride
    assert c.partials == 8 * 16 * step
    written = [(lane // 4) * step + 2 * (lane % 4) for lane in lanes]
    assert all(place % 2 == 0 for place in written)
    assert wavefronts(written, 2) == 2  # 64 numbers: no way is shorter
    read = [(lane // units) * step + lane % units for lane in lanes]
    assert wavefronts(read, 1) == (2 if units == 16 else 1)
