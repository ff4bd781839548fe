"""A model of layers in a row, with the loss that it is trained for."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..backend import engine_by_name, engine_of_param, to_host
from ..layers import Layer, TimeDropout, TimeEmbedding, TimeRecurrent
from ..layers.composite import Composite, Container
from ..layers.initialisers import Seed, generator
from ..streaming import Stream
from ..training.checkpoint import load_checkpoint, save_checkpoint
from ..typing import AnyArray, Array, Integers, Scalar
from ..validation import expect_array
from .rnnlm import expect_cell


class Sequential(Container):
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
        super().__init__(parts if loss is None else {**parts, "loss": loss})
        self.layers: tuple[Any, ...] = layers
        self.loss: Any = loss
        self._takes_lengths = tuple("lengths" in _parameters(layer) for layer in layers)
        self._may_skip_inputs = "inputs" in _parameters(layers[0], "backward")
        own = [part.rng for part in self._drawing()]
        self.rng = own[0] if rng is None and own else generator(rng)

    def __repr__(self) -> str:
        ends = [] if self.loss is None else [f"loss={self.loss}"]
        return f"Sequential({', '.join([*map(str, self.layers), *ends])})"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, float32 where there are none."""
        params = self.params
        return params[0].dtype if params else np.dtype(np.float32)

    def _drawing(self) -> list[Any]:
        """The parts that draw random numbers: dropout and regularisers."""
        found: list[Any] = []
        for layer in self.layers:
            inner = [layer, *getattr(layer, "recurrent", ())]
            found += [layer, *getattr(layer, "dropouts", ())]
            found += [getattr(part, "regularisers", None) for part in inner]
        return [part for part in found if hasattr(part, "rng")]

    def _recurrent(self) -> list[tuple[str, TimeRecurrent]]:
        """The recurrent layers by place: "0", or "0.1" within layer 0."""
        found: list[tuple[str, TimeRecurrent]] = []
        for k, layer in enumerate(self.layers):
            if isinstance(layer, TimeRecurrent):
                found.append((f"{k}", layer))
            elif isinstance(layer, Composite):
                found += [(f"{k}.{j}", part) for j, part in enumerate(layer.recurrent)]
        return found

    # ---- training

    def _run(self, xs: AnyArray, train_flg: bool, lengths: Integers | None) -> Any:
        """The inputs of the loss."""
        if lengths is not None and not any(self._takes_lengths):
            raise TypeError("lengths: expected none, as no layer of this model takes any")
        if train_flg:  # also what a layer got after this model was made
            for part in self._drawing():
                part.rng = self.rng
        out: Any = xs
        for layer, takes in zip(self._told(train_flg), self._takes_lengths, strict=True):
            out = layer.forward(out, **({"lengths": lengths} if takes else {}))
        return out

    def _told(self, train_flg: bool) -> Iterator[Any]:
        """The layers, told whether they train."""
        for layer in self.layers:
            if hasattr(layer, "train_flg"):
                layer.train_flg = train_flg
            yield layer

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
            Further arguments of the loss: ``mask``, ``weights``.

        Returns
        -------
        loss : float or 0-d array
            The loss; a float in host memory, a 0-d array on a GPU.

        Raises
        ------
        TypeError
            If the model has no loss, or no layer takes lengths.
        """
        return self._loss().forward(self._run(xs, train_flg, lengths), ts, **options)

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
            return self._loss().forward(out, ts, **options), self._outputs(out)

    def reset_state(self) -> None:
        """Forget the states: the next forward starts from zeros."""
        for _, layer in self._recurrent():
            layer.reset_state()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run on a fresh state, then take the old one up again."""
        layers = [layer for _, layer in self._recurrent()]
        before = [(layer.state, layer._state_given) for layer in layers]
        self.reset_state()
        try:
            yield
        finally:
            self.forget()
            for layer, (state, given) in zip(layers, before, strict=True):
                layer.state, layer._state_given = state, given

    # ---- use

    def in_stream(self) -> list[Any]:
        """The layers that a ``Stream`` of this one runs, from the bottom; dropout is none."""
        layers = [layer for layer in self.layers if not isinstance(layer, TimeDropout)]
        return [part for layer in layers for part in layer.in_stream()]

    def stream(self, batch: int = 1, **options: Any) -> Stream:
        """Create a stream of recurrent layers and an affine layer on top.

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
            for k, layer in enumerate(self._told(train_flg=False)):
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

    # ---- checkpoints

    def arrays(self) -> dict[str, Array]:
        """Return parameters by name, and the states from which the next forward starts.

        Returns
        -------
        dict of str to array
            NumPy arrays, wherever the model is. The entries "cell/0" and so on hold results of the
            cells for fixed numbers, by which ``load_arrays`` recognises them.
        """
        probe = engine_by_name("numpy").probe
        found = {f"cell/{place}": probe(layer.cell) for place, layer in self._recurrent()}
        found |= dict(zip(self.param_names, map(to_host, self.params), strict=True))
        for place, layer in self._recurrent():
            next_state = layer.state if layer.stateful or layer._state_given else None
            for name, value in zip(layer.cell.states, next_state or (), strict=False):
                found[f"state/{place}.{name}"] = to_host(value)
        return found

    def load_arrays(self, arrays: dict[str, Array]) -> None:
        """Set parameters and states to those that ``arrays`` returned: all or, on an error, none.

        Parameters
        ----------
        arrays : dict of str to array
            NumPy arrays, wherever the model is.

        Raises
        ------
        ValueError, TypeError
            If an array is missing, does not fit or has no place, or if a cell now computes
            something else.
        """
        params = dict(zip(self.param_names, self.params, strict=True))
        for place, layer in self._recurrent():
            expect_cell(f"cell/{place}", layer.cell, arrays.get(f"cell/{place}"))
        for name, param in params.items():
            expect_array(name, arrays.get(name), param.shape, param.dtype)
        unknown = [name for name in arrays if "/" not in name and name not in params]
        if unknown:
            remedy = ""
            if any(name.endswith(".initial") for name in unknown):
                remedy = "; layer.learn_initial_state() makes a parameter of the initial state"
            raise ValueError(
                f"arrays: expected {', '.join(params)}, got {', '.join(unknown)} as well{remedy}"
            )
        states: list[list[Array]] = []  # of each recurrent layer; none where the arrays have none
        for place, layer in self._recurrent():
            keys = [f"state/{place}.{name}" for name in layer.cell.states]
            states.append([arrays[key] for key in keys] if set(keys) <= arrays.keys() else [])
            for key, size, array in zip(keys, layer._state_sizes, states[-1], strict=False):
                expect_array(key, array, (*np.shape(states[-1][0])[:1], size), layer.dtype)
        for name, param in params.items():
            param[...] = engine_of_param(param).to_device(arrays[name])
        self.reset_state()
        for (_, layer), state in zip(self._recurrent(), states, strict=True):
            if state:
                layer.set_state(*state)

    def save(self, path: str | Path) -> None:
        """Write parameters and states to a file, which is whole or not there.

        Parameters
        ----------
        path : str or Path
            The file, in safetensors' format.
        """
        save_checkpoint(path, self.arrays(), {"layers": [str(part) for part in self.layers]})

    def load(self, path: str | Path) -> Self:
        """Set parameters and states to those of a file. An error leaves all as it was.

        No code from the file is run. A checkpoint that a ``Trainer`` of such a model wrote will do,
        too.

        Parameters
        ----------
        path : str or Path
            The file.

        Returns
        -------
        Self
            The model itself.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        CheckpointError
            If the file is damaged.
        ValueError
            If it is of a model of other layers or sizes.
        """
        arrays, content = load_checkpoint(path)
        try:
            self.load_arrays(arrays)
        except (TypeError, ValueError) as error:
            layers = content.get("layers", "unknown layers")
            raise ValueError(
                f"{path}: expected a checkpoint of this model, got one of {layers} ({error})"
            ) from error
        return self


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
    size = 2 * sum(param.nbytes for param in layer.params)
    if out is None:
        return name, "", count, size
    return name, str(tuple(out.shape)), count, size + out.nbytes


def _spell_bytes(size: int) -> str:
    return f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"
