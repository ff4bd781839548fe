"""Results of the literature, trained again: ``python -m benchmarks.published --help``."""

from dataclasses import dataclass
from pathlib import Path

Row = tuple[str, str, str, float]  # what, the published number, ours, seconds


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    data: Path
    out: Path | None
    epochs: int
