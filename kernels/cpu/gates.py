"""The gate arithmetic of one step, for some rows of the batch and some units.

It runs between the products of two steps: a cell's own functions, on vectors of W units. All
numbers are in panels (``schedule.py`` says where). Every kernel takes (plan, chunk, k, n0, n1, u0,
u1): the rows n0..n1 of the batch and the unit-panels u0..u1 of step k of a chunk.

The gradient dstate has one member more than there are states: what came back through h Wh. With a
recurrent mask the state has one more, too: h times the mask, which is what h Wh multiplies.
"""

from .option_io import (
    add_dinitial,
    begin_backward,
    draw_of,
    end_backward,
    end_step,
    flags_of,
    load_options,
    select_live,
    store_masked_h,
    store_trace,
    times_recurrent_mask,
)
from .plan_kernels import read_record
from .schedule import (
    from_number,
    hs_at,
    place_of,
    read_step,
    row_of_hs,
    rows_at,
    units_from,
)
from .simd import VECTOR_BYTES, load, load_part, store, store_part
from .tuple_io import (
    add_h_proj,
    add_op_proj,
    add_x_proj,
    backward,
    forward,
    insert_normalised,
    insert_normalised_early,
    load_bias,
    load_extra,
    load_gradients,
    load_saved,
    load_states,
    operand,
    operand_backward,
    prefetch_saved,
    store_extra,
    store_gradients,
    store_gradients_but_late,
    store_saved,
    store_states,
    zeros_for_none,
    zeros_state,
)


def forward_gates(ctx):
    """A kernel: from the products of a step to the state after it."""
    plan, step = read_step(ctx)
    t, keep, b_row, record = step.t, plan.keep, plan.b_row, read_record(plan.options)
    (flags, flags_row), row_bytes, draws = flags_of(plan, t), plan.H * plan.size, plan.draws
    hs, hs_row, members, padded = hs_at(plan, t), plan.hs_row, plan.hs_members, plan.hs_padded
    h_lacks = plan.H - plan.P
    for u in range(step.u0, step.u1):
        left = units_from(ctx, plan, u)
        bias = load_bias(ctx, place_of(step.b, u, 0), b_row, left)
        for k in range(step.rows):
            n, row = step.n0 + k, k * VECTOR_BYTES
            gates = add_x_proj(ctx, bias, place_of(step.x_proj, u, row))
            gates = add_h_proj(ctx, gates, place_of(step.h_proj, u, row))
            gates = add_op_proj(ctx, gates, place_of(step.op_proj, u, row))
            gates = insert_normalised(ctx, gates, place_of(step.normalised, u, row))
            before = load_states(ctx, place_of(step.state, u, row))
            new, saved = forward(ctx, gates, before)
            if keep:
                store_saved(ctx, saved, place_of(step.saved, u, row))
            flag, draw = flags + n * flags_row, draw_of(ctx, draws, t, n)
            options = load_options(ctx, record, flag, draw, u, left, row_bytes)
            new, out, extra = end_step(ctx, new, before, options)
            if keep:
                store_extra(ctx, extra, place_of(step.saved, u, row))
            store_states(ctx, new, place_of(step.after, u, row))
            hs_place = hs + row_of_hs(n, hs_row, members, padded) + u * VECTOR_BYTES
            store_part(ctx, out[0], hs_place, left - h_lacks)
            masked_h_address, _ = place_of(step.after, u, row + len(new) * step.after.number)
            store_masked_h(ctx, plan, record, n, u, left, new[0], masked_h_address)


def operand_gates(ctx):
    """A kernel: the operand of a step's second product."""
    plan, step = read_step(ctx)
    t, b_row, record = step.t, plan.b_row, read_record(plan.options)
    (flags, flags_row), draws = flags_of(plan, t), plan.draws
    for u in range(step.u0, step.u1):
        left = units_from(ctx, plan, u)
        bias = load_bias(ctx, place_of(step.b, u, 0), b_row, left)
        for k in range(step.rows):
            n, row = step.n0 + k, k * VECTOR_BYTES
            gates = add_x_proj(ctx, bias, place_of(step.x_proj, u, row))
            gates = add_h_proj(ctx, gates, place_of(step.h_proj, u, row))
            gates = insert_normalised_early(ctx, gates, place_of(step.normalised, u, row))
            before = load_states(ctx, place_of(step.state, u, row))
            flag, draw = flags + n * flags_row, draw_of(ctx, draws, t, n)
            options = load_options(ctx, record, flag, draw, u, left, plan.H * plan.size)
            number = (operand(ctx, gates, before),)
            number = select_live(ctx, number, zeros_state(ctx)[:1], options)[0]
            if not plan.operand_gate:
                number = times_recurrent_mask(ctx, plan, record, n, u, left, number)
            store(ctx, number, place_of(step.operand, u, row)[0])


def backward_gates(ctx):
    """A kernel: from the gradient of the state after a step to those of its gates and old state."""
    plan, step = read_step(ctx)
    t, record, row_bytes = step.t, read_record(plan.options), plan.H * plan.size
    (flags, flags_row), draws = flags_of(plan, t), plan.draws
    dhs, dhs_row, members, padded = hs_at(plan, t), plan.hs_row, plan.hs_members, plan.hs_padded
    before_step, dhs_time = rows_at(plan, max(t - 1, 0)) * VECTOR_BYTES, dhs - hs_at(plan, t - 1)
    through_h, h_lacks = from_number(step.dstate, plan.states), plan.H - plan.P
    for u in range(step.u0, step.u1):
        left = units_from(ctx, plan, u)
        for k in range(step.rows):
            n, row = step.n0 + k, k * VECTOR_BYTES
            dhs_place = dhs + row_of_hs(n, dhs_row, members, padded) + u * VECTOR_BYTES
            state, normalised = place_of(step.state, u, row), place_of(step.normalised, u, row)
            saved, dstate_place = place_of(step.saved, u, row), place_of(step.dstate, u, row)
            prefetch_saved(ctx, saved, state, normalised, before_step, dhs_place - dhs_time)
            dh = load_part(ctx, dhs_place, left - h_lacks)
            h_grad = load(ctx, place_of(through_h, u, row)[0])
            h_grad = (times_recurrent_mask(ctx, plan, record, n, u, left, h_grad),)
            flag, draw = flags + n * flags_row, draw_of(ctx, draws, t, n)
            options = load_options(ctx, record, flag, draw, u, left, row_bytes)
            dstate, extra = load_states(ctx, dstate_place), load_extra(ctx, saved)
            dnew, dskip, dinitial, dstate = begin_backward(
                ctx, dstate, h_grad, (dh,), extra, options
            )
            add_dinitial(ctx, plan, record, n, u, options.resets, dinitial)
            store_trace(ctx, plan, record, flag, u, left, dstate)
            after, weights = place_of(step.after, u, row), place_of(step.weights, u, 0)
            numbers = load_saved(ctx, saved, after, weights, left, normalised)
            dgates, dold = backward(ctx, dnew, numbers, load_states(ctx, state))
            dgates, dold = zeros_for_none(ctx, dgates), zeros_for_none(ctx, dold)
            dgates, dold = end_backward(ctx, dgates, dold, dskip, options)
            store_gradients(ctx, dgates, place_of(step.dgates, u, row))
            store_states(ctx, dold, dstate_place)


def operand_backward_gates(ctx):
    """A kernel: add what comes back through the second product to a step's gradients."""
    plan, step = read_step(ctx)
    t, record = step.t, read_record(plan.options)
    (flags, flags_row), draws = flags_of(plan, t), plan.draws
    for u in range(step.u0, step.u1):
        left = units_from(ctx, plan, u)
        for k in range(step.rows):
            n, row = step.n0 + k, k * VECTOR_BYTES
            dgates_place, dstate_place = (
                place_of(step.dgates, u, row),
                place_of(step.dstate, u, row),
            )
            dgates, dold = load_gradients(ctx, dgates_place), load_states(ctx, dstate_place)
            saved, after = place_of(step.saved, u, row), place_of(step.after, u, row)
            weights, normalised = place_of(step.weights, u, 0), place_of(step.normalised, u, row)
            numbers = load_saved(ctx, saved, after, weights, left, normalised)
            before = load_states(ctx, place_of(step.state, u, row))
            incoming = load(ctx, place_of(step.doperand, u, row)[0])
            if not plan.operand_gate:
                incoming = times_recurrent_mask(ctx, plan, record, n, u, left, incoming)
            more, old = operand_backward(ctx, incoming, dgates, dold, numbers, before)
            flag, draw = flags + n * flags_row, draw_of(ctx, draws, t, n)
            options = load_options(ctx, record, flag, draw, u, left, plan.H * plan.size)
            dgates, dold = (
                select_live(ctx, more, dgates, options),
                select_live(ctx, old, dold, options),
            )
            store_gradients_but_late(ctx, dgates, dgates_place)
            store_states(ctx, dold, dstate_place)
