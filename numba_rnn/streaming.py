"""Streams: recurrent layers that read data as it comes, one step at a time or a few.

    stream = layer.stream()                  one sequence
    h = stream.step(x)                       x (D,) -> h (H,)
    hs = stream.step_many(frames)            frames (T, D) -> hs (T, H)

A stream computes what the layer computes over the whole sequence: bit for bit on the Numba
engine, within rounding on the others. It packs the weights when it is made, and a step allocates
nothing, so that it costs little more than its arithmetic.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .backend import engine_of_param
from .kernels.quantisation import QuantisedWeight, quantise
from .typing import Array, BoolArray, IntArray, Integers
from .validation import (
    as_array,
    expect_choice,
    expect_finite,
    expect_int,
    expect_plain_array,
    validate_array,
    validate_weight,
)

Snapshot = tuple[Array, ...]


class Stream:
    """Recurrent layers, and possibly an affine layer on top, that read data as it comes.

    Parameters
    ----------
    layers : sequence of TimeRecurrent, Stacked, or Network
        The layers (TimeRNN, TimeLSTM, TimeGRU and so on), the lowest first, or a Stacked of them,
        and possibly a TimeAffine on top; or the ``network_`` of an estimator of numba_rnn.sklearn.
    batch : int, default 1
        N, the number of sequences side by side.
    threads : int, default 1
        The largest number of threads of a call. They are used if the work pays for them: for a
        single step of one sequence from about H 200 on (RNN: 350).
    weights : {"bfloat16", "int8"}, optional
        In which form to keep the weights of layers in float32. "bfloat16": recurrent layers compute
        as with ``use_backend(precision="bfloat16")``, on an engine that can: less than three
        digits, two bytes a number instead of four, and about twice the speed from H 128 on.
        "int8": in one byte, as ``layer.quantise()`` rounds them. By default as the layers have
        them, and in the precision in force. In the network of an estimator that standardises its
        inputs the first layer, which then reads numbers of any size, stays in float32.
    bfloat16 : bool, default False
        True is ``weights="bfloat16"``.

    Attributes
    ----------
    layers : list of Layer
        The layers.
    batch, threads, weights, bfloat16
        The arguments.

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit on top of each other.

    Notes
    -----
    Shapes: D inputs; O outputs, H of the last layer or the outputs of the affine layer. A batch of
    one has no batch axis: x (D,), frames (T, D), out (O,); otherwise (N, D), (N, T, D), (N, O).

    The stream keeps the parameters as they were when it was made; ``refresh()`` copies them again.
    It runs where the layers are. On a GPU x and frames may be NumPy arrays, the results are on the
    GPU, and every call waits for the device to check that its input is finite.

    It starts from zeros, or from the layers' learnt initial states. Dropout has no effect, and
    zoneout is replaced by its mean, as always after training.

    Only one thread at a time may use a stream; several streams of one layer may run at once.

    Examples
    --------
    >>> from numba_rnn import TimeAffine, TimeGRU, TimeLSTM
    >>> stack = [TimeLSTM.create(3, 5, rng=0), TimeGRU.create(5, 4), TimeAffine.create(4, 2)]
    >>> stream = Stream(stack)
    >>> stream.step(np.ones(3, np.float32)).shape
    (2,)
    >>> before = stream.snapshot()
    >>> first = stream.step_many(np.ones((7, 3), np.float32))
    >>> stream.restore(before)
    >>> bool((stream.step_many(np.ones((7, 3), np.float32)) == first).all())
    True
    """

    def __init__(
        self,
        layers: Any,
        batch: int = 1,
        *,
        threads: int = 1,
        weights: str | None = None,
        bfloat16: bool = False,
    ) -> None:
        self.layers = _taken_apart(layers)
        self.batch = expect_int("batch", batch, 0)
        self.threads = expect_int("threads", threads)
        if weights is not None:
            expect_choice("weights", weights, ("bfloat16", "int8"))
            if bfloat16 and weights != "bfloat16":
                raise ValueError(f'bfloat16: expected False with weights="{weights}", got True')
        self.weights = "bfloat16" if bfloat16 else weights
        self.bfloat16 = self.weights == "bfloat16"
        self._recurrent, self._affine = self._checked_layers()
        self._engine = engine_of_param(self.layers[0].params[0])
        self._dtype = np.dtype(self.dtype.type)
        self._shapes = [[p.shape for p in layer.params] for layer in self.layers]
        self.refresh()

    def _checked_layers(self) -> tuple[list[Any], Any]:
        """The recurrent layers and the affine one, which fit together."""
        roles = [getattr(layer, "role_in_stream", None) for layer in self.layers]
        recurrent = self.layers[: roles.count("recurrent")]
        top = self.layers[len(recurrent) :]
        if not recurrent or roles not in (
            ["recurrent"] * len(recurrent),
            ["recurrent"] * len(recurrent) + ["affine"],
        ):
            names = ", ".join(type(layer).__name__ for layer in self.layers) or "none"
            raise TypeError(
                "layers: expected recurrent layers (TimeRecurrent) that read forwards, then at "
                f"most one TimeAffine; got {names}"
            )
        for below, above in zip(self.layers, self.layers[1:], strict=False):
            inputs, outputs = above.params[0].shape[0], below.output_size
            if inputs != outputs or above.dtype != below.dtype:
                raise ValueError(
                    f"layers: expected a layer of {outputs} inputs in {below.dtype} above "
                    f"{below!r}, got {above!r}"
                )
        if self.weights and self.dtype != np.float32:
            raise TypeError(f"{self.weights}: expected layers in float32, got {self.dtype}")
        return recurrent, top[0] if top else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, and of everything that goes in and out."""
        return self.layers[0].dtype

    @property
    def input_size(self) -> int:
        """D, the number of features of an input."""
        return int(self.layers[0].input_size)

    @property
    def output_size(self) -> int:
        """O, the number of outputs."""
        top = self._affine
        return int(top.params[0].shape[1] if top else self._recurrent[-1].output_size)

    def __repr__(self) -> str:
        names = " -> ".join(type(layer).__name__ for layer in self.layers)
        return f"Stream({names}, D {self.input_size}, O {self.output_size}, batch {self.batch})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a stream cannot be copied or pickled, because compiled code holds its addresses; "
            "make another one and call other.restore(stream.snapshot())"
        )

    def _params_of(self, layer: Any) -> list[Any]:
        """The parameters of a layer, in the form that this stream keeps them in."""
        params = getattr(layer, "cell_params", layer.params)
        if self.weights != "int8" or layer.float32_in_stream:
            return params
        named = zip(layer.param_names, params, strict=False)
        return [in_int8(n, p) if n in layer._weight_names else p for n, p in named]

    # ---- running

    def step(self, x: Array) -> Array:
        """Read one step.

        Parameters
        ----------
        x : (D,) array, or (N, D) for a batch
            The input, in the dtype of the stream.

        Returns
        -------
        out : (O,) array, or (N, O) for a batch
            The output. It is the same array every time, which the next step overwrites: copy it to
            keep it.

        Raises
        ------
        ValueError
            If the shape is wrong, or a number is NaN or infinite; the state is then as before.
        TypeError
            If the dtype is wrong; the state is then as before.
        """
        if self._step(x) or self._step(self._in_own_dtype(x)):
            return self._out
        shape = (self.input_size,) if self.batch == 1 else (self.batch, self.input_size)
        x = validate_array("x", x, shape, self.dtype, self._engine)
        expect_finite("x", x)
        fits = self._step(self._copied(x))
        assert fits, "x was checked, and copied"
        return self._out

    def step_many(self, frames: Array, out: Array | None = None) -> Array:
        """Read several steps.

        Parameters
        ----------
        frames : (T, D) array, or (N, T, D) for a batch
            The inputs, in the dtype of the stream.
        out : (T, O) array, or (N, T, O) for a batch, optional
            The array for the result, C-contiguous; a new one if left out.

        Returns
        -------
        out : (T, O) array, or (N, T, O) for a batch
            The outputs.

        Raises
        ------
        ValueError, TypeError
            If an array does not fit, or an input is not finite.
        """
        if out is None:
            steps = frames.shape if type(frames) is np.ndarray else np.shape(frames)
            out = self._empty((*steps[:-1], self._outputs), self._dtype)
        if self._run(frames, out) or self._run(self._in_own_dtype(frames), self._in_own_dtype(out)):
            return out
        expect_plain_array("out", out)
        steps = (*np.shape(frames)[:-1], self._outputs)
        if not self._engine.is_result(out, steps, self._dtype, frames):
            raise ValueError(
                f"out: expected a writable C-contiguous array of {self.dtype} and shape {steps} "
                "that shares no memory with frames"
            )
        shape: tuple[int | str, ...] = ("T", self.input_size)
        shape = shape if self.batch == 1 else (self.batch, *shape)
        frames = validate_array("frames", frames, shape, self.dtype, self._engine)
        expect_finite("frames", frames)
        fits = self._run(self._copied(frames), self._in_own_dtype(out))
        assert fits, "frames were checked, and copied"
        return out

    def _copied(self, array: Array) -> Array:
        """A copy that the engines take."""
        return self._in_own_dtype(self._engine.xp.array(array, self._dtype, order="C"))

    def _in_own_dtype(self, array: Any) -> Any:
        """The same array, seen in the one dtype object that the engines compare."""
        if type(array) is np.ndarray and array.dtype == self._dtype:
            return array.view(self._dtype)
        return array

    # ---- the state

    @property
    def state(self) -> tuple[tuple[Array, ...], ...]:
        """The current states of each layer, tuples of (N, H) arrays; copies."""
        found = zip(self._recurrent, self._running.state, strict=True)
        return tuple(
            layer.cell.narrowed(tuple(state.copy()), layer.output_size) for layer, state in found
        )

    def snapshot(self) -> Snapshot:
        """Copy the state of all layers.

        Returns
        -------
        tuple of arrays
            The snapshot, for ``restore``.
        """
        return tuple(layer.copy() for layer in self._running.state)

    def restore(self, snapshot: Snapshot) -> None:
        """Set the state to a snapshot of this stream, or of another one of the same sizes.

        Parameters
        ----------
        snapshot : tuple of arrays
            The result of ``snapshot``.

        Raises
        ------
        ValueError, TypeError
            If it is anything else; the state is then as before.
        """
        shapes = [layer.shape for layer in self._running.state]
        if not isinstance(snapshot, tuple) or [np.shape(s) for s in snapshot] != shapes:
            raise ValueError(f"snapshot: expected arrays of shapes {shapes}, as snapshot() gives")
        accepted = [
            validate_array("snapshot", array, shape, self.dtype, self._engine)
            for array, shape in zip(snapshot, shapes, strict=True)
        ]
        for layer, array in zip(self._running.state, accepted, strict=True):
            layer[...] = array

    def reset(self, rows: Integers | Sequence[bool] | BoolArray | None = None) -> None:
        """Start again from zeros, or from the learnt initial states.

        Parameters
        ----------
        rows : integers or (N,) bool array, optional
            The numbers of the sequences that start again, or a mask; all if left out.
        """
        some: Any = slice(None)
        if rows is not None:
            some = self._engine.to_device(_expect_rows(rows, self.batch))
        for layer, start in zip(self._running.state, self._starts, strict=True):
            layer[:, some] = start

    def refresh(self) -> None:
        """Copy the current parameters and zoneout of the layers; the state stays.

        Raises
        ------
        ValueError, TypeError
            If the parameters have other shapes or another dtype than when the stream was made. It
            then goes on with the old ones.
        """
        for n, (layer, shapes) in enumerate(zip(self.layers, self._shapes, strict=True)):
            for k, (name, param) in enumerate(zip(layer.param_names, layer.params, strict=True)):
                if k < len(shapes):
                    where = f"layers[{n}].{name}"
                    validate_weight(where, param, shapes[k], self._dtype, self._engine)
                    if self.bfloat16 and isinstance(param, QuantisedWeight):
                        raise TypeError(
                            f"bfloat16: expected layers in float32, got {where} in int8"
                        )
        state = self.snapshot() if hasattr(self, "_running") else None
        running = self._engine.stream(
            [
                (layer.cell, self._params_of(layer), layer.zoneout, layer.float32_in_stream)
                for layer in self._recurrent
            ],
            self._params_of(self._affine) if self._affine else None,
            self.batch,
            self.threads,
            self.bfloat16,
        )
        # what each layer's states (S, N, H) begin with, as it is now
        initials = [layer._initial for layer in self._recurrent]
        starts = [0 if start is None else start[:, None].copy() for start in initials]
        self._running, self._starts = running, starts
        self._step, self._run = self._running.stepping, self._running.running
        self._empty = self._engine.xp.empty
        self._out, self._outputs = self._running.out, self.output_size
        if state is None:
            self.reset()
        else:
            self.restore(state)


def in_int8(name: str, param: Any) -> Any:
    """A weight in int8, if it is not already."""
    return param if isinstance(param, QuantisedWeight) else quantise(param, name)


def _taken_apart(layers: Any) -> list[Any]:
    """The layers, with those of a Stacked in its place."""
    found: list[Any] = []
    several = isinstance(layers, Iterable) and not hasattr(layers, "in_stream")
    for layer in layers if several else [layers]:
        found += layer.in_stream() if hasattr(layer, "in_stream") else [layer]
    return found


def _expect_rows(rows: Any, batch: int) -> IntArray | BoolArray:
    """Numbers of sequences, or a mask, as an index."""
    index = as_array("rows", rows)
    if index.dtype == bool:
        if index.shape != (batch,):
            raise ValueError(f"rows: expected a mask of shape ({batch},), got {index.shape}")
        return index
    if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= batch):
        raise ValueError(f"rows: expected numbers from 0 to {batch - 1}, got {rows!r}")
    return index.astype(np.intp)
