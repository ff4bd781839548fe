"""The NumPy engine: the specification of what every engine computes.

Written to be read, step by step as the book has it, except that whatever does not depend on the
step before is done once for all steps: the input product before the loop, and one product each
for dWx, dWh and dxs after it.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from . import draws
from .cells import Cell
from .layout import EPSILON
from .machine import blas_threads, cpu_name
from .steps import PLAIN, Steps

Array = Any
State = tuple[Array, ...]
Normalised = dict[int, tuple[Array, Array]]  # a normalised gate's numbers, and 1 / deviation

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


class ReferenceEngine:
    """Forward and backward of any cell over a whole sequence, in plain NumPy.

    Other engines derive from this one and override what they do faster.
    """

    name = "numpy"
    xp = np

    def forward(
        self,
        cell: Cell,
        xs: Array,
        state: State,
        params: Sequence[Array],
        steps: Steps = PLAIN,
    ) -> tuple[Array, State, Any]:
        """Run the cell over a block of time.

        ``steps`` says what is particular about them: masks, resets, zoneout ... Returns hs
        (N, T, H), the state after the last step, and what backward needs (opaque: to be handed to
        the same engine's ``backward``).
        """
        expect_consistent(cell, xs, state, params)
        N, T, _ = xs.shape
        H = cell.hidden_size(params)
        state = tuple(s.copy() for s in state)  # backward needs them as they are now
        hs = np.empty((N, T, H), dtype=xs.dtype)
        kept: list[Any] = []
        walk = self._walk(cell, _x_side(cell, xs, params), range(T), state, params, steps)
        for t, (seen, *left, after, output) in enumerate(walk):
            state, hs[:, t] = after, output
            if not steps.every:
                kept.append((seen, *left))
            elif t % steps.every == 0:
                kept.append(seen)
        last = tuple(s.copy() for s in state)  # theirs to change; ours is needed for backward
        return hs, last, (xs, kept, params, steps)

    @staticmethod
    def _walk(
        cell: Cell, x_side: Array, times: range, state: State, params: Sequence[Array], steps: Steps
    ) -> Iterator[tuple[State, Array | None, tuple[Array, ...], Normalised, State, Array]]:
        """Step by step: the state it saw, its operand, what the cell saved, how its gates were
        normalised, the state after it, and its output."""
        _, Wh, b, w = cell.complete(params)
        bh = None if cell.biases == 1 else b[1]
        for t in times:
            state = reset_before(steps, t, state)
            live = None if steps.mask is None else steps.mask[:, t, None]
            gates, operand, normalised = _pre_activations(
                cell, x_side[:, t], state, Wh, bh, w, steps.scale, live
            )
            new, saved = cell.forward(gates, state)
            after, output = _settle(steps, t, new, state)
            yield state, operand, saved, normalised, after, output
            state = after

    def _walked(
        self, cell: Cell, xs: Array, kept: list[Any], params: Sequence[Array], steps: Steps
    ) -> Iterator[tuple[State, Array | None, tuple[Array, ...], Normalised]]:
        """What forward kept of every step, from the last to the first; computed again if it kept
        but some states."""
        if not steps.every:
            yield from reversed(kept)
            return
        T, x_side = xs.shape[1], _x_side(cell, xs, params)
        for k in reversed(range(len(kept))):
            times = range(k * steps.every, min(T, (k + 1) * steps.every))
            again = list(self._walk(cell, x_side, times, kept[k], params, steps))
            yield from (step[:4] for step in reversed(again))

    def backward(
        self, cell: Cell, dhs: Array, dstate: State, saved: Any, inputs: bool = True
    ) -> Gradients:
        """Backpropagation through the block of time that ``forward`` ran over.

        dhs (N, T, H) is the loss's gradient by every hs, dstate its gradient by the state after
        the last step; ``inputs`` asks for that by xs.
        """
        xs, kept, params, steps = saved
        Wx, Wh, _, _ = cell.complete(params)
        N, T, D = xs.shape
        H = Wh.shape[0]
        early = len(cell.recurrent_gates) - len(cell.second)  # gates fed by h itself
        Wh_h, Wh_operand = Wh[:, : early * H], Wh[:, early * H :]
        scale = xs.dtype.type(1) if steps.scale is None else steps.scale

        dgates_all = np.empty((N, T, len(cell.gates), H), dtype=xs.dtype)
        dinitial = np.zeros((len(cell.states), N, H), dtype=xs.dtype)
        dstates = np.empty((N, T, len(cell.states), H), dtype=xs.dtype) if steps.trace else None
        h_before, operands = np.empty((2, N, T, H), dtype=xs.dtype)
        walked = self._walked(cell, xs, kept, params, steps)
        waiting = {*cell.second, *cell.fed}
        early_gates, late_gates = (
            [g for g, name in enumerate(cell.gates) if (name in waiting) == late]
            for late in (False, True)
        )
        for t, (state, operand, step_saved, normalised) in zip(
            reversed(range(T)), walked, strict=True
        ):
            h_before[:, t] = state[0] * scale
            operands[:, t] = 0 if operand is None else operand
            dstate, dheld, live = _unsettle(steps, t, dhs[:, t], dstate)
            if dstates is not None:
                dstates[:, t] = np.stack(_sum(dstate, dheld), axis=1)
            dgates, dprev = cell.backward(dstate, step_saved, state)
            dgates, dprev = _filled(dgates, like=state[0]), _filled(dprev, like=state[0])
            dgates = _only(live, dgates)  # of what is normalised, by what the cell was given

            dgates = _denormalised(dgates, normalised, late_gates)
            if cell.operand_backward is not None:
                if cell.fed:
                    doperand = dgates[late_gates[0]]
                else:
                    doperand = _fuse(dgates, cell.recurrent_gates[early:]) @ Wh_operand.T * scale
                dgates, dprev = cell.operand_backward(doperand, dgates, dprev, step_saved, state)
                dgates, dprev = _only(live, dgates), _only(live, dprev)
            dgates = _denormalised(dgates, normalised, early_gates)

            if early:
                through_gates = _fuse(dgates, cell.recurrent_gates[:early]) @ Wh_h.T * scale
                dprev = dprev[0] + through_gates, *dprev[1:]
            dstate = _sum(_only(live, dprev), dheld)
            dgates_all[:, t] = np.stack(dgates, axis=1)
            if steps.resets is not None:
                again = steps.resets[:, t, None]
                dinitial += _only(again, dstate)
                dstate = _only(~again, dstate)

        def columns(gates: Sequence[int]) -> Array:  # (N T, gates H)
            return dgates_all[:, :, list(gates)].reshape(N * T, len(gates) * H)

        weights = range(len(cell.gates) - len(cell.weights), len(cell.gates))
        x_side, h_side = columns(cell.input_gates), columns(cell.recurrent_gates)
        dWx = self.product(xs.reshape(N * T, D).T, x_side)
        dWh = self.product(h_before.reshape(N * T, H).T, h_side)
        if cell.second:
            late = operands.reshape(N * T, H).T
            dWh[:, early * H :] = self.product(late, h_side[:, early * H :])
        db = self.sum_rows(x_side)
        if cell.biases == 2:
            db = np.stack([db, self.sum_rows(h_side)])
        dw = self.sum_rows(columns(weights)).reshape(len(weights), H)
        dxs = (x_side @ Wx.T).reshape(N, T, D) if inputs else None
        dparams = cell.own(dWx, dWh, db, dw)
        dinitial = np.stack([self.sum_rows(d) for d in dinitial])
        return Gradients(dxs, dstate, dparams, dinitial, dstates)

    def before(self, cell: Cell, saved: Any) -> tuple[Array, ...]:
        """The state that every step of a forward pass saw, (N, T, H) each."""
        xs, kept, params, steps = saved
        seen = [state for state, *_ in self._walked(cell, xs, kept, params, steps)][::-1]
        return tuple(np.stack(states, axis=1) for states in zip(*seen, strict=True))

    def replay(
        self, cell: Cell, xs: Array, params: Sequence[Array], steps: Steps, before: State
    ) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
        """All steps at once, from the state that each of them saw, as ``before`` gives it.

        Returns NumPy arrays (N, T, H): the gates' pre-activations as the cell's functions see
        them, normalised where it says so; what is inside (``cell.gate_names``); and the states
        after every step.
        """
        N, T, _ = xs.shape
        H = cell.hidden_size(params)
        Wx, Wh, b, w = cell.complete([self.to_host(param) for param in params])
        bx, bh = (b, None) if cell.biases == 1 else b
        before = tuple(self.to_host(state) for state in before)
        rows = tuple(state.reshape(N * T, H) for state in before)
        x_side = self.to_host(xs).reshape(N * T, Wx.shape[0]) @ Wx + bx
        scale = None if steps.scale is None else np.repeat(self.to_host(steps.scale), T, axis=0)
        gates, *_ = _pre_activations(cell, x_side, rows, Wh, bh, w, scale)
        new, _ = cell.forward(gates, rows)
        gates, new, inside = (
            tuple(np.broadcast_to(array, (N * T, H)).reshape(N, T, H) for array in arrays)
            for arrays in (gates, new, cell.inside(gates, rows))
        )
        after = [
            _settle(steps, t, tuple(s[:, t] for s in new), tuple(s[:, t] for s in before))[0]
            for t in range(T)
        ]
        return gates, inside, tuple(np.stack(states, axis=1) for states in zip(*after, strict=True))

    def step(
        self,
        cell: Cell,
        x: Array,
        state: State,
        params: Sequence[Array],
        zoneout: Sequence[float] = (),
    ) -> State:
        """One step x (N, D), nothing kept for backward. Returns the state after it, (N, H) each.

        zoneout  as ``Steps`` has it: of each state the share that stays as it was; empty: none
        """
        expect_consistent(cell, x[:, None], state, params)
        Wx, Wh, b, w = cell.complete(params)
        bx, bh = (b, None) if cell.biases == 1 else b
        gates, *_ = _pre_activations(cell, x @ Wx + bx, state, Wh, bh, w, None)
        new = cell.forward(gates, state)[0]
        if not zoneout:
            return new
        shares = zip(zoneout, state, new, strict=True)
        return tuple(share * old + (1 - share) * value for share, old, value in shares)

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
        return ReferenceStream(self, layers, affine, batch)

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

    def with_precision(self, precision: str) -> "ReferenceEngine":
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

        It does not overflow where squares in float32 would.
        """
        with np.errstate(over="ignore"):
            norms = [_norm(array) for array in arrays]
        if math.isinf(max(norms, default=0.0)):  # the squares overflowed, perhaps not the norm
            norms = [_norm(array.astype(np.float64)) for array in arrays]
        return math.hypot(*norms)

    def clip(self, arrays: Sequence[Array], limit: float) -> Any:
        """Scale the arrays in place so that their norm is at most limit.

        Returns the norm before, as ``norm`` does; where it is not finite nothing is scaled.
        """
        norm = self.norm(arrays)
        if math.isfinite(norm) and norm > limit:
            for array in arrays:
                array *= limit / norm
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


class ReferenceStream:
    """What a stream of an engine does, step by step.

    state   for each layer its states, (S, N, H): read before a call, written after it
    out     the result of the last step, (N, outputs), or (outputs,) for a batch of one
    """

    def __init__(
        self,
        engine: ReferenceEngine,
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


def _x_side(cell: Cell, xs: Array, params: Sequence[Array]) -> Array:
    """x Wx and the bias beside it: one product for all T."""
    Wx, _, b, _ = cell.complete(params)
    return xs @ Wx + (b if cell.biases == 1 else b[0])


def _pre_activations(
    cell: Cell,
    x_side: Array,
    state: State,
    Wh: Array,
    bh: Array | None,
    w: Array,
    scale: Array | None,
    live: Array | None = None,
) -> tuple[tuple[Array, ...], Array | None, Normalised]:
    """The pre-activation (N, H) of every gate, the operand of the second product if any, and
    how gates were normalised.

    live  (N, 1), the rows whose step is there: the operand of the others, which may be anything,
          is 0, as it takes part in the gradient of Wh
    """
    h = state[0] if scale is None else state[0] * scale
    H = Wh.shape[0]
    early = len(cell.recurrent_gates) - len(cell.second)
    gates: list[Array] = [h.dtype.type(0)] * (len(cell.gates) - len(w))
    gates += [w[k] for k in range(len(w))]

    def add(side: Array, positions: Sequence[int]) -> None:
        for k, g in enumerate(positions):
            gates[g] = gates[g] + side[:, k * H : (k + 1) * H]

    add(x_side, cell.input_gates)
    if early:
        h_side = h @ Wh[:, : early * H]
        add(h_side if bh is None else h_side + bh, cell.recurrent_gates[:early])
    normalised: Normalised = {}

    def normalise(names: set[str]) -> None:
        for name in names & set(cell.normalised):
            g = cell.gates.index(name)
            normalised[g] = gates[g], _ = _normalise(gates[g])

    waiting = {*cell.second, *cell.fed}
    normalise({*cell.gates} - waiting)
    if cell.operand is None:
        return tuple(gates), None, normalised
    (operand,) = _only(live, (cell.operand(tuple(gates), state),))
    if cell.fed:
        gates[cell.gates.index(cell.fed[0])], operand = operand, None
    else:
        operand = operand if scale is None else operand * scale
        add(operand @ Wh[:, early * H :], cell.recurrent_gates[early:])
    normalise(waiting)
    return tuple(gates), operand, normalised


def _normalise(a: Array) -> tuple[Array, Array]:
    """a (N, H) normalised over each row, and 1 / its standard deviation, (N, 1)."""
    d = a - a.mean(axis=1, keepdims=True)
    d = d - d.mean(axis=1, keepdims=True)  # the first mean was rounded as roughly as a itself is
    deviation = np.sqrt((d * d).mean(axis=1, keepdims=True) + d.dtype.type(EPSILON))
    return d / deviation, 1 / deviation


def _denormalised(
    dgates: tuple[Array, ...], normalised: Normalised, gates: Sequence[int]
) -> tuple[Array, ...]:
    """The gradients, for some gates that by a from that by what ``_normalise`` made of it."""
    found = list(dgates)
    for g in normalised.keys() & set(gates):
        (a_hat, factor), d = normalised[g], dgates[g]
        mean, along = (x.mean(axis=1, keepdims=True) for x in (d, d * a_hat))
        found[g] = factor * (d - mean - a_hat * along)
    return tuple(found)


def reset_before(steps: Steps, t: int, state: State) -> State:
    """The state that step t sees."""
    if steps.resets is None:
        return state
    again = steps.resets[:, t, None]
    starts = [0] * len(state) if steps.initial is None else steps.initial
    return tuple(
        np.where(again, np.asarray(start, s.dtype), s)
        for start, s in zip(starts, state, strict=True)
    )


def _settle(steps: Steps, t: int, new: State, old: State) -> tuple[State, Array]:
    """The state after step t, and its output; new and old: what the cell made of which state."""
    N, H = old[0].shape
    if steps.zoneout:
        stays = [steps.keeps_old(k, t, N, H, old[0].dtype) for k in range(len(old))]
        new = tuple(p * o + (1 - p) * n for p, o, n in zip(stays, old, new, strict=True))
    if steps.mask is None:
        return new, new[0]
    live = steps.mask[:, t, None]
    return tuple(np.where(live, n, o) for n, o in zip(new, old, strict=True)), np.where(
        live, new[0], 0
    )


def _unsettle(
    steps: Steps, t: int, dh: Array, dstate: State
) -> tuple[State, State | None, Array | None]:
    """The other way: the gradient of what the cell made; of the old state, past it; who took part.

    dh is the gradient of the output, dstate that of the state after the step. None: zeros; all.
    """
    live = None if steps.mask is None else steps.mask[:, t, None]
    dnew = _only(live, (dstate[0] + dh, *dstate[1:]))
    dheld = None if live is None else _only(~live, dstate)
    if steps.zoneout:
        N, H = dh.shape
        stays = [steps.keeps_old(k, t, N, H, dh.dtype) for k in range(len(dstate))]
        dheld = _sum(tuple(p * d for p, d in zip(stays, dnew, strict=True)), dheld)
        dnew = tuple((1 - p) * d for p, d in zip(stays, dnew, strict=True))
    return dnew, dheld, live


def _only(rows: Array | None, arrays: State) -> State:
    """The arrays with zeros in all rows but some; None: as they are."""
    return arrays if rows is None else tuple(np.where(rows, a, a.dtype.type(0)) for a in arrays)


def _sum(these: State, others: State | None) -> State:
    """The sums of two tuples' arrays; None: zeros."""
    return these if others is None else tuple(a + b for a, b in zip(these, others, strict=True))


def _fuse(dgates: Sequence[Array], positions: Sequence[int]) -> Array:
    """The gradients of some gates side by side, (N, gates H)."""
    return np.concatenate([dgates[g] for g in positions], axis=1)


def _filled(gradients: Sequence[Array | None], like: Array) -> tuple[Array, ...]:
    """The gradients with zeros for None."""
    return tuple(np.zeros_like(like) if d is None else d for d in gradients)
