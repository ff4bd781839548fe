"""The compiler's code of kernels, run by an interpreter of PTX, against the specification."""

import re
import sys

import numpy as np
import pytest
from ptx_interpreter import PtxError, PtxGpu, cut_off

from cuda_emulator import EmulatedGpu
from helpers import outcome, random_problem, relative_error
from numba_rnn import cells
from numba_rnn.kernels.cuda import tiling
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.cuda.kernel import DeviceLimits
from numba_rnn.kernels.layout import layout
from numba_rnn.kernels.reference import NumpyEngine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs CUDA's compiler")
SMALL = DeviceLimits(multiprocessors=6, shared=40_000, threads=32)
LIMITS = {"float32": 2e-6, "tf32": 2e-3, "bfloat16": 2e-2}


class Interpreted(CudaEngine):
    """The engine; ``cut`` says how persistent kernels are cut, None: step by step."""

    def __init__(self, cut=None, precision="float32", **options):
        super().__init__(PtxGpu(SMALL, **options), precision)
        self.cut = cut

    def plan(self, cell, N, T, H, dtype, forward=True, features=frozenset()):
        if self.cut is None:
            return None, "asked for"
        units, rows, split_k, split_n, tiles = self.cut
        made = tiling.Tiling(
            H, layout(cell).early, forward, units, rows, split_k * (1 if forward else split_n),
            split_n if forward else 1, self.precision,
        )  # fmt: skip
        return tiling.LaunchPlan(made, tiles, -(-N // (rows * tiles)), 0.0, 1e9), "asked for"


def worst_error(engine, problem):
    want, got = outcome(NumpyEngine(), problem), outcome(engine, problem)
    return max(relative_error(got[key], want[key]) for key in want)


# units, rows, split_k, split_n, tiles; N, T, D, H
BLOCKS = (8, 16, 1, 2, 1), (5, 3, 4, 13)
LONE = (8, 16, 1, 1, 1), (3, 2, 4, 8)


@pytest.mark.parametrize(
    ("name", "precision", "cut", "sizes"),
    [
        pytest.param("lstm", "float32", *BLOCKS, id="two blocks"),
        pytest.param("lstm", "float32", *LONE, id="a lone block"),
        pytest.param("rnn", "float32", (8, 16, 1, 1, 2), (35, 2, 3, 12), id="tiles"),
        pytest.param("gru_reset_after", "tf32", *BLOCKS, id="tf32"),
        pytest.param("lstm", "bfloat16", *BLOCKS, id="bfloat16"),
    ],
)
def test_persistent_kernels_as_they_were_compiled(name, precision, cut, sizes):
    if layout(cells.get(name)).early * cut[0] % (8 * cut[3]):
        cut = (*cut[:3], 1, cut[4])
    engine = Interpreted(cut, precision)
    assert worst_error(engine, random_problem(name, *sizes, np.float32)) < LIMITS[precision]
    assert any("persistent_forward" in kernel for kernel in engine.gpu.launched)
    assert any("persistent_backward" in kernel for kernel in engine.gpu.launched)


@pytest.mark.parametrize("name", ["lstm", "gru", "slstm", "rnn_layer_norm", "sru"])
@pytest.mark.parametrize("H", [8, 5])
def test_gate_kernels_as_they_were_compiled(name, H):
    engine = Interpreted()
    assert worst_error(engine, random_problem(name, 3, 2, 4, H, np.float32)) < LIMITS["float32"]
    assert not any("persistent" in kernel for kernel in engine.gpu.launched)


def without_barrier(n):
    """A PTX without its n-th barrier of a block."""

    def edit(text):
        places = [match.span() for match in re.finditer(r"bar\.sync\s+0;", text)]
        if n >= len(places):
            return text
        start, end = places[n]
        return text[:start] + text[end:]

    return edit


def swapped(pattern, order):
    return lambda text: re.sub(pattern, order, text)


A = r"(mma\.sync\S+ \{[^}]*\}, \{)(%r\d+),(%r\d+),(%r\d+),(%r\d+)\}"
B = r"(mma\.sync\S+ \{[^}]*\}, \{[^}]*\}, \{)(%r\d+),(%r\d+)\}"
FAULTS = {
    "the look acquires nothing": lambda text: text.replace("ld.acquire.gpu", "ld.relaxed.gpu"),
    "the arrival releases nothing": lambda text: text.replace("red.release", "red.relaxed"),
    "no barrier after the wait": without_barrier(1),
    "none between product and gates": without_barrier(2),
    "none before the arrival": without_barrier(3),
    "the first factor's registers": swapped(A, r"\1\2,\4,\3,\5}"),
    "the second factor's registers": swapped(B, r"\1\3,\2}"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_interpreter_finds_faults_in_the_compiled_text(name):
    """The first two are beyond an emulator that shows every store at once."""
    cut, sizes = BLOCKS
    problem = random_problem("lstm", *sizes, np.float32)
    for seed in range(4):
        engine = Interpreted(cut, seed=100 * seed, edit=FAULTS[name])
        try:
            error = worst_error(engine, problem)
        except PtxError:
            return
        if not error < 1e-5:
            return
    raise AssertionError("not found")


def test_tensor_cores_cut_off():
    """Towards 0."""
    one, below = np.array(1.0), 2.0**-24
    assert cut_off(one + below * 0.99, one) == 1
    assert cut_off(-(one + 2.0**-23 * 1.99), one) == -(1 + np.float32(2.0**-23))
    assert cut_off(np.array(0.0), np.array(0.0)) == 0


@pytest.mark.parametrize("emulated", [True, False], ids=["emulated", "compiled"])
def test_dropout_draws_what_the_specification_draws(emulated):
    engine = CudaEngine(EmulatedGpu(SMALL) if emulated else PtxGpu(SMALL))
    for seed in (7, 2**64 - 5):
        given = seed, (2, 3, 5), 0.4, np.float32, 9
        want = NumpyEngine().dropout(*given)
        assert 0 < np.count_nonzero(want) < want.size
        np.testing.assert_array_equal(engine.dropout(*given), want)
