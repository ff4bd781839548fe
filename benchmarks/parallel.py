"""Training a language model with several ranks, each on one thread, against one process.

    python -m benchmarks.parallel                   1 rank, 2 ranks ... as many as there are cores
    python -m benchmarks.parallel --vocabulary 10000 --hidden 512

    tokens/s   of the whole batch through forward, backward, clipping and Adam: the median, and the
               best, which is nearer to what a machine without other work gives
    gain       over one rank: of the medians, and of the best
    by work    the same by processor time, which other programs hardly touch: that of one rank's
               step over that of one of several and the all-reduce
    adding up  the share of a step that goes to the all-reduce alone, all ranks being ready; a
               backward pass that overlapped with it could save no more than that
    waiting    the share of a step that a rank spends in it, waiting for others included (the mean
               over ranks)
    apart      as many processes that do the same work and do not add up: what the machine, with
               all that runs on it, has to give

One job has all ranks; the lines of the table take turns in it, and ranks that have no part in one
sleep. It takes the packages of the extra ``mpi``, and an MPI.
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

from numba_rnn.kernels.cpu_info import cores

THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(
    ranks: Annotated[int, typer.Option(help="At most so many; 0: as many as cores.")] = 0,
    hidden: Annotated[int, typer.Option(help="Units, and size of the embedding.")] = 512,
    layers: Annotated[int, typer.Option(help="Recurrent layers.")] = 1,
    batch: Annotated[int, typer.Option(help="Rows of the whole batch.")] = 64,
    time_size: Annotated[int, typer.Option("--time", help="Steps of a block.")] = 35,
    vocabulary: Annotated[int, typer.Option(help="Different tokens.")] = 100,
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1)] = 30,
    one_of_them: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Tokens a second of 1, 2, 4 ... ranks, and what adding up takes."""
    sizes = hidden, layers, batch, time_size, vocabulary
    if one_of_them:
        measure(sizes, rounds)
        return
    most = ranks or cores()
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
    """Ranks whose ``allreduce`` keeps a book of how long it takes, or does nothing."""

    def __init__(self, ranks: Any, apart: bool = False) -> None:
        self._ranks, self._apart = ranks, apart
        self.seconds = self.worked = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ranks, name)

    def allreduce(self, buffer: Any) -> None:
        if self._apart:
            return
        begun, worked = time.perf_counter(), time.process_time()
        self._ranks.allreduce(buffer)
        self.seconds += time.perf_counter() - begun
        self.worked += time.process_time() - worked


class Candidate:
    """A line of the table, on one of its ranks: a model that trains, and what was measured."""

    def __init__(self, ranks: Timed, sizes: tuple[int, ...]) -> None:
        import numpy as np

        from numba_rnn.models import Rnnlm
        from numba_rnn.training import Adam, TruncatedBPTT
        from numba_rnn.training.data_parallel import DataParallel

        hidden, layers, batch, time_size, vocabulary = sizes
        self.ranks, self.optimiser = ranks, Adam(1e-4)
        self.model = Rnnlm(vocabulary, hidden, hidden, layers=layers, dropout=0.2, rng=0)
        corpus = np.random.default_rng(0).integers(0, vocabulary, batch * time_size + 1)
        blocks = TruncatedBPTT(corpus, batch, time_size)
        ((self.xs, self.ts),) = list(blocks)
        self.shared = None
        if ranks.size > 1:
            self.shared = DataParallel(self.model, ranks, blocks)
            self.shared.begin()
        self.seconds: list[float] = []
        self.work: list[float] = []  # seconds of the processor, but for the all-reduce
        self.waiting: list[float] = []
        self.adding: list[float] = []
        for _ in range(2):
            self.step()

    def step(self) -> None:
        """Train for one iteration, as a Trainer does."""
        from numba_rnn.training import clip_grads

        if self.shared is None:
            self.model.forward(self.xs, self.ts)
            self.model.backward()
        else:
            self.shared.gradient(self.xs, self.ts, False)
        clip_grads(self.model.grads, 1.0)
        self.optimiser.update(self.model.params, self.model.grads)

    def measure(self) -> None:
        """One step, and one all-reduce by itself."""
        self.step()  # wakes up
        self.ranks.seconds = self.ranks.worked = 0.0
        begun, worked = time.perf_counter(), time.process_time()
        self.step()
        self.seconds.append(time.perf_counter() - begun)
        self.work.append(time.process_time() - worked - self.ranks.worked)
        self.waiting.append(self.ranks.seconds)
        if self.shared is not None:
            buffer = self.shared._buffer
            self.ranks.broadcast(None)  # all are there
            self.ranks.seconds = 0.0
            self.ranks.allreduce(buffer)
            self.adding.append(self.ranks.seconds)
            buffer *= 0


def measure(sizes: tuple[int, ...], rounds: int) -> None:
    """The work of every rank."""
    from mpi4py import MPI

    from numba_rnn.training.distributed import MpiGroup, SingleProcess

    world = MPI.COMM_WORLD

    def meet() -> None:
        """Wait for all ranks, without keeping a core busy."""
        request = world.Ibarrier()
        while not request.Test():
            time.sleep(0.001)

    counts = [1]
    while counts[-1] < world.size:
        counts.append(min(2 * counts[-1], world.size))
    lines = [(1, False), *((count, apart) for count in counts[1:] for apart in (False, True))]
    mine: dict[tuple[int, bool], Candidate] = {}
    for count, apart in lines:
        comm = world.Split(0 if world.rank < count else MPI.UNDEFINED)
        if world.rank < count:
            ranks = SingleProcess() if count == 1 else MpiGroup(MPI, comm=comm)
            mine[count, apart] = Candidate(Timed(ranks, apart), sizes)
        meet()
    load = load_of_machine()
    for _ in range(rounds):
        for line in lines:
            meet()
            if line in mine:
                mine[line].measure()
    waits = world.gather({line: statistics.median(mine[line].waiting) for line in mine})
    if waits is None:
        return
    hidden, layers, batch, time_size, vocabulary = sizes
    print(
        f"LSTM, H {hidden}, {layers} layers, vocabulary {vocabulary}, batch {batch}, time "
        f"{time_size}, float32, a thread each; load {load:.1f} before, {load_of_machine():.1f} "
        f"after, {os.cpu_count()} cores"
    )
    print("ranks     tokens/s      best   gain   best  by work  adding up  waiting")
    one = mine[1, False]
    middle, best, work = median_of(one.seconds), min(one.seconds), median_of(one.work)
    for count, apart in lines:
        this = mine[count, apart]
        seconds, least = median_of(this.seconds), min(this.seconds)
        text = f"{count} apart" if apart else f"{count}"
        text = f"{text:<8}" + "".join(f"{batch * time_size / s:>10,.0f}" for s in (seconds, least))
        text += f"{middle / seconds:>7.2f}{best / least:>7.2f}"
        if count > 1:
            adding = median_of(this.adding)
            text += f"{work / (median_of(this.work) + adding):>9.2f}"
        if count > 1 and not apart:
            waited = statistics.mean(w[count, apart] for w in waits if (count, apart) in w)
            text += f"{adding / seconds:>11.1%}{waited / seconds:>9.1%}"
        print(text, flush=True)


def load_of_machine() -> float:
    """How many programs have wanted a processor in the last minute; NaN on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def median_of(numbers: list[float]) -> float:
    """Their median, 0 of none."""
    return statistics.median(numbers) if numbers else 0.0


if __name__ == "__main__":
    typer.run(main)
