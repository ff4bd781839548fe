"""Compiled code: kept on disk, found again, never used for another source, and not in silence."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import problem, run_python
from numba_rnn import cells, use_backend
from numba_rnn.kernels.cells import Cell
from numba_rnn.kernels.cpu import engine as cpu
from numba_rnn.kernels.cpu import frames, plans
from numba_rnn.kernels.fingerprint import of_cell
from numba_rnn.kernels.functions import sigmoid, tanh
from numba_rnn.kernels.reference import ReferenceEngine

# ---- the cache on disk

TRAIN = """
import numpy as np
from numba_rnn import TimeRNN, use_backend
from numba_rnn.kernels.cpu.frames import PIECES

use_backend("numba", strict=True)
layer = TimeRNN.create(3, 5, rng=0)
hs = layer.forward(np.ones((2, 4, 3), np.float32))
layer.backward(hs)

print(sum(piece.cache_hits for piece in PIECES), sum(not piece.cache_hits for piece in PIECES))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    hits, misses = map(int, run_python(TRAIN, cache).stdout.split())
    assert hits == 0
    assert misses >= 6  # two passes, their gates, products
    assert list(tmp_path.rglob("*.nbi"))
    assert list(tmp_path.rglob("*.nbc"))

    hits, misses = map(int, run_python(TRAIN, cache).stdout.split())
    assert hits >= 6
    assert misses == 0


# ---- what the cached code was compiled from

CELL = """
from numba_rnn.kernels.cells import Cell

def forward(gates, state):
    (a,) = gates
    return ({factor} * a,), ()

def backward(dstate, saved, state):
    (dh,) = dstate
    return ({factor} * dh,), (None,)

LINEAR = Cell("linear", ("h",), ("h",), (), forward, backward)
"""

USE_CELL = """
import numpy as np
from linear import LINEAR
from numba_rnn import TimeRecurrent, use_backend
from numba_rnn.kernels import fingerprint
from numba_rnn.kernels.cpu.frames import PIECES
from numba_rnn.kernels.functions import sigmoid, tanh
from numba_rnn.kernels.reference import ReferenceEngine

use_backend("numba", strict=True)
one = np.ones((1, 1))
layer = TimeRecurrent(one, 0 * one, np.zeros(1), cell=LINEAR)
h = layer.forward(np.ones((1, 1, 1))).item()
dx = layer.backward(np.ones((1, 1, 1))).item()
hits = sum(piece.cache_hits for piece in PIECES if piece.__name__ == "forward_gates")
print(fingerprint.of_cell(LINEAR), h, dx, hits)
"""


def use_cell(folder: Path, factor: float) -> tuple[str, float, float, int]:
    """Run a cell from a file, all runs of one folder sharing a cache."""
    (folder / "linear.py").write_text(CELL.format(factor=factor))
    env = {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    fingerprint, h, dx, hits = run_python(USE_CELL, env, cwd=folder).stdout.split()
    return fingerprint, float(h), float(dx), int(hits)


def test_a_changed_cell_is_compiled_anew(tmp_path):
    first, *computed = use_cell(tmp_path, 2.0)
    assert computed == [2, 2, 0]
    changed, *computed = use_cell(tmp_path, 3.0)
    assert computed == [3, 3, 0]
    again, *computed = use_cell(tmp_path, 2.0)
    assert computed == [2, 2, 1]  # what was compiled for this source is found again
    assert first == again != changed


def scaled(forward) -> Cell:
    return replace(cells.get("rnn"), forward=forward)


def by_closure(factor: float) -> Cell:
    def forward(gates, state):
        h = factor * gates[0]
        return (h,), (h,)

    return scaled(forward)


def by_global(factor: float) -> Cell:
    """As in a notebook, where a line above has changed."""
    namespace = {"FACTOR": factor}
    exec("def forward(gates, state): h = FACTOR * gates[0]; return (h,), (h,)", namespace)
    return scaled(namespace["forward"])


def by_default(factor: float) -> Cell:
    def times(x, by=factor):
        return by * x

    def forward(gates, state):
        h = times(gates[0])
        return (h,), (h,)

    return scaled(forward)


def by_function(which: int) -> Cell:
    """A name bound to another function of functions.py."""
    act = (sigmoid, tanh)[which - 1]

    def forward(gates, state):
        h = act(gates[0])
        return (h,), (h,)

    return scaled(forward)


def by_wiring(gate: int) -> Cell:
    cell = cells.get("gru_reset_after")
    return replace(cell, input_only=cell.gates[gate : gate + 1])


@pytest.mark.parametrize("make", [by_closure, by_global, by_default, by_function, by_wiring])
def test_cells_that_differ_share_no_code(make):
    first, second, again = (of_cell(make(k)) for k in (1, 2, 1))
    assert first == again != second


@pytest.mark.parametrize("make", [by_closure, by_default, by_function])
def test_cells_that_differ_compute_what_they_say(make):
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((2, 3, 4))
    for k in (1, 2):
        cell = make(k)
        params = [rng.standard_normal(shape) for shape in cell.shapes(4, 5).values()]
        state = (np.zeros((2, 5)),)
        ours, reference = (
            engine.forward(cell, xs, state, params)[0]
            for engine in (cpu.NumbaEngine(), ReferenceEngine())
        )
        np.testing.assert_allclose(ours, reference, rtol=1e-12)


def test_a_cell_that_cannot_be_compiled_is_named_with_its_line():
    def forward(gates, state):
        h = gates[0] ** 2
        return (h,), (h,)

    cell = scaled(forward)
    params = [np.ones(shape) for shape in cell.shapes(2, 3).values()]
    where = rf"test_compilation\.py line {forward.__code__.co_firstlineno + 1}: does not compile"
    with pytest.raises(TypeError, match=rf"cell 'rnn', forward pass, {where}"):
        cpu.NumbaEngine().forward(cell, np.ones((1, 1, 2)), (np.zeros((1, 3)),), params)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gates": "h"}, r"gates: expected a tuple of names, got 'h'"),
        ({"gates": ("h", "h")}, "gates: expected each name once"),
        ({"states": ()}, "states: expected at least one name"),
        ({"saved": ()}, "forward: expected the saved as a tuple of 0, for no names; got 1 members"),
        ({"second": ("h",)}, r"second \(or fed\), operand and operand_backward go together"),
        ({"input_only": ("z",)}, r"input_only: expected some of \('h',\), got \['z'\]"),
        ({"recurrent_only": ("h",)}, "recurrent_only: expected one gate at least with x Wx"),
        ({"weights": ("h",)}, r"weights: expected the last of \('h',\), behind one gate"),
        ({"weight_start": {"u": 1.0}}, r"weight_start: expected some of \(\), got \['u'\]"),
        ({"biases": 3}, "biases: expected 1 or 2, got 3"),
        ({"forward": lambda gates, state: (gates, 0.0)}, "forward: expected the saved as a tuple"),
        (
            {"forward": lambda gates, state: ((1.0,), gates)},
            "forward: .* from the arguments",
        ),
        ({"backward": lambda d, saved, state: (d, (*d, *d))}, "backward: .* for h; got 2 members"),
    ],
)
def test_a_cell_that_breaks_the_contract_is_refused_where_it_is_made(changes, says):
    with pytest.raises(ValueError, match=f"^cell 'rnn': {says}"):
        replace(cells.get("rnn"), **changes)


# ---- the message


@pytest.fixture
def first_calls(monkeypatch):
    """A process in which nothing has been called, and a tenth of a second takes two."""
    p = problem("rnn", 2, 3, 4, 5)

    def run() -> None:
        with use_backend("numba", strict=True) as engine:
            _, _, saved = engine.forward(p.cell, p.xs, p.state, p.params)
            engine.backward(p.cell, p.dhs, p.dstate, saved)

    def timer(seconds: float, *call: object) -> threading.Timer:
        assert seconds == 2
        return threading.Timer(seconds / 20, *call)

    run()  # whatever is to be compiled is compiled now
    plans.recipe.cache_clear()
    monkeypatch.setattr(frames, "threading", SimpleNamespace(Timer=timer))
    return run


def slow(function: Any) -> Any:
    def wait_and_call(*args: object) -> Any:
        time.sleep(0.2)
        return function(*args)

    return wait_and_call


def test_slow_compilation_is_announced_once(first_calls, monkeypatch, capfd):
    monkeypatch.setattr(plans, "compiled", slow(plans.compiled))
    first_calls()
    message = capfd.readouterr().err
    assert message.count("\n") == 2
    assert "compiling the forward pass of rnn (float64)" in message
    assert "compiling the backward pass of rnn (float64)" in message
    assert "done once" in message
    first_calls()
    assert capfd.readouterr().err == ""


def test_slow_calls_that_compile_nothing_are_silent(first_calls, monkeypatch, capfd):
    monkeypatch.setattr(cpu.threads.team, "run", slow(cpu.threads.team.run))
    first_calls()
    time.sleep(0.3)  # the timers are over
    assert capfd.readouterr() == ("", "")


def test_a_failing_compilation_is_silent_too(first_calls, monkeypatch, capfd):
    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(plans, "compiled", fail)
        with pytest.raises(MemoryError):
            first_calls()
    time.sleep(0.3)
    assert capfd.readouterr() == ("", "")


# ---- several processes


def test_processes_that_start_together_compile_once(tmp_path):
    """Numba's own cache, shared without a lock, may give one process another's code."""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run_python, TRAIN, environment) for _ in range(3)]
        counts = [tuple(map(int, run.result().stdout.split())) for run in runs]
    pieces = sum(counts[0])
    assert sum(misses for _, misses in counts) == pieces
    assert sum(hits for hits, _ in counts) == 2 * pieces


ELSEWHERE = """
import numpy as np
from numba_rnn import TimeRecurrent, cell, functions, use_backend
from numba_rnn.kernels.cpu.frames import PIECES

print("imported" if __name__ != "__main__" else "run")

@cell(weights="u")
def somewhere(a, u, h):
    return functions.tanh(a + u * h)

layer = TimeRecurrent.create(2, 3, cell=somewhere, rng=0)
with use_backend("numba", strict=True):
    hs = layer.forward(np.ones((1, 2, 2), np.float32))
    layer.backward(hs)
print(sum(piece.cache_hits for piece in PIECES if "gates" in piece.__name__))
"""


def test_a_cell_is_found_in_the_cache_wherever_it_is_defined(tmp_path):
    """In a module, in a program, in exec: the compiled code imports neither."""
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE, encoding="utf-8")
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    assert run_python("import elsewhere", env).stdout.split() == ["imported", "0"]
    assert run_python(ELSEWHERE, env).stdout.split() == ["run", "2"]
    executed = f"exec({ELSEWHERE!r}, {{'__name__': None}})"
    assert run_python(executed, env).stdout.split() == ["imported", "2"]
