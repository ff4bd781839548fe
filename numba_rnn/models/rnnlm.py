"""A recurrent language model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from ..backend import engine_by_name, engine_of_param, to_host
from ..kernels import cells
from ..kernels.cells import Cell, WrittenCell
from ..kernels.quantisation import QuantisedWeight, is_quantised
from ..kernels.sparse_rows import SparseRows
from ..layers import (
    Layer,
    TimeAdaptiveSoftmaxWithLoss,
    TimeAffine,
    TimeDropout,
    TimeEmbedding,
    TimeRecurrent,
    TimeSampledSoftmaxWithLoss,
    TimeSoftmaxWithLoss,
)
from ..layers.base import quantise_some
from ..layers.initialisers import INITS, Seed, generator
from ..layers.losses import perplexity_of
from ..layers.stored_params import arrays_of, param_of, set_params
from ..streaming import Stream, in_int8
from ..training.bptt import TruncatedBPTT
from ..typing import Array, IntArray, Integers, Scalar
from ..validation import (
    as_array,
    expect_array,
    expect_choice,
    expect_finite,
    expect_float,
    expect_ids,
    expect_int,
    validate_weight,
)
from .base import expect_cell


class Rnnlm:
    """A recurrent language model: embedding, recurrent layers, affine and softmax.

        ids -> embedding -> (dropout -> recurrent) x layers -> dropout -> affine -> softmax

    Parameters
    ----------
    vocab_size : int
        V, the number of tokens.
    embed_size : int, default 100
        D, the size of the embedding of a token.
    hidden_size : int, default 100
        H, the number of units of each recurrent layer.
    cell : str, Cell or WrittenCell, default "lstm"
        A name in ``numba_rnn.cells.names()``, or a cell of your own. To load checkpoints with your
        cell, pass it to ``numba_rnn.cells.register`` first.
    layers : int, default 1
        The number of recurrent layers.
    dropout : float, default 0.0
        The share of numbers dropped between layers during training.
    zoneout : float or mapping of str to float, default 0.0
        The zoneout of every recurrent layer; see ``TimeRecurrent.regularise``.
    recurrent_dropout : float, default 0.0
        The recurrent dropout of every recurrent layer.
    weight_drop : float, default 0.0
        The weight drop of every recurrent layer. Checkpoints hold these three rates, but not later
        settings of a single layer.
    embedding_dropout : float, default 0.0
        The share of words whose vectors are 0 for a block; see ``TimeEmbedding.drop_words``.
    sparse_embedding : bool, default False
        Whether the gradient of the embedding has only the rows of words in a block, as a
        ``SparseRows``: faster for large vocabularies. It needs SGD, AdaGrad or Adam(lazy=True), and
        weights that are not tied. With ``samples`` that of the output layer has only the rows of
        labels and drawn words.
    activation_penalty : float, default 0.0
        alpha: the gradient is that of the loss and of alpha times the mean square of what the
        affine layer reads (AR).
    temporal_penalty : float, default 0.0
        beta: the same for the mean square of the change of the last layer's h from step to step
        (TAR).
    tie : bool, default False
        If True, W of the affine layer is that of the embedding, transposed; needs D = H.
    cutoffs : sequence of int, default ()
        If given, the output layer is a ``TimeAdaptiveSoftmaxWithLoss`` with these cutoffs, for
        large vocabularies whose tokens are numbered by frequency. Its results are exact.
    divisor : float, default 4.0
        With cutoffs: each cluster has so many times fewer inputs than the one before; 1 is split
        cross-entropy.
    samples : int, default 0
        If not 0, the output layer is a ``TimeSampledSoftmaxWithLoss``, which in training draws so
        many tokens; they are numbered by frequency, too. Everything else is exact.
    init : {"orthogonal", "book"}
        How the recurrent layers start; see ``numba_rnn/layers/initialisers.py``. The embedding
        starts from N(0, 1), a tied one from N(0, 1/D), with "book" from N(0, 0.01²).
    rng : numpy.random.Generator, int or None, default None
        A random generator or a seed, for the parameters and for everything that is dropped.
    dtype : dtype, default float32
        float32 or float64.

    Notes
    -----
    Give token ids and labels as NumPy arrays, also if the model is on a GPU: checking arrays that
    are there already waits for the device.

    References
    ----------
    - Dropout between layers: Zaremba et al. 2014.
    - Tied weights: Press & Wolf 2017.
    - Weight drop, AR, TAR: Merity et al. 2017, *Regularizing and optimizing LSTM language models*.
    - Cutoffs: Grave et al. 2017, *Efficient softmax approximation for GPUs*.
    - Samples: Bengio & Senécal 2008; Jean et al. 2015.

    Examples
    --------
    >>> model = Rnnlm(vocab_size=11, embed_size=4, hidden_size=6, rng=0)
    >>> ids = np.arange(10).reshape(2, 5)
    >>> loss = model.forward(ids, ids + 1)
    >>> model.backward()
    >>> model.generate([3], length=4, rng=0).shape
    (4,)
    """

    def __init__(
        self,
        vocab_size: int,
        embed_size: int = 100,
        hidden_size: int = 100,
        *,
        cell: str | Cell | WrittenCell = "lstm",
        layers: int = 1,
        dropout: float = 0.0,
        zoneout: float | Mapping[str, float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        embedding_dropout: float = 0.0,
        sparse_embedding: bool = False,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
        tie: bool = False,
        cutoffs: Sequence[int] = (),
        divisor: float = 4.0,
        samples: int = 0,
        init: str = "orthogonal",
        rng: Seed = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        V, D = expect_int("vocab_size", vocab_size), expect_int("embed_size", embed_size)
        H = expect_int("hidden_size", hidden_size)
        expect_choice("init", init, INITS)
        cell = cells.get(cell)
        if tie and D != H:
            raise ValueError(f"tie: expected embed_size equal to hidden_size, got {D} and {H}")
        if tie and sparse_embedding:
            raise ValueError(
                "sparse_embedding: expected False with tie=True, because tied weights have a "
                "gradient in every row, got True"
            )
        cutoffs = _whole_numbers("cutoffs", cutoffs)
        output = _output_options(tie, cutoffs, divisor, samples)
        self.rng = random = generator(rng)
        std = 0.01 if init == "book" else 1 / math.sqrt(D) if tie else 1.0
        embedding = TimeEmbedding.create(
            V, D, std=std, rng=random, dtype=dtype, sparse=sparse_embedding
        )
        recurrent = [
            TimeRecurrent.create(
                D if k == 0 else H, H, cell=cell, rng=random, dtype=dtype, init=init, stateful=True
            )
            for k in range(expect_int("layers", layers))
        ]
        rates: dict[str, Any] = {
            "zoneout": zoneout,
            "recurrent_dropout": recurrent_dropout,
            "weight_drop": weight_drop,
        }
        if any(rates.values()):
            for layer in recurrent:
                layer.regularise(**rates, rng=random)
        rates["embedding_dropout"] = expect_float("embedding_dropout", embedding_dropout, 0, 1)
        if embedding_dropout:
            embedding.drop_words(embedding_dropout, random)
        self.activation_penalty = expect_float("activation_penalty", activation_penalty, 0)
        self.temporal_penalty = expect_float("temporal_penalty", temporal_penalty, 0)
        rates["activation_penalty"] = self.activation_penalty
        rates["temporal_penalty"] = self.temporal_penalty
        self.affine: Any
        if cutoffs:
            self.affine = TimeAdaptiveSoftmaxWithLoss.create(
                H, V, cutoffs, divisor=divisor, rng=random, dtype=dtype
            )
        elif samples:
            self.affine = TimeSampledSoftmaxWithLoss.create(
                H, V, samples=samples, sparse=sparse_embedding, rng=random, dtype=dtype
            )
        else:
            self.affine = TimeAffine.create(H, V, rng=random, dtype=dtype)
            if tie:
                self.affine = TimeAffine(embedding.params[0].T, self.affine.params[1])
        self.embedding, self.recurrent = embedding, recurrent
        self.dropouts = [TimeDropout(dropout, rng=random) for _ in range(len(recurrent) + 1)]
        self.loss_layer: Any = self.affine if output else TimeSoftmaxWithLoss()
        self.tie = bool(tie)
        self._tie_weights()
        self.config: dict[str, Any] = {
            "vocab_size": V,
            "embed_size": D,
            "hidden_size": H,
            "cell": cell.name,
            "layers": len(recurrent),
            "dropout": float(dropout),
            **{
                name: dict(rate) if isinstance(rate, Mapping) else float(rate)
                for name, rate in rates.items()
                if rate
            },
            **({"sparse_embedding": True} if sparse_embedding else {}),
            "tie": self.tie,
            **output,
            "init": init,
            "dtype": str(embedding.dtype),
        }

    # pickles of 0.1 have none of these
    activation_penalty = temporal_penalty = 0.0
    _penalised: tuple[Array, Array] | None = None  # the last h, and what the affine layer read

    # always those of the layers, which may get parameters later (learn_initial_state)

    @property
    def _slots(self) -> list[tuple[str, Layer, int]]:
        """Of each parameter its name, its layer and its number there."""
        named = self._leaves() + ([("affine", self.affine)] if self.tie else [])
        return [
            (f"{layer_name}.{name}", layer, k)
            for layer_name, layer in named
            for k, name in enumerate(layer.param_names)
            if not (self.tie and layer is self.affine and name == "W")
        ]

    @staticmethod
    def param_shapes(
        vocab_size: int,
        embed_size: int,
        hidden_size: int,
        *,
        cell: str | Cell | WrittenCell = "lstm",
        layers: int = 1,
        tie: bool = False,
        cutoffs: Sequence[int] = (),
        divisor: float = 4.0,
        samples: int = 0,
        **options: Any,
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        """List name and shape of each parameter of a model, without creating it.

        Parameters
        ----------
        vocab_size : int
            V, the number of tokens.
        embed_size : int
            D, the size of the embedding.
        hidden_size : int
            H, the number of units of each recurrent layer.
        cell : str, Cell or WrittenCell, default "lstm"
            The cell.
        layers : int, default 1
            The number of recurrent layers.
        tie : bool, default False
            Whether embedding and affine layer share their weights.
        cutoffs : sequence of int, default ()
            The cutoffs of the adaptive softmax.
        divisor : float, default 4.0
            The divisor of the adaptive softmax.
        samples : int, default 0
            The number of tokens that are drawn in training.
        **options
            The other arguments of the constructor, on which shapes do not depend.

        Yields
        ------
        name : str
            The name of a parameter.
        shape : tuple of int
            Its shape.

        Examples
        --------
        >>> dict(Rnnlm.param_shapes(11, 4, 6))["recurrent0.Wx"]
        (4, 24)
        """
        V, D, H = vocab_size, embed_size, hidden_size
        yield "embedding.W", (V, D)
        for k in range(layers):
            for name, shape in cells.get(cell).shapes(D if k == 0 else H, H).items():
                yield f"recurrent{k}.{name}", shape
        if cutoffs:
            for name, inner in TimeAdaptiveSoftmaxWithLoss.param_shapes(H, V, cutoffs, divisor):
                yield f"affine.{name}", inner
            return
        if not tie:
            yield "affine.W", (V, H) if samples else (H, V)
        yield "affine.b", (V,)

    @property
    def params(self) -> list[Array]:
        """The parameters of all layers: the same arrays, in a new list."""
        return [layer.params[k] for _, layer, k in self._slots]

    @property
    def grads(self) -> list[Array]:
        """The gradients of all layers: the same arrays, in a new list."""
        return [layer.grads[k] for _, layer, k in self._slots]

    @property
    def batch_weight(self) -> float:
        """How much the last batch counts in a mean over several: the number of its labels."""
        return self.loss_layer.count

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's tied weights are one array again."""
        self.__dict__.update(state)
        self._tie_weights()

    def _tie_weights(self) -> None:
        """Let tied weights be one array."""
        if self.tie:
            W = self._as_output(self.embedding.params[0])
            if isinstance(W, QuantisedWeight) or self.affine.grads[0] is None:
                self.affine._set_param(0, W)
            else:
                self.affine.params[0] = W

    def quantise(self) -> Self:
        """Round the weights of all layers to int8, in place; see ``Layer.quantise``.

        Tied weights stay one matrix, with a scale for each token.

        Returns
        -------
        Self
            The model itself.

        Raises
        ------
        TypeError, ValueError
            If a weight cannot be rounded; nothing has changed then.

        Examples
        --------
        >>> model = Rnnlm(vocab_size=11, embed_size=4, hidden_size=6, rng=0)
        >>> ids = np.arange(10).reshape(2, 5)
        >>> scores = model.predict(ids)
        >>> model.reset_state()
        >>> bool(np.abs(model.quantise().predict(ids) - scores).max() < 0.02)
        True
        """
        quantise_some(self, (layer for _, layer in self._leaves()))
        return self

    def dequantise(self) -> Self:
        """Make float32 weights of those in int8, in place; see ``Layer.dequantise``.

        Returns
        -------
        Self
            The model itself, which can be trained again.
        """
        for _, layer in self._leaves():
            layer.dequantise()
        self._tie_weights()
        return self

    def _leaves(self) -> list[tuple[str, Layer]]:
        """The layers with weights of their own, with their names."""
        found: list[tuple[str, Layer]] = [("embedding", self.embedding)]
        found += [(f"recurrent{k}", layer) for k, layer in enumerate(self.recurrent)]
        return found if self.tie else [*found, ("affine", self.affine)]

    @property
    def quantised(self) -> bool:
        """Whether there are weights in int8."""
        return is_quantised(self.params)

    def _as_output(self, W: Array) -> Array:
        """W (V, H) as the output layer has it."""
        return W if isinstance(self.affine, TimeSampledSoftmaxWithLoss) else W.T

    def _plain_affine(self) -> Any:
        """The output layer as a ``TimeAffine``; one with cutoffs is none, and stays what it is."""
        if not isinstance(self.affine, TimeSampledSoftmaxWithLoss):
            return self.affine
        W, b = self.affine.params
        return TimeAffine(W.T, b)

    @property
    def _loss_is_output(self) -> bool:
        """Whether output layer and loss are one layer."""
        return self.affine is self.loss_layer

    @property
    def _parts(self) -> list[Layer]:
        return [self.embedding, *self.recurrent, self.affine, *self.dropouts, self.loss_layer]

    def to(self, name: str) -> Self:
        """Move all layers to the memory of an engine; see ``Layer.to``.

        ``params`` and ``grads`` are new lists then. The memory of an optimiser follows by itself.

        Parameters
        ----------
        name : {"cuda", "cpu", "numba", "numpy"}
            The engine.

        Returns
        -------
        Self
            The model itself.
        """
        for part in self._parts:
            part.to(name)
        self._tie_weights()
        return self

    def forget(self) -> None:
        """Free the memory that forward keeps for backward."""
        for part in self._parts:
            part.forget()
        self._penalised = None

    def __repr__(self) -> str:
        return f"Rnnlm({', '.join(f'{name} {value}' for name, value in self.config.items())})"

    # ---- training

    def predict(self, xs: IntArray, train_flg: bool = False, *, trace: bool = False) -> Array:
        """Compute the scores of the next token.

        Parameters
        ----------
        xs : (N, T) integers
            Tokens.
        train_flg : bool, default False
            Whether dropout and regularisers act as in training.
        trace : bool, default False
            If True, every ``model.recurrent[k]`` gets a ``trace`` of gates, states and gradients.

        Returns
        -------
        scores : (N, T, V) array
            Scores before the softmax; with cutoffs the logarithms of the probabilities.
        """
        return self._scores(self._hidden(xs, train_flg, trace))

    def _scores(self, read: Array) -> Array:
        if not self._loss_is_output:
            return self.affine.forward(read)
        if isinstance(self.affine, TimeSampledSoftmaxWithLoss):
            return self.affine.scores(read)
        return self.affine.log_probabilities(read)

    def _hidden(self, xs: IntArray, train_flg: bool, trace: bool) -> Array:
        """The inputs of the output layer."""
        self.embedding.train_flg = train_flg
        out = self.embedding.forward(xs)
        for dropout, layer in zip(self.dropouts, self.recurrent, strict=False):
            dropout.train_flg = layer.train_flg = train_flg
            out = layer.forward(dropout.forward(out), trace=trace)
        self.dropouts[-1].train_flg = train_flg
        read = self.dropouts[-1].forward(out)
        penalised = train_flg and (self.activation_penalty or self.temporal_penalty)
        self._penalised = (out, read) if penalised else None
        return read

    def forward(
        self, xs: IntArray, ts: IntArray, train_flg: bool = True, *, trace: bool = False
    ) -> Scalar:
        """Compute the mean cross-entropy of predicting ts from xs.

        Parameters
        ----------
        xs : (N, T) integers
            Tokens.
        ts : (N, T) integers
            The token after each of them.
        train_flg : bool, default True
            Whether dropout and regularisers act as in training.
        trace : bool, default False
            If True, every ``model.recurrent[k]`` gets a ``trace``.

        Returns
        -------
        loss : float or 0-d array
            The mean loss in nats per token; a float in host memory, a 0-d array on a GPU.
        """
        if not self._loss_is_output:
            return self.loss_layer.forward(self.predict(xs, train_flg, trace=trace), ts)
        self.loss_layer.train_flg = train_flg
        return self.loss_layer.forward(self._hidden(xs, train_flg, trace), ts)

    def backward(self) -> None:
        """Fill ``grads`` with the gradient of the last loss, cut at the start of its block.

        It includes that of the penalties (``activation_penalty``, ``temporal_penalty``).
        """
        dout = self.loss_layer.backward()
        dout = dout if self._loss_is_output else self.affine.backward(dout)
        if self._penalised is not None and self.activation_penalty:
            read = self._penalised[1]
            dout = dout + read * read.dtype.type(2 * self.activation_penalty / max(1, read.size))
        dout = self.dropouts[-1].backward(dout)
        if self._penalised is not None and self.temporal_penalty:
            dout = dout + self._temporal_gradient(self._penalised[0])
        pairs = list(zip(self.dropouts, self.recurrent, strict=False))
        for dropout, layer in reversed(pairs):
            dout = dropout.backward(layer.backward(dout))
        self.embedding.backward(dout)
        if self.tie:
            self.embedding.grads[0] += self._as_output(self.affine.grads[0])

    def _temporal_gradient(self, hs: Array) -> Array:
        """The gradient of the penalty on changes of h with respect to hs."""
        gradient = hs * 0
        change = hs[:, 1:] - hs[:, :-1]
        change = change * hs.dtype.type(2 * self.temporal_penalty / max(1, change.size))
        gradient[:, 1:] += change
        gradient[:, :-1] -= change
        return gradient

    def take_rows(self, rows: slice | None) -> None:
        """Declare that forward gets only some rows of each batch; other processes have the rest.

        The random masks of these rows during training are then the same as in one process with the
        whole batch, and ``rng`` advances as there.

        Parameters
        ----------
        rows : slice or None
            The rows, from its start to before its stop; None: all.
        """
        parts: list[Any] = [*self.dropouts, *(layer.regularisers for layer in self.recurrent)]
        for part in filter(None, parts):
            part.row_offset = 0 if rows is None else rows.start

    def one_buffer(self, more: int = 0) -> Array:
        """Make all ``grads`` views of one array, where the parameters are.

        Parameters
        ----------
        more : int, default 0
            The number of extra elements at the end.

        Returns
        -------
        buffer : (P + more,) array
            The array. There are zeros between some of the gradients, and at the end.

        Raises
        ------
        ValueError
            If a gradient is a ``SparseRows``.
        """
        if any(isinstance(grad, SparseRows) for grad in self.grads):
            raise ValueError(
                "one_buffer: expected gradients with all rows, which several processes can add up, "
                "got a SparseRows; use sparse_embedding=False"
            )
        whole = 32  # numbers: each part starts where vectors like to
        sizes = [-(-param.size // whole) * whole for param in self.params]
        first = self.params[0]
        buffer = engine_of_param(first).xp.zeros(sum(sizes) + more, first.dtype)
        start = 0
        for (_, layer, k), size in zip(self._slots, sizes, strict=True):
            param = layer.params[k]
            layer.grads[k] = buffer[start : start + param.size].reshape(param.shape)
            start += size
        return buffer

    def reset_state(self) -> None:
        """Forget the state: the next forward starts from zeros."""
        for layer in self.recurrent:
            layer.reset_state()

    # ---- use

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run on a fresh state, then take the old one up again.

        The record of forward is gone afterwards: backward then raises BackwardBeforeForward.
        """
        before = [layer.state for layer in self.recurrent]
        self.reset_state()
        try:
            yield
        finally:
            self.forget()
            for layer, state in zip(self.recurrent, before, strict=True):
                layer.reset_state()
                if state is not None:
                    layer.set_state(*state)

    def perplexity(self, corpus: IntArray, batch_size: int = 10, time_size: int = 35) -> float:
        """Compute the perplexity of a corpus, exp of the mean loss, without dropout.

        The corpus is read as in the book: in ``batch_size`` streams, in whole blocks of
        ``time_size``, with the state carried.

        Parameters
        ----------
        corpus : (L,) integers
            Tokens.
        batch_size : int, default 10
            The number of streams.
        time_size : int, default 35
            The number of steps in a block.

        Returns
        -------
        float
            The perplexity.
        """
        return perplexity_of(self.mean_loss(corpus, batch_size, time_size))

    def mean_loss(
        self, corpus: IntArray, batch_size: int, time_size: int, rows: slice = slice(None)
    ) -> float:
        """Compute the mean loss of a corpus, of which ``perplexity`` is exp.

        Parameters
        ----------
        corpus : (L,) integers
            Tokens.
        batch_size : int
            The number of streams.
        time_size : int
            The number of steps in a block.
        rows : slice, default slice(None)
            The rows of the blocks that count.

        Returns
        -------
        float
            The mean loss in nats per token.
        """
        expect_ids("corpus", corpus, ("L",), self.config["vocab_size"])
        blocks = TruncatedBPTT(corpus, batch_size, time_size)
        with self._aside():
            losses = [self.forward(xs[rows], ts[rows], train_flg=False) for xs, ts in blocks]
            total = math.fsum(map(float, losses))
        return total / len(blocks)

    def generate(
        self,
        start: int | Integers,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        skip_ids: Sequence[int] = (),
        rng: Seed = None,
    ) -> IntArray:
        """Sample tokens that continue ``start``.

        Parameters
        ----------
        start : int or (L,) integers
            One token or several.
        length : int
            The number of tokens to sample.
        temperature : float, default 1.0
            The divisor of the scores: below 1 the likely tokens gain, 0 always gives the likeliest.
        top_k : int, optional
            If given, only the k likeliest tokens are chosen from.
        skip_ids : sequence of int, default ()
            Tokens that are never chosen.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed; the same one gives the same tokens.

        Returns
        -------
        tokens : (length,) integers
            The tokens after ``start``.

        Raises
        ------
        ValueError
            If skip_ids has all tokens.
        """
        V = self.config["vocab_size"]
        start = np.atleast_1d(as_array("start", start))
        expect_ids("start", start, ("L",), V)
        expect_int("length", length)
        heat = expect_float("temperature", temperature, 0)
        k = V if top_k is None else min(expect_int("top_k", top_k), V)
        random = generator(rng)
        skipped = as_array("skip_ids", skip_ids)
        if skipped.size:
            expect_ids("skip_ids", skipped, ("L",), V)
            if len(np.unique(skipped)) == V:
                raise ValueError(f"skip_ids: expected at most {V - 1} of {V} tokens, got all")
        skipped = skipped.astype(np.int64)  # an empty list is one of floats
        tokens = np.empty(length, np.int64)
        with self._aside():
            for token in start:
                scores = self._step(token)
            for n in range(length):
                scores = scores.astype(np.float64)
                expect_finite("scores", scores)
                scores[skipped] = -np.inf
                tokens[n] = _sample(scores, heat, k, random)
                scores = self._step(tokens[n])
        return tokens

    def _step(self, token: int) -> Array:
        """Read one token; the scores (V,) of what comes next, in host memory."""
        x = self.embedding.params[0][int(token)][None]
        for layer in self.recurrent:
            x = layer.step(x)
        if self._loss_is_output:
            return to_host(self._scores(x[:, None])[0, 0])
        W, b = self.affine.params
        return to_host(engine_of_param(W).affine(x, W, b)[0])

    def stream(self, batch: int = 1, **options: Any) -> "TokenStream":
        """Create a stream that reads tokens as they come; see ``TokenStream``.

        Parameters
        ----------
        batch : int, default 1
            The number of rows.
        **options
            The options of ``numba_rnn.Stream``: threads, weights.

        Returns
        -------
        TokenStream
            The stream.

        Examples
        --------
        >>> session = Rnnlm(vocab_size=11, embed_size=4, hidden_size=6, rng=0).stream()
        >>> session.step(3).shape
        (11,)
        """
        return TokenStream(self, batch, **options)

    # ---- checkpoints

    def arrays(self) -> dict[str, Array]:
        """Return parameters and states of the layers by name.

        Returns
        -------
        dict of str to array
            NumPy arrays, wherever the model is. The entry "cell" holds results of the cell for
            fixed numbers, by which ``load_arrays`` recognises it. A weight in int8 has two entries,
            as in ``Sequential.arrays``.
        """
        found = {"cell": engine_by_name("numpy").probe(self.recurrent[0].cell)}
        for name, layer, k in self._slots:
            found |= arrays_of(f"param/{name}", layer.params[k])
        for n, layer in enumerate(self.recurrent):
            for name, value in zip(layer.cell.states, layer.state or (), strict=False):
                found[f"state/recurrent{n}.{name}"] = to_host(value)
        return found

    def load_arrays(self, arrays: dict[str, Array]) -> None:
        """Set parameters and states to those that ``arrays`` returned: all or, on an error, none.

        Weights are then in int8 if those of the arrays are.

        Parameters
        ----------
        arrays : dict of str to array
            NumPy arrays, wherever the model is.

        Raises
        ------
        ValueError, TypeError
            If an array is missing or does not fit, or if the cell now computes something else.
        """
        expect_cell("cell", self.recurrent[0].cell, arrays.get("cell"))
        slots = self._slots
        values = [param_of(f"param/{name}", arrays, layer, k) for name, layer, k in slots]
        learnt: list[tuple[TimeRecurrent, Array]] = []
        states: list[list[Array]] = []  # of each layer; none where the arrays have none
        for n, layer in enumerate(self.recurrent):
            H, key = layer.hidden_size, f"param/recurrent{n}.initial"
            if key in arrays and "initial" not in layer.param_names:
                expect_array(key, arrays[key], (len(layer.cell.states), H), layer.dtype)
                learnt.append((layer, arrays[key]))
            keys = [f"state/recurrent{n}.{name}" for name in layer.cell.states]
            states.append([arrays[key] for key in keys] if set(keys) <= arrays.keys() else [])
            for key, array in zip(keys, states[-1], strict=False):
                expect_array(key, array, (*np.shape(states[-1][0])[:1], H), layer.dtype)
        for layer, initial in learnt:
            layer.learn_initial_state(initial.copy())
        set_params([(layer, k) for _, layer, k in slots], values)
        self._tie_weights()
        for layer, state in zip(self.recurrent, states, strict=True):
            layer.reset_state()
            if state:
                layer.set_state(*state)


def _whole_numbers(name: str, given: Any) -> tuple[int, ...]:
    """A sequence or an array of whole numbers, as Python's."""
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if not isinstance(given, Sequence):
        raise TypeError(f"{name}: expected a sequence of whole numbers, got {given!r}")
    return tuple(expect_int(name, number) for number in given)


def _output_options(tie: bool, cutoffs: Any, divisor: float, samples: int) -> dict[str, Any]:
    """The options of the output layer that are not those of an affine layer, checked."""
    divisor = expect_float("divisor", divisor, 1)
    if not cutoffs:
        if divisor != 4.0:
            raise ValueError(
                f"divisor: expected cutoffs as well, whose clusters it shrinks, got {divisor:g} "
                "without"
            )
        return {"samples": expect_int("samples", samples)} if samples else {}
    if tie:
        raise ValueError(
            f"cutoffs: expected none with tie=True, because no layer has all words, got {cutoffs}"
        )
    if samples:
        raise ValueError(f"samples: expected 0 with cutoffs, got {samples}; use one of both")
    found: dict[str, Any] = {"cutoffs": list(cutoffs)}
    return found if divisor == 4.0 else {**found, "divisor": divisor}


class TokenStream(Stream):
    """A language model that reads tokens as they come and returns the scores of the next token.

    Snapshots, ``reset(rows)``, ``refresh()`` and the rest are those of ``Stream``. The streams of
    one model share nothing but the model: each may have a thread of its own.

    Parameters
    ----------
    model : Rnnlm
        The model.
    batch : int, default 1
        N, the number of rows.
    **options
        The options of ``Stream``: threads, weights.
    """

    def __init__(self, model: Rnnlm, batch: int = 1, **options: Any) -> None:
        self._model, affine = model, model._plain_affine()
        if not isinstance(affine, TimeAffine):
            raise TypeError(
                "model: expected an output layer that a stream can run, got one with cutoffs; "
                "generate and predict run it"
            )
        super().__init__([*model.recurrent, affine], batch, **options)

    def _embedded(self, tokens: Any, shape: tuple[int | str, ...]) -> Array:
        tokens = as_array("tokens", tokens)
        expect_ids("tokens", tokens, shape, self._model.config["vocab_size"])
        return self._embedding[tokens]

    def refresh(self) -> None:
        """Copy the current parameters of the model; the state stays."""
        embedding = self._model.embedding.params[0]
        V, D = self._model.config["vocab_size"], self.input_size
        validate_weight("embedding", embedding, (V, D), self.dtype, self._engine, axis=0)
        if isinstance(self._model.affine, TimeSampledSoftmaxWithLoss):
            W, b = self._model.affine.params
            self.layers[-1].params[:] = [W.T, b]
        super().refresh()
        if self.weights == "int8":
            embedding = in_int8("embedding", embedding.T).T
        self._embedding = embedding.copy()

    def step(self, tokens: int | Integers) -> Array:  # type: ignore[override]
        """Read one token of each row.

        Parameters
        ----------
        tokens : int, or (N,) integers for a batch
            The tokens.

        Returns
        -------
        scores : (V,) array, or (N, V) for a batch
            Scores before the softmax. The next step overwrites the array.

        Raises
        ------
        TypeError, ValueError
            If something is not a token.
        """
        return super().step(self._embedded(tokens, () if self.batch == 1 else (self.batch,)))

    def step_many(  # type: ignore[override]
        self, tokens: Integers | Sequence[Sequence[int]], out: Array | None = None
    ) -> Array:
        """Read several tokens of each row.

        Parameters
        ----------
        tokens : (T,) integers, or (N, T) for a batch
            The tokens.
        out : (T, V) array, or (N, T, V) for a batch, optional
            The array for the result; a new one if left out.

        Returns
        -------
        scores : (T, V) array, or (N, T, V) for a batch
            Scores before the softmax.
        """
        shape: tuple[int | str, ...] = ("T",) if self.batch == 1 else (self.batch, "T")
        return super().step_many(self._embedded(tokens, shape), out)


def _sample(scores: Array, temperature: float, top_k: int, random: np.random.Generator) -> int:
    """A token drawn from softmax(scores / temperature) over the top_k highest scores."""
    if temperature == 0:
        return int(scores.argmax())
    with np.errstate(over="ignore"):  # towards -inf, whose share is 0
        scores = (scores - scores.max()) / temperature
    if top_k < len(scores):
        likeliest = np.argpartition(scores, -top_k)[-top_k:]
        allowed = np.full_like(scores, -np.inf)
        allowed[likeliest] = scores[likeliest]
        scores = allowed
    upto = np.cumsum(np.exp(scores))
    return int(min(np.searchsorted(upto, random.random() * upto[-1], side="right"), len(upto) - 1))
