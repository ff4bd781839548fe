"""Training a language model with several ranks, each on one thread, against one process.

    python -m benchmarks.parallel                   1 rank, 2 ranks ... as many as there are cores
    python -m benchmarks.parallel --vocabulary 10000 --hidden 512

    tokens/s   of the whole batch through forward, backward, clipping and Adam: the median, and the
               best, which is nearer to what a machine without other work gives
    gain       over one rank: of the medians; of the best; and by processor time, which other
               programs hardly touch: that of one rank's step over that of one of several, plus the
               all-reduce
    adding up  the share of a step that goes to the all-reduce alone, all ranks being ready; a
               backward pass that overlapped with it could save no more than that
    waiting    the share of a step that a rank spends in it, waiting for others included (the mean
               over ranks)

One job has all ranks; the numbers of ranks take turns in it, those who have no part sleep. It
takes the packages of the extra ``mpi``, and an MPI.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(
    ranks: Annotated[int, typer.Option(help="At most so many; 0: as many as cores.")] = 0,
    hidden: Annotated[int, typer.Option(help="Units, and size of the embedding.")] = 512,
    layers: Annotated[int, typer.Option(help="Recurrent layers.")] = 1,
    batch: Annotated[int, typer.Option(help="Rows of the whole batch.")] = 64,
    time_size: Annotated[int, typer.Option("--time", help="Steps of a block.")] = 35,
    vocabulary: Annotated[int, typer.Option(help="Different tokens.")] = 100,
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1)] = 15,
    one_of_them: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Tokens a second of 1, 2, 4 ... ranks, and what adding up takes."""
    sizes = hidden, layers, batch, time_size, vocabulary
    if one_of_them:
        measure(sizes, rounds)
        return
    most = ranks or len(os.sched_getaffinity(0))
    own = Path(sys.executable).with_name("mpiexec")
    launcher = str(own) if own.exists() else shutil.which("mpiexec")
    if launcher is None:
        raise SystemExit("no mpiexec: pip install mpich, or the system's MPI")
    names = ("hidden", "layers", "batch", "time", "vocabulary", "rounds")
    options = [f"--{name}={value}" for name, value in zip(names, (*sizes, rounds), strict=True)]
    command = [launcher, "-n", str(most), sys.executable, "-m", "benchmarks.parallel"]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "NUMBA_RNN_BACKEND": "numba"}
    subprocess.run([*command, *options, "--one-of-them"], env=environment, check=True)


class Timed:
    """Ranks whose ``add_up`` keeps a book of how long it takes."""

    def __init__(self, ranks: Any) -> None:
        self._ranks, self.seconds, self.worked = ranks, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ranks, name)

    def add_up(self, buffer: Any) -> None:
        begun, worked = time.perf_counter(), time.process_time()
        self._ranks.add_up(buffer)
        self.seconds += time.perf_counter() - begun
        self.worked += time.process_time() - worked


def steps(ranks: Any, sizes: tuple[int, ...]) -> Any:
    """A function that trains for one step, and the buffer that is added up in it, or None."""
    import numpy as np

    from numba_rnn.models import Rnnlm
    from numba_rnn.training import Adam, TruncatedBPTT, clip_grads
    from numba_rnn.training.shared import SharedBatch

    hidden, layers, batch, time_size, vocabulary = sizes
    model = Rnnlm(vocabulary, hidden, hidden, layers=layers, dropout=0.2, rng=0)
    corpus = np.random.default_rng(0).integers(0, vocabulary, batch * time_size + 1)
    blocks, adam = TruncatedBPTT(corpus, batch, time_size), Adam(1e-4)
    ((xs, ts),) = list(blocks)
    shared = None
    if ranks.size > 1:
        shared = SharedBatch(model, ranks, blocks)
        shared.begin()

    def step() -> None:
        if shared is None:
            model.forward(xs, ts)
            model.backward()
        else:
            shared.gradient(xs, ts, False)
        clip_grads(model.grads, 1.0)
        adam.update(model.params, model.grads)

    return step, None if shared is None else shared._buffer


def measure(sizes: tuple[int, ...], rounds: int) -> None:
    """What every rank runs."""
    from mpi4py import MPI

    from numba_rnn.training.ranks import Alone, MpiRanks

    world = MPI.COMM_WORLD

    def meet() -> None:
        """Wait for all ranks, without keeping a core busy."""
        request = world.Ibarrier()
        while not request.Test():
            time.sleep(0.001)

    counts = [1]
    while counts[-1] < world.size:
        counts.append(min(2 * counts[-1], world.size))
    runs: dict[int, Any] = {}
    for count in counts:
        comm = world.Split(0 if world.rank < count else MPI.UNDEFINED)
        if world.rank < count:
            ranks = Timed(Alone() if count == 1 else MpiRanks(MPI, comm=comm))
            runs[count] = (ranks, *steps(ranks, sizes))
            for _ in range(2):
                runs[count][1]()
        meet()
    load = os.getloadavg()[0]
    seconds, work, waiting, adding = ({count: [] for count in counts} for _ in range(4))
    for _ in range(rounds):
        for count in counts:
            meet()
            if count not in runs:
                continue
            ranks, step, buffer = runs[count]
            ranks.seconds = ranks.worked = 0.0
            begun, worked = time.perf_counter(), time.process_time()
            for _ in range(3):
                step()
            seconds[count].append((time.perf_counter() - begun) / 3)
            work[count].append((time.process_time() - worked - ranks.worked) / 3)
            waiting[count].append(ranks.seconds / 3)
            if buffer is not None:
                for _ in range(5):
                    ranks.broadcast(None)  # all are there, awake
                    begun = time.perf_counter()
                    ranks.add_up(buffer)
                    adding[count].append(time.perf_counter() - begun)
                buffer *= 0
    waits = world.gather({n: statistics.median(w) for n, w in waiting.items() if w})
    if waits is None:
        return
    hidden, layers, batch, time_size, vocabulary = sizes
    tokens = batch * time_size
    print(
        f"LSTM, H {hidden}, {layers} layers, vocabulary {vocabulary}, batch {batch}, time "
        f"{time_size}, float32, a thread each; load {load:.1f} before, {os.getloadavg()[0]:.1f} "
        f"after, {os.cpu_count()} cores"
    )
    print(" ranks  tokens/s      best   gain   best  by processor time  adding up  waiting")
    middle = {n: statistics.median(times) for n, times in seconds.items()}
    for n in counts:
        line = f"{n:>6}{tokens / middle[n]:>10,.0f}{tokens / min(seconds[n]):>10,.0f}"
        line += f"{middle[1] / middle[n]:>7.2f}{min(seconds[1]) / min(seconds[n]):>7.2f}"
        if n > 1:
            waited = statistics.mean(w[n] for w in waits if n in w)
            adds, works = (
                statistics.median(adding[n]),
                {n: statistics.median(work[n]) for n in work},
            )
            share, by_work = adds / middle[n], works[1] / (works[n] + adds)
            line += f"{by_work:>19.2f}"
            line += f"{share:>11.1%}{waited / middle[n]:>9.1%}"
        print(line)


if __name__ == "__main__":
    typer.run(main)
