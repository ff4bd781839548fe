"""The numba engine's threads: the same numbers whoever computes them, and nobody left waiting."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numba
import numpy as np
import pytest

from helpers import outcome, random_problem, run_python
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import launch, plans, threads
from numba_rnn.kernels.once import cached_property, once


@pytest.fixture
def engine():
    with use_backend("numba", strict=True) as engine:
        yield engine


def alone():
    return mock.patch.object(launch, "choose_partition", return_value=(1, True))


def shared(shards: int, split_batch: bool):
    return mock.patch.object(launch, "choose_partition", return_value=(shards, split_batch))


def test_the_number_of_threads_is_what_numba_says(engine):
    large = (64, 100, 128, 128)
    before = numba.get_num_threads()
    try:
        for count in range(1, before + 1):
            numba.set_num_threads(count)
            assert threads.available() == count
            assert (
                launch.choose_partition(random_problem("lstm", 1, 1, 1, 1).cell, *large)[0] == count
            )
    finally:
        numba.set_num_threads(before)


def test_numba_num_threads_is_honoured():
    code = "from numba_rnn.kernels.cpu import threads; print(threads.available())"
    assert run_python(code, {"NUMBA_NUM_THREADS": "1"}).stdout == "1\n"


def test_small_passes_wake_nobody(engine):
    p = random_problem("lstm", 1, 8, 16, 16, np.float32)
    with mock.patch.object(threads.team, "_call", side_effect=AssertionError):
        outcome(engine, p)


@pytest.mark.parametrize("split_batch", [True, False])
def test_every_thread_takes_part(engine, split_batch):
    """The second thread really works: it is the one that the calling thread waits for."""
    p = random_problem("lstm", 40, 50, 64, 64, np.float32)
    with alone():
        want = outcome(engine, p)
    with shared(2, split_batch):
        np.testing.assert_equal(outcome(engine, p), want)
    assert threads.team.threads >= 1


@pytest.mark.parametrize("split_batch", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_thread_that_never_comes_is_not_waited_for(engine, cell, split_batch):
    p = random_problem(cell, 9, 40, 8, 70, np.float32)
    with alone():
        want = outcome(engine, p)
    with shared(3, split_batch), mock.patch.object(threads.team, "_call"):
        np.testing.assert_equal(outcome(engine, p), want)


@pytest.mark.parametrize("split_batch", [True, False])
def test_passes_from_several_python_threads(engine, split_batch):
    """One of them has the team, the others run alone; all are right."""
    problems = [
        random_problem("gru_reset_after", 8, 30, 9, 40, np.float32, rng=k) for k in range(8)
    ]
    with alone():
        wanted = [outcome(engine, p) for p in problems]
    with shared(2, split_batch), ThreadPoolExecutor(8) as pool:
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
from numba_rnn.kernels.cpu import launch, threads

warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
p = random_problem("lstm", 8, 20, 8, 40, np.float32)

def compute(_=None):
    with (mock.patch.object(launch, "choose_partition", return_value=(2, False)),
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
    for partition in (alone(), shared(2, True), shared(2, False)):
        with partition:
            hs, _, saved = engine.forward(p.cell, np.full((1, 1, 1), tiny), p.state, p.params)
            dxs = engine.backward(p.cell, np.full((1, 1, 1), tiny), p.state, saved)[0]
        assert hs.item() == dxs.item() == 0
        assert tiny * np.float32(0.5) != 0


# ---- the first use of a process

FIRST_USE = """
import faulthandler
import threading
import numpy as np
import numba_rnn

faulthandler.dump_traceback_later(250, exit=True)
kinds = numba_rnn.TimeGRU, numba_rnn.TimeLSTM, numba_rnn.time_layer("mgu")
x, together, results = np.ones((2, 3, 3), np.float32), threading.Barrier(8), set()

def use(k):
    together.wait()
    layer = kinds[k % 3].create(3, 8, rng=0)
    hs = layer.forward(x)
    layer.backward(hs)
    results.add((k % 3, hs.tobytes(), layer.grads[1].tobytes()))

threads = [threading.Thread(target=use, args=(k,)) for k in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(results), hash(frozenset(results)))
"""


def test_eight_threads_at_once_in_twenty_fresh_processes():
    environment = {"PYTHONHASHSEED": "0"}
    said = {run_python(FIRST_USE, environment).stdout}  # it may compile
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda _: run_python(FIRST_USE, environment).stdout, range(20))
        assert {*said, *runs} == said
    assert said.pop().startswith("3 ")  # one result for each kind of layer


def test_once_is_once_however_many_threads_ask():
    calls, together = [], threading.Barrier(8)

    @once
    def slow(k):
        calls.append(k)
        time.sleep(0.05)
        return object()

    def ask(_):
        together.wait()
        return slow(1)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert calls == [1]


def test_memory_that_is_given_back_goes_to_one_thread(monkeypatch):
    """Another one may have taken it between a look and the taking."""

    class Taken(list):
        def __bool__(self):
            return True

    monkeypatch.setattr(plans.SavedBuffer, "spare", Taken())
    assert plans.SavedBuffer(100, np.dtype(np.float32)).memory.nbytes >= 100


def test_a_cached_property_has_no_lock_that_objects_share():
    """That of Python 3.11 has: it holds up other threads, and a forked child forever."""
    inside, leave = threading.Event(), threading.Event()

    class Asked:
        def __init__(self, slow):
            self.slow = slow

        @cached_property
        def value(self):
            if self.slow:
                inside.set()
                assert leave.wait(60)
            return object()

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(lambda: Asked(True).value)
        assert inside.wait(60)
        asked = Asked(False)
        first = pool.submit(lambda: asked.value)
        try:
            assert first.result(60) is asked.value
        finally:
            leave.set()
        slow.result(60)


FORKS = """
import faulthandler
import os
import threading
import time
import warnings
import numpy as np
import numba_rnn

warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
x, kinds = np.ones((2, 3, 3), np.float32), ["gru", "lstm", "mgu", "light_gru"]
mine = numba_rnn.TimeRNN.create(3, 8, rng=0)

def use():
    for kind in kinds:
        layer = numba_rnn.time_layer(kind).create(3, 8, rng=0)
        layer.backward(layer.forward(x))

thread = threading.Thread(target=use)
thread.start()
children = []
while len(children) < 6:
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(200, exit=True)
        mine.backward(mine.forward(x))
        os._exit(0)
    children.append(child)
thread.join()
print([os.waitpid(child, 0)[1] for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_forked_during_the_first_use_work():
    run_python(FIRST_USE)  # it may compile
    assert run_python(FORKS).stdout == "[0, 0, 0, 0, 0, 0]\n"


IMPORTS = """
import sys
import numpy as np
import numba_rnn
from numba_rnn.kernels.once import LOCK

class Watch:
    def find_spec(self, name, path=None, target=None):
        if not LOCK._is_owned():
            print(name)

layer = numba_rnn.TimeLSTM.create(3, 8, rng=0)
sys.meta_path.insert(0, Watch())
layer.backward(layer.forward(np.ones((2, 3, 3), np.float32)))
layer.forward(np.ones((2, 3, 3), np.float32), mask=np.ones((2, 3), bool))
stream = layer.stream()
stream.step(np.ones(3, np.float32))
stream.step_many(np.ones((4, 3), np.float32))
"""


def test_nothing_is_imported_where_a_fork_may_come_in_between():
    """A child that is forked meanwhile would wait forever for the import to end."""
    assert run_python(IMPORTS).stdout == ""


LOCKED = """
import faulthandler
import os
import threading
import warnings
from numba.core.compiler_lock import global_compiler_lock
from llvmlite.binding import ffi
import numba_rnn.kernels.cpu.engine
from numba_rnn.kernels.once import LOCK

warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)

def fork(lock):
    held, forked = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            forked.wait(0.1)  # in vain: the fork waits for this thread

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(60, exit=True)
        with lock:
            os._exit(0)
    forked.set()
    thread.join()
    return os.waitpid(child, 0)[1]

print([fork(lock) for lock in (LOCK, global_compiler_lock, ffi.lib._lock)])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_what_a_child_would_wait_for():
    assert run_python(LOCKED).stdout == "[0, 0, 0]\n"
