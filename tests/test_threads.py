"""The numba engine's threads: the same numbers whoever computes them, and nobody left waiting."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numba
import numpy as np
import pytest

from helpers import outcome, random_problem, run_python
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import passes, threads


@pytest.fixture
def engine():
    with use_backend("numba", strict=True) as engine:
        yield engine


def alone():
    return mock.patch.object(passes, "sharing", return_value=(1, True))


def shared(shards: int, by_rows: bool):
    return mock.patch.object(passes, "sharing", return_value=(shards, by_rows))


def test_the_number_of_threads_is_what_numba_says(engine):
    large = (64, 100, 128, 128)
    before = numba.get_num_threads()
    try:
        for count in range(1, before + 1):
            numba.set_num_threads(count)
            assert threads.available() == count
            assert passes.sharing(random_problem("lstm", 1, 1, 1, 1).cell, *large)[0] == count
    finally:
        numba.set_num_threads(before)


def test_numba_num_threads_is_honoured():
    code = "from numba_rnn.kernels.cpu import threads; print(threads.available())"
    assert run_python(code, {"NUMBA_NUM_THREADS": "1"}).stdout == "1\n"


def test_small_passes_wake_nobody(engine):
    p = random_problem("lstm", 1, 8, 16, 16, np.float32)
    with mock.patch.object(threads.team, "_call", side_effect=AssertionError):
        outcome(engine, p)


@pytest.mark.parametrize("by_rows", [True, False])
def test_every_thread_takes_part(engine, by_rows):
    """The second thread really works: it is the one that the calling thread waits for."""
    p = random_problem("lstm", 40, 50, 64, 64, np.float32)
    with alone():
        want = outcome(engine, p)
    with shared(2, by_rows):
        np.testing.assert_equal(outcome(engine, p), want)
    assert threads.team.threads >= 1


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_thread_that_never_comes_is_not_waited_for(engine, cell, by_rows):
    p = random_problem(cell, 9, 40, 8, 70, np.float32)
    with alone():
        want = outcome(engine, p)
    with shared(3, by_rows), mock.patch.object(threads.team, "_call"):
        np.testing.assert_equal(outcome(engine, p), want)


@pytest.mark.parametrize("by_rows", [True, False])
def test_passes_from_several_python_threads(engine, by_rows):
    """One of them has the team, the others run alone; all are right."""
    problems = [
        random_problem("gru_reset_after", 8, 30, 9, 40, np.float32, rng=k) for k in range(8)
    ]
    with alone():
        wanted = [outcome(engine, p) for p in problems]
    with shared(2, by_rows), ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, want in zip(
                pool.map(lambda p: outcome(engine, p), problems), wanted, strict=True
            ):
                np.testing.assert_equal(got, want)


IN_A_CHILD = """
import multiprocessing
import sys
import warnings
import numpy as np
from unittest import mock
from helpers import outcome, random_problem
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import passes, threads

warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
p = random_problem("lstm", 8, 20, 8, 40, np.float32)

def compute(_=None):
    with (mock.patch.object(passes, "sharing", return_value=(2, False)),
          use_backend("numba", strict=True) as engine):
        return outcome(engine, p), threads.team.threads

if __name__ == "__main__":
    want, started = compute()
    assert started == 1
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        for got, started in pool.map(compute, range(4)):
            np.testing.assert_equal(got, want)
            assert started == 1
    np.testing.assert_equal(compute()[0], want)
    print("the same")
"""


@pytest.mark.parametrize("start", ["spawn", pytest.param("fork", marks=pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs fork"))])  # fmt: skip
def test_after_fork_and_spawn(start, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(IN_A_CHILD)
    done = subprocess.run(
        [sys.executable, str(program), start],
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "the same\n", done.stderr


# ---- small numbers


def test_denormals_are_flushed_inside_and_nowhere_else(engine):
    """A gradient that dies out does so at once; the caller's arithmetic is as it was."""
    tiny = np.float32(1e-39)
    p = random_problem("rnn", 1, 1, 1, 1, np.float32)
    p.params[0][...], p.params[2][...], p.state[0][...] = 1, 0, 0
    for sharing in (alone(), shared(2, True), shared(2, False)):
        with sharing:
            hs, _, saved = engine.forward(p.cell, np.full((1, 1, 1), tiny), p.state, p.params)
            dxs = engine.backward(p.cell, np.full((1, 1, 1), tiny), p.state, saved)[0]
        assert hs.item() == dxs.item() == 0
        assert tiny * np.float32(0.5) != 0
