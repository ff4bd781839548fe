"""The plan of a pass over a sequence: what compiled code works on.

``plans.py`` makes plans, ``schedule.py`` says how the arrays lie in memory.
"""

from typing import Any, NamedTuple

from ..engine import Array
from ..step_options import VALUE_KINDS


class Plan(NamedTuple):
    """A pass works on these: addresses, sizes in numbers, strides in bytes."""

    entry: int  # the address of this pass's kernel
    self_address: int  # the plan's own address
    thread: int
    job: int
    shards: int
    team: int
    split_batch: int
    no_barrier: int  # whether shards need not meet between steps
    packed: int  # whether the weights are packed already
    x_in_place: int  # whether Wx is read where the caller has it, not packed; whether Wh and Wr are
    h_in_place: int
    keep: int  # whether every chunk is kept, for backward
    add: int  # whether backward adds to the weights' gradients
    # sizes: batch, time, inputs, units, outputs; steps in a chunk, chunks; bytes of a number
    N: int
    T: int
    D: int
    H: int
    P: int  # numbers of h: H, unless it is projected
    units: int  # unit-panels: H / W, rounded up; what u0 and u1 count
    # numbers in a word of a product's operands: 1 of float32, 2 of bfloat16 (``bfloat16.py``), 4
    # in int8 (``int8.py``); the words that D, H and P numbers take; lines behind those of a panel
    # of weights, and panels behind those of words, where scales are
    word: int
    D_words: int
    H_words: int
    P_words: int
    scale_lines: int
    scale_panels: int
    h_bounded: int  # whether what h Wh multiplies is known to lie between -1 and 1; the operand
    operand_bounded: int
    units_at_once: int  # those whose pre-activations fill 16 KiB (forward._step)
    steps: int
    chunks: int
    rows: int  # the most that a chunk has
    x_rows: int  # the most rows of xs that become words at once
    # for steps as one function (``fused_step.py``): the number of the first one; for how many x Wx
    # is made ahead, and the bytes from step to step and from panel to panel there, or 0; how many
    # numbers of x each step multiplies itself; bytes of a row of units
    first: int
    block: int
    ahead_step: int
    ahead_panel: int
    x_inner: int
    row: int
    size: int
    # gates that x Wx, h Wh and the second product feed; states; saved numbers that are stored
    gates: int
    x_gates: int
    early: int
    late: int
    operand_gate: int  # whether the operand itself is a gate
    weights: int  # gates that are parameters
    first_early: int  # where in the layout's order the early gates begin, and the late ones
    first_late: int
    states: int
    kept_states: int  # what is kept of them: one more where what enters h Wh is no state itself
    h_slot: int  # which of those enters h Wh: 0, or with a recurrent mask the last
    n_stored: int
    # gates that are normalised: those that do not wait for the operand, and those that do
    normalised_early: int
    normalised_late: int
    rows_at_once: int  # whose numbers fill 16 KiB
    normalised_places: int  # the address of their places in the layout's order
    options: int  # the address of the steps' options (OptionRecord), or 0
    # of a batch whose members differ in length (``ragged.py``), or 0: the addresses of tables, how
    # many rows the steps before each step have, each chunk's first step, and what members add to
    # the counter of random masks
    firsts: int
    chunk_starts: int
    draws: int
    # a table of what each member's first step is away from the start of hs, besides its number of
    # rows; and 1, or 0 where it has a single number for all
    hs_members: int
    hs_padded: int
    x_blocks: int  # the addresses of the layout's tables
    h_blocks: int
    # kernels
    multiply: int
    multiply_transposed: int
    multiply_in_place: int
    pack: int
    pack_weights: int
    pack_transposed: int
    pair_rows: int
    round_columns: int
    unpack: int
    column_sums: int
    gates_kernel: int
    operand_kernel: int
    steps_kernel: int
    early_numbers: int
    late_numbers: int
    standardise: int
    denormalise: int
    # the caller's arrays
    xs: int
    xs_row: int
    xs_time: int
    Wx: int
    Wx_row: int
    Wh: int
    Wh_row: int
    Wr: int  # what the operand multiplies: columns of Wh, unless h is projected
    Wr_row: int
    b: int
    b_row: int
    state_in: int
    state_out: int
    state_step: int  # from one state to the next in state_in and state_out
    hs: int  # backward: dhs
    hs_row: int
    hs_time: int
    dxs: int  # 0: nobody asks for it
    dWx: int
    dWh: int
    dWr: int
    db: int
    # ours, in panels: packed weights (for backward transposed), a chunk's numbers ...
    pWx: int
    pWh: int
    pWr: int
    x_proj: int
    h_proj: int
    op_proj: int
    dgates: int
    dstate: int
    doperand: int
    x_panels: int
    # ... rows: the state before and after a step (a row each), the operand, gates (a row each)
    now: int
    next: int
    operand_row: int
    gate_rows: int
    # ... and operands in words: along the columns, of x (rows, a shard's own), of h (of two steps
    # in turn), of the operand and dgates; along the rows, of x, h, the operand and dgates
    x_words: int
    h_words: int
    operand_words: int
    dgates_words: int
    x_pairs: int
    h_pairs: int
    operand_pairs: int
    dgates_pairs: int
    # ... and what is kept for backward
    state: int
    last_state: int  # after step T - 1
    saved: int
    operand: int
    normalised: int


# The steps' options (``kernels/step_options.py``): the address of each array, 0 if there is none.
# ``first_counter`` is a number: that of the first row at the first step (``counter_rng.py``).
# Backward fills dinitial (panels) and trace (N, T, S, H).
_OPTIONS = (
    *VALUE_KINDS, "recurrent_mask", "seeds", "thresholds", "first_counter", "dinitial", "trace",
)  # fmt: skip
OptionRecord: Any = NamedTuple("OptionRecord", [(name, int) for name in _OPTIONS])  # type: ignore

PLACES = {name: place for place, name in enumerate(Plan._fields)}


def write(plan: Array, **fields: int) -> None:
    """Write fields of a plan in memory."""
    for name, value in fields.items():
        plan[PLACES[name]] = value
