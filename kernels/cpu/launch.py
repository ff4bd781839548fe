"""A pass over a block of time, or over a segment of it.

Forward keeps what backward needs, or only the states at the beginning of some segments: then
backward runs forward over a segment again, just before it needs it. Segments are made of whole
chunks of the block (``schedule.py``): sums are made in the same order, and no bit depends on
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import step
from ..cells import Cell
from ..engine import Array, State
from ..once import cached_property
from ..step_options import StepOptions
from . import threads
from .option_memory import OptionMemory, compiled_features
from .packing import Packed, write_packed
from .plan import PLACES
from .plans import (
    BACKWARD,
    FORWARD,
    PlanTemplate,
    SavedBuffer,
    choose_partition,
    chunk_steps,
    contiguous_rows,
    plan_template,
    read_saved_states,
)


@dataclass(eq=False)
class SequenceRun:
    """The arrays of a pass.

    params  Wx, Wh and b, as ``plans.with_weights`` makes them
    H, P    how many units there are, and how many numbers h has
    times   which steps of the block xs are
    chunk   how many steps are a chunk; 0: as many as are best
    partition  shards, and whether they are made by rows; None: as is best
    word       numbers in a word of the products' operands: 1, 2 of bfloat16, 4 in int8
    packed     the weights, if they are in panels already
    """

    cell: Cell
    xs: Array
    params: tuple[Array, ...]
    H: int
    P: int
    steps: StepOptions
    times: slice | None = None
    chunk: int = 0
    partition: tuple[int, bool] | None = None
    word: int = 1
    packed: Packed | None = None

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """N, T, D, H."""
        return (*self.xs.shape, self.H)

    def segments(self) -> Iterator["SequenceRun"]:
        """The segments of ``steps.checkpoint_every`` steps, or a little more, that make up the
        pass."""
        N, T, D, H = self.sizes
        chunk = chunk_steps(self.cell, N, T, D, H, self.xs.itemsize)
        count = -(-self.steps.checkpoint_every // chunk) * chunk
        partition = choose_partition(self.cell, N, T, D, H)
        for start in range(0, T, count):
            times = slice(start, min(T, start + count))
            steps = self.steps.segment(times.start, times.stop)
            xs = self.xs[:, times]
            yield replace(self, xs=xs, steps=steps, times=times, chunk=chunk, partition=partition)

    def _template(self, entry: str, keep: bool = True, add: bool = False) -> PlanTemplate:
        N, T, D = self.xs.shape
        shards, split_batch = self.partition or choose_partition(self.cell, N, T, D, self.H)
        return plan_template(  # by position, which takes half as long
            entry, self.cell, self.xs.dtype, N, T, D, self.H, self.P, shards, split_batch, keep,
            compiled_features(self.steps.features, entry == BACKWARD),
            self.steps.recurrent_mask is not None, self.chunk, add, self.word,
            self.packed is not None,
        )  # fmt: skip

    def forward(self, state: State, keep: bool = True) -> tuple[Array, State, SavedBuffer]:
        """hs, the state after the last step, and what is kept."""
        N, T, _, H = self.sizes
        template = self._template(FORWARD, keep)
        saved = SavedBuffer(template.kept_bytes, self.xs.dtype)
        state_in = np.array(state)
        if self.steps.resets is not None:
            first = StepOptions(resets=self.steps.resets, initial=self.steps.initial).at(0, state)
            state_in = np.array(step.apply_reset(state, first))
        if self.steps.recurrent_mask is not None:
            state_in = np.concatenate([state_in, state_in[:1] * self.steps.recurrent_mask])
        state_out = np.empty((len(state), N, H), self.xs.dtype)
        hs = np.empty((N, T, self.P), self.xs.dtype)
        if self.xs.strides[0] < self.xs.strides[1]:  # its steps lie one after the other: so here
            hs = np.empty((T, N, self.P), self.xs.dtype).transpose(1, 0, 2)
        options = self._options if compiled_features(self.steps.features, False) else None
        self._run(template, (self.xs, self.params, state_in, state_out, hs), saved, options)
        return hs, tuple(state_out), saved

    def backward(
        self,
        dhs: Array,
        d: Array,
        saved: SavedBuffer,
        into: Sequence[Array],
        inputs: bool = True,
        add: bool = False,
        dreset: Array | None = None,
    ) -> tuple[Array, Array, Array | None, Array | None]:
        """dxs, d before the first step, the gradient that resets stopped, and the trace.

        d        (S + 1, N, H), the gradient of the state; the last: what came through h Wh
        into     the gradients of Wx, Wh and b: written, or added to
        inputs   whether dxs is asked for; it is not filled if not
        dreset   (S, N, H), what resets in later segments have stopped
        """
        if dhs.dtype != self.xs.dtype:
            raise TypeError(f"dhs: expected {self.xs.dtype}, as xs is, got {dhs.dtype}")
        template = self._template(BACKWARD, add=add)
        dhs, d_out = contiguous_rows(dhs), np.empty_like(d)
        dxs = np.empty(self.xs.shape, self.xs.dtype)
        options = None
        if compiled_features(self.steps.features, True):
            options = self._options.for_backward(dreset)
        arrays = self.xs, self.params, d, d_out, dhs, (dxs, *into)
        self._run(template, arrays, saved, options, inputs)
        if options is None:
            return dxs, d_out, None, None
        dreset, recurrent_mask = options.dreset(), self.steps.recurrent_mask
        if dreset is not None and self.steps.resets is not None:
            again = self.steps.resets[:, 0]
            # in the order of ``step.reset_backward``
            h_grad = d_out[-1] if recurrent_mask is None else d_out[-1] * recurrent_mask
            d_out[0, again] += h_grad[again]
            dreset[:, again] += d_out[:-1, again]
            d_out[:, again] = 0
        return dxs, d_out, dreset, options.trace

    def _run(
        self,
        template: PlanTemplate,
        arrays: tuple[Any, ...],
        saved: SavedBuffer,
        options: OptionMemory | None,
        inputs: bool = True,
    ) -> None:
        """Run a pass: alone within the call that writes the arrays into its plan, or by threads."""
        alone = template.shards == 1 and self.packed is None
        address = 0 if options is None else options.address
        plan = template.with_arrays(
            *arrays, kept=saved.address, options=address, inputs=inputs, run=alone
        )
        if alone:
            return
        if self.packed is not None:
            write_packed(plan, self.packed)
        entry, self_address = int(plan[PLACES["entry"]]), int(plan[PLACES["self_address"]])
        threads.team.run(entry, self_address, template.shards, [plan])

    @cached_property
    def _options(self) -> OptionMemory:
        N, T, _, H = self.sizes
        return OptionMemory(self.steps, self.cell, N, T, H, self.xs.dtype)

    def states_before(self, saved: SavedBuffer) -> tuple[Array, ...]:
        """The state that every step saw, (N, T, H) each."""
        return read_saved_states(self._template(FORWARD), saved, self.cell)
