"""The GPU benchmark runs from end to end in the emulator, and survives what may go wrong."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from numba_rnn.kernels.cuda import build, persistent, tiling
from numba_rnn.kernels.cuda.kernel import DeviceLimits, Kernel

ROOT = Path(__file__).resolve().parents[1]
H200 = DeviceLimits(multiprocessors=132, shared=227 * 1024)


@pytest.fixture
def gpu(monkeypatch):
    """The program; it is part of the checkout, not of what is installed."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.gpu.__main__")


def sections_in(folder):
    return json.loads((folder / "gpu.json").read_text(encoding="utf-8"))["sections"]


def test_every_section_runs_in_the_emulator(gpu, tmp_path):
    assert gpu.main(["--emulate", f"--out={tmp_path}"]) == 0
    found = sections_in(tmp_path)
    assert tuple(found) == gpu.NAMES
    for section, records in found.items():
        assert records, section
        for item, record in records.items():
            assert not record.keys() & {"failed", "wrong", "skipped"}, (section, item, record)

    checks = found["correctness"]
    numbers = {item.split("/")[1] for item in checks}
    assert numbers == {"float64", "float32", "tf32", "bfloat16", "planned"}
    for record in checks.values():
        assert 0 <= record["worst"] <= record["limit"] <= 2e-2
        assert record["kernels"]
    planned = checks["planned/float32/rnn"]["kernels"]  # a single step has a gate kernel's
    assert {"rnn_persistent_backward", "rnn_persistent_forward"} < set(planned)

    for record in found["speed"].values():
        assert record["us_per_step"]["ours"].keys() == {"forward", "both"}
        if "ratio" in record:  # torch is there
            assert max(record["differences"][record["peer"]].values()) < 0.1
            assert not any("something else" in note for note in record.get("notes", []))
    report = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "the times mean nothing" in report.splitlines()[0]
    assert "| lstm | 3, 2, 8 | float32 |" in report
    assert "Losing rows:" in report
    assert str(ROOT) not in report + (tmp_path / "gpu.json").read_text(encoding="utf-8")


def test_a_section_that_fails_is_recorded_and_the_others_run(gpu, tmp_path, monkeypatch):
    def broken(machine, item):
        raise ArithmeticError("the device is on fire")

    monkeypatch.setattr(gpu.speed, "row", broken)
    chosen = ["--only=environment", "--only=speed", "--only=memory"]
    assert gpu.main(["--emulate", f"--out={tmp_path}", *chosen, "--cell=lstm"]) == 1
    found = sections_in(tmp_path)
    assert list(found) == ["environment", "speed", "memory"]  # and no others
    (record,) = found["speed"].values()
    assert record["failed"].endswith("ArithmeticError: the device is on fire\n")
    for section in ("environment", "memory"):
        assert not any("failed" in record for record in found[section].values())
    assert "**failed** lstm/3,2,8/float32: ArithmeticError" in (tmp_path / "gpu.md").read_text()


def test_where_there_is_no_gpu_it_says_so(gpu, tmp_path):
    cupy = pytest.importorskip("cupy") if "cupy" in sys.modules else None
    if cupy is not None and cupy.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks.gpu", "--only=launch", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    records = sections_in(tmp_path)["launch"]
    assert list(records) == gpu.LAUNCHES
    assert all("BackendError" in record["failed"] for record in records.values())


# ---- processes that crash or hang

CHILD = """
import sys, time, os
sys.path.insert(0, ".")
from benchmarks.gpu import children

def run(item):
    if item == "crashes":
        print("a last word", flush=True)
        os._exit(7)
    if item == "hangs":
        time.sleep(1000)
    return {"failed": "spoilt"} if item == "spoils" else {"said": item}

children.serve(run, lambda: False)
"""


def run_children(gpu, items, limit=1.0, seconds=60.0):
    told = {}
    command = [sys.executable, "-c", CHILD]
    until = time.monotonic() + seconds
    gpu.children.run(command, items, limit, until, told.__setitem__)
    return told


def test_what_a_process_takes_with_it_is_one_item(gpu, capsys):
    items = ["a", "crashes", "b", "hangs", "c", "spoils", "d"]
    told = run_children(gpu, items)
    assert list(told) == items
    for item in "abcd":
        assert told[item] == {"said": item}
    assert "7\na last word" in told["crashes"]["failed"]
    assert told["hangs"] == {"failed": "no answer in time"}
    assert told["spoils"] == {"failed": "spoilt"}


def test_a_section_ends_when_its_time_is_up(gpu):
    start = time.monotonic()
    told = run_children(gpu, ["a", "hangs", "b"], limit=100, seconds=3)
    assert time.monotonic() - start < 20
    assert told == {
        "a": {"said": "a"},
        "hangs": {"skipped": "the time was up"},
        "b": {"skipped": "the time was up"},
    }


def test_a_section_that_loses_every_process_is_given_up(gpu, monkeypatch):
    monkeypatch.setattr(gpu.children, "MOST_FAILURES", 2)
    told = run_children(gpu, ["crashes", "spoils", "a", "b"])
    assert told["a"] == told["b"] == {"skipped": "too many failed before it"}


# ---- compilation


def test_the_kernels_that_are_needed_are_known_without_a_gpu(gpu):
    wanted = gpu.others.wanted_kernels(H200, "lstm", "bfloat16")
    names = {kernel.name for kernel, _ in wanted}
    assert all(isinstance(kernel, Kernel) for kernel, _ in wanted)
    assert {"lstm_persistent_forward", "lstm_persistent_backward"} < names
    assert {"lstm_forward_gates_4", "lstm_backward_gates_2"} < names
    assert not any(name.startswith("gru") for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="needs CUDA's compiler")
def test_the_new_cell_of_the_benchmark_compiles(gpu):
    cell = gpu.speed.PEEPHOLE_LSTM
    for forward in (True, False):
        plan, _ = tiling.plan(cell, 32, 256, forward, "float32", H200)
        text = build.ptx(persistent.kernel(cell, plan.tiling, plan.tiles), np.float32, (9, 0))
        assert "mma.sync" in text
        assert ".f64" not in text
