"""Compiled kernels, by their names: found on disk and loaded, or compiled now.

    address = compiled("gemm.multiply", "float32")

A kernel that an earlier process has compiled is object code, which LLVM puts into memory; Numba is
not imported for it, nor is the module that defines it. An entry of the cache (``disk_cache.py``)
holds

    the name of the kernel's function
    the names of the functions that it calls outside, side by side
    object code

and verifies by its digest. Nothing in it is Python's.
"""

import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding
from llvmlite.binding import ffi

from .. import disk_cache, fingerprint
from ..cells import Cell
from ..once import LOCKS_OF_LIBRARIES, once
from . import target

NO_FEATURES: frozenset[str] = frozenset()


class CompileError(Exception):
    """A kernel, or a function that it is compiled with, says more than Numba takes."""


class Rule(NamedTuple):
    """The rule of an optimiser, which changes so many arrays, of so many numbers."""

    function: Callable[..., Any]
    arrays: int
    numbers: int


class Variant(NamedTuple):
    """For which dtype, cell or rule, and features a kernel is compiled."""

    dtype: str
    cell: Cell | None = None
    features: frozenset[str] = NO_FEATURES
    rule: Rule | None = None

    @property
    def name(self) -> str | None:
        """The cell's name, or the rule's."""
        if self.rule is not None:
            return self.rule.function.__name__
        return self.cell.name if self.cell is not None else None

    @property
    def source(self) -> str:
        """The fingerprint of the cell, or of the rule."""
        if self.rule is not None:
            source = fingerprint.of_functions(self.rule.function)
            return f"{source} {self.rule.arrays} {self.rule.numbers}"
        return fingerprint.of_cell(self.cell) if self.cell is not None else ""


class Kernel:
    """A kernel in memory, which stays there.

    holder      what its code belongs to
    cache_hits  1 if it was found, 0 if this process has compiled it
    """

    def __init__(self, name: str, address: int, holder: Any, cache_hits: int = 1) -> None:
        self.__name__, self.address = name, address
        self.cache_hits, self._holder = cache_hits, holder

    def inspect_llvm(self) -> str:
        """Its code for LLVM. Raises AttributeError where it was found."""
        return str(self._holder.get_llvm_str())


def expect_numba() -> None:
    """Import Numba, unless an earlier process could. Raises ImportError where it cannot be."""
    versions, spec = target.versions(), sys.modules.get("numba") or find_spec("numba")
    where = getattr(spec, "origin", None) or getattr(spec, "__file__", None)
    entry = disk_cache.Entry("numba", "imported", *versions, where, np.__version__)
    if entry.load() is None:
        importlib.import_module("numba")
        entry.save(b"")


KERNELS: list[Kernel] = []  # all that this process has compiled or found in the cache


@once
def compiled(
    kernel: str | Callable[[Any], None],
    dtype: str = "float32",
    cell: Cell | None = None,
    features: frozenset[str] = NO_FEATURES,
    rule: Rule | None = None,
) -> int:
    """The address of a kernel, compiled for a dtype and a cell or a rule, now or by an earlier
    process.

    kernel  its module and its name, or the function itself
    """
    KERNELS.append(find_or_compile(kernel, Variant(dtype, cell, features, rule)))
    return KERNELS[-1].address


def find_or_compile(kernel: str | Callable[[Any], None], variant: Variant) -> Kernel:
    """The kernel, loaded or compiled now."""
    called = kernel if isinstance(kernel, str) else f"{kernel.__module__}.{kernel.__qualname__}"
    dtype, source, features = variant.dtype, variant.source, sorted(variant.features)
    key = called, dtype, variant.name, source, features, *target.versions(), target.machine()
    name = called.rpartition(".")[2]
    engine = fingerprint.of_engine(__package__)
    entry = disk_cache.Entry(name, engine, *key)
    _add_symbols()
    found = _load(name, entry)
    if found is None:
        with entry.alone():
            found = _load(name, entry) or _compile(kernel, variant, entry)
    return found


Compiler = Callable[[Any, Variant, disk_cache.Entry], Kernel]
# set by engine.py, which stands above the modules that define kernels
load_compiler: Callable[[], Compiler] | None = None


def _compile(kernel: Any, variant: Variant, entry: disk_cache.Entry) -> Kernel:
    _announce()
    assert load_compiler is not None, "engine.py sets it"
    return load_compiler()(kernel, variant, entry)


# ---- object code


def content_of(symbol: str, needs: list[str], code: bytes) -> bytes:
    """The content of a kernel's entry."""
    return b"\n".join((symbol.encode(), " ".join(needs).encode(), code))


def _load(name: str, entry: disk_cache.Entry) -> Kernel | None:
    """The kernel in an entry; None where it has none that this process can load."""
    content = entry.load()
    if content is None:
        return None
    symbol, needs, code = content.split(b"\n", 2)
    if not all(map(binding.address_of_symbol, needs.decode().split())):
        return None  # without it LLVM would end the process
    machine = target.target_machine(**target.jit_options())
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Kernel(name, engine.get_function_address(symbol.decode()), engine)


@cache
def _add_symbols() -> None:
    """Tell LLVM where the functions of the system and of Python are that kernels call."""
    python = ctypes.pythonapi
    if os.name == "nt":
        kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
        functions = {"yield": kernel.SwitchToThread, "sleep": kernel.Sleep}  # milliseconds
    else:
        system = ctypes.CDLL(None)
        functions = {"yield": system.sched_yield, "sleep": system.usleep}  # microseconds
    functions |= {
        "release_gil": python.PyEval_SaveThread, "take_gil": python.PyEval_RestoreThread,
        "integer": python.PyLong_AsLongLong,
    }  # fmt: skip
    for name, function in functions.items():
        address = ctypes.cast(function, ctypes.c_void_p).value or 0
        binding.add_symbol(f"numba_rnn_{name}", address)


# ---- functions that Python calls


class _MethodDef(ctypes.Structure):
    """PyMethodDef of Python's C API."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )  # fmt: skip


_ONE, _SEVERAL = 0x8, 0x80  # METH_O, METH_FASTCALL


@once
def _method(address: int, several: bool) -> _MethodDef:
    return _MethodDef(b"entrance", address, _SEVERAL if several else _ONE, None)


def python_function(address: int, several: bool, words: Any) -> Callable[..., Any]:
    """A function of Python's whose code is a kernel's: the shortest way from Python to it.

    several  whether it takes several arguments, or one
    words    an array, which it gets before those
    """
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, *[ctypes.py_object] * 2]
    return make(ctypes.addressof(_method(address, several)), words, "numba_rnn")


# ---- forks


class _LockOfNumba:
    """The lock of Numba's compiler, where there is one."""

    def __init__(self) -> None:
        self._held: Any = None

    def __enter__(self) -> None:
        module = sys.modules.get("numba.core.compiler_lock")
        self._held = getattr(module, "global_compiler_lock", None)
        if self._held is not None:
            self._held.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._held is not None:
            self._held.__exit__(*error)


LOCKS_OF_LIBRARIES += [_LockOfNumba(), ffi.lib._lock]


# ---- the message


_pending: ContextVar[threading.Timer | None] = ContextVar("_pending", default=None)


@contextmanager
def warn_if_slow_compile(what: str) -> Iterator[None]:
    """Say so, on stderr, where the compilation inside has gone on for two seconds."""
    timer = threading.Timer(2.0, _say, (what,))
    timer.daemon = True
    token = _pending.set(timer)
    try:
        yield
    finally:
        _pending.reset(token)
        timer.cancel()


def _announce() -> None:
    """Something is compiled: the two seconds begin."""
    timer = _pending.get()
    if timer is not None and timer.ident is None:
        timer.start()


def _say(what: str) -> None:
    later = "it is done once, later runs find it in the cache"
    if not disk_cache.is_writable():
        later = "later runs do it again: there is no writable cache folder; set NUMBA_CACHE_DIR"
    elif fingerprint.of_engine(__package__) is None:
        later = "later runs do it again"
    if sys.stderr is not None:
        print(f"numba_rnn: compiling {what} for this CPU; {later}.", file=sys.stderr, flush=True)
