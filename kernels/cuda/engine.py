"""The CUDA engine's host code: what is large goes to the array library, what is left to kernels.

Before the steps x Wx is one product for all of them (``products.py``), after them so are the
gradients of the weights and dxs. The steps themselves are one launch of a persistent kernel where
that is faster (``tiling.plan`` says), else a product and a launch each, or two of both where
the cell has a second product, and more where gates are normalised (``normalising.py``):

    forward, step t                                  backward, step t, from the last
      early = h[t] Wh                                  backward_gates -> dgates[t], dstate
      [normalise_early]                                [denormalise_late]
      [operand_gates -> operands[t];                   [doperand = dgates[t] Wh'T;
       late = operands[t] Wh']                          operand_backward_gates -> dgates[t], dstate]
      [normalise_late]                                 [denormalise_early]
      forward_gates -> states[t+1], saved[t], hs[:, t] through_h = dgates[t] WhT

What is kept for backward lies time first, so that a step's rows lie together: ``arithmetic.py``.

A ``Gpu`` has the library of the arrays (CuPy) and starts kernels on them; tests put NumPy and an
emulator there.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from .. import disk_cache, draws
from ..cells import Cell
from ..device import DeviceEngine
from ..engine import Array, Engine, Gradients, State, expect_consistent, product_in_parts, written
from ..layout import Layout, layout
from ..step_options import NO_OPTIONS, StepOptions
from . import gates, normalising, persistent, products, tiling, updates
from .arithmetic import arrays_of
from .kernel import Gpu, Kernel
from .option_arrays import OptionArrays


class CudaEngine(DeviceEngine):
    """Forward and backward of any cell, on a GPU.

    precision  of the products, for float32: "float32" (by 3xTF32 where that pays), "tf32", or
               "bf16" (in persistent kernels; TF32 for what is left to the library)
    """

    name = "cuda"
    step = Engine.step  # a pass of one step

    def __init__(self, gpu: Gpu, precision: str = "float32") -> None:
        super().__init__(gpu.xp)
        self.gpu, self.precision = gpu, precision
        self._plans: dict[Any, tuple[tiling.Plan | None, str]] = {}
        self._fitting: set[Any] = set()  # plans that the GPU has been asked about
        self._others: dict[str, CudaEngine] = {precision: self}

    def with_precision(self, precision: str) -> "CudaEngine":
        if precision not in self._others:
            made = CudaEngine(self.gpu, precision)
            made._others = self._others
            self._others.setdefault(precision, made)
        return self._others[precision]

    def plan(
        self, cell: Cell, N: int, T: int, H: int, dtype: Any, forward: bool = True
    ) -> tuple[tiling.Plan | None, str]:
        """How T steps of a batch of N rows and H units run, None: step by step; and why."""
        if dtype != np.float32:
            return None, "float64 has no tensor cores"
        if not N:
            return None, "no rows"
        key = cell, N, H, forward
        if key not in self._plans:
            self._plans[key] = tiling.plan(
                cell, N, H, forward, self.precision, self.gpu.device
            )  # fmt: skip
        plan, why = self._plans[key]
        if plan is not None and not plan.pays(T):
            return None, f"too few steps, {T}, to pack the weights for"
        if plan is not None and key not in self._fitting:
            kernel = persistent.kernel(cell, plan.tiling, plan.tiles)
            if not self.gpu.fits(kernel, plan.tiling.blocks * plan.groups):
                plan, why = self._plans[key] = None, "the GPU has no room for all blocks at once"
            self._fitting.add(key)
        return plan, why

    def layout(self, cell: Cell, N: int, H: int, dtype: Any) -> dict[str, str]:
        both = {"forward": True, "backward": False}
        found = {name: self.plan(cell, N, 100, H, dtype, ahead) for name, ahead in both.items()}
        return {
            name: f"{'step by step' if plan is None else 'persistent'}: {why}"
            for name, (plan, why) in found.items()
        }

    def describe(self) -> dict[str, Any]:
        device = f"{self.gpu.describe()}, precision {self.precision}"
        return {
            "device": device, "threads": 1, "simd_bits": None, "cache": disk_cache.describe(),
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
        with self.gpu.products(self.precision), _room_for(cell, N, T, D, cell.hidden_size(params)):
            return self._forward(cell, xs, state, params, steps)

    def _forward(
        self, cell: Cell, xs: Array, state: State, params: Sequence[Array], steps: StepOptions
    ) -> tuple[Array, State, Any]:
        xp, at = self.xp, layout(cell, steps.features.changes_state)
        N, T, _ = xs.shape
        given = OptionArrays(steps, cell, xp, (N, T, cell.hidden_size(params)), xs.dtype)
        Wx, Wh, b = self._in_order(cell, params)
        H = Wh.shape[0]

        x_side = self._product(_time_first(xp, xs), Wx).reshape(T, N, at.x_gates * H)
        states = xp.empty((T + 1, len(cell.states), N, H), xs.dtype)
        states[0] = xp.stack(given.reset_at_first(state))
        saved = xp.empty((T, at.stored, N, H), xs.dtype)
        hs = xp.empty((N, T, H), xs.dtype)
        operands = xp.empty((T, N, H) if at.late else (0, N, H), xs.dtype)
        K = len(at.normalised)
        normalised = xp.empty((T, N, K, H), xs.dtype), xp.empty((T, N, K), xs.dtype)
        plan, _ = self.plan(cell, N, T, H, xs.dtype)
        if plan is not None:
            arrays = x_side, b, states, saved, hs
            self._run_persistent(cell, plan, Wh, arrays, given, given.scaled(states[0, 0]))
        elif gates.scans(cell):
            self._scan(cell, "forward_scan", given)(x_side, b, states, saved, hs)
        else:
            self._forward_steps(cell, Wh, x_side, b, states, saved, hs, operands, normalised, given)
        if steps.every:
            # backward needs them as they are now
            begin = tuple(s.copy() for s in state)
            return hs, tuple(states[T].copy()), (xs, begin, params, steps)
        kept = xs, (Wx, Wh, b), states, saved, operands, normalised, steps
        return hs, tuple(states[T].copy()), kept

    def _forward_steps(
        self, cell: Cell, Wh: Array, x_side: Array, b: Array, states: Array, saved: Array,
        hs: Array, operands: Array, normalised: tuple[Array, Array], given: OptionArrays,
    ) -> None:  # fmt: skip
        xp, at = self.xp, layout(cell)
        N, T, H = hs.shape
        gates_step = self._step(cell, "forward_gates", given)
        operand_step = self._step(cell, "operand_gates", given) if cell.operand else None
        normalise_early, normalise_late = self._normalising(cell, given, backward=False)
        seen = normalised[:1] if cell.normalised else ()
        early = xp.empty((N, at.early * H), hs.dtype)
        late = xp.empty((N, (at.late + at.fed) * H), hs.dtype)
        Wh_early = xp.ascontiguousarray(Wh[:, : at.early * H])
        Wh_late = xp.ascontiguousarray(Wh[:, at.early * H :])
        for t in range(T):
            if at.early:
                xp.matmul(given.scaled(states[t, 0]), Wh_early, out=early)
            normalise_early(t, x_side, early, b, *normalised)
            if operand_step is not None:
                operand_step(t, x_side, early, b, states, late if at.fed else operands, *seen)
            if at.late:
                xp.matmul(operands[t], Wh_late, out=late)
            normalise_late(t, x_side, late, b, *normalised)
            gates_step(t, x_side, early, late, b, states, saved, hs, *seen)

    def _all(self, cell: Cell, saved: Any) -> Any:
        """What a pass keeps for backward; where it did not, the pass is run again, all of it."""
        xs, *_, steps = saved
        if not steps.every:
            return saved
        _, state, params, _ = saved
        steps = replace(steps, every=0)
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
        (N, T, D), H = saved[0].shape, dhs.shape[2]
        with self.gpu.products(self.precision), _room_for(cell, N, T, D, H):
            found = self._backward(cell, dhs, dstate, saved, inputs)
        return found._replace(params=written(found.params, out))

    def _backward(
        self, cell: Cell, dhs: Array, dstate: State, saved: Any, inputs: bool
    ) -> Gradients:
        xs, (Wx, Wh, b), states, kept, operands, normalised, steps = saved
        xp, at = self.xp, layout(cell, steps.features.changes_state)
        N, T, D = xs.shape
        H, G = Wh.shape[0], len(cell.gates)
        given = OptionArrays(steps, cell, xp, (N, T, H), xs.dtype)
        early_columns, late_columns = _columns(at, H)

        dgates = xp.empty((T, N, G * H), xs.dtype)
        dstate_, dhs = xp.ascontiguousarray(xp.stack(dstate)), self._aligned(dhs)
        plan, _ = self.plan(cell, N, T, H, xs.dtype, forward=False)
        if plan is not None:
            arrays = dhs, b, states, kept, dgates, dstate_
            self._run_persistent(cell, plan, Wh, arrays, given, None)
            dstate_[0] += given.scaled(xp.matmul(dgates[0, :, early_columns], Wh.T))
        elif gates.scans(cell):
            self._scan(cell, "backward_scan", given)(dhs, b, states, kept, dgates, dstate_)
        else:
            through_h = self._backward_steps(
                cell, Wh, b, dhs, states, kept, dgates, dstate_, normalised, given
            )
            dstate_[0] += given.scaled(through_h)
        dstate_, dinitial = given.stopped_at_first(dstate_)

        rows = dgates.reshape(T * N, G * H)
        x_rows, early_rows = rows[:, : at.x_gates * H], rows[:, early_columns]
        dWx = self._product(_time_first(xp, xs).T, x_rows)
        dWh = [Wh[:, :0]]
        if at.early:
            h_before = given.scaled(states[:T, 0]).reshape(T * N, H)
            dWh.append(self._product(h_before.T, early_rows))
        if at.late:
            dWh.append(self._product(operands.reshape(T * N, H).T, rows[:, late_columns]))
        db = [_cell_order(xp, self.sum_rows(x_rows)[None], at.x_blocks, H)]
        if cell.biases == 2:
            # such a cell has no second product: these are all gates that h Wh feeds
            db.append(_cell_order(xp, self.sum_rows(early_rows)[None], at.h_blocks, H))
        gradients = cell.own(
            _cell_order(xp, dWx, at.x_blocks, H),
            _cell_order(xp, xp.concatenate(dWh, axis=1), at.h_blocks, H),
            xp.concatenate(db) if cell.biases == 2 else db[0][0],
            self.sum_rows(rows[:, (G - at.weights) * H :]).reshape(at.weights, H),
        )
        dxs = None
        if inputs:
            dxs = self._product(x_rows, Wx.T).reshape(T, N, D).transpose(1, 0, 2)
            dxs = xp.ascontiguousarray(dxs)
        return Gradients(dxs, tuple(dstate_), gradients, dinitial, given.trace())

    def _backward_steps(
        self, cell: Cell, Wh: Array, b: Array, dhs: Array, states: Array, kept: Array,
        dgates: Array, dstate: Array, normalised: tuple[Array, Array], given: OptionArrays,
    ) -> Array:  # fmt: skip
        """Fills dgates and dstate; returns what comes through h Wh before the first step."""
        xp, at = self.xp, layout(cell)
        N, T, H = dhs.shape
        gates_step = self._step(cell, "backward_gates", given)
        operand_step = self._step(cell, "operand_backward_gates", given) if cell.operand else None
        denormalise_early, denormalise_late = self._normalising(cell, given, backward=True)
        seen = normalised[:1] if cell.normalised else ()
        Wh_early = xp.ascontiguousarray(Wh[:, : at.early * H]).T  # a gap would be copied each step
        Wh_late = xp.ascontiguousarray(Wh[:, at.early * H :]).T
        early_columns, late_columns = _columns(at, H)
        through_h, doperand = xp.zeros((N, H), dhs.dtype), xp.empty((N, H), dhs.dtype)
        for t in reversed(range(T)):
            gates_step(t, through_h, dhs, b, states, kept, dgates, dstate, *seen)
            denormalise_late(t, dgates, *normalised)
            if at.late:
                xp.matmul(dgates[t, :, late_columns], Wh_late, out=doperand)
            if operand_step is not None:
                back = () if at.fed else (doperand,)
                operand_step(t, *back, b, states, kept, dgates, dstate, *seen)
            denormalise_early(t, dgates, *normalised)
            if at.early:
                xp.matmul(dgates[t, :, early_columns], Wh_early, out=through_h)
        return through_h

    def before(self, cell: Cell, saved: Any) -> tuple[Array, ...]:
        states = self._all(cell, saved)[2]
        return tuple(states[:-1].transpose(1, 2, 0, 3))

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
        kernel = updates.rule_kernel(rule, len(arrays), len(numbers), count)
        blocks = -(-gradient.size // (kernel.threads * count))
        numbers = [gradient.dtype.type(number) for number in numbers]
        self._launch(kernel, (blocks, 1), (*whole, *numbers, gradient.size))

    def dropout(
        self, seed: int, shape: Sequence[int], rate: float, dtype: Any, row_offset: int = 0
    ) -> Array:
        xp, kernel = self.xp, updates.dropout_kernel()
        out, left = xp.empty(shape, dtype), xp.asarray(np.array([1 / (1 - rate)], dtype))
        words = np.array([seed, draws.threshold(rate), draws.place(0, row_offset)], np.uint64)
        sizes = math.prod(shape[1:-1]), shape[-1], out.size
        given = out, left, xp.asarray(words.view(np.int64)), *sizes
        self._launch(kernel, (-(-out.size // kernel.threads), 1), given)
        return out

    def product(self, a: Array, b: Array) -> Array:
        with self.gpu.products(self.precision):
            return self._product(a, b)

    def add_rows(self, out: Array, rows: Array, values: Array) -> None:
        xp, H = self.xp, out.shape[1]
        order = xp.argsort(rows)  # CuPy's is stable
        rows, values = rows[order].astype(np.int64), self._aligned(values)
        count = self._count(H, [out, values])
        kernel = updates.add_rows_kernel(count)
        grid = len(rows), -(-H // (kernel.threads * count))
        self._launch(kernel, grid, (out, values, rows, order, H, len(rows)))

    # ---- what both need

    def _in_order(self, cell: Cell, params: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Wx and Wh with their gates in the layout's order, and b with the cell's weights."""
        Wx, Wh, b, w = cell.complete(params)
        at, H, xp = layout(cell), Wh.shape[0], self.xp
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
            return products.product(self.gpu, a, b)
        return product_in_parts(self.xp.matmul, a, b)  # in TF32

    def _aligned(self, array: Array) -> Array:
        """The array without gaps, from a place where 16 bytes can be read at once."""
        array = self.xp.ascontiguousarray(array)
        return array if self.gpu.address(array) % 16 == 0 else array.copy()

    def _launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        """Start a kernel; CUDA refuses a grid without blocks, which no rows make."""
        if 0 not in grid:
            self.gpu.launch(kernel, grid, arguments)

    def _count(self, numbers: int, arrays: Sequence[Array]) -> int:
        """How many numbers a thread takes at once: 16 bytes where they and the arrays allow it."""
        wide = 16 // arrays[0].dtype.itemsize
        fits = numbers % wide == 0 and all(self.gpu.address(array) % 16 == 0 for array in arrays)
        return wide if fits else 1

    def _step(self, cell: Cell, name: str, given: OptionArrays) -> Callable[..., None]:
        """What launches a gate kernel for a step t."""
        kernel, grid = self._gates(cell, name, given)
        more, (N, T, H) = given.to(gates.option_arrays(name, given.features)), given.sizes
        return lambda t, *arrays: self._launch(kernel, grid, (*arrays, *more, t, T, N, H))

    def _normalising(
        self, cell: Cell, given: OptionArrays, backward: bool
    ) -> tuple[Callable[..., None], Callable[..., None]]:
        """What launches the kernels of the early and the late normalised gates for a step t."""
        at, (N, T, H) = layout(cell), given.sizes

        def launching(late: bool) -> Callable[..., None]:
            count = len(at.normalised_late if late else at.normalised_early)
            if not count:
                return lambda t, *arrays: None
            kernel = normalising.kernel(cell, late, backward, self.gpu.device.threads)
            return lambda t, *arrays: self._launch(kernel, (N, count), (*arrays, t, T, N, H))

        return launching(False), launching(True)

    def _scan(self, cell: Cell, name: str, given: OptionArrays) -> Callable[..., None]:
        """What launches a gate kernel for all steps."""
        kernel, grid = self._gates(cell, name, given)
        more, (N, T, H) = given.to(gates.option_arrays(name, given.features)), given.sizes
        return lambda *arrays: self._launch(kernel, grid, (*arrays, *more, T, N, H))

    def _gates(self, cell: Cell, name: str, given: OptionArrays) -> tuple[Kernel, tuple[int, int]]:
        """A gate kernel and its grid; a thread has 16 bytes where that divides H, else a number."""
        N, _, H = given.sizes
        wide = 16 // given.dtype.itemsize
        count, threads = wide if H % wide == 0 else 1, self.gpu.device.threads
        grid = N, -(-H // (count * threads))
        return gates.kernel(cell, name, count, threads, given.features), grid

    def _run_persistent(
        self, cell: Cell, plan: tiling.Plan, Wh: Array, arrays: Sequence[Array],
        given: OptionArrays, start: Array | None,
    ) -> None:  # fmt: skip
        """Launch a persistent kernel; ``start`` (N, H) is what the first step multiplies."""
        xp, c = self.xp, plan.tiling
        N, T, H = given.sizes
        exchange = xp.zeros((2, plan.groups * plan.tiles * c.rows, c.stride), Wh.dtype)
        if start is not None:
            exchange[0, :N, :H] = start
        counters = xp.zeros(32 * plan.groups, np.uint32)  # a cache line each
        kernel = persistent.kernel(cell, c, plan.tiles, given.features)
        weights, more = tiling.packed(xp, Wh, c), given.to(arrays_of(given.features, not c.forward))
        arguments = weights, *arrays, *more, exchange, counters, T, N, H
        self._launch(kernel, (c.blocks, plan.groups), arguments)


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
            f"the GPU has no room for {cell.name} of N {N} rows, T {T} steps, D {D} inputs and "
            f"H {H} units: a smaller batch, shorter blocks or fewer units need less ({error})"
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
