"""The NumPy engine: the specification of what every engine computes.

It is written to be read, step by step as in the book, except that whatever does not depend on the
step before is computed once for all steps: the input product before the loop, and one product each
for dWx, dWh and dxs after it. ``engine.py`` describes arguments and results.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import deprecated, step
from .cells import Cell
from .engine import Array, Engine, Gradients, State, expect_consistent, written
from .layout import EPSILON
from .quantisation import QuantisedWeight, expect_trainable
from .step_options import NO_OPTIONS, StepOptions, StepValues

NO_VALUES = StepValues()
Normalised = dict[int, tuple[Array, Array]]  # by gate: the normalised numbers, and 1 / deviation


class _Saved(NamedTuple):
    """The numbers of a step that backward needs: the state before it, the operand of a second
    product, those that the cell and the options keep, and the gates' normalisation.
    """

    state: State
    operand: Array | None
    saved: tuple[Array, ...]
    extra: tuple[Array, ...]
    normalised: Normalised


class NumpyEngine(Engine):
    """Forward and backward of any cell over a whole sequence, in plain NumPy."""

    name = "numpy"
    xp = np

    def forward(
        self,
        cell: Cell,
        xs: Array,
        state: State,
        params: Sequence[Array],
        steps: StepOptions = NO_OPTIONS,
    ) -> tuple[Array, State, Any]:
        expect_consistent(cell, xs, state, params)
        N, T, _ = xs.shape
        xs = steps.live_inputs(np, xs)
        state = tuple(s.copy() for s in state)  # the caller may change theirs before backward
        outputs: list[Array] = []
        saved_steps: list[Any] = []
        walk = self._run_steps(cell, _x_proj(cell, xs, params), range(T), state, params, steps)
        for t, (for_backward, after, output) in enumerate(walk):
            state = after
            outputs.append(output)
            if not steps.checkpoint_every:
                saved_steps.append(for_backward)
            elif t % steps.checkpoint_every == 0:
                saved_steps.append(for_backward.state)
        last = tuple(s.copy() for s in state)  # the caller may change these; backward needs ours
        hs = _over_time(outputs, (N, T, cell.output_size(params)), xs.dtype)
        return hs, last, (xs, saved_steps, params, steps)

    @staticmethod
    def _run_steps(
        cell: Cell,
        x_proj: Array,
        times: range,
        state: State,
        params: Sequence[Array],
        steps: StepOptions,
    ) -> Iterator[tuple["_Saved", State, Array]]:
        """Run step by step. Yields for each step what backward needs, the state after it, and its
        output.
        """
        _, Wh, b, w, Wr = cell.complete(params)
        Wh, bh = _of_h(cell, Wh), None if cell.biases == 1 else b[1]
        for t in times:
            options = steps.at(t, state)
            state = step.apply_reset(state, options)
            gates, operand, normalised = _pre_activations(
                cell, x_proj[:, t], state, Wh, Wr, bh, w, steps.recurrent_mask, options
            )
            new, saved = cell.forward(gates, state)
            after, (output,), extra = step.apply_options(new, state, options)
            yield _Saved(state, operand, saved, extra, normalised), after, output
            state = after

    def _rerun_reversed(
        self,
        cell: Cell,
        xs: Array,
        saved_steps: list[Any],
        params: Sequence[Array],
        steps: StepOptions,
    ) -> Iterator["_Saved"]:
        """Yield what forward kept of every step, from the last to the first.

        With checkpointing the steps are run again, from the states that forward kept.
        """
        if not steps.checkpoint_every:
            yield from reversed(saved_steps)
            return
        T, x_proj = xs.shape[1], _x_proj(cell, xs, params)
        for k in reversed(range(len(saved_steps))):
            times = range(k * steps.checkpoint_every, min(T, (k + 1) * steps.checkpoint_every))
            again = list(self._run_steps(cell, x_proj, times, saved_steps[k], params, steps))
            yield from (for_backward for for_backward, *_ in reversed(again))

    def backward(
        self,
        cell: Cell,
        dhs: Array,
        dstate: State,
        saved: Any,
        inputs: bool = True,
        out: Sequence[Array] | None = None,
    ) -> Gradients:
        xs, saved_steps, params, steps = saved
        expect_trainable(params)
        Wx, Wh, _, _, Wr = cell.complete(params)
        (N, T, D), H, P = xs.shape, cell.hidden_size(params), cell.output_size(params)
        early = len(cell.recurrent_gates) - len(cell.second_product)  # gates fed by h itself
        Wh_h = Wh[:, : early * H]
        recurrent_mask = steps.recurrent_mask
        if recurrent_mask is None:
            recurrent_mask = np.ones((1, H), xs.dtype)

        def zeros(size: int) -> Array:
            return np.zeros((N, size), xs.dtype)

        no_gates = tuple(zeros(P if name in cell.second_product else H) for name in cell.gates)
        no_state = tuple(map(zeros, cell.state_sizes(H, P)))
        dgates_all: list[tuple[Array, ...]] = []  # from the last step to the first, as the others
        dinitial, dtype, no_operand = no_state, xs.dtype, zeros(H)
        dstates_all, h_before, operands = list[Array](), list[Array](), list[Array]()
        walked = self._rerun_reversed(cell, xs, saved_steps, params, steps)
        waiting = {*cell.second_product, *cell.operand_gate}
        early_gates, late_gates = (
            [g for g, name in enumerate(cell.gates) if (name in waiting) == late]
            for late in (False, True)
        )
        for t, (state, operand, step_saved, extra, normalised) in zip(
            reversed(range(T)), walked, strict=True
        ):
            options = steps.at(t, state)
            h_before.append(state[0] * recurrent_mask[:, :P])
            operands.append(no_operand if operand is None else operand)
            dstate = step.add_output_gradient(dstate, (dhs[:, t],), (), options)
            if steps.trace:
                dstates_all.append(np.stack(cell.widened(np, dstate, H), axis=1))
            dnew, dskip = step.options_backward(dstate, extra, options)
            dgates, dprev = cell.backward(dnew, step_saved, state)
            dgates, dprev = _filled(dgates, no_gates), _filled(dprev, no_state)
            # normalised gates: still of the normalised value
            dgates = step.select_live(dgates, no_gates, options)

            dgates = _denormalised(dgates, normalised, late_gates)
            if cell.operand_backward is not None:
                if cell.operand_gate:
                    doperand = dgates[late_gates[0]]
                else:
                    doperand = _fuse(dgates, cell.recurrent_gates[early:]) @ Wr.T * recurrent_mask
                dgates, dprev = cell.operand_backward(doperand, dgates, dprev, step_saved, state)
                dgates = step.select_live(dgates, no_gates, options)
            dgates = _denormalised(dgates, normalised, early_gates)

            if early:
                h_grad = (
                    _fuse(dgates, cell.recurrent_gates[:early]) @ Wh_h.T * recurrent_mask[:, :P]
                )
                dprev = dprev[0] + h_grad, *dprev[1:]
            dstate = step.add_states(step.select_live(dprev, no_state, options), dskip)
            dgates_all.append(dgates)
            dstate, _, dreset = step.reset_backward(dstate, (), options)
            dinitial = step.add_states(dinitial, dreset)

        def rows(by_step: Sequence[Array], size: int) -> Array:  # (N T, size)
            return _over_time(by_step[::-1], (N, T, size), dtype).reshape(N * T, size)

        def columns(gates: Sequence[int]) -> Array:  # (N T, gates H)
            sides = [rows([d[g] for d in dgates_all], no_gates[g].shape[1]) for g in gates]
            return np.concatenate([np.empty((N * T, 0), dtype), *sides], axis=1)

        weights = range(len(cell.gates) - len(cell.weights), len(cell.gates))
        x_proj, h_proj = columns(cell.input_gates), columns(cell.recurrent_gates)
        dWx = self.product(xs.reshape(N * T, D).T, x_proj)
        dWh = self.product(rows(h_before, P).T, h_proj[:, : early * H])
        dWr = self.product(rows(operands, H).T, h_proj[:, early * H :])
        if cell.second_product and not cell.projected:
            dWh = np.concatenate([dWh, dWr], axis=1)
        db = self.sum_rows(x_proj)
        if cell.biases == 2:
            db = np.stack([db, self.sum_rows(h_proj)])
        dw = self.sum_rows(columns(weights)).reshape(len(weights), H)
        dxs = (x_proj @ Wx.T).reshape(N, T, D) if inputs else None
        dparams = written(cell.own(dWx, dWh, db, dw, dWr), out)
        initial = np.stack([self.sum_rows(d) for d in cell.widened(np, dinitial, H)])
        dstates = None
        if steps.trace:
            dstates = _over_time(dstates_all[::-1], (N, T, len(cell.states), H), dtype)
        return Gradients(dxs, dstate, dparams, initial, dstates)

    def states_before(self, cell: Cell, saved: Any) -> tuple[Array, ...]:
        xs, saved_steps, params, steps = saved
        seen = [state for state, *_ in self._rerun_reversed(cell, xs, saved_steps, params, steps)][
            ::-1
        ]
        return tuple(np.stack(states, axis=1) for states in zip(*seen, strict=True))

    def recompute(
        self, cell: Cell, xs: Array, params: Sequence[Array], steps: StepOptions, before: State
    ) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
        N, T, _ = xs.shape
        H = cell.hidden_size(params)
        Wx, Wh, b, w, Wr = cell.complete([self.to_host(param) for param in params])
        Wh, (bx, bh) = _of_h(cell, Wh), (b, None) if cell.biases == 1 else b
        before = tuple(self.to_host(state) for state in before)
        rows = tuple(state.reshape(N * T, state.shape[2]) for state in before)
        x_proj = _product(self.to_host(xs).reshape(N * T, Wx.shape[0]), Wx) + bx
        recurrent_mask = (
            None
            if steps.recurrent_mask is None
            else np.repeat(self.to_host(steps.recurrent_mask), T, axis=0)
        )
        gates, *_ = _pre_activations(cell, x_proj, rows, Wh, Wr, bh, w, recurrent_mask)
        new, _ = cell.forward(gates, rows)

        def every_row(array: Array) -> Array:
            width = array.shape[-1] if array.ndim else H
            return np.broadcast_to(array, (N * T, width)).reshape(N, T, width)

        gates, new, inside = (
            tuple(every_row(np.asarray(array)) for array in arrays)
            for arrays in (gates, new, cell.inside(gates, rows))
        )
        after = []
        for t in range(T):
            new_t, seen = (tuple(s[:, t] for s in states) for states in (new, before))
            after.append(step.apply_options(new_t, seen, steps.at(t, seen))[0])
        return gates, inside, tuple(np.stack(states, axis=1) for states in zip(*after, strict=True))

    def step(
        self,
        cell: Cell,
        x: Array,
        state: State,
        params: Sequence[Array],
        zoneout: Sequence[float] = (),
    ) -> State:
        expect_consistent(cell, x[:, None], state, params)
        Wx, Wh, b, w, Wr = cell.complete(params)
        Wh, (bx, bh) = _of_h(cell, Wh), (b, None) if cell.biases == 1 else b
        gates, *_ = _pre_activations(cell, _product(x, Wx) + bx, state, Wh, Wr, bh, w, None)
        new, options = cell.forward(gates, state)[0], StepOptions(zoneout=zoneout).at(0, state)
        return step.apply_options(new, state, options)[0]


def _over_time(by_step: Sequence[Array], shape: tuple[int, ...], dtype: Any) -> Array:
    """Arrays (N, ...) of all steps as one (N, T, ...)."""
    return np.stack(by_step, axis=1) if by_step else np.empty(shape, dtype)


def _x_proj(cell: Cell, xs: Array, params: Sequence[Array]) -> Array:
    """x Wx and the bias on the input side: one product for all T."""
    Wx, _, b, *_ = cell.complete(params)
    return _product(xs, Wx) + (b if cell.biases == 1 else b[0])


def _of_h(cell: Cell, Wh: Array) -> Array:
    """The columns of Wh that h itself is multiplied with; not those of the operand."""
    second = 0 if cell.projected else len(cell.second_product)
    return Wh[:, : Wh.shape[1] - second * (Wh.shape[1] // max(1, len(cell.recurrent_gates)))]


def _product(a: Array, W: Array, cell: Cell | None = None, operand: int = 0) -> Array:
    """a W, of any kind of weight. With a cell a is its h, or its operand, not multiplied by a mask:
    it may be known to lie between -1 and 1.
    """
    if not isinstance(W, QuantisedWeight):
        return a @ W
    return W.product(a, cell is not None and cell.bounded[operand])


def _pre_activations(
    cell: Cell,
    x_proj: Array,
    state: State,
    Wh: Array,
    Wr: Array,
    bh: Array | None,
    w: Array,
    recurrent_mask: Array | None,
    options: StepValues = NO_VALUES,
) -> tuple[tuple[Array, ...], Array | None, Normalised]:
    """The pre-activation (N, H) of every gate, the operand of the second product if any, and the
    gates' normalisation. Wh has the columns of ``_of_h``.

    The operand of masked rows, which may be anything, is set to 0, since it enters the gradient of
    Wh.
    """
    h = state[0] if recurrent_mask is None else state[0] * recurrent_mask[:, : Wh.shape[0]]
    early = len(cell.recurrent_gates) - len(cell.second_product)
    gates: list[Array] = [h.dtype.type(0)] * (len(cell.gates) - len(w))
    gates += [w[k] for k in range(len(w))]

    def add(side: Array, positions: Sequence[int]) -> None:
        for g, part in zip(positions, np.split(side, len(positions), axis=1), strict=True):
            gates[g] = gates[g] + part

    add(x_proj, cell.input_gates)
    if early:
        h_proj = _product(h, Wh, cell if recurrent_mask is None else None)
        add(h_proj if bh is None else h_proj + bh, cell.recurrent_gates[:early])
    normalised: Normalised = {}

    def normalise(names: set[str]) -> None:
        for name in names & set(cell.normalised):
            g = cell.gates.index(name)
            normalised[g] = gates[g], _ = _normalise(gates[g])

    waiting = {*cell.second_product, *cell.operand_gate}
    normalise({*cell.gates} - waiting)
    if cell.operand is None:
        return tuple(gates), None, normalised
    operand = cell.operand(tuple(gates), state)
    (operand,) = step.select_live((operand,), (0.0,), options)
    if cell.operand_gate:
        gates[cell.gates.index(cell.operand_gate[0])], operand = operand, None
    else:
        operand = operand if recurrent_mask is None else operand * recurrent_mask
        add(
            _product(operand, Wr, cell if recurrent_mask is None else None, 1),
            cell.recurrent_gates[early:],
        )
    normalise(waiting)
    return tuple(gates), operand, normalised


def _normalise(a: Array) -> tuple[Array, Array]:
    """a (N, H) normalised over each row, and 1 / its standard deviation, (N, 1)."""
    d = a - a.mean(axis=1, keepdims=True)
    d = d - d.mean(axis=1, keepdims=True)  # the first mean has the rounding error of a itself
    deviation = np.sqrt((d * d).mean(axis=1, keepdims=True) + d.dtype.type(EPSILON))
    return d / deviation, 1 / deviation


def _denormalised(
    dgates: tuple[Array, ...], normalised: Normalised, gates: Sequence[int]
) -> tuple[Array, ...]:
    """The gradients; those of some gates are taken back from the normalised value to a."""
    result = list(dgates)
    for g in normalised.keys() & set(gates):
        (a_hat, factor), d = normalised[g], dgates[g]
        mean, along = (x.mean(axis=1, keepdims=True) for x in (d, d * a_hat))
        result[g] = factor * (d - mean - a_hat * along)
    return tuple(result)


def _fuse(dgates: Sequence[Array], positions: Sequence[int]) -> Array:
    """The gradients of some gates side by side, (N, gates H)."""
    return np.concatenate([dgates[g] for g in positions], axis=1)


def _filled(gradients: Sequence[Array | None], zeros: Sequence[Array]) -> tuple[Array, ...]:
    """The gradients, zeros in place of None."""
    return tuple(z if d is None else d for d, z in zip(gradients, zeros, strict=True))


__getattr__ = deprecated.names_of(__name__)
