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

from llvmlite import ir
from numba.core import types

from ..layout import EPSILON
from .frames import arguments, call, emits, part_of_a_piece
from .lowering import (
    add_early_side,
    add_late_side,
    add_x_side,
    load_bias,
    store_early_numbers,
    store_late_numbers,
)
from .sequence import from_number, lanes_at, place_of, read_step
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

ROWS = 4  # that are normalised together

# ---- pieces for a cell


def early_numbers(frame):
    """A piece: normalises a step's gates that do not wait for the operand."""
    plan, step = read_step(frame)
    for n in range(0, step.rows, plan.rows_at_once):
        rows = min(plan.rows_at_once, step.rows - n)
        for u in range(step.u0, step.u1):
            bias = load_bias(frame, place_of(step.b, u, 0), plan.b_row, lanes_at(frame, plan, u))
            for row in range(n * VECTOR_BYTES, (n + rows) * VECTOR_BYTES, VECTOR_BYTES):
                gates = add_x_side(frame, bias, place_of(step.x_side, u, row))
                gates = add_early_side(frame, gates, place_of(step.early_side, u, row))
                store_early_numbers(frame, gates, place_of(step.normalised, u, row))
        numbers = from_number(step.normalised, 0)
        call_standardise(plan, numbers, plan.normalised_early, n, rows)


def late_numbers(frame):
    """A piece: normalises a step's gates that do."""
    plan, step = read_step(frame)
    for n in range(0, step.rows, plan.rows_at_once):
        rows = min(plan.rows_at_once, step.rows - n)
        for u in range(step.u0, step.u1):
            bias = load_bias(frame, place_of(step.b, u, 0), plan.b_row, lanes_at(frame, plan, u))
            for row in range(n * VECTOR_BYTES, (n + rows) * VECTOR_BYTES, VECTOR_BYTES):
                gates = add_x_side(frame, bias, place_of(step.x_side, u, row))
                gates = add_late_side(frame, gates, place_of(step.late_side, u, row))
                store_late_numbers(frame, gates, place_of(step.normalised, u, row))
        numbers = from_number(step.normalised, plan.normalised_early)
        call_standardise(plan, numbers, plan.normalised_late, n, rows)


@part_of_a_piece
def call_standardise(plan, numbers, gates, n, rows):
    """Normalise some rows, from row n of the shard on, while they are in the first cache."""
    call(plan.standardise, (
        numbers.start + n * VECTOR_BYTES, numbers.panel, gates, plan.units, plan.H, rows,
        plan.N * VECTOR_BYTES,
    ))  # fmt: skip


# ---- pieces for a dtype: four rows at a time, so that none waits for its own sums


def standardise(frame):
    """A piece: normalises the rows of some gates, in place."""
    start, panel, gates, units, H, rows, ahead = arguments(frame, 7)
    last, end = (units - 1) * panel, units * panel
    in_use, share = lanes_in_use(frame, H - (units - 1) * lanes_of(frame)), 1.0 / H
    for gate in range(gates):
        first = start + gate * (end + panel)
        for row in range(first, first + rows * VECTOR_BYTES, ROWS * VECTOR_BYTES):
            # behind the last row, the last again
            a, bottom = row, first + (rows - 1) * VECTOR_BYTES
            b, c, d = next_row(a, bottom), next_row(a, bottom, 2), next_row(a, bottom, 3)
            sum_a = where(in_use, load(frame, a + last), 0.0)
            sum_b = where(in_use, load(frame, b + last), 0.0)
            sum_c = where(in_use, load(frame, c + last), 0.0)
            sum_d = where(in_use, load(frame, d + last), 0.0)
            for p in range(0, last, panel):
                sum_a, sum_b = sum_a + load(frame, a + p), sum_b + load(frame, b + p)
                sum_c, sum_d = sum_c + load(frame, c + p), sum_d + load(frame, d + p)
            mean_a, mean_b, mean_c, mean_d = rows_of(sums(sum_a, sum_b, sum_c, sum_d) * share)
            # a mean was rounded as roughly as the numbers are: what it is off is taken off as well
            sum_a = where(in_use, load(frame, a + last) - mean_a, 0.0)
            sum_b = where(in_use, load(frame, b + last) - mean_b, 0.0)
            sum_c = where(in_use, load(frame, c + last) - mean_c, 0.0)
            sum_d = where(in_use, load(frame, d + last) - mean_d, 0.0)
            square_a, square_b = sum_a * sum_a, sum_b * sum_b
            square_c, square_d = sum_c * sum_c, sum_d * sum_d
            for p in range(0, last, panel):
                x, y = load(frame, a + p) - mean_a, load(frame, b + p) - mean_b
                sum_a, sum_b = sum_a + x, sum_b + y
                square_a, square_b = fma(x, x, square_a), fma(y, y, square_b)
                x, y = load(frame, c + p) - mean_c, load(frame, d + p) - mean_d
                sum_c, sum_d = sum_c + x, sum_d + y
                square_c, square_d = fma(x, x, square_c), fma(y, y, square_d)
            off = sums(sum_a, sum_b, sum_c, sum_d) * share
            variance = sums(square_a, square_b, square_c, square_d) * share - off * off
            factor = 1.0 / square_root(maximum(variance, 0.0) + EPSILON)
            off_a, off_b, off_c, off_d = rows_of(off * factor)
            factor_a, factor_b, factor_c, factor_d = rows_of(factor)
            for p in range(0, end, panel):
                w = (load(frame, a + p) - mean_a) * factor_a - off_a
                x = (load(frame, b + p) - mean_b) * factor_b - off_b
                y = (load(frame, c + p) - mean_c) * factor_c - off_c
                z = (load(frame, d + p) - mean_d) * factor_d - off_d
                if p == last:
                    w, x = where(in_use, w, 0.0), where(in_use, x, 0.0)
                    y, z = where(in_use, y, 0.0), where(in_use, z, 0.0)
                put(frame, w, a + p, ahead)
                put(frame, x, b + p, ahead)
                put(frame, y, c + p, ahead)
                put(frame, z, d + p, ahead)
            put(frame, factor_a, a + end, ahead)
            put(frame, factor_b, b + end, ahead)
            put(frame, factor_c, c + end, ahead)
            put(frame, factor_d, d + end, ahead)


def denormalise(frame):
    """A piece: the gradients of a gate's rows, in place."""
    delta, delta_panel, given, panel, units, H, rows, ahead = arguments(frame, 8)
    last, bottom = units - 1, (rows - 1) * VECTOR_BYTES
    in_use, share = lanes_in_use(frame, H - last * lanes_of(frame)), 1.0 / H
    for a in range(0, rows * VECTOR_BYTES, ROWS * VECTOR_BYTES):
        b, c, d = next_row(a, bottom), next_row(a, bottom, 2), next_row(a, bottom, 3)
        grad, norm = delta + last * delta_panel, given + last * panel
        sum_a = where(in_use, load(frame, grad + a), 0.0)
        sum_b = where(in_use, load(frame, grad + b), 0.0)
        sum_c = where(in_use, load(frame, grad + c), 0.0)
        sum_d = where(in_use, load(frame, grad + d), 0.0)
        along_a, along_b = sum_a * load(frame, norm + a), sum_b * load(frame, norm + b)
        along_c, along_d = sum_c * load(frame, norm + c), sum_d * load(frame, norm + d)
        for u in range(last):
            grad, norm = delta + u * delta_panel, given + u * panel
            x, y = load(frame, grad + a), load(frame, grad + b)
            sum_a, along_a = sum_a + x, fma(x, load(frame, norm + a), along_a)
            sum_b, along_b = sum_b + y, fma(y, load(frame, norm + b), along_b)
            x, y = load(frame, grad + c), load(frame, grad + d)
            sum_c, along_c = sum_c + x, fma(x, load(frame, norm + c), along_c)
            sum_d, along_d = sum_d + y, fma(y, load(frame, norm + d), along_d)
        mean_a, mean_b, mean_c, mean_d = rows_of(sums(sum_a, sum_b, sum_c, sum_d) * share)
        slope_a, slope_b, slope_c, slope_d = rows_of(
            sums(along_a, along_b, along_c, along_d) * share
        )
        norm = given + units * panel
        factor_a, factor_b = load(frame, norm + a), load(frame, norm + b)
        factor_c, factor_d = load(frame, norm + c), load(frame, norm + d)
        prefetch(norm + a - ahead)
        prefetch(norm + b - ahead)
        prefetch(norm + c - ahead)
        prefetch(norm + d - ahead)
        for u in range(units):
            grad, norm = delta + u * delta_panel, given + u * panel
            w = load(frame, grad + a) - mean_a - load(frame, norm + a) * slope_a
            x = load(frame, grad + b) - mean_b - load(frame, norm + b) * slope_b
            y = load(frame, grad + c) - mean_c - load(frame, norm + c) * slope_c
            z = load(frame, grad + d) - mean_d - load(frame, norm + d) * slope_d
            store(frame, factor_a * w, grad + a)
            store(frame, factor_b * x, grad + b)
            store(frame, factor_c * y, grad + c)
            store(frame, factor_d * z, grad + d)


@part_of_a_piece
def next_row(row, bottom, step=1):
    """The address of a row further down, at most of the bottom one."""
    return min(row + step * VECTOR_BYTES, bottom)


@part_of_a_piece
def put(frame, numbers, place, ahead):
    """Store numbers, and ask for where the next step's will be: their memory is new every step."""
    store(frame, numbers, place)
    prefetch_to_write(place + ahead)


# ---- across lanes


def _mask_of(frame, *rest):
    return MaskType(VectorType(frame.dtype).lanes)


@emits(_mask_of)
def lanes_in_use(builder, frame, lanes):
    """The first ``lanes`` lanes."""
    return emit_lanes_in_use(builder, VectorType(frame.dtype), lanes)


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
