"""Truncated backpropagation through time, as an object.

A long sequence is cut into ``batch_size`` streams of equal length, and the streams into blocks of
``time_size`` steps. Block k of a row follows on from block k - 1 of the same row, so a stateful
layer may carry its state across; the gradient stops at the block's edge (Williams & Peng 1990).
With one block it is full BPTT.

    corpus   0 1 2 3 4 5 6 7 8 9 ...            batch_size 2, time_size 3

    row 0    0 1 2 | 3 4 5 | ...
    row 1    a b c | d e f | ...                a = the middle of the corpus
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..typing import AnyArray
from ..validation import expect_int, expect_plain_array


def expect_steps(name: str, whole: Any, axes: str) -> None:
    """Refuse what is no array with axes."""
    if not isinstance(whole, np.ndarray):
        remedy = f"; np.asarray({name}) converts it" if isinstance(whole, (list, tuple)) else ""
        raise TypeError(f"{name}: expected an array {axes}, got {type(whole).__name__}{remedy}")
    if whole.ndim < 1:
        raise ValueError(f"{name}: expected an array {axes}, got one without axes")


class TruncatedBPTT:
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
    >>> blocks = TruncatedBPTT(np.arange(21), batch_size=2, time_size=5)
    >>> for xs, ts in blocks:
    ...     print(xs.tolist(), ts[0].tolist())
    [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]] [1, 2, 3, 4, 5]
    [[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]] [6, 7, 8, 9, 10]
    """

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
        self._xs, self._ts = (
            whole[: self.batch_size * stream].reshape(self.batch_size, stream, *whole.shape[1:])
            for whole in (corpus, targets)
        )
        self.cursor = 0

    def __len__(self) -> int:
        """How many blocks there are in all."""
        return self._blocks

    def __iter__(self) -> Iterator[tuple[AnyArray, AnyArray]]:
        while self.cursor < self._blocks:
            engine = slice(self.cursor * self.time_size, (self.cursor + 1) * self.time_size)
            self.cursor += 1
            yield self._xs[:, engine], self._ts[:, engine]

    def rewind(self) -> None:
        """Start over at the first block."""
        self.cursor = 0

    def state(self) -> dict[str, int]:
        """Return the cursor and the sizes that give it its meaning.

        Returns
        -------
        dict
            Numbers by name, for a checkpoint.
        """
        return {
            "cursor": self.cursor,
            "batch_size": self.batch_size,
            "time_size": self.time_size,
            "blocks": self._blocks,
        }

    def digest(self) -> str:
        """Return a short text that differs for another corpus, other sizes or another cursor.

        Returns
        -------
        str
            The digest.
        """
        found = hashlib.sha256(repr(self.state()).encode())
        for whole in (self._xs, self._ts):
            found.update(f"{whole.dtype.str} {whole.shape}".encode() + whole.tobytes())
        return found.hexdigest()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was called.

        Parameters
        ----------
        state : dict
            The result of ``state``.

        Raises
        ------
        ValueError
            If the sizes differ, or the cursor is below 0 or beyond the end.
        TypeError
            If the cursor is missing or no whole number.
        """
        for key, mine in self.state().items():
            if key != "cursor" and state.get(key) != mine:
                raise ValueError(f"state: expected {key} {mine}, got {state.get(key)}")
        cursor = expect_int("cursor", state.get("cursor"), 0)
        if cursor > self._blocks:
            raise ValueError(f"cursor: expected at most {self._blocks}, got {cursor}")
        self.cursor = cursor
