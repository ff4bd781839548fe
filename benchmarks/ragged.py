"""Batches whose members differ in length: what a real step costs, in time and in memory.

    python -m benchmarks.ragged                    LSTM and GRU on one thread and on two
    python -m benchmarks.ragged --quick            short sequences, few rounds
    python -m benchmarks.ragged --only "one long" --threads 1

The lengths of a batch are

    equal         all the same, shorter than the block
    uniform       anything from 1 to T, each as likely as the others
    exponential   most of them short, a few long
    one long      one of T, all others of 10

A real step is one step of one member. Every number is of a training step (forward, and backward to
the weights and the inputs), divided by the real steps that it has:

    rows      real steps, all members together
    live      members that have a step, on average; a dense batch has so many members and as many
              steps
    dense     nanoseconds a real step of that batch, in which nothing is padded
    padded    the same of a layer that is given padded xs (N, T, D) and lengths
    packed    of numba_rnn.functional.forward_packed, which is given the real steps alone
    / dense   over that of the dense batch: 1 is a batch whose lengths cost nothing
    torch     torch.nn's module on a PackedSequence, and on padded input, called once each; a dash:
              it would need more than 2 GB, or minutes (backward of a PackedSequence takes longer
              for every real step, the more steps there are)
    bytes     kept for backward and results included, the most memory that is in use (Python's
              tracemalloc): of the dense batch, and of the packed one, a real step

Ours take turns in one process, on as many threads; a time is the best of the rounds, which is
nearest to what a machine without other work gives. Results are compared first: ours packed and
padded bit for bit, torch's within 1e-3.
"""

import gc
import os
import subprocess
import sys
import time
import tracemalloc
from typing import Annotated, Any

import typer

from benchmarks.cpu import in_turn

# kind, members, steps at most, inputs, units
SIZES = [
    ("equal", 64, 300, 32, 128),
    ("uniform", 64, 300, 32, 128),
    ("exponential", 64, 1000, 32, 128),
    ("one long", 1000, 10_000, 32, 128),
]
QUICK = [("uniform", 32, 60, 16, 32), ("one long", 100, 300, 16, 32)]
MOST = 2e9  # bytes of padded hs and what torch keeps beside
SLOWEST = 2e7  # rows times steps of a PackedSequence


def lengths_of(kind: str, N: int, T: int) -> Any:
    """The lengths (N,) of a batch, in no order."""
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        "equal": np.full(N, 2 * T // 3),
        "uniform": rng.integers(1, T + 1, N),
        "exponential": np.minimum(T, 1 + rng.exponential(T / 8, N).astype(np.int64)),
        "one long": np.where(np.arange(N) == N // 2, T, 10),
    }[kind]


def calls_of(name: str, size: tuple[Any, ...]) -> tuple[dict[str, Any], int, int, int]:
    """The functions to time, by name; how many real steps ours and the dense batch have; live."""
    import numpy as np
    import torch
    from torch.nn.utils.rnn import PackedSequence
    from torch.nn.utils.rnn import pad_packed_sequence as pad

    from benchmarks import peers
    from numba_rnn import functional

    kind, N, T, D, H = size
    lengths = lengths_of(kind, N, T)
    steps, rows = int(lengths.max()), int(lengths.sum())
    live = max(1, round(rows / steps))
    few = peers.task(name, 2, 1, D, H)
    cell, params = few.cell, few.params
    rng, order = np.random.default_rng(1), np.argsort(-lengths, kind="stable")
    counts = (lengths > np.arange(steps)[:, None]).sum(axis=1)
    xs, dhs = (rng.standard_normal((rows, size), dtype=np.float32) for size in (D, H))

    def dense(live: int = live) -> Any:
        block = [rng.standard_normal((live, steps, size), dtype=np.float32) for size in (D, H)]

        def call() -> Any:
            hs, _, record = functional.forward(cell, block[0], None, params)
            found = functional.backward(record, block[1])
            return hs, found.xs, *found.params

        return call

    def packed() -> Any:
        hs, _, record = functional.forward_packed(cell, xs, counts, None, params)
        found = functional.backward(record, dhs)
        return hs, found.xs, *found.params

    calls = {"dense": dense(), "packed": packed}
    module = peers.torch_module(few)
    data, ddata = torch.from_numpy(xs).requires_grad_(), torch.from_numpy(dhs)
    batch = PackedSequence(data, torch.from_numpy(counts))

    def of_torch(inputs: Any, gradient: Any) -> Any:
        def call() -> Any:
            module.zero_grad()
            data.grad = None
            out, _ = module(inputs)
            out = out.data if isinstance(out, PackedSequence) else out
            out.backward(gradient)
            grad = None if data.grad is None else data.grad.numpy()
            return out.detach().numpy(), grad

        return call

    if rows * steps < SLOWEST:
        calls["torch"] = of_torch(batch, ddata)
    if 4 * N * steps * (D + 8 * H) < MOST:
        wide = pad(PackedSequence(torch.from_numpy(xs), batch.batch_sizes))[0]
        dwide = pad(PackedSequence(ddata, batch.batch_sizes))[0]
        there = np.arange(steps) < lengths[order][:, None]
        block, dblock = (np.ascontiguousarray(a.numpy().swapaxes(0, 1)) for a in (wide, dwide))
        shuffle = np.argsort(order)
        block, dblock, there = block[shuffle], dblock[shuffle], there[shuffle]
        layer = peers.our_layer(few)

        def padded() -> Any:
            hs = layer.forward(block, lengths=lengths)
            return hs, layer.backward(dblock), *layer.grads

        calls["padded"] = padded
        for one, other in zip(packed()[:2], padded()[:2], strict=True):
            np.testing.assert_array_equal(one, other[order].swapaxes(0, 1)[there[order].T])
        wide = wide.requires_grad_()
        calls["torch padded"] = of_torch(wide, dwide)
    if "torch" in calls:
        for one, other in zip(packed()[:2], calls["torch"](), strict=True):
            assert np.abs(one - other).max() < 1e-3 * np.abs(other).max()
    return calls, rows, live * steps, live


def memory(call: Any) -> int:
    """The most bytes in use, results included."""
    from numba_rnn.kernels.cpu import plans

    call()
    plans.free_buffers()
    gc.collect()
    tracemalloc.start()
    found = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del found
    return peak


def run_child(cells: list[str], sizes: list[Any], threads: int, rounds: int) -> None:
    """The table of one number of threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    from numba_rnn import use_backend

    use_backend("numba", strict=True)
    torch.set_num_threads(threads)
    print(f"\n{threads} thread{'s' if threads > 1 else ''}; nanoseconds a real step")
    print(
        f"  {'':16}{'lengths':12}{'N':>5}{'T':>7}{'D':>4}{'H':>4}{'rows':>7}{'live':>5}"
        f"{'dense':>7}{'padded':>8}{'/ dense':>8}{'packed':>8}{'/ dense':>8}"
        f"{'torch: packed':>15}{'padded':>8}{'bytes: dense':>14}{'packed':>8}"
    )
    for name in cells:
        for size in sizes:
            calls, rows, of_dense, live = calls_of(name, size)
            ours = {key: call for key, call in calls.items() if not key.startswith("torch")}
            taken = in_turn(ours, rounds, 0.003)
            for key in calls.keys() - ours.keys():
                calls[key]()
                begun = time.perf_counter()
                calls[key]()
                taken[key] = [time.perf_counter() - begun]
            ns = {
                key: 1e9 * min(times) / (of_dense if key == "dense" else rows)
                for key, times in taken.items()
            }

            def told(key: str, ns: dict[str, float] = ns, over: bool = False) -> str:
                if key not in ns:
                    return "-"
                return f"{ns[key] / ns['dense']:.2f}" if over else f"{ns[key]:.0f}"

            kept = [memory(calls["dense"]) / of_dense, memory(calls["packed"]) / rows]
            kind, N, T, D, H = size
            print(
                f"  {name:16}{kind:12}{N:>5}{T:>7}{D:>4}{H:>4}{rows:>7}{live:>5}"
                f"{told('dense'):>7}{told('padded'):>8}{told('padded', over=True):>8}"
                f"{told('packed'):>8}{told('packed', over=True):>8}"
                f"{told('torch'):>15}{told('torch padded'):>8}{kept[0]:>14.0f}{kept[1]:>8.0f}",
                flush=True,
            )


def main(
    cell: Annotated[list[str] | None, typer.Option(help="lstm, gru_reset_after, rnn.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Kinds of lengths; all.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Numbers of threads; 1 and 2.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1)] = 7,
    quick: Annotated[bool, typer.Option(help="Short sequences, few rounds.")] = False,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Time and memory of a real step, in batches whose members differ in length."""
    cells, counts = cell or ["lstm", "gru_reset_after"], threads or [1, 2]
    sizes = [size for size in (QUICK if quick else SIZES) if not only or size[0] in only]
    if child:
        run_child(cells, sizes, counts[0], 3 if quick else rounds)
        return
    from numba_rnn.kernels.cpu_info import cpu_name

    print(cpu_name())
    limits = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for count in counts:  # libraries count threads when they are imported
        command = [sys.executable, "-m", "benchmarks.ragged", "--child", f"--rounds={rounds}"]
        command += [f"--cell={c}" for c in cells] + [f"--only={size[0]}" for size in sizes]
        command += [f"--threads={count}"] + ["--quick"] * quick
        subprocess.run(command, env={**os.environ, **dict.fromkeys(limits, str(count))}, check=True)


if __name__ == "__main__":
    typer.run(main)
