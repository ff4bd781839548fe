"""From a kernel to a cubin, on a machine with or without a GPU.

A kernel is compiled once for its text, its cell's functions, dtype, capability of the device and
the versions of the compilers; later processes find it on disk (``disk_cache.py``).
"""

import re
import shutil
import subprocess
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from ..disk_cache import Entry
from ..fingerprint import of_engine, of_functions, with_callees
from ..once import once
from .kernel import COUNTERS, FLAGS, INDICES, INTEGERS, NUMBERS, Kernel
from .numba_cuda_compat import NVIDIA, overload, ptx_of, types


class Binary(NamedTuple):
    """A compiled kernel: what the driver loads, and the name of the function in it."""

    code: bytes  # a cubin, or PTX where nothing here makes cubins
    entry: str


def signature(kernel: Kernel, dtype: Any) -> tuple[Any, ...]:
    """The types of a kernel's arguments."""
    number = types.float32 if dtype == np.float32 else types.float64
    special = {
        **dict.fromkeys(INTEGERS, types.int64),
        **dict.fromkeys(NUMBERS, number),
        **dict.fromkeys(COUNTERS, types.CPointer(types.uint32)),
        **dict.fromkeys(INDICES, types.CPointer(types.int64)),
        **dict.fromkeys(FLAGS, types.CPointer(types.uint8)),
    }
    return tuple(special.get(name, types.CPointer(number)) for name in kernel.takes)


def binary(kernel: Kernel, dtype: Any, capability: tuple[int, int]) -> Binary:
    """A kernel for devices of a capability, compiled now or by an earlier process."""
    entry = _entry(kernel, np.dtype(dtype).name, capability)
    content = entry.load()
    if content is not None:
        head, code = content.split(b"\n", 1)
        return Binary(code, head.decode())
    text = ptx(kernel, dtype, capability)
    name = entry_of(text)
    try:
        code, _ = link(text, capability)
    except Exception as error:  # whatever a linker that is not there raises
        warnings.warn(
            f"numba_rnn: {kernel.name} was not assembled, so every process that starts leaves that "
            f"to the driver, which takes longer; install nvidia-nvjitlink ({error})",
            RuntimeWarning,
            stacklevel=2,
        )
        code = text.encode()
    entry.save(f"{name}\n".encode() + code)
    return Binary(code, name)


def ptx(kernel: Kernel, dtype: Any, capability: tuple[int, int]) -> str:
    """A kernel's PTX."""
    for function in kernel.functions.values():
        _make_known(function)
    return ptx_of(kernel.function, signature(kernel, dtype), capability, kernel.threads)


def entry_of(ptx: str) -> str:
    """The name of the function in it."""
    return re.findall(r"\.entry (\S+)\(", ptx)[0]


def link(ptx: str, capability: tuple[int, int]) -> tuple[bytes, str]:
    """The cubin of a PTX, and what the assembler says of registers and memory.

    By nvJitLink; where that fails, by the CUDA toolkit's ptxas.
    """
    arch, toolkit = "sm_{}{}".format(*capability), "/usr/local/cuda/bin"
    program = shutil.which("ptxas") or shutil.which("ptxas", path=toolkit)
    try:
        from cuda.bindings import nvjitlink
        from cuda.core import Linker, LinkerOptions, ObjectCode

        nvjitlink.version()  # without it cuda.core takes the driver, which has no such options
        options = LinkerOptions(arch=arch, ptxas_options=["-v"], verbose=True)
        linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
        return bytes(linker.link("cubin").code), str(linker.get_info_log())
    except Exception:
        if program is None:
            raise
    with TemporaryDirectory() as folder:
        source, made = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        command = [program, "-v", f"-arch={arch}", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ptxas: {done.stderr.strip()[:500]}")
        return made.read_bytes(), done.stderr


@once
def _make_known(function: Any) -> None:
    """Let compiled code call a cell's function, and those that it calls."""
    for callee in with_callees(function):
        overload(callee, strict=False)(lambda *args, callee=callee: callee)


def _entry(kernel: Kernel, dtype: str, capability: tuple[int, int]) -> Entry:
    """Where a compiled kernel is on disk."""
    import llvmlite
    import numba

    versions = [numba.__version__, llvmlite.__version__]
    if NVIDIA:
        import numba_cuda

        versions.append(numba_cuda.__version__)
    functions = of_functions(*kernel.functions.values())
    what = functions, kernel.text, kernel.count, kernel.threads, dtype, capability
    return Entry(kernel.name, of_engine(__package__), what, versions)
