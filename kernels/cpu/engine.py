"""The Numba engine: every cell, compiled for this CPU.

Here the arrays of a call are handed to a pass (``launch.py``), cut into segments where not all is
to be kept, and by it to a plan (``plans.py``). The rest is compiled: the pass over time in
``forward.py`` and ``backward.py``, the cell's arithmetic in ``gates.py``, products in ``gemm.py``,
all of them on vectors (``simd.py``), shared by threads (``threads.py``).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .. import disk_cache
from ..cells import Cell
from ..engine import Array, Engine, GateRows, Gradients, State, expect_consistent, written
from ..quantisation import QuantisedWeight, expect_trainable, is_quantised
from ..ragged import Ragged
from ..reference import NumpyEngine
from ..sparse_rows import SparseRows, numbers_of
from ..step_options import NO_OPTIONS, StepOptions
from . import kernel_cache, product, threads, training
from .dropout import dropout
from .gate_rows import gate_rows
from .kernel_cache import CompileError, Compiler
from .launch import SequenceRun
from .packing import pack_quantised
from .plans import address_of, chunk_rows, contiguous_rows, merge_bias, split_bias, takes
from .ragged_rows import pack_rows, unpack_rows
from .streaming import NumbaStream
from .target import bfloat16_road, int8_road, vector_registers


def _load_compiler() -> Compiler:
    from .compilation import compile_kernel  # and Numba, where something is to be compiled

    return compile_kernel


kernel_cache.load_compiler = _load_compiler


class NumbaEngine(NumpyEngine):
    """Forward and backward of any cell, compiled for this CPU.

    precision  of the products of float32: "float32", or "bfloat16" (``bfloat16.py``)
    """

    name = "numba"
    step = Engine.step  # a pass of one step

    def __init__(self, precision: str = "float32") -> None:
        self.precision = precision

    def with_precision(self, precision: str) -> "NumbaEngine":
        return _with_precision("bfloat16" if precision == "bfloat16" else "float32")

    @property
    def _bfloat16(self) -> bool:
        return self.precision == "bfloat16"

    def forward(
        self,
        cell: Cell,
        xs: Array,
        state: State,
        params: Sequence[Array],
        steps: StepOptions = NO_OPTIONS,
    ) -> tuple[Array, State, Any]:
        expect_consistent(cell, xs, state, params)
        if steps.mask is None:
            return self._forward(cell, xs, state, params, steps)
        members = Ragged.of_flags(steps.mask, steps.resets)
        if members is None:
            return self._forward(cell, steps.live_inputs(np, xs), state, params, steps)
        rows, sorted_state = pack_rows(members, xs), tuple(s[members.order] for s in state)
        options, by_time = members.options(steps), xs.strides[0] < xs.strides[1]
        hs, last, (run, kept) = self._forward(
            cell, rows, sorted_state, params, options, members, True, by_time
        )
        last = tuple(map(members.restore, last))
        ends = (tuple(s.copy() for s in states) for states in (state, last))
        return hs, last, (run, _Padded(kept, *ends))

    def _forward(
        self,
        cell: Cell,
        xs: Array,
        state: State,
        params: Sequence[Array],
        steps: StepOptions,
        members: Ragged | None = None,
        padded: bool = False,
        by_time: bool = False,
    ) -> tuple[Array, State, Any]:
        """``forward``; of members that differ in length xs is (rows, D), and hs (rows, P) unless it
        is to be padded.
        """
        H, ragged = cell.hidden_size(params), None
        P = cell.output_size(params) if cell.projected else H
        if members is not None:
            ragged = members, members.cut(chunk_rows(cell, xs.shape[1], H, xs.itemsize))
            xs = steps.live_inputs(np, xs)[:, None]
        run = SequenceRun(
            cell, contiguous_rows(xs), merge_bias(cell, params), H, P, steps, ragged=ragged,
            padded=padded, by_time=by_time,
            word=2 if self._bfloat16 and xs.dtype == np.float32 else 1,
        )  # fmt: skip
        if P < H:
            state = cell.widened(np, state, H)
        kept: Any
        if is_quantised(params):  # nothing is kept: there is no backward
            run = replace(run, word=4, packed=pack_quantised(cell, params))
            hs, last, _ = run.forward(state, keep=False)
            kept = params, tuple(s.copy() for s in state)
        elif not steps.checkpoint_every:
            hs, last, kept = run.forward(state)
        else:
            kept, hs = [], run.empty_hs()
            last = tuple(s.copy() for s in state)  # backward needs them as they are now
            for segment in run.segments():
                count = segment.sizes[0]
                kept.append(tuple(s[:count] for s in last))
                _, after, _ = segment.forward(kept[-1], False, hs[segment.hs_block])
                pairs = zip(after, last, strict=True)
                last = tuple(np.concatenate([s, ended[count:]]) for s, ended in pairs)
        if members is not None and not padded:
            hs = hs[:, 0]
        return hs, cell.narrowed(last, run.P), (run, kept)

    def backward(
        self,
        cell: Cell,
        dhs: Array,
        dstate: State,
        saved: Any,
        inputs: bool = True,
        out: Sequence[Array] | None = None,
    ) -> Gradients:
        run, kept = saved
        if not run.padded:
            return self._backward(cell, dhs, dstate, run, kept, inputs, out)
        members, _ = run.ragged
        sorted_dstate = tuple(d[members.order] for d in dstate)
        found = self._backward(cell, dhs, sorted_dstate, run, kept.saved, inputs, out)
        dxs, dfirst, states = found.xs, tuple(map(members.restore, found.state)), found.states
        if dxs is not None:
            dxs = unpack_rows(members, dxs, run.by_time)
        if states is not None:
            ends = (np.stack(cell.widened(np, d, run.H), axis=1) for d in (dfirst, dstate))
            members.fill(states := members.unpack(states), *ends)
        return found._replace(xs=dxs, state=dfirst, states=states)

    def forward_packed(
        self,
        cell: Cell,
        xs: Array,
        members: Ragged,
        state: State,
        params: Sequence[Array],
        steps: StepOptions = NO_OPTIONS,
    ) -> tuple[Array, State, Any]:
        return self._forward(cell, xs, state, params, steps, members)

    def backward_packed(
        self,
        cell: Cell,
        dhs: Array,
        dstate: State,
        saved: Any,
        inputs: bool = True,
        out: Sequence[Array] | None = None,
    ) -> Gradients:
        run, kept = saved
        return self._backward(cell, dhs, dstate, run, kept, inputs, out)

    def _backward(
        self,
        cell: Cell,
        dhs: Array,
        dstate: State,
        run: SequenceRun,
        kept: Any,
        inputs: bool = True,
        out: Sequence[Array] | None = None,
    ) -> Gradients:
        """``backward``; of members that differ in length dxs and states are (rows, ...)."""
        if run.packed is not None:
            expect_trainable(kept[0])
        members = None if run.ragged is None else run.ragged[0]
        if members is not None and not run.padded:
            dhs = dhs[:, None]
        dhs = contiguous_rows(dhs)
        into: tuple[Array, ...] = ()
        if out is not None and not cell.weights:
            into = tuple(out) if cell.recurrent_gates else cell.complete(out)[:3]
        if not (into and takes(into, run.params)):
            into = tuple(np.empty(p.shape, p.dtype) for p in run.params)
        if run.P < run.H:
            dstate = cell.widened(np, dstate, run.H)
        # the last: through h Wh of the next step
        d = np.zeros((len(dstate) + 1, *dstate[0].shape), dstate[0].dtype)
        d[:-1] = dstate
        if not run.steps.checkpoint_every:
            dxs, d, dreset, dstates = run.backward(dhs, d, kept, into, inputs)
        else:
            dxs, dreset, dstates = np.empty(run.xs.shape, run.xs.dtype), None, None
            if run.steps.trace:
                dstates = np.empty((*run.xs.shape[:2], len(cell.states), run.H), dhs.dtype)
            if run.steps.resets is not None:
                dreset = np.zeros_like(d[:-1])
            pairs = zip(run.segments(), kept, strict=True)
            for k, (segment, start) in enumerate(reversed(list(pairs))):
                kept_again, count = segment.again(start), segment.sizes[0]
                stopped = None if dreset is None else dreset[:, :count]
                arrays = dhs[segment.hs_block], d[:, :count].copy(), kept_again, into, inputs
                dxs_there, d[:, :count], stopped, seen = segment.backward(*arrays, k > 0, stopped)
                if dreset is not None:
                    dreset[:, :count] = stopped
                if inputs:
                    dxs[segment.block] = dxs_there
                if dstates is not None:
                    dstates[segment.block] = seen
        if members is not None:
            dxs, dstates = dxs[:, 0], None if dstates is None else dstates[:, 0]
            dreset = None if dreset is None else members.restore(dreset)  # summed in that order
        first, h_grad = d[:-1], d[-1]
        first[0] += (
            h_grad if run.steps.recurrent_mask is None else h_grad * run.steps.recurrent_mask
        )
        dinitial = None if dreset is None else np.stack(list(map(self.sum_rows, dreset)))
        params = written(split_bias(cell, into), out)
        dstate = tuple(first) if run.P == run.H else cell.narrowed(tuple(first), run.P)
        return Gradients(dxs if inputs else None, dstate, params, dinitial, dstates)

    def states_before(self, cell: Cell, saved: Any) -> tuple[Array, ...]:
        run, kept = saved
        if run.padded:
            kept, *ends = kept
        if run.packed is not None:
            states = run.states_before(run.again(kept[1]))
        elif not run.steps.checkpoint_every:
            states = run.states_before(kept)
        else:
            segments = zip(run.segments(), kept, strict=True)
            seen = [segment.states_before(segment.again(start)) for segment, start in segments]
            axis = 1 if run.ragged is None else 0
            states = tuple(np.concatenate(states, axis) for states in zip(*seen, strict=True))
        states = cell.narrowed(states, run.P)
        if not run.padded:
            return states
        members, _ = run.ragged
        found = tuple(map(members.unpack, states))
        for array, first, last in zip(found, *ends, strict=True):
            members.fill(array, first, last)
        return found

    def update_all(
        self,
        rule: Callable[..., tuple[Array, ...]],
        groups: Sequence[Sequence[Array]],
        numbers: Sequence[float],
        factor: Any = 1.0,
    ) -> None:
        compilable, rest = _by_dtype(groups)
        for together in compilable:
            compiled = inspect.isfunction(rule) and rule not in _INTERPRETED
            if compiled:
                try:
                    training.update(rule, together, (factor, *numbers))
                except CompileError:  # a rule that says more than a cell may
                    compiled = False
                    _INTERPRETED.add(rule)
            rest += [] if compiled else together
        super().update_all(rule, rest, numbers, factor)

    def product(self, a: Array, b: Array) -> Array:
        if isinstance(b, QuantisedWeight) and b.axis == 1 and a.dtype == np.float32:
            rows = np.ascontiguousarray(a).reshape(-1, a.shape[-1])
            return product.quantised_product(rows, b).reshape(*a.shape[:-1], b.shape[1])
        if product.takes(a, b):
            return product.product(a, b, bfloat16=self._bfloat16)
        return super().product(a, b)

    def affine(self, xs: Array, W: Array, b: Array) -> Array:
        if isinstance(W, QuantisedWeight) and xs.dtype == np.float32:
            return product.quantised_product(
                np.ascontiguousarray(xs), W, np.ascontiguousarray(b, np.float32)
            )
        if product.takes(xs, W) and b.flags.c_contiguous:
            return product.product(xs, W, bias=b, bfloat16=self._bfloat16)
        return super().affine(xs, W, b)

    def affine_backward(self, xs: Array, W: Array, dout: Array, dW: Array, db: Array) -> Array:
        in_rows = dW.strides[1] == db.strides[0] == dW.itemsize
        if not (product.takes(xs.T, dout) and in_rows):
            return super().affine_backward(xs, W, dout, dW, db)
        product.product(xs.T, dout, out=dW, sums=db, bfloat16=self._bfloat16)
        return self.product(dout, W.T)

    def sum_of_squares(self, arrays: Sequence[Array]) -> float:
        groups, rest = _by_dtype([[array] for array in arrays])
        squares = [training.sum_of_squares([a for (a,) in group]) for group in groups]
        return math.fsum(squares) + super().sum_of_squares([a for (a,) in rest])

    def add_rows(self, out: Array, rows: Array, values: Array) -> None:
        side_by_side = out.flags.c_contiguous and values.flags.c_contiguous
        if side_by_side and out.dtype == values.dtype and out.dtype in _FLOATS and len(rows):
            training.add_rows(out, rows, values)
        else:
            super().add_rows(out, rows, values)

    def log_sum_exp(self, scores: Array) -> Array:
        return training.log_sum_exp(np.ascontiguousarray(scores))

    def softmax_gradient(
        self, scores: Array, log_sums: Array, labels: Array, weights: Array
    ) -> Array:
        scores = np.ascontiguousarray(scores)
        return training.softmax_gradient(scores, log_sums, labels, weights)

    def dropout(
        self, seed: int, shape: Sequence[int], rate: float, dtype: Any, row_offset: int = 0
    ) -> Array:
        return dropout(seed, shape, rate, dtype, row_offset)

    def stream(
        self,
        layers: Sequence[tuple[Any, ...]],
        affine: Sequence[Array] | None,
        batch: int,
        shards: int = 1,
        bfloat16: bool = False,
    ) -> NumbaStream:
        return NumbaStream(layers, affine, batch, shards, bfloat16 or self._bfloat16)

    def gate_rows(
        self, cell: Cell, blocks: tuple[tuple[int, int, int], ...], dtype: str
    ) -> GateRows | None:
        return None if self._bfloat16 else gate_rows(cell, blocks, dtype)

    def using_openmp(self, parallel: int, count: int) -> AbstractContextManager[None]:
        return threads.team.borrow(parallel, count)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(), "threads": threads.available(),
            "simd_bits": vector_registers()[1], "cache": disk_cache.describe(),
            "int8": int8_road(),
            "precision": bfloat16_road() if self._bfloat16 else "float32",
        }  # fmt: skip


class _Padded(NamedTuple):
    """The record of a batch whose members differ in length, and the states before and after."""

    saved: Any
    first: State
    last: State


@cache
def _with_precision(precision: str) -> NumbaEngine:
    return NumbaEngine(precision)


_INTERPRETED: set[Any] = set()  # rules of optimisers that cannot be compiled


def _by_dtype(groups: Sequence[Sequence[Array]]) -> tuple[list[list[Any]], list[Any]]:
    """Groups of arrays whose numbers lie side by side, in one order for all, by dtype; the rest.

    A group whose first array shares memory with that of another is among the rest: threads would
    change it at once.
    """
    places = [address_of(group[0]) for group in groups]
    shared, end = set(), 0
    for k in sorted(range(len(groups)), key=places.__getitem__):
        if places[k] < end:
            shared.add(k)
        end = max(end, places[k] + groups[k][0].nbytes)
    found: dict[Any, list[Any]] = {}
    rest = []
    for k, group in enumerate(groups):
        flags, dtype = [array.flags for array in numbers_of(group)], group[0].dtype
        in_order = all(f.c_contiguous for f in flags) or (
            all(f.f_contiguous for f in flags) and not isinstance(group[-1], SparseRows)
        )
        plain = dtype in _FLOATS and all(array.dtype == dtype for array in group)
        if in_order and plain and k not in shared:
            found.setdefault(dtype, []).append(group)
        else:
            rest.append(group)
    return list(found.values()), rest


_FLOATS = np.dtype(np.float32), np.dtype(np.float64)  # in the machine's byte order
