"""A model of layers in a row, with the loss that it is trained for."""

import inspect
from typing import Any

import numpy as np

from ..layers import Layer, TimeDropout, TimeEmbedding
from ..layers.initialisers import Seed
from ..streaming import Stream
from ..typing import AnyArray, Array, Integers, Scalar
from .base import BaseModel


class Sequential(BaseModel):
    """Layers in a row, each of which reads the outputs of the one before, and a loss.

        xs -> layer 0 -> layer 1 -> ... -> outputs -> loss

    Parameters
    ----------
    *layers : Layer
        Layers whose ``forward`` takes one array: embedding, recurrent layers of any kind, pooling,
        affine, dropout, or a layer of your own.
    loss : Layer, optional
        The loss, such as TimeSoftmaxWithLoss or TimeMSE. It may have weights of its own, as
        TimeAffineSoftmaxWithLoss has.
    rng : numpy.random.Generator, int or None, default None
        A random generator or a seed, which all layers then share for what they drop. By default
        they share that of the first layer that drops something.

    Attributes
    ----------
    layers : tuple of Layer
        The layers.
    loss : Layer or None
        The loss.
    rng : numpy.random.Generator
        The generator.
    params, grads, param_names : list, list, tuple
        The parameters and gradients of all layers. The name of a parameter is the number of its
        layer, a dot, and its name there: ``0.Wx``; for the loss ``loss.W``.

    Raises
    ------
    TypeError
        If something is not such a layer.
    ValueError
        If there is no layer, or one of them occurs twice.

    Examples
    --------
    >>> from numba_rnn import TimeAffine, TimeLSTM, TimePooling, TimeSoftmaxWithLoss
    >>> model = Sequential(
    ...     TimeLSTM.create(3, 8, rng=0), TimePooling("last"), TimeAffine.create(8, 2, rng=1),
    ...     loss=TimeSoftmaxWithLoss(),
    ... )
    >>> xs, labels = np.ones((5, 7, 3), np.float32), np.zeros((5, 1), int)
    >>> loss = model.forward(xs, labels)
    >>> model.backward()
    >>> model.predict(xs).shape
    (5, 1, 2)
    """

    def __init__(self, *layers: Layer, loss: Layer | None = None, rng: Seed = None) -> None:
        for k, layer in enumerate(layers):
            _expect_layer(f"layers[{k}]", layer, 1, "a loss is given as loss=")
        if loss is not None:
            _expect_layer("loss", loss, 2, "TimeMSE() is one")
        if not layers:
            raise ValueError("layers: expected at least one layer, got none")
        if len({*map(id, layers), id(loss)}) <= len(layers):
            raise ValueError("layers: expected each layer once, got one of them again")
        parts = {str(k): layer for k, layer in enumerate(layers)}
        super().__init__(parts if loss is None else {**parts, "loss": loss}, rng)
        self.layers: tuple[Any, ...] = layers
        self.loss: Any = loss
        self._takes_lengths = tuple("lengths" in _parameters(layer) for layer in layers)
        self._may_skip_inputs = "inputs" in _parameters(layers[0], "backward")

    def __repr__(self) -> str:
        ends = [] if self.loss is None else [f"loss={self.loss}"]
        return f"Sequential({', '.join([*map(str, self.layers), *ends])})"

    # ---- training

    def _run(self, xs: AnyArray, train_flg: bool, lengths: Integers | None) -> Any:
        """The inputs of the loss."""
        if lengths is not None and not any(self._takes_lengths):
            raise TypeError("lengths: expected none, as no layer of this model takes any")
        self._set_training(train_flg)
        out: Any = xs
        for layer, takes in zip(self.layers, self._takes_lengths, strict=True):
            out = layer.forward(out, **({"lengths": lengths} if takes else {}))
        return out

    def _outputs(self, out: Array) -> Array:
        """The outputs for a user; of a loss with weights of its own, its scores."""
        for name in ("scores", "log_probabilities"):
            if hasattr(self.loss, name):
                return getattr(self.loss, name)(out)
        return out

    def predict(
        self, xs: AnyArray, train_flg: bool = False, *, lengths: Integers | None = None
    ) -> Array:
        """Compute the outputs of the last layer.

        Parameters
        ----------
        xs : (N, T, ...) array
            The inputs of the first layer.
        train_flg : bool, default False
            Whether dropout and regularisers act as in training.
        lengths : (N,) integers, optional
            The number of steps in each row, for all layers that take it.

        Returns
        -------
        outputs : (N, T, M) array
            The outputs, with one step per row after pooling. If the loss has weights of its own,
            these are its scores or logarithms of probabilities.
        """
        return self._outputs(self._run(xs, train_flg, lengths))

    def forward(
        self,
        xs: AnyArray,
        ts: AnyArray,
        train_flg: bool = True,
        *,
        lengths: Integers | None = None,
        **options: Any,
    ) -> Scalar:
        """Compute the loss.

        Parameters
        ----------
        xs : (N, T, ...) array
            The inputs of the first layer.
        ts : array
            The targets, as the loss takes them.
        train_flg : bool, default True
            Whether dropout and regularisers act as in training.
        lengths : (N,) integers, optional
            The number of steps in each row, for all layers that take it.
        **options
            Further arguments of the loss: ``weights``, and ``mask`` where it takes one.

        Returns
        -------
        loss : float or 0-d array
            The loss; a float in host memory, a 0-d array on a GPU.

        Raises
        ------
        TypeError
            If the model has no loss, no layer takes lengths, or the loss does not take an option.
        """
        self._loss()
        return self._loss_of(self._run(xs, train_flg, lengths), ts, options)

    def _loss(self) -> Any:
        if self.loss is None:
            raise TypeError("loss: expected a loss, got none; Sequential(..., loss=TimeMSE())")
        return self.loss

    def backward(self, dout: Array | None = None, *, inputs: bool = False) -> Array | None:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dout : (N, T, M) array, optional
            The gradient of the last layer's outputs, after ``predict(xs, train_flg=True)``. If left
            out, the gradients are those of the last loss.
        inputs : bool, default False
            Whether to compute the gradient of xs.

        Returns
        -------
        dxs : (N, T, D) array or None
            The gradient of xs; None with inputs=False, or if the first layer is an embedding.
        """
        above: Any = self._loss().backward() if dout is None else dout
        first: Any = self.layers[0]
        for layer in reversed(self.layers[1:]):
            above = layer.backward(above)
        above = first.backward(above, **({"inputs": inputs} if self._may_skip_inputs else {}))
        return above if inputs else None

    def evaluate(
        self, xs: AnyArray, ts: AnyArray, *, lengths: Integers | None = None, **options: Any
    ) -> tuple[Scalar, Array]:
        """Compute loss and outputs without dropout, starting from a fresh state.

        The states are afterwards what they were. The record that ``forward`` kept is gone.

        Parameters
        ----------
        xs : (N, T, ...) array
            The inputs of the first layer.
        ts : array
            The targets.
        lengths : (N,) integers, optional
            The number of steps in each row.
        **options
            Further arguments of the loss.

        Returns
        -------
        loss : float or 0-d array
            The loss.
        outputs : (N, T, M) array
            The result of ``predict``.
        """
        with self._aside():
            out = self._run(xs, False, lengths)
            self._loss()
            return self._loss_of(out, ts, options), self._outputs(out)

    # ---- use

    def in_stream(self) -> list[Any]:
        """The layers that a ``Stream`` of this one runs, from the bottom.

        Dropout is none, nor is the last of the steps so far, which is the one that is read.
        """
        layers = [layer for layer in self.layers if not _is_last_step(layer)]
        return [part for layer in layers for part in layer.in_stream()]

    def stream(self, batch: int = 1, **options: Any) -> Stream:
        """Create a stream of recurrent layers and an affine layer on top.

        With TimePooling("last") between them the outputs of each step are those of the sequence
        that ends there.

        Parameters
        ----------
        batch : int, default 1
            The number of rows.
        **options
            The other options of ``Stream``.

        Returns
        -------
        Stream
            The stream, with a copy of the parameters.
        """
        return Stream([self], batch, **options)

    def summary(self, xs_shape: tuple[int, ...]) -> str:
        """Describe the layers in a table, for an input of some shape.

        Parameters
        ----------
        xs_shape : tuple of int
            The shape of xs: (N, T, D), or (N, T) for an embedding.

        Returns
        -------
        str
            A line for each layer: its outputs' shape, the number of its parameters, and the memory
            that parameters, gradients and outputs take.

        Examples
        --------
        >>> from numba_rnn import TimeAffine, TimeGRU
        >>> model = Sequential(TimeGRU.create(3, 8), TimeAffine.create(8, 2))
        >>> print(model.summary((16, 30, 3)))
        layer         output shape  parameters   memory
        0 TimeGRU     (16, 30, 8)          288  17.7 kB
        1 TimeAffine  (16, 30, 2)           18   4.0 kB
        in all                             306  21.6 kB
        """
        whole = np.dtype(int) if isinstance(self.layers[0], TimeEmbedding) else self.dtype
        rows: list[tuple[str, str, int, int]] = []
        with self._aside():
            out: Any = np.zeros(xs_shape, whole)
            self._set_training(False)
            for k, layer in enumerate(self.layers):
                out = layer.forward(out)
                rows.append(_row(f"{k} {type(layer).__name__}", layer, out))
        if self.loss is not None:
            rows.append(_row(f"loss {type(self.loss).__name__}", self.loss, None))
        rows.append(("in all", "", sum(row[2] for row in rows), sum(row[3] for row in rows)))
        table = [("layer", "output shape", "parameters", "memory")]
        table += [(name, shape, f"{n:,}", _spell_bytes(size)) for name, shape, n, size in rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if k < 2 else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        )


def _is_last_step(layer: Any) -> bool:
    """Whether a layer does nothing in a stream."""
    return isinstance(layer, TimeDropout) or getattr(layer, "pooling", None) == "last"


def _parameters(layer: Any, method: str = "forward") -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(layer, method)).parameters)


def _expect_layer(name: str, layer: Any, inputs: int, remedy: str) -> None:
    """Refuse what is no layer, or takes another number of arrays."""
    if not isinstance(layer, Layer):
        many = "; Sequential(*layers) takes them apart" if isinstance(layer, (list, tuple)) else ""
        raise TypeError(f"{name}: expected a layer, got {type(layer).__name__}{many}")
    required = [
        p.name
        for p in (_parameters(layer).values() if hasattr(layer, "forward") else ())
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if len(required) != inputs:
        wanted = "one array" if inputs == 1 else "outputs and targets"
        raise TypeError(
            f"{name}: expected a layer whose forward takes {wanted}, got "
            f"{type(layer).__name__}, whose forward takes {', '.join(required) or 'none'}; {remedy}"
        )


def _row(name: str, layer: Any, out: Any) -> tuple[str, str, int, int]:
    """A layer's name, its outputs' shape, its parameters, and bytes."""
    count = sum(param.size for param in layer.params)
    # one in int8 has no gradient
    size = sum(
        p.nbytes * (1 if g is None else 2) for p, g in zip(layer.params, layer.grads, strict=True)
    )
    if out is None:
        return name, "", count, size
    return name, str(tuple(out.shape)), count, size + out.nbytes


def _spell_bytes(size: int) -> str:
    return f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"
