"""The first use of the engine by many threads at once, in many fresh processes.

    python -m benchmarks.stress.first_use                        100 processes of 8 threads
    python -m benchmarks.stress.first_use --count 5 --cold       nothing is compiled yet, each time

A process is lost that crashes, hangs for longer than --patience, or computes other numbers than
the first one.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

PROGRAM = """
import sys
import threading
import numpy as np
import numba_rnn

count = int(sys.argv[1])
kinds = [numba_rnn.time_layer(kind) for kind in ("gru", "lstm", "mgu")]
x, together, results = np.ones((2, 3, 3), np.float32), threading.Barrier(count), set()

def use(k):
    together.wait()
    layer = kinds[k % 3].create(3, 8, rng=0)
    hs = layer.forward(x)
    layer.backward(hs)
    results.add((k % 3, hs.tobytes().hex(), layer.grads[1].tobytes().hex()))

threads = [threading.Thread(target=use, args=(k,)) for k in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(results))
"""


def outcome(threads: int, patience: float, cache: str | None = None) -> tuple[str, str]:
    """How a process ended, "done", "crashed" or "hung", and what it printed."""
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(threads)],
            env=environment, capture_output=True, text=True, timeout=patience, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hung", ""
    return "crashed" if done.returncode else "done", done.stdout or done.stderr


def main(
    count: Annotated[int, typer.Option(help="Processes.")] = 100,
    threads: Annotated[int, typer.Option(help="Threads of each.")] = 8,
    at_once: Annotated[int, typer.Option(help="Processes at the same time.")] = 2,
    cold: Annotated[bool, typer.Option(help="Each has an empty cache, and compiles.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds after which a process hangs.")] = 600.0,
) -> None:
    """Start processes whose threads all use the engine at once."""
    first, want = outcome(threads, patience)  # it may compile

    def run(_: int) -> tuple[str, str]:
        if not cold:
            return outcome(threads, patience)
        with tempfile.TemporaryDirectory() as folder:
            return outcome(threads, patience, folder)

    start = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(run, range(count)))
    ends = [end for end, _ in found]
    wrong = sum(end == "done" and said != want for end, said in found)
    print(
        f"{count} processes of {threads} threads{' without a cache' if cold else ''}: "
        f"{ends.count('crashed')} crashed, {ends.count('hung')} hung, {wrong} other numbers; "
        f"{time.monotonic() - start:.0f} s"
    )
    bad = [said for end, said in found if end == "crashed"]
    if bad:
        print(bad[0])
    if first != "done" or set(ends) != {"done"} or wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
