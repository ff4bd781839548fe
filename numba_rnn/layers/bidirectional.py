"""A sequence read in both directions."""

from typing import Any, Self

import numpy as np

from ..backend import Engine
from ..checks import Array, accept
from .base import Layer
from .initialisers import Seed, generator
from .recurrent import TimeGRU, TimeLSTM, TimeRecurrent, TimeRNN


class Bidirectional(Layer):
    """Two layers over the same sequence, one reading it backwards; outputs side by side.

    forward_layer, backward_layer   recurrent layers with the same D; the output is
                                    (N, T, H_forward + H_backward)

    Only the forward layer can be stateful: the backward one reads from the end, so that its state
    does not follow on from the block before. States and their gradients are those of the two
    layers (``layer.forward_layer.h``).
    """

    def __init__(self, forward_layer: TimeRecurrent, backward_layer: TimeRecurrent) -> None:
        for name, layer in (("forward_layer", forward_layer), ("backward_layer", backward_layer)):
            if not isinstance(layer, TimeRecurrent):
                raise TypeError(f"{name}: expected a TimeRecurrent, got {layer!r}")
        if backward_layer is forward_layer:
            raise ValueError("backward_layer: expected a layer of its own, got forward_layer again")
        if backward_layer.stateful:
            raise ValueError("backward_layer: expected stateful=False, got stateful=True")
        if backward_layer.input_size != forward_layer.input_size:
            raise ValueError(
                f"backward_layer: expected input size {forward_layer.input_size}, as "
                f"forward_layer has, got {backward_layer.input_size}"
            )
        if backward_layer.dtype != forward_layer.dtype:
            raise TypeError(
                f"backward_layer: expected {forward_layer.dtype}, got {backward_layer.dtype}"
            )
        self.forward_layer, self.backward_layer = forward_layer, backward_layer
        self._bind()
        self.param_names = tuple(
            f"{direction}.{name}"
            for direction, layer in (("forward", forward_layer), ("backward", backward_layer))
            for name in layer.param_names
        )
        self._tape: Any = None

    def _bind(self) -> None:
        """Take the arrays of the two layers for one's own."""
        self.params = self.forward_layer.params + self.backward_layer.params
        self.grads = self.forward_layer.grads + self.backward_layer.grads

    def _move(self, there: Engine) -> None:
        self.forward_layer._move(there)
        self.backward_layer._move(there)
        self._bind()
        self.forget()

    def forget(self) -> None:
        """Drop what forward kept for backward, in both directions."""
        super().forget()
        self.forward_layer.forget()
        self.backward_layer.forget()

    def forward(self, xs: Array) -> Array:
        """xs (N, T, D) -> (N, T, H_forward + H_backward)."""
        here = self._engine()
        xs = accept("xs", xs, ("N", "T", self.forward_layer.input_size), self.dtype, here)
        ahead = self.forward_layer.forward(xs)
        back = self.backward_layer.forward(xs[:, ::-1])[:, ::-1]
        hs = here.xp.concatenate([ahead, back], axis=2)
        self._tape = here, hs.shape
        return hs

    def backward(self, dhs: Array) -> Array:
        """dhs (N, T, H_forward + H_backward) -> dxs (N, T, D); fills ``grads``."""
        here, shape = self._recall()
        dhs = accept("dhs", dhs, shape, self.dtype, here)
        H = self.forward_layer.hidden_size
        dxs = self.forward_layer.backward(dhs[:, :, :H])
        dxs += self.backward_layer.backward(dhs[:, ::-1, H:])[:, ::-1]
        return dxs

    def reset_state(self) -> None:
        """Forget the states of both directions."""
        self.forward_layer.reset_state()
        self.backward_layer.reset_state()


class _TimeBi(Bidirectional):
    """Bidirectional with the book's constructor; subclasses name the layer."""

    _layer: type[Any]

    def __init__(
        self,
        Wx1: Array,
        Wh1: Array,
        b1: Array,
        Wx2: Array,
        Wh2: Array,
        b2: Array,
        stateful: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            self._layer(Wx1, Wh1, b1, stateful=stateful, **options),
            self._layer(Wx2, Wh2, b2, **options),
        )

    @classmethod
    def create(
        cls,
        input_size: int,
        hidden_size: int,
        *,
        rng: Seed = None,
        dtype: Any = np.float32,
        init: str = "orthogonal",
        stateful: bool = False,
        **options: Any,
    ) -> Self:
        """Two layers from their sizes, H units in each direction; see TimeLSTM.create."""
        random = generator(rng)
        ahead, back = (
            cls._layer.create(
                input_size, hidden_size, rng=random, dtype=dtype, init=init, **options
            )
            for _ in range(2)
        )
        params = {f"{name}1": p for name, p in zip(ahead.param_names, ahead.params, strict=True)}
        params |= {f"{name}2": p for name, p in zip(back.param_names, back.params, strict=True)}
        return cls(stateful=stateful, **params, **options)


class TimeBiRNN(_TimeBi):
    """TimeRNN in both directions: parameters 1 read forwards, parameters 2 backwards."""

    _layer = TimeRNN


class TimeBiLSTM(_TimeBi):
    """TimeLSTM in both directions: parameters 1 read forwards, parameters 2 backwards.

    >>> layer = TimeBiLSTM.create(3, 5, rng=0)
    >>> layer.forward(np.ones((2, 7, 3), np.float32)).shape
    (2, 7, 10)
    """

    _layer = TimeLSTM


class TimeBiGRU(_TimeBi):
    """TimeGRU in both directions: parameters 1 read forwards, parameters 2 backwards."""

    _layer = TimeGRU
