"""The compiled engine works with raw addresses: nothing outside an array is read or written.

Every array, the caller's and the engine's own, is placed so that it ends where unmapped memory
begins: one byte further and the process dies.
"""

import pytest

from helpers import REPRESENTATIVES, run_python

GUARDED = """
import ctypes, faulthandler, mmap
import numpy as np
from unittest import mock
from dataclasses import replace
from helpers import PARTITIONS, outcome, random_problem
from test_steps import FEATURES, random_options
from test_steps import outcome as with_steps
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import engine as arrays, option_memory, packing, launch, plans, streaming

faulthandler.enable()
libc, kept = ctypes.CDLL(None, use_errno=True), []

def before_the_end(size):
    '''Memory of that many bytes, and then a page that may not be touched.'''
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, pages + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    assert libc.mprotect(ctypes.c_void_p(start + pages), mmap.PAGESIZE, 0) == 0
    kept.append(region)
    return np.frombuffer(region, np.uint8, size, pages - size)

def guarded(array):
    copy = before_the_end(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

def aligned(size, dtype):
    memory = before_the_end(max(size, 64)).view(dtype)
    memory[...] = np.nan
    assert memory.ctypes.data % 64 == 0 or size % 64  # what is no vectors need not be aligned
    return memory, memory.ctypes.data

class Guarded:
    '''NumPy, but what it makes for others to fill ends at a page that may not be touched.'''
    def __getattr__(self, name):
        return getattr(np, name)
    @staticmethod
    def empty(*args, **options):
        return guarded(np.empty(*args, **options))
    @staticmethod
    def empty_like(*args, **options):
        return guarded(np.empty_like(*args, **options))

"""

PROGRAM = (
    GUARDED
    + """
if NAME == "one number further":
    array = guarded(np.zeros(5, np.float32))
    ctypes.c_float.from_address(array.ctypes.data + array.nbytes).value

cell = NAME
for dtype in (np.float32, np.float64):
    for sizes in ((1, 1, 1, 1), (1, 3, 5, 17), (5, 1, 131, 47), (3, 4, 16, 15), (7, 50, 33, 31),
                  (2, 3, 1, 64), (1, 66, 65, 23)):
        for sharing in PARTITIONS:
            p = random_problem(cell, *sizes, dtype).map(guarded)
            plans.free_buffers()
            with (use_backend("numba", strict=True) as engine,
                  mock.patch.object(plans, "aligned", aligned),
                  mock.patch.object(streaming, "aligned", aligned),
                  mock.patch.object(packing, "aligned", aligned),
                  mock.patch.object(arrays, "np", Guarded()),
                  mock.patch.object(launch, "np", Guarded()),
                  mock.patch.object(option_memory, "np", Guarded()),
                  mock.patch.object(launch, "choose_partition", return_value=sharing)):
                outcome(engine, p)
                steps = random_options(p, set(FEATURES))
                recurrent_mask = guarded(steps.recurrent_mask)
                steps = replace(steps, recurrent_mask=recurrent_mask, checkpoint_every=8)
                with_steps(engine, p, steps)
                if sharing != (1, True):
                    continue
                N, T, D = p.xs.shape
                P = p.dhs.shape[2]
                top = guarded(np.ones((P, 19), dtype)), guarded(np.ones(19, dtype))
                for affine in (None, top):
                    stream = engine.stream([(p.cell, p.params)], affine, N)
                    x = p.xs[0, 0] if N == 1 else p.xs[:, 0]
                    assert stream.stepping(guarded(x))
                    outputs = P if affine is None else 19
                    out = guarded(np.empty((T, outputs) if N == 1 else (N, T, outputs), dtype))
                    assert stream.running(p.xs[0] if N == 1 else p.xs, out)
print("nothing was touched")
"""
)


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "lstm_projected"])
def test_nothing_outside_an_array_is_touched(name):
    assert run_python(PROGRAM.replace("NAME", repr(name))).stdout == "nothing was touched\n"


def test_the_guard_guards():
    """One number further, and the program dies."""
    broken = PROGRAM.replace("NAME", repr("one number further"))
    with pytest.raises(AssertionError, match="Segmentation fault"):
        run_python(broken)
