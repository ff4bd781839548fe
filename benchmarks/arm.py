"""The conformance suite on ARM64, in an emulator: does the compiled code say what it should there?

    python -m benchmarks.arm                          lstm and gru, every engine against NumPy's
    python -m benchmarks.arm --only "test_gradients.py -k rnn" --cpu cortex-a72

It takes ``qemu-aarch64-static`` on PATH (Debian's package qemu-user-static), pip and the network:
a Python for ARM64 comes from Debian, as in ``.ci/newest_python``, its packages from PyPI, all into
a temporary folder. Emulation is slow, some hundred times; it says whether numbers are right, and
nothing of speed. Nor does it show the order in which an ARM's cores see each other's writes, which
is weaker than that of the x86 on which it runs.
"""

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "numpy",
    "numba",
    "safetensors",
    "tqdm",
    "typer",
    "sympy",
    "pytest",
    "pytest-xdist",
    "hypothesis",
)
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")


def main(
    only: Annotated[
        str, typer.Option(help="The arguments of pytest, in tests/.")
    ] = "test_conformance.py -k 'numba and (lstm or gru) and float32'",
    cpu: Annotated[str, typer.Option(help="Which processor qemu is.")] = "neoverse-n1",
    folder: Annotated[
        Path | None, typer.Option(help="Where packages are kept; default: a temporary folder.")
    ] = None,
) -> None:
    """Run tests on an emulated ARM64 processor."""
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        raise SystemExit("no qemu-aarch64-static: install the package qemu-user-static")
    with tempfile.TemporaryDirectory() as temporary:
        python, packages = environment(folder or Path(temporary))
        command = [emulator, "-cpu", cpu, python, "-m", "pytest", "-n", "0", "-q"]
        command += ["-p", "no:cacheprovider", *shlex.split(only)]
        paths = {"PYTHONPATH": os.pathsep.join((str(packages), str(ROOT)))}
        cache = {"NUMBA_CACHE_DIR": str(packages.with_name("cache"))}
        done = subprocess.run(
            command, cwd=ROOT / "tests", env={**os.environ, **paths, **cache}, check=False
        )
    raise SystemExit(done.returncode)


def environment(folder: Path) -> tuple[str, Path]:
    """A Python for ARM64 and the folder of its packages, made at the first call."""
    packages = folder / "packages"
    (old,) = list(folder.glob("python/usr/bin/python3.*[0-9]")) or [None]
    if old is not None and packages.exists():
        return str(old), packages
    of_debian = runpy.run_path(str(ROOT / ".ci/newest_python"))["of_debian"]
    python = of_debian((folder / "python").resolve(), "aarch64")
    platforms = [f"--platform={name}" for name in PLATFORMS]
    version = f"--python-version={python.rpartition('python')[2]}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *platforms]
    pip += ["--ignore-requires-python"]  # by which older pips mean the Python that they run on
    subprocess.run([*pip, version, "--target", str(packages), *PACKAGES], check=True)
    return python, packages


if __name__ == "__main__":
    typer.run(main)
