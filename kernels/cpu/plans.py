"""From arrays to plans: what compiled code is to work on, and in which memory.

A *template* is a plan (``plan.py``) for arrays of certain sizes: how time is cut, who shares
the work, how much memory is needed, which kernels are called. A call fills in the addresses.
"""

import ctypes
import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..cells import Cell
from ..engine import Array
from ..layout import layout
from ..once import once
from ..quantisation import is_quantised
from . import threads
from .kernel_cache import (
    NO_FEATURES,
    CompileError,
    compiled,
    python_function,
    warn_if_slow_compile,
)
from .plan import PLACES, Plan
from .strips import strip_bytes, x_ahead
from .target import VECTOR_BYTES, in_tiles

FORWARD, BACKWARD = "forward.forward", "backward.backward"  # the kernels of passes


class PlanTemplate(NamedTuple):
    """A plan but for its addresses, and how much memory it needs."""

    plan: Array  # addresses of our own count from the start of their block
    early_bytes: int  # of a row of Wh, for h itself; behind them is what the operand multiplies
    dtype: Any
    shards: int
    scratch_bytes: int
    kept_bytes: int
    cleared: tuple[int, int]  # bytes of the scratch memory that must be 0: from where, how many

    def with_arrays(
        self,
        xs: Array,
        params: Sequence[Array],
        state_in: Array,
        state_out: Array,
        hs: Array,
        outputs: Sequence[Array] | None = None,
        *,
        kept: int,
        scratch: int | None = None,
        options: int = 0,
        inputs: bool = True,
        run: bool = False,
    ) -> Array:
        """The plan, with the caller's arrays and the addresses of our memory.

        outputs  of backward: dxs, dWx, dWh, db; hs is then dhs
        inputs   whether dxs is asked for
        run      whether to run the pass, too, which then has one shard
        """
        if scratch is None:
            scratch = _scratch(self.scratch_bytes, self.dtype)
        plan = self.plan.copy()
        if options:
            plan[_OPTIONS] = options
        start, size = self.cleared
        if size:
            ctypes.memset(scratch + start, 0, size)
        Wx, Wh, b, *Wr = params
        dxs, dWx, dWh, db, *dWr = outputs or (xs, *params)
        own = bool(Wr)  # else the last columns of Wh are what the operand multiplies
        arrays = (
            xs, Wx, Wh, b, Wr[0] if own else Wh, state_in, state_out, hs, dxs, dWx, dWh, db,
            dWr[0] if own else dWh,
        )  # fmt: skip
        fill, behind = _filler(self.dtype.char, b.ndim), 0 if own else self.early_bytes
        if not fill(plan, *arrays, behind, scratch, kept, inputs, run):
            arrays = tuple(in_own_dtype(array, self.dtype) for array in arrays)
            if not fill(plan, *arrays, behind, scratch, kept, inputs, run):
                raise TypeError(f"expected arrays of {self.dtype} alone")
        return plan


class Known(NamedTuple):
    """The objects of Python's that ``plan_kernels.fill`` knows, by their addresses."""

    array_type: int
    dtype: int
    true: int
    false: int


def known(dtype: Any) -> Known:
    return Known(id(np.ndarray), id(np.dtype(dtype.type)), id(True), id(False))


@once
def _filler(dtype: str, b_ndim: int) -> Any:
    """A compiled function that writes addresses and strides into a plan; False where it cannot."""
    words = np.array(known(np.dtype(dtype)), np.int64)
    name = "fill" if b_ndim == 1 else "fill_two_biases"
    return python_function(compiled(f"plan_kernels.{name}"), True, words)


class Cut(NamedTuple):
    """How time is cut into chunks (``schedule.py``)."""

    steps: int  # the most of a chunk
    chunks: int
    rows: int  # the most of a chunk
    lines: int  # at least as many as a panel of each chunk has rows, in all


_ARRAYS, _SCRATCH, _KEPT, _END = PLACES["xs"], PLACES["pWx"], PLACES["state"], len(PLACES)
_OPTIONS = PLACES["options"]


@lru_cache(maxsize=4096)
def plan_template(
    entry: str,
    cell: Cell,
    dtype: np.dtype[Any],
    N: int,
    T: int,
    D: int,
    H: int,
    P: int,
    shards: int,
    split_batch: bool,
    keep: bool = True,
    features: frozenset[str] = NO_FEATURES,
    recurrent_mask: bool = False,
    chunk: int = 0,
    add: bool = False,
    word: int = 1,
    packed: bool = False,
    cut: Cut | None = None,
) -> PlanTemplate:
    """How to run a pass over arrays of these sizes.

    entry       FORWARD or BACKWARD
    keep        what backward needs is kept
    features    of the kernels, as ``compiled_features`` says
    recurrent_mask  whether h enters products times a mask
    chunk       how many steps are a chunk; 0: as many as are best
    add         backward adds to what the weights' gradients are
    word        numbers in a word of the products' operands: 1, 2 of bfloat16, 4 in int8
    packed      the weights are in panels already, somewhere else
    cut         how time is cut where members of the batch differ in length; the plan then lacks the
                tables that say so
    """
    at = layout(cell, features)
    size = dtype.itemsize
    W = VECTOR_BYTES // size
    units, inputs = -(-H // W), -(-D // W)
    D_words, H_words, P_words = (-(-count // word) for count in (D, H, P))
    steps, chunks, of_chunk, lines = cut or dense_cut(cell, N, T, D, H, size, chunk)
    states, recurrent = len(cell.states), at.early + at.late
    kept_states = states + recurrent_mask
    normalised = len(at.normalised)
    h_bounded, operand_bounded = (0, 0) if word < 4 or recurrent_mask else cell.bounded
    # a row is normalised, and in int8 scaled, over all of its units
    scaled = word == 4 and not (h_bounded and operand_bounded)
    split_batch = split_batch or normalised > 0 or scaled
    no_barrier = split_batch or not recurrent
    rows = max(1, -(-N // shards) if split_batch else N)  # of a shard

    def size_of(count: int, rows: int) -> int:
        return count * (rows | 1) * VECTOR_BYTES

    def if_words(count: int, rows: int) -> int:
        return size_of(count, rows) if word > 1 else 0

    ahead, back = entry == FORWARD, entry == BACKWARD
    of_step, units_of_words = N, -(-units // word)
    pairs_of_rows, gates_of_x_or_h = -(-of_chunk // 2), len(cell.gates) - at.weights
    scale_lines, scale_panels = (2, 1) if word == 4 else (0, 0)
    times, x_rows = chunks * min(N, steps), max(N, steps)  # as ``schedule.rows_of`` has them
    if cut is not None:
        times, x_rows = chunks, of_chunk
    x_in_place, h_in_place = (
        ahead and word == 1 and not packed and read_in_place(times, rows_each)
        for times, rows_each in ((times, x_rows), (T, N))
    )
    x_packed, h_packed = (not (packed or in_place) for in_place in (x_in_place, h_in_place))
    scratch = {
        "pWx": x_packed * size_of(at.x_gates * units, D_words)
        if ahead
        else size_of(inputs, at.x_gates * H_words),
        "pWh": h_packed * size_of(at.early * units, P_words)
        if ahead
        else size_of(units, at.early * H_words),
        "pWr": h_packed * size_of(at.late * units, H_words)
        if ahead
        else size_of(units, at.late * P_words),
        "x_proj": ahead * size_of(at.x_gates * units, of_chunk + N),
        "h_proj": ahead * size_of(at.early * units, 2 * of_step),
        "op_proj": ahead * size_of((at.late + at.operand_gate) * units, 2 * of_step),
        "dgates": back * size_of(len(cell.gates) * units, of_chunk),
        "dstate": back * size_of((states + 1) * units, of_step),
        "doperand": back * size_of(at.late and units, of_step),
        "x_panels": back * size_of(inputs, of_chunk),
        **dict.fromkeys(("now", "next", "operand_row", "gate_rows"), 0),
        "x_words": ahead * if_words(x_rows * shards, -(-D_words // W) + scale_panels),
        "h_words": ahead * if_words(2 * (-(-P_words // W) + scale_panels), of_step),
        "operand_words": ahead * if_words(at.late and -(-H_words // W) + scale_panels, of_step),
        "dgates_words": back * if_words(gates_of_x_or_h * units_of_words, of_chunk),
        "x_pairs": back * if_words(inputs, pairs_of_rows),
        "h_pairs": back * if_words(at.early and units, pairs_of_rows),
        "operand_pairs": back * if_words(at.late and units, pairs_of_rows),
        "dgates_pairs": back * if_words(gates_of_x_or_h * units, pairs_of_rows),
    }
    kept_lines = (lines if keep else of_chunk | 1) * VECTOR_BYTES
    kept = {
        "state": kept_lines * kept_states * units,
        "last_state": size_of(kept_states * units, of_step),
        "saved": keep * kept_lines * at.n_stored * units,
        "operand": kept_lines * (at.late and units),
        "normalised": kept_lines * normalised * (units + 1),
    }
    fused = (  # a step as one function
        ahead and N == 1 == shards == word and T >= FUSED_FROM
        and not (packed or normalised or features or recurrent_mask or cut)
    )  # fmt: skip
    x_fields, row = x_ahead(cell, T, D, H, size), units * VECTOR_BYTES
    projects = not x_fields["x_inner"]
    if fused:
        x_in_place = h_in_place = False
        scratch = dict.fromkeys(scratch, 0) | {
            "pWx": strip_bytes(cell, D, H, P, size),
            "x_proj": max(VECTOR_BYTES, at.x_gates * units * x_fields["ahead_panel"]),
            "now": states * row, "next": states * row, "operand_row": row,
            "gate_rows": len(cell.gates) * row,
        }  # fmt: skip
    few_units = max(4, 16384 // (rows * max(at.early, 1) * VECTOR_BYTES) // 4 * 4)
    plan = Plan(
        self_address=0, thread=0, shards=shards, job=0, team=0, split_batch=split_batch,
        no_barrier=no_barrier,
        packed=packed, x_in_place=x_in_place, h_in_place=h_in_place, keep=keep, add=add,
        N=N, T=T, D=D, H=H, P=P, units=units, steps=steps, chunks=chunks, rows=of_chunk,
        x_rows=x_rows,
        word=word, D_words=D_words, H_words=H_words, P_words=P_words,
        scale_lines=scale_lines, scale_panels=scale_panels, h_bounded=h_bounded,
        operand_bounded=operand_bounded,
        units_at_once=units if normalised or h_in_place else few_units,
        size=size, gates=len(cell.gates), x_gates=at.x_gates, early=at.early, late=at.late,
        operand_gate=at.operand_gate, weights=at.weights, first_early=at.first_early,
        first_late=at.first_late,
        states=states, kept_states=kept_states, h_slot=states * recurrent_mask,
        n_stored=at.n_stored,
        normalised_early=len(at.normalised_early), normalised_late=len(at.normalised_late),
        rows_at_once=max(1, 16384 // ((normalised or 1) * units * VECTOR_BYTES)),
        normalised_places=_table(at.normalised), options=0, firsts=0, chunk_starts=0, draws=0,
        hs_members=_table((0,)), hs_padded=0,
        **x_fields, first=0, row=row,
        x_blocks=_table(at.x_blocks), h_blocks=_table(at.h_blocks),
        **_fused_kernels(cell, dtype.name, projects) if fused
        else _compiled_kernels(entry, cell, dtype.name, features, word, N),
        **dict.fromkeys(Plan._fields[_ARRAYS:_SCRATCH], 0), **_offsets(scratch), **_offsets(kept),
    )  # fmt: skip
    return PlanTemplate(
        np.array((*plan, *(0,) * (threads.PLAN_WORDS - _END)), np.int64),
        at.early * H * size,
        dtype,
        shards,
        sum(scratch.values()),
        sum(kept.values()),
        # sums begin with 0 where no x Wx is made ahead; the second product does not write to the
        # units that h lacks
        (plan.x_proj, 0 if projects else VECTOR_BYTES)
        if fused
        else (plan.op_proj, scratch["op_proj"] if P < H else 0),
    )


def read_in_place(times: int, rows: int) -> bool:
    """Whether a product reads weights where the caller has them, so many times for some rows each.

    Panels cost a pass through the weights, and memory of the size of the weights; rows side by side
    come from the caches faster. Measured for T from 1 to 32, N from 1 to 64 and H from 1 to 1024:
    in place takes 0.3 to 1.0 times as long where it is chosen.
    """
    return times < len(_MOST_ROWS) and rows <= _MOST_ROWS[times]


_MOST_ROWS = 0, 32, 4, 1  # for weights that are read once, twice, three times
FUSED_FROM = 4  # steps of one sequence, for which ``fused_step.py`` packs the weights


def chunk_rows(cell: Cell, D: int, H: int, size: int) -> int:
    """About how many rows a chunk has.

    256 rows leave a chunk in the second cache; where the weights do not fit there either, more
    rows, so that the gradients of the weights are fetched and added to less often (measured).
    """
    weight_bytes = size * (D + H) * H * len(cell.gates)
    return min(256 + weight_bytes // 20_000, 768)


def chunk_steps(cell: Cell, N: int, T: int, D: int, H: int, size: int) -> int:
    """Into chunks of how many steps time is cut; at least two, if there are two.

    (Two: by units a thread reads the deltas of step k + 1 while others write those of step k.)
    """
    most = max(2, -(-chunk_rows(cell, D, H, size) // max(N, 1)))
    chunks = -(-T // most)
    return -(-T // chunks)


def dense_cut(cell: Cell, N: int, T: int, D: int, H: int, size: int, steps: int = 0) -> Cut:
    """How time is cut where all members have all steps; ``steps`` of a chunk, 0: the best."""
    steps = steps or chunk_steps(cell, N, T, D, H, size)
    chunks = -(-T // steps)
    return Cut(steps, chunks, steps * N, chunks * (steps * N | 1))


def _offsets(sizes: dict[str, int]) -> dict[str, int]:
    """Where each part of a block begins."""
    offsets, total = {}, 0
    for name, count in sizes.items():
        offsets[name] = total
        total += count
    return offsets


_tables: dict[tuple[int, ...], Array] = {}


def _table(numbers: tuple[int, ...]) -> int:
    """The address of some integers, which stay there."""
    return address_of(_tables.setdefault(numbers, np.array(numbers, np.int64)))


def choose_partition(
    cell: Cell, N: int, T: int, D: int, H: int, wanted: int | None = None
) -> tuple[int, bool]:
    """Into how many shards a pass is cut, and whether by rows of the batch (measured).

    ``wanted`` is how many the caller asks for; by default there are as many as threads, where the
    work is worth waking them. By units the threads meet after every step, which takes a step of
    some size.
    """
    recurrent = len(cell.recurrent_gates)
    operations = 2 * N * T * H * len(cell.gates) * (D + (H if recurrent else 20))
    if operations < (4_000_000 if wanted is None else 500_000):
        return 1, True
    shards = threads.available() if wanted is None else wanted
    if cell.normalised:  # by rows alone: a row is normalised over all of its units
        return min(shards, N), True
    if not recurrent:  # nobody waits for anybody
        return shards, shards <= N
    large = H * H * len(cell.gates) > 1_500_000  # then each fetches but its own weights
    split_batch = 4 * shards <= N and not large
    few = 150_000 if N == 1 else 100_000  # a sequence alone has steps as one function
    if not split_batch and 2 * N * H * len(cell.gates) * H < few:
        return 1, True
    return shards, split_batch


# ---- arrays and memory


def address_of(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def in_own_dtype(array: Array, dtype: Any) -> Array:
    """The same array, seen in the one object of its dtype, which compiled functions compare."""
    return array.view(dtype.type) if array.dtype == dtype else array


def contiguous(array: Array) -> Array:
    """C-contiguous and aligned, by a copy if need be."""
    fits = array.flags.c_contiguous and array.flags.aligned
    return array if fits else array.copy()


def takes(arrays: Sequence[Array], like: Sequence[Array]) -> bool:
    """Whether compiled code may write to the arrays what it would write to others."""
    return [(array.shape, array.dtype) for array in arrays] == [
        (array.shape, array.dtype) for array in like
    ] and all(array.flags.carray for array in arrays)


def merge_bias(cell: Cell, params: Sequence[Array]) -> tuple[Array, ...]:
    """Wx, Wh, and b with the cell's weights behind it, in its first row if it has two; and Wr."""
    quantised = is_quantised(params)
    if cell.recurrent_gates and not cell.weights and not quantised:  # nothing is to be added
        return tuple([contiguous(param) for param in params])
    Wx, Wh, b, w, Wr = cell.complete(params)
    if quantised:  # they are in panels
        Wx = Wh = Wr = np.empty((0, 0), np.float32)
    Wx, Wh, b = map(contiguous, (Wx, Wh, b))
    if cell.weights:
        wide = np.zeros((*b.shape[:-1], b.shape[-1] + w.size), b.dtype)
        wide[..., : b.shape[-1]] = b
        wide[(0,) * (b.ndim - 1)][b.shape[-1] :] = w.reshape(-1)
        b = wide
    return (Wx, Wh, b, contiguous(Wr)) if cell.projected else (Wx, Wh, b)


def split_bias(cell: Cell, gradients: Sequence[Array]) -> tuple[Array, ...]:
    """The gradients of the parameters, from those of what ``merge_bias`` makes of them."""
    dWx, dWh, db, *dWr = gradients
    if not cell.weights:
        return cell.own(dWx, dWh, db, None, *dWr)
    columns, H = dWx.shape[1], dWx.shape[1] // len(cell.input_gates)
    dw = db[(0,) * (db.ndim - 1)][columns:].reshape(-1, H)
    return cell.own(dWx, dWh, db[..., :columns], dw, *dWr)


def contiguous_rows(array: Array) -> Array:
    """The last axis without gaps, and aligned, by a copy if need be."""
    fits = array.strides[2] == array.itemsize and array.flags.aligned
    return array if fits else array.copy()


def aligned(size: int, dtype: Any) -> tuple[Array, int]:
    """Memory, and the first address in it that is a multiple of 64."""
    memory = np.empty((size + VECTOR_BYTES) // dtype.itemsize, dtype)
    return memory, -(-address_of(memory) // VECTOR_BYTES) * VECTOR_BYTES


class SavedBuffer:
    """Memory for what is kept until backward; what is given back serves the next forward.

    Fresh memory costs the system a tenth of a forward pass.
    """

    spare: ClassVar[list[tuple[Array, int]]] = []

    def __init__(self, size: int, dtype: Any) -> None:
        needed = size + VECTOR_BYTES
        try:
            memory, address = self.spare.pop()
        except IndexError:  # asked for, not looked for: threads share it
            memory, address = None, 0
        if memory is None or memory.dtype != dtype or not needed <= memory.nbytes <= 2 * needed:
            memory = None  # given back before there are two
            memory, address = aligned(size, dtype)
        self.memory, self.address = memory, address

    def __reduce__(self) -> Any:
        raise TypeError(
            "the memory of a pass cannot be copied, because compiled code holds its addresses"
        )

    def __del__(self) -> None:
        if not self.spare and hasattr(self, "memory"):
            self.spare.append((self.memory, self.address))


def read_saved_states(made: PlanTemplate, kept: SavedBuffer, cell: Cell) -> tuple[Array, ...]:
    """The state that every step saw, (N, T, H) each, from a forward pass's panels."""
    plan = Plan._make(int(word) for word in made.plan[:_END])
    N, T, H, lanes = plan.N, plan.T, plan.H, VECTOR_BYTES // plan.size
    rows, panels = (plan.steps * N) | 1, plan.kept_states * plan.units
    start = (kept.address + plan.state - address_of(kept.memory)) // plan.size
    numbers = kept.memory[start : start + plan.chunks * panels * rows * lanes]
    numbers = numbers.reshape(plan.chunks, plan.kept_states, plan.units, rows, lanes)
    numbers = numbers[:, : len(cell.states), :, : plan.steps * N]
    numbers = numbers.reshape(plan.chunks, len(cell.states), plan.units, plan.steps, N, lanes)
    # (states, N, chunks, steps, units, lanes)
    numbers = numbers.transpose(1, 4, 0, 3, 2, 5).reshape(
        len(cell.states), N, plan.chunks * plan.steps, plan.units * lanes
    )
    return tuple(np.ascontiguousarray(state) for state in numbers[:, :, :T, :H])


def read_ragged_states(
    made: PlanTemplate, kept: SavedBuffer, cell: Cell, firsts: Sequence[int]
) -> tuple[Array, ...]:
    """The same of a ragged batch, (rows, H) each; ``firsts``: at which row each chunk begins."""
    plan = Plan._make(int(word) for word in made.plan[:_END])
    lanes, panels = VECTOR_BYTES // plan.size, plan.kept_states * plan.units
    start = (kept.address + plan.state - address_of(kept.memory)) // plan.size
    S, found = len(cell.states), []
    for chunk, (first, end) in enumerate(itertools.pairwise(firsts)):
        rows, place = end - first, start + (first + chunk) * panels * lanes
        numbers = kept.memory[place : place + panels * (rows | 1) * lanes]
        numbers = numbers.reshape(plan.kept_states, plan.units, rows | 1, lanes)[:S, :, :rows]
        found.append(numbers.transpose(0, 2, 1, 3).reshape(S, rows, -1)[:, :, : plan.H])
    return tuple(np.concatenate(found, axis=1))


_of_thread = threading.local()


def _scratch(size: int, dtype: Any) -> int:
    """The address of memory for a pass, used again by this thread's next one."""
    memory, address = getattr(_of_thread, "scratch", None) or (None, 0)
    if memory is None or memory.nbytes < size + VECTOR_BYTES or memory.dtype != dtype:
        memory = _of_thread.scratch = None  # given back before there are two
        memory, address = _of_thread.scratch = aligned(size, dtype)
    return address


def free_buffers() -> None:
    """Give back the memory that this thread's next pass would have used again."""
    _of_thread.scratch = None
    SavedBuffer.spare.clear()


# ---- compilation

# a plan's kernels for all cells
_PRODUCTS = {
    "multiply": "gemm.multiply", "multiply_transposed": "gemm.multiply_transposed",
    "multiply_in_place": "gemm.multiply_in_place",
    "pack_weights": "panels.pack", "pack_transposed": "panels.pack_transposed",
    "pack": "panels.pack", "unpack": "panels.unpack", "column_sums": "panels.column_sums",
}  # fmt: skip
_OF_WORDS: dict[int, dict[str, Any]] = {1: {}, 2: {
    "multiply": "gemm.multiply_pairs", "multiply_transposed": "gemm.multiply_transposed_pairs",
    "pack_weights": "bfloat16.pair_rows", "pack_transposed": "bfloat16.pair_transposed",
    "pair_rows": "bfloat16.pair_rows", "round_columns": "bfloat16.pair_columns",
}, 4: {"multiply": "gemm.multiply_int8", "round_columns": "int8.quantise_columns"}}  # fmt: skip
_NORMALISING = ("early_numbers", "late_numbers"), ("standardise", "denormalise")  # of a cell, all


def _compiled_kernels(
    entry: str, cell: Cell, dtype: str, features: frozenset[str], word: int, N: int
) -> dict[str, int]:
    """The addresses of a plan's kernels, compiled now or by an earlier process."""
    ahead = entry == FORWARD
    gates_kernel = "gates.forward_gates" if ahead else "gates.backward_gates"
    operand_kernel = "gates.operand_gates" if ahead else "gates.operand_backward_gates"
    part = entry.partition(".")[0]
    of_cell, of_all = _NORMALISING
    if cell.normalised:
        more = {name: compiled(f"layer_norm.{name}", dtype) for name in of_all}
    else:
        more = dict.fromkeys((*of_cell, *of_all), 0)
    kernels = _PRODUCTS | _OF_WORDS[word]
    kernels["multiply"] = in_tiles(kernels["multiply"], word, N)
    if word == 2:
        kernels["multiply_transposed"] = in_tiles(kernels["multiply_transposed"], word)
    with compiling(cell, f"{part} pass", dtype):
        return {
            "entry": compiled(entry),
            **dict.fromkeys(_OF_WORDS[2], 0),
            **{name: compiled(kernel, dtype) for name, kernel in kernels.items()},
            "gates_kernel": compiled(gates_kernel, dtype, cell, features),
            "operand_kernel": compiled(operand_kernel, dtype, cell, features)
            if cell.operand is not None
            else 0,
            **{
                name: compiled(f"layer_norm.{name}", dtype, cell)
                for name in of_cell
                if cell.normalised
            },
            **more,
            "steps_kernel": 0,
        }


def _fused_kernels(cell: Cell, dtype: str, projects: bool) -> dict[str, int]:
    """The same for a pass of ``fused_step.py``."""
    with compiling(cell, "forward pass of one sequence", dtype):
        steps = compiled("fused_step.fused_steps", dtype, cell)
        kernels = {
            "entry": compiled("fused_step.sequence", dtype, cell), "gates_kernel": steps,
            "steps_kernel": compiled("fused_step.projected_steps", dtype, cell)
            if projects
            else steps,
            "multiply": compiled("gemm.multiply", dtype) if projects else 0,
        }  # fmt: skip
    start, end = PLACES["multiply"], PLACES["xs"]
    return dict.fromkeys(Plan._fields[start:end], 0) | kernels


@contextmanager
def compiling(cell: Cell, what: str, dtype: str) -> Iterator[None]:
    """Kernels of a cell are compiled inside; an error says what the cell's author needs of it."""
    try:
        with warn_if_slow_compile(f"the {what} of {cell.name} ({dtype})"):
            yield
    except CompileError as error:
        raise TypeError(_compile_error(cell, what, str(error))) from error


def _compile_error(cell: Cell, what: str, message: str) -> str:
    """Numba's message, led by what the cell's author needs of it."""
    file = Path(cell.forward.__code__.co_filename).name
    lines = [
        line
        for name, line in re.findall(r'File "([^"]*)", line (\d+)', message)
        if name.endswith(file)
    ]
    where = f", {file} line {lines[-1]}" if lines else ""
    return (
        f"cell {cell.name!r}, {what}{where}: does not compile; cell functions may use "
        f"+ - * / and the functions of functions.py (see kernels/cells/cell.py). Numba says:\n"
        f"{message}"
    )
