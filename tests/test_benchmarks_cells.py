"""The benchmark of the cells counts right, predicts right, and runs from end to end."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from numba_rnn import cells

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    """Imports a program; they are part of the checkout, not of what is installed."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_work_of_a_simple_network(benchmarks):
    counting = benchmarks("counting")
    # forward: tanh; backward: dh * (1 - h * h)
    assert counting.arithmetic(cells.get("rnn")) == counting.WEIGHTS["tanh"] + 3
    work = counting.work(cells.get("rnn"), T=5, N=2, D=3, H=4)
    assert work.products == 3 * 2 * 5 * 2 * (3 + 4) * 4
    assert work.arithmetic == 5 * 2 * 4 * counting.arithmetic(cells.get("rnn"))


def test_what_is_computed_twice_counts_once(benchmarks):
    book = benchmarks("counting").Book()
    a, b = book.numbers(("a", "b"))
    assert a * b + (a * b) is not None
    assert book.operations == 2
    assert 1 - a is not a - 1
    assert book.operations == 4


@pytest.mark.parametrize("name", cells.names())
def test_every_cell_can_be_counted(benchmarks, name):
    counting = benchmarks("counting")
    assert counting.arithmetic(cells.get(name)) > 0
    assert counting.moved(cells.get(name)) > 0


@pytest.mark.parametrize("name", cells.names())
def test_the_loop_in_torch_computes_the_same(benchmarks, name):
    pytest.importorskip("torch")
    program = benchmarks("cells")
    timed = program.calls(name, (3, 4, 5, 6))
    benchmarks("cpu").check_same({key: timed[key] for key in ("ours", "loop")})


def test_times_that_follow_the_count_are_predicted_exactly(benchmarks):
    program, counting = benchmarks("cells"), benchmarks("counting")
    sizes, product, moved = (7, 6, 5, 4), 1e-11, 1e-10

    def row(name):
        work, lstm = (counting.work(cells.get(n), *sizes)._asdict() for n in (name, "lstm"))
        mine, its = (program.seconds_of(w, product, moved) for w in (work, lstm))
        return {
            "cell": name,
            "work": work,
            "lstm_work": lstm,
            "ratio": mine / its,
            "loop": 10.0,
            "milliseconds": {"lstm": 1e3 * its},
        }

    rows = [row(name) for name in (*program.PLAIN, "gru", "slstm")]
    program.predict(rows, 1 / product)
    for found in rows:
        assert found["off"] == pytest.approx(1)
        assert found["numbers_moved_per_second"] == pytest.approx(1 / moved)
        assert found["most"] > 10  # arithmetic and moving take their share


def test_it_runs_from_end_to_end(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "cells.json"
    command = [sys.executable, "-m", "benchmarks.cells", "--quick", "--size=3,4,5,6"]
    command += ["--cell=mgu", "--threads=1", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["cell"] for row in found["rows"]][-1] == "mgu"
    assert all(row["off"] > 0 and row["loop"] > 0 for row in found["rows"])
    assert "measured / predicted at most 1.25" in done.stdout
