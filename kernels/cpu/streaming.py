"""Streams: a stack of layers that lives on, fed one step or a few at a time.

A stream has its weights packed and all its memory at hand. One call runs through the stack, block
of time by block of time, and then through the affine layer on top:

    x --> layer 0 --> hidden states --> layer 1 --> hidden states --> affine --> out
            |                             |
          state                         state          read before a block, written after it

Every layer is a plan of the forward pass (``schedule.py``) of which nothing is kept, so that a
stream computes, bit for bit, what the layer computes for the whole sequence (with the same
precision). Weights in float32 and float64 of one sequence go through ``fused_step.py``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import boolean, int64, types

from ..cells import Cell
from ..engine import Array, StreamLayer
from ..layout import layout
from ..once import once
from ..quantisation import is_quantised
from ..step_options import StepOptions
from . import fused_step, gemm, threads
from .compilation import compiled_function, warn_if_slow_compile
from .forward import forward
from .int8 import quantise_columns
from .kernel_abi import (
    ArrayObjectType,
    arguments_address,
    call,
    call_at,
    compiled,
    emits,
    jitted,
    load_i64,
    record,
)
from .layer_norm import load_four, multiply, multiply_add, sums
from .option_memory import OptionMemory, compiled_features
from .packing import (
    FEW_OUTPUTS,
    Packed,
    pack_affine,
    pack_quantised,
    pack_weights,
    write_packed,
    zeros,
)
from .panels import Rounding
from .plan import PLACES, read_plan, write
from .plans import address_of, aligned, choose_partition, compiling, merge_bias, plan_template
from .simd import VECTOR_BYTES, all_lanes, lanes_of, load, load_part, store, store_part


class StreamPlan(NamedTuple):
    """A call works on these: addresses, sizes in numbers, strides in bytes."""

    kernel: int
    N: int
    inputs: int
    alone: int  # whether ``_entrance`` may call the kernel itself
    array_type: int  # the addresses of numpy.ndarray and of the dtype
    dtype: int
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
    outputs: int
    # the affine layer, if there is one: its weights with the bias for a last row, in panels, how
    # many words these have, the bytes from panel to panel, and its kernel; or 0, and the weights
    # transposed
    weights: int
    inner: int
    panel: int
    multiply: int
    # in int8: the bias, its kernel that rounds h, and where the words of h go, with their scales
    bias: int
    round_columns: int
    words: int
    words_row: int
    scales: int
    h_size: int


_read_stream = record(StreamPlan)
CARRAY = 0x501  # flags of an array: C-contiguous, aligned, writable


@emits(types.void)
def _store_quarters(builder, numbers, places):
    """The first number of each quarter of a vector, to four places."""
    for k in range(4):
        number = builder.extract_element(numbers, ir.IntType(32)(k * numbers.type.count // 4))
        pointer = builder.inttoptr(builder.extract_value(places, k), number.type.as_pointer())
        builder.store(number, pointer)


@jitted
def _few_outputs(ctx, me, h, h_time, out, count):
    """The affine layer for some steps: sums along h, of four steps together."""
    W, last = lanes_of(ctx), count - 1
    row = (me.inner + W - 1) // W * VECTOR_BYTES
    for o in range(me.outputs):
        weights, to = me.weights + o * row, out + o * VECTOR_BYTES // W
        for t in range(0, count, 4):
            b, c, d = min(t + 1, last), min(t + 2, last), min(t + 3, last)
            rows = h + t * h_time, h + b * h_time, h + c * h_time, h + d * h_time
            w = load(ctx, weights)
            total = multiply(load_four(ctx, rows, 0), (w, w, w, w))
            for u in range(VECTOR_BYTES, row, VECTOR_BYTES):
                w = load(ctx, weights + u)
                total = multiply_add(load_four(ctx, rows, u), (w, w, w, w), total)
            places = to + t * me.out_time, to + b * me.out_time, to + c * me.out_time
            _store_quarters(sums(*total), (*places, to + d * me.out_time))


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
            if me.block > 1:  # for single steps never anything else
                plan.xs_time, plan.T = x_time, count
                plan.chunks = (count + plan.steps - 1) // plan.steps
                if k == me.layers - 1 and not me.weights:
                    plan.hs, plan.hs_row, plan.hs_time = out, me.out_row, me.out_time
            call_at(plan.entry, address)
            if plan.state == plan.state_in:  # what comes after this step comes before the next
                for u in range(0, plan.states * plan.state_step, VECTOR_BYTES):
                    store(ctx, load(ctx, plan.last_state + u), plan.state + u)
            x, x_row, x_time = plan.hs, plan.hs_row, plan.hs_time
        for n in range(me.N if me.weights else 0):
            a, a_row = x + n * x_row, x_time
            if not me.multiply:
                _few_outputs(ctx, me, a, a_row, out + n * me.out_row, count)
                continue
            if me.round_columns:
                a, a_row = _round_h(ctx, me, a, a_row, out + n * me.out_row, count)
            call(me.multiply, gemm.Product(
                a=a, a_row=a_row, a_segment=VECTOR_BYTES, a_group=0, groups=1, inner=me.inner,
                b=me.weights, b_vector=me.panel, c=out + n * me.out_row, c_row=me.out_time,
                c_vector=VECTOR_BYTES, rows=count, columns=me.outputs,
                add=1 if me.round_columns else 0, then=0,
            ))  # fmt: skip


@jitted
def _round_h(ctx, me, h, h_time, out, count):
    """h of some steps as words, where they are, and the bytes from row to row; out is the bias."""
    W = lanes_of(ctx)
    call(me.round_columns, Rounding(
        source=h, source_row=h_time, source_panel=VECTOR_BYTES, rows=count, columns=me.h_size,
        to=me.words, to_row=me.words_row, to_panel=VECTOR_BYTES, scale=me.scales, bounded=0,
    ))  # fmt: skip
    for t in range(count):
        for k in range(0, me.outputs, W):
            skip, lanes = k * VECTOR_BYTES // W, me.outputs - k
            store_part(
                ctx, load_part(ctx, me.bias + skip, lanes), out + t * me.out_time + skip, lanes
            )
    return me.words, me.words_row


@jitted
def _finite(ctx, address, count):
    """Whether some numbers that lie side by side are finite; the ctx says of which dtype."""
    W, line = lanes_of(ctx), VECTOR_BYTES
    total = load_part(ctx, address, 0)  # 0 times a number is 0, or NaN
    while count >= 4 * W:
        a = load_part(ctx, address, W) * 0.0 + load_part(ctx, address + line, W) * 0.0
        b = load_part(ctx, address + 2 * line, W) * 0.0
        total = total + (a + (b + load_part(ctx, address + 3 * line, W) * 0.0))
        address += 4 * line
        count -= 4 * W
    while count > 0:
        total = total + load_part(ctx, address, count) * 0.0
        address += line
        count -= W
    return all_lanes(total >= 0.0)


@jitted
def _fits(me, x, ndim, N, row, T, time):
    """Whether N times T rows of an array are aligned, their numbers side by side and finite."""
    last, inputs, size = ndim - 1, me.inputs, VECTOR_BYTES // lanes_of(x)
    if N != me.N or load_i64(x.shape, last) != inputs or (x.data | row | time) % size:
        return False
    if N and load_i64(x.strides, last) != size:
        return False
    dense = time == inputs * size
    for n in range(N):
        for t in range(1 if dense else T):
            address = x.data + n * row + t * time
            if not _finite(x, address, T * inputs if dense else inputs):
                return False
    return True


@jitted
def _is_result(me, out, rows, N, T, outputs, x):
    """Whether the result may be written to an array: one that shares no memory with x."""
    if out.flags & CARRAY != CARRAY or load_i64(out.shape, 0) != (N if rows else T):
        return False
    if load_i64(out.shape, rows) != T or load_i64(out.shape, rows + 1) != outputs:
        return False
    size = VECTOR_BYTES // lanes_of(x)
    first, end = x.data, x.data + size
    for k in range(rows + 2):
        way = (load_i64(x.shape, k) - 1) * load_i64(x.strides, k)
        first, end = first + min(way, 0), end + max(way, 0)
    return N == 0 or end <= out.data or out.data + N * T * outputs * size <= first


@once
def _entrance(many: bool, dtype: str, rows: int, nogil: bool) -> Any:
    """A function that puts a call's arrays into a ``StreamPlan``, and runs the stream if ``alone``.

    It returns False, and does nothing, where an object is no array that fits, where a number is
    not finite, or out shares memory with x. It looks at the objects itself: Numba would believe
    what it was told of them, and take a quarter of a small step for each.

    rows  how many axes the arrays have for the batch: 0 or 1
    """

    @jitted
    def is_array(me, x, ndim):
        return x.type == me.array_type and x.dtype == me.dtype and x.ndim & 0xFFFFFFFF == ndim

    def enter(x, address):  # x (inputs,) or (N, inputs)
        me = _read_stream(address)
        if not is_array(me, x, rows + 1):
            return False
        N, row = (load_i64(x.shape, 0), load_i64(x.strides, 0)) if rows else (1, 0)
        if not _fits(me, x, rows + 1, N, row, 1, row):
            return False
        me.x, me.x_row = x.data, row
        if me.alone:
            call_at(me.kernel, address)
        return True

    def enter_many(x, out, address):  # x (T, inputs) or (N, T, inputs); out likewise
        me = _read_stream(address)
        if not (is_array(me, x, rows + 2) and is_array(me, out, rows + 2)):
            return False
        N, row = (load_i64(x.shape, 0), load_i64(x.strides, 0)) if rows else (1, 0)
        T, time, outputs = load_i64(x.shape, rows), load_i64(x.strides, rows), me.outputs
        if T == 0 or not _is_result(me, out, rows, N, T, outputs, x):
            return False
        if not _fits(me, x, rows + 2, N, row, T, time):
            return False
        me.x, me.x_row, me.x_time, me.T, me.out = x.data, row, time, T, out.data
        me.out_time = outputs * VECTOR_BYTES // lanes_of(x)
        me.out_row = T * me.out_time
        if me.alone:
            call_at(me.kernel, address)
        return True

    array = ArrayObjectType(dtype, many + 1 + rows)
    takes = (array, array, int64) if many else (array, int64)
    function = enter_many if many else enter
    made = compiled_function(function, boolean(*takes), nogil=nogil, error_model="numpy")
    return made.overloads[takes].entry_point


# ---- from Python


class _Layer(NamedTuple):
    """A layer of a stream, with a copy of its parameters."""

    cell: Cell
    params: tuple[Array, ...]
    sizes: tuple[int, int, int]  # D, H, P
    zoneout: Sequence[float]
    word: int  # numbers in a word of the products' operands (``plan.py``)
    state: Array  # (S, N, H), for a batch of one padded to whole vectors
    packed: dict[Any, Packed]  # its weights, by the function that makes a plan with them


def _layer(
    cell: Cell, given: Sequence[Any], zoneout: Sequence[float], N: int, bfloat16: bool
) -> _Layer:
    params = tuple(param.copy() for param in merge_bias(cell, given))
    D, H, dtype = given[0].shape[0], cell.hidden_size(given), params[2].dtype
    sizes = D, H, cell.output_size(given) if cell.projected else H
    word, packed = 2 if bfloat16 and dtype == np.float32 else 1, {}
    if is_quantised(given):
        word, packed = 4, {_in_panels: pack_quantised(cell, given)}
    lanes = VECTOR_BYTES // dtype.itemsize if N == 1 else 1
    state = zeros((len(cell.states), N, -(-H // lanes) * lanes), dtype)
    return _Layer(cell, params, sizes, zoneout, word, state, packed)


class NumbaStream:
    """A stack of layers with packed weights and its memory at hand.

    state  for each layer its states, (S, N, H), to be read and written
    out    the result of the last step
    """

    def __init__(
        self,
        given: Sequence[tuple[Any, ...]],
        affine: Sequence[Array] | None,
        N: int,
        shards: int,
        bfloat16: bool,
    ) -> None:
        layers = [_layer(*StreamLayer(*parts), N, bfloat16) for parts in given]
        dtype, H = layers[0].state.dtype, [layer.sizes[1] for layer in layers]
        self.state = [layer.state[:, :, :size] for layer, size in zip(layers, H, strict=True)]
        with warn_if_slow_compile(f"a stream of {layers[0].cell.name} ({dtype})"):
            top = pack_affine(affine) if affine is not None else None
            self._one = _Call(layers, top, N, 1, shards)
            self._many = _Call(layers, top, N, max(2, 4096 // max(N, 1)), shards)
            # a step of a microsecond need not let other Python threads in
            long = N * sum(param.size for parts in given for param in parts[1]) > 1 << 16
            self._enter = _entrance(False, dtype.name, int(N != 1), long)
            self._enter_many = _entrance(True, dtype.name, int(N != 1), True)
        self.out = self._one.out[0, 0] if N == 1 else self._one.out[:, 0]

    @property
    def stepping(self) -> tuple[Callable[[Any, int], bool], int]:
        """A step is the first of these, called with x and the second: the shortest way.

        x (N, inputs), or (inputs,) for a batch of one. The result is in ``out``. Returns False, and
        does nothing, where x is no such array of the stream's dtype (the very object), a number in
        it is not finite, or the numbers of a row are not aligned or do not lie side by side.
        """
        return (self._step_together if self._one.shared else self._enter), self._one.address

    @property
    def running(self) -> tuple[Callable[[Any, Any, int], bool], int]:
        """The same for some steps: a function of xs (N, T, inputs), out (N, T, outputs) and that.

        Returns False also where out is not C-contiguous, or shares memory with xs.
        """
        return (self._run_together if self._many.shared else self._enter_many), self._many.address

    def _step_together(self, x: Any, address: int) -> bool:
        if type(x) is np.ndarray and np.may_share_memory(x, self.out):
            x = x.copy()  # one thread would read what another has written
        return self._enter(x, address) and self._one.run_shared()

    def _run_together(self, xs: Any, out: Any, address: int) -> bool:
        return self._enter_many(xs, out, address) and self._many.run_shared()


class _Call:
    """A plan for calls, up to T steps of which are a block, and all that it has the address of."""

    def __init__(
        self, layers: Sequence[_Layer], top: Packed | None, N: int, T: int, shards: int
    ) -> None:
        self._shards, dtype = shards, layers[0].state.dtype
        lanes = VECTOR_BYTES // dtype.itemsize
        xs = np.zeros((N, T, layers[0].sizes[0]), dtype)
        words = {"x": address_of(xs), "x_row": xs.strides[0], "x_time": xs.strides[1]}
        self._kept: list[Any] = [layers, top, xs]
        self.plans = []
        for layer in layers:
            cell, params, (D, H, P), zoneout, word, _, packed = layer
            # below the affine layer whole vectors, a 1 behind h, by which the bias is multiplied
            below = top is not None and layer is layers[-1]
            wide = -(-(P + 1) // lanes) * lanes if below else P
            hs = zeros((N, T, wide), dtype)
            hs[:, :, P:], hs = 1, hs[:, :, :P]
            cut, options = choose_partition(cell, N, T, D, H, shards), StepOptions(zoneout=zoneout)
            if N == 1 == cut[0] == word and not cell.normalised:
                make, weights = _fused, packed.get(_fused) or fused_step.pack(cell, params)
            else:
                make = _in_panels
                weights = packed.get(make) or pack_weights(cell, params, word == 2)
            packed[make] = weights
            plan, memory = make(layer, xs, hs, cut, weights, options.features)
            if zoneout:
                there = OptionMemory(options, cell, N, T, H, dtype)
                write(plan, options=there.address)
                self._kept.append(there)
            self.plans.append(plan)
            self._kept += [memory, hs]
            xs = hs
        self.shared = [plan for plan in self.plans if plan[PLACES["shards"]] > 1]
        self.out = hs if top is None else np.zeros((N, T, top.columns), dtype)
        addresses = np.array([address_of(plan) for plan in self.plans])
        self._kernel = compiled(stream, dtype.name)
        self._words = np.array(StreamPlan(
            kernel=self._kernel, N=N, inputs=layers[0].sizes[0], alone=not self.shared,
            array_type=id(np.ndarray), dtype=id(np.dtype(dtype.type)), **words, T=T,
            out=address_of(self.out), out_row=self.out.strides[0], out_time=self.out.strides[1],
            block=T, layers=len(layers), plans=address_of(addresses), outputs=self.out.shape[2],
            **self._affine(top, P, T, dtype),
        ))  # fmt: skip
        self._kept.append(addresses)
        self.address = address_of(self._words)

    def _affine(self, top: Packed | None, P: int, T: int, dtype: Any) -> dict[str, int]:
        """The fields of the affine layer."""
        names = StreamPlan._fields[StreamPlan._fields.index("weights") :]
        fields = dict.fromkeys(names, 0)
        if top is None:
            return fields
        if top.word == 1:
            few = top.columns <= FEW_OUTPUTS
            return fields | {
                "multiply": 0 if few else compiled(gemm.multiply, dtype.name),
                "weights": top.addresses[0], "inner": P + 1, "panel": (P + 1 | 1) * VECTOR_BYTES,
            }  # fmt: skip
        inner, lanes = -(-P // 4), VECTOR_BYTES // 4
        lines = -(-inner // lanes)
        row = (lines + 1 | 1) * VECTOR_BYTES
        words, (weights, bias) = aligned(T * row, dtype), top.addresses
        self._kept.append(words)
        return fields | {
            "multiply": compiled(gemm.multiply_int8, dtype.name), "weights": weights,
            "inner": inner, "panel": (inner + 2 | 1) * VECTOR_BYTES, "bias": bias,
            "round_columns": compiled(quantise_columns, dtype.name), "words": words[1],
            "words_row": row, "scales": words[1] + lines * VECTOR_BYTES, "h_size": P,
        }  # fmt: skip

    def run_shared(self) -> bool:
        """Run it with the team's help."""
        threads.team.run(self._kernel, self.address, self._shards, self.shared)
        return True


def _fused(
    layer: _Layer, xs: Array, hs: Array, cut: Any, weights: Packed, features: frozenset[str]
) -> tuple[Array, Any]:
    """A plan for ``fused_step.py``, and its memory."""
    cell, (states, _, numbers), dtype = layer.cell, layer.state.shape, layer.state.dtype
    (_, T, D), (_, H, _), row = xs.shape, layer.sizes, numbers * dtype.itemsize
    memory = zeros((states + 1 + len(cell.gates), numbers), dtype)
    big = sum(param.nbytes for param in layer.params) > 1 << 15
    projects = T > 1 and (D >= 64 or (D >= 8 and big))  # measured
    steps, panels = (min(T, 64), row // VECTOR_BYTES * layout(cell).x_gates) if projects else (T, 0)
    x_proj = zeros((max(1, panels * (steps | 1)), VECTOR_BYTES // dtype.itemsize), dtype)
    with compiling(cell, "step", dtype.name):
        entry = compiled(fused_step.fused_steps, dtype.name, cell, features)
    write(
        plan := np.zeros(threads.PLAN_WORDS, np.int64),
        entry=entry, multiply=compiled(gemm.multiply, dtype.name) if projects else 0, shards=1,
        T=1, steps=steps, states=states, state_step=row, D=D, H=H, P=hs.shape[2],
        size=dtype.itemsize, xs=address_of(xs), xs_time=xs.strides[1], pWx=weights.addresses[0],
        hs=address_of(hs), hs_row=hs.strides[0], hs_time=hs.strides[1], x_proj=address_of(x_proj),
        state=address_of(layer.state), last_state=address_of(memory),
        operand=address_of(memory[states]), op_proj=address_of(memory[states + 1 :]),
    )  # fmt: skip
    return plan, (memory, x_proj)


def _in_panels(
    layer: _Layer, xs: Array, hs: Array, cut: Any, weights: Packed, features: frozenset[str]
) -> tuple[Array, Any]:
    """A plan for ``forward.py``, and its memory."""
    cell, params, state = layer.cell, layer.params, layer.state
    sizes, dtype = (*xs.shape, layer.sizes[1], hs.shape[2]), state.dtype
    features = compiled_features(features, False)
    made = plan_template(
        forward, cell, dtype, *sizes, *cut, keep=False, features=features, word=weights.word,
        packed=True,
    )  # fmt: skip
    memory = aligned(made.scratch_bytes, dtype), aligned(made.kept_bytes, dtype)
    (_, scratch), (_, kept) = memory
    plan = made.with_arrays(xs, params, state, state, hs, scratch=scratch, kept=kept)
    write_packed(plan, weights)
    if xs.shape[:2] == (1, 1) and weights.word == 1:  # panels of one row are the row itself
        write(plan, state=address_of(state))
    return plan, memory
