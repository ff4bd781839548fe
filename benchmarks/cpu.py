"""The numba engine against PyTorch, JAX and ONNX Runtime on a CPU.

    python -m benchmarks.cpu                    everything, 1 and 2 threads
    python -m benchmarks.cpu --what train --threads 1 --cell lstm

All that is compared computes the same numbers (checked first), in one process, in turn: ours,
theirs, ours, theirs ..., with the same number of threads, on as many cores. Figures are medians;
a ratio is the time of the fastest peer over ours, so above 1 we are faster.

    train   forward and backward over a block of time, gradients of inputs and weights
    infer   the whole sequence, nothing kept: a stream of ours against sessions of theirs
    once    a layer's forward over one step, as in a loop of one's own: its weights are read once
    step    one step of a stream, batch 1, called from Python
    last    the loss looks at the last step only, as in classification: gradients die out on the
            way back, through numbers that are slow to compute with
    odd     train, at sizes that fit no block

The floor is what the machine allows: arithmetic over the speed of the best matrix product here,
or bytes over the speed of memory, whichever takes longer.
"""

import contextlib
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

GRID = [
    (64, 1, 32, 32),
    (128, 1, 128, 128),
    (128, 32, 64, 64),
    (128, 32, 256, 256),
    (35, 20, 100, 100),
    (35, 20, 650, 650),
    (64, 64, 512, 512),
    (256, 16, 128, 128),
    (1000, 8, 32, 32),
]
ODD = [(50, 3, 47, 47), (50, 7, 130, 130), (100, 8, 1, 64), (2, 16, 64, 64)]
ONCE = [(1, N, H, H) for H in (64, 128, 256, 512, 1024) for N in (1, 4, 16, 32)]
STEP = [(1, 1, H, H) for H in (16, 32, 64, 128, 256, 512)]
LAST = [(600, 16, 128, 128)]
SIZES = {"train": GRID, "infer": GRID, "once": ONCE, "step": STEP, "last": LAST, "odd": ODD}
CELLS = ("lstm", "gru_reset_after", "rnn")
Calls = dict[str, Callable[[], Any]]


def calls(what: str, cell: str, sizes: tuple[int, ...], threads: int) -> Calls:
    """The calls to be timed, ours first."""
    from benchmarks import peers

    task = peers.task(cell, *sizes)
    if what == "last":
        task.dhs[:, :-1] = 0
        return {"ours": peers.ours_train(task), "torch": peers.torch_train(task, last_only=True)}
    if what in ("train", "odd"):
        return {
            "ours": peers.ours_train(task),
            "torch": peers.torch_train(task),
            "jax": peers.jax_train(task),
        }
    if what == "infer":
        return {
            "ours": peers.ours_infer(task),
            "torch": peers.torch_infer(task),
            "jax": peers.jax_infer(task),
            "onnxruntime": peers.onnx_infer(task, threads),
        }
    if what == "once":
        return {"ours": peers.ours_forward(task), "torch": peers.torch_infer(task)}
    return {
        "ours": peers.ours_step(task),
        "torch cell": peers.torch_cell_step(task),
        "torch layer": peers.torch_layer_step(task),
        "onnxruntime": peers.onnx_step(task),
    }


def check_same(calls: Calls) -> None:
    """Refuse to compare what does not compute the same."""
    import numpy as np

    ours = calls["ours"]()
    for name, call in calls.items():
        theirs = call()
        pairs = zip(ours, theirs, strict=False) if isinstance(ours, tuple) else [(ours, theirs)]
        for a, b in pairs:
            error = float(np.abs(a - b).max() / np.abs(b).max())
            if not error < 1e-3:
                raise SystemExit(f"{name} computes something else: off by {error:.1e}")


def in_turn(
    calls: Calls, rounds: int, settle: float, least: float = 0.04
) -> dict[str, list[float]]:
    """Seconds of each call in every round, all of them in turn, for at least so many seconds."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(2):
            call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(least / max(time.perf_counter() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.01)  # other libraries' threads go on looking for work for a while ...
            begun = time.perf_counter()
            while time.perf_counter() - begun < settle:  # ... and this one's have to wake up
                call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    gc.enable()
    return seconds


def measure(calls: Calls, rounds: int, settle: float) -> dict[str, float]:
    """Median seconds of each call, all of them in turn."""
    seconds = in_turn(calls, rounds, settle)
    return {name: statistics.median(times) for name, times in seconds.items()}


# ---- the floor


def machine(threads: int) -> dict[str, Any]:
    """This machine, and the best that it can do with that many threads."""
    import numpy as np
    import torch

    from numba_rnn import explain

    best = 0.0
    a = torch.randn(1024, 1024)
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    best = max(best, our_product_speed() * threads)
    source = np.ones(1 << 25, np.float32)
    to, bandwidth = np.empty_like(source), 0.0
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(to, source)
        bandwidth = max(bandwidth, 2 * source.nbytes / (time.perf_counter() - start))
    found = explain()
    return {
        "device": found.device,
        "threads": threads,
        "simd_bits": found.simd_bits,
        "operations_per_second": best,
        "bytes_per_second": bandwidth,
        "versions": versions(),
    }


def our_product_speed() -> float:
    """Operations a second of one thread in our own product, its matrices in the first cache."""
    import numpy as np

    from numba_rnn import use_backend
    from numba_rnn.kernels.cpu import gemm, kernel_cache, threads

    use_backend("numba", strict=True)

    memory = np.ones(1 << 16, np.float32)
    start = -(-memory.ctypes.data // 64) * 64
    rows, inner, vectors = 240, 128, 4
    words = np.array(gemm.Product(
        # the same row of A again and again: the arithmetic alone
        a=start, a_row=0, a_segment=64 * 241, a_group=0, groups=1, inner=inner,
        b=start, b_vector=64 * 129, c=start + (1 << 17), c_row=0, c_vector=64,
        rows=rows, columns=16 * vectors, add=0, then=0,
    ))  # fmt: skip
    best = 0.0
    for _ in range(200):
        begun = time.perf_counter()
        threads.call_kernel(kernel_cache.compiled("gemm.multiply", "float32"), words.ctypes.data)
        best = max(best, 2 * rows * inner * 64 / (time.perf_counter() - begun))
    return best


def versions() -> dict[str, str]:
    """Of all that takes part, where it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("numba-rnn", "numba", "numpy", "torch", "jax", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def floor(what: str, cell: str, sizes: tuple[int, ...], can: dict[str, Any]) -> float:
    """Seconds that the machine needs at least."""
    from numba_rnn import cells

    T, N, D, H = sizes
    kind = cells.get(cell)
    columns = len(kind.input_gates) * H
    products = 1 if what in ("infer", "once", "step") else 3
    operations = products * 2 * T * N * columns * (D + H)
    weights = columns * (D + H)
    numbers = T * N * (D + H) + weights
    if products == 3:
        numbers = 2 * numbers + weights + T * N * H * (len(kind.saved) + len(kind.states))
    cached = 4 * weights < 1 << 20 and what in ("once", "step")
    return max(
        operations / can["operations_per_second"],
        0.0 if cached else 4 * numbers / can["bytes_per_second"],
    )


# ---- the program


def run_child(what: list[str], cell: list[str], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Measure with one number of threads, in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    from numba_rnn import use_backend

    use_backend("numba", strict=True)
    torch.set_num_threads(threads)
    can = machine(threads)
    rows: list[dict[str, Any]] = [{"machine": can}]
    for kind in what:
        for name in cell:
            if kind in ("step",) and threads > 1:
                continue
            for sizes in SIZES[kind]:
                timed = calls(kind, name, sizes, threads)
                if kind != "step":
                    check_same(timed)
                found = measure(timed, rounds, 0.06 if threads > 1 else 0.003)
                row = {
                    "what": kind,
                    "cell": name,
                    "sizes": sizes,
                    "threads": threads,
                    "floor": floor(kind, name, sizes, can),
                    **found,
                }
                rows.append(row)
                show(row)
    return rows


def peers_of(row: dict[str, Any]) -> dict[str, float]:
    """The peers' times in a row."""
    names = ("torch", "jax", "onnxruntime", "torch cell", "torch layer")
    return {name: row[name] for name in names if name in row}


def ratio(row: dict[str, Any]) -> float:
    """The time of the fastest peer over ours."""
    return min(peers_of(row).values()) / row["ours"]


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    times = {"ours": row["ours"], **peers_of(row)}
    spelled = "".join(f"{name} {1e3 * seconds:.4g}  " for name, seconds in times.items())
    print(
        f"{row['what']:6}{row['threads']} thread{'s' if row['threads'] > 1 else ' '} "
        f"{row['cell']:16}{row['sizes']!s:22} ratio {ratio(row):6.2f}  "
        f"ours/floor {row['ours'] / row['floor']:5.2f}   ms: {spelled}",
        flush=True,
    )


def summary(rows: list[dict[str, Any]]) -> None:
    """Worst and mean ratio of each kind."""
    print(f"\n{'':24}{'worst':>8}{'mean':>8}{'mean, torch alone':>20}")
    kinds = sorted({(row["what"], row["threads"]) for row in rows})
    for what, threads in kinds:
        chosen = [row for row in rows if (row["what"], row["threads"]) == (what, threads)]
        ratios = [ratio(row) for row in chosen]
        torch = [row["torch"] / row["ours"] for row in chosen if "torch" in row]
        mean, alone = geometric_mean(ratios), geometric_mean(torch) if torch else math.nan
        print(
            f"{what:8}{threads} thread{'s' if threads > 1 else ' ':8}"
            f"{min(ratios):>8.2f}{mean:>8.2f}{alone:>20.2f}"
        )


def geometric_mean(numbers: list[float]) -> float:
    """The mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, numbers)))


def from_child(module: str, options: list[str], threads: int, out: str) -> Any:
    """The JSON that a program of ours, with so many threads, writes where the option out says."""
    part = Path(f".{module}-{os.getpid()}-{threads}.json")
    limits = dict.fromkeys(
        ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
        str(threads),
    )
    command = [sys.executable, "-m", module, *options, f"--threads={threads}", f"{out}={part}"]
    try:
        subprocess.run(command, env={**os.environ, **limits}, check=True)
        return json.loads(part.read_text(encoding="utf-8"))
    finally:
        part.unlink(missing_ok=True)


def main(
    what: Annotated[list[str] | None, typer.Option(help=" ".join(SIZES))] = None,
    cell: Annotated[list[str] | None, typer.Option(help=" ".join(CELLS))] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Numbers of threads; 1 and 2.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turn.", min=7)] = 7,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON too.")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Compare the numba engine with PyTorch, JAX and ONNX Runtime."""
    what, cell, threads = what or list(SIZES), cell or list(CELLS), threads or [1, 2]
    if child:
        rows = run_child(what, cell, threads[0], rounds)
        assert out is not None
        out.write_text(json.dumps(rows), encoding="utf-8")
        return
    rows, machines = [], []
    for count in threads:  # libraries ask for the number of threads when they are imported
        options = [f"--what={w}" for w in what] + [f"--cell={c}" for c in cell]
        options += ["--child", f"--rounds={rounds}"]
        first, *rest = from_child("benchmarks.cpu", options, count, "--out")
        machines.append(first["machine"])
        rows += rest
    summary(rows)
    for can in machines:
        print(
            f"\n{can['device']}, {can['threads']} of its cores, {can['simd_bits']} bits: at best "
            f"{can['operations_per_second'] / 1e9:.0f} GFLOP/s, "
            f"{can['bytes_per_second'] / 1e9:.0f} GB/s"
        )
    print(", ".join(f"{name} {version}" for name, version in machines[0]["versions"].items()))
    if out is not None:
        out.write_text(
            json.dumps({"machines": machines, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    typer.run(main)
