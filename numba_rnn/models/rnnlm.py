"""A recurrent language model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from ..backend import engine_named, engine_of, to_host
from ..checks import (
    Array,
    as_array,
    expect_array,
    expect_choice,
    expect_finite,
    expect_float,
    expect_ids,
    expect_int,
)
from ..kernels import cells
from ..kernels.cells import Cell, WrittenCell
from ..layers import (
    Layer,
    TimeAffine,
    TimeDropout,
    TimeEmbedding,
    TimeRecurrent,
    TimeSoftmaxWithLoss,
)
from ..layers.base import Rows
from ..layers.initialisers import INITS, Seed, generator
from ..layers.losses import perplexity_of
from ..streaming import Stream
from ..training.bptt import TruncatedBPTT


class Rnnlm:
    """Embedding, recurrent layers, affine, softmax: predicts the next token.

        ids -> embedding -> (dropout -> recurrent) x layers -> dropout -> affine -> softmax

    vocab_size   V, number of tokens
    embed_size   D, size of a token's embedding
    hidden_size  H, units of each recurrent layer
    cell         any of ``numba_rnn.cells.names()``, or a cell of your own; to load its
                 checkpoints, hand it to ``numba_rnn.cells.register``
    layers       number of recurrent layers
    dropout      the share of numbers dropped between layers while training (Zaremba et al. 2014)
    zoneout, recurrent_dropout, weight_drop   of every recurrent layer, see ``regularise`` of
                 TimeRecurrent; what a layer is set to by itself later is in no checkpoint
    tie          the affine's W is the embedding's, transposed (Press & Wolf 2017); needs D = H
    init         how recurrent layers start, see ``layers/initialisers.py``; the embedding starts
                 from N(0, 1), tied from N(0, 1/D), with "book" from N(0, 0.01²)
    rng          seed or numpy Generator, for the start and for all that is dropped
    dtype        float32 or float64

    Token ids and labels are best NumPy arrays, on a GPU too: there, to check what is on it already
    is to wait for it.

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
        tie: bool = False,
        init: str = "orthogonal",
        rng: Seed = None,
        dtype: Any = np.float32,
    ) -> None:
        V, D = expect_int("vocab_size", vocab_size), expect_int("embed_size", embed_size)
        H = expect_int("hidden_size", hidden_size)
        expect_choice("init", init, INITS)
        cell = cells.get(cell)
        if tie and D != H:
            raise ValueError(f"tie: expected embed_size equal to hidden_size, got {D} and {H}")
        self.rng = random = generator(rng)
        std = 0.01 if init == "book" else 1 / math.sqrt(D) if tie else 1.0
        embedding = TimeEmbedding.create(V, D, std=std, rng=random, dtype=dtype)
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
        affine = TimeAffine.create(H, V, rng=random, dtype=dtype)
        if tie:
            affine = TimeAffine(embedding.params[0].T, affine.params[1])

        self.embedding, self.recurrent, self.affine = embedding, recurrent, affine
        self.dropouts = [TimeDropout(dropout, rng=random) for _ in range(len(recurrent) + 1)]
        self.loss_layer = TimeSoftmaxWithLoss()
        self.tie = bool(tie)
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
            "tie": self.tie,
            "init": init,
            "dtype": str(embedding.dtype),
        }

    # always those of the layers, which may get parameters later (learn_initial_state)

    @property
    def _slots(self) -> list[tuple[str, Layer, int]]:
        """Of each parameter its name, its layer and its number there."""
        named: list[tuple[str, Layer]] = [("embedding", self.embedding)]
        named += [(f"recurrent{k}", layer) for k, layer in enumerate(self.recurrent)]
        named += [("affine", self.affine)]
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
        **options: Any,
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each parameter of a model of these sizes, which is not made for that.

        options  the constructor's others, on which shapes do not depend

        >>> dict(Rnnlm.param_shapes(11, 4, 6))["recurrent0.Wx"]
        (4, 24)
        """
        V, D, H = vocab_size, embed_size, hidden_size
        yield "embedding.W", (V, D)
        for k in range(layers):
            for name, shape in cells.get(cell).shapes(D if k == 0 else H, H).items():
                yield f"recurrent{k}.{name}", shape
        if not tie:
            yield "affine.W", (H, V)
        yield "affine.b", (V,)

    @property
    def params(self) -> list[Array]:
        """The parameters of all layers: the same arrays, in a new list."""
        return [layer.params[k] for _, layer, k in self._slots]

    @property
    def grads(self) -> list[Array]:
        """The gradients of all layers: the same arrays, in a new list."""
        return [layer.grads[k] for _, layer, k in self._slots]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's tied weights are one array again."""
        self.__dict__.update(state)
        if self.tie:
            self.affine.params[0] = self.embedding.params[0].T

    @property
    def _parts(self) -> list[Layer]:
        return [self.embedding, *self.recurrent, self.affine, *self.dropouts, self.loss_layer]

    def to(self, name: str) -> Self:
        """Move all layers to the memory of an engine, see ``Layer.to``. Returns the model.

        ``params`` and ``grads`` are new lists then; an optimiser's memory follows by itself.
        """
        for part in self._parts:
            part.to(name)
        if self.tie:
            self.affine.params[0] = self.embedding.params[0].T
        return self

    def forget(self) -> None:
        """Drop what forward kept for backward, and with it the memory."""
        for part in self._parts:
            part.forget()

    def __repr__(self) -> str:
        return f"Rnnlm({', '.join(f'{name} {value}' for name, value in self.config.items())})"

    # ---- training

    def predict(self, xs: Array, train_flg: bool = False, *, trace: bool = False) -> Array:
        """Scores before softmax (N, T, V) for tokens xs (N, T).

        trace  True: ``model.recurrent[k].trace`` shows what went on inside (``layers/trace.py``)
        """
        out = self.embedding.forward(xs)
        for dropout, layer in zip(self.dropouts, self.recurrent, strict=False):
            dropout.train_flg = layer.train_flg = train_flg
            out = layer.forward(dropout.forward(out), trace=trace)
        self.dropouts[-1].train_flg = train_flg
        return self.affine.forward(self.dropouts[-1].forward(out))

    def forward(self, xs: Array, ts: Array, train_flg: bool = True, *, trace: bool = False) -> Any:
        """Mean cross-entropy (nats a token) of predicting ts (N, T) from xs (N, T).

        A float; on a device an array without axes, of which ``float`` makes one.
        """
        return self.loss_layer.forward(self.predict(xs, train_flg, trace=trace), ts)

    def backward(self) -> None:
        """Fill ``grads`` with the gradient of the last loss, cut at the start of its block."""
        dout = self.affine.backward(self.loss_layer.backward())
        dout = self.dropouts[-1].backward(dout)
        pairs = list(zip(self.dropouts, self.recurrent, strict=False))
        for dropout, layer in reversed(pairs):
            dout = dropout.backward(layer.backward(dout))
        self.embedding.backward(dout)
        if self.tie:
            self.embedding.grads[0] += self.affine.grads[0].T

    def take_rows(self, rows: Rows | None) -> None:
        """From now on forward is given some rows of a batch, whose rest others have; None: all.

        What is dropped in these rows while training is then what would be dropped there in the
        whole batch, and ``rng`` goes on as if all had been there. Zoneout alone is not the same,
        see ``layers/regularisers.py``.
        """
        for dropout in self.dropouts:
            dropout.rows = rows
        for layer in self.recurrent:
            if layer.regularisers is not None:
                layer.regularisers.rows = rows

    def one_buffer(self, more: int = 0) -> Array:
        """Make all ``grads`` parts of one array, where the parameters are, and return it.

        The array (P + more,) has zeros between some of them, and ``more`` of them at its end.
        """
        whole = 32  # numbers: each part starts where vectors like to
        sizes = [-(-param.size // whole) * whole for param in self.params]
        first = self.params[0]
        buffer = engine_of(first).xp.zeros(sum(sizes) + more, first.dtype)
        start = 0
        for (_, layer, k), size in zip(self._slots, sizes, strict=True):
            param = layer.params[k]
            layer.grads[k] = buffer[start : start + param.size].reshape(param.shape)
            start += size
        return buffer

    def reset_state(self) -> None:
        """Forget what was read: the next forward starts from zeros."""
        for layer in self.recurrent:
            layer.reset_state()

    # ---- use

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run on a fresh state, then take the old one up again.

        What forward kept for backward is gone afterwards: backward then raises ForwardFirst.
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

    def perplexity(self, corpus: Array, batch_size: int = 10, time_size: int = 35) -> float:
        """exp of the mean loss over a corpus (L,) of tokens, state carried, without dropout.

        Read as the book does: ``batch_size`` streams, whole blocks of ``time_size``.
        """
        return perplexity_of(self.mean_loss(corpus, batch_size, time_size))

    def mean_loss(
        self, corpus: Array, batch_size: int, time_size: int, rows: slice = slice(None)
    ) -> float:
        """The mean of which ``perplexity`` takes exp, in nats; of some rows of the blocks alone."""
        expect_ids("corpus", corpus, ("L",), self.config["vocab_size"])
        blocks = TruncatedBPTT(corpus, batch_size, time_size)
        with self._aside():
            losses = [self.forward(xs[rows], ts[rows], train_flg=False) for xs, ts in blocks]
            total = math.fsum(map(float, losses))
        return total / len(blocks)

    def generate(
        self,
        start: Any,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        skip_ids: Sequence[int] = (),
        rng: Seed = None,
    ) -> Array:
        """Sample tokens that go on from ``start``, one or more tokens. Returns (length,).

        temperature  divides the scores: below 1 bolder towards the likely, 0 always the likeliest
        top_k        choose among the k likeliest only
        skip_ids     tokens never to choose
        rng          a seed or a Generator: the same one gives the same tokens
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
        W, b = self.affine.params
        return to_host((x @ W + b)[0])

    def stream(self, batch: int = 1, **options: Any) -> "TokenStream":
        """A session of its own, which reads tokens as they come; see ``TokenStream``.

        options  those of ``numba_rnn.Stream``: threads, bfloat16

        >>> session = Rnnlm(vocab_size=11, embed_size=4, hidden_size=6, rng=0).stream()
        >>> session.step(3).shape
        (11,)
        """
        return TokenStream(self, batch, **options)

    # ---- checkpoints

    def arrays(self) -> dict[str, Array]:
        """Parameters and layer states by name, as NumPy arrays wherever the model is.

        Under "cell" stands what the cell makes of some fixed numbers.
        """
        found = {"cell": engine_named("numpy").sample(self.recurrent[0].cell)}
        found |= {f"param/{name}": to_host(layer.params[k]) for name, layer, k in self._slots}
        for n, layer in enumerate(self.recurrent):
            for name, value in zip(layer.cell.states, layer.state or (), strict=False):
                found[f"state/recurrent{n}.{name}"] = to_host(value)
        return found

    def load_arrays(self, arrays: dict[str, Array]) -> None:
        """Take up what ``arrays`` returned, NumPy arrays, wherever the model is; all or nothing.

        Raises ValueError or TypeError where something is missing or does not fit, or where the
        cell computes something else than it did there.
        """
        cell, there = self.recurrent[0].cell, arrays.get("cell")
        here = engine_named("numpy").sample(cell)
        if there is not None and not (
            np.shape(there) == here.shape and np.allclose(there, here, 1e-6, 1e-6, equal_nan=True)
        ):
            raise ValueError(
                f"cell: expected parameters of {cell.name!r} as it is here, got those of a cell "
                "that computes something else"
            )
        for name, layer, k in self._slots:  # all are looked at before any is taken
            param = layer.params[k]
            expect_array(f"param/{name}", arrays.get(f"param/{name}"), param.shape, param.dtype)
        learnt: list[TimeRecurrent] = []
        states: list[list[Array]] = []  # of each layer; none where the arrays have none
        for n, layer in enumerate(self.recurrent):
            H, key = layer.hidden_size, f"param/recurrent{n}.initial"
            if key in arrays and "initial" not in layer.param_names:
                expect_array(key, arrays[key], (len(layer.cell.states), H), layer.dtype)
                learnt.append(layer)
            keys = [f"state/recurrent{n}.{name}" for name in layer.cell.states]
            states.append([arrays[key] for key in keys] if set(keys) <= arrays.keys() else [])
            for key, state in zip(keys, states[-1], strict=False):
                expect_array(key, state, (*np.shape(states[-1][0])[:1], H), layer.dtype)
        for layer in learnt:
            layer.learn_initial_state()
        for name, layer, k in self._slots:
            param = layer.params[k]
            param[...] = engine_of(param).to_device(arrays[f"param/{name}"])
        for layer, state in zip(self.recurrent, states, strict=True):
            layer.reset_state()
            if state:
                layer.set_state(*state)


class TokenStream(Stream):
    """A language model that reads tokens as they come, and says what it expects next.

    ``step`` and ``step_many`` take tokens in place of vectors and return scores before softmax:
    step(3) -> (V,), step_many(tokens (T,)) -> (T, V); for a batch step((N,)) -> (N, V),
    step_many((N, T)) -> (N, T, V). Snapshots, ``reset(rows)``, ``refresh()`` and the rest are
    those of ``Stream``. Sessions of one model have nothing in common but the model: each may have
    a thread of its own.
    """

    def __init__(self, model: Rnnlm, batch: int = 1, **options: Any) -> None:
        self._model = model
        super().__init__([*model.recurrent, model.affine], batch, **options)

    def _embedded(self, tokens: Any, shape: tuple[int | str, ...]) -> Array:
        tokens = as_array("tokens", tokens)
        expect_ids("tokens", tokens, shape, self._model.config["vocab_size"])
        return self._embedding[tokens]

    def refresh(self) -> None:
        """Take the model's parameters as they are now; the state stays."""
        embedding = self._model.embedding.params[0]
        V, D = self._model.config["vocab_size"], self.input_size
        expect_array("embedding", embedding, (V, D), self.dtype, engine_of(embedding))
        super().refresh()
        self._embedding = embedding.copy()

    def step(self, tokens: Any) -> Array:
        """One token, or (N,) for a batch -> scores (V,) or (N, V), overwritten by the next step.

        Raises TypeError or ValueError for what is no token.
        """
        return super().step(self._embedded(tokens, () if self.batch == 1 else (self.batch,)))

    def step_many(self, tokens: Any, out: Array | None = None) -> Array:
        """Many: (T,) or (N, T) tokens -> scores (T, V) or (N, T, V)."""
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
