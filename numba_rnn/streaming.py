"""Streams: recurrent layers that are fed as the data comes, one step at a time or a few.

    stream = layer.stream()                  one sequence
    h = stream.step(x)                       x (D,) -> h (H,)
    hs = stream.step_many(frames)            frames (T, D) -> hs (T, H)

A stream computes what the layer computes over the whole sequence: bit for bit on the numba
engine, within rounding on the others. It packs the weights when it is made, and a step allocates
nothing, so that it costs little more than its arithmetic.
"""

from typing import Any

import numpy as np

from .backend import engine_of
from .checks import (
    Array,
    accept,
    as_array,
    expect_array,
    expect_finite,
    expect_int,
    expect_plain_array,
)

Snapshot = tuple[Array, ...]


class Stream:
    """Recurrent layers on top of each other, and maybe an affine layer, that live on.

    layers    TimeRecurrent layers (TimeRNN, TimeLSTM, TimeGRU ...), the first at the bottom, or a
              Stacked of them, and a TimeAffine on top if there is one
    batch     N, how many sequences go side by side
    threads   how many threads may share a call; they do where the work is worth it, which for a
              single step of one sequence it is from about H 200 on (RNN: 350)
    bfloat16  keep the weights in two bytes a number instead of four, where the engine can: less
              than three digits, up to twice the speed where the weights exceed the caches;
              float32 only

    Shapes: D inputs; O outputs, H of the last layer or the affine layer's. For a batch of one
    the batch axis is left out: x (D,), frames (T, D), out (O,); else (N, D), (N, T, D), (N, O).

    The stream has the parameters as they were when it was made; ``refresh()`` takes them anew.
    It runs where the layers are. On a device x and frames may be NumPy arrays, what comes back is
    on the device, and every call waits for it to see that its input is finite.
    It starts from zeros, or the layers' learnable initial states. Dropout does nothing here, as
    nowhere in use, and zoneout has its expected value.
    A stream belongs to one thread at a time; several streams of one layer may run at once.

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
        bfloat16: bool = False,
    ) -> None:
        self.layers = _taken_apart(layers)
        self.batch = expect_int("batch", batch, 0)
        self.threads = expect_int("threads", threads)
        self.bfloat16 = bool(bfloat16)
        self._recurrent, self._affine = self._checked_layers()
        self._engine = engine_of(self.layers[0].params[0])
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
            inputs, outputs = above.params[0].shape[0], below.hidden_size
            if inputs != outputs or above.dtype != below.dtype:
                raise ValueError(
                    f"layers: expected a layer of {outputs} inputs in {below.dtype} above "
                    f"{below!r}, got {above!r}"
                )
        if self.bfloat16 and self.dtype != np.float32:
            raise TypeError(f"bfloat16: expected layers in float32, got {self.dtype}")
        return recurrent, top[0] if top else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, and so of everything that goes in and out."""
        return self.layers[0].dtype

    @property
    def input_size(self) -> int:
        """D, the number of features of an input."""
        return int(self.layers[0].input_size)

    @property
    def output_size(self) -> int:
        """O, the number of outputs."""
        top = self._affine
        return int(top.params[0].shape[1] if top else self._recurrent[-1].hidden_size)

    def __repr__(self) -> str:
        names = " -> ".join(type(layer).__name__ for layer in self.layers)
        return f"Stream({names}, D {self.input_size}, O {self.output_size}, batch {self.batch})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a stream cannot be copied or pickled, compiled code knows where its memory lies: make "
            "another one, and other.restore(stream.snapshot())"
        )

    # ---- running

    def step(self, x: Array) -> Array:
        """One step: x (D,) -> out (O,); for a batch x (N, D) -> (N, O).

        The result is the same array every time, which the next step overwrites: copy what is to
        stay. Raises ValueError for a wrong shape, NaN or infinity, TypeError for a wrong dtype;
        the state is then as it was.
        """
        if (
            type(x) in self._kinds
            and (x.dtype is self._dtype or x.dtype == self._dtype)
            and x.ndim == self._axes
            and self._step(x, self._address)
        ):
            return self._out
        shape = (self.input_size,) if self.batch == 1 else (self.batch, self.input_size)
        x = accept("x", x, shape, self.dtype, self._engine)
        expect_finite("x", x)
        self._step(self._engine.xp.array(x, self._dtype, order="C"), self._address)
        return self._out

    def step_many(self, frames: Array, out: Array | None = None) -> Array:
        """Many steps: frames (T, D) -> (T, O); for a batch (N, T, D) -> (N, T, O).

        out   where the result goes; a new array if left out
        """
        one = self.batch == 1
        expect_plain_array("out", out)
        if out is None:
            out = self._engine.xp.empty((*np.shape(frames)[:-1], self._outputs), self._dtype)
        elif not self._is_result(out, frames):
            raise ValueError(
                f"out: expected a C-contiguous array of {self.dtype} that may be written to, of "
                f"shape {(*np.shape(frames)[:-1], self._outputs)}, apart from frames"
            )
        to = out[None] if one else out
        if (
            type(frames) in self._kinds
            and frames.dtype == self._dtype
            and frames.ndim == self._axes + 1
            and out.size
            and self._running.run(frames[None] if one else frames, to)
        ):
            return out
        shape: tuple[int | str, ...] = ("T", self.input_size)
        shape = shape if one else (self.batch, *shape)
        frames = accept("frames", frames, shape, self.dtype, self._engine)
        expect_finite("frames", frames)
        frames = self._engine.xp.array(frames, self._dtype, order="C")
        fits = self._running.run(frames[None] if one else frames, to)
        assert fits, "frames were checked, and copied"
        return out

    def _is_result(self, out: Any, frames: Any) -> bool:
        return (
            self._engine.owns(out)
            and out.shape == (*np.shape(frames)[:-1], self._outputs)
            and out.dtype == self._dtype
            and out.flags.c_contiguous
            and getattr(out.flags, "writeable", True)
            and getattr(out.flags, "aligned", True)
            and not (self._engine.owns(frames) and self._engine.xp.may_share_memory(out, frames))
        )

    # ---- the state

    @property
    def state(self) -> tuple[tuple[Array, ...], ...]:
        """For each layer its states (N, H), as they are now; copies."""
        return tuple(tuple(layer.copy()) for layer in self._running.state)

    def snapshot(self) -> Snapshot:
        """The state of all layers, to be given to ``restore``."""
        return tuple(layer.copy() for layer in self._running.state)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of this stream, or of another one of the same sizes.

        Raises ValueError or TypeError for anything else; the state is then as it was.
        """
        shapes = [layer.shape for layer in self._running.state]
        if not isinstance(snapshot, tuple) or [np.shape(s) for s in snapshot] != shapes:
            raise ValueError(f"snapshot: expected arrays of shapes {shapes}, as snapshot() gives")
        accepted = [
            accept("snapshot", array, shape, self.dtype, self._engine)
            for array, shape in zip(snapshot, shapes, strict=True)
        ]
        for layer, array in zip(self._running.state, accepted, strict=True):
            layer[...] = array

    def reset(self, rows: Any = None) -> None:
        """Begin anew, from zeros or the initial states: all sequences, or those of ``rows``.

        rows   numbers of sequences, or a mask (N,)
        """
        some: Any = slice(None)
        if rows is not None:
            some = self._engine.to_device(_expect_rows(rows, self.batch))
        for layer, start in zip(self._running.state, self._starts, strict=True):
            layer[:, some] = start

    def refresh(self) -> None:
        """Take the layers' parameters and zoneout as they are now; the state stays.

        Raises ValueError or TypeError where the parameters have other shapes, or another dtype,
        than when the stream was made; it then goes on with those that it has.
        """
        for n, (layer, shapes) in enumerate(zip(self.layers, self._shapes, strict=True)):
            for k, (name, param) in enumerate(zip(layer.param_names, layer.params, strict=True)):
                if k < len(shapes):
                    expect_array(f"layers[{n}].{name}", param, shapes[k], self._dtype, self._engine)
        state = self.snapshot() if hasattr(self, "_running") else None
        running = self._engine.stream(
            [(layer.cell, layer.cell_params, layer.zoneout) for layer in self._recurrent],
            self._affine.params if self._affine else None,
            self.batch,
            self.threads,
            self.bfloat16,
        )
        # what each layer's states (S, N, H) begin with, as it is now
        initials = [layer._initial for layer in self._recurrent]
        starts = [0 if start is None else start[:, None].copy() for start in initials]
        self._running, self._starts = running, starts
        self._step, self._address = self._running.stepping
        self._out, self._axes = self._running.out, 1 if self.batch == 1 else 2
        self._outputs, self._kinds = self.output_size, (np.ndarray, self._engine.xp.ndarray)
        if state is None:
            self.reset()
        else:
            self.restore(state)


def _taken_apart(layers: Any) -> list[Any]:
    """The layers, with those of a Stacked in its place."""
    found: list[Any] = []
    for layer in [layers] if hasattr(layers, "in_stream") else layers:
        found += layer.in_stream() if hasattr(layer, "in_stream") else [layer]
    return found


def _expect_rows(rows: Any, batch: int) -> Array:
    """Numbers of sequences, or a mask, as an index."""
    index = as_array("rows", rows)
    if index.dtype == bool:
        if index.shape != (batch,):
            raise ValueError(f"rows: expected a mask of shape ({batch},), got {index.shape}")
        return index
    if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= batch):
        raise ValueError(f"rows: expected numbers from 0 to {batch - 1}, got {rows!r}")
    return index.astype(np.intp)
