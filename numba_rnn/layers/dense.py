"""Layers without a state: embedding, affine, dropout."""

import math
import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Engine, engine_for_input, engine_for_work, to_host
from ..kernels.sparse_rows import SparseRows
from ..typing import Array, IntArray
from ..validation import (
    any_shape,
    expect_float,
    expect_float_dtype,
    expect_int,
    expect_plain_array,
    validate_array,
    validate_ids,
    validate_weight,
)
from .base import Layer
from .initialisers import Seed, generator, new_seed


class TimeEmbedding(Layer):
    """Word vectors: a row of W for every word number.

    Parameters
    ----------
    W : (V, D) array, float32 or float64, or QuantisedWeight with axis 0
        One vector of D numbers for each of V words.
    sparse : bool, default False
        Whether the gradient is a ``SparseRows``, which has the rows of the words of a block alone,
        so that the time of an iteration does not grow with V. SGD and AdaGrad compute the same
        from it, Adam with ``lazy=True`` nearly; other optimisers refuse it.

    Examples
    --------
    >>> layer = TimeEmbedding.create(50_000, 4, rng=0, sparse=True)
    >>> xs = layer.forward(np.array([[7, 7, 20]]))
    >>> layer.backward(np.ones_like(xs))
    >>> layer.grads
    [SparseRows(2 of 50000 rows, float32)]
    """

    param_names = _weight_names = ("W",)
    _scale_axis = 0
    train_flg = True
    _dropped = 0.0
    rng: np.random.Generator  # once words are dropped

    def __init__(self, W: Array, *, sparse: bool = False) -> None:
        super().__init__(validate_weight("W", W, ("V", "D"), None, engine_for_input(W), axis=0))
        if sparse:
            self.grads[0] = no_rows(self.params[0])

    def drop_words(self, ratio: float, rng: Seed = None) -> Self:
        """Drop a random share of the words during training: embedding dropout.

        The vectors of these words are 0 wherever they occur in a block, the others are multiplied
        by 1 / (1 - ratio). With ``train_flg`` False none is dropped.

        Parameters
        ----------
        ratio : float
            The share of the vocabulary, 0 <= ratio < 1; 0: none.
        rng : numpy.random.Generator, int or None, default None
            A random generator, which layers may share, or a seed. Each forward takes a number from
            it.

        Returns
        -------
        Self
            The layer itself.

        References
        ----------
        - Gal & Ghahramani 2016, *A theoretically grounded application of dropout in recurrent
          neural networks*.
        """
        self._dropped, self.rng = expect_float("ratio", ratio, 0, 1), generator(rng)
        return self

    @property
    def W(self) -> Array:  # noqa: N802 (the name on the page)
        """The parameter, a (V, D) array."""
        return self.params[0]

    @classmethod
    def create(
        cls,
        vocab_size: int,
        size: int,
        *,
        std: float = 1.0,
        rng: Seed = None,
        dtype: DTypeLike = np.float32,
        sparse: bool = False,
    ) -> Self:
        """Create an embedding from its sizes, W ~ N(0, std²).

        Parameters
        ----------
        vocab_size : int
            V, the number of words.
        size : int
            D, the length of a vector.
        std : float, default 1.0
            The standard deviation of W. The book uses 0.01.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed.
        dtype : dtype, default float32
            float32 or float64.
        sparse : bool, default False
            Whether the gradient is a ``SparseRows``.

        Returns
        -------
        Self
            The new layer.

        Notes
        -----
        With std 1 the inputs of the layers above have the scale that those layers are made for.
        With 0.01, training on a short text is slow at the start.
        """
        shape = expect_int("vocab_size", vocab_size), expect_int("size", size)
        W = generator(rng).standard_normal(shape) * expect_float("std", std, 0)
        options = {"sparse": True} if sparse else {}
        return cls(W.astype(expect_float_dtype("dtype", dtype)), **options)

    def forward(self, ids: IntArray) -> Array:
        """Look up the vectors of words.

        Parameters
        ----------
        ids : (N, T) integers
            Word numbers from 0 to V - 1.

        Returns
        -------
        xs : (N, T, D) array
            Their vectors.
        """
        (W,) = self.params
        engine, given = self._engine(), ids
        ids = validate_ids("ids", ids, ("N", "T"), W.shape[0], engine)
        factors = None
        if self._dropped and self.train_flg:
            words = engine.dropout(new_seed(self.rng), (len(W), 1), self._dropped, W.dtype)
            factors = words[ids]
        found = None
        if isinstance(self.grads[0], SparseRows):
            found = distinct(given if isinstance(given, np.ndarray) else ids)
        self._tape = engine, ids.copy(), factors, found
        return W[ids] if factors is None else W[ids] * factors

    def backward(self, dout: Array) -> None:
        """Compute the gradient of W and fill ``grads``.

        Parameters
        ----------
        dout : (N, T, D) array
            The gradient of the vectors.
        """
        engine, ids, factors, found = self._saved()
        dW: Any = self.grads[0]
        D = dW.shape[1]
        dout = validate_array("dout", dout, (*ids.shape, D), self.dtype, engine)
        dout = (dout if factors is None else dout * factors).reshape(-1, D)
        if found is None:
            dW[...] = 0
            engine.add_rows(dW, ids.reshape(-1), dout)
            return
        rows, places = map(engine.to_device, found)
        dW.rows, dW.values = rows, engine.xp.zeros((len(rows), D), self.dtype)
        engine.add_rows(dW.values, places, dout)


def distinct(ids: IntArray) -> tuple[IntArray, IntArray]:
    """The different numbers, in their order, and the place among them of each: in host memory.

    Of numbers on a device this waits for it.
    """
    numbers, places = np.unique(to_host(ids), return_inverse=True)
    return numbers.astype(np.int64), places.reshape(-1)


def no_rows(param: Array) -> Any:
    """The gradient of a parameter before the first backward."""
    xp = engine_for_input(param).xp
    return SparseRows(xp.zeros(0, np.int64), param[:0].copy(), param.shape)


class TimeAffine(Layer):
    """The same affine transformation at every step, x W + b.

    Parameters
    ----------
    W : (D, M) array, float32 or float64, or QuantisedWeight
        The weights.
    b : (M,) array, of the dtype of W
        The bias.
    """

    param_names = ("W", "b")
    _weight_names = ("W",)
    role_in_stream: str | None = "affine"

    def __init__(self, W: Array, b: Array) -> None:
        engine = engine_for_input(W)
        W = validate_weight("W", W, ("D", "M"), None, engine)
        super().__init__(W, validate_array("b", b, (W.shape[1],), W.dtype, engine))

    @classmethod
    def create(
        cls, input_size: int, output_size: int, *, rng: Seed = None, dtype: DTypeLike = np.float32
    ) -> Self:
        """Create a layer from its sizes, with W ~ N(0, 1/D) and b = 0, as in the book.

        Parameters
        ----------
        input_size : int
            D, the number of inputs.
        output_size : int
            M, the number of outputs.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed.
        dtype : dtype, default float32
            float32 or float64.

        Returns
        -------
        Self
            The new layer.
        """
        D, M = expect_int("input_size", input_size), expect_int("output_size", output_size)
        dtype = expect_float_dtype("dtype", dtype)
        W = generator(rng).standard_normal((D, M)) / math.sqrt(D)
        return cls(W.astype(dtype), np.zeros(M, dtype))

    def forward(self, xs: Array) -> Array:
        """Transform every step.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs.

        Returns
        -------
        out : (N, T, M) array
            The outputs.
        """
        *self._tape, out = affine_of(self, xs, *self.params)
        return out

    def backward(self, dout: Array) -> Array:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dout : (N, T, M) array
            The gradient of the outputs.

        Returns
        -------
        dxs : (N, T, D) array
            The gradient of the inputs.
        """
        engine, xs = self._saved()
        W, _ = self.params
        dW, db = self.grads
        N, T, D = xs.shape
        dout = validate_array("dout", dout, (N, T, W.shape[1]), self.dtype, engine)
        rows = dout.reshape(N * T, W.shape[1])
        return engine.affine_backward(xs.reshape(N * T, D), W, rows, dW, db).reshape(N, T, D)


def affine_of(layer: Layer, xs: Array, W: Array, b: Array) -> tuple[Engine, Array, Array]:
    """The engine of a layer, xs where its parameters are, and xs W + b."""
    engine = layer._engine()
    xs = validate_array("xs", xs, ("N", "T", W.shape[0]), layer.dtype, engine)
    N, T, D = xs.shape
    return engine, xs, engine.affine(xs.reshape(N * T, D), W, b).reshape(N, T, W.shape[1])


class TimeDropout(Layer):
    """Zero a random share of the numbers during training.

    Parameters
    ----------
    ratio : float, default 0.5
        The share that is zeroed, 0 <= ratio < 1. The other numbers are multiplied by
        1 / (1 - ratio), so that their mean stays the same.
    rng : numpy.random.Generator, int or None, default None
        A random generator, which several layers may share, or a seed. Each forward takes a number
        from it, which gives the same mask on every engine. ``np.random.seed`` has no effect here;
        it has in the book's form, ``numba_rnn.book.TimeDropout``.

    Attributes
    ----------
    train_flg : bool
        True: drop. False: pass everything on unchanged.
    row_offset : int
        The number of the first row of xs within the batch, if other processes have the rows before
        it. The same numbers are dropped as in one process that has the whole batch.

    References
    ----------
    - Srivastava et al. 2014, *Dropout: a simple way to prevent neural networks from overfitting*.
    """

    row_offset = 0

    def _set_rows(self, rows: slice | None) -> None:
        message = "TimeDropout.rows is row_offset, the number of the first row"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        self.row_offset = 0 if rows is None else rows.start

    rows = property(None, _set_rows)

    def __init__(self, ratio: float = 0.5, rng: Seed = None) -> None:
        super().__init__()
        self.ratio = expect_float("ratio", ratio, 0, 1)
        self.rng = generator(rng)
        self.train_flg = True

    def forward(self, xs: Array) -> Array:
        """Drop numbers of xs if ``train_flg`` is True.

        Parameters
        ----------
        xs : array of any shape, float32 or float64
            The inputs.

        Returns
        -------
        out : array
            The outputs, in the shape of xs.
        """
        expect_plain_array("xs", xs)
        if not self.train_flg or self.ratio == 0:
            self._tape = ()
            return xs
        engine = engine_for_work(xs)
        xs = validate_array("xs", xs, any_shape(xs), None, engine)
        shape = xs.shape if xs.ndim > 1 else (xs.size, 1)
        mask = engine.dropout(new_seed(self.rng), shape, self.ratio, xs.dtype, self.row_offset)
        mask = mask.reshape(xs.shape)
        self._tape = engine, mask
        return xs * mask

    def backward(self, dout: Array) -> Array:
        """Compute the gradient of xs.

        Parameters
        ----------
        dout : array
            The gradient of the outputs, in the shape of xs.

        Returns
        -------
        dxs : array
            The gradient of xs.
        """
        if not self._saved():
            return dout
        engine, mask = self._saved()
        return validate_array("dout", dout, mask.shape, mask.dtype, engine) * mask
