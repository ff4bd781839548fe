"""The Numba engine: every cell, compiled for this CPU.

Here the arrays of a call are handed to a plan (``plans.py``); what is done with them is compiled:
the pass over time in ``forward.py`` and ``backward.py``, the cell's arithmetic in ``gates.py``,
products in ``products.py``, all of them on vectors (``simd.py``), shared by threads
(``threads.py``).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import binding

from ..cells import Cell
from ..reference import (
    Array,
    Gradients,
    ReferenceEngine,
    State,
    expect_consistent,
    reset_before,
)
from ..steps import PLAIN, Steps
from . import frames, threads
from .backward import backward
from .forward import forward
from .frames import CACHED, cache_folder
from .particulars import PARTICULAR, Particulars
from .plans import Kept, kept_states, recipe, rows_plain, sharing, with_weights, without_weights
from .streaming import NumbaStream


class NumbaEngine(ReferenceEngine):
    """Forward and backward of any cell, compiled for this CPU."""

    name = "numba"

    def forward(
        self,
        cell: Cell,
        xs: Array,
        state: State,
        params: Sequence[Array],
        steps: Steps = PLAIN,
    ) -> tuple[Array, State, Any]:
        expect_consistent(cell, xs, state, params)
        xs, params = rows_plain(xs), with_weights(cell, params)
        N, T, D = xs.shape
        H = params[1].shape[0]
        sizes, form = (N, T, D, H), _form(steps, back=False)
        made = recipe(forward, cell, xs.dtype, *sizes, *sharing(cell, *sizes), **form)
        kept = Kept(made.kept_bytes, xs.dtype)
        state_in = np.array(reset_before(steps, 0, state))
        if form["scaled"]:
            state_in = np.concatenate([state_in, state_in[:1] * steps.scale])
        state_out = np.empty((len(state), N, H), xs.dtype)
        hs = np.empty((N, T, H), xs.dtype)
        plan = made.with_arrays(xs, params, state_in, state_out, hs, kept=kept.address)
        particular = Particulars(steps, cell, *sizes, xs.dtype) if form["particular"] else None
        if particular is not None:
            plan[PARTICULAR] = particular.address
        threads.team.run(plan, made.shards)
        return hs, tuple(state_out), (xs, params, kept, steps)

    def backward(self, cell: Cell, dhs: Array, dstate: State, saved: Any) -> Gradients:
        xs, params, kept, steps = saved
        dhs = rows_plain(dhs)
        N, T, D = xs.shape
        H = params[1].shape[0]
        sizes, form = (N, T, D, H), _form(steps, back=True)
        made = recipe(backward, cell, xs.dtype, *sizes, *sharing(cell, *sizes), **form)
        state_in = np.array((*dstate, np.zeros_like(dstate[0])))
        state_out, dxs = np.empty_like(state_in), np.empty((N, T, D), xs.dtype)
        gradients = tuple(np.empty(p.shape, p.dtype) for p in params)
        plan = made.with_arrays(
            xs, params, state_in, state_out, dhs, (dxs, *gradients), kept=kept.address
        )
        particular = Particulars(steps, cell, *sizes, xs.dtype) if form["particular"] else None
        if particular is not None:
            plan[PARTICULAR] = particular.address
        threads.team.run(plan, made.shards)
        # what came through h Wh of the first step
        state_out[0] += state_out[-1] if steps.scale is None else state_out[-1] * steps.scale
        first, dinitial, dstates = state_out[:-1], None, None
        if particular is not None:
            dstates, dinitial = particular.trace, particular.dinitial()
        if steps.resets is not None:
            again = steps.resets[:, 0]
            dinitial += first[:, again].sum(axis=1)
            first[:, again] = 0
        own = without_weights(cell, gradients)
        return Gradients(dxs, tuple(first), own, dinitial, dstates)

    def before(self, cell: Cell, saved: Any) -> tuple[Array, ...]:
        xs, params, kept, steps = saved
        sizes = (*xs.shape, params[1].shape[0])
        made = recipe(
            forward, cell, xs.dtype, *sizes, *sharing(cell, *sizes), **_form(steps, back=False)
        )
        return kept_states(made, kept, cell)

    def step(self, cell: Cell, x: Array, state: State, params: Sequence[Array]) -> State:
        return self.forward(cell, x[:, None], state, params)[1]

    def stream(
        self,
        layers: Sequence[tuple[Cell, Sequence[Array]]],
        affine: Sequence[Array] | None,
        batch: int,
        shards: int = 1,
        bfloat16: bool = False,
    ) -> NumbaStream:
        return NumbaStream(layers, affine, batch, shards, bfloat16)

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


def _form(steps: Steps, back: bool) -> dict[str, int]:
    """What of the steps decides which code runs, and on which memory."""
    of_forward = steps.mask, steps.resets, steps.scale, steps.zoneout or None
    particular = frames.PLAIN
    if any(given is not None for given in of_forward):
        particular = frames.ANYTHING
    elif back and steps.trace:
        particular = frames.TRACED
    return {"particular": particular, "scaled": steps.scale is not None}
