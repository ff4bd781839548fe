"""The gate arithmetic of one step, for some rows of the batch and some units.

It runs between the products of two steps: a cell's own functions, on vectors of W units. All
numbers are in panels (``schedule.py`` says where). Every piece takes (plan, chunk, k, n0, n1, u0,
u1): the rows n0..n1 of the batch and the units u0..u1 of step k of a chunk.
"""

from .option_io import (
    add_dinitial,
    add_output_gradient,
    add_states,
    apply_options,
    apply_reset,
    load_options,
    options_backward,
    reset_backward,
    scaled,
    select_live,
    store_scaled,
    store_trace,
)
from .plan import read_options
from .schedule import from_number, lanes_at, place_of, read_step
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
    load_gradients,
    load_kept,
    load_saved,
    load_states,
    operand,
    operand_backward,
    prefetch_saved,
    store_gradients,
    store_gradients_but_late,
    store_kept,
    store_saved,
    store_states,
    zeros_for_none,
    zeros_gates,
    zeros_state,
)


def forward_gates(frame):
    """A piece: from the products of a step to the state after it."""
    plan, step = read_step(frame)
    t, keep, b_row, options = step.t, plan.keep, plan.b_row, read_options(plan.options)
    T, row_bytes = plan.T, plan.H * plan.size
    hs, hs_row = plan.hs + t * plan.hs_time + step.n0 * plan.hs_row, plan.hs_row
    narrower = plan.H - plan.P
    for u in range(step.u0, step.u1):
        lanes = lanes_at(frame, plan, u)
        bias = load_bias(frame, place_of(step.b, u, 0), b_row, lanes)
        for k in range(step.rows):
            n, row = step.n0 + k, k * VECTOR_BYTES
            gates = add_x_proj(frame, bias, place_of(step.x_proj, u, row))
            gates = add_h_proj(frame, gates, place_of(step.h_proj, u, row))
            gates = add_op_proj(frame, gates, place_of(step.op_proj, u, row))
            gates = insert_normalised(frame, gates, place_of(step.normalised, u, row))
            before = load_states(frame, place_of(step.state, u, row))
            new, saved = forward(frame, gates, before)
            if keep:
                store_saved(frame, saved, place_of(step.saved, u, row))
            now = load_options(frame, options, n, t, u, lanes, T, row_bytes)
            new, out, kept = apply_options(frame, new, before, now)
            if keep:
                store_kept(frame, kept, place_of(step.saved, u, row))
            new = apply_reset(frame, new, now)
            store_states(frame, new, place_of(step.after, u, row))
            store_part(frame, out[0], hs + k * hs_row + u * VECTOR_BYTES, lanes - narrower)
            behind, _ = place_of(step.after, u, row + len(new) * step.after.number)
            store_scaled(frame, plan, options, n, u, lanes, new[0], behind)


def operand_gates(frame):
    """A piece: the operand of a step's second product."""
    plan, step = read_step(frame)
    t, b_row, options = step.t, plan.b_row, read_options(plan.options)
    for u in range(step.u0, step.u1):
        lanes = lanes_at(frame, plan, u)
        bias = load_bias(frame, place_of(step.b, u, 0), b_row, lanes)
        for k in range(step.rows):
            n, row = step.n0 + k, k * VECTOR_BYTES
            gates = add_x_proj(frame, bias, place_of(step.x_proj, u, row))
            gates = add_h_proj(frame, gates, place_of(step.h_proj, u, row))
            gates = insert_normalised_early(frame, gates, place_of(step.normalised, u, row))
            before = load_states(frame, place_of(step.state, u, row))
            now = load_options(frame, options, n, t, u, lanes, plan.T, plan.H * plan.size)
            number = (operand(frame, gates, before),)
            number = select_live(frame, number, zeros_state(frame)[:1], now)[0]
            if not plan.operand_gate:
                number = scaled(frame, plan, options, n, u, lanes, number)
            store(frame, number, place_of(step.operand, u, row)[0])


def backward_gates(frame):
    """A piece: from the gradient of the state after a step to its gates' and the state's before."""
    plan, step = read_step(frame)
    t, options, T, row_bytes = step.t, read_options(plan.options), plan.T, plan.H * plan.size
    before_step, dhs_time = plan.N * VECTOR_BYTES, plan.hs_time
    dhs, dhs_row = plan.hs + t * dhs_time + step.n0 * plan.hs_row, plan.hs_row
    through_h, narrower = from_number(step.dstate, plan.states), plan.H - plan.P
    for u in range(step.u0, step.u1):
        lanes = lanes_at(frame, plan, u)
        for k in range(step.rows):
            n, row, dhs_place = step.n0 + k, k * VECTOR_BYTES, dhs + k * dhs_row + u * VECTOR_BYTES
            state, normalised = place_of(step.state, u, row), place_of(step.normalised, u, row)
            saved, dstate = place_of(step.saved, u, row), place_of(step.dstate, u, row)
            prefetch_saved(frame, saved, state, normalised, before_step, dhs_place - dhs_time)
            dh = load_part(frame, dhs_place, lanes - narrower)
            h_grad = load(frame, place_of(through_h, u, row)[0])
            h_grad = (scaled(frame, plan, options, n, u, lanes, h_grad),)
            now = load_options(frame, options, n, t, u, lanes, T, row_bytes)
            dnew = load_states(frame, dstate)
            dnew, h_grad, dinitial = reset_backward(frame, dnew, h_grad, now)
            add_dinitial(frame, plan, options, n, u, now.resets, dinitial)
            dnew = add_output_gradient(frame, dnew, (dh,), h_grad, now)
            store_trace(frame, plan, options, t, n, u, lanes, dnew)
            dnew, dskip = options_backward(frame, dnew, load_kept(frame, saved), now)
            after, weights = place_of(step.after, u, row), place_of(step.weights, u, 0)
            numbers = load_saved(frame, saved, after, weights, lanes, normalised)
            dgates, dold = backward(frame, dnew, numbers, load_states(frame, state))
            dgates, dold = zeros_for_none(frame, dgates), zeros_for_none(frame, dold)
            dgates = select_live(frame, dgates, zeros_gates(frame), now)
            dold = select_live(frame, dold, zeros_state(frame), now)
            dold = add_states(frame, dold, dskip)
            store_gradients(frame, dgates, place_of(step.delta, u, row))
            store_states(frame, dold, dstate)


def operand_backward_gates(frame):
    """A piece: add what comes back through the second product to a step's gradients."""
    plan, step = read_step(frame)
    t, options = step.t, read_options(plan.options)
    for u in range(step.u0, step.u1):
        lanes = lanes_at(frame, plan, u)
        for k in range(step.rows):
            n, row = step.n0 + k, k * VECTOR_BYTES
            delta, dstate = place_of(step.delta, u, row), place_of(step.dstate, u, row)
            dgates, dold = load_gradients(frame, delta), load_states(frame, dstate)
            saved, after = place_of(step.saved, u, row), place_of(step.after, u, row)
            weights, normalised = place_of(step.weights, u, 0), place_of(step.normalised, u, row)
            numbers = load_saved(frame, saved, after, weights, lanes, normalised)
            before = load_states(frame, place_of(step.state, u, row))
            incoming = load(frame, place_of(step.doperand, u, row)[0])
            if not plan.operand_gate:
                incoming = scaled(frame, plan, options, n, u, lanes, incoming)
            more, old = operand_backward(frame, incoming, dgates, dold, numbers, before)
            now = load_options(frame, options, n, t, u, lanes, plan.T, plan.H * plan.size)
            dgates, dold = select_live(frame, more, dgates, now), select_live(frame, old, dold, now)
            store_gradients_but_late(frame, dgates, delta)
            store_states(frame, dold, dstate)
