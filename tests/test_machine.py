"""Names and numbers of other machines, and how threads wait there: with stand-ins."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import run_python
from numba_rnn.kernels import cpu_info

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
LSCPU = "Architecture:          aarch64\nModel name:            Neoverse-N1\nModel:          1\n"


@pytest.mark.parametrize(
    ("system", "cpuinfo", "program", "output", "name"),
    [
        ("linux", X86, None, "", "AMD EPYC 7B13"),
        ("linux", ARM, "lscpu", LSCPU, "Neoverse-N1"),
        ("linux", ARM, None, "", "the processor"),
        ("darwin", None, "sysctl", "Apple M1\n", "Apple M1"),
        ("darwin", None, None, "", "the processor"),
        ("win32", None, None, "", "the processor"),
    ],
)
def test_the_processor_has_a_name(system, cpuinfo, program, output, name, monkeypatch):
    def read_text(path: Path, **_: object) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    def run(command, **options):
        if command[0] != program:
            raise FileNotFoundError(command[0])
        assert options["env"]["LC_ALL"] == "C"
        return subprocess.CompletedProcess(command, 0, stdout=output)

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(cpu_info.Path, "read_text", read_text)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(cpu_info.platform, "processor", lambda: "the processor")
    assert cpu_info.cpu_name.__wrapped__() == name


def test_cores_are_counted_where_a_process_has_no_affinity(monkeypatch):
    monkeypatch.delattr(cpu_info.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cpu_info.os, "cpu_count", lambda: 5)
    assert cpu_info.cores() == 5
    monkeypatch.setattr(cpu_info.os, "cpu_count", lambda: None)
    assert cpu_info.cores() == 1


WAIT_ON_WINDOWS = """
import ctypes, os
from typing import NamedTuple
import numpy as np
from numba_rnn.kernels.cpu import kernel_abi, kernel_cache
naps = []
words = np.zeros(1024, np.int64)

@ctypes.CFUNCTYPE(None, ctypes.c_uint32)
def sleep(milliseconds):
    naps.append(milliseconds)
    if len(naps) == 1200:
        words[128 // 8] = 1  # another thread's shard is done

class Kernel32:
    SwitchToThread, Sleep = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1), sleep

ctypes.WinDLL = lambda name: Kernel32
os.name = "nt"
from numba_rnn.kernels.cpu import threads
kernel_cache._add_symbols()
os.name = "posix"
from numba_rnn.kernels.cpu import engine, thread_kernels

class Waiting(NamedTuple):
    team: int
    job: int
    shards: int

def wait(ctx):
    team, job, shards = kernel_abi.arguments(ctx, Waiting)
    thread_kernels.wait_for_all(team, job, shards)

ctx = np.array([words.ctypes.data, 0, 1], np.int64)
assert threads.DONE == 128 and threads.JOB == 0
threads.call_kernel(kernel_cache.compiled(wait), ctx.ctypes.data)
print(len(naps), sum(naps))
"""


def test_a_long_wait_on_windows_sleeps():
    """Sleep(0) comes back at once where no other program wants the processor."""
    naps, milliseconds = map(int, run_python(WAIT_ON_WINDOWS).stdout.split())
    assert naps == 1200
    assert milliseconds == 200


def test_a_team_of_192_threads_shares_a_pass():
    """As many as the cores of the largest ARM servers; each has a place of its own."""
    run_python(
        """
        import numpy as np
        from numba_rnn import cells
        from numba_rnn.kernels.cpu import engine, launch, threads
        from numba_rnn.kernels.reference import NumpyEngine

        assert threads.MOST_THREADS >= 192
        rng = np.random.default_rng(0)
        cell = cells.get("rnn")
        xs, state = rng.standard_normal((192, 8, 3)), (np.zeros((192, 5)),)
        params = [rng.standard_normal(shape) for shape in cell.shapes(3, 5).values()]
        launch.choose_partition = lambda *sizes: (192, True)
        ours = engine.NumbaEngine().forward(cell, xs, state, params)[0]
        theirs = NumpyEngine().forward(cell, xs, state, params)[0]
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        assert threads.team.threads == 191
        """
    )
