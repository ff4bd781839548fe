"""Truncated backpropagation through time, as an object.

A long sequence is cut into ``batch_size`` streams of equal length, and the streams into blocks of
``time_size`` steps. Block k of a row follows on from block k - 1 of the same row, so a stateful
layer may carry its state across; the gradient stops at the block's edge (Williams & Peng 1990).
With one block it is full BPTT.

    corpus   0 1 2 3 4 5 6 7 8 9 ...            batch_size 2, time_size 3

    row 0    0 1 2 | 3 4 5 | ...
    row 1    a b c | d e f | ...                a = the middle of the corpus

Blocks of varying length have other edges in every epoch (Merity et al. 2017, section 5), so that it
is not always the same steps that learn from few steps before them.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from ..layers.initialisers import Seed, generator, new_seed
from ..typing import AnyArray, IntArray
from ..validation import expect_int, expect_plain_array
from .resumable import ResumableData, expect_steps


class TruncatedBPTT(ResumableData):
    """An iterator over the blocks of a corpus for truncated backpropagation through time.

    It yields pairs (xs, ts) of arrays (batch_size, time_size, ...). Row i of one block continues
    row i of the block before. Steps at the end that do not fill a block are left out; blocks of
    varying length leave none out.

    Parameters
    ----------
    corpus : (L,) integers or (L, D) array
        Tokens, or frames of D features.
    batch_size : int
        The number of rows in a block: streams side by side.
    time_size : int
        The number of steps in a block.
    targets : (L, ...) array, optional
        The target of each step; by default the corpus itself, one step ahead.
    varying : bool, default False
        Whether blocks have different lengths, drawn anew in each epoch: those of a normal
        distribution with mean ``time_size`` (one in twenty: half of it) and a standard deviation of
        5, at least 5 steps, or ``time_size`` if that is less. A ``Trainer`` multiplies the learning
        rate by length / ``time_size``.
    rng : numpy.random.Generator, int or None, default None
        A random generator or a seed for these lengths.

    Attributes
    ----------
    cursor : int
        The number of blocks yielded so far. Iteration continues from there to the end of the
        corpus; ``rewind()`` starts over.
    epoch : int
        The number of this epoch, from 0; it is counted for blocks of varying length alone.

    Raises
    ------
    TypeError
        If corpus or targets are no array.
    ValueError
        If the corpus is too short for one block.

    Examples
    --------
    >>> import numpy as np
    >>> blocks = TruncatedBPTT(np.arange(21), batch_size=2, time_size=5)
    >>> for xs, ts in blocks:
    ...     print(xs.tolist(), ts[0].tolist())
    [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]] [1, 2, 3, 4, 5]
    [[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]] [6, 7, 8, 9, 10]
    """

    _sizes: ClassVar = {
        "batch_size": "batch_size", "time_size": "time_size", "blocks": "_blocks",
    }  # fmt: skip

    def __init__(
        self,
        corpus: AnyArray,
        batch_size: int,
        time_size: int,
        targets: AnyArray | None = None,
        *,
        varying: bool = False,
        rng: Seed = None,
    ) -> None:
        for name, whole in ("corpus", corpus), ("targets", targets):
            expect_plain_array(name, whole)
            if whole is not None or name == "corpus":
                expect_steps(name, whole, "(L, ...)")
        self.batch_size = expect_int("batch_size", batch_size)
        self.time_size = expect_int("time_size", time_size)
        places, needed = len(corpus), self.batch_size * self.time_size
        if targets is None:
            corpus, targets, needed = corpus[:-1], corpus[1:], needed + 1
        elif len(targets) != places:
            raise ValueError(f"targets: expected {places} steps, as in corpus, got {len(targets)}")
        self._blocks = len(corpus) // self.batch_size // self.time_size
        if self._blocks == 0:
            raise ValueError(
                f"corpus: expected at least {needed} steps for one block of {self.batch_size} "
                f"streams by {self.time_size} steps, got {places}"
            )
        stream = len(corpus) // self.batch_size
        self._arrays = {
            name: whole[: self.batch_size * stream].reshape(
                self.batch_size, stream, *whole.shape[1:]
            )
            for name, whole in (("xs", corpus), ("ts", targets))
        }
        self.epoch = self.cursor = 0
        self._steps, self._seed = stream, None if not varying else new_seed(generator(rng))
        if varying:
            self._places = {"cursor": "cursor", "epoch": "epoch", "seed": "_seed"}  # type: ignore[misc]
            self._sizes = {  # type: ignore[misc]
                "batch_size": "batch_size", "time_size": "time_size", "steps": "_steps",
            }  # fmt: skip

    def _edges(self) -> IntArray:
        """Where the blocks of this epoch begin, and where the last one ends."""
        if self._seed is None:
            return np.arange(self._blocks + 1) * self.time_size
        rng, shortest = np.random.default_rng((self._seed, self.epoch)), min(5, self.time_size)
        edges = [0]
        while edges[-1] < self._steps:
            mean = self.time_size / (1 if rng.random() < 0.95 else 2)
            edges.append(edges[-1] + max(shortest, round(rng.normal(mean, 5))))
        return np.minimum(edges, self._steps)

    def __len__(self) -> int:
        """How many blocks an epoch has; this one, if their length varies."""
        return len(self._edges()) - 1

    @property
    def full_batches(self) -> float:
        return self._blocks if self._seed is None else self._steps / self.time_size

    def __iter__(self) -> Iterator[tuple[AnyArray, AnyArray]]:
        edges = self._edges()
        while self.cursor < len(edges) - 1:
            start, end = edges[self.cursor : self.cursor + 2]
            self.cursor += 1
            yield self._arrays["xs"][:, start:end], self._arrays["ts"][:, start:end]

    def rewind(self) -> None:
        """Start over at the first block; blocks of varying length get other lengths."""
        if self.cursor and self._seed is not None:
            self.epoch += 1
        self.cursor = 0
