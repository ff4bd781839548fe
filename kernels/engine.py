"""An engine: what a layer may ask of it, whichever it is.

An engine runs cells over sequences (``forward``, ``backward``), and has some services for arrays
beside them. A derived engine brings the first part: ``reference.py`` in NumPy, ``cpu/`` and
``cuda/`` compiled. What is here of the second part works with any array library made after NumPy.

Shapes: N batch, T time, D input size, H hidden size, G number of gates.

    xs      (N, T, D)        inputs
    state   one (N, H) for each of the cell's states
    hs      (N, T, H)        the hidden state after every step
    params  Wx (D, Gx H), Wh (H, Gh H), b; see Cell.shapes

An engine owns the arrays it returns; it never writes to the arrays it is given, save where an
argument is named ``out``. xs and params are not copied: they must not change between forward and
backward.

An engine's arrays are those of its library ``xp``. It is given no others, but for ``to_device``,
``to_host`` and ``owns``, which bring them there and back.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from . import draws
from .cells import Cell
from .machine import blas_threads, cpu_name
from .step_options import NO_OPTIONS, StepOptions

Array = Any
State = tuple[Array, ...]

UPDATED_AT_ONCE = 32768  # numbers that fit the cache together with what is made of them
SUMMED_AT_ONCE = 2048  # terms of a sum, before it is added to another


class Gradients(NamedTuple):
    """What backward returns.

    xs       (N, T, D); None where they were not asked for
    state    by the state before the first step, (N, H) each; 0 in rows that are reset there
    params   by the parameters, in their order
    initial  (S, H), by what resets return to, all rows added up; zeros, or None, without resets
    states   (N, T, S, H) if ``steps.trace``: by the state after every step, all that reached it
    """

    xs: Array | None
    state: State
    params: tuple[Array, ...]
    initial: Array | None = None
    states: Array | None = None


class Engine:
    """Forward and backward of any cell over a whole sequence, and services for arrays."""

    name: str
    xp: Any

    def forward(
        self,
        cell: Cell,
        xs: Array,
        state: State,
        params: Sequence[Array],
        steps: StepOptions = NO_OPTIONS,
    ) -> tuple[Array, State, Any]:
        """Run the cell over a block of time.

        ``steps`` are the options of the steps: masks, resets, zoneout ... Returns hs (N, T, H),
        the state after the last step, and what backward needs (opaque: to be handed to the same
        engine's ``backward``).
        """
        raise NotImplementedError

    def backward(
        self,
        cell: Cell,
        dhs: Array,
        dstate: State,
        saved: Any,
        inputs: bool = True,
        out: Sequence[Array] | None = None,
    ) -> Gradients:
        """Backpropagation through the block of time that ``forward`` ran over.

        dhs (N, T, H) is the loss's gradient by every hs, dstate its gradient by the state after
        the last step; ``inputs`` asks for that by xs; the gradients of the parameters are written
        to ``out``, where it is given.
        """
        raise NotImplementedError

    def before(self, cell: Cell, saved: Any) -> State:
        """The state that every step of a forward pass saw, (N, T, H) each."""
        raise NotImplementedError

    def replay(
        self, cell: Cell, xs: Array, params: Sequence[Array], steps: StepOptions, before: State
    ) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
        """All steps at once, from the state that each of them saw, as ``before`` gives it.

        Returns NumPy arrays (N, T, H): the gates' pre-activations as the cell's functions see
        them, normalised where it says so; what is inside (``cell.gate_names``); and the states
        after every step.
        """
        raise NotImplementedError

    def step(
        self,
        cell: Cell,
        x: Array,
        state: State,
        params: Sequence[Array],
        zoneout: Sequence[float] = (),
    ) -> State:
        """One step x (N, D), nothing kept for backward. Returns the state after it, (N, H) each.

        zoneout  as ``StepOptions`` has it: of each state the share that stays as it was
        """
        steps = StepOptions(zoneout=zoneout) if zoneout else NO_OPTIONS
        return self.forward(cell, x[:, None], state, params, steps)[1]

    def sample(self, cell: Cell) -> Array:
        """What a cell makes of some fixed numbers: three steps of three units, (9,) float64.

        It tells cells of one name apart, wherever and with whatever Python they run.
        """
        xp, shapes = self.xp, cell.shapes(2, 3).values()
        params = [xp.cos(k + xp.arange(math.prod(s))).reshape(s) for k, s in enumerate(shapes)]
        xs, state = xp.sin(xp.arange(6.0)).reshape(1, 3, 2), (xp.zeros((1, 3)),) * len(cell.states)
        with np.errstate(all="ignore"):
            hs, _, _ = self.forward(cell, xs, state, params)
        return hs.ravel()

    def stream(
        self,
        layers: Sequence[tuple[Any, ...]],
        affine: Sequence[Array] | None,
        batch: int,
        shards: int = 1,
        bfloat16: bool = False,
    ) -> Any:
        """A stack of layers that lives on, from the parameters as they are now.

        layers    of each what a ``StreamLayer`` has, the first one at the bottom
        affine    W (H, outputs) and b (outputs,) on top, or None
        shards    how many threads share a call, where the engine has threads
        bfloat16  store weights in two bytes, where the engine can
        """
        return EngineStream(self, layers, affine, batch)

    def borrowing(self, parallel: int, count: int) -> AbstractContextManager[None]:
        """Let an engine that has threads of its own use an OpenMP runtime's instead, in a block.

        parallel  the address of the runtime's ``GOMP_parallel``; 0: there is none to call
        count     how many threads it has, and the engine may use
        """
        return nullcontext()

    def describe(self) -> dict[str, Any]:
        """What the engine runs on, for people.

        device, threads; simd_bits and cache (where compiled code is kept), None where the engine
        compiles nothing.
        """
        device, threads = cpu_name(), blas_threads()
        return {"device": device, "threads": threads, "simd_bits": None, "cache": None}

    def with_precision(self, precision: str) -> "Engine":
        """The engine whose float32 products may be as rough as "float32", "tf32" or "bf16".

        An engine that has no choice is always exact.
        """
        return self

    def layout(self, cell: Cell, N: int, H: int, dtype: Any) -> dict[str, str]:
        """How the steps of so many rows and units run, and why, where an engine has a choice."""
        return {}

    # ---- sums of many numbers: in parts, so that rounding errors do not grow with their count

    def product(self, a: Array, b: Array) -> Array:
        """a b for matrices, or stacks of them, as exact as the engine's other products."""
        return product_in_parts(self.xp.matmul, a, b)

    def sum_rows(self, rows: Array) -> Array:
        """The sum of the rows (K, M) of a matrix, (M,)."""
        K, M = rows.shape
        each = math.isqrt(K)
        if each < 16:
            return rows.sum(axis=0)
        whole = K - K % each
        parts = rows[:whole].reshape(whole // each, each, M).sum(axis=1)
        return parts.sum(axis=0) + rows[whole:].sum(axis=0)

    def add_rows(self, out: Array, rows: Array, values: Array) -> None:
        """out[rows[k]] += values[k] for every k, repeated rows adding up (embedding gradient).

        out (V, D), rows (K,) of any integer dtype, values (K, D); the result is always the same.
        """
        if len(rows) > SUMMED_AT_ONCE:  # equal rows side by side, and the sums of their parts
            order = np.argsort(rows, kind="stable")
            rows, values = rows[order], values[order]
            begins = np.arange(len(rows)) % 256 == 0
            begins[1:] |= rows[1:] != rows[:-1]
            first = np.flatnonzero(begins)
            rows, values = rows[first], np.add.reduceat(values, first, axis=0)
        np.add.at(out, rows, values)

    # ---- where the arrays are

    def owns(self, array: Any) -> bool:
        """Whether it is an array of this engine's library."""
        return isinstance(array, self.xp.ndarray)

    def to_device(self, array: Array) -> Array:
        """An array of this engine from a NumPy array; what is one already comes back as it is."""
        return array if isinstance(array, self.xp.ndarray) else self.xp.asarray(array)

    def to_host(self, array: Array) -> Array:
        """A NumPy array from an array of this engine; the same one where that is NumPy's."""
        return array

    def scalar(self, array: Array) -> Any:
        """What a caller gets for an array without axes: a float, or on a device the array itself.

        To make a float of that one is to wait for the device.
        """
        return float(array)

    # ---- training

    def random(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
        """Numbers from [0, 1), float32 or float64, which depend on nothing but the state of rng.

        A device may draw a seed from rng and make its own numbers from that.
        """
        return rng.random(shape, dtype=dtype)

    def random_rows(
        self, rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, start: int, of: int
    ) -> Array:
        """Some rows of what ``random`` would give for (of, *shape[1:]): shape[0] from start on.

        rng, with a PCG64, is left as if all had been drawn.
        """
        row = math.prod(shape[1:])
        skip(rng, start * row, dtype)
        made = self.random(rng, shape, dtype)
        skip(rng, (of - start - shape[0]) * row, dtype)
        return made

    def dropout(self, seed: int, shape: tuple[int, int], rate: float, dtype: Any) -> Array:
        """What numbers (N, H) are multiplied by: 0 for a share ``rate``, else 1 / (1 - rate).

        Drawn as ``draws.py`` says: the same on every engine.
        """
        left = ~draws.drawn(seed, 0, *shape, rate)
        return self.to_device(left * np.dtype(dtype).type(1 / (1 - rate)))

    def norm(self, arrays: Sequence[Array]) -> Any:
        """The Euclidean norm of all the arrays' numbers in one vector, as ``scalar`` gives it.

        Where squares overflow, or those that are lost below the smallest number may count, they
        are summed again of numbers scaled by the largest.
        """
        with np.errstate(over="ignore"):
            norm = math.hypot(*(_norm(array) for array in arrays))
        if not _least_norm(arrays) <= norm < math.inf:
            norm = math.hypot(*(_scaled_norm(array) for array in arrays))
        return norm

    def clip(self, arrays: Sequence[Array], limit: float) -> Any:
        """Scale the arrays in place so that their norm is at most limit.

        Returns the norm before, as ``norm`` does; where it is not finite nothing is scaled.
        """
        norm = self.norm(arrays)
        if math.isfinite(norm) and norm > limit:
            # in two steps where the factor itself would be lost
            twice = limit / norm < max(np.finfo(array.dtype).tiny for array in arrays)
            factor = math.sqrt(limit) / math.sqrt(norm) if twice else limit / norm
            for array in [*arrays, *arrays] if twice else arrays:
                array *= factor
        return norm

    def update(
        self,
        rule: Callable[..., tuple[Array, ...]],
        arrays: Sequence[Array],
        gradient: Array,
        numbers: Sequence[float],
    ) -> None:
        """Change arrays in place, number by number: rule(*old, gradient, *numbers) -> new values.

        rule     a plain function in the manner of the cells': + - * / and ``functions.py``
        arrays   one or more, and the gradient: of one shape and dtype, in any memory order each
        numbers  go to the rule as they are, the same for every place
        """
        order = [["readwrite"]] * len(arrays) + [["readonly"]]
        flags = ["external_loop", "buffered", "zerosize_ok"]
        whole = [*arrays, gradient]
        with np.nditer(whole, flags, order, buffersize=UPDATED_AT_ONCE) as parts:  # type: ignore[arg-type]
            for *old, slope in parts:
                for array, new in zip(old, rule(*old, slope, *numbers), strict=True):
                    array[...] = new


class StreamLayer(NamedTuple):
    """A layer of a stream.

    zoneout   for each state the share of units that would keep their old value at a step, whose
              expected value a stream computes; empty: none
    """

    cell: Cell
    params: Sequence[Array]
    zoneout: Sequence[float] = ()

    def copy(self) -> "StreamLayer":
        """The same with parameters of its own."""
        return self._replace(params=tuple(p.copy() for p in self.params))


class EngineStream:
    """A stream that asks an engine for every step.

    state   for each layer its states, (S, N, H): read before a call, written after it
    out     the result of the last step, (N, outputs), or (outputs,) for a batch of one
    """

    def __init__(
        self,
        engine: Engine,
        layers: Sequence[tuple[Any, ...]],
        affine: Sequence[Array] | None,
        N: int,
    ) -> None:
        self._engine, self._N = engine, N
        self._layers = [StreamLayer(*layer).copy() for layer in layers]
        self._affine = None if affine is None else tuple(p.copy() for p in affine)
        sizes = [layer.cell.hidden_size(layer.params) for layer in self._layers]
        dtype = self._layers[0].params[0].dtype
        self.state = [
            engine.xp.zeros((len(layer.cell.states), N, H), dtype)
            for layer, H in zip(self._layers, sizes, strict=True)
        ]
        outputs = sizes[-1] if affine is None else affine[0].shape[1]
        self.out = engine.xp.zeros(outputs if N == 1 else (N, outputs), dtype)

    @property
    def stepping(self) -> tuple[Callable[[Array, int], bool], int]:
        """A step is the first of these, called with x and the second: the shortest way.

        x (N, inputs), or (inputs,) for a batch of one, must be an array of the stream's dtype and
        of that many axes. The result is in ``out``. Returns False, and does nothing, where x has
        another shape or a number in it is not finite. It may be a NumPy array on any engine.
        """
        return self._step, 0

    def _step(self, x: Array, _: int) -> bool:
        inputs = self._layers[0].params[0].shape[0]
        if x.shape != (*self.out.shape[:-1], inputs) or not np.isfinite(x).all():
            return False
        x = self._engine.to_device(x)
        self._advance(x.reshape(self._N, inputs), self.out.reshape(self._N, self.out.shape[-1]))
        return True

    def run(self, xs: Array, out: Array) -> bool:
        """xs (N, T, inputs) -> out (N, T, outputs), which must fit.

        False, and nothing done, where xs has another shape or a number in it is not finite.
        Raises TypeError where the dtype is another. xs may be a NumPy array on any engine.
        """
        if xs.dtype != self.out.dtype:
            raise TypeError(f"xs: expected an array of {self.out.dtype}")
        inputs = self._layers[0].params[0].shape[0]
        if xs.shape != (self._N, xs.shape[1], inputs) or not np.isfinite(xs).all():
            return False
        xs = self._engine.to_device(xs)
        for t in range(xs.shape[1]):
            self._advance(xs[:, t], out[:, t])
        return True

    def _advance(self, x: Array, out: Array) -> None:
        for layer, state in zip(self._layers, self.state, strict=True):
            state[...] = self._engine.step(layer.cell, x, tuple(state), layer.params, layer.zoneout)
            x = state[0]
        out[...] = x if self._affine is None else x @ self._affine[0] + self._affine[1]


def written(values: Sequence[Array], out: Sequence[Array] | None) -> tuple[Array, ...]:
    """The values in the arrays ``out``, if there are such; those that are there already stay."""
    if out is None:
        return tuple(values)
    for array, value in zip(out, values, strict=True):
        if array is not value:
            array[...] = value
    return tuple(out)


def product_in_parts(matmul: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """a b for matrices, or stacks of them, whose contraction may be long."""
    K = a.shape[-1]
    if K <= SUMMED_AT_ONCE:
        return matmul(a, b)
    parts = (slice(k, k + SUMMED_AT_ONCE) for k in range(0, K, SUMMED_AT_ONCE))
    products = (matmul(a[..., part], b[..., part, :]) for part in parts)
    out = next(products)
    for product in products:
        out += product
    return out


def _norm(array: Array) -> float:
    """The Euclidean norm of an array's numbers, whose squares are summed in parts."""
    numbers = array.ravel(order="K")
    starts = range(0, numbers.size, UPDATED_AT_ONCE)
    parts = (numbers[start : start + UPDATED_AT_ONCE] for start in starts)
    return math.sqrt(sum(float(part @ part) for part in parts))


def _least_norm(arrays: Sequence[Array]) -> float:
    """A norm from which on squares that are lost, of all numbers even, do not count."""
    kinds = [np.finfo(dtype) for dtype in {array.dtype for array in arrays}]
    size = sum(array.size for array in arrays)
    return max((math.sqrt(size * float(kind.tiny / kind.eps)) for kind in kinds), default=0.0)


def _scaled_norm(array: Array) -> float:
    """The Euclidean norm, of numbers divided by the largest."""
    largest = float(max(array.max(), -array.min())) if array.size else 0.0
    if not 0 < largest < math.inf:  # NaN, too
        return largest
    return largest * _norm(array.astype(np.float64) / largest)


def skip(rng: np.random.Generator, count: int, dtype: Any) -> None:
    """Leave a generator with a PCG64 as if ``rng.random(count, dtype=dtype)`` had been drawn.

    Two numbers in float32 come from one draw of 64 bits, whose second half waits for the next.
    """
    bits: Any = rng.bit_generator
    before, each = bits.state, 2 if dtype == np.float32 else 1
    if each == 2 and before["has_uint32"] and count:
        rng.random(dtype=np.float32)
        count -= 1
    ahead = max(0, count // each - 1)  # what is drawn last leaves the state as it has to be
    if ahead:
        bits.advance(ahead)
        if each == 1:  # a half that waits, waits on
            bits.state = {**bits.state, **{k: before[k] for k in ("has_uint32", "uinteger")}}
    rng.random(count - ahead * each, dtype=dtype)


def expect_consistent(cell: Cell, xs: Array, state: State, params: Sequence[Array]) -> None:
    """Refuse arrays that do not fit together, which compiled code would read beyond their end.

    Raises ValueError for a shape, TypeError for a dtype.
    """
    N, _, D = xs.shape
    if not xs.dtype.isnative:
        raise TypeError(f"xs: expected numbers in the machine's byte order, got {xs.dtype}")
    wanted = cell.shapes(D, cell.hidden_size(params))
    if len(params) != len(wanted):
        raise ValueError(f"params: expected {', '.join(wanted)}, got {len(params)} arrays")
    wanted |= dict.fromkeys(cell.states, (N, cell.hidden_size(params)))
    for (name, shape), array in zip(wanted.items(), (*params, *state), strict=True):
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        if array.dtype != xs.dtype:
            raise TypeError(f"{name}: expected {xs.dtype}, as xs is, got {array.dtype}")
