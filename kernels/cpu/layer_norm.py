"""Layer normalisation: what happens to normalised gates between the products and the cell.

The pre-activations of such gates are written to panels of their own and normalised there, some
rows at a time, which stay in the first cache; the cell finds them there, in both passes.

    normalised   gate k of ``Layout.normalised``, unit-panel u: panel k * (units + 1) + u;
                 the last of a gate's panels: 1 / deviation, in every lane

    forward      early_numbers -> standardise    (the same again with late_numbers, once the
                                                  operand is there)
    backward     denormalise: from the gradient by what the cell was given to that by what
                 ``*_numbers`` gave, in place

A row needs all of its units, so shards share such a cell's work by rows.
"""

import operator
from typing import NamedTuple

from llvmlite import ir
from numba.core import types

from ..layout import EPSILON
from .kernel_abi import arguments, call, emits, jitted
from .schedule import from_number, place_of, read_step, rows_at, units_from
from .simd import (
    VECTOR_BYTES,
    MaskType,
    VectorType,
    emit_lanes_in_use,
    fma,
    lanes_of,
    load,
    maximum,
    prefetch,
    prefetch_to_write,
    square_root,
    store,
    where,
)
from .tuple_io import (
    add_h_proj,
    add_op_proj,
    add_x_proj,
    load_bias,
    store_early_numbers,
    store_late_numbers,
)

ROWS = 4  # that are normalised together

# ---- kernels for a cell


def early_numbers(ctx):
    """A kernel: normalises a step's gates that do not wait for the operand."""
    plan, step = read_step(ctx)
    count, out = plan.normalised_early, step.normalised
    _normalise(ctx, plan, step, step.h_proj, add_h_proj, store_early_numbers, out, count)


def late_numbers(ctx):
    """A kernel: normalises a step's gates that do."""
    plan, step = read_step(ctx)
    count, out = plan.normalised_late, from_number(step.normalised, plan.normalised_early)
    _normalise(ctx, plan, step, step.op_proj, add_op_proj, store_late_numbers, out, count)


@jitted
def _normalise(ctx, plan, step, side, add_side, store_numbers, out, count):
    """Normalise ``count`` gates, from ``out`` on, some rows at a time."""
    for n in range(0, step.rows, plan.rows_at_once):
        rows = min(plan.rows_at_once, step.rows - n)
        for u in range(step.u0, step.u1):
            bias = load_bias(ctx, place_of(step.b, u, 0), plan.b_row, units_from(ctx, plan, u))
            for row in range(n * VECTOR_BYTES, (n + rows) * VECTOR_BYTES, VECTOR_BYTES):
                gates = add_x_proj(ctx, bias, place_of(step.x_proj, u, row))
                gates = add_side(ctx, gates, place_of(side, u, row))
                store_numbers(ctx, gates, place_of(step.normalised, u, row))
        call(plan.standardise, Standardising(
            numbers=out.start + n * VECTOR_BYTES, panel=out.panel, gates=count, units=plan.units,
            H=plan.H, rows=rows, ahead=rows_at(plan, step.t) * VECTOR_BYTES,
        ))  # fmt: skip


# ---- kernels for a dtype: four rows at a time, so that none waits for its own sums


class Standardising(NamedTuple):
    """Numbers of some gates to be normalised in place; ``ahead`` bytes from a step to the next."""

    numbers: int
    panel: int
    gates: int
    units: int
    H: int
    rows: int
    ahead: int


class Denormalising(NamedTuple):
    """A gate's gradients to be changed in place, and the numbers that were normalised."""

    dgates: int
    dgates_panel: int
    numbers: int
    panel: int
    units: int
    H: int
    rows: int
    ahead: int


def standardise(ctx):
    """A kernel: normalises the rows of some gates, in place."""
    start, panel, gates, units, H, rows, ahead = arguments(ctx, Standardising)
    last, end = (units - 1) * panel, units * panel
    in_use, share = lanes_in_use(ctx, H - (units - 1) * lanes_of(ctx)), 1.0 / H
    for gate in range(gates):
        first = start + gate * (end + panel)
        for row in range(0, rows * VECTOR_BYTES, ROWS * VECTOR_BYTES):
            places = four_rows(first, row, rows)
            total = select(in_use, load_four(ctx, places, last))
            for p in range(0, last, panel):
                total = add(total, load_four(ctx, places, p))
            mean = rows_of(sums(*total) * share)
            # a mean was rounded as roughly as the numbers are: what it is off is taken off as well
            total = select(in_use, subtract(load_four(ctx, places, last), mean))
            squares = multiply(total, total)
            for p in range(0, last, panel):
                x = subtract(load_four(ctx, places, p), mean)
                total, squares = add(total, x), multiply_add(x, x, squares)
            off = sums(*total) * share
            variance = sums(*squares) * share - off * off
            deviations = 1.0 / square_root(maximum(variance, 0.0) + EPSILON)
            off, factor = rows_of(off * deviations), rows_of(deviations)
            for p in range(0, end, panel):
                x = subtract(load_four(ctx, places, p), mean)
                x = subtract(multiply(x, factor), off)
                if p == last:
                    x = select(in_use, x)
                put_four(ctx, x, places, p, ahead)
            put_four(ctx, factor, places, end, ahead)


def denormalise(ctx):
    """A kernel: the gradients of a gate's rows, in place."""
    dgates, dgates_panel, numbers, panel, units, H, rows, ahead = arguments(ctx, Denormalising)
    last = units - 1
    in_use, share = lanes_in_use(ctx, H - last * lanes_of(ctx)), 1.0 / H
    for row in range(0, rows * VECTOR_BYTES, ROWS * VECTOR_BYTES):
        grads, norms = four_rows(dgates, row, rows), four_rows(numbers, row, rows)
        total = select(in_use, load_four(ctx, grads, last * dgates_panel))
        along = multiply(total, load_four(ctx, norms, last * panel))
        for u in range(last):
            x = load_four(ctx, grads, u * dgates_panel)
            along = multiply_add(x, load_four(ctx, norms, u * panel), along)
            total = add(total, x)
        mean, slope = rows_of(sums(*total) * share), rows_of(sums(*along) * share)
        factor = load_four(ctx, norms, units * panel)
        for place in norms:
            prefetch(place + units * panel - ahead)
        for u in range(units):
            x = subtract(load_four(ctx, grads, u * dgates_panel), mean)
            x = subtract(x, multiply(load_four(ctx, norms, u * panel), slope))
            put_four(ctx, multiply(factor, x), grads, u * dgates_panel, 0)


# ---- numbers of four rows


@jitted
def four_rows(start, row, rows):
    """The addresses of four rows from one on; behind the last row, the last again."""
    last = start + (rows - 1) * VECTOR_BYTES
    a, b, c = start + row, start + row + VECTOR_BYTES, start + row + 2 * VECTOR_BYTES
    return a, min(b, last), min(c, last), min(c + VECTOR_BYTES, last)


def _each(f):
    """A function of numbers of four rows, row by row."""

    @jitted
    def apply(x, y):
        return f(x[0], y[0]), f(x[1], y[1]), f(x[2], y[2]), f(x[3], y[3])

    return apply


add, subtract, multiply = map(_each, (operator.add, operator.sub, operator.mul))


@jitted
def multiply_add(x, y, z):
    a, b, c, d = z
    return fma(x[0], y[0], a), fma(x[1], y[1], b), fma(x[2], y[2], c), fma(x[3], y[3], d)


@jitted
def select(mask, x):
    """x where the mask holds, else 0."""
    a, b, c, d = x
    return where(mask, a, 0.0), where(mask, b, 0.0), where(mask, c, 0.0), where(mask, d, 0.0)


@jitted
def load_four(ctx, places, skip):
    a, b, c, d = places[0] + skip, places[1] + skip, places[2] + skip, places[3] + skip
    return load(ctx, a), load(ctx, b), load(ctx, c), load(ctx, d)


@jitted
def put_four(ctx, numbers, places, skip, ahead):
    """Store numbers, and ask for where the next step's will be: their memory is new every step."""
    for k in range(ROWS):
        store(ctx, numbers[k], places[k] + skip)
        if ahead:
            prefetch_to_write(places[k] + skip + ahead)


# ---- across lanes


def _mask_of(ctx, *rest):
    return MaskType(VectorType(ctx.dtype).lanes)


@emits(_mask_of)
def lanes_in_use(builder, ctx, lanes):
    """The first ``lanes`` lanes."""
    return emit_lanes_in_use(builder, VectorType(ctx.dtype), lanes)


def _shuffle(builder, a, b, lanes):
    order = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
    return builder.shuffle_vector(a, b, order)


@emits(lambda a, b, c, d: a)
def sums(builder, a, b, c, d):
    """The sum of each of four vectors: of the first in the first quarter's lanes, and so on.

    A vector's numbers are added up in pairs, always the same ones, whichever of the four it is.
    """
    lanes, quarter = a.type.count, a.type.count // ROWS

    def halved(a, b, part):
        """a's sum of pairs, then b's: lanes apart by half of a ``part`` of a vector."""
        low = [k for k in range(lanes) if k % part < part // 2]
        low += [lanes + k for k in low]
        high = [k + part // 2 for k in low]
        return builder.fadd(_shuffle(builder, a, b, low), _shuffle(builder, a, b, high))

    a, c = halved(a, b, lanes), halved(c, d, lanes)
    total, distance = halved(a, c, lanes // 2), quarter // 2
    while distance:
        other = _shuffle(builder, total, total, [k ^ distance for k in range(lanes)])
        total, distance = builder.fadd(total, other), distance // 2
    return total


@emits(lambda numbers: types.UniTuple(numbers, ROWS))
def rows_of(builder, numbers):
    """Four vectors, each with one quarter's number in every lane."""
    lanes = numbers.type.count
    first = [k * lanes // ROWS for k in range(ROWS)]
    return [_shuffle(builder, numbers, numbers, [k] * lanes) for k in first]
