"""Results of the literature, trained again with this package.

    python -m benchmarks.published --what adding         minutes each; --what may be repeated
    python -m benchmarks.published --data ../shared/data  all but zaremba, with the data of the book

    chapter6    Deep Learning from Scratch 2, chapter 6: the perplexity of the weights that the book
                publishes on the Penn Treebank
    addition    chapter 7: sums such as '16+75' to '91', a peeky decoder that reads the question
                backwards; the share of sums that are right
    dates       chapter 8: 'september 27, 1994' to '1994-09-27', with attention
    mnist1d     RNNClassifier with its defaults on MNIST-1D (needs the package mnist1d)
    adding      the adding problem: the mean squared error of the sum of two marked numbers among T
                (baseline 0.167)
    copy        copy memory: the mean cross-entropy of ten symbols to be repeated after T steps
                (baseline 10 log 8 / (T + 20))
    digits      scikit-learn's digits, row by row and pixel by pixel, beside PyTorch
    characters  tiny Shakespeare: bits per character after --seconds, beside PyTorch
    zaremba     Zaremba et al. 2014, the medium LSTM on the Penn Treebank (hours: --out, --epochs)

Each prints its progress, and at the end a line: the published number, ours, seconds. With --out
addition, dates and zaremba write checkpoints, and go on from them when they are run again.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.published import Options, Row, characters, images, memory, ptb, seq2seq

RUNS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "chapter6": ptb.chapter6,
    "addition": seq2seq.addition,
    "dates": seq2seq.dates,
    "mnist1d": images.mnist1d,
    "adding": memory.adding,
    "copy": memory.copy,
    "digits": images.digits,
    "characters": characters.characters,
    "zaremba": ptb.zaremba,
}


def main(
    what: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(RUNS)}; all but the last.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The folder of the data; NUMBA_RNN_DATA.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of checkpoints.")] = None,
    epochs: Annotated[int, typer.Option(help="The epochs of zaremba.")] = 39,
    seconds: Annotated[float, typer.Option(help="The time of characters and digits.")] = 180,
) -> None:
    """Train again what others have published, and print both numbers."""
    folder = data or Path(os.environ.get("NUMBA_RNN_DATA", "."))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    options = Options(folder, out, epochs, seconds)
    rows = [row for name in what or list(RUNS)[:-1] for row in RUNS[name](options)]
    print(f"\n{'':36}{'published':>32}{'ours':>12}{'seconds':>9}")
    for name, published, ours, spent in rows:
        print(f"{name:36}{published:>32}{ours:>12}{math.ceil(spent):>9}")


if __name__ == "__main__":
    typer.run(main)
