"""Passes on the threads of torch's OpenMP runtime: the same numbers, and nobody left waiting."""

import os
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch

from helpers import outcome, random_problem, run_python
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import launch, threads
from numba_rnn.torch import LSTM
from numba_rnn.torch import threads as torch_threads


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


def shared(shards: int, split_batch: bool = True):
    return mock.patch.object(launch, "choose_partition", return_value=(shards, split_batch))


def no_thread_of_ours():
    return mock.patch.object(threads.team, "_call", side_effect=AssertionError)


def test_the_runtime_of_this_torch_is_found():
    assert torch_threads._openmp()


@pytest.mark.parametrize("split_batch", [True, False])
@pytest.mark.parametrize("shards", [2, 3])  # 3: one is claimed by whoever has finished his own
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_borrowed_threads_compute_the_same(engine, cell, shards, split_batch):
    p = random_problem(cell, 30, 40, 33, 50, np.float32)
    with shared(1):
        want = outcome(engine, p)
    with (
        shared(shards, split_batch),
        no_thread_of_ours(),
        engine.using_openmp(torch_threads._openmp(), 2),
    ):
        for _ in range(20):
            np.testing.assert_equal(outcome(engine, p), want)


def test_both_threads_come(engine):
    p = random_problem("lstm", 64, 200, 64, 64, np.float32)
    with shared(2), no_thread_of_ours(), engine.using_openmp(torch_threads._openmp(), 2):
        outcome(engine, p)
    assert threads.team._memory[threads.BORROWED // 8] == 2


def test_several_python_threads_borrow(engine):
    problems = [
        random_problem("gru_reset_after", 8, 30, 9, 40, np.float32, rng=k) for k in range(6)
    ]
    with shared(1):
        wanted = [outcome(engine, p) for p in problems]

    def run(p):
        with engine.using_openmp(torch_threads._openmp(), 2):
            return outcome(engine, p)

    with shared(2), ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(run, problems), wanted, strict=True):
                np.testing.assert_equal(got, want)


def test_outside_of_the_block_our_own_threads_work(engine):
    p = random_problem("lstm", 30, 40, 33, 50, np.float32)
    with engine.using_openmp(torch_threads._openmp(), 2):
        pass
    with shared(2), mock.patch.object(threads.team, "_call_borrowed", side_effect=AssertionError):
        outcome(engine, p)
        with engine.using_openmp(torch_threads._openmp(), 1):  # nothing to borrow
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
from numba_rnn.kernels.cpu import launch
from numba_rnn.torch import LSTM
from numba_rnn.torch import threads as torch_threads

warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
torch.manual_seed(0)
torch.set_num_threads(2)
module, xs = LSTM(9, 40), torch.randn(20, 8, 9)

def compute():
    with (mock.patch.object(launch, "choose_partition", return_value=(2, False)),
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


def test_as_many_threads_work_as_torch_says(engine):
    module, xs = LSTM(40, 50), torch.randn(30, 40, 40)
    seen = []
    with mock.patch.object(launch.threads.team, "run", side_effect=lambda *a: seen.append(a[2])):
        for count in (2, 1):
            torch.set_num_threads(count)
            module(xs)
    assert seen == [2]  # alone a pass asks nobody for help


THE_SETTINGS_STAY = """
import os
import numpy as np
import numba
import sklearn.linear_model  # so that its libraries and SciPy's are there before
import torch
from threadpoolctl import threadpool_info, threadpool_limits

def settings():
    try:
        of_numba = numba.threading_layer(), numba.get_num_threads()
    except ValueError:
        of_numba = None
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    variables = {k: v for k, v in os.environ.items() if "THREADS" in k}
    return (torch.get_num_threads(), torch.get_num_interop_threads(), of_numba, pools, variables,
            numba.config.NUMBA_NUM_THREADS, np.geterr(), torch.get_default_dtype())

def same(name):
    assert settings() == before, (name, before, settings())

torch.set_num_threads(1)
threadpool_limits(2, user_api="blas")
before = settings()

import numba_rnn.torch
from numba_rnn import TimeLSTM, cell, explain, use_backend
from numba_rnn.bridges import from_torch, to_torch
from numba_rnn.functions import tanh
from numba_rnn.sklearn import RNNClassifier
same("import")
xs = np.random.default_rng(0).standard_normal((16, 20, 64)).astype(np.float32)

@cell
def own(a, h):
    return tanh(a)

def backward(module):
    module(torch.from_numpy(xs))[0].sum().backward()

def without_gradient(module):
    with torch.no_grad():
        module(torch.from_numpy(xs))

layer = TimeLSTM.create(64, 64, rng=0)
module = numba_rnn.torch.LSTM(64, 64, num_layers=2, bidirectional=True)
calls = {
    "explain": explain,
    "layer": lambda: layer.backward(layer.forward(xs)),
    "step": lambda: layer.stream().step(xs[0, 0]),
    "steps": lambda: layer.stream(16).step_many(xs),
    "module": lambda: backward(module),
    "no_grad": lambda: without_gradient(module),
    "Recurrent": lambda: backward(numba_rnn.torch.Recurrent("mgu", 64, 64)),
    "check": own.check,
    "fit": lambda: RNNClassifier(max_epochs=1, hidden_size=64).fit(xs, np.arange(16) % 2),
    "bridges": lambda: to_torch(from_torch(torch.nn.LSTM(3, 5))),
}
for name in ("numpy", "numba"):
    with use_backend(name, strict=True):
        for what, call in calls.items():
            call()
            same((name, what))
assert before[2] is None  # Numba's threads have not been started; now they are, and used by others
numba.set_num_threads(1)
torch.set_num_threads(2)
threadpool_limits(1, user_api="blas")
before = settings()
with use_backend("numba", strict=True):
    for what in ("explain", "layer", "module", "no_grad"):
        calls[what]()
        same(what)
    assert explain().threads == 1
print("the same")
"""


def test_the_callers_settings_stay():
    """Of torch, BLAS and Numba, after every call."""
    assert run_python(THE_SETTINGS_STAY, {"NUMBA_NUM_THREADS": "2"}).stdout == "the same\n"
