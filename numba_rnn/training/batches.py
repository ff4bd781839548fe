"""Mini-batches of sequences that do not follow on from each other, shuffled anew in each epoch."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from ..layers.initialisers import Seed, generator, new_seed
from ..typing import AnyArray
from ..validation import expect_int, expect_plain_array
from .resumable import ResumableData, expect_steps

Batch = tuple[AnyArray, AnyArray] | tuple[AnyArray, AnyArray, dict[str, AnyArray]]


class Batches(ResumableData):
    """An iterator over shuffled mini-batches of rows, each of which is a sequence of its own.

    It yields pairs (xs, ts), or with more arrays triples (xs, ts, more), where ``more`` is a dict.
    The last batch of an epoch has the rows that are left, which may be fewer.

    Parameters
    ----------
    xs : (N, T, ...) array
        The sequences, one in each row.
    ts : (N, ...) array
        The targets of each row, as the loss takes them: (N, T) labels, (N, 1) for one of the whole
        sequence, (N, T, M) numbers.
    batch_size : int
        The number of rows in a batch.
    rng : numpy.random.Generator, int or None, default None
        A random generator or a seed. The order of an epoch depends on this and on its number.
    **more : (N, ...) array
        Further arguments of ``forward`` by name: ``lengths=``, ``mask=``, ``weights=``.

    Attributes
    ----------
    cursor : int
        The number of batches yielded in this epoch. Iteration continues from there to the end of
        the epoch; ``rewind()`` begins the next one.
    epoch : int
        The number of this epoch, from 0.
    rows : int
        N, the number of sequences.
    batch_size, time_size : int
        The number of rows in a batch, and T.

    Raises
    ------
    TypeError
        If something is no array.
    ValueError
        If the arrays do not have as many rows, or none.

    Examples
    --------
    >>> batches = Batches(np.zeros((5, 7, 3)), np.arange(5)[:, None], batch_size=2, rng=0)
    >>> sorted(t for xs, ts in batches for t in ts.ravel().tolist())
    [0, 1, 2, 3, 4]
    >>> [xs.shape for xs, ts, more in Batches(*2 * [np.zeros((5, 7))], 2, lengths=np.ones(5, int))]
    [(2, 7), (2, 7), (1, 7)]
    """

    _places: ClassVar = {"cursor": "cursor", "epoch": "epoch", "seed": "_seed"}
    _sizes: ClassVar = {"batch_size": "batch_size", "time_size": "time_size", "rows": "rows"}

    def __init__(
        self, xs: AnyArray, ts: AnyArray, batch_size: int, rng: Seed = None, **more: AnyArray
    ) -> None:
        self._arrays: dict[str, AnyArray] = {"xs": xs, "ts": ts, **more}
        for name, whole in self._arrays.items():
            expect_plain_array(name, whole)
            expect_steps(name, whole, "(N, ...)")
            if len(whole) != len(xs):
                raise ValueError(f"{name}: expected {len(xs)} rows, as in xs, got {len(whole)}")
        if xs.ndim < 2 or 0 in xs.shape[:2]:
            raise ValueError(f"xs: expected (N, T, ...), none of them 0, got shape {xs.shape}")
        self.rows, self.time_size = int(xs.shape[0]), int(xs.shape[1])
        self.batch_size = expect_int("batch_size", batch_size)
        self._seed = new_seed(generator(rng))
        self.epoch = self.cursor = 0

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return -(-self.rows // self.batch_size)

    @property
    def full_batches(self) -> float:
        return self.rows / self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self.rows)
        while self.cursor < len(self):
            start = self.cursor * self.batch_size
            self.cursor += 1
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, rows: Any) -> Batch:
        xs, ts, *more = (whole[rows] for whole in self._arrays.values())
        if not more:
            return xs, ts
        return xs, ts, dict(zip(list(self._arrays)[2:], more, strict=True))

    def in_order(self) -> Iterator[Batch]:
        """Yield all batches of rows as they are, not shuffled. The cursor stays where it is.

        Yields
        ------
        tuple
            The batches, as iteration has them.
        """
        for start in range(0, self.rows, self.batch_size):
            yield self._batch(slice(start, start + self.batch_size))

    def rewind(self) -> None:
        """Begin the next epoch, with an order of its own; if this one has not begun, that."""
        if self.cursor:
            self.epoch, self.cursor = self.epoch + 1, 0
