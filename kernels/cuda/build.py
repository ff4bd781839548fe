"""From a kernel to a cubin, on a machine with or without a GPU.

A kernel is compiled once for its text, its cell's functions, dtype, capability of the device and
the versions of the compilers, and kept on disk. What is kept is read by any process that asks for
the same; files are written whole or not at all.
"""

import hashlib
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..fingerprint import of_engine, of_functions, with_callees
from .kernel import COUNTERS, FLAGS, INDICES, INTEGERS, NUMBERS, Kernel
from .target import NVIDIA, overload, ptx_of, types


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
    kept = _place(kernel, np.dtype(dtype).name, capability)
    try:
        name, digest, code = kept.read_bytes().split(b"\n", 2)
        if hashlib.sha256(code).hexdigest() == digest.decode():
            return Binary(code, name.decode())
    except (OSError, ValueError):  # there is none, or not a whole one
        pass
    text = ptx(kernel, dtype, capability)
    entry = entry_of(text)
    try:
        code, _ = link(text, capability)
    except Exception:  # whatever a linker that is not there raises: the driver takes PTX as well,
        return Binary(text.encode(), entry)  # more slowly, and says what is wrong with it
    head = f"{entry}\n{hashlib.sha256(code).hexdigest()}\n"
    _keep(kept, head.encode() + code)
    return Binary(code, entry)


def ptx(kernel: Kernel, dtype: Any, capability: tuple[int, int]) -> str:
    """A kernel's PTX."""
    for function in kernel.functions.values():
        _make_known(function)
    return ptx_of(kernel.function, signature(kernel, dtype), capability, kernel.threads)


def entry_of(ptx: str) -> str:
    """The name of the function in it."""
    return re.findall(r"\.entry (\S+)\(", ptx)[0]


def link(ptx: str, capability: tuple[int, int]) -> tuple[bytes, str]:
    """The cubin of a PTX, and what the assembler says of registers and memory."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch="sm_{}{}".format(*capability), ptxas_options=["-v"], verbose=True)
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    return bytes(linker.link("cubin").code), str(linker.get_info_log())


@cache
def _make_known(function: Any) -> None:
    """Let compiled code call a cell's function, and those that it calls."""
    for callee in with_callees(function):
        overload(callee, strict=False)(lambda *args, callee=callee: callee)


# ---- on disk


def _place(kernel: Kernel, dtype: str, capability: tuple[int, int]) -> Path:
    import llvmlite
    import numba

    versions = [numba.__version__, llvmlite.__version__]
    if NVIDIA:
        import numba_cuda

        versions.append(numba_cuda.__version__)
    functions = of_functions(*kernel.functions.values())
    source = of_engine(Path(__file__).parent), functions, kernel.text, kernel.threads
    key = hashlib.sha256(repr((source, versions, dtype, capability)).encode()).hexdigest()
    return cache_folder() / f"{kernel.name}-{key[:20]}.bin"


def cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, else the user's cache folder."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        return Path(named) / "numba_rnn_cuda"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "numba_rnn" / "cuda"


def _keep(place: Path, content: bytes) -> None:
    """Write a file whole; where nothing can be written, the next process compiles again."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).replace(place)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError:
        pass
