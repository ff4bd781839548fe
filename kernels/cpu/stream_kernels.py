"""A stream in compiled code: its kernel, and the functions by which Python calls it."""

from llvmlite import ir
from numba.core import types

from .gemm import Product
from .kernel_abi import (
    arguments_address,
    array_at,
    as_object,
    call,
    call_at,
    emits,
    is_array,
    jitted,
    load_i64,
    record,
    release_gil,
    take_gil,
)
from .layer_norm import load_four, multiply, multiply_add, sums
from .panels import Rounding
from .plan_kernels import read_plan
from .simd import VECTOR_BYTES, all_lanes, lanes_of, load, load_part, store, store_part
from .streaming import StreamPlan

_read_stream = record(StreamPlan)
_CARRAY = 0x501  # flags of an array: C-contiguous, aligned, writable


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
            call(me.multiply, Product(
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
def _fits(ctx, me, x, ndim, N, row, T, time):
    """Whether N times T rows of an array are aligned, their numbers side by side and finite."""
    last, inputs, size = ndim - 1, me.inputs, VECTOR_BYTES // lanes_of(ctx)
    if N != me.N or load_i64(x.shape, last) != inputs or (x.data | row | time) % size:
        return False
    if N and load_i64(x.strides, last) != size:
        return False
    dense = time == inputs * size
    for n in range(N):
        for t in range(1 if dense else T):
            address = x.data + n * row + t * time
            if not _finite(ctx, address, T * inputs if dense else inputs):
                return False
    return True


@jitted
def _is_result(ctx, me, out, rows, N, T, outputs, x):
    """Whether the result may be written to an array: one that shares no memory with x."""
    if out.flags & _CARRAY != _CARRAY or load_i64(out.shape, 0) != (N if rows else T):
        return False
    if load_i64(out.shape, rows) != T or load_i64(out.shape, rows + 1) != outputs:
        return False
    size = VECTOR_BYTES // lanes_of(ctx)
    first, end = x.data, x.data + size
    for k in range(rows + 2):
        way = (load_i64(x.shape, k) - 1) * load_i64(x.strides, k)
        first, end = first + min(way, 0), end + max(way, 0)
    return N == 0 or end <= out.data or out.data + N * T * outputs * size <= first


# ---- from Python


def _stepping(rows, long):
    """A function that puts a call's array into a ``StreamPlan``, and runs the stream if ``alone``.

    It returns False, and does nothing, where an object is no array that fits, where a number is
    not finite, or out shares memory with x.

    rows  how many axes the arrays have for the batch: 0 or 1
    long  whether other threads of Python may run meanwhile
    """

    def enter(ctx, x):  # x (inputs,) or (N, inputs)
        address = array_at(arguments_address(ctx)).data
        me, x = _read_stream(address), array_at(x)
        if not is_array(me, x, rows + 1):
            return as_object(me, False)
        N, row = (load_i64(x.shape, 0), load_i64(x.strides, 0)) if rows else (1, 0)
        if not _fits(ctx, me, x, rows + 1, N, row, 1, row):
            return as_object(me, False)
        me.x, me.x_row = x.data, row
        if me.alone:
            if long:
                state = release_gil()
                call_at(me.kernel, address)
                take_gil(state)
            else:
                call_at(me.kernel, address)
        return as_object(me, True)

    return enter


def _running(rows):
    """The same for some steps."""

    def enter(ctx, objects, count):
        address = array_at(arguments_address(ctx)).data
        me = _read_stream(address)
        # x (T, inputs) or (N, T, inputs); out likewise
        x, out = array_at(load_i64(objects, 0)), array_at(load_i64(objects, 1))
        if not (is_array(me, x, rows + 2) and is_array(me, out, rows + 2)):
            return as_object(me, False)
        N, row = (load_i64(x.shape, 0), load_i64(x.strides, 0)) if rows else (1, 0)
        T, time, outputs = load_i64(x.shape, rows), load_i64(x.strides, rows), me.outputs
        if T == 0 or not _is_result(ctx, me, out, rows, N, T, outputs, x):
            return as_object(me, False)
        state = release_gil()
        fits = _fits(ctx, me, x, rows + 2, N, row, T, time)
        if fits:
            me.x, me.x_row, me.x_time, me.T, me.out = x.data, row, time, T, out.data
            me.out_time = outputs * VECTOR_BYTES // lanes_of(ctx)
            me.out_row = T * me.out_time
            if me.alone:
                call_at(me.kernel, address)
        take_gil(state)
        return as_object(me, fits)

    return enter


step, step_batch = _stepping(0, False), _stepping(1, False)
step_long, step_batch_long = _stepping(0, True), _stepping(1, True)
run, run_batch = _running(0), _running(1)
