"""A sequence read in both directions."""

from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import DTypeLike

from ..kernels.cells import Cell, WrittenCell
from ..typing import Array, BoolArray, Flags, Integers
from ..validation import validate_array
from .composite import Composite, DStates
from .initialisers import Seed, generator
from .recurrent import TimeGRU, TimeLSTM, TimeRecurrent, TimeRNN

MERGES = "concat", "sum", "mean", "mul"


class Bidirectional(Composite):
    """Two layers over the same sequence, one of them backwards, and their outputs as one.

    Parameters
    ----------
    forward_layer : TimeRecurrent
        The layer that reads from the first step to the last.
    backward_layer : TimeRecurrent
        The layer that reads from the last step to the first. It has the input size and the dtype
        of forward_layer and cannot be stateful.
    merge : {"concat", "sum", "mean", "mul"}
        How the two outputs of a step become one: side by side, or added, averaged or multiplied,
        which takes layers with the same number of outputs.

    Attributes
    ----------
    forward_layer, backward_layer : TimeRecurrent
        The two layers. Each has its own states and gradients, as ``layer.forward_layer.h``.
    merge : str
        The argument.
    state, dstate : tuple
        The states of both layers after the last step, and their gradients.

    Raises
    ------
    TypeError
        If a layer is not a TimeRecurrent, or the dtypes differ.
    ValueError
        If both are the same layer, backward_layer is stateful, the input sizes differ, or the two
        outputs cannot be merged.

    Notes
    -----
    Only the forward layer can be stateful. The backward layer starts at the end of the block, so
    its state does not continue the block before. (The book's TimeBiLSTM carries both states on:
    ``numba_rnn.book.TimeBiLSTM``.)
    """

    merge = "concat"  # of layers that an earlier version has pickled, too

    def __init__(
        self, forward_layer: TimeRecurrent, backward_layer: TimeRecurrent, *, merge: str = "concat"
    ) -> None:
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
        if merge not in MERGES:
            raise ValueError(f"merge: expected one of {', '.join(MERGES)}, got {merge!r}")
        sizes = forward_layer.output_size, backward_layer.output_size
        if merge != "concat" and sizes[0] != sizes[1]:
            raise ValueError(
                f'merge: expected "concat" of layers with {sizes[0]} and {sizes[1]} outputs, got '
                f"{merge!r}, which takes as many from both"
            )
        self.forward_layer, self.backward_layer, self.merge = forward_layer, backward_layer, merge
        super().__init__({"forward": forward_layer, "backward": backward_layer})

    @property
    def output_size(self) -> int:
        """The number of outputs: H_forward + H_backward, or H if they are merged."""
        ahead, back = self.forward_layer.output_size, self.backward_layer.output_size
        return ahead + back if self.merge == "concat" else ahead

    @classmethod
    def create(
        cls,
        input_size: int,
        hidden_size: int,
        *,
        layer: type[TimeRecurrent] | Cell | WrittenCell | str = "lstm",
        rng: Seed = None,
        stateful: bool = False,
        merge: str = "concat",
        **options: Any,
    ) -> Self:
        """Create two layers of one kind from their sizes, H units in each direction.

        Parameters
        ----------
        input_size : int
            D, the number of features of an input.
        hidden_size : int
            H, the number of units in each direction.
        layer : type, Cell or str, default "lstm"
            The class of the layers, such as TimeLSTM, or a cell, or the name of a cell.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed for the parameters.
        stateful : bool, default False
            Whether the forward layer is stateful.
        merge : str, default "concat"
            How their outputs become one.
        **options
            The options of both layers: dtype, init, reset_after and so on; see ``TimeLSTM.create``.

        Returns
        -------
        Self
            The new layer.

        Raises
        ------
        TypeError
            If ``cell`` is among the options of a layer that is not a class.
        """
        kind: Any = layer
        random = generator(rng)
        if not isinstance(layer, type) or not issubclass(layer, TimeRecurrent):
            if "cell" in options:
                raise TypeError("cell: expected a layer class with cell=, or the cell as layer=")
            kind, options = TimeRecurrent, {"cell": layer, **options}
        sizes = input_size, hidden_size
        ahead = kind.create(*sizes, rng=random, stateful=stateful, **options)
        return cls(ahead, kind.create(*sizes, rng=random, **options), merge=merge)

    def forward(
        self,
        xs: Array,
        *,
        lengths: Integers | None = None,
        mask: Flags | None = None,
        resets: Flags | None = None,
        trace: bool = False,
    ) -> Array:
        """Run both layers over a block of time.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs, in the dtype of the layers.
        lengths : (N,) integers, optional
            The number of steps in each row, as in ``TimeRecurrent.forward``. The backward layer
            starts at the last step of each row.
        mask : (N, T) bool array, optional
            May be given instead of lengths. Steps where it is False are left out.
        resets : (N, T) bool array, optional
            A reset before step t is a border between t - 1 and t that no information crosses: the
            forward layer starts anew at t, the backward layer at t - 1. A reset before step 0
            concerns the state of the forward layer alone.
        trace : bool, default False
            If True, both layers get a ``trace``. The steps of the backward layer are in the order
            in which it reads them.

        Returns
        -------
        hs : (N, T, O) array
            The hidden states of both layers at every step, merged: O is H_forward + H_backward, or
            H.
        """
        engine, xs, mask, resets = self._accept_block(xs, lengths, mask, resets)
        ahead = self.forward_layer.forward(xs, mask=mask, resets=resets, trace=trace)
        back = self.backward_layer.forward(
            xs[:, ::-1],
            mask=None if mask is None else mask[:, ::-1],
            resets=None if resets is None else _seen_from_the_end(resets),
            trace=trace,
        )
        back = back[:, ::-1]
        factors = None
        if self.merge == "concat":
            hs = engine.xp.concatenate([ahead, back], axis=2)
        elif self.merge == "mul":
            hs, factors = ahead * back, (ahead, back)
        else:
            hs = (ahead + back) * self.dtype.type(0.5) if self.merge == "mean" else ahead + back
        self._tape = engine, hs.shape, factors
        return hs

    @overload
    def backward(self, dhs: Array, *dstate: DStates, inputs: Literal[True] = True) -> Array: ...
    @overload
    def backward(self, dhs: Array, *dstate: DStates, inputs: bool) -> Array | None: ...
    def backward(self, dhs: Array, *dstate: DStates, inputs: bool = True) -> Array | None:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dhs : (N, T, O) array
            The gradient of the outputs.
        *dstate : tuple of arrays or None
            The gradient of the last states of the forward layer, then of the backward layer (after
            it has read step 0). None, or left out: zeros.
        inputs : bool, default True
            False skips the gradient of xs; see ``TimeRecurrent.backward``.

        Returns
        -------
        dxs : (N, T, D) array or None
            The gradient of xs; None with inputs=False.

        Raises
        ------
        RuntimeError
            If forward has not run.
        """
        engine, shape, factors = self._saved()
        dhs = validate_array("dhs", dhs, shape, self.dtype, engine)
        dahead, dback = (own or () for own in self._one_each("backward", dstate))
        H = self.forward_layer.output_size
        if self.merge == "concat":
            ahead, back = dhs[:, :, :H], dhs[:, :, H:]
        elif factors is not None:
            ahead, back = dhs * factors[1], dhs * factors[0]
        else:
            ahead = back = dhs * self.dtype.type(0.5) if self.merge == "mean" else dhs
        dxs = self.forward_layer.backward(ahead, *dahead, inputs=inputs)
        dxs_back = self.backward_layer.backward(back[:, ::-1], *dback, inputs=inputs)
        return None if dxs is None or dxs_back is None else dxs + dxs_back[:, ::-1]


class Reversed(Composite):
    """A recurrent layer that reads its sequence from the end.

    Parameters
    ----------
    layer : TimeRecurrent
        The layer.
    in_reading_order : bool, default False
        Whether outputs come in the order in which they are made, the one of the last step first, as
        with Keras' go_backwards. Otherwise each output is at the step that it belongs to, as in
        ONNX's direction "reverse".

    Attributes
    ----------
    backward_layer : TimeRecurrent
        The layer, with states and gradients.
    in_reading_order : bool
        The argument.

    Examples
    --------
    >>> layer = Reversed(TimeLSTM.create(3, 5, rng=0))
    >>> layer.forward(np.ones((2, 7, 3), np.float32), lengths=[7, 4]).shape
    (2, 7, 5)
    """

    def __init__(self, layer: TimeRecurrent, *, in_reading_order: bool = False) -> None:
        if not isinstance(layer, TimeRecurrent):
            raise TypeError(f"layer: expected a TimeRecurrent, got {layer!r}")
        self.backward_layer, self.in_reading_order = layer, bool(in_reading_order)
        super().__init__({"backward": layer})

    @property
    def output_size(self) -> int:
        """The number of outputs of a step."""
        return self.backward_layer.output_size

    def _turned(self, array: Array) -> Array:
        return array if self.in_reading_order else array[:, ::-1]

    def forward(
        self,
        xs: Array,
        *,
        lengths: Integers | None = None,
        mask: Flags | None = None,
        resets: Flags | None = None,
        trace: bool = False,
    ) -> Array:
        """Run the layer over a block of time, from its end.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs, in the dtype of the layer.
        lengths, mask, resets, trace : optional
            As for the backward layer in ``Bidirectional.forward``.

        Returns
        -------
        hs : (N, T, H) array
            The hidden states.
        """
        _, xs, mask, resets = self._accept_block(xs, lengths, mask, resets)
        hs = self.backward_layer.forward(
            xs[:, ::-1],
            mask=None if mask is None else mask[:, ::-1],
            resets=None if resets is None else _seen_from_the_end(resets),
            trace=trace,
        )
        return self._turned(hs)

    @overload
    def backward(self, dhs: Array, *dstate: DStates, inputs: Literal[True] = True) -> Array: ...
    @overload
    def backward(self, dhs: Array, *dstate: DStates, inputs: bool) -> Array | None: ...
    def backward(self, dhs: Array, *dstate: DStates, inputs: bool = True) -> Array | None:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dhs : (N, T, H) array
            The gradient of the outputs.
        *dstate : tuple of arrays or None
            The gradient of the last states, after the layer has read step 0.
        inputs : bool, default True
            False skips the gradient of xs.

        Returns
        -------
        dxs : (N, T, D) array or None
            The gradient of xs; None with inputs=False.

        Raises
        ------
        RuntimeError
            If forward has not run.
        """
        (own,) = self._one_each("backward", dstate)
        dxs = self.backward_layer.backward(self._turned(dhs), *(own or ()), inputs=inputs)
        return None if dxs is None else dxs[:, ::-1]


def _seen_from_the_end(resets: BoolArray) -> BoolArray:
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
        dtype: DTypeLike = np.float32,
        init: str = "orthogonal",
        stateful: bool = False,
        **options: Any,
    ) -> Self:
        """Create two layers from their sizes, H units in each direction.

        Parameters
        ----------
        input_size : int
            D, the number of features of an input.
        hidden_size : int
            H, the number of units in each direction.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed for the parameters.
        dtype : dtype, default float32
            float32 or float64.
        init : {"orthogonal", "book"}
            How the parameters start; see ``TimeLSTM.create``.
        stateful : bool, default False
            Whether the forward layer is stateful.
        **options
            The other options of the constructor, for both layers.

        Returns
        -------
        Self
            The new layer.
        """
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
    """TimeRNN in both directions.

    Parameters
    ----------
    Wx1, Wh1, b1 : arrays
        The parameters of the forward layer; see ``TimeRNN``.
    Wx2, Wh2, b2 : arrays
        The parameters of the backward layer.
    stateful : bool, default False
        Whether the forward layer is stateful.
    **options
        The other options of ``TimeRNN``, for both layers.
    """

    _layer = TimeRNN


class TimeBiLSTM(_TimeBi):
    """TimeLSTM in both directions.

    Parameters
    ----------
    Wx1, Wh1, b1 : arrays
        The parameters of the forward layer; see ``TimeLSTM``.
    Wx2, Wh2, b2 : arrays
        The parameters of the backward layer.
    stateful : bool, default False
        Whether the forward layer is stateful.
    **options
        The other options of ``TimeLSTM``, for both layers.

    Examples
    --------
    >>> layer = TimeBiLSTM.create(3, 5, rng=0)
    >>> layer.forward(np.ones((2, 7, 3), np.float32)).shape
    (2, 7, 10)
    """

    _layer = TimeLSTM


class TimeBiGRU(_TimeBi):
    """TimeGRU in both directions.

    Parameters
    ----------
    Wx1, Wh1, b1 : arrays
        The parameters of the forward layer; see ``TimeGRU``.
    Wx2, Wh2, b2 : arrays
        The parameters of the backward layer.
    stateful : bool, default False
        Whether the forward layer is stateful.
    **options
        The other options of ``TimeGRU``, for both layers.
    """

    _layer = TimeGRU
