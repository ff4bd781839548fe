"""The benchmark of the memory dial runs, and what it prints is what the dial is for."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_from_end_to_end():
    T, N, H = 480, 16, 32
    command = [sys.executable, "-m", "benchmarks.memory", "--cell=lstm", f"--size={T},{N},5,{H}"]
    command += ["--dial=0", "--dial=16", "--rounds=1"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    title, _, *rows = out.strip().splitlines()
    assert title == f"lstm: T {T}, N {N}, D 5, H {H}, float32; 1 thread"
    (k, kept, peak, time), (every, less, most, _) = (map(float, row.split()) for row in rows)
    assert (k, time, every) == (0, 1, 16)
    six = 6 * N * H * 4 / 1e3  # the gates, c and h
    assert six <= kept < 1.3 * six  # panels are odd, and there is a state before the first step
    assert kept <= peak
    assert less <= most < kept / 2
