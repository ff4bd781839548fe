"""The program that sets streams beside others compares what they compute before it times them."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "benchmarks.streaming", "--cell=gru", "--size=8", "--rounds=1"]


def test_the_table_has_a_row_for_every_block():
    done = subprocess.run(COMMAND, capture_output=True, text=True, cwd=ROOT, check=True)
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("gru")]
    assert [row[:3] for row in rows] == [["gru", "8", b] for b in ("step", "1", "64", "512")]
    assert all(float(row[3]) > 0 for row in rows)


def test_a_folder_without_rtneural_is_refused(tmp_path):
    command = [*COMMAND, f"--rtneural={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "expected a clone of RTNeural with its submodules" in done.stderr


def test_who_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    program = importlib.import_module("benchmarks.streaming")
    net = program.network("lstm", 8)
    calls = {"ours": program.ours(net, 64), "theirs": program.ours(net._replace(b=net.b + 1), 64)}
    with pytest.raises(SystemExit, match="theirs computes something else"):
        program.nanoseconds(calls, 64, 1)
