"""The Numba engine: every cell, compiled for this CPU.

Here the arrays of a call are turned into a plan of addresses (``sequence.Plan``); what is done
with them is compiled: the pass in ``sequence.py``, the cell's arithmetic in ``gates.py``, products
in ``products.py``, threads in ``threads.py``.
"""

import re
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding
from numba.core.errors import NumbaError

from ..cells import Cell
from ..reference import Array, ReferenceEngine, State, expect_consistent
from . import gates, products, sequence, threads
from .frames import CACHED, announced, cache_folder, compiled
from .lowering import layout
from .sequence import Plan
from .simd import VECTOR_BYTES



class NumbaEngine(ReferenceEngine):
    """Forward and backward of any cell, compiled for this CPU."""

    name = "numba"

    def forward(
        self, cell: Cell, xs: Array, state: State, params: Sequence[Array]
    ) -> tuple[Array, State, Any]:
        expect_consistent(cell, xs, state, params)
        xs, params = _rows_plain(xs), tuple(map(_plain, params))
        N, T, D = xs.shape
        H = params[1].shape[0]
        recipe = _recipe(sequence.forward, cell, xs.dtype.str, N, T, D, H)
        kept = _Kept(recipe.kept_bytes, xs.dtype)
        state_in, state_out = np.array(state), np.empty((len(state), N, H), xs.dtype)
        hs = np.empty((N, T, H), xs.dtype)
        words = recipe.words(
            _places(xs, params, state_in, state_out, hs), _scratch(recipe, xs.dtype), kept.memory
        )
        threads.team.run(words, recipe.shards)
        return hs, tuple(state_out), (cell, xs, params, kept)

    def backward(
        self, cell: Cell, dhs: Array, dstate: State, saved: Any
    ) -> tuple[Array, State, tuple[Array, ...]]:
        _, xs, params, kept = saved
        dhs = _rows_plain(dhs)
        N, T, D = xs.shape
        H = params[1].shape[0]
        recipe = _recipe(sequence.backward, cell, xs.dtype.str, N, T, D, H)
        state_in = np.zeros((len(dstate) + 1, N, H), xs.dtype)
        for s, after in enumerate(dstate):
            state_in[s] = after
        state_out = np.empty_like(state_in)
        dxs = np.empty((N, T, D), xs.dtype)
        gradients = tuple(np.empty(p.shape, p.dtype) for p in params)
        words = recipe.words(
            (*_places(xs, params, state_in, state_out, dhs), *map(_address, (dxs, *gradients))),
            _scratch(recipe, xs.dtype),
            kept.memory,
        )
        threads.team.run(words, recipe.shards)
        state_out[0] += state_out[-1]  # what came through h Wh of the first step
        return dxs, tuple(state_out[:-1]), gradients

    def step(self, cell: Cell, x: Array, state: State, params: Sequence[Array]) -> State:
        return self.forward(cell, x[:, None], state, params)[1]

    def describe(self) -> dict[str, Any]:
        features = binding.get_host_cpu_features()
        widths = {"avx512f": 512, "avx": 256, "sse2": 128, "neon": 128}
        simd_bits = max((bits for name, bits in widths.items() if features.get(name)), default=64)
        cache = "off: no folder can be written to; set NUMBA_CACHE_DIR"
        if CACHED:
            cache = str(cache_folder())
        return {
            **super().describe(), "threads": threads.available(), "simd_bits": simd_bits,
            "cache": cache,
        }  # fmt: skip


# ---- a plan


class _Recipe(NamedTuple):
    """A plan but for its addresses, and how much memory it needs."""

    plan: Array  # addresses of our own count from the start of their block
    shards: int
    scratch_bytes: int
    kept_bytes: int

    def words(self, places: tuple[int, ...], scratch: Array, kept: Array) -> Array:
        """The plan as compiled code reads it."""
        words = self.plan.copy()
        words[_PLACES : _PLACES + len(places)] = places
        words[_SCRATCH:_KEPT] += _address(scratch)
        words[_KEPT:] += _address(kept)
        return words


_PLACES, _SCRATCH, _KEPT = map(Plan._fields.index, ("xs", "pWx", "state"))


@cache
def _recipe(
    driver: Callable[[Any], None], cell: Cell, dtype: str, N: int, T: int, D: int, H: int
) -> _Recipe:
    """How to run a pass over arrays of these sizes."""
    at = layout(cell)
    size = np.dtype(dtype).itemsize
    W = VECTOR_BYTES // size
    units, inputs = -(-H // W), -(-D // W)
    chunks, steps = _chunks(N, T, size * (D + H) * H * len(cell.gates))
    states, recurrent = len(cell.states), at.early + at.late

    def panels(count: int, rows: int) -> int:
        return count * (rows | 1) * VECTOR_BYTES

    forward = driver is sequence.forward
    of_chunk, of_step = steps * N, N
    scratch = {
        "pWx": panels(at.x_gates * units, D) if forward else panels(inputs, at.x_gates * H),
        "pWh": panels(recurrent * units, H)
        if forward
        else panels(units, at.early * H) + panels(units, at.late * H),
        "x_side": panels(at.x_gates * units, of_chunk) if forward else 0,
        "e_side": panels(at.early * units, of_step) if forward else 0,
        "l_side": panels(at.late * units, of_step) if forward else 0,
        "delta": 0 if forward else panels(len(cell.gates) * units, of_chunk),
        "dstate": 0 if forward else panels((states + 1) * units, of_step),
        "doperand": 0 if forward else panels(units, of_step),
        "x_panels": 0 if forward else panels(inputs, of_chunk),
    }
    kept = {
        "state": chunks * panels(states * units, of_chunk),
        "end": panels(states * units, of_step),
        "saved": chunks * panels(at.stored * units, of_chunk),
        "operand": chunks * panels(units, of_chunk) if at.late else 0,
    }
    shards, by_rows = _shards(cell, N, T, D, H)
    with_operand = gates.operand_gates if forward else gates.operand_backward_gates
    plan = Plan(
        driver=_compiled(driver, cell, dtype, ""), thread=0, shards=shards,
        team=0, job=0, by_rows=by_rows,
        N=N, T=T, D=D, H=H, units=units, steps=steps, chunks=chunks,
        units_at_once=max(4, 16384 // (-(-N // shards) * at.early * VECTOR_BYTES) // 4 * 4), size=size,
        gates=len(cell.gates), x_gates=at.x_gates, early=at.early, late=at.late,
        states=states, stored=at.stored,
        **{
            name: _compiled(getattr(products, name), cell, dtype, "")
            for name in (
                "multiply", "multiply_transposed", "pack", "pack_transposed", "unpack", "add_up"
            )
        },
        gates_piece=_compiled(
            gates.forward_gates if forward else gates.backward_gates, cell, dtype,
            "forward" if forward else "backward",
        ),
        operand_piece=_compiled(
            with_operand, cell, dtype, "forward" if forward else "backward"
        ) if at.late else 0,
        **dict.fromkeys(Plan._fields[_PLACES:_SCRATCH], 0),
        **_offsets(scratch), **_offsets(kept),
    )  # fmt: skip
    plan = plan._replace(
        keep=1, x_blocks=_table(at.x_blocks), h_blocks=_table(at.h_blocks)
    )
    return _Recipe(
        np.array(plan, np.int64), shards, sum(scratch.values()), sum(kept.values())
    )


def _chunks(N: int, T: int, weight_bytes: int) -> tuple[int, int]:
    """Into how many chunks of how many steps time is cut; at least two steps, if there are two.

    256 rows leave a chunk in the second cache; where the weights do not fit there either, more
    rows, so that the gradients of the weights are fetched and added to less often (measured).
    """
    rows = min(256 + weight_bytes // 20_000, 768)
    most = max(2, -(-rows // N))
    chunks = -(-T // most)
    return chunks, -(-T // chunks)


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
    return _address(_tables.setdefault(numbers, np.array(numbers, np.int64)))


def _shards(cell: Cell, N: int, T: int, D: int, H: int) -> tuple[int, int]:
    """Into how many shards a pass is cut, and whether by rows of the batch."""
    threads_ = threads.available()
    operations = 2 * N * T * H * len(cell.gates) * (D + H)
    if threads_ == 1 or operations < 4_000_000:
        return 1, 1
    return threads_, int(N >= 4 * threads_)


# ---- arrays and memory


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _plain(array: Array) -> Array:
    """C-contiguous, by a copy if need be."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _rows_plain(array: Array) -> Array:
    """The last axis without gaps, by a copy if need be."""
    return array if array.strides[2] == array.itemsize else np.ascontiguousarray(array)


def _places(
    xs: Array, params: Sequence[Array], state_in: Array, state_out: Array, hs: Array
) -> tuple[int, ...]:
    """The fields of a plan from xs to hs_time."""
    Wx, Wh, b = params
    return (
        _address(xs), *xs.strides[:2], _address(Wx), Wx.strides[0], _address(Wh), Wh.strides[0],
        _address(b), b.strides[0] if b.ndim == 2 else 0,
        _address(state_in), _address(state_out), _address(hs), *hs.strides[:2],
    )  # fmt: skip


def _aligned(size: int, dtype: Any) -> Array:
    """Memory that begins at a multiple of 64 bytes."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.empty((size + VECTOR_BYTES) // itemsize, dtype)
    start = -(_address(memory) // itemsize) % (VECTOR_BYTES // itemsize)
    return memory[start:]


class _Kept:
    """Memory for what is kept until backward; the last one given back serves the next forward.

    Fresh memory costs the system a tenth of a forward pass.
    """

    _spare: list[Array] = []

    def __init__(self, size: int, dtype: Any) -> None:
        memory = self._spare.pop() if self._spare else None
        if memory is None or memory.dtype != dtype or not size <= memory.nbytes <= 2 * size + 4096:
            memory = _aligned(size, dtype)
        self.memory = memory

    def __del__(self) -> None:
        if not self._spare:
            self._spare.append(self.memory)


_of_thread = threading.local()


def _scratch(recipe: _Recipe, dtype: Any) -> Array:
    """Memory for a pass, used again by this thread's next one."""
    memory = getattr(_of_thread, "memory", None)
    if memory is None or memory.nbytes < recipe.scratch_bytes or memory.dtype != dtype:
        memory = _of_thread.memory = _aligned(recipe.scratch_bytes, dtype)
    return memory


# ---- compilation


def _compiled(piece: Callable[[Any], None], cell: Cell, dtype: str, part: str) -> int:
    """The address of a piece; ``part`` names the cell's pass where it is made of the cell."""
    what = f"the {part} pass of {cell.name}" if part else piece.__name__
    try:
        with announced(what):
            return compiled(piece, np.dtype(dtype).name, cell if part else None)
    except NumbaError as error:
        raise TypeError(_compile_error(cell, part, str(error))) from error


def _compile_error(cell: Cell, part: str, message: str) -> str:
    """Numba's message, led by what the cell's author needs of it."""
    file = Path(cell.forward.__code__.co_filename).name
    lines = [
        line
        for name, line in re.findall(r'File "([^"]*)", line (\d+)', message)
        if name.endswith(file)
    ]
    where = f", {file} line {lines[-1]}" if lines else ""
    return (
        f"cell {cell.name!r}, {part} pass{where}: does not compile; cell functions may use "
        f"+ - * / and the functions of functions.py (see kernels/cells/cell.py). Numba says:\n"
        f"{message}"
    )
