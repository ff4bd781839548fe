"""Streams: a stack of layers that lives on, fed one step or a few at a time.

A stream has its weights packed and all its memory at hand. One call runs through the stack, block
of time by block of time, and then through the affine layer on top:

    x --> layer 0 --> hidden states --> layer 1 --> hidden states --> affine --> out
            |                             |
          state                         state          read before a block, written after it

Every layer is a plan of the forward pass (``sequence.py``) of which nothing is kept, so that a
stream computes, bit for bit, what the layer computes for the whole sequence.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import boolean, int64, njit, types
from numba.np.numpy_support import from_dtype

from ..cells import Cell
from ..reference import Array
from . import products, sequence, threads
from .frames import (
    CACHED,
    announced,
    call,
    call_at,
    compiled,
    one_process_at_a_time,
    record,
    word,
    write_word,
)
from .lowering import layout
from .plans import address_of, aligned, places_of, plain, recipe
from .sequence import Plan
from .simd import VECTOR_BYTES

Layers = Sequence[tuple[Cell, Sequence[Array]]]


class StreamPlan(NamedTuple):
    """What a call works on: addresses, sizes in numbers, strides in bytes."""

    piece: int
    N: int
    inputs: int
    alone: int  # whether ``_enter`` may call the piece itself
    x: int  # (N, T, inputs)
    x_row: int
    x_time: int
    T: int
    out: int  # (N, T, outputs)
    out_row: int
    out_time: int
    block: int  # how many steps the plans of the layers are made for
    layers: int
    plans: int  # the address of their addresses
    size: int  # bytes of a number
    # the affine layer, if outputs is not 0: weights and bias in panels
    hidden: int
    outputs: int
    weights: int
    bias: int
    multiply: int
    add_up: int


_read_plan = record(StreamPlan)
_T, _XS, _HS = map(Plan._fields.index, ("T", "xs", "hs"))


def stream(frame):
    """A piece: some steps of a stack of layers."""
    me = _read_plan(frame)
    for start in range(0, me.T, me.block):
        count = min(me.block, me.T - start)
        x, x_row, x_time = me.x + start * me.x_time, me.x_row, me.x_time
        out = me.out + start * me.out_time
        for k in range(me.layers):
            plan = word(me.plans, k)
            write_word(plan + 8 * _T, count)
            write_word(plan + 8 * _XS, x)
            write_word(plan + 8 * (_XS + 1), x_row)
            write_word(plan + 8 * (_XS + 2), x_time)
            if k == me.layers - 1 and me.outputs == 0:
                write_word(plan + 8 * _HS, out)
                write_word(plan + 8 * (_HS + 1), me.out_row)
                write_word(plan + 8 * (_HS + 2), me.out_time)
            call_at(word(plan, 0), plan)
            x, x_row, x_time = word(plan, _HS), word(plan, _HS + 1), word(plan, _HS + 2)
        if me.outputs == 0:
            continue
        W = VECTOR_BYTES // me.size
        vectors = (me.outputs + W - 1) // W
        last = me.outputs - (vectors - 1) * W
        for n in range(me.N):
            to = out + n * me.out_row
            for t in range(count):
                call(me.add_up, (
                    me.bias, VECTOR_BYTES, 1, to + t * me.out_time, last, 0, vectors,
                ))  # fmt: skip
            call(me.multiply, (
                x + n * x_row, x_time, VECTOR_BYTES, 0, 1, me.hidden,
                me.weights, (me.hidden | 1) * VECTOR_BYTES,
                to, me.out_time, VECTOR_BYTES, count, vectors, last, 1, 0,
            ))  # fmt: skip


def _enter(x, words):
    """One step of x; False where its shape is another, or where a number in it is not finite."""
    if x.size != words[1] * words[2] or x.shape[x.ndim - 1] != words[2]:
        return False
    unfit = False
    for number in x.flat:
        unfit |= number - number != 0
    if unfit:
        return False
    words[4] = x.ctypes.data
    if words[3]:
        call_at(words[0], words.ctypes.data)
    return True


@cache
def _entrance(dtype: str, ndim: int) -> Any:
    """``_enter`` for arrays of a dtype; it takes no other."""
    array = types.Array(from_dtype(np.dtype(dtype)), ndim, "C")
    with one_process_at_a_time():
        return njit(
            boolean(array, int64[::1]), cache=CACHED, nogil=True, error_model="numpy"
        )(_enter)  # fmt: skip


# ---- from Python

_X = StreamPlan._fields.index("x")
_PACKED, _KEEP, _MULTIPLY, _WEIGHT_ROW, _WEIGHTS = map(
    Plan._fields.index, ("packed", "keep", "multiply", "weight_row", "pWx")
)


class NumbaStream:
    """A stack of layers with packed weights and its memory at hand.

    state   for each layer its states, (S, N, H): read before a call, written after it
    out     the result of the last step
    """

    def __init__(
        self, layers: Layers, affine: Sequence[Array] | None, N: int, shards: int, bfloat16: bool
    ) -> None:
        self._shards = shards
        self.state = [
            np.zeros((len(cell.states), N, params[1].shape[0]), params[1].dtype)
            for cell, params in layers
        ]
        layers = [(cell, tuple(plain(p).copy() for p in params)) for cell, params in layers]
        dtype = self.state[0].dtype
        with announced(f"a stream of {layers[0][0].name} ({dtype})"):
            packed = [_pack_weights(cell, params, bfloat16) for cell, params in layers]
            top = _pack_affine(affine) if affine is not None else None
            self._one = _Call(self, layers, packed, top, N, 1)
            self._many = _Call(self, layers, packed, top, N, max(1, 256 // N))
            self._enter = _entrance(dtype.name, 1 if N == 1 else 2)
        self.out = self._one.out[0, 0] if N == 1 else self._one.out[:, 0]

    def step(self, x: Array) -> bool:
        """One step of x (N, inputs), or (inputs,) for a batch of one; the result is in ``out``.

        False, and nothing done, where x has another shape or a number in it is not finite.
        Raises TypeError where x is not a C-contiguous, writable array of the stream's dtype.
        """
        one = self._one
        fits = self._enter(x, one.words)
        if fits and self._shards > 1:
            threads.team.run(one.words, self._shards, one.plans)
        return fits

    def run(self, xs: Array, out: Array) -> None:
        """xs (N, T, inputs) -> out (N, T, outputs)."""
        many = self._many
        many.words[_X : _X + 7] = (
            address_of(xs), *xs.strides[:2], xs.shape[1], address_of(out), *out.strides[:2]
        )  # fmt: skip
        threads.team.run(many.words, self._shards, many.plans)


class _Call:
    """A plan for calls of up to T steps, and all that it has the address of."""

    def __init__(
        self,
        stream_: NumbaStream,
        layers: Layers,
        packed: Sequence["_Packed"],
        top: "_Packed | None",
        N: int,
        T: int,
    ) -> None:
        shards = stream_._shards
        dtype = stream_.state[0].dtype
        first = xs = np.zeros((N, T, layers[0][1][0].shape[0]), dtype)
        self.plans = []
        self._kept: list[Any] = [layers, packed, top, first]
        for (cell, params), weights, state in zip(layers, packed, stream_.state, strict=True):
            D, H = params[0].shape[0], params[1].shape[0]
            hs = np.zeros((N, T, H), dtype)
            made = recipe(
                sequence.forward, cell, dtype.name, N, T, D, H, shards, 4 * shards <= N
            )  # fmt: skip
            memory = aligned(made.scratch_bytes, dtype), aligned(made.kept_bytes, dtype)
            plan = made.with_places(
                places_of(xs, params, state, state, hs), memory[1][1], memory[0][1]
            )  # fmt: skip
            plan[[_PACKED, _KEEP]] = 1, 0
            plan[_WEIGHTS : _WEIGHTS + 2] = weights.addresses
            if weights.bfloat16:
                plan[_WEIGHT_ROW] = VECTOR_BYTES // 2
                plan[_MULTIPLY] = compiled(products.multiply_bfloat16, dtype.name)
            self.plans.append(plan)
            self._kept += [memory, hs]
            xs = hs
        outputs = top.columns if top is not None else 0
        self.out = np.zeros((N, T, outputs), dtype) if outputs else hs
        weights_, bias = top.addresses if top is not None else (0, 0)
        addresses = np.array([address_of(plan) for plan in self.plans])
        self._kept.append(addresses)
        self.words = np.array(
            StreamPlan(
                piece=compiled(stream, dtype.name), N=N, inputs=first.shape[2], alone=shards == 1,
                x=address_of(first), x_row=first.strides[0], x_time=first.strides[1], T=T,
                out=address_of(self.out), out_row=self.out.strides[0],
                out_time=self.out.strides[1], block=T, layers=len(layers),
                plans=address_of(addresses), size=dtype.itemsize,
                hidden=hs.shape[2], outputs=outputs, weights=weights_, bias=bias,
                multiply=compiled(products.multiply, dtype.name),
                add_up=compiled(products.add_up, dtype.name),
            )
        )  # fmt: skip


class _Packed(NamedTuple):
    """Matrices in panels."""

    memory: list[Array]
    addresses: list[int]
    columns: int
    bfloat16: bool = False


def _pack_weights(cell: Cell, params: Sequence[Array], bfloat16: bool) -> _Packed:
    """Wx and Wh as ``sequence.py`` packs them: a matrix for each gate, in this engine's order."""
    Wx, Wh, _ = params
    at, H = layout(cell), Wh.shape[0]
    packed = [
        _panels(W[:, block * H : (block + 1) * H] for block in blocks)
        for W, blocks in ((Wx, at.x_blocks), (Wh, at.h_blocks))
    ]
    if bfloat16:
        packed = [_upper_halves(panels) for panels in packed]
    memory = [_placed(panels) for panels in packed]
    return _Packed([m for m, _ in memory], [a for _, a in memory], H, bfloat16)


def _pack_affine(affine: Sequence[Array]) -> _Packed:
    """W (H, outputs) and b (outputs,)."""
    W, b = affine
    memory = [_placed(_panels([matrix])) for matrix in (W, b[None])]
    return _Packed([m for m, _ in memory], [a for _, a in memory], W.shape[1])


def _panels(matrices: Any) -> Array:
    """The panels of matrices (rows, columns), one after the other (see ``products.py``)."""
    panels = []
    for matrix in matrices:
        rows, columns = matrix.shape
        lanes = VECTOR_BYTES // matrix.itemsize
        count = -(-columns // lanes)
        padded = np.zeros((rows | 1, count * lanes), matrix.dtype)
        padded[:rows, :columns] = matrix
        panels.append(padded.reshape(rows | 1, count, lanes).transpose(1, 0, 2))
    return np.concatenate(panels)


def _upper_halves(panels: Array) -> Array:
    """float32 as bfloat16: the upper 16 bits, rounded to the nearest (even)."""
    bits = panels.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _placed(panels: Array) -> tuple[Array, int]:
    """A copy whose address is a multiple of 64, and that address."""
    memory, address = aligned(panels.nbytes, panels.dtype)
    start = (address - address_of(memory)) // panels.itemsize
    memory[start : start + panels.size] = panels.reshape(-1)
    return memory, address
