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
from ..ragged import Ragged
from ..step_options import StepOptions
from . import threads
from .option_memory import OptionMemory, compiled_features
from .packing import Packed, write_packed
from .plan import PLACES, write
from .plans import (
    BACKWARD,
    FORWARD,
    Cut,
    PlanTemplate,
    SavedBuffer,
    address_of,
    choose_partition,
    chunk_steps,
    contiguous_rows,
    plan_template,
    read_ragged_states,
    read_saved_states,
)


@dataclass(eq=False)
class SequenceRun:
    """The arrays of a pass.

    xs      (N, T, D); of a ragged batch (rows, 1, D)
    padded  whether hs and dhs are (N, T, P) nevertheless, and by_time whether the steps of hs then
            lie one after the other in memory
    params  Wx, Wh and b, as ``plans.with_weights`` makes them
    H, P    how many units there are, and how many numbers h has
    times   which steps of the block xs are; of a ragged batch which rows
    chunk   how many steps are a chunk; 0: as many as are best
    ragged  which steps its members have, and the first step of each chunk; None: all have all
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
    ragged: tuple[Ragged, list[int]] | None = None
    padded: bool = False
    by_time: bool = False
    partition: tuple[int, bool] | None = None
    word: int = 1
    packed: Packed | None = None

    @property
    def block(self) -> Any:
        """Where the arrays of a segment are in those of the whole pass."""
        return (slice(None), self.times) if self.ragged is None else self.times

    @property
    def hs_block(self) -> Any:
        """The same for hs."""
        return ... if self.padded else self.block

    def empty_hs(self) -> Array:
        """Memory for hs, 0 where a padded member has no step."""
        rows, times, _ = self.xs.shape
        make, by_time = np.empty, self.xs.strides[0] < self.xs.strides[1]
        if self.padded and self.ragged is not None:
            members, _ = self.ragged
            make, rows, times, by_time = np.zeros, members.N, members.T, self.by_time
        if by_time:  # its steps lie one after the other: so here
            return make((times, rows, self.P), self.xs.dtype).transpose(1, 0, 2)
        return make((rows, times, self.P), self.xs.dtype)

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """N, T, D, H."""
        N, T, D = self.xs.shape
        if self.ragged is not None:
            N, T = self.ragged[0].N, self.ragged[0].steps
        return N, T, D, self.H

    def _choose_partition(self) -> tuple[int, bool]:
        N, T, D, H = self.sizes
        if self.ragged is not None:
            N = max(1, self.ragged[0].rows // T)  # as many as work on a step
        return choose_partition(self.cell, N, T, D, H)

    def segments(self) -> Iterator["SequenceRun"]:
        """The segments of ``steps.checkpoint_every`` steps, or a little more, that make up the
        pass."""
        N, T, D, H = self.sizes
        partition = self._choose_partition()
        if self.ragged is not None:
            yield from self._ragged_segments(*self.ragged, partition)
            return
        chunk = chunk_steps(self.cell, N, T, D, H, self.xs.itemsize)
        count = -(-self.steps.checkpoint_every // chunk) * chunk
        for start in range(0, T, count):
            times = slice(start, min(T, start + count))
            steps = self.steps.segment(times.start, times.stop)
            xs = self.xs[:, times]
            yield replace(self, xs=xs, steps=steps, times=times, chunk=chunk, partition=partition)

    def _ragged_segments(
        self, members: Ragged, starts: list[int], partition: tuple[int, bool]
    ) -> Iterator["SequenceRun"]:
        """Segments of a ragged batch, each of the members that have its first step."""
        first = 0
        while first < len(starts) - 1:
            last = first + 1
            while (
                last < len(starts) - 1
                and starts[last] - starts[first] < self.steps.checkpoint_every
            ):
                last += 1
            start, end = starts[first], starts[last]
            part, rows = members.segment(start, end), slice(*members.firsts[[start, end]])
            given = self.steps
            mask, resets = (f if f is None else f[rows] for f in (given.mask, given.resets))
            scale = None if given.recurrent_mask is None else given.recurrent_mask[: part.N]
            steps = replace(
                given, mask=mask, resets=resets, recurrent_mask=scale, checkpoint_every=0
            )
            chunks = [chunk - start for chunk in starts[first : last + 1]]
            yield replace(
                self, xs=self.xs[rows], steps=steps, times=rows, ragged=(part, chunks),
                partition=partition,
            )  # fmt: skip
            first = last

    def _template(self, entry: str, keep: bool = True, add: bool = False) -> PlanTemplate:
        (N, T, D), cut = self.xs.shape, None
        if self.ragged is not None:
            (N, T, _, _), cut = self.sizes, self._cut
        shards, split_batch = self.partition or self._choose_partition()
        return plan_template(  # by position, which takes half as long
            entry, self.cell, self.xs.dtype, N, T, D, self.H, self.P, shards, split_batch, keep,
            compiled_features(self.steps.features, entry == BACKWARD),
            self.steps.recurrent_mask is not None, self.chunk, add, self.word,
            self.packed is not None, cut,
        )  # fmt: skip

    @cached_property
    def _cut(self) -> Cut:
        """How time is cut where members differ in length."""
        assert self.ragged is not None
        members, starts = self.ragged
        rows = np.diff(members.firsts[starts])
        steps, chunks = int(np.diff(starts).max()), len(starts) - 1
        return Cut(steps, chunks, int(rows.max()), members.rows + chunks)

    def _tables(self, hs: Array) -> dict[str, Array]:
        """The tables of a ragged batch that its plan points to."""
        if self.ragged is None:
            return {}
        members, starts = self.ragged
        found = {"firsts": members.firsts, "chunk_starts": np.array(starts, np.int64)}
        if self.padded:
            found["hs_members"] = members.starts(*hs.strides[:2])
        if "zoneout" in self.steps.features:
            found["draws"] = members.draws
        return found

    def forward(
        self, state: State, keep: bool = True, hs: Array | None = None
    ) -> tuple[Array, State, SavedBuffer]:
        """hs, in new memory if there is none, the state after the last step, and what is kept."""
        N, _, _, H = self.sizes
        template = self._template(FORWARD, keep)
        saved = SavedBuffer(template.kept_bytes, self.xs.dtype)
        state_in = np.array(state)
        if (resets := self._first_resets) is not None:
            first = StepOptions(resets=resets[:, None], initial=self.steps.initial).at(0, state)
            state_in = np.array(step.apply_reset(state, first))
        if self.steps.recurrent_mask is not None:
            state_in = np.concatenate([state_in, state_in[:1] * self.steps.recurrent_mask])
        state_out = np.empty((len(state), N, H), self.xs.dtype)
        hs = self.empty_hs() if hs is None else hs
        options = self._options if compiled_features(self.steps.features, False) else None
        self._run(template, (self.xs, self.params, state_in, state_out, hs), saved, options)
        return hs, tuple(state_out), saved

    def again(self, state: State) -> SavedBuffer:
        """Run forward for what it keeps alone."""
        return replace(self, padded=False).forward(state)[2]

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
        again = self._first_resets
        if dreset is not None and again is not None:
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
        alone = template.shards == 1 and self.packed is None and self.ragged is None
        address = 0 if options is None else options.address
        plan = template.with_arrays(
            *arrays, kept=saved.address, options=address, inputs=inputs, run=alone
        )
        if alone:
            return
        if self.packed is not None:
            write_packed(plan, self.packed)
        tables = self._tables(arrays[4])  # which must live until the pass has run
        write(plan, **{name: address_of(table) for name, table in tables.items()})
        if "hs_members" in tables:
            write(plan, hs_row=0, hs_padded=1)
        entry, self_address = int(plan[PLACES["entry"]]), int(plan[PLACES["self_address"]])
        threads.team.run(entry, self_address, template.shards, [plan])

    @cached_property
    def _options(self) -> OptionMemory:
        members = None if self.ragged is None else self.ragged[0]
        sizes = self.sizes[0], *self.xs.shape[:2], self.H
        return OptionMemory(self.steps, self.cell, sizes, self.xs.dtype, members)

    @property
    def _first_resets(self) -> Array | None:
        """(N,) whether members are reset before their first step."""
        resets = self.steps.resets
        if resets is None or self.ragged is None:
            return None if resets is None else resets[:, 0]
        return self.ragged[0].first_flags(resets)

    def states_before(self, saved: SavedBuffer) -> tuple[Array, ...]:
        """The state that every step saw, (N, T, H) each; of a ragged batch (rows, H)."""
        template = self._template(FORWARD)
        if self.ragged is not None:
            members, starts = self.ragged
            firsts = members.firsts[starts].tolist()
            return read_ragged_states(template, saved, self.cell, firsts)
        return read_saved_states(template, saved, self.cell)
