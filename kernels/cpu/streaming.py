"""Streams: a stack of layers that lives on, fed one step or a few at a time.

A stream has its weights packed and all its memory at hand. One call runs through the stack, block
of time by block of time, and then through the affine layer on top:

    x --> layer 0 --> hidden states --> layer 1 --> hidden states --> affine --> out
            |                             |
          state                         state          read before a block, written after it

Every layer is a plan of the forward pass (``schedule.py``) of which nothing is kept, so that a
stream computes, bit for bit, what the layer computes for the whole sequence (with the same
weights: bfloat16 rounds them).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import boolean, int64, types
from numba.np.numpy_support import from_dtype

from ..cells import Cell
from ..engine import Array, StreamLayer
from ..once import once
from ..step_options import StepOptions
from . import gemm, threads
from .compilation import compiled_function, warn_if_slow_compile
from .forward import forward
from .kernel_abi import arguments_address, call, call_at, compiled, jitted, load_i64, record
from .option_memory import OptionMemory, compiled_features
from .packing import Packed, pack_affine, pack_weights, zeros
from .plan import PLACES, read_plan, write
from .plans import address_of, aligned, choose_partition, merge_bias, plan_template
from .simd import VECTOR_BYTES, all_lanes, lanes_of, load_part


class StreamPlan(NamedTuple):
    """A call works on these: addresses, sizes in numbers, strides in bytes."""

    kernel: int
    N: int
    inputs: int
    alone: int  # whether ``_enter`` may call the kernel itself
    x: int  # (N, T, inputs)
    x_row: int
    x_time: int
    T: int
    out: int  # (N, T, outputs)
    out_row: int
    out_time: int
    block: int  # how many steps the plans of the layers are made for
    layers: int
    plans: int  # the address of their addresses
    owners: int  # those of the plans for single steps, whose state these go on from; or 0
    # the affine layer, if outputs is not 0: weights and bias in panels
    hidden: int
    outputs: int
    weights: int
    bias: int
    multiply: int
    column_sums: int


_read_stream = record(StreamPlan)


@jitted
def _adjust(me, plan, k, count, x_time, out):
    """Tell the plan of layer k what changes from block to block, and never for single steps."""
    plan.T = count
    plan.chunks = (count + plan.steps - 1) // plan.steps
    plan.xs_time = x_time
    if me.owners:
        plan.state_in = plan.state_out = read_plan(load_i64(me.owners, k)).state
    if k == me.layers - 1 and me.outputs == 0:
        plan.hs, plan.hs_row, plan.hs_time = out, me.out_row, me.out_time


def stream(ctx):
    """A kernel: some steps of a stack of layers."""
    me = _read_stream(arguments_address(ctx))
    for start in range(0, me.T, me.block):
        count = min(me.block, me.T - start)
        x, x_row, x_time = me.x + start * me.x_time, me.x_row, me.x_time
        out = me.out + start * me.out_time
        for k in range(me.layers):
            address = load_i64(me.plans, k)
            plan = read_plan(address)
            plan.xs, plan.xs_row = x, x_row
            if me.block > 1:
                _adjust(me, plan, k, count, x_time, out)
            call_at(plan.entry, address)
            if plan.packed_state:  # what comes after this step comes before the next
                plan.state, plan.last_state = plan.last_state, plan.state
            x, x_row, x_time = plan.hs, plan.hs_row, plan.hs_time
        if me.outputs == 0:
            continue
        for n in range(me.N):
            to = out + n * me.out_row
            for t in range(count):
                call(me.column_sums, gemm.ColumnSums(
                    panels=me.bias, panel=VECTOR_BYTES, rows=1, columns=me.outputs,
                    out=to + t * me.out_time, add=0,
                ))  # fmt: skip
            call(me.multiply, gemm.Product(
                a=x + n * x_row, a_row=x_time, a_segment=VECTOR_BYTES, a_group=0, groups=1,
                inner=me.hidden, b=me.weights, b_vector=(me.hidden | 1) * VECTOR_BYTES,
                c=to, c_row=me.out_time, c_vector=VECTOR_BYTES, rows=count,
                columns=me.outputs, add=1, then=0,
            ))  # fmt: skip


@jitted
def _finite(x, address, count):
    """Whether some numbers of x's dtype that lie side by side are finite."""
    W, line = lanes_of(x), VECTOR_BYTES
    total = load_part(x, address, 0)  # 0 times a number is 0, or NaN
    while count >= 4 * W:
        a = load_part(x, address, W) * 0.0 + load_part(x, address + line, W) * 0.0
        b = load_part(x, address + 2 * line, W) * 0.0 + load_part(x, address + 3 * line, W) * 0.0
        total = total + (a + b)
        address += 4 * line
        count -= 4 * W
    while count > 0:
        total = total + load_part(x, address, count) * 0.0
        address += line
        count -= W
    return all_lanes(total >= 0.0)


@once
def _entrance(many: bool, dtype: str, ndim: int, nogil: bool) -> Any:
    """A function that puts a call's arrays, of this dtype and no other, into a ``StreamPlan``.

    It then runs the stream, if that is ``alone``. It returns False, and does nothing, where x
    does not fit or is not finite.
    """

    def enter(x, address):  # x (inputs,) or (N, inputs)
        me = _read_stream(address)
        N, inputs, start, last = me.N, me.inputs, x.ctypes.data, x.ndim - 1
        if x.shape[last] != inputs or x.size != N * inputs or (N and x.strides[last] != x.itemsize):
            return False
        if (start | x.strides[0]) % x.itemsize:  # not aligned
            return False
        for n in range(N):
            if not _finite(x, start + n * x.strides[0], inputs):
                return False
        me.x, me.x_row = start, x.strides[0]
        if me.alone:
            call_at(me.kernel, address)
        return True

    def enter_many(x, out, address):  # x (N, T, inputs), out (N, T, outputs)
        me = _read_stream(address)
        N, inputs, T, start = me.N, me.inputs, x.shape[1], x.ctypes.data
        row, time = x.strides[0], x.strides[1]
        if x.shape[0] != N or x.shape[2] != inputs or (N and x.strides[2] != x.itemsize):
            return False
        if (start | row | time) % x.itemsize:  # not aligned
            return False
        dense = time == inputs * x.itemsize
        for n in range(N):
            for t in range(1 if dense else T):
                if not _finite(x, start + n * row + t * time, T * inputs if dense else inputs):
                    return False
        me.x, me.x_row, me.x_time, me.T = start, row, time, T
        me.out, me.out_row, me.out_time = out.ctypes.data, out.strides[0], out.strides[1]
        if me.alone:
            call_at(me.kernel, address)
        return True

    kind = from_dtype(np.dtype(dtype))
    x = types.Array(kind, ndim, "A", readonly=True)
    takes = (x, types.Array(kind, 3, "C"), int64) if many else (x, int64)
    function = enter_many if many else enter
    made = compiled_function(function, boolean(*takes), nogil=nogil, error_model="numpy")
    # without Numba's search for a signature: it takes 0.1 microseconds, a step half of one, and
    # tells neither byte orders apart nor, once it has seen the other, aligned arrays
    return made.overloads[takes].entry_point


# ---- from Python


class NumbaStream:
    """A stack of layers with packed weights and its memory at hand.

    out   the result of the last step

    The states of a batch of one stay in panels, which for one row are the row itself, padded:
    a step reads one buffer, writes the other, and the two change places. Those of a larger batch
    are packed before a call, and unpacked after it.
    """

    def __init__(
        self,
        given: Sequence[tuple[Any, ...]],
        affine: Sequence[Array] | None,
        N: int,
        shards: int,
        bfloat16: bool,
    ) -> None:
        layers = [
            layer._replace(params=merge_bias(layer.cell, layer.params)).copy()
            for layer in (StreamLayer(*parts) for parts in given)
        ]
        dtype = layers[0].params[0].dtype
        self._states = [
            _StateMemory(layer.cell, layer.cell.hidden_size(layer.params), N, dtype)
            for layer in layers
        ]
        with warn_if_slow_compile(f"a stream of {layers[0].cell.name} ({dtype})"):
            packed = [pack_weights(layer.cell, layer.params, bfloat16) for layer in layers]
            top = pack_affine(affine) if affine is not None else None
            self._one = _Call(self._states, layers, packed, top, N, 1, shards)
            steps, owners = max(2, 4096 // max(N, 1)), self._one.plans if N == 1 else None
            self._many = _Call(self._states, layers, packed, top, N, steps, shards, owners)
            # a step of a microsecond need not let other Python threads in
            long = N * sum(matrix.size for p in packed for matrix in p.memory) > 1 << 16
            self._enter = _entrance(False, dtype.name, 1 if N == 1 else 2, long)
            self._enter_many = _entrance(True, dtype.name, 3, True)
        self.out = self._one.out[0, 0] if N == 1 else self._one.out[:, 0]

    @property
    def state(self) -> list[Array]:
        """For each layer its states, (S, N, H), to be read and written."""
        return [
            memory.now(plan) for memory, plan in zip(self._states, self._one.plans, strict=True)
        ]

    @property
    def stepping(self) -> tuple[Callable[[Array, int], bool], int]:
        """A step is the first of these, called with x and the second: the shortest way.

        x (N, inputs), or (inputs,) for a batch of one, must be an array of the stream's dtype and
        of that many axes: this is not checked. The result is in ``out``. Returns False, and does
        nothing, where x has another shape, a number in it is not finite, or the numbers of a row
        are not aligned or do not lie side by side.
        """
        return (self._step_together if self._one.shared else self._enter), self._one.address

    def _step_together(self, x: Array, address: int) -> bool:
        if np.may_share_memory(x, self.out):  # one thread would read what another has written
            x = x.copy()
        if not self._enter(x, address):
            return False
        self._one.run_shared()
        return True

    def run(self, xs: Array, out: Array) -> bool:
        """xs (N, T, inputs) -> out (N, T, outputs), which must fit.

        False, and nothing done, where xs has another shape, a number in it is not finite, or the
        numbers of a row are not aligned or do not lie side by side. Raises TypeError where the
        dtype is another, or the number of axes.
        """
        if xs.dtype != self.out.dtype or xs.ndim != 3:
            raise TypeError(f"xs: expected an array of {self.out.dtype} with three axes")
        many = self._many
        fits = self._enter_many(xs, out, many.address)
        if fits and many.shared:
            many.run_shared()
        return bool(fits)


class _StateMemory:
    """Where a layer's states are: two buffers of panels for a batch of one, else an array."""

    def __init__(self, cell: Cell, H: int, N: int, dtype: Any) -> None:
        lanes = VECTOR_BYTES // dtype.itemsize
        self.one_row, self.H = N == 1, H
        self.shape = len(cell.states), N, -(-H // lanes) * lanes if N == 1 else H
        self.arrays = [zeros(self.shape, dtype) for _ in range(2 if N == 1 else 1)]

    def now(self, plan: Array) -> Array:
        """The states before the next step."""
        first = self.arrays[0]
        if not self.one_row or plan[PLACES["state"]] == address_of(first):
            return first[:, :, : self.H]
        return self.arrays[1][:, :, : self.H]


class _Call:
    """A plan for calls, up to T steps of which are a block, and all that it has the address of."""

    def __init__(
        self,
        states: Sequence[_StateMemory],
        layers: Sequence[StreamLayer],
        packed: Sequence[Packed],
        top: Packed | None,
        N: int,
        T: int,
        shards: int,
        owners: Sequence[Array] | None = None,
    ) -> None:
        self._shards, dtype = shards, states[0].arrays[0].dtype
        first = xs = np.zeros((N, T, layers[0].params[0].shape[0]), dtype)
        self.plans = []
        self._kept: list[Any] = [layers, packed, top, first]
        for (cell, params, zoneout), weights, state in zip(layers, packed, states, strict=True):
            (D, _), (P, _), H = params[0].shape, params[1].shape, cell.hidden_size(params)
            hs = np.zeros((N, T, P), dtype)
            cut = choose_partition(cell, N, T, D, H, shards)
            options = StepOptions(zoneout=zoneout)
            features = compiled_features(options.features, False)
            made = plan_template(
                forward, cell, dtype, N, T, D, H, P, *cut, keep=False, features=features
            )
            memory = aligned(made.scratch_bytes, dtype), aligned(made.kept_bytes, dtype)
            plan = made.with_arrays(
                xs, params, state.arrays[0], state.arrays[0], hs,
                scratch=memory[0][1], kept=memory[1][1],
            )  # fmt: skip
            write(plan, packed=1, pWx=weights.addresses[0], pWh=weights.addresses[1])
            if zoneout:
                there = OptionMemory(options, cell, N, T, H, dtype)
                write(plan, options=there.address)
                self._kept.append(there)
            if N == 1 and T == 1:
                now, after = map(address_of, state.arrays)
                write(plan, packed_state=1, state=now, last_state=after)
            if weights.bfloat16:
                multiply = compiled(gemm.multiply_bfloat16, dtype.name)
                write(plan, multiply=multiply, weight_row=VECTOR_BYTES // 2)
            self.plans.append(plan)
            self._kept += [memory, hs]
            xs = hs
        self.shared = [plan for plan in self.plans if plan[PLACES["shards"]] > 1]
        outputs = top.columns if top is not None else 0
        self.out = np.zeros((N, T, outputs), dtype) if outputs else hs
        weights_, bias = top.addresses if top is not None else (0, 0)
        addresses = np.array([address_of(plan) for plan in self.plans])
        owned_by = np.array([address_of(plan) for plan in owners or ()])
        self._kept += [addresses, owned_by]
        self._piece = compiled(stream, dtype.name)
        words = StreamPlan(
            kernel=self._piece, N=N, inputs=first.shape[2], alone=not self.shared,
            x=address_of(first), x_row=first.strides[0], x_time=first.strides[1], T=T,
            out=address_of(self.out), out_row=self.out.strides[0], out_time=self.out.strides[1],
            block=T, layers=len(layers), plans=address_of(addresses),
            owners=address_of(owned_by) if owners else 0,
            hidden=hs.shape[2], outputs=outputs, weights=weights_, bias=bias,
            multiply=compiled(gemm.multiply, dtype.name),
            column_sums=compiled(gemm.column_sums, dtype.name),
        )  # fmt: skip
        self._words = np.array(words)
        self.address = address_of(self._words)

    def run_shared(self) -> None:
        """Run it with the team's help."""
        threads.team.run(self._piece, self.address, self._shards, self.shared)
