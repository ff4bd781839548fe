"""Batches whose members differ in length: which steps there are, and their rows side by side.

    the caller's (N, T)      packed, the longest member first     firsts, the rows before each step
      a  a0 a1                 step 0   b0 c0 a0                    0
      b  b0 b1 b2 b3           step 1   b1 c1 a1                    3
      c     c0 c1 c2           step 2   b2 c2                       6
                               step 3   b3                          8 (9 for those behind)

Each member's steps count from its own first one, so that one pass serves members that end early and
members that begin late, as they do where time runs backwards.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .once import cached_property
from .step_options import StepOptions

Array = Any


@dataclass(frozen=True, eq=False)
class Ragged:
    """The members of a batch and their steps.

    T       the caller's steps
    order   (N,) which of the caller's members each is, the longest first
    begins  (N,) the caller's step at which each begins
    firsts  (steps + 2,) how many rows the steps before each step have, and those before all later
    """

    T: int
    order: Array
    begins: Array
    firsts: Array

    @classmethod
    def of(cls, lengths: Array, begins: Array | None = None, T: int | None = None) -> "Ragged":
        """Members (N,) of these lengths, of which one at least is not 0.

        begins  the step at which each begins; None: step 0
        T       the caller's steps; None: as many as the longest member has
        """
        order = np.argsort(-lengths, kind="stable")
        begins = np.zeros_like(order) if begins is None else begins[order]
        steps = int(lengths.max())
        ended = np.cumsum(np.bincount(lengths, minlength=steps + 1))[:steps]
        firsts = np.zeros(steps + 2, np.int64)
        np.cumsum(len(lengths) - ended, out=firsts[1:-1])
        firsts[-1] = firsts[-2]
        return cls(steps if T is None else T, order, begins, firsts)

    @classmethod
    def of_flags(cls, mask: Array, resets: Array | None = None) -> "Ragged | None":
        """Members whose steps outside of some part are all masked; None where that part is all of
        the batch, or nothing.

        A reset is a step, too: it changes the state.
        """
        there = mask if resets is None else mask | resets
        T, some = there.shape[1], there.any(axis=1)
        begins = there.argmax(axis=1)
        lengths = np.where(some, T - there[:, ::-1].argmax(axis=1) - begins, 0)
        if not some.any() or lengths.min() == T:
            return None
        return cls.of(lengths, begins, T)

    @classmethod
    def of_counts(cls, counts: Array) -> "Ragged":
        """Members that all begin at step 0, from how many have each step: never more than the one
        before.
        """
        firsts = np.zeros(len(counts) + 2, np.int64)
        np.cumsum(counts, out=firsts[1:-1])
        firsts[-1] = firsts[-2]
        N = int(counts[0])
        return cls(len(counts), np.arange(N), np.zeros(N, np.int64), firsts)

    @property
    def N(self) -> int:  # noqa: N802 (as everywhere)
        return len(self.order)

    @property
    def steps(self) -> int:
        """How many steps the longest member has."""
        return len(self.firsts) - 2

    @property
    def rows(self) -> int:
        """How many steps all members have."""
        return int(self.firsts[-1])

    @cached_property
    def counts(self) -> Array:
        """(steps,) how many members have each step."""
        return np.diff(self.firsts[:-1])

    @cached_property
    def members(self) -> Array:
        """(rows,) whose row each is."""
        return np.arange(self.rows) - np.repeat(self.firsts[:-2], self.counts)

    @property
    def lengths(self) -> Array:
        """(N,) how many steps each member has."""
        return np.bincount(self.members, minlength=self.N)

    @cached_property
    def in_rows(self) -> Array:
        """(rows,) the place of each row in an array (N T, ...) of the caller's."""
        times = np.repeat(np.arange(self.steps), self.counts)
        return self.starts(self.T, 1)[self.members] + times

    def pack(self, array: Array) -> Array:
        """The rows (rows, ...) of an array (N, T, ...)."""
        (N, T), rest = array.shape[:2], array.shape[2:]
        return array.reshape(N * T, *rest).take(self.in_rows, axis=0)

    def unpack(self, rows: Array) -> Array:
        """An array (N, T, ...) of rows (rows, ...), 0 where a member has no step."""
        N, T, rest = self.N, self.T, rows.shape[1:]
        out = np.zeros((N * T, *rest), rows.dtype)
        out[self.in_rows] = rows
        return out.reshape(N, T, *rest)

    def fill(self, array: Array, before: Array, after: Array) -> None:
        """Fill (N, T, ...) before every member's first step and after its last, from (N, ...)."""
        ends = self.begins + self.lengths
        for n, start, end in zip(self.order, self.begins, ends, strict=True):
            array[n, :start], array[n, end:] = before[n], after[n]

    def restore(self, array: Array) -> Array:
        """Members (..., N, H), sorted as they are here, in the caller's order."""
        out = np.empty_like(array)
        out[..., self.order, :] = array
        return out

    def options(self, steps: StepOptions) -> StepOptions:
        """The caller's options for these rows: flags (rows,), no mask where all are True."""
        mask, resets, scale = steps.mask, steps.resets, steps.recurrent_mask
        if mask is not None:
            mask = None if np.count_nonzero(mask) == self.rows else self.pack(mask)
        return replace(
            steps,
            mask=mask,
            resets=None if resets is None else self.pack(resets),
            recurrent_mask=None if scale is None else scale[self.order],
        )

    def first_flags(self, flags: Array) -> Array:
        """(N,) the flags of every member's first step; False for those without steps."""
        first = np.zeros(self.N, bool)
        first[: self.firsts[1]] = flags[: self.firsts[1]]
        return first

    def a_step_ahead(self, flags: Array) -> Array:
        """(rows,) for each step the flag of the member's next one, False after the last."""
        later = np.arange(self.firsts[1], self.rows)
        ahead = np.zeros_like(flags)
        ahead[later - np.repeat(self.counts[:-1], self.counts[1:])] = flags[later]
        return ahead

    @property
    def draws(self) -> Array:
        """(N,) what each member adds to the counter of random masks (``counter_rng.py``)."""
        return self.starts(1, 1 << 32)

    @cached_property
    def turned(self) -> Array:
        """(rows,) the row of each member's step as far from its end as that of each row is from its
        beginning: where the row is when time runs backwards.
        """
        times = np.repeat(np.arange(self.steps), self.counts)
        return self.firsts[self.lengths[self.members] - 1 - times] + self.members

    def starts(self, row: int, time: int) -> Array:
        """(N,) the place of each member's first step, where ``row`` and ``time`` lead from one of
        the caller's members or steps to the next.
        """
        return np.array(self.order * row + self.begins * time, np.int64)

    def cut(self, rows: int) -> list[int]:
        """The first step of each chunk, and of one behind the last: chunks of about so many rows,
        and of two steps at least but for the last.
        """
        firsts, starts, T = self.firsts.tolist(), [0], self.steps
        while (t := starts[-1]) < T:
            end = bisect_left(firsts, firsts[t] + rows, t)
            starts.append(min(T, max(t + 2, end)))
        return starts

    def segment(self, start: int, end: int) -> "Ragged":
        """Some of the steps, of the members that have one of them."""
        firsts = self.firsts[start : end + 1] - self.firsts[start]
        count = int(firsts[1])
        firsts = np.append(firsts, firsts[-1])
        return Ragged(self.T, self.order[:count], self.begins[:count] + start, firsts)
