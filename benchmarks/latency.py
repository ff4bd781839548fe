"""How long a step of a stream takes, not on average but at worst.

    python -m benchmarks.latency

One sequence, one step a call, one thread, called from Python as a control loop would; every call is
timed on its own (which adds about 0.05 us). Microseconds: the median, what 99 % and 99.9 % of the
steps take at most, and the slowest. A step allocates nothing and takes no lock, so what is above
the median is the machine's doing: interrupts, other programs, Python's garbage collector, which is
off here as in a program that cares.
"""

import gc
import time
from typing import Annotated

import typer

SIZES = [("lstm", 4, 16), ("lstm", 32, 64), ("gru", 32, 64), ("lstm", 64, 128), ("lstm", 128, 512)]


def main(
    steps: Annotated[int, typer.Option(help="Steps of each.", min=1000)] = 300_000,
    size: Annotated[list[str] | None, typer.Option(help="cell,D,H instead of the usual.")] = None,
) -> None:
    """Print how long steps of streams take."""
    import numpy as np

    from numba_rnn import TimeRecurrent, use_backend

    use_backend("numba", strict=True)
    sizes = [(c, int(D), int(H)) for c, D, H in (s.split(",") for s in size or [])] or SIZES
    print(f"  {'cell':10}{'D':>5}{'H':>5}{'median':>10}{'99 %':>10}{'99.9 %':>10}{'slowest':>10}")
    for cell, D, H in sizes:
        stream = TimeRecurrent.create(D, H, cell=cell, rng=0).stream()
        x = np.random.default_rng(0).standard_normal(D).astype(np.float32)
        nanoseconds = np.zeros(steps, np.int64)
        clock, step = time.perf_counter_ns, stream.step
        for _ in range(1000):
            step(x)
        gc.disable()
        for k in range(steps):
            start = clock()
            step(x)
            nanoseconds[k] = clock() - start
        gc.enable()
        found = np.quantile(nanoseconds, [0.5, 0.99, 0.999, 1.0]) / 1e3
        print(f"  {cell:10}{D:>5}{H:>5}" + "".join(f"{us:>10.2f}" for us in found), flush=True)


if __name__ == "__main__":
    typer.run(main)
