"""The memory that ``layer.checkpoint_every = k`` saves on the numba engine, and its cost.

    python -m benchmarks.memory                       LSTM, GRU and RNN
    python -m benchmarks.memory --cell slstm --size 1000,8,32,32

    kept    memory of a step between forward and backward, beside xs and hs: all that is held
            for backward over T
    peak    the most that was in use during both, beside xs, dhs, hs, dxs, over T
    time    of forward and backward, over that of k = 0; in turn, medians

k = 0 keeps everything. Gradients are compared first: they are the same bits.
"""

import gc
import multiprocessing
import os
import tracemalloc
from typing import Annotated, Any

import typer

from benchmarks.cpu import measure

SIZE = "512,32,128,128"
DIALS = [0, 8, 16, 32, 64, 128]


def memory(name: str, sizes: tuple[int, int, int, int], k: int) -> tuple[float, float]:
    """Bytes a step that are kept for backward, and at most in use; in a process of its own.

    (Memory is used again by whatever comes next: a second run would seem to need none.)
    """
    from benchmarks import peers
    from numba_rnn import use_backend

    use_backend("numba", strict=True)
    few = peers.task(name, 2, 1, *sizes[2:])
    layer, task = peers.our_layer(few), peers.task(name, *sizes)
    layer.checkpoint_every = k
    layer.forward(few.xs)
    layer.backward(few.dhs)  # compiles
    gc.collect()
    tracemalloc.start()
    hs = layer.forward(task.xs)
    kept = tracemalloc.get_traced_memory()[0] - hs.nbytes
    dxs = layer.backward(task.dhs)
    peak = tracemalloc.get_traced_memory()[1] - hs.nbytes - dxs.nbytes
    return kept / sizes[0], peak / sizes[0]


def main(
    cell: Annotated[list[str] | None, typer.Option(help="Cells; lstm, gru and rnn.")] = None,
    size: Annotated[str, typer.Option(help="T,N,D,H.")] = SIZE,
    dial: Annotated[list[int] | None, typer.Option(help="Values of checkpoint_every.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1)] = 7,
) -> None:
    """Memory a step and time, for several settings of the memory dial."""
    limits = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    os.environ |= dict.fromkeys(limits, "1")
    import numpy as np

    from benchmarks import peers
    from numba_rnn import use_backend

    use_backend("numba", strict=True)
    T, N, D, H = sizes = tuple(map(int, size.split(",")))
    for name in cell or ["lstm", "gru", "rnn"]:
        task, rows, calls, want = peers.task(name, *sizes), [], {}, None
        for k in dial or DIALS:
            layer = peers.our_layer(task)
            layer.checkpoint_every = k

            def call(layer: Any = layer, task: Any = task) -> Any:
                layer.forward(task.xs)
                return [layer.backward(task.dhs), *layer.grads]

            got = call()  # compiles, too
            for a, b in zip(got, want or got, strict=True):
                np.testing.assert_array_equal(a, b)
            want = want or [array.copy() for array in got]
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append((k, *pool.apply(memory, (name, sizes, k))))
            calls[str(k)] = call
        seconds = measure(calls, rounds, 0.003)
        first = seconds[str(rows[0][0])]
        print(f"\n{name}: T {T}, N {N}, D {D}, H {H}, float32; 1 thread")
        print(f"  {'k':>5}{'kept KB a step':>18}{'peak KB a step':>18}{'time':>8}")
        for k, kept, peak in rows:
            time = seconds[str(k)] / first
            print(f"  {k:>5}{kept / 1e3:>18.1f}{peak / 1e3:>18.1f}{time:>8.2f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
