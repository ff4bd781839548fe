"""The compiled engine works with raw addresses: nothing outside an array is read or written.

Every array, the caller's and the engine's own, is placed so that it ends where unmapped memory
begins: one byte further and the process dies.
"""

import pytest

from helpers import REPRESENTATIVES, run_python

GUARDED = """
import ctypes, faulthandler, mmap
import numpy as np
from contextlib import ExitStack, contextmanager
from unittest import mock
from dataclasses import replace
from helpers import PARTITIONS, outcome, random_problem
from test_steps import FEATURES, random_options
from test_steps import outcome as with_steps
from numba_rnn.kernels.step_options import StepOptions
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import engine as arrays, option_memory, packing, launch, plans, streaming
from numba_rnn.kernels.cpu import product
from numba_rnn.kernels.cpu import ragged_rows
from numba_rnn.kernels.ragged import Ragged

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
    def zeros(*args, **options):
        return guarded(np.zeros(*args, **options))
    @staticmethod
    def empty_like(*args, **options):
        return guarded(np.empty_like(*args, **options))

@contextmanager
def guarding(sharing):
    '''The engine's memory ends so, too; its work is shared out in this way.'''
    plans.free_buffers()
    with ExitStack() as stack:
        for module in (plans, streaming, packing, product):
            stack.enter_context(mock.patch.object(module, "aligned", aligned))
        for module in (arrays, launch, option_memory, product, ragged_rows):
            stack.enter_context(mock.patch.object(module, "np", Guarded()))
        stack.enter_context(mock.patch.object(launch, "choose_partition", return_value=sharing))
        yield

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
            with use_backend("numba", strict=True) as engine, guarding(sharing):
                outcome(engine, p)
                steps = random_options(p, set(FEATURES))
                recurrent_mask = guarded(steps.recurrent_mask)
                steps = replace(steps, recurrent_mask=recurrent_mask, checkpoint_every=8)
                with_steps(engine, p, steps)
                N, T, _ = p.xs.shape
                lengths = np.arange(1, N + 1) % (T + 1)
                if lengths.any():
                    mask = np.arange(T) < lengths[:, None]
                    with_steps(engine, p, StepOptions(mask=mask))
                    members = Ragged.of(lengths)
                    xs, dhs = (guarded(members.pack(a[:, :members.T])) for a in (p.xs, p.dhs))
                    hs, state, saved = engine.forward_packed(p.cell, xs, members, p.state, p.params)
                    engine.backward_packed(p.cell, dhs, state, saved)
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


WORDS = (
    GUARDED
    + """
import amx_emulator
from quantised import quantised_problem
from numba_rnn.kernels.quantisation import quantise

if AMX:
    amx_emulator.install()

def stream_of(engine, layer, top, xs, sharing, bfloat16):
    N, T, _ = xs.shape
    with mock.patch.object(streaming, "choose_partition", return_value=sharing):
        stream = engine.stream([layer], top, N, sharing[0], bfloat16)
    x, xs = (xs[0, 0], xs[0]) if N == 1 else (xs[:, 0], xs)
    assert stream.stepping(guarded(x))
    found = [stream.out.copy()]
    out = guarded(np.empty((T, 19) if N == 1 else (N, T, 19), np.float32))
    assert stream.running(xs, out)
    return [*found, out]

def everything(engine, sizes, sharing):
    '''All that the engine computes in bfloat16 and in int8, in one list.'''
    p = random_problem(NAME, *sizes, np.float32).map(guarded)
    steps = random_options(p, set(FEATURES))
    steps = replace(steps, recurrent_mask=guarded(steps.recurrent_mask), checkpoint_every=8)
    found = [*outcome(engine, p).values(), *with_steps(engine, p, steps).values()]
    W, b = np.linspace(-1, 1, 19 * p.dhs.shape[2], dtype=np.float32).reshape(-1, 19), p.xs[0, 0, :1]
    W, b = guarded(W), guarded(np.repeat(b, 19))
    found += stream_of(engine, (p.cell, p.params), (W, b), p.xs, sharing, True)
    cell, xs, state, params = quantised_problem(NAME, *sizes)
    xs, state = guarded(xs), tuple(map(guarded, state))
    params = [guarded(x) if isinstance(x, np.ndarray) else x for x in params]
    for options in (StepOptions(), replace(steps, checkpoint_every=0)):
        hs, last, _ = engine.forward(cell, xs, state, params, options)
        found += [hs, *last]
    found += engine.step(cell, guarded(xs[:, 0]), state, params)
    if cell.projected:  # h of another size
        W = guarded(np.resize(W, (params[-1].shape[1], 19)))
    return found + stream_of(engine, (cell, params), (quantise(W), b), xs, sharing, False)

engine = use_backend("numba", strict=True, precision="bfloat16").__enter__()
for sizes in ((1, 3, 5, 17), (5, 2, 33, 47), (19, 3, 17, 31)):
    results = []
    for sharing in ((1, True), (2, True), (2, False), (3, True), (3, False)):
        with guarding(sharing):
            results.append([array.copy() for array in everything(engine, sizes, sharing)])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, want)
rng = np.random.default_rng(0)
for M, K, P in ((33, 67, 41), (97, 130, 17), (1, 999, 99)):
    a, b = (guarded(rng.standard_normal(shape).astype(np.float32)) for shape in ((M, K), (K, P)))
    with guarding((1, True)):
        product.product(a, b, bfloat16=True)
        product.product(guarded(b.T), guarded(a.T), bfloat16=True)
        product.product(guarded(a.T).T, guarded(b.T).T, bfloat16=True)
        engine.affine(a, quantise(b), guarded(b[0]))
if AMX:
    amx_emulator.expect_no_faults()
print("nothing was touched")
"""
)


@pytest.mark.parametrize(
    ("name", "amx"),
    [("lstm", False), ("gru", True), ("lstm_projected", False), ("lstm_layer_norm", False)],
)
def test_nothing_outside_is_touched_in_bfloat16_and_int8(name, amx):
    """And no number of threads changes a bit. For one cell AMX, emulated, is among what runs."""
    program = WORDS.replace("NAME", repr(name)).replace("AMX", str(amx))
    assert run_python(program).stdout == "nothing was touched\n"


def test_the_guard_guards():
    """One number further, and the program dies."""
    broken = PROGRAM.replace("NAME", repr("one number further"))
    with pytest.raises(AssertionError, match="Segmentation fault"):
        run_python(broken)
