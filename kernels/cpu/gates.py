"""The gate arithmetic of one step, for some rows of the batch and some units.

It runs between the products of two steps: a cell's own functions, on vectors of W units. All
numbers are in panels (``products.py``): number k of a tuple, for unit-panel u, is panel
k * units + u. The rows of a panel are the rows of the batch.

    x_side, e_side, l_side   x Wx, h Wh and the second product: panels of pre-activations
    state, after             the state before the step and after it
    saved                    the numbers that backward needs; 0 if there will be no backward
    operand                  the factor of the second product
    given                    the normalised gates, each (units + 1) panels after the one before
                             (``normalising.py``)
    delta                    the gradients of the pre-activations
    b, w                     the biases, and behind them the cell's weights: H numbers each
    dstate                   the gradients of the state; behind them the part that came back through
                             h Wh
    options, t               the address of an ``OptionArrays``, and the step
    n0                       the number of the first row in the whole batch
    hs, dhs                  the caller's arrays: rows of H numbers, ``hs_row`` bytes apart
"""

from .frames import arguments
from .lowering import (
    add_early_side,
    add_late_side,
    add_x_side,
    backward,
    forward,
    load_bias,
    load_gradients,
    load_saved,
    load_states,
    operand,
    operand_backward,
    prefetch_saved,
    put_normalised,
    put_normalised_early,
    store_gradients,
    store_gradients_but_late,
    store_saved,
    store_states,
    zeros_for_none,
    zeros_gates,
    zeros_state,
)
from .simd import VECTOR_BYTES, lanes_of, load, load_part, store, store_part
from .step_arguments import (
    add_bypass,
    add_output_gradient,
    add_stopped,
    apply_options,
    apply_reset,
    load_initial,
    load_is_reset,
    load_live,
    load_zoneout,
    options_backward,
    reset_backward,
    scaled,
    scaled_operand,
    select_live,
    store_scaled,
    store_trace,
)


def forward_gates(frame):
    """A piece: from the products of a step to the state after it."""
    (
        first, end, units, H, rows, x_side, x_panel, e_side, e_panel, l_side, l_panel,
        b, b_row, state, state_panel, after, after_panel, saved, saved_panel, hs, hs_row,
        options, t, n0, given, given_panel,
    ) = arguments(frame, 26)  # fmt: skip
    W = lanes_of(frame)
    for u in range(first, end):
        lanes = H - u * W
        bias = load_bias(frame, b, b_row, u * VECTOR_BYTES, H * (VECTOR_BYTES // W), lanes)
        for n in range(rows):
            row = n * VECTOR_BYTES
            gates = add_x_side(frame, bias, x_side + u * x_panel + row, units * x_panel)
            gates = add_early_side(frame, gates, e_side + u * e_panel + row, units * e_panel)
            gates = add_late_side(frame, gates, l_side + u * l_panel + row, units * l_panel)
            gates = put_normalised(
                frame, gates, given + u * given_panel + row, (units + 1) * given_panel
            )
            before = load_states(frame, state + u * state_panel + row, units * state_panel)
            new, keep = forward(frame, gates, before)
            if saved:
                store_saved(frame, keep, saved + u * saved_panel + row, units * saved_panel)
            live = load_live(frame, options, n0 + n, t)
            zoneout = load_zoneout(frame, options, n0 + n, t, u)
            new, out = apply_options(frame, new, before, live, zoneout)
            is_reset = load_is_reset(frame, options, n0 + n, t + 1)
            initial = load_initial(frame, options, u, lanes, is_reset)
            new, _ = apply_reset(frame, new, is_reset, initial)
            store_states(frame, new, after + u * after_panel + row, units * after_panel)
            store_part(frame, out[0], hs + n * hs_row + u * VECTOR_BYTES, lanes)
            behind = after + (len(new) * units + u) * after_panel + row
            store_scaled(frame, options, n0 + n, u, lanes, new[0], behind)


def operand_gates(frame):
    """A piece: the operand of a step's second product."""
    (
        first, end, units, H, rows, x_side, x_panel, e_side, e_panel,
        b, b_row, state, state_panel, out, out_panel, options, t, n0, given, given_panel,
    ) = arguments(frame, 20)  # fmt: skip
    W = lanes_of(frame)
    for u in range(first, end):
        lanes = H - u * W
        bias = load_bias(frame, b, b_row, u * VECTOR_BYTES, H * (VECTOR_BYTES // W), lanes)
        for n in range(rows):
            row = n * VECTOR_BYTES
            gates = add_x_side(frame, bias, x_side + u * x_panel + row, units * x_panel)
            gates = add_early_side(frame, gates, e_side + u * e_panel + row, units * e_panel)
            gates = put_normalised_early(
                frame, gates, given + u * given_panel + row, (units + 1) * given_panel
            )
            before = load_states(frame, state + u * state_panel + row, units * state_panel)
            number, none = (operand(frame, gates, before),), zeros_state(frame)[:1]
            number, _ = select_live(frame, number, none, load_live(frame, options, n0 + n, t))
            number = scaled_operand(frame, options, n0 + n, u, lanes, number[0])
            store(frame, number, out + u * out_panel + row)


def backward_gates(frame):
    """A piece: from the gradient of the state after a step to its gates' and the state's before."""
    (
        first, end, units, H, rows, dhs, dhs_row, dstate, dstate_panel, through_h,
        state, state_panel, after, after_panel, saved, saved_panel, delta, delta_panel,
        ahead, dhs_time, w, options, t, n0, given, given_panel,
    ) = arguments(frame, 26)  # fmt: skip
    W = lanes_of(frame)
    for u in range(first, end):
        lanes = H - u * W
        for n in range(rows):
            row = n * VECTOR_BYTES
            here = dstate + u * dstate_panel + row
            prefetch_saved(
                frame, saved + u * saved_panel + row - ahead, units * saved_panel,
                state + u * state_panel + row - ahead, units * state_panel,
                dhs + n * dhs_row + u * VECTOR_BYTES - dhs_time,
                given + u * given_panel + row - ahead, (units + 1) * given_panel,
            )  # fmt: skip
            dh = load_part(frame, dhs + n * dhs_row + u * VECTOR_BYTES, lanes)
            through = load(frame, through_h + u * dstate_panel + row)
            through = (scaled(frame, options, n0 + n, u, lanes, through),)
            dnew = load_states(frame, here, units * dstate_panel)
            is_reset = load_is_reset(frame, options, n0 + n, t + 1)
            dnew, stopped = reset_backward(frame, dnew, is_reset)
            passed, more = reset_backward(frame, through, is_reset)
            add_stopped(frame, options, n0 + n, u, is_reset, stopped, more)
            live = load_live(frame, options, n0 + n, t)
            dnew, _ = add_output_gradient(frame, dh, passed[0], dnew, live)
            store_trace(frame, options, t, n0 + n, u, lanes, dnew)
            zoneout = load_zoneout(frame, options, n0 + n, t, u)
            dnew, bypass = options_backward(frame, dnew, live, zoneout)
            keep = load_saved(
                frame, saved + u * saved_panel + row, units * saved_panel,
                after + u * after_panel + row, units * after_panel,
                w + u * VECTOR_BYTES, H * (VECTOR_BYTES // W), lanes,
                given + u * given_panel + row, (units + 1) * given_panel,
            )  # fmt: skip
            before = load_states(frame, state + u * state_panel + row, units * state_panel)
            dgates, dold = backward(frame, dnew, keep, before)
            dgates, dold = zeros_for_none(frame, dgates), zeros_for_none(frame, dold)
            dgates, _ = select_live(frame, dgates, zeros_gates(frame), live)
            dold, _ = select_live(frame, dold, zeros_state(frame), live)
            dold, _ = add_bypass(frame, dold, bypass)
            store_gradients(frame, dgates, delta + u * delta_panel + row, units * delta_panel)
            store_states(frame, dold, here, units * dstate_panel)


def operand_backward_gates(frame):
    """A piece: add what comes back through the second product to a step's gradients."""
    (
        first, end, units, rows, doperand, doperand_panel, dstate, dstate_panel,
        state, state_panel, after, after_panel, saved, saved_panel, delta, delta_panel, H, w,
        options, t, n0, given, given_panel,
    ) = arguments(frame, 23)  # fmt: skip
    W = lanes_of(frame)
    for u in range(first, end):
        for n in range(rows):
            row = n * VECTOR_BYTES
            here, gradients = dstate + u * dstate_panel + row, delta + u * delta_panel + row
            dgates = load_gradients(frame, gradients, units * delta_panel)
            dold = load_states(frame, here, units * dstate_panel)
            keep = load_saved(
                frame, saved + u * saved_panel + row, units * saved_panel,
                after + u * after_panel + row, units * after_panel,
                w + u * VECTOR_BYTES, H * (VECTOR_BYTES // W), H - u * W,
                given + u * given_panel + row, (units + 1) * given_panel,
            )  # fmt: skip
            before = load_states(frame, state + u * state_panel + row, units * state_panel)
            incoming = load(frame, doperand + u * doperand_panel + row)
            incoming = scaled_operand(frame, options, n0 + n, u, H - u * W, incoming)
            more, old = operand_backward(frame, incoming, dgates, dold, keep, before)
            live = load_live(frame, options, n0 + n, t)
            dgates, _ = select_live(frame, more, dgates, live)
            dold, _ = select_live(frame, old, dold, live)
            store_gradients_but_late(frame, dgates, gradients, units * delta_panel)
            store_states(frame, dold, here, units * dstate_panel)
