"""Results of the literature, trained again: ``python -m benchmarks.published --help``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numba_rnn.training import Trainer

Row = tuple[str, str, str, float]  # what, the published number, ours, seconds


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    data: Path
    out: Path | None
    epochs: int
    seconds: float

    def folder(self, name: str) -> Path | None:
        """The folder of a run's checkpoints."""
        return None if self.out is None else self.out / name


def resume(trainer: Trainer) -> None:
    """Go on from the last checkpoint, if there is one."""
    last = trainer.folder and trainer.folder / "last.safetensors"
    if last and last.exists():
        trainer.restore(last)
        print(f"  on from iteration {trainer.iteration}", flush=True)


def forever(blocks: Any) -> Iterator[Any]:
    """The blocks or batches of one epoch after the other."""
    while True:
        yield from blocks
        blocks.rewind()
