"""AMX's registers in NumPy, by Intel's manual, for kernels that are compiled after ``install``.

Each instruction becomes a call of Python. Every thread has registers of its own, and every access
is checked: a fault of the processor's is an entry in ``faults``.
"""

import ctypes
import threading
from collections import Counter

import numpy as np
from llvmlite import ir

from numba_rnn.kernels.cpu import amx, compilation, int8, kernel_cache, plans, target

TINY = np.finfo(np.float32).tiny
NAMES = list(amx._OPERANDS)
faults: list[str] = []
counts: Counter[str] = Counter()
states: list["Registers"] = []
_I64 = ir.IntType(64)


def flushed(numbers):
    return np.where(np.abs(numbers) < TINY, np.float32(0), numbers)


class Registers(threading.local):
    """Those of a thread."""

    def __init__(self):
        self.rows = self.data = None
        self.now = [None]  # seen from other threads
        states.append(self.now)

    def ldtilecfg(self, address):
        words = np.frombuffer(ctypes.string_at(address, 64), np.uint8)
        of_bytes, self.rows = words[16:32].view(np.uint16), words[48:56].astype(int)
        assert words[0] == 1
        assert not words[[*range(1, 16), *range(32, 48), *range(56, 64)]].any()
        assert (of_bytes == 64).all(), "other rows than of 64 bytes"
        assert ((self.rows > 0) & (self.rows <= 16)).all(), f"rows: {self.rows}"
        self.data = np.zeros((8, 16, 64), np.uint8)
        self.now[0] = self.rows

    def tilerelease(self):
        self.rows = self.data = self.now[0] = None

    def tilezero(self, register):
        self.data[register] = 0

    def tileloadd64(self, register, address, step):
        self.data[register] = 0
        for r in range(self.rows[register]):
            line = ctypes.string_at(address + r * step, 64)
            self.data[register, r] = np.frombuffer(line, np.uint8)

    def tilestored64(self, register, address, step):
        for r in range(self.rows[register]):
            ctypes.memmove(address + r * step, self.data[register, r].tobytes(), 64)

    def operands(self, sums, a, b):
        """A (m, k), B (k, n), and the sums (m, n), which are a view."""
        rows = self.rows
        assert rows[sums] == rows[a], f"sums {rows[sums]}, A {rows[a]}"
        assert rows[b] == 16
        return self.data[a, : rows[a]], self.data[b], self.data[sums, : rows[sums]]

    def tdpbf16ps(self, *registers):
        a, b, sums = self.operands(*registers)
        a, b = ((x.view(np.uint16).astype(np.uint32) << 16).view(np.float32) for x in (a, b))
        a, b = (flushed(x).reshape(len(x), 16, 2) for x in (a, b))
        both = np.zeros((len(a), 16, 2), np.float32)  # the first numbers of words, the second
        with np.errstate(all="ignore"):
            for k in range(16):  # products are exact in float32
                both = flushed(both + a[:, k, None] * b[k])
            total = flushed(sums.view(np.float32)) + flushed(both[:, :, 0] + both[:, :, 1])
        sums.view(np.float32)[...] = flushed(total)

    def tdpbusd(self, *registers):
        a, b, sums = self.operands(*registers)
        a = a.view(np.uint8 if int8.unsigned() else np.int8).astype(np.int32)
        a, b = a.reshape(len(a), 16, 4), b.view(np.int8).astype(np.int32).reshape(16, 16, 4)
        sums.view(np.int32)[...] += np.einsum("mkb,knb->mn", a, b)


registers = Registers()


@ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
def execute(number, *operands):
    name = NAMES[number]
    counts[name] += 1
    try:
        if name not in ("ldtilecfg", "tilerelease"):
            assert registers.rows is not None, "no registers are configured"
        getattr(registers, name)(*operands[: len(amx._OPERANDS[name])])
    except Exception as error:
        faults.append(f"{name}{operands}: {error!r}")


def emit(builder, name, *operands):
    values = [NAMES.index(name), *operands, *(0,) * (3 - len(operands))]
    values = [_I64(value) if isinstance(value, int) else value for value in values]
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 4).as_pointer()
    address = ctypes.cast(execute, ctypes.c_void_p).value
    builder.call(builder.inttoptr(_I64(address), kind), values)


def install():
    """Let kernels by AMX be used, and these be the instructions. They are not kept on disk."""
    load, save = kernel_cache._load, compilation._save

    def is_ours(name):
        return "_amx" in name

    kernel_cache._load = lambda name, entry: None if is_ours(name) else load(name, entry)
    compilation._save = lambda entry, library, symbol: (
        None if is_ours(symbol) else save(entry, library, symbol)
    )
    amx.emit_instruction = emit
    target.has_tiles = lambda word: True
    plans.plan_template.cache_clear()


def expect_no_faults():
    """No instruction was at fault, and no thread has registers left."""
    assert not faults, faults[:5]
    assert [now for (now,) in states if now is not None] == []
    assert counts["ldtilecfg"] > 0
