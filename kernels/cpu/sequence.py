"""The loop over time, for any cell.

``*_gates`` does the gate arithmetic of one step for all rows of the batch. ``forward`` and
``backward`` are the whole loop, with the recurrent product in it. Where that product is large
enough for a BLAS, the engine runs the loop itself and calls ``*_gates`` (see ``engine.py``).

Arrays, all C-contiguous, of one dtype; V = len(cell.saved), S = len(cell.states):

    x_side    (N, T, Gx H)    x Wx; may be the same array as ``saved``
    h_side    (N, Gh H)       h Wh of the current step
    bias      (G H)           one block a gate
    states    (S, N, T+1, H)  states[:, :, t] before step t, states[0, :, 1:] is the output
    saved     (N, T, V H)     what the cell keeps for backward
    operands  (N, T, H)       what the second product multiplied; (0, 0, 0) without one
    dhs       (N, T, H)       gradient of the output
    dstate    (S, N, H)       gradient of the state, from step to step
    dh_gates  (N, H)          the part of dstate[0] that comes back through h Wh
    dx_side   (N, T, Gx H)    gradient of the pre-activations, as the columns of Wx
    dh_side   (N, T, Gh H)    the same as the columns of Wh; with one affine it is dx_side
    early     columns of Wh that multiply h; those from ``early`` on multiply the operand
"""

from numba import njit

from .lowering import (
    backward as cell_backward,
)
from .lowering import (
    forward as cell_forward,
)
from .lowering import (
    load_gates,
    load_gradients,
    load_saved,
    load_states,
    store_gradients,
    store_tuple,
)
from .lowering import operand as cell_operand
from .lowering import operand_backward as cell_operand_backward
from .options import COMPILED
from .products import multiply
from .simd import lanes_of, load, store


@njit(**COMPILED)
def forward_gates(cell, t, x_side, h_side, bias, states, saved):
    """From the products of step t to the state after it."""
    _, N, T1, H = states.shape
    T = T1 - 1
    x_row, h_row, v_row = x_side.shape[2], h_side.shape[1], saved.shape[2]
    W = lanes_of(states)
    for n in range(N):
        for u in range(0, H, W):
            lanes = min(W, H - u)
            before = (n * T1 + t) * H + u
            row = n * T + t
            gates = load_gates(
                cell, x_side, row * x_row + u, h_side, n * h_row + u, bias, u, H, lanes
            )
            state = load_states(cell, states, before, N * T1 * H, lanes)
            new_state, keep = cell_forward(cell, gates, state)
            store_tuple(keep, saved, row * v_row + u, H, lanes)
            store_tuple(new_state, states, before + H, N * T1 * H, lanes)


@njit(**COMPILED)
def operand_gates(cell, t, x_side, h_side, bias, states, operands):
    """What the second product of step t multiplies."""
    _, N, T1, H = states.shape
    T = T1 - 1
    x_row, h_row = x_side.shape[2], h_side.shape[1]
    W = lanes_of(states)
    for n in range(N):
        for u in range(0, H, W):
            lanes = min(W, H - u)
            row = n * T + t
            gates = load_gates(
                cell, x_side, row * x_row + u, h_side, n * h_row + u, bias, u, H, lanes
            )
            state = load_states(cell, states, (n * T1 + t) * H + u, N * T1 * H, lanes)
            store(cell_operand(cell, gates, state), operands, row * H + u, lanes)


@njit(**COMPILED)
def backward_gates(cell, t, dhs, dstate, dh_gates, states, saved, dx_side, dh_side):
    """From the gradient of the state after step t to that of its gates and the state before."""
    _, N, T1, H = states.shape
    T = T1 - 1
    x_row, h_row, v_row = dx_side.shape[2], dh_side.shape[2], saved.shape[2]
    W = lanes_of(states)
    for n in range(N):
        for u in range(0, H, W):
            lanes = min(W, H - u)
            row = n * T + t
            here = n * H + u
            dh = load(dhs, row * H + u, lanes) + load(dh_gates, here, lanes)
            store(load(dstate, here, lanes) + dh, dstate, here, lanes)
            dnew_state = load_states(cell, dstate, here, N * H, lanes)
            keep = load_saved(cell, saved, row * v_row + u, H, lanes)
            state = load_states(cell, states, (n * T1 + t) * H + u, N * T1 * H, lanes)
            dgates, dold_state = cell_backward(cell, dnew_state, keep, state)
            store_gradients(
                cell, dgates, dx_side, row * x_row + u, dh_side, row * h_row + u, H, lanes
            )
            store_tuple(dold_state, dstate, here, N * H, lanes)


@njit(**COMPILED)
def operand_backward_gates(cell, t, doperand, dstate, states, saved, dx_side, dh_side):
    """Complete the gradients of step t by what comes back through the second product."""
    _, N, T1, H = states.shape
    T = T1 - 1
    x_row, h_row, v_row = dx_side.shape[2], dh_side.shape[2], saved.shape[2]
    W = lanes_of(states)
    for n in range(N):
        for u in range(0, H, W):
            lanes = min(W, H - u)
            row = n * T + t
            here = n * H + u
            x_index, h_index = row * x_row + u, row * h_row + u
            dgates = load_gradients(cell, dx_side, x_index, dh_side, h_index, H, lanes)
            dold_state = load_states(cell, dstate, here, N * H, lanes)
            keep = load_saved(cell, saved, row * v_row + u, H, lanes)
            state = load_states(cell, states, (n * T1 + t) * H + u, N * T1 * H, lanes)
            dgates, dold_state = cell_operand_backward(
                cell, load(doperand, here, lanes), dgates, dold_state, keep, state
            )
            store_gradients(cell, dgates, dx_side, x_index, dh_side, h_index, H, lanes)
            store_tuple(dold_state, dstate, here, N * H, lanes)


@njit(**COMPILED)
def forward(cell, x_side, h_side, bias, Wh, early, states, saved):
    """All steps of a cell with one recurrent product."""
    _, N, T1, H = states.shape
    for t in range(T1 - 1):
        multiply(states, t * H, T1 * H, Wh, 0, early, h_side, 0, early, N, H, early)
        forward_gates(cell, t, x_side, h_side, bias, states, saved)


@njit(**COMPILED)
def forward_two_products(cell, x_side, h_side, bias, Wh, early, states, saved, operands):
    """All steps of a cell with a second product."""
    _, N, T1, H = states.shape
    T, all_ = T1 - 1, Wh.shape[1]
    for t in range(T):
        multiply(states, t * H, T1 * H, Wh, 0, all_, h_side, 0, all_, N, H, early)
        operand_gates(cell, t, x_side, h_side, bias, states, operands)
        multiply(operands, t * H, T * H, Wh, early, all_, h_side, early, all_, N, H, all_ - early)
        forward_gates(cell, t, x_side, h_side, bias, states, saved)


@njit(**COMPILED)
def backward(cell, dhs, dstate, dh_gates, WhT, early, states, saved, dx_side, dh_side):
    """All steps back, for a cell with one recurrent product. WhT (Gh H, H)."""
    _, N, T1, H = states.shape
    T, h_row = T1 - 1, dh_side.shape[2]
    for t in range(T - 1, -1, -1):
        backward_gates(cell, t, dhs, dstate, dh_gates, states, saved, dx_side, dh_side)
        multiply(dh_side, t * h_row, T * h_row, WhT, 0, H, dh_gates, 0, H, N, early, H)


@njit(**COMPILED)
def backward_two_products(
    cell, dhs, dstate, dh_gates, WhT, early, states, saved, dx_side, dh_side, doperand
):
    """All steps back, for a cell with a second product."""
    _, N, T1, H = states.shape
    T, h_row = T1 - 1, dh_side.shape[2]
    for t in range(T - 1, -1, -1):
        backward_gates(cell, t, dhs, dstate, dh_gates, states, saved, dx_side, dh_side)
        late, row, W_late = h_row - early, t * h_row + early, early * H
        multiply(dh_side, row, T * h_row, WhT, W_late, H, doperand, 0, H, N, late, H)
        operand_backward_gates(cell, t, doperand, dstate, states, saved, dx_side, dh_side)
        multiply(dh_side, t * h_row, T * h_row, WhT, 0, H, dh_gates, 0, H, N, early, H)
