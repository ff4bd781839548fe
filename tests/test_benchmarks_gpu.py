"""The GPU benchmark runs from end to end in the emulator, and survives what may go wrong."""

import importlib
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from numba_rnn import cells
from numba_rnn.kernels.cuda import build, gates, persistent, tiling
from numba_rnn.kernels.cuda.kernel import DeviceLimits

ROOT = Path(__file__).resolve().parents[1]
H200 = DeviceLimits(multiprocessors=132, shared=227 * 1024)
SMALL = DeviceLimits(multiprocessors=6, shared=60_000, threads=8)


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
    del checks["products/float32/large"]  # in emulation too small for kernels
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
    first = found["first"]
    assert {item.split("/")[0] for item in first} == {"check", "time", "parts"}
    assert all(record["worst"] < 1e-5 for record in first.values() if "worst" in record)
    assert all(record["us"] > 0 for item, record in first.items() if item.startswith("time"))

    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [line["begin"] for line in lines if "begin" in line] == [
        line["item"] for line in lines if "item" in line
    ]
    report = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "the times mean nothing" in report.splitlines()[0]
    assert "| lstm | 3, 2, 8 | float32 |" in report
    assert "Losing rows:" in report
    assert str(ROOT) not in report + (tmp_path / "gpu.json").read_text(encoding="utf-8")


def test_a_section_that_fails_is_recorded_and_the_others_run(gpu, tmp_path, monkeypatch):
    def broken(machine, item):
        raise ArithmeticError("the device is on fire")

    monkeypatch.setattr(importlib.import_module("benchmarks.gpu.speed"), "row", broken)
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


def test_with_fresh_each_item_has_a_process(gpu):
    told, begun = {}, []
    command = [sys.executable, "-c", CHILD.replace('{"said": item}', '{"said": os.getpid()}')]
    items, until = ["a", "hangs", "b", "crashes", "c"], time.monotonic() + 60
    gpu.children.run(command, items, 1, until, told.__setitem__, begun.append, fresh=True)
    assert list(told) == begun == items
    assert len({told[item]["said"] for item in "abc"}) == 3
    assert told["hangs"] == {"failed": "no answer in time"}
    assert "7\na last word" in told["crashes"]["failed"]


def test_what_goes_wrong_costs_one_item_each(gpu, tmp_path):
    """The whole program, in processes: a kernel that hangs, one that crashes, no compiler."""
    hangs, crashes = "correctness/forced/tf32/rnn", "first/check/a lone block"
    wrong = f"--stand-in=hang={hangs},crash={crashes},no-compiler"
    chosen = [f"--only={name}" for name in ("first", "correctness", "launch", "compile")]
    limits = mock.patch.object(gpu, "EMULATED_LIMIT", 8)
    with limits:
        assert gpu.main(["--emulate", wrong, f"--out={tmp_path}", *chosen]) == 1
    lost = {
        f"{section}/{item}": record.get("failed") or record.get("absent")
        for section, records in sections_in(tmp_path).items()
        for item, record in records.items()
        if record.keys() & {"failed", "wrong", "absent", "skipped"}
    }
    assert lost.pop(hangs) == "no answer in time"
    assert lost.pop(crashes).startswith("the process ended with 139")
    for item in ("compile/a gate kernel", "compile/a persistent kernel"):
        assert "nothing compiles here: OSError: libnvvm.so" in lost.pop(item)
    assert lost == {}
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["section"] == "correctness"]
    place = next(k for k, line in enumerate(told) if line.get("begin") == "forced/tf32/rnn")
    assert told[place + 1]["item"] == "forced/tf32/rnn"  # what was before is in the file


def test_where_blocks_hang_as_a_rule_all_goes_step_by_step(gpu):
    stuck, fine = {"failed": "no answer in time"}, {"worst": 0.0}
    alone = {"check/a lone block": fine, "time/1,2,3/float32/forward": stuck}
    assert gpu.blocks_hang({**alone, "check/2 blocks": stuck, "check/32 blocks": stuck})
    assert not gpu.blocks_hang({**alone, "check/2 blocks": fine, "check/32 blocks": stuck})
    assert not gpu.blocks_hang({})
    with machine_of("opened")(emulate=True) as machine:
        machine.never_persistent()
        engine = machine.engine("tf32")
        assert engine.plan(cells.get("lstm"), 16, 100, 24, np.float32)[0] is None


def test_a_block_that_waits_in_vain_makes_the_item_fail(gpu):
    """A debug build leaves numbers that are wrong, and the record of where it stood."""

    def item(machine, name):
        said = machine.base.to_device(np.array([6, 2, 9], np.uint32))  # block 2, at step 5
        machine.report[8:11] = said
        return {"worst": 0.5}

    section = gpu.Section(["a"], item, 1, 1)
    with machine_of("opened")(emulate=True) as machine:
        record = gpu.attempt(section, machine, "a")
        assert record["failed"] == (
            "1 blocks waited in vain, the first one, block 2, at step 5: it counted 2 arrivals "
            "and waited for 9"
        )
        assert machine.waited() is None


# ---- what is prepared


def machine_of(name):
    return getattr(importlib.import_module("benchmarks.gpu.machine"), name)


@pytest.fixture
def prepared(gpu):
    return importlib.import_module("benchmarks.gpu.prepared")


@pytest.mark.skipif(sys.platform != "linux", reason="needs CUDA's compiler")
def test_a_prepared_kernel_is_found_where_nothing_compiles(prepared, tmp_path, monkeypatch):
    cell = cells.get("rnn")
    known, other = (gates.kernel(cell, f"{way}_gates", 4, 128) for way in ("forward", "backward"))
    assert prepared.compile_into(tmp_path, [(known, np.dtype(np.float32))] * 2, 1) == []
    (place,) = tmp_path.glob("*.cubin")
    assert place.name.startswith("rnn_forward_gates_4-")

    def missing(*_, **__):
        raise OSError("libnvvm.so: cannot open shared object file")

    monkeypatch.setattr(build, "ptx", missing)
    monkeypatch.setattr(build, "_entry", lambda *_: SimpleNamespace(load=lambda: None))
    with prepared.installed(tmp_path):
        binary = build.binary(known, np.float32, (9, 0))
        assert binary.code[:4] == b"\x7fELF"
        assert binary.entry.encode() in binary.code
        for wanted in ((other, np.float32, (9, 0)), (known, np.float32, (8, 0))):
            with pytest.raises(machine_of("Absent"), match="not prepared, and nothing compiles"):
                build.binary(*wanted)
    assert "libnvvm" in prepared.compile_into(tmp_path, [(other, np.dtype(np.float32))], 1)[0]


def test_a_key_is_of_the_text_and_the_functions(prepared):
    cell = cells.get("rnn")
    kernel = gates.kernel(cell, "forward_gates", 4, 128)
    same = gates.kernel.__wrapped__(cell, "forward_gates", 4, 128)

    def key(kernel, dtype=np.float32, capability=(9, 0)):
        return prepared.key_of(kernel, dtype, capability)

    assert key(kernel) == key(same)
    changed = {**kernel.functions, "forward": cells.get("rnn_relu").forward}
    others = [
        key(kernel, np.float64),
        key(kernel, capability=(8, 0)),
        key(replace(kernel, threads=64)),
        key(replace(kernel, lines=[*kernel.lines, "pass"])),
        key(replace(kernel, functions=changed)),
    ]
    assert len({key(kernel), *others}) == 6


def test_the_first_items_are_those_of_the_issue_of_fifteen_minutes(prepared):
    """Their kernels are few, and none of them is missing from the list that is compiled."""
    sizes = {
        "check/gate kernels": ("lstm", "steps", (1, 3, 40), 1),
        "check/2 blocks": ("lstm", "float32", (3, 16, 16), 1),
    }
    with (
        mock.patch.object(prepared, "CHECKS", sizes),
        mock.patch.object(prepared, "TIMES", [(128, 32, 256)]),
        mock.patch.object(prepared, "DISSECTED", [((128, 32, 256), "float32")]),
    ):
        items = prepared.first_items(H200)
    assert len(items) == 2 + 6 + 6
    assert items["time/128,32,256/float32/forward"][0]["blocks"] == 64
    for case, kernels, _ in items.values():
        assert {launch["kernel"] for launch in case["launches"]} == set(kernels)
        json.dumps(case)
    texts = {item: next(iter(kernels.values())).text for item, (_, kernels, _) in items.items()}
    way = "128,32,256/float32/forward"
    whole = texts[f"time/{way}"]
    assert "mma_tf32" in whole
    assert "load4_volatile(exchange, source0" in whole
    assert "red_release" in whole
    for part, there in {
        "barrier": ("red_release", "while seen < 32 * step"),
        "exchange": ("red_release", "while seen < 32 * step", "load4_volatile(exchange, source0"),
        "product": ("mma_tf32", "load4_volatile(exchange, 4 * lane)"),
    }.items():
        every = {"red_release", "while seen < 32 * step", "load4_volatile(exchange, source0",
                 "mma_tf32", "load4_volatile(exchange, 4 * lane)"}  # fmt: skip
        assert {x for x in every if x in texts[f"parts/{way}/{part}"]} == set(there), part


@pytest.mark.parametrize("fault", ["a number", "a NaN", "other bits"])
def test_a_check_finds_wrong_numbers(prepared, fault):
    """The first items' own comparison, on a device that computes wrongly."""
    case, kernels, stored = prepared.first_items(SMALL, tiny=True)["check/a lone block"]
    device = prepared.EmulatedDevice(kernels)
    assert "wrong" not in prepared.first.run(device, case, stored)

    class Wrong(prepared.EmulatedDevice):
        def get(self, array):
            array = np.array(array)
            if array.dtype == np.float32:
                array[-1, -1, 0] += {
                    "a number": 1e-3,
                    "a NaN": np.nan,
                    "other bits": 1e-9 * self.launched,
                }[fault]
            return array

    found = prepared.first.run(Wrong(kernels), {**case, "runs": 2}, stored)
    assert ("other bits" if fault == "other bits" else "off by") in found["wrong"]


# ---- compilation


@pytest.mark.skipif(sys.platform != "linux", reason="needs CUDA's compiler")
@pytest.mark.parametrize("part", ["barrier", "exchange", "product"])
def test_kernels_with_parts_left_out_keep_what_is_left(prepared, part):
    _, kernels = prepared._timed(H200, (128, 32, 256), "float32", "forward", part)
    (kernel,) = kernels.values()
    text = build.ptx(kernel, np.float32, (9, 0))
    assert ("mma.sync" in text) == (part == "product")
    exchange = re.search(r"inline asm\s+ld\.global\.v4\.f32", text)
    assert (exchange is None) == (part == "barrier")
    assert ("red.release.gpu" in text) == (part != "product")


@pytest.mark.skipif(sys.platform != "linux", reason="needs CUDA's compiler")
def test_the_new_cell_of_the_benchmark_compiles(gpu):
    cell = importlib.import_module("benchmarks.gpu.speed").PEEPHOLE_LSTM
    for forward in (True, False):
        plan, _ = tiling.plan(cell, 32, 256, forward, "float32", H200)
        text = build.ptx(persistent.kernel(cell, plan.tiling, plan.tiles), np.float32, (9, 0))
        assert "mma.sync" in text
        assert ".f64" not in text
