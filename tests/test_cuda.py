"""The CUDA engine where there is no GPU: its numbers in an emulator, its kernels compiled."""

import re
import sys
from unittest import mock

import numpy as np
import pytest

from cuda_emulator import EmulationError, launch
from helpers import DTYPES, outcome, random_problem, relative_error
from numba_rnn import cells
from numba_rnn.kernels.cuda import build, gates
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.reference import ReferenceEngine

CELLS = pytest.mark.parametrize("name", cells.names())
LIMITS = {np.float32: 1e-5, np.float64: 1e-12}
SIZES = [(1, 1, 1, 1), (3, 4, 5, 6), (2, 3, 1, 8), (1, 5, 7, 13), (4, 2, 3, 40)]  # N, T, D, H


class Poisoned:
    """NumPy, with uninitialised memory filled with NaN."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def empty(shape, dtype):
        return np.full(shape, np.nan, dtype)


@CELLS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_engine_computes_what_the_specification_says(name, dtype, sizes):
    problem = random_problem(name, *sizes, dtype)
    want = outcome(ReferenceEngine(), problem)
    got = outcome(CudaEngine(Poisoned(), launch), problem)
    assert got.keys() == want.keys()
    for key, array in got.items():
        assert array.dtype == want[key].dtype
        assert relative_error(array, want[key]) < LIMITS[dtype], key


@CELLS
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("if j >= H", "if j > H"), ("n * H + j,", "n * H + j + 1,"), ("blockIdx.y", "blockIdx.x")],
)
def test_the_emulator_finds_planted_faults(name, right, wrong):
    problem = random_problem(name, 3, 2, 4, 9, np.float32)
    want = outcome(ReferenceEngine(), problem)
    sources = {k: lambda cell, f=f: f(cell).replace(right, wrong) for k, f in gates.SOURCES.items()}
    gates.kernel.cache_clear()
    try:
        with mock.patch.object(gates, "SOURCES", sources):
            got = outcome(CudaEngine(Poisoned(), launch), problem)
        assert max(relative_error(got[k], want[k]) for k in want) > 1e-3
    except EmulationError:
        pass
    finally:
        gates.kernel.cache_clear()


KERNELS = [
    (name, kernel)
    for name in cells.names()
    for kernel in gates.SOURCES
    if "operand" not in kernel or cells.get(name).second
]


needs_compiler = pytest.mark.skipif(sys.platform != "linux", reason="needs CUDA's compiler")


@needs_compiler
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_every_kernel_compiles(name, kernel, dtype, capability):
    cell, wide = cells.get(name), 16 // np.dtype(dtype).itemsize
    for count in (1, wide):
        text = build.ptx(cell, kernel, count, dtype, capability)
        takes = build.signature(gates.kernel(cell, kernel, count), dtype)
        head = text[text.index(".entry") :]
        assert head[: head.index(")\n")].count(".param") == len(takes)
        if dtype == np.float32:
            assert ".f64" not in text
        loads = re.findall(r"ld\.global\S*", text)
        assert loads
        if count == wide:
            assert all(".v" in load for load in loads)
        assert ".local" not in text
        if build.NVIDIA:
            _, log = build.link(text, capability)
            assert "0 bytes spill stores, 0 bytes spill loads" in log
            assert int(re.search(r"Used (\d+) registers", log)[1]) <= 128


@needs_compiler
def test_compiled_kernels_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    wanted = cells.get("rnn"), "forward_gates", 4, np.float32, (9, 0)
    made = build.binary(*wanted)
    with mock.patch.object(build, "_compile", side_effect=AssertionError("compiled again")):
        assert build.binary(*wanted) == made
        with pytest.raises(AssertionError, match="compiled again"):
            build.binary(*wanted[:-1], (8, 0))
    assert made.entry.encode() in made.code


@needs_compiler
def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert build.binary(cells.get("rnn"), "forward_gates", 1, np.float64, (8, 0)).code
