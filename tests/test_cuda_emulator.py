"""The emulator of tests finds what a GPU would do wrong without a word."""

import numpy as np
import pytest

from cuda_emulator import EmulatedGpu, EmulationError
from numba_rnn.kernels.cuda.kernel import DeviceLimits, Kernel


def run(text, *arrays, blocks=1):
    """A kernel of this text on arrays a and b, 32 threads and 16 bytes of shared memory a block."""
    lines = ["me = cuda.threadIdx.x", "zeros = (a[0], a[0], a[0], a[0])", *text.splitlines()]
    kernel = Kernel("made", lines, 32, shared=16)
    arguments = kernel.arguments(**dict(zip("ab", arrays, strict=False)))
    EmulatedGpu(DeviceLimits(1, 16)).launch(kernel, (blocks, 1), arguments)


ERRORS = {
    "beyond the end": ("write(a, me + 1, (a[me],))", "a: 1 numbers at 32 of 32"),
    "before the start": ("write(a, me - 32, (a[me],))", "a: 1 numbers at -"),
    "not aligned": ("if 0 < me < 4:\n    load4(a, me)", "not aligned"),
    "beyond shared memory": (
        "write(shared_of(a), 4, (a[0],))",
        "shared memory: 1 numbers at 4 of 4",
    ),
    "half a block waits": ("if me < 16:\n    cuda.syncthreads()", "wait for ever: .*syncthreads"),
    "a lane is missing": ("if me != 3:\n    mma_tf32((0,) * 4, (0, 0), zeros)", "wait for ever"),
    "lanes at different instructions": (
        "(mma_tf32 if me < 9 else mma_bfloat16)((0,) * 4, (0, 0), zeros)",
        "different instructions",
    ),
    "nobody arrives": ("while load_acquire(b, 0) < 1:\n    pass", "wait for ever: for an arrival"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_within_a_block(name):
    text, error = ERRORS[name]
    with pytest.raises(EmulationError, match=error):
        run(text, np.zeros(32, np.float32), np.zeros(1, np.uint32))


def test_errors_between_blocks():
    def numbers():
        return np.zeros(4, np.float32), np.zeros(1, np.uint32)

    with pytest.raises(EmulationError, match="two blocks wrote 0"):
        run("write(a, 0, (a[0],))", *numbers(), blocks=2)
    text = """\
if cuda.blockIdx.x == 0:
    write(a, 0, (a[1],))
    red_release(b, 0)
else:
    while load_acquire(b, 0) < 32:
        pass
    {}(a, 0)"""
    for stale in ("load1", "load4"):
        with pytest.raises(EmulationError, match="read stale"):
            run(text.format(stale), *numbers(), blocks=2)
    run(text.format("load4_volatile"), *numbers(), blocks=2)
