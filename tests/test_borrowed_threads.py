"""Passes on the threads of torch's OpenMP runtime: the same numbers, and nobody left waiting."""

import os
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch

from helpers import outcome, random_problem, run_python
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import passes, threads
from numba_rnn.torch import LSTM, running


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def engine(two_threads):
    with use_backend("numba", strict=True) as engine:
        yield engine


def shared(shards: int, by_rows: bool = True):
    return mock.patch.object(passes, "sharing", return_value=(shards, by_rows))


def no_thread_of_ours():
    return mock.patch.object(threads.team, "_call", side_effect=AssertionError)


def test_the_runtime_of_this_torch_is_found():
    assert running._openmp()


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("shards", [2, 3])  # 3: one is claimed by whoever has finished his own
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_borrowed_threads_compute_the_same(engine, cell, shards, by_rows):
    p = random_problem(cell, 30, 40, 33, 50, np.float32)
    with shared(1):
        want = outcome(engine, p)
    with shared(shards, by_rows), no_thread_of_ours(), engine.borrowing(running._openmp(), 2):
        for _ in range(20):
            np.testing.assert_equal(outcome(engine, p), want)


def test_both_threads_come(engine):
    p = random_problem("lstm", 64, 200, 64, 64, np.float32)
    with shared(2), no_thread_of_ours(), engine.borrowing(running._openmp(), 2):
        outcome(engine, p)
    assert threads.team._memory[threads.BORROWED // 8] == 2


def test_several_python_threads_borrow(engine):
    problems = [
        random_problem("gru_reset_after", 8, 30, 9, 40, np.float32, rng=k) for k in range(6)
    ]
    with shared(1):
        wanted = [outcome(engine, p) for p in problems]

    def run(p):
        with engine.borrowing(running._openmp(), 2):
            return outcome(engine, p)

    with shared(2), ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(run, problems), wanted, strict=True):
                np.testing.assert_equal(got, want)


def test_outside_of_the_block_our_own_threads_work(engine):
    p = random_problem("lstm", 30, 40, 33, 50, np.float32)
    with engine.borrowing(running._openmp(), 2):
        pass
    with shared(2), mock.patch.object(threads.team, "_call_borrowed", side_effect=AssertionError):
        outcome(engine, p)
        with engine.borrowing(running._openmp(), 1):  # nothing to borrow
            outcome(engine, p)


def test_modules_borrow_where_torch_has_threads(engine):
    module, xs = LSTM(40, 50), torch.randn(30, 40, 40)
    with shared(2), no_thread_of_ours():
        module(xs)[0].sum().backward()
    torch.set_num_threads(1)
    with shared(2), mock.patch.object(threads.team, "_call_borrowed", side_effect=AssertionError):
        module(xs)[0].sum().backward()


IN_A_CHILD = """
import os, sys, warnings
import numpy as np
from unittest import mock
import torch
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import passes
from numba_rnn.torch import LSTM

warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
torch.manual_seed(0)
torch.set_num_threads(2)
module, xs = LSTM(9, 40), torch.randn(20, 8, 9)

def compute():
    with (mock.patch.object(passes, "sharing", return_value=(2, False)),
          use_backend("numba", strict=True), torch.no_grad()):
        return module(xs)[0].numpy()

want = compute()
child = os.fork()
if not child:
    os._exit(0 if np.array_equal(compute(), want) else 1)
assert os.waitpid(child, 0)[1] == 0
np.testing.assert_equal(compute(), want)
print("the same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_fork_nothing_is_borrowed():
    """An OpenMP runtime's threads are gone in a child, and it would wait for them."""
    assert run_python(IN_A_CHILD).stdout == "the same\n"
