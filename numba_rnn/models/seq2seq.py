"""An encoder reads a sequence, a decoder writes another: translation, sums, dates.

    xs -> embedding -> encoder -> hs, last states
                                   |        |
    ts[:, :-1] -> embedding -> decoder, from these states -> affine -> scores of ts[:, 1:]

The decoder may see more of the encoder than its last states (``connection``):

    "attention"  each step of the decoder looks at all steps of the encoder; the affine layer reads
                 the context beside the decoder's output (Luong et al. 2015)
    "peeky"      the encoder's last output is read at each step, by the decoder and the affine layer
                 (Cho et al. 2014)
    "none"       the states alone (Sutskever et al. 2014)
"""

from typing import Any, Literal, Self

import numpy as np

from ..backend import engine_by_name, engine_of_param, to_host
from ..kernels.cells import Cell, WrittenCell
from ..layers import (
    Stacked,
    TimeAffine,
    TimeAttention,
    TimeEmbedding,
    TimeRecurrent,
    TimeSoftmaxWithLoss,
)
from ..layers.initialisers import Seed, generator
from ..typing import Array, IntArray, Integers, Scalar
from ..validation import expect_choice, expect_int, validate_ids
from .base import BaseModel

CONNECTIONS = ("attention", "peeky", "none")


class Seq2seq(BaseModel):
    """An encoder and a decoder with the softmax loss.

    Parameters
    ----------
    encoder_embedding, decoder_embedding : TimeEmbedding
        The vectors of the tokens that are read, and of those that are written.
    encoder, decoder : Stacked
        Recurrent layers that read forwards. Layer by layer they have the same states in the same
        sizes: the decoder starts from the encoder's last ones.
    affine : TimeAffine
        The scores of the next token.
    connection : {"attention", "peeky", "none"}, default "attention"
        How the decoder sees the encoder, besides its states. The decoder reads the E numbers of an
        embedding, with "peeky" also the H outputs of the encoder. The affine layer reads the
        outputs of the decoder, with "attention" and "peeky" also H numbers of the encoder.
    rng : numpy.random.Generator, int or None, default None
        A random generator or a seed for dropout.

    Attributes
    ----------
    attention : TimeAttention or None
        The attention, whose ``attention_weights`` (N, T, S) are those of the last forward.
    params, grads, param_names : list, list, tuple
        The parameters and gradients of all layers, such as ``encoder.0.Wx``.

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit together.

    Notes
    -----
    Shapes: N rows, S steps of xs, T + 1 of ts, whose first token (a start sign) is read and not
    predicted; -1 fills up shorter rows of ts, and ``lengths`` are those of xs. Each batch starts
    from fresh states. A ``Trainer`` takes ``Batches(xs, ts, ...)``.

    References
    ----------
    - Sutskever, Vinyals & Le 2014; Cho et al. 2014; Luong, Pham & Manning 2015.
    - *Deep Learning from Scratch 2*, chapters 7 and 8.

    Examples
    --------
    >>> model = Seq2seq.create(vocab_size=13, embed_size=8, hidden_size=16, rng=0)
    >>> xs, ts = np.ones((5, 7), int), np.ones((5, 4), int)
    >>> loss = model.forward(xs, ts)
    >>> model.backward()
    >>> model.generate(xs, start=1, length=3).shape
    (5, 3)
    """

    def __init__(
        self,
        encoder_embedding: TimeEmbedding,
        encoder: Stacked,
        decoder_embedding: TimeEmbedding,
        decoder: Stacked,
        affine: TimeAffine,
        *,
        connection: Literal["attention", "peeky", "none"] = "attention",
        rng: Seed = None,
    ) -> None:
        parts: dict[str, Any] = {
            "encoder_embedding": encoder_embedding, "encoder": encoder,
            "decoder_embedding": decoder_embedding, "decoder": decoder, "affine": affine,
        }  # fmt: skip
        kinds = TimeEmbedding, Stacked, TimeEmbedding, Stacked, TimeAffine
        for (name, part), kind in zip(parts.items(), kinds, strict=True):
            if not isinstance(part, kind):
                raise TypeError(f"{name}: expected a {kind.__name__}, got {type(part).__name__}")
        for first, second in ("encoder_embedding", "decoder_embedding"), ("encoder", "decoder"):
            if parts[first] is parts[second]:
                raise ValueError(
                    f"{second}: expected a layer of its own, got {first} again, whose gradient "
                    f"would be that of one of both; copy.deepcopy({first}) starts alike"
                )
        self.connection = expect_choice("connection", connection, CONNECTIONS)
        super().__init__(parts, rng)
        self.encoder_embedding, self.encoder = encoder_embedding, encoder
        self.decoder_embedding, self.decoder = decoder_embedding, decoder
        self.affine, self.loss = affine, TimeSoftmaxWithLoss()
        self.attention = TimeAttention() if connection == "attention" else None
        self._expect_sizes()

    @classmethod
    def create(
        cls,
        vocab_size: int,
        embed_size: int,
        hidden_size: int,
        *,
        output_vocab_size: int | None = None,
        cell: Cell | WrittenCell | str = "lstm",
        layers: int = 1,
        dropout: float = 0.0,
        connection: Literal["attention", "peeky", "none"] = "attention",
        rng: Seed = None,
        **options: Any,
    ) -> Self:
        """Create a model from its sizes.

        Parameters
        ----------
        vocab_size : int
            The number of tokens that the encoder knows.
        embed_size : int
            E, the size of the vectors of tokens.
        hidden_size : int
            H, the number of units of each layer.
        output_vocab_size : int, optional
            The number of tokens that the decoder knows; that of the encoder if left out.
        cell : Cell or str, default "lstm"
            The cell of all layers.
        layers : int, default 1
            The number of layers of the encoder, and of the decoder.
        dropout : float, default 0.0
            The share of numbers dropped between two layers.
        connection : {"attention", "peeky", "none"}, default "attention"
            How the decoder sees the encoder.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed, for the parameters and for dropout.
        **options
            The options of the layers: dtype and so on.

        Returns
        -------
        Self
            The new model.
        """
        expect_choice("connection", connection, CONNECTIONS)
        random, H = generator(rng), expect_int("hidden_size", hidden_size)
        written = vocab_size if output_vocab_size is None else output_vocab_size
        peek, more = (H if connection == "peeky" else 0), (0 if connection == "none" else H)
        plain = {name: options[name] for name in ("dtype",) if name in options}
        stack = {"layer": cell, "dropout": dropout, "rng": random, **options}
        return cls(
            TimeEmbedding.create(vocab_size, embed_size, rng=random, **plain),
            Stacked.create(embed_size, H, layers, **stack),
            TimeEmbedding.create(written, embed_size, rng=random, **plain),
            Stacked.create(embed_size + peek, H, layers, **stack),
            TimeAffine.create(H + more, written, rng=random, **plain),
            connection=connection,
            rng=random,
        )

    def _expect_sizes(self) -> None:
        """Raises ValueError where the layers do not fit together."""
        for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            other = [k for k in stack.layers if not isinstance(k, TimeRecurrent)]
            if other:
                raise TypeError(
                    f"{name}: expected layers that read forwards, got {type(other[0]).__name__}"
                )
        states = [
            [(layer.cell.states, layer._state_sizes) for layer in stack.recurrent]
            for stack in (self.encoder, self.decoder)
        ]
        if states[0] != states[1]:
            raise ValueError(
                f"decoder: expected layers with the states and sizes of the encoder, {states[0]}, "
                f"got {states[1]}"
            )
        E, H, out = (
            self.decoder_embedding.W.shape[1], self.encoder.output_size, self.decoder.output_size
        )  # fmt: skip
        wanted = {
            "encoder": (self.encoder.input_size, self.encoder_embedding.W.shape[1]),
            "decoder": (self.decoder.input_size, E + H * (self.connection == "peeky")),
            "affine": (self.affine.params[0].shape[0], out + H * (self.connection != "none")),
        }
        for name, (got, expected) in wanted.items():
            if got != expected:
                raise ValueError(
                    f"{name}: expected {expected} inputs with connection {self.connection!r}, "
                    f"got {got}"
                )
        if self.connection == "attention" and out != H:
            raise ValueError(f"decoder: expected {H} outputs for attention, as encoder, got {out}")

    def __repr__(self) -> str:
        return f"Seq2seq({self.encoder}, {self.decoder}, connection={self.connection!r})"

    def forget(self) -> None:
        """Free the memory that forward keeps for backward, in every layer."""
        super().forget()
        for layer in (self.loss, self.attention):
            if layer is not None:
                layer.forget()

    # ---- training

    def _encode(self, xs: IntArray, lengths: Integers | None) -> Array:
        """The encoder's outputs; the decoder starts from its last states."""
        self.encoder.reset_state()
        hs = self.encoder.forward(self.encoder_embedding.forward(xs), lengths=lengths)
        self.decoder.set_state(*self.encoder.state)
        if self.connection == "peeky":  # the last outputs, whatever the row's length
            last = np.full(len(hs), hs.shape[1]) if lengths is None else np.asarray(lengths)
            self._last = np.maximum(last, 1) - 1
        self._lengths = lengths
        return hs

    def _decode(self, hs: Array, ids: IntArray) -> Array:
        """The scores of the tokens that come after ids."""
        xs = self.decoder_embedding.forward(ids)
        if self.connection == "none":
            return self.affine.forward(self.decoder.forward(xs))
        xp = engine_of_param(xs).xp
        if self.attention is not None:
            out = self.decoder.forward(xs)
            seen = self.attention.forward(hs, out, lengths=self._lengths)
        else:
            seen = hs[xp.arange(len(hs)), xp.asarray(self._last)]
            seen = xp.repeat(seen[:, None], xs.shape[1], axis=1)
            out = self.decoder.forward(xp.concatenate([seen, xs], axis=2))
        return self.affine.forward(xp.concatenate([seen, out], axis=2))

    def _scores(
        self, xs: IntArray, ts: IntArray, train_flg: bool, lengths: Integers | None
    ) -> tuple[Array, IntArray]:
        """The scores of ts[:, 1:], and these."""
        ignore, V = self.loss.ignore_label, self.decoder_embedding.W.shape[0]
        ts = validate_ids(
            "ts", to_host(ts), (len(xs), "T + 1"), V, engine_by_name("numpy"), ignore=ignore
        )
        if ts.shape[1] < 2:
            raise ValueError(
                f"ts: expected the token to start from and at least one to write, got shape "
                f"{ts.shape}"
            )
        nothing = ts == ignore
        if (nothing[:, :-1] & ~nothing[:, 1:]).any():
            raise ValueError(
                f"ts: expected {ignore} only behind the end of a row, got tokens behind it"
            )
        self._set_training(train_flg)
        read = np.where(nothing, 0, ts)[:, :-1]
        hs = self._encode(xs, lengths)
        self._shape = hs.shape
        return self._decode(hs, read), ts[:, 1:]

    def forward(
        self,
        xs: IntArray,
        ts: IntArray,
        train_flg: bool = True,
        *,
        lengths: Integers | None = None,
        **options: Any,
    ) -> Scalar:
        """Compute the loss of writing ts, each token after the true ones before it.

        Parameters
        ----------
        xs : (N, S) integers
            The tokens to read.
        ts : (N, T + 1) integers
            The tokens to write behind the first one; -1 behind the end of a shorter row.
        train_flg : bool, default True
            Whether dropout acts as in training.
        lengths : (N,) integers, optional
            The number of steps in each row of xs.
        **options
            Further arguments of the loss, for the T steps: ``weights``.

        Returns
        -------
        loss : float or 0-d array
            The mean cross-entropy of a token, in nats.
        """
        scores, labels = self._scores(xs, ts, train_flg, lengths)
        return self._loss_of(scores, labels, options)

    def backward(self) -> None:
        """Compute the gradients of the last loss and fill ``grads``."""
        dout, H = self.affine.backward(self.loss.backward()), self._shape[2]
        xp = engine_of_param(self.affine.params[0]).xp
        dhs = xp.zeros(self._shape, dout.dtype)
        if self.connection == "none":
            dxs = self.decoder.backward(dout)
        elif self.attention is not None:
            dhs_seen, dout_seen = self.attention.backward(dout[:, :, :H])
            dhs += dhs_seen
            dxs = self.decoder.backward(dout[:, :, H:] + dout_seen)
        else:
            dxs = self.decoder.backward(xp.ascontiguousarray(dout[:, :, H:]))
            dseen = (dout[:, :, :H] + dxs[:, :, :H]).sum(axis=1)
            dhs[xp.arange(len(dhs)), xp.asarray(self._last)] += dseen
            dxs = xp.ascontiguousarray(dxs[:, :, H:])
        self.decoder_embedding.backward(dxs)
        dstates: Any = self.decoder.dstate
        self.encoder_embedding.backward(self.encoder.backward(dhs, *dstates))

    def evaluate(
        self, xs: IntArray, ts: IntArray, *, lengths: Integers | None = None, **options: Any
    ) -> tuple[Scalar, Array]:
        """Compute the loss without dropout, and the scores of ts[:, 1:].

        Parameters
        ----------
        xs : (N, S) integers
            The tokens to read.
        ts : (N, T + 1) integers
            The tokens to write behind the first one.
        lengths : (N,) integers, optional
            The number of steps in each row of xs.
        **options
            Further arguments of the loss.

        Returns
        -------
        loss : float or 0-d array
            The loss.
        scores : (N, T, V) array
            The scores of the token at each step after the true ones before it.
        """
        scores, labels = self._scores(xs, ts, False, lengths)
        loss = self._loss_of(scores, labels, options)
        self.forget()
        return loss, scores

    # ---- use

    def generate(
        self,
        xs: IntArray,
        start: int,
        length: int,
        *,
        stop: int | None = None,
        lengths: Integers | None = None,
    ) -> IntArray:
        """Write the likeliest token after each other.

        Parameters
        ----------
        xs : (N, S) integers
            The tokens to read.
        start : int
            The token that the decoder reads first.
        length : int
            T, how many tokens to write.
        stop : int, optional
            The token that ends a row: what comes after it is this token, too.
        lengths : (N,) integers, optional
            The number of steps in each row of xs.

        Returns
        -------
        ids : (N, T) integers
            The tokens, in a NumPy array.

        Raises
        ------
        ValueError
            If start or stop is no token of the decoder.
        """
        expect_int("length", length, 0)
        for name, token in ("start", start), ("stop", stop):
            V = self.decoder_embedding.W.shape[0]
            if (token is not None or name == "start") and expect_int(name, token, 0) >= V:
                raise ValueError(f"{name}: expected a token from 0 to {V - 1}, got {token}")
        self._set_training(False)
        hs = self._encode(xs, lengths)
        ids: IntArray = np.full((len(hs), 1), start)
        written = np.full((len(hs), length), -1 if stop is None else stop)
        ended = np.zeros(len(hs), bool)
        for t in range(length):
            ids = to_host(self._decode(hs, ids)).argmax(axis=2)
            if stop is not None:
                ids[ended] = stop
                ended |= ids[:, 0] == stop
            written[:, t] = ids[:, 0]
            if ended.all():
                break
            self.decoder.set_state(*self.decoder.state)
        self.forget()
        return written
