"""A sequence read in both directions."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from ..checks import Array, accept
from .composite import Composite
from .initialisers import Seed, generator
from .recurrent import TimeGRU, TimeLSTM, TimeRecurrent, TimeRNN


class Bidirectional(Composite):
    """Two layers over the same sequence, one reading it backwards; outputs side by side.

    forward_layer, backward_layer   recurrent layers with the same D; the output is
                                    (N, T, H_forward + H_backward)

    Only the forward layer can be stateful: the backward one reads from the end, so that its state
    does not follow on from the block before. (The book's TimeBiLSTM carries both on:
    ``numba_rnn.book.TimeBiLSTM``.) States and their gradients are those of the two layers
    (``layer.forward_layer.h``), or ``state`` and ``dstate`` for both.
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
        super().__init__({"forward": forward_layer, "backward": backward_layer})

    @property
    def output_size(self) -> int:
        """The number of outputs, H_forward + H_backward."""
        return self.forward_layer.output_size + self.backward_layer.output_size

    @classmethod
    def create(
        cls,
        input_size: int,
        hidden_size: int,
        *,
        layer: Any = "lstm",
        rng: Seed = None,
        stateful: bool = False,
        **options: Any,
    ) -> Self:
        """Two layers of one kind from their sizes, H units in each direction.

        layer    a class, such as TimeLSTM, or a cell or its name
        options  those of the layers: dtype, init, reset_after ...; see TimeLSTM.create
        """
        kind, random = layer, generator(rng)
        if not isinstance(layer, type) or not issubclass(layer, TimeRecurrent):
            if "cell" in options:
                raise TypeError("cell: expected layer=, which may be a cell, or a class with cell=")
            kind, options = TimeRecurrent, {"cell": layer, **options}
        sizes = input_size, hidden_size
        ahead = kind.create(*sizes, rng=random, stateful=stateful, **options)
        return cls(ahead, kind.create(*sizes, rng=random, **options))

    def forward(
        self,
        xs: Array,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        trace: bool = False,
    ) -> Array:
        """xs (N, T, D) -> (N, T, H_forward + H_backward).

        lengths, mask   as TimeRecurrent.forward has them; the backward direction starts at each
                        row's own last step that is not left out
        resets          a reset before step t is a border between t - 1 and t, which neither
                        direction looks across: the forward one starts anew at t, the backward one
                        at t - 1. One before step 0 is for the forward direction's state alone.
        trace           True: both layers have a ``trace``; the backward one's steps are in the
                        order in which it reads them
        """
        here, xs, mask, resets = self._accept_block(xs, lengths, mask, resets)
        ahead = self.forward_layer.forward(xs, mask=mask, resets=resets, trace=trace)
        back = self.backward_layer.forward(
            xs[:, ::-1],
            mask=None if mask is None else mask[:, ::-1],
            resets=None if resets is None else _seen_from_the_end(resets),
            trace=trace,
        )
        hs = here.xp.concatenate([ahead, back[:, ::-1]], axis=2)
        self._tape = here, hs.shape
        return hs

    def backward(
        self, dhs: Array, *dstate: Sequence[Array | None] | None, inputs: bool = True
    ) -> Array:
        """dhs (N, T, H_forward + H_backward) -> dxs (N, T, D); fills ``grads``.

        dstate  the gradient of the last states of the forward layer, then of the backward layer's
                (after it has read step 0), a tuple or None each; zeros if left out
        inputs  False: nobody needs dxs, None is returned; see TimeRecurrent
        """
        here, shape = self._recall()
        dhs = accept("dhs", dhs, shape, self.dtype, here)
        dahead, dback = (own or () for own in self._one_each("backward", dstate))
        H = self.forward_layer.output_size
        dxs = self.forward_layer.backward(dhs[:, :, :H], *dahead, inputs=inputs)
        back = self.backward_layer.backward(dhs[:, ::-1, H:], *dback, inputs=inputs)
        return dxs + back[:, ::-1] if inputs else None


def _seen_from_the_end(resets: Array) -> Array:
    """Where a sequence that is read backwards starts anew: at t - 1 where resets[:, t] is True."""
    found = np.zeros_like(resets)
    found[:, 1:] = resets[:, :0:-1]
    return found


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
