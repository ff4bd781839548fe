"""Truncated backpropagation through time, as an object.

A long sequence is cut into ``batch_size`` streams of equal length, and the streams into blocks of
``time_size`` steps. Block k of a row follows on from block k - 1 of the same row, so a stateful
layer may carry its state across; the gradient stops at the block's edge (Williams & Peng 1990).
With one block it is full BPTT.

    corpus   0 1 2 3 4 5 6 7 8 9 ...            batch_size 2, time_size 3

    row 0    0 1 2 | 3 4 5 | ...
    row 1    a b c | d e f | ...                a = the middle of the corpus
"""

from collections.abc import Iterator
from typing import ClassVar

from ..typing import AnyArray
from ..validation import expect_int, expect_plain_array
from .resumable import ResumableData, expect_steps


class TruncatedBPTT(ResumableData):
    """An iterator over the blocks of a corpus for truncated backpropagation through time.

    It yields pairs (xs, ts) of arrays (batch_size, time_size, ...). Row i of one block continues
    row i of the block before. Steps at the end that do not fill a block are left out.

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

    Attributes
    ----------
    cursor : int
        The number of blocks yielded so far. Iteration continues from there to the end of the
        corpus; ``rewind()`` starts over.

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
        self, corpus: AnyArray, batch_size: int, time_size: int, targets: AnyArray | None = None
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
        self.cursor = 0

    def __len__(self) -> int:
        """How many blocks there are in all."""
        return self._blocks

    def __iter__(self) -> Iterator[tuple[AnyArray, AnyArray]]:
        while self.cursor < self._blocks:
            block = slice(self.cursor * self.time_size, (self.cursor + 1) * self.time_size)
            self.cursor += 1
            yield self._arrays["xs"][:, block], self._arrays["ts"][:, block]

    def rewind(self) -> None:
        """Start over at the first block."""
        self.cursor = 0
