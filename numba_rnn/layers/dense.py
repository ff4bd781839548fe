"""Layers without a state: embedding, affine, dropout."""

import math
from typing import Any, Self

import numpy as np

from ..backend import engine_for
from ..checks import (
    Array,
    accept,
    accept_ids,
    any_shape,
    expect_float,
    expect_float_dtype,
    expect_int,
    expect_plain_array,
)
from .base import Layer, Rows
from .initialisers import Seed, generator


class TimeEmbedding(Layer):
    """A row of W for every word number.

    W (V, D): V words, D numbers each.
    """

    param_names = ("W",)

    def __init__(self, W: Array) -> None:
        super().__init__(accept("W", W, ("V", "D"), None, engine_for(W)))

    @property
    def W(self) -> Array:  # noqa: N802 (the name on the page)
        """The rows (V, D), which are the parameter."""
        return self.params[0]

    @classmethod
    def create(
        cls,
        vocab_size: int,
        size: int,
        *,
        std: float = 1.0,
        rng: Seed = None,
        dtype: Any = np.float32,
    ) -> Self:
        """W ~ N(0, std²); the book's std is 0.01.

        With 1, the default, what the layers above receive is of the size they are made for: from
        0.01 training on a short text takes long to leave the ground.
        """
        shape = expect_int("vocab_size", vocab_size), expect_int("size", size)
        W = generator(rng).standard_normal(shape) * expect_float("std", std, 0)
        return cls(W.astype(expect_float_dtype("dtype", dtype)))

    def forward(self, ids: Array) -> Array:
        """ids (N, T), integers from 0 to V - 1 -> (N, T, D)."""
        (W,) = self.params
        here = self._engine()
        ids = accept_ids("ids", ids, ("N", "T"), W.shape[0], here)
        self._tape = here, ids.copy()
        return W[ids]

    def backward(self, dout: Array) -> None:
        """dout (N, T, D); fills ``grads``."""
        here, ids = self._recall()
        (dW,) = self.grads
        dout = accept("dout", dout, (*ids.shape, dW.shape[1]), self.dtype, here)
        dW[...] = 0
        here.add_rows(dW, ids.reshape(-1), dout.reshape(-1, dW.shape[1]))


class TimeAffine(Layer):
    """The same affine transformation at every step: x W + b.

    W (D, M), b (M,).
    """

    param_names = ("W", "b")
    role_in_stream = "affine"

    def __init__(self, W: Array, b: Array) -> None:
        here = engine_for(W)
        W = accept("W", W, ("D", "M"), None, here)
        super().__init__(W, accept("b", b, (W.shape[1],), W.dtype, here))

    @classmethod
    def create(
        cls, input_size: int, output_size: int, *, rng: Seed = None, dtype: Any = np.float32
    ) -> Self:
        """W ~ N(0, 1/D), b = 0, as in the book."""
        D, M = expect_int("input_size", input_size), expect_int("output_size", output_size)
        dtype = expect_float_dtype("dtype", dtype)
        W = generator(rng).standard_normal((D, M)) / math.sqrt(D)
        return cls(W.astype(dtype), np.zeros(M, dtype))

    def forward(self, xs: Array) -> Array:
        """xs (N, T, D) -> (N, T, M)."""
        W, b = self.params
        here = self._engine()
        xs = accept("xs", xs, ("N", "T", W.shape[0]), self.dtype, here)
        N, T, D = xs.shape
        self._tape = here, xs
        out = here.product(xs.reshape(N * T, D), W)
        out += b
        return out.reshape(N, T, W.shape[1])

    def backward(self, dout: Array) -> Array:
        """dout (N, T, M) -> dxs (N, T, D); fills ``grads``."""
        here, xs = self._recall()
        W, _ = self.params
        dW, db = self.grads
        N, T, D = xs.shape
        dout = accept("dout", dout, (N, T, W.shape[1]), self.dtype, here)
        rows = dout.reshape(N * T, W.shape[1])
        dW[...] = here.product(xs.reshape(N * T, D).T, rows)
        db[...] = here.sum_rows(rows)
        return here.product(rows, W.T).reshape(N, T, D)


class TimeDropout(Layer):
    """Zero a random share of the numbers while training (Srivastava et al. 2014).

    ratio      the share that is zeroed, from 0 up to but not including 1; what is left is scaled
               by 1 / (1 - ratio), so that nothing changes where ``train_flg`` is False
    rng        a numpy Generator (shared with other layers if you like), a seed, or None; on a
               device the numbers are made there, from a seed that rng gives. ``np.random.seed``
               decides nothing here; it does in the book's form, ``numba_rnn.book.TimeDropout``
    train_flg  True: drop; False: pass everything on unchanged
    rows       where other processes have the rest of the batch: which rows xs has; what is dropped
               in them is what would be dropped there in the whole batch
    """

    def __init__(self, ratio: float = 0.5, rng: Seed = None) -> None:
        super().__init__()
        self.ratio = expect_float("ratio", ratio, 0, 1)
        self.rng = generator(rng)
        self.train_flg = True
        self.rows: Rows | None = None

    def forward(self, xs: Array) -> Array:
        """xs, any shape -> the same shape."""
        expect_plain_array("xs", xs)
        if not self.train_flg or self.ratio == 0:
            self._tape = ()
            return xs
        here = engine_for(xs)
        xs = accept("xs", xs, any_shape(xs), None, here)
        scale = xs.dtype.type(1 / (1 - self.ratio))
        if self.rows is None:
            drawn = here.random(self.rng, xs.shape, xs.dtype)
        else:
            start, stop, of = self.rows
            accept("xs", xs, (stop - start, *any_shape(xs)[1:]), None, here)
            drawn = here.random_rows(self.rng, xs.shape, xs.dtype, start, of)
        mask = (drawn >= self.ratio) * scale
        self._tape = here, mask
        return xs * mask

    def backward(self, dout: Array) -> Array:
        """dout, the shape of xs -> dxs."""
        if not self._recall():
            return dout
        here, mask = self._recall()
        return accept("dout", dout, mask.shape, mask.dtype, here) * mask
