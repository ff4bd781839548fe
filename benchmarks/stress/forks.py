"""Forks of a process whose threads use the engine, some of them for the first time.

    python -m benchmarks.stress.forks                   1000 forks, by fresh processes of 50 each

A process starts threads, which first compile or load what they need and then go on computing, and
forks meanwhile; its children compute, too. A child is lost that crashes, hangs for longer than
--patience, or computes other numbers than its parent.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
import typer

import numba_rnn

KINDS = "gru", "lstm", "mgu", "rnn", "light_gru", "slstm"


def compute(kind: str, seed: int = 0) -> list[bytes]:
    """A layer's outputs and gradients, in bytes."""
    layer = numba_rnn.time_layer(kind).create(3, 8, rng=seed)
    hs = layer.forward(np.ones((2, 3, 3), np.float32))
    return [array.tobytes() for array in (hs, layer.backward(hs), *layer.grads)]


def fork_under_load(count: int, threads: int, patience: int) -> Counter[str]:
    """Fork so many times while threads compute; what became of the children."""
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    over = threading.Event()

    def load(k: int) -> None:
        while not over.is_set():
            for kind in KINDS[k % len(KINDS) :] + KINDS[: k % len(KINDS)]:
                compute(kind)

    workers = [threading.Thread(target=load, args=(k,)) for k in range(threads)]
    for worker in workers:
        worker.start()
    children: dict[int, tuple[str, int]] = {}
    for k in range(count):
        time.sleep(0.01)
        kind = KINDS[k % len(KINDS)]
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(patience)
            os.write(write, b"".join(compute(kind)))
            os._exit(0)
        os.close(write)
        children[child] = kind, read
    over.set()
    ends: Counter[str] = Counter()
    for child, (kind, read) in children.items():
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGALRM:
            ends["hung"] += 1
        elif status:
            ends["crashed"] += 1
        else:
            ends["right" if said == b"".join(compute(kind)) else "wrong"] += 1
    for worker in workers:
        worker.join()
    return ends


def main(
    count: Annotated[int, typer.Option(help="Forks.")] = 1000,
    each: Annotated[int, typer.Option(help="Forks of each process.")] = 50,
    threads: Annotated[int, typer.Option(help="Threads that compute meanwhile.")] = 4,
    at_once: Annotated[int, typer.Option(help="Processes at the same time.")] = 1,
    patience: Annotated[int, typer.Option(help="Seconds after which a child hangs.")] = 300,
    one: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Fork while threads compute."""
    if one:
        print(json.dumps(fork_under_load(count, threads, patience)))
        return
    start, ends = time.monotonic(), Counter()
    command = [
        sys.executable, "-m", __spec__.name, "--one", "--count", str(each),
        "--threads", str(threads), "--patience", str(patience),
    ]  # fmt: skip

    def run(_: int) -> Counter[str]:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=4 * patience, check=True
            )
        except subprocess.SubprocessError as error:
            print(error, getattr(error, "stderr", ""))
            return Counter({"lost with their parent": each})
        return Counter(json.loads(done.stdout))

    with ThreadPoolExecutor(at_once) as pool:
        for some in pool.map(run, range(-(-count // each))):
            ends += some
    words = ", ".join(f"{number} {end}" for end, number in ends.items())
    print(f"{ends.total()} forks under load: {words}; {time.monotonic() - start:.0f} s")
    if set(ends) != {"right"}:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
