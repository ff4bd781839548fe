"""Trainings through the command line that are killed at random moments, and resumed until they end.

    python -m benchmarks.stress.kills                 300 kills on the numba engine
    python -m benchmarks.stress.kills --help

A run is killed by SIGKILL, SIGTERM, SIGHUP, or SIGTERM and SIGKILL a moment later, as schedulers do
it: one time in four while it starts, else while it trains, where it writes a checkpoint after every
iteration. After each kill its checkpoints must load, and the last one must be no older than before.
In the end ``last.safetensors`` and ``best.safetensors`` must be, bit for bit, those of a run that
nobody killed. Exits 1 where anything was lost, hung, or came out otherwise.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from numba_rnn.kernels.cpu_info import cpu_name
from numba_rnn.training import CheckpointError, load_checkpoint

SIZES = "--embed 16 --hidden 32 --batch 4 --time 16 --dropout 0.2 --epochs 3 --patience 0"
KINDS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGTERM then SIGKILL")
HANGS = 300.0  # seconds in which a run, or what is left of it after a signal, has ended


class Training:
    """A process that trains in a folder: anew, or what is there already."""

    def __init__(self, folder: Path, text: Path, backend: str) -> None:
        self.folder, self.before = folder, _written(folder)
        to = ["--resume" if (folder / "last.safetensors").exists() else "--out", str(folder)]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "numba_rnn", "train", "--text", str(text), *to),
                *("--backend", backend, "--strict", "--save-every", "1", "--quiet"),
                *(SIZES.split() if to[0] == "--out" else ()),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_it_trains(self) -> None:
        """Until it has written a checkpoint, or has ended."""
        while self.process.poll() is None and _written(self.folder) == self.before:
            time.sleep(0.002)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said on stderr. Raises subprocess.TimeoutExpired."""
        try:
            said = self.process.communicate(timeout=HANGS)[1]
        finally:
            self.process.kill()
        return self.process.returncode, said


def _written(folder: Path) -> int:
    """When the last checkpoint was, 0 without one."""
    last = folder / "last.safetensors"
    return last.stat().st_mtime_ns if last.exists() else 0


def kill(process: subprocess.Popen[str], kind: str, rng: random.Random) -> None:
    for name in kind.split(" then "):
        process.send_signal(getattr(signal, name))
        time.sleep(rng.uniform(0, 0.02))


def iteration_of(folder: Path) -> int:
    """That of the last checkpoint, -1 without one. Raises CheckpointError for one that is cut."""
    iterations = {
        path.name: load_checkpoint(path)[1]["trainer"]["iteration"]
        for path in folder.glob("[!.]*.safetensors")
    }
    return int(iterations.get("last.safetensors", -1))


def results(folder: Path) -> list[bytes]:
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("last", "best")]


def stress(count: int, backend: str, rng: random.Random, folder: Path) -> list[str]:
    """Kill so many times, print the figures, and return what went wrong."""
    text = folder / "text.txt"
    text.write_text("".join(rng.choices("abcdefgh \n", k=6_000)), encoding="utf-8")
    began = time.monotonic()
    whole = Training(folder / "whole", text, backend)
    whole.wait_until_it_trains()
    starting = time.monotonic() - began
    code, said = whole.end()
    if code:
        return [f"the run that nobody kills: exit {code}, {said}"]
    training = time.monotonic() - began - starting
    last = iteration_of(whole.folder)
    print(f"a run starts in {starting:.1f} s; {last} iterations in {training:.1f} s", flush=True)

    kills: Counter[str] = Counter()
    moments: Counter[str] = Counter()
    wrong: list[str] = []
    finished = runs = 0
    while kills.total() < count or finished < runs:
        run = folder / f"run{finished}"
        runs = finished + 1
        before = iteration_of(run) if run.is_dir() else -1
        trained = Training(run, text, backend)
        kind = KINDS[kills.total() % len(KINDS)]
        try:
            killing = kills.total() < count and before < last  # else let it come to its end
            if killing:
                if rng.random() < 0.25:
                    time.sleep(rng.uniform(0, starting))
                else:
                    trained.wait_until_it_trains()
                    time.sleep(rng.uniform(0, training / 4))
                killing = trained.process.poll() is None
                kill(trained.process, kind, rng)
            code, said = trained.end()
        except subprocess.TimeoutExpired:
            return [*wrong, f"{run.name} hangs, after {kind}"]
        try:
            after = iteration_of(run)
        except CheckpointError as error:
            return [*wrong, f"{run.name}, after {kind}: {error}"]
        if after < before:
            wrong.append(f"{run.name}, after {kind}: iteration {after}, after {before}")
        if killing and code:
            kills[kind] += 1
            moments["starting" if after == before else "training"] += 1
            if code not in (130, *(-getattr(signal, name) for name in kind.split(" then "))):
                wrong.append(f"{run.name}, after {kind}: exit {code}, {said}")
        elif code:
            return [*wrong, f"{run.name}: exit {code}, {said}"]
        if code == 0:
            if results(run) != results(folder / "whole"):
                wrong.append(f"{run.name} is not what the run that nobody killed is")
            finished += 1
            print(f"{run.name} ended, {kills.total()} kills so far", flush=True)
    each = ", ".join(f"{number} {kind}" for kind, number in sorted(kills.items()))
    print(
        f"{kills.total()} kills ({each}; {moments['training']} of them after it had gone on), "
        f"{finished} runs resumed to their end; {len(wrong)} wrong"
    )
    return wrong


def main(
    count: Annotated[int, typer.Option(help="Kills.")] = 300,
    backend: Annotated[str, typer.Option(help="The engine.")] = "numba",
    seed: Annotated[int | None, typer.Option(help="Of moments and signals.")] = None,
) -> None:
    """Kill trainings at random moments, and resume them. It needs the signals of POSIX."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children would ignore it
    seed = time.time_ns() % 10**9 if seed is None else seed
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        wrong = stress(count, backend, random.Random(seed), Path(folder))
    print(f"seed {seed}, {time.monotonic() - began:.0f} s, on {cpu_name()}", *wrong, sep="\n")
    raise typer.Exit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
