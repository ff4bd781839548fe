"""The CUDA engine's host code: what is large goes to the array library, what is left to kernels.

Before the steps x Wx is one product for all of them (``gemm_3xtf32.py``), after them so are the
gradients of the weights and dxs. The steps themselves are one launch of a persistent kernel where
that is faster (``tiling.plan`` says), else a product and a launch each, or two of both where
the cell has a second product, and more where gates are normalised (``layer_norm.py``):

(``early`` are the results of h Wh, ``late`` those of the second product: ``layout.py``.)

    forward, step t                                  backward, step t, from the last
      early = h[t] Wh                                  backward_gates -> dgates[t], dstate
      [normalise_early]                                [denormalise_late]
      [operand_gates -> operands[t];                   [doperand = dgates[t] Wh'T;
       late = operands[t] Wh']                          operand_backward_gates -> dgates[t], dstate]
      [normalise_late]                                 [denormalise_early]
      forward_gates -> states[t+1], saved[t], hs[:, t] through_h = dgates[t] WhT

Arrays that are kept for backward have time first, so that a step's rows lie together:
``step_codegen.py``.

A ``Gpu`` has the library of the arrays (CuPy) and starts kernels on them; tests put NumPy and an
emulator there.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from .. import counter_rng, disk_cache
from ..cells import Cell
from ..device_engine import DeviceEngine
from ..engine import Array, Engine, Gradients, State, expect_consistent, product_in_parts, written
from ..layout import Layout, layout
from ..step_options import NO_OPTIONS, StepOptions
from . import gates, gemm_3xtf32, layer_norm, persistent, tiling, training_kernels
from .kernel import Gpu, Kernel
from .pass_arrays import PassArrays


class CudaEngine(DeviceEngine):
    """Forward and backward of any cell, on a GPU.

    precision  of the products, for float32: "float32" (by 3xTF32 where that pays), "tf32", or
               "bfloat16" (in persistent kernels; TF32 for what is left to the library)
    """

    name = "cuda"
    step = Engine.step  # a pass of one step

    def __init__(self, gpu: Gpu, precision: str = "float32") -> None:
        super().__init__(gpu.xp)
        self.gpu, self.precision = gpu, precision
        self._plans: dict[Any, tuple[tiling.LaunchPlan | None, str]] = {}
        self._fitting: set[Any] = set()  # plans that the GPU has been asked about
        self._others: dict[str, CudaEngine] = {precision: self}
        self.polls, self.report = 0, None  # of debug builds: ``persistent.kernel``

    def with_precision(self, precision: str) -> "CudaEngine":
        if precision not in self._others:
            engine = CudaEngine(self.gpu, precision)
            engine._others = self._others
            self._others.setdefault(precision, engine)
        return self._others[precision]

    def plan(
        self, cell: Cell, N: int, T: int, H: int, dtype: Any, forward: bool = True,
        features: frozenset[str] = frozenset(),
    ) -> tuple[tiling.LaunchPlan | None, str]:  # fmt: skip
        """How T steps of a batch of N rows and H units run, None: step by step; and why."""
        if dtype != np.float32:
            return None, "float64 has no tensor cores"
        if not N:
            return None, "no rows"
        key = cell, N, H, forward, features
        if key not in self._plans:
            self._plans[key] = tiling.plan(
                cell, N, H, forward, self.precision, self.gpu.device
            )  # fmt: skip
        plan, why = self._plans[key]
        if plan is not None and not plan.worthwhile(T):
            return None, f"too few steps, {T}, to pack the weights for"
        if plan is not None and key not in self._fitting:
            kernel = persistent.kernel(cell, plan.tiling, plan.tiles, features, self.polls)
            if not self.gpu.fits(kernel, plan.tiling.blocks * plan.groups):
                why = "the GPU cannot hold all thread blocks at once"
                plan, why = self._plans[key] = None, why
            self._fitting.add(key)
        return plan, why

    def execution(self, cell: Cell, N: int, H: int, dtype: Any) -> dict[str, str]:
        both = {"forward": True, "backward": False}
        plans = {name: self.plan(cell, N, 100, H, dtype, ahead) for name, ahead in both.items()}
        return {
            name: f"{'step by step' if plan is None else 'persistent'}: {why}"
            for name, (plan, why) in plans.items()
        }

    def describe(self) -> dict[str, Any]:
        return {
            "device": self.gpu.describe(), "threads": 1, "simd_bits": None,
            "cache": disk_cache.describe(), "precision": self.precision, "int8": "refused",
        }  # fmt: skip

    def forward(
        self,
        cell: Cell,
        xs: Array,
        state: State,
        params: Sequence[Array],
        steps: StepOptions = NO_OPTIONS,
    ) -> tuple[Array, State, Any]:
        expect_consistent(cell, xs, state, params)
        N, T, D = xs.shape
        xs = steps.live_inputs(self.xp, xs)
        with self.gpu.products(self.precision), _room_for(cell, N, T, D, cell.hidden_size(params)):
            return self._forward(cell, xs, state, params, steps)

    def _forward(
        self, cell: Cell, xs: Array, state: State, params: Sequence[Array], steps: StepOptions
    ) -> tuple[Array, State, Any]:
        xp, at = self.xp, layout(cell, steps.features)
        (N, T, _), K = xs.shape, len(at.normalised)
        Wx, Wh, b = self._in_order(cell, params)
        H, P = Wh.shape[0], cell.output_size(params)
        state = cell.widened(xp, state, H)
        arrays = PassArrays(cell, steps, xp, (N, T, H), xs.dtype)
        states = arrays.empty(T + 1, len(cell.states), N, H)
        states[0] = xp.stack(arrays.reset_at_first(state))
        arrays.add(
            x_proj=self._product(_time_first(xp, xs), Wx).reshape(T, N, at.x_gates * H),
            b=b,
            states=states,
            saved=arrays.empty(T, at.n_stored, N, H),
            hs=arrays.empty(N, T, H),
            operands=arrays.empty(T if at.late else 0, N, H),
            normalised=arrays.empty(T, N, K, H),
            factors=arrays.empty(T, N, K),
        )
        plan, _ = self.plan(cell, N, T, H, xs.dtype, features=arrays.features)
        if plan is not None:
            self._run_persistent(plan, Wh, arrays, arrays.times_recurrent_mask(states[0, 0]))
        elif gates.scans(cell):
            self._gates("forward_scan", arrays)()
        else:
            self._forward_steps(Wh, arrays)
        hs, last = arrays["hs"], cell.narrowed(tuple(states[T].copy()), P)
        hs = hs if P == H else xp.ascontiguousarray(hs[:, :, :P])
        if steps.checkpoint_every:
            # backward needs them as they are now
            return hs, last, (xs, tuple(s.copy() for s in state), params, steps)
        return hs, last, (xs, (Wx, Wh, P), {name: arrays[name] for name in _KEPT}, steps)

    def _forward_steps(self, Wh: Array, arrays: PassArrays) -> None:
        xp, at = self.xp, layout(arrays.cell)
        N, T, H = arrays.sizes
        early = arrays.empty(N, at.early * H)
        late = arrays.empty(N, (at.late + at.operand_gate) * H)
        arrays.add(early=early, late=late)
        gates_step = self._gates("forward_gates", arrays)
        operand_step = self._gates("operand_gates", arrays)
        normalise_early = self._normalising(arrays, late=False, backward=False)
        normalise_late = self._normalising(arrays, late=True, backward=False)
        states, operands = arrays["states"], arrays["operands"]
        Wh_early = xp.ascontiguousarray(Wh[:, : at.early * H])
        Wh_late = xp.ascontiguousarray(Wh[:, at.early * H :])
        for t in range(T):
            if at.early:
                xp.matmul(arrays.times_recurrent_mask(states[t, 0]), Wh_early, out=early)
            normalise_early(t)
            operand_step(t)
            if at.late:
                xp.matmul(operands[t], Wh_late, out=late)
            normalise_late(t)
            gates_step(t)

    def _all(self, cell: Cell, saved: Any) -> Any:
        """The arrays that a pass keeps for backward; a pass that kept none is run again."""
        xs, *_, steps = saved
        if not steps.checkpoint_every:
            return saved
        _, state, params, _ = saved
        steps = replace(steps, checkpoint_every=0)
        with self.gpu.products(self.precision):
            return self._forward(cell, xs, state, params, steps)[2]

    def backward(
        self,
        cell: Cell,
        dhs: Array,
        dstate: State,
        saved: Any,
        inputs: bool = True,
        out: Sequence[Array] | None = None,
    ) -> Gradients:
        saved = self._all(cell, saved)
        (N, T, D), H = saved[0].shape, len(saved[1][1])
        with self.gpu.products(self.precision), _room_for(cell, N, T, D, H):
            gradients = self._backward(cell, dhs, dstate, saved, inputs)
        return gradients._replace(params=written(gradients.params, out))

    def _backward(
        self, cell: Cell, dhs: Array, dstate: State, saved: Any, inputs: bool
    ) -> Gradients:
        xs, (Wx, Wh, P), stored, steps = saved
        xp, at = self.xp, layout(cell, steps.features)
        N, T, D = xs.shape
        H, G = Wh.shape[0], len(cell.gates)
        early_columns, late_columns = _columns(at, H)
        arrays = PassArrays(cell, steps, xp, (N, T, H), xs.dtype, backward=True)
        (dhs,), dstate = cell.widened(xp, (dhs,), H), cell.widened(xp, dstate, H)
        dgates, dstate_ = arrays.empty(T, N, G * H), xp.ascontiguousarray(xp.stack(dstate))
        arrays.add(**stored, dhs=self._aligned(dhs), dgates=dgates, dstate=dstate_)
        plan, _ = self.plan(cell, N, T, H, xs.dtype, False, arrays.features)
        if plan is not None:
            self._run_persistent(plan, Wh, arrays)
            dstate_[0] += arrays.times_recurrent_mask(xp.matmul(dgates[0, :, early_columns], Wh.T))
        elif gates.scans(cell):
            self._gates("backward_scan", arrays)()
        else:
            dstate_[0] += arrays.times_recurrent_mask(self._backward_steps(Wh, arrays))
        dstate_, dinitial = arrays.dreset_at_first(dstate_)

        rows = dgates.reshape(T * N, G * H)
        x_rows, early_rows = rows[:, : at.x_gates * H], rows[:, early_columns]
        dWx = self._product(_time_first(xp, xs).T, x_rows)
        dWh = [Wh[:, :0]]
        if at.early:
            h_before = arrays.times_recurrent_mask(arrays["states"][:T, 0]).reshape(T * N, H)
            dWh.append(self._product(h_before.T, early_rows))
        if at.late:
            operands = arrays["operands"].reshape(T * N, H)
            dWh.append(self._product(operands.T, rows[:, late_columns]))
        db = [_cell_order(xp, self.sum_rows(x_rows)[None], at.x_blocks, H)]
        if cell.biases == 2:
            # such a cell has no second product: these are all gates that h Wh feeds
            db.append(_cell_order(xp, self.sum_rows(early_rows)[None], at.h_blocks, H))
        dWh_, dWr = _cell_order(xp, xp.concatenate(dWh, axis=1), at.h_blocks, H), None
        if cell.projected:
            early = at.early * H
            dWr = dWh_[:, early:].reshape(H, at.late, H)[:, :, :P].reshape(H, at.late * P)
            dWh_ = dWh_[:P, :early].copy()
        gradients = cell.own(
            _cell_order(xp, dWx, at.x_blocks, H),
            dWh_,
            xp.concatenate(db) if cell.biases == 2 else db[0][0],
            self.sum_rows(rows[:, (G - at.weights) * H :]).reshape(at.weights, H),
            dWr,
        )
        dxs = None
        if inputs:
            dxs = self._product(x_rows, Wx.T).reshape(T, N, D).transpose(1, 0, 2)
            dxs = xp.ascontiguousarray(dxs)
        dstate = cell.narrowed(tuple(dstate_), P)
        return Gradients(dxs, dstate, gradients, dinitial, arrays.trace())

    def _backward_steps(self, Wh: Array, arrays: PassArrays) -> Array:
        """Fills dgates and dstate; returns what comes through h Wh before the first step."""
        xp, at = self.xp, layout(arrays.cell)
        N, T, H = arrays.sizes
        through_h, doperand = xp.zeros((N, H), arrays.dtype), arrays.empty(N, H)
        arrays.add(through_h=through_h, doperand=doperand)
        gates_step = self._gates("backward_gates", arrays)
        operand_step = self._gates("operand_backward_gates", arrays)
        denormalise_early = self._normalising(arrays, late=False, backward=True)
        denormalise_late = self._normalising(arrays, late=True, backward=True)
        dgates = arrays["dgates"]
        Wh_early = xp.ascontiguousarray(Wh[:, : at.early * H]).T  # a gap would be copied each step
        Wh_late = xp.ascontiguousarray(Wh[:, at.early * H :]).T
        early_columns, late_columns = _columns(at, H)
        for t in reversed(range(T)):
            gates_step(t)
            denormalise_late(t)
            if at.late:
                xp.matmul(dgates[t, :, late_columns], Wh_late, out=doperand)
            operand_step(t)
            denormalise_early(t)
            if at.early:
                xp.matmul(dgates[t, :, early_columns], Wh_early, out=through_h)
        return through_h

    def states_before(self, cell: Cell, saved: Any) -> tuple[Array, ...]:
        _, (_, _, P), stored, _ = self._all(cell, saved)
        return cell.narrowed(tuple(stored["states"][:-1].transpose(1, 2, 0, 3)), P)

    # ---- training

    def update(
        self,
        rule: Callable[..., tuple[Array, ...]],
        arrays: Sequence[Array],
        gradient: Array,
        numbers: Sequence[float],
    ) -> None:
        whole = [*arrays, gradient]
        if not all(array.flags.c_contiguous for array in whole):
            super().update(rule, arrays, gradient, numbers)
            return
        count = self._count(gradient.size, whole)
        kernel = training_kernels.rule_kernel(rule, len(arrays), len(numbers), count)
        blocks = -(-gradient.size // (kernel.threads * count))
        named = {f"array{k}": array for k, array in enumerate(arrays)}
        named |= {f"number{k}": gradient.dtype.type(number) for k, number in enumerate(numbers)}
        self._launch(kernel, (blocks, 1), gradient=gradient, size=gradient.size, **named)

    def dropout(
        self, seed: int, shape: Sequence[int], rate: float, dtype: Any, row_offset: int = 0
    ) -> Array:
        kernel, out = training_kernels.dropout_kernel(), self.xp.empty(shape, dtype)
        words = seed, counter_rng.threshold(rate), counter_rng.counter(0, row_offset)
        seed, limit, start = np.array(words, np.uint64).view(np.int64).tolist()
        sizes = {"T": math.prod(shape[1:-1]), "H": shape[-1], "size": out.size}
        given = {"number0": np.dtype(dtype).type(1 / (1 - rate)), "seed": seed, "limit": limit}
        grid = (-(-out.size // kernel.threads), 1)
        self._launch(kernel, grid, out=out, start=start, **given, **sizes)
        return out

    def product(self, a: Array, b: Array) -> Array:
        with self.gpu.products(self.precision):
            return self._product(a, b)

    def add_rows(self, out: Array, rows: Array, values: Array) -> None:
        xp, H = self.xp, out.shape[1]
        order = xp.argsort(rows)  # CuPy's is stable
        rows, values = rows[order].astype(np.int64), self._aligned(values)
        count = self._count(H, [out, values])
        kernel = training_kernels.add_rows_kernel(count)
        grid = len(rows), -(-H // (kernel.threads * count))
        sizes = {"H": H, "size": len(rows)}
        self._launch(kernel, grid, out=out, values=values, rows=rows, order=order, **sizes)

    # ---- what both need

    def _in_order(self, cell: Cell, params: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Wx and Wh with their gates in the layout's order, and b with the cell's weights.

        The Wh of a projected cell is as large as if h had H numbers, with Wr and zeros in it.
        """
        Wx, Wh, b, w, Wr = cell.complete(params)
        at, H, xp = layout(cell), cell.hidden_size(params), self.xp
        if cell.projected:
            P, early = cell.output_size(params), at.early * H
            wide = xp.zeros((H, early + at.late * H), Wh.dtype)
            wide[:P, :early] = Wh
            for k in range(at.late):
                wide[:, early + k * H : early + k * H + P] = Wr[:, k * P : (k + 1) * P]
            Wh = wide
        if at.weights:
            b = xp.concatenate([b.reshape(-1), w.reshape(-1)])
        return (
            _layout_order(xp, Wx, at.x_blocks, H),
            _layout_order(xp, Wh, at.h_blocks, H),
            self._aligned(b),
        )

    def _product(self, a: Array, b: Array) -> Array:
        """A product over all steps."""
        if self.precision == "float32":
            return gemm_3xtf32.product(self.gpu, a, b)
        return product_in_parts(self.xp.matmul, a, b)  # in TF32

    def _aligned(self, array: Array) -> Array:
        """The array without gaps, from a place where 16 bytes can be read at once."""
        array = self.xp.ascontiguousarray(array)
        return array if self.gpu.address(array) % 16 == 0 else array.copy()

    def _launch(self, kernel: Kernel, grid: tuple[int, int], **arrays: Any) -> None:
        """Start a kernel on arrays and numbers by name."""
        self._starting(kernel, grid, arrays)()

    def _starting(
        self, kernel: Kernel, grid: tuple[int, int], arrays: Mapping[str, Any]
    ) -> Callable[..., None]:
        """A function of the step that starts a kernel on the arrays that it takes."""
        arguments = kernel.arguments(**arrays, t=None)

        def start(t: int = 0) -> None:
            if 0 not in grid:  # CUDA refuses a grid without blocks, which no rows make
                self.gpu.launch(kernel, grid, [t if x is None else x for x in arguments])

        return start

    def _count(self, numbers: int, arrays: Sequence[Array]) -> int:
        """How many numbers a thread takes at once: 16 bytes where they and the arrays allow it."""
        wide = 16 // arrays[0].dtype.itemsize
        fits = numbers % wide == 0 and all(self.gpu.address(array) % 16 == 0 for array in arrays)
        return wide if fits else 1

    def _normalising(self, arrays: PassArrays, late: bool, backward: bool) -> Callable[..., None]:
        """A function that starts the kernel of the early or the late normalised gates."""
        at, N = layout(arrays.cell), arrays.sizes[0]
        count = len(at.normalised_late if late else at.normalised_early)
        if not count:
            return _nothing
        kernel = layer_norm.kernel(arrays.cell, late, backward, self.gpu.device.threads)
        return self._starting(kernel, (N, count), arrays.by_name)

    def _gates(self, name: str, arrays: PassArrays) -> Callable[..., None]:
        """A function that starts a gate kernel, with 16 bytes a thread where that divides H."""
        cell, (N, _, H) = arrays.cell, arrays.sizes
        if name not in gates.names(cell):
            return _nothing
        given = arrays.by_name.values()  # of which callers brought some: they may start anywhere
        numbers = [a for a in given if hasattr(a, "dtype") and a.dtype == arrays.dtype]
        count = self._count(H, numbers)
        threads = self.gpu.device.threads
        kernel = gates.kernel(cell, name, count, threads, arrays.features)
        return self._starting(kernel, (N, -(-H // (count * threads))), arrays.by_name)

    def _run_persistent(
        self, plan: tiling.LaunchPlan, Wh: Array, arrays: PassArrays, start: Array | None = None
    ) -> None:
        """Launch a persistent kernel; ``start`` (N, H) is what the first step multiplies."""
        xp, c, (N, _, H) = self.xp, plan.tiling, arrays.sizes
        exchange = xp.zeros((2, plan.groups * plan.tiles * c.rows, c.stride), Wh.dtype)
        if start is not None:
            exchange[0, :N, :H] = start
        counters = xp.zeros(32 * plan.groups, np.uint32)  # a cache line each
        arrays.add(weights=tiling.packed(xp, Wh, c), exchange=exchange)
        arrays.add(counters=counters, report=self.report)
        kernel = persistent.kernel(arrays.cell, c, plan.tiles, arrays.features, self.polls)
        self._starting(kernel, (c.blocks, plan.groups), arrays.by_name)()


_KEPT = "b", "states", "saved", "operands", "normalised", "factors"  # for backward


def _nothing(t: int) -> None:
    """In place of a kernel that the cell does not have."""


_OUT_OF_MEMORY = re.compile("ALLOC_FAILED|OUT_OF_MEMORY|out of memory")  # cuBLAS, the driver


@contextmanager
def _room_for(cell: Cell, N: int, T: int, D: int, H: int) -> Iterator[None]:
    """Say what did not fit, and what makes it smaller."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise MemoryError(
            f"out of GPU memory for {cell.name} with N {N} rows, T {T} steps, D {D} inputs and "
            f"H {H} units; use a smaller batch, shorter blocks or fewer units ({error})"
        ) from error


def _time_first(xp: Any, xs: Array) -> Array:
    """(N, T, D) as rows of the steps, (T N, D)."""
    N, T, D = xs.shape
    return xp.ascontiguousarray(xs.transpose(1, 0, 2)).reshape(T * N, D)


def _columns(at: Layout, H: int) -> tuple[slice, slice]:
    """The columns of dgates of the early gates, and of the late ones."""
    first, late = at.first_early * H, at.first_late * H
    return slice(first, first + at.early * H), slice(late, late + at.late * H)


def _layout_order(xp: Any, W: Array, blocks: tuple[int, ...], H: int) -> Array:
    """The blocks of H columns in the layout's order; W itself where that is its own."""
    if blocks == tuple(range(len(blocks))):
        return W
    return xp.concatenate([W[:, block * H : (block + 1) * H] for block in blocks], axis=1)


def _cell_order(xp: Any, W: Array, blocks: tuple[int, ...], H: int) -> Array:
    """Back to the cell's own order."""
    return _layout_order(xp, W, tuple(blocks.index(k) for k in range(len(blocks))), H)
