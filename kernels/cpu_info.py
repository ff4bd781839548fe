"""The machine as the operating system describes it."""

import os
import platform
import sys
from functools import cache
from pathlib import Path

most_threads: int | None = None  # that an engine may use in this process; None: as it is set


@cache
def cpu_name() -> str:
    """The processor's name."""
    try:
        found = _field(Path("/proc/cpuinfo").read_text(encoding="utf-8"), "model name")
    except OSError:
        found = ""
    if not found and sys.platform == "darwin":
        found = _said_by("sysctl", "-n", "machdep.cpu.brand_string").strip()
    elif not found and sys.platform == "linux":  # on ARM: numbers there, lscpu knows their names
        found = _field(_said_by("lscpu"), "Model name")
    return found or platform.processor() or platform.machine()


def _field(text: str, name: str) -> str:
    """The value in a line ``name : value``; empty if there is none."""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _said_by(*command: str) -> str:
    """A program's output; empty if it cannot run."""
    import subprocess

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace",
            timeout=5, check=False, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def blas_threads() -> int:
    """How many threads NumPy's BLAS uses: its environment variables, else the cores allowed."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return cores()
