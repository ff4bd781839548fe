"""Recurrent layers on top of each other."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self, overload

from ..kernels.cells import Cell, WrittenCell
from ..streaming import Stream
from ..typing import Array, BoolArray, Flags, Integers
from ..validation import expect_float, expect_int, validate_array
from .bidirectional import Bidirectional, Reversed
from .composite import Composite, DStates
from .dense import TimeDropout
from .initialisers import Seed, generator
from .recurrent import TimeRecurrent


class Stacked(Composite):
    """Recurrent layers on top of each other: each reads the outputs of the layer below.

        xs -> layer 0 -> dropout -> layer 1 -> ... -> dropout -> last layer -> hs

    Parameters
    ----------
    layers : sequence of TimeRecurrent, Bidirectional and Reversed
        The layers, the lowest first.
    dropout : float, default 0.0
        The share of numbers dropped between two layers while ``train_flg`` is True. Nothing is
        dropped before the first layer or after the last one, as in torch.nn.LSTM.
    residual : bool, default False
        If True, the input of a layer is added to its output at every layer whose input and output
        have one size (the first one too, if D = H). Dropout is applied to the input of the layer,
        not to the residual branch.
    rng : numpy.random.Generator, int or None, default None
        A random generator or a seed for dropout.

    Attributes
    ----------
    layers : tuple
        The layers; ``layers[k]`` is layer k.
    residuals : tuple of bool
        For each layer whether it has a residual branch.
    state, dstate : tuple
        The states and their gradients, one entry for each recurrent layer, from the lowest; in a
        Bidirectional the forward layer comes first.
    param_names : tuple of str
        The number of the layer and the name in the layer: ``0.Wx``, ``1.forward.Wx``.

    Raises
    ------
    TypeError
        If something is not a recurrent layer.
    ValueError
        If a layer occurs twice, or does not fit on the layer below.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import Stacked, TimeBiGRU
    >>> stack = Stacked.create(3, 5, layers=2, layer=TimeBiGRU, rng=0)
    >>> stack.forward(np.ones((2, 7, 3), np.float32), lengths=[7, 4]).shape
    (2, 7, 10)
    """

    def __init__(
        self,
        layers: Sequence[TimeRecurrent | Bidirectional | Reversed],
        dropout: float = 0.0,
        residual: bool = False,
        rng: Seed = None,
    ) -> None:
        self.layers: tuple[TimeRecurrent | Bidirectional | Reversed, ...] = _expect_stack(layers)
        super().__init__({str(k): layer for k, layer in enumerate(self.layers)})
        random, ratio = generator(rng), expect_float("dropout", dropout, 0, 1)
        self.dropouts = tuple(TimeDropout(ratio, rng=random) for _ in self.layers[1:])
        self.residuals = tuple(
            bool(residual) and layer.input_size == layer.output_size for layer in self.layers
        )

    @classmethod
    def create(
        cls,
        input_size: int,
        hidden_size: int,
        layers: int = 2,
        *,
        layer: type[TimeRecurrent | Bidirectional] | Cell | WrittenCell | str = "lstm",
        dropout: float = 0.0,
        residual: bool = False,
        rng: Seed = None,
        **options: Any,
    ) -> Self:
        """Create layers of one kind from their sizes.

        Parameters
        ----------
        input_size : int
            D, the number of features of an input.
        hidden_size : int
            H, the number of units of each layer (in each direction).
        layers : int, default 2
            The number of layers.
        layer : type, Cell or str, default "lstm"
            The class of the layers, such as TimeLSTM or TimeBiGRU, or a cell, or the name of a
            cell.
        dropout : float, default 0.0
            The share of numbers dropped between two layers.
        residual : bool, default False
            Whether the input of a layer is added to its output, where the sizes allow it.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed, for the parameters and for dropout.
        **options
            The options of the layers: stateful, dtype, init, reset_after and so on.

        Returns
        -------
        Self
            The new stack.

        Raises
        ------
        TypeError
            If ``cell`` is among the options of a layer that is not a class.
        """
        kind: Any = layer
        if not isinstance(layer, type) or not issubclass(layer, (TimeRecurrent, Bidirectional)):
            if "cell" in options:
                raise TypeError("cell: expected a layer class with cell=, or the cell as layer=")
            kind, options = TimeRecurrent, {"cell": layer, **options}
        random, made, below = generator(rng), [], input_size
        for _ in range(expect_int("layers", layers)):
            made.append(kind.create(below, hidden_size, rng=random, **options))
            below = made[-1].output_size
        return cls(made, dropout, residual, random)

    @property
    def output_size(self) -> int:
        """The number of outputs, those of the last layer."""
        return self.layers[-1].output_size

    @property
    def train_flg(self) -> bool:
        """Whether dropout and regularisers act as in training; setting it sets all layers."""
        return super().train_flg and all(dropout.train_flg for dropout in self.dropouts)

    @train_flg.setter
    def train_flg(self, value: bool) -> None:
        for layer in self.recurrent:
            layer.train_flg = value
        for dropout in self.dropouts:
            dropout.train_flg = value

    def forget(self) -> None:
        """Free the memory that forward keeps for backward, in every layer."""
        super().forget()
        for dropout in self.dropouts:
            dropout.forget()

    def stream(self, batch: int = 1, **options: Any) -> Stream:
        """Create a stream of these layers, with a copy of their parameters.

        Parameters
        ----------
        batch : int, default 1
            The number of rows.
        **options
            The other options of ``Stream``.

        Returns
        -------
        Stream
            The stream.
        """
        return Stream([self], batch, **options)

    def in_stream(self) -> list[Any]:
        """The layers themselves; raises ValueError where there are residual connections."""
        if any(self.residuals):
            raise ValueError(
                "layers: expected a Stacked without residual connections, which a stream does not "
                f"compute, got one around layer {self.residuals.index(True)}"
            )
        return list(self.layers)

    def forward(
        self,
        xs: Array,
        *,
        lengths: Integers | None = None,
        mask: Flags | None = None,
        resets: Flags | None = None,
        trace: bool = False,
    ) -> Array:
        """Run all layers over a block of time.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs, in the dtype of the layers.
        lengths, mask, resets : optional
            As in ``TimeRecurrent.forward``, the same for all layers.
        trace : bool, default False
            If True, every layer gets a ``trace``: ``stack.recurrent[k].trace``.

        Returns
        -------
        hs : (N, T, H) array
            The outputs of the last layer; 0 at steps that are left out.
        """
        engine, xs, mask, resets = self._accept_block(xs, lengths, mask, resets)
        present = None if mask is None else engine.to_device(mask)[:, :, None]
        hs = _kept(engine.xp, present, xs) if self.residuals[0] else xs
        for k, layer in enumerate(self.layers):
            below = hs
            read = self.dropouts[k - 1].forward(below) if k else below
            hs = layer.forward(read, mask=mask, resets=resets, trace=trace)
            if self.residuals[k]:
                hs = hs + below
        self._tape = engine, present, hs.shape
        return hs

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
            The gradient of the last states of each recurrent layer. None, or left out: zeros.
        inputs : bool, default True
            False skips the gradient of xs; see ``TimeRecurrent.backward``.

        Returns
        -------
        dxs : (N, T, D) array or None
            The gradient of xs; None with inputs=False.
        """
        engine, present, shape = self._saved()
        above: Any = validate_array("dhs", dhs, shape, self.dtype, engine)
        dstates = list(self._one_each("backward", dstate))
        if any(self.residuals):  # which must not carry what is not looked at down to xs
            above = _kept(engine.xp, present, above)
        for k in reversed(range(len(self.layers))):
            layer = self.layers[k]
            below = inputs or k > 0
            if isinstance(layer, TimeRecurrent):
                dxs: Any = layer.backward(above, *(dstates.pop() or ()), inputs=below)
            else:
                own = [dstates.pop() for _ in layer.recurrent]
                dxs = layer.backward(above, *own[::-1], inputs=below)
            dxs = self.dropouts[k - 1].backward(dxs) if k else dxs
            above = dxs + above if self.residuals[k] and below else dxs
        return above


def _kept(xp: Any, present: BoolArray | None, array: Array) -> Array:
    """The array (N, T, n) with 0 at steps that are left out, whatever is there."""
    return array if present is None else xp.where(present, array, array.dtype.type(0))


def _expect_stack(layers: Any) -> tuple[Any, ...]:
    """Layers that fit on top of each other, each there once."""
    try:
        stack = tuple(layers)
    except TypeError:
        stack = (layers,)
    kinds = TimeRecurrent, Bidirectional, Reversed
    if not stack or not all(isinstance(layer, kinds) for layer in stack):
        names = ", ".join(type(layer).__name__ for layer in stack) or "none"
        raise TypeError(
            f"layers: expected recurrent layers (TimeRecurrent or Bidirectional), got {names}"
        )
    parts = [
        part
        for layer in stack
        for part in ((layer,) if isinstance(layer, TimeRecurrent) else layer.recurrent)
    ]
    if len({id(part) for part in parts}) < len(parts):
        raise ValueError("layers: expected each layer once, got one of them again")
    for below, above in pairwise(stack):
        if above.input_size != below.output_size or above.dtype != below.dtype:
            raise ValueError(
                f"layers: expected a layer of {below.output_size} inputs in {below.dtype} above "
                f"{below!r}, got {above!r}"
            )
    return stack
