"""A softmax that is computed for a few words in training, which are drawn at random."""

import math
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Engine, engine_for_input, to_host
from ..kernels import counter_rng
from ..kernels.functions import sigmoid
from ..kernels.sparse_rows import SparseRows
from ..typing import AnyArray, Array, IntArray, Scalar
from ..validation import (
    as_array,
    expect_choice,
    expect_float,
    expect_float_dtype,
    expect_int,
    from_dlpack,
    validate_array,
)
from .affine_softmax import SoftmaxInBlocks
from .dense import distinct, no_rows
from .initialisers import Seed, generator, new_seed
from .losses import counted_labels, divisor

OBJECTIVES = ("softmax", "nce")


class TimeSampledSoftmaxWithLoss(SoftmaxInBlocks):
    """An affine layer and the softmax loss, in training with a sample of the words.

    Each forward draws words for all steps together, in proportion to q(w). With
    objective="softmax" the loss is that of the label against them, whose scores are corrected so
    that the sum of exp(score) is on average that of all words:

        log(exp(s[label]) + sum over the drawn w, without the label, of exp(s[w]) / (samples q(w)))
        - s[label]

    With objective="nce" (noise-contrastive estimation) the layer learns to tell labels from the
    drawn words; the scores then become logarithms of probabilities by themselves:

        - log sigmoid(s[label] - log(samples q(label)))
        - sum over the drawn w of log(1 - sigmoid(s[w] - log(samples q(w))))

    Parameters
    ----------
    W : (V, D) array, float32 or float64
        A row for each word, as an embedding has: x W^T + b are the scores.
    b : (V,) array, of the dtype of W
        The bias.
    samples : int, default 1024
        The number of words that are drawn, with replacement.
    objective : {"softmax", "nce"}
        The loss in training.
    proposal : (V,) array, optional
        How often each word is drawn, in proportion: larger than 0, such as its count in the text.
        By default log((w + 2) / (w + 1)), for words that are numbered by frequency, the most
        frequent one 0.
    sparse : bool, default False
        Whether the gradient of W is a ``SparseRows``, see ``TimeEmbedding``.
    rng : numpy.random.Generator, int or None, default None
        A random generator, which layers may share, or a seed. Each forward takes a number from it,
        which draws the same words on every engine.

    Attributes
    ----------
    train_flg : bool
        True: draw. False: loss and gradients are those of the softmax over all words.
    block : int
        8192, the number of words whose scores are in memory at a time with ``train_flg`` False.
    count : float
        How much counted in the last mean: the number of labels, or the sum of their weights.

    Notes
    -----
    For many samples the first loss is that of the softmax over all words, and so are its gradients;
    for few it is too small on average. ``scores`` gives the scores of all words.

    References
    ----------
    - Bengio & Senécal 2008, *Adaptive importance sampling to accelerate training of a neural
      probabilistic language model*.
    - Jean et al. 2015, *On using very large target vocabulary for neural machine translation*.
    - Mnih & Teh 2012, *A fast and simple algorithm for training neural probabilistic language
      models*.

    Examples
    --------
    >>> layer = TimeSampledSoftmaxWithLoss.create(8, 50_000, samples=100, rng=0)
    >>> xs, ts = np.ones((2, 3, 8), np.float32), np.arange(6).reshape(2, 3)
    >>> loss = layer.forward(xs, ts)
    >>> layer.backward().shape
    (2, 3, 8)
    >>> layer.train_flg = False
    >>> exact = layer.forward(xs, ts)
    """

    param_names = ("W", "b")
    _weight_names = ("W",)
    _scale_axis = 0
    train_flg = True

    def __init__(
        self,
        W: Array,
        b: Array,
        *,
        samples: int = 1024,
        objective: str = "softmax",
        proposal: AnyArray | None = None,
        sparse: bool = False,
        rng: Seed = None,
    ) -> None:
        engine = engine_for_input(W)
        W = validate_array("W", W, ("V", "D"), None, engine)
        V = W.shape[0]
        super().__init__(W, validate_array("b", b, (V,), W.dtype, engine))
        if sparse:
            self.grads[0] = no_rows(self.params[0])
        self.samples = expect_int("samples", samples)
        self.objective = expect_choice("objective", objective, OBJECTIVES)
        self.rng = generator(rng)
        words = np.arange(V)
        shares: Any = np.log1p(1 / (words + 1)) if proposal is None else _shares(proposal, V)
        self._upto = np.cumsum(shares)
        self._log_q = np.log(shares) - math.log(self._upto[-1])

    @classmethod
    def create(
        cls,
        input_size: int,
        vocab_size: int,
        *,
        samples: int = 1024,
        objective: str = "softmax",
        proposal: AnyArray | None = None,
        sparse: bool = False,
        rng: Seed = None,
        dtype: DTypeLike = np.float32,
    ) -> Self:
        """Create a layer from its sizes, with W ~ N(0, 1/D).

        Parameters
        ----------
        input_size : int
            D, the number of inputs.
        vocab_size : int
            V, the number of words.
        samples, objective, proposal, sparse
            As the constructor takes them.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed, for W and for the words that are drawn.
        dtype : dtype, default float32
            float32 or float64.

        Returns
        -------
        Self
            The new layer. b = 0, for objective="nce" -log V: there scores start as logarithms of
            probabilities.
        """
        D, V = expect_int("input_size", input_size), expect_int("vocab_size", vocab_size)
        random, kind = generator(rng), expect_float_dtype("dtype", dtype)
        W = (random.standard_normal((V, D)) / math.sqrt(D)).astype(kind)
        b = np.full(V, -math.log(V) if objective == "nce" else 0, kind)
        options: dict[str, Any] = {"samples": samples, "objective": objective}
        return cls(W, b, proposal=proposal, sparse=sparse, rng=random, **options)

    def _as_affine(self, arrays: list[Any]) -> tuple[Array, Array]:
        W, b = arrays
        if isinstance(W, SparseRows):  # the gradient of all words
            xp = self._engine().xp
            W.rows, W.values = xp.arange(len(b)), xp.zeros(W.shape, W.dtype)
            W = W.values
        return W.T, b

    def forward(self, xs: Array, ts: IntArray, *, weights: AnyArray | None = None) -> Scalar:
        """Compute the loss, in training with words that it draws.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs.
        ts : (N, T) integers
            Labels from 0 to V - 1, or -1 for a step that does not count.
        weights : (N, T) array, optional
            How much each step counts, 0 or more; the loss is the weighted mean.

        Returns
        -------
        loss : float or 0-d array
            The mean loss in nats; a float in host memory, a 0-d array on a GPU.
        """
        if not self.train_flg:
            return super().forward(xs, ts, weights=weights)
        (W, b), engine = self.params, self._engine()
        V, D = W.shape
        xp, xs = engine.xp, validate_array("xs", xs, ("N", "T", D), self.dtype, engine)
        ts = from_dlpack(ts, engine)
        labels, each, self.count = counted_labels(ts, weights, xs, V, self.ignore_label, engine)
        count = divisor(self.count, xs)
        rows, own = xs.reshape(-1, D), xp.maximum(labels, 0)
        words, counts = np.unique(self._drawn(), return_counts=True)
        times = self._log_q + math.log(self.samples)  # log of how often a word is expected
        drawn, some = engine.to_device(words), W[engine.to_device(words)]
        W_own = W[own]
        of_label = (rows * W_own).sum(axis=1) + b[own]
        nce = self.objective == "nce"
        shift = -times[words] if nce else np.log(counts) - times[words]
        shift = engine.to_device(shift.astype(self.dtype))
        scores = engine.affine(rows, some.T, b[drawn] + shift)
        if nce:
            expected = engine.to_device(times.astype(self.dtype))
            of_label = of_label - expected[own]
            repeated = engine.to_device(counts.astype(self.dtype))
            losses = _softplus(xp, -of_label) + (_softplus(xp, scores) * repeated).sum(axis=1)
            sums = repeated
            scores = xp.concatenate([of_label[:, None], scores], axis=1)
        else:
            hit = labels[:, None] == drawn[None, :]
            scores = xp.where(hit, self.dtype.type(-math.inf), scores)
            scores = xp.concatenate([of_label[:, None], scores], axis=1)
            sums = engine.log_sum_exp(scores)
            losses = sums[1] - (of_label - sums[0])
        found = None
        if isinstance(self.grads[0], SparseRows):
            host = np.maximum(np.asarray(to_host(ts), np.int64).reshape(-1), 0)
            found = distinct(np.concatenate([words, host]))
        self._tape = _Sampled(
            engine, rows, scores, sums, drawn, own, some, W_own, each, count, xs.shape, found
        )
        return engine.to_scalar(xp.where(each != 0, losses * each, 0.0).sum() / count)

    def _drawn(self) -> IntArray:
        """The words of one forward."""
        places = counter_rng.uniform(new_seed(self.rng), self.samples) * self._upto[-1]
        words = np.searchsorted(self._upto, places, side="right")
        return np.minimum(words, len(self._upto) - 1)

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
        tape = self._saved()
        if not isinstance(tape, _Sampled):
            return super().backward(dout)
        engine, rows, xp = tape.engine, tape.rows, tape.engine.xp
        weights = tape.each * (expect_float("dout", dout, -math.inf) / tape.divisor)
        if self.objective == "nce":
            dscores = sigmoid(tape.scores) * weights.astype(self.dtype)[:, None]
            dscores[:, 1:] *= tape.sums
            dscores[:, 0] -= weights.astype(self.dtype)
        else:
            first = xp.zeros(len(rows), np.int64)
            dscores = engine.softmax_gradient(tape.scores, tape.sums, first, weights)
        dlabel, dsome = dscores[:, :1], xp.ascontiguousarray(dscores[:, 1:])
        dxs = engine.product(dsome, tape.some) + dlabel * tape.own_rows
        dW: Any = self.grads[0]
        db, of_labels = self.grads[1], dlabel * rows
        if tape.found is None:
            dW[...] = 0
            into, drawn, own = dW, tape.drawn, tape.own
        else:
            words, places = map(engine.to_device, tape.found)
            dW.rows, dW.values = words, xp.zeros((len(words), rows.shape[1]), self.dtype)
            K = len(tape.drawn)
            into, drawn, own = dW.values, places[:K], places[K:]
        into[drawn] = engine.product(dsome.T, rows)
        engine.add_rows(into, own, of_labels)
        db[...] = 0
        db[tape.drawn] = engine.sum_rows(dsome)
        engine.add_rows(db[:, None], tape.own, xp.ascontiguousarray(dlabel))
        return dxs.reshape(tape.shape)


class _Sampled(NamedTuple):
    """The record of a forward pass with drawn words.

    scores  (R, 1 + K), of the label and of the K drawn words
    sums    of these scores; for noise-contrastive estimation how often each word was drawn
    """

    engine: Engine
    rows: Array
    scores: Array
    sums: Array
    drawn: IntArray
    own: IntArray
    some: Array
    own_rows: Array
    each: Array
    divisor: float
    shape: tuple[int, ...]
    found: tuple[IntArray, IntArray] | None


def _softplus(xp: Any, x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def _shares(proposal: Any, V: int) -> Array:
    """A proposal in float64, in host memory."""
    found = as_array("proposal", proposal)
    if found.shape != (V,) or found.dtype.kind not in "iuf":
        raise ValueError(
            f"proposal: expected numbers of shape ({V},), one for each word, got {found.dtype} of "
            f"shape {found.shape}"
        )
    found = found.astype(np.float64)
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError(
            "proposal: expected finite numbers larger than 0, since a word that is never drawn "
            "would be left out; proposal + 1 helps with counts of 0"
        )
    return found
