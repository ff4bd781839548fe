"""A softmax whose time hardly grows with the vocabulary: frequent words first."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Engine, engine_for_input, to_host
from ..typing import AnyArray, Array, IntArray, Scalar
from ..validation import (
    expect_float,
    expect_float_dtype,
    expect_int,
    from_dlpack,
    validate_array,
)
from .base import Layer
from .initialisers import Seed, generator
from .losses import TimeSoftmaxWithLoss, counted_labels, divisor


class TimeAdaptiveSoftmaxWithLoss(Layer):
    """Softmax over words that are sorted by frequency, and its loss.

    The words are cut into a shortlist and K clusters of rarer words. The probability of a word in
    the shortlist is the head's; that of another one is the head's probability of its cluster times
    its probability in the cluster, whose scores have fewer inputs:

        head      x head                  (cutoffs[0] words, K clusters)
        cluster k (x down[k]) up[k]       (the words from cutoffs[k] to cutoffs[k + 1] - 1)

    Parameters
    ----------
    head : (D, cutoffs[0] + K) array, float32 or float64
        The weights of the words in the shortlist and of the clusters.
    *tails : arrays
        For each cluster down (D, D_k) and up (D_k, cutoffs[k + 1] - cutoffs[k]).

    Attributes
    ----------
    cutoffs : tuple of int
        Where the clusters begin, and V.
    count : float
        How much counted in the last mean: the number of labels, or the sum of their weights.

    Notes
    -----
    Words must be numbered by frequency, the most frequent one 0. In training only those clusters
    are computed that some label is in; ``log_probabilities`` computes all, exactly.

    With divisor=1 the clusters have all inputs: that is the split cross-entropy of Merity et al.,
    with a square matrix before each cluster.

    References
    ----------
    - Grave et al. 2017, *Efficient softmax approximation for GPUs*.
    - Merity et al. 2018, *An analysis of neural language modeling at multiple scales*.

    Examples
    --------
    >>> layer = TimeAdaptiveSoftmaxWithLoss.create(8, 1000, cutoffs=(50, 200), rng=0)
    >>> xs, ts = np.ones((2, 3, 8), np.float32), np.array([[0, 40, 999], [3, 60, 300]])
    >>> loss = layer.forward(xs, ts)
    >>> layer.backward().shape, layer.log_probabilities(xs).shape
    ((2, 3, 8), (2, 3, 1000))
    """

    ignore_label = TimeSoftmaxWithLoss.ignore_label

    @property
    def _weight_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.param_names

    def __init__(self, head: Array, *tails: Array) -> None:
        engine = engine_for_input(head)
        checked = [validate_array("head", head, ("D", "M"), None, engine)]
        D, dtype = checked[0].shape[0], checked[0].dtype
        if len(tails) % 2:
            raise ValueError(f"tails: expected down and up for each cluster, got {len(tails)}")
        names = []
        for k in range(len(tails) // 2):
            down = validate_array(f"down{k}", tails[2 * k], (D, "D_k"), dtype, engine)
            up = validate_array(f"up{k}", tails[2 * k + 1], (down.shape[1], "V_k"), dtype, engine)
            checked += [down, up]
            names += [f"down{k}", f"up{k}"]
        self.param_names = ("head", *names)
        super().__init__(*checked)
        shortlist = checked[0].shape[1] - len(tails) // 2
        if shortlist < 1:
            raise ValueError(
                f"head: expected a column for a word and for each of {len(tails) // 2} clusters, "
                f"got {checked[0].shape[1]} columns"
            )
        sizes = [up.shape[1] for up in checked[2::2]]
        self.cutoffs = tuple(int(n) for n in np.cumsum([shortlist, *sizes]))

    @classmethod
    def create(
        cls,
        input_size: int,
        vocab_size: int,
        cutoffs: Sequence[int] = (),
        *,
        divisor: float = 4.0,
        rng: Seed = None,
        dtype: DTypeLike = np.float32,
    ) -> Self:
        """Create a layer from its sizes, with weights from N(0, 1/inputs).

        Parameters
        ----------
        input_size : int
            D, the number of inputs.
        vocab_size : int
            V, the number of words.
        cutoffs : sequence of int, default (V / 20, V / 5)
            The numbers of the words with which the clusters begin.
        divisor : float, default 4.0
            Each cluster has so many times fewer inputs than the one before, the first than the
            head.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed.
        dtype : dtype, default float32
            float32 or float64.

        Returns
        -------
        Self
            The new layer.

        Raises
        ------
        ValueError
            If the cutoffs do not increase from 1 to V - 1.
        """
        D, V = expect_int("input_size", input_size), expect_int("vocab_size", vocab_size, 2)
        given = tuple(cutoffs) or tuple(sorted({max(1, V // 20), max(1, V // 5)}))
        shapes = dict(cls.param_shapes(D, V, given, divisor)).values()
        random, kind = generator(rng), expect_float_dtype("dtype", dtype)
        made = [random.standard_normal(shape) / math.sqrt(shape[0]) for shape in shapes]
        return cls(*(W.astype(kind) for W in made))

    @staticmethod
    def param_shapes(
        input_size: int, vocab_size: int, cutoffs: Sequence[int], divisor: float = 4.0
    ) -> Iterator[tuple[str, tuple[int, int]]]:
        """List name and shape of each parameter, without creating it.

        Parameters
        ----------
        input_size, vocab_size, cutoffs, divisor
            As ``create`` takes them.

        Yields
        ------
        name : str
            The name of a parameter.
        shape : (int, int)
            Its shape.
        """
        D, ends = input_size, [*(expect_int("cutoffs", end) for end in cutoffs), vocab_size]
        if not all(a < b for a, b in pairwise(ends)):
            raise ValueError(
                f"cutoffs: expected numbers that increase from 1 to {vocab_size - 1}, got "
                f"{tuple(cutoffs)}"
            )
        share = expect_float("divisor", divisor, 1)
        yield "head", (D, ends[0] + len(ends) - 1)
        for k, (start, end) in enumerate(pairwise(ends)):
            inner = max(1, int(D / share ** (k + 1)))
            yield f"down{k}", (D, inner)
            yield f"up{k}", (inner, end - start)

    @property
    def _clusters(self) -> list[tuple[int, int, int]]:
        """Of each cluster its number, its first word and the first that is no longer in it."""
        return [(k, start, end) for k, (start, end) in enumerate(pairwise(self.cutoffs))]

    def forward(self, xs: Array, ts: IntArray, *, weights: AnyArray | None = None) -> Scalar:
        """Compute the loss.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs.
        ts : (N, T) integers
            Labels from 0 to V - 1, or -1 for a step that does not count. On a GPU the layer waits
            for labels that are there.
        weights : (N, T) array, optional
            How much each step counts, 0 or more; the loss is the weighted mean.

        Returns
        -------
        loss : float or 0-d array
            The mean loss in nats; a float in host memory, a 0-d array on a GPU.
        """
        engine, (D, _) = self._engine(), self.params[0].shape
        xs = validate_array("xs", xs, ("N", "T", D), self.dtype, engine)
        V, shortlist, ts = self.cutoffs[-1], self.cutoffs[0], from_dlpack(ts, engine)
        _, each, self.count = counted_labels(ts, weights, xs, V, self.ignore_label, engine)
        count = divisor(self.count, xs)
        words = np.asarray(to_host(ts), np.int64).reshape(-1)
        rows, xp = xs.reshape(-1, D), engine.xp
        of_head = np.where(words < shortlist, words, shortlist)
        for k, start, _ in self._clusters:
            of_head = np.where(words >= start, shortlist + k, of_head)
        parts = [_Part(engine, rows, self.params[0], of_head, each)]
        total = parts[0].loss
        for k, start, end in self._clusters:
            here = np.flatnonzero((words >= start) & (words < end))
            if not len(here):
                continue
            index = engine.to_device(here)
            part = _Part(
                engine, rows[index], self.params[2 + 2 * k], words[here] - start, each[index],
                self.params[1 + 2 * k],
            )  # fmt: skip
            part.number, part.index = k, index
            parts.append(part)
            total = total + part.loss
        self._tape = engine, parts, rows.shape, count, xs.shape
        return engine.to_scalar(xp.asarray(total) / count)

    def backward(self, dout: float = 1.0) -> Array:
        """Compute the gradients of dout * loss, and fill ``grads``.

        Parameters
        ----------
        dout : float, default 1.0
            The factor of the loss.

        Returns
        -------
        dxs : (N, T, D) array
            The gradient of the inputs.
        """
        engine, (head, *tails), _, count, shape = self._saved()
        factor = expect_float("dout", dout, -math.inf) / count
        for grad in self.grads[1:]:
            grad[...] = 0
        dxs = head.backward(factor, self.grads[0])
        for part in tails:
            k = 1 + 2 * part.number
            dinputs = part.backward(factor, self.grads[k + 1], self.grads[k])
            engine.add_rows(dxs, part.index, dinputs)
        return dxs.reshape(shape)

    def log_probabilities(self, xs: Array) -> Array:
        """Compute the logarithm of every word's probability.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs.

        Returns
        -------
        (N, T, V) array
            The logarithms.
        """
        engine, (D, _) = self._engine(), self.params[0].shape
        xs = validate_array("xs", xs, ("N", "T", D), self.dtype, engine)
        rows, shortlist = xs.reshape(-1, D), self.cutoffs[0]
        head = _log_softmax(engine, engine.product(rows, self.params[0]))
        found = [head[:, :shortlist]]
        for k, _, _ in self._clusters:
            scores = engine.product(
                engine.product(rows, self.params[1 + 2 * k]), self.params[2 + 2 * k]
            )
            found.append(_log_softmax(engine, scores) + head[:, shortlist + k, None])
        return engine.xp.concatenate(found, axis=1).reshape(*xs.shape[:2], self.cutoffs[-1])


class _Part:
    """The head, or a cluster: its scores, and the loss of the rows that are in it."""

    number: int
    index: Any

    def __init__(
        self, engine: Engine, rows: Array, up: Array, labels: Any, each: Array, down: Any = None
    ) -> None:
        self.engine, self.rows, self.up, self.down, self.each = engine, rows, up, down, each
        xp = engine.xp
        self.inputs = rows if down is None else engine.product(rows, down)
        self.scores = engine.product(self.inputs, up)
        self.labels = engine.to_device(np.maximum(labels, 0))
        self.log_sums = engine.log_sum_exp(self.scores)
        of_label = self.scores[xp.arange(len(rows)), self.labels] - self.log_sums[0]
        losses = (self.log_sums[1] - of_label) * each
        self.loss = xp.where(each != 0, losses, 0.0).sum()

    def backward(self, factor: float, dup: Array, ddown: Any = None) -> Array:
        """Fill the gradients of the weights; that of the rows."""
        engine = self.engine
        dscores = engine.softmax_gradient(
            self.scores, self.log_sums, self.labels, self.each * factor
        )
        dup[...] = engine.product(self.inputs.T, dscores)
        dinputs = engine.product(dscores, self.up.T)
        if self.down is None:
            return dinputs
        ddown[...] = engine.product(self.rows.T, dinputs)
        return engine.product(dinputs, self.down.T)


def _log_softmax(engine: Engine, scores: Array) -> Array:
    log_sums = engine.log_sum_exp(scores)
    scores = scores - log_sums[0][:, None].astype(scores.dtype)
    return scores - log_sums[1][:, None].astype(scores.dtype)
