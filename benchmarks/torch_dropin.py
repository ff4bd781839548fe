"""PyTorch's recurrent modules on the CPU, before and after ``numba_rnn.torch.accelerate``.

    python -m benchmarks.torch_dropin                 1 and 2 threads
    python -m benchmarks.torch_dropin --quick

    train    a training step: forward and backward to the weights and the inputs, as a layer has it
             that stands on an embedding or another layer
    infer    forward without gradients
    times    the time of torch.nn's module over that of ours; above 1 ours is faster

A cell runs in a loop of 100 steps, as T of its lines says.

Both modules have the same weights and are called in turn in one process, on as many threads;
medians over rounds. Outputs and gradients are compared first (1e-3 of the largest number).
"""

import os
import subprocess
import sys
from typing import Annotated, Any

import typer

from benchmarks.cpu import check_same, in_turn

# layers, bidirectional, T, N, D, H
SIZES = [
    (1, False, 1, 1, 16, 64),
    (1, False, 1, 8, 64, 256),
    (1, False, 20, 1, 32, 32),
    (1, False, 200, 8, 16, 32),
    (1, False, 35, 20, 100, 100),
    (2, False, 35, 20, 200, 200),
    (2, True, 64, 16, 128, 128),
    (2, False, 35, 20, 650, 650),
]
QUICK = SIZES[:5]
# N, D, H of a cell, in a loop of 100 steps
CELLS = [(1, 16, 16), (1, 64, 64), (16, 64, 64), (64, 64, 64), (1, 256, 256), (64, 256, 256)]
STEPS = 100
KINDS = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]


def measured(kind: str, size: tuple[Any, ...], rounds: int) -> tuple[float, float, float, float]:
    """Seconds of a training step, torch's and ours, and the same without gradients."""
    import statistics

    import torch

    import numba_rnn.torch

    layers, both, T, N, D, H = size
    cell = kind.endswith("Cell")
    options = {} if cell else {"num_layers": layers, "bidirectional": both}
    theirs = getattr(torch.nn, kind)(D, H, **options)
    ours = getattr(numba_rnn.torch, kind)(D, H, **options)
    ours.load_state_dict(theirs.state_dict())
    xs, dhs = torch.randn(T, N, D, requires_grad=True), torch.randn(T, N, H * (1 + both))

    h = torch.randn(layers * (1 + both), N, H)

    def run(module: Any) -> Any:
        if not cell:
            return module(xs, (h, h) if kind == "LSTM" else h)[0]
        hs, state = [], None
        for x in xs:
            state = module(x, state)
            hs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(hs)

    def train(module: Any) -> Any:
        def call() -> Any:
            module.zero_grad()
            xs.grad = None
            out = run(module)
            out.backward(dhs)
            found = out.detach(), xs.grad, *(p.grad for p in module.parameters())
            return [tensor.numpy() for tensor in found]

        return call

    def infer(module: Any) -> Any:
        def call() -> Any:
            with torch.inference_mode():
                return [run(module).numpy()]

        return call

    found = []
    for task in (train, infer):
        calls = {"torch": task(theirs), "ours": task(ours)}
        check_same({name: lambda call=call: tuple(call()) for name, call in calls.items()})
        seconds = in_turn(calls, rounds, 0.003)
        found += [statistics.median(seconds[name]) for name in ("torch", "ours")]
    return tuple(found)  # type: ignore[return-value]


def run_child(sizes: list[tuple[Any, ...]], kinds: list[str], threads: int, rounds: int) -> None:
    """The table of one number of threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.set_num_threads(threads)
    print(f"\n{threads} thread{'s' if threads > 1 else ''}; milliseconds")
    print(
        f"  {'':9}{'layers':>7}{'T':>5}{'N':>4}{'D':>5}{'H':>5}"
        f"{'train: torch':>15}{'ours':>9}{'times':>7}{'infer: torch':>15}{'ours':>9}{'times':>7}"
    )
    for kind in kinds:
        cells = [(1, False, STEPS, *size) for size in CELLS]
        for size in cells if kind.endswith("Cell") else sizes:
            layers, both, T, N, D, H = size
            train, ours, infer, ours_infer = (1e3 * s for s in measured(kind, size, rounds))
            print(
                f"  {kind:9}{str(layers) + ' x 2' * both:>7}{T:>5}{N:>4}{D:>5}{H:>5}"
                f"{train:>15.3f}{ours:>9.3f}{train / ours:>7.2f}"
                f"{infer:>15.3f}{ours_infer:>9.3f}{infer / ours_infer:>7.2f}",
                flush=True,
            )


def main(
    kind: Annotated[list[str] | None, typer.Option(help="LSTM, GRUCell ...; all of them.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Numbers of threads; 1 and 2.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1)] = 9,
    quick: Annotated[bool, typer.Option(help="Small sizes, few rounds.")] = False,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Time torch.nn's recurrent modules and what accelerate() puts in their place."""
    kinds, counts = kind or KINDS, threads or [1, 2]
    if child:
        run_child(QUICK if quick else SIZES, kinds, counts[0], 3 if quick else rounds)
        return
    limits = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for count in counts:  # libraries count threads when they are imported
        command = [sys.executable, "-m", "benchmarks.torch_dropin", "--child", f"--rounds={rounds}"]
        command += [f"--kind={k}" for k in kinds] + [f"--threads={count}"] + ["--quick"] * quick
        subprocess.run(command, env={**os.environ, **dict.fromkeys(limits, str(count))}, check=True)


if __name__ == "__main__":
    typer.run(main)
