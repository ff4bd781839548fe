"""One step of RNN, LSTM and GRU, as a node of autograd: the road of cells, and of layers at T = 1.

Weights stay where torch has them: a step is torch's two products and the cell between them
(``Engine.gate_rows``). Its gradients, but for those of the weights, are as many products again.

Those of the weights are one product for many steps. All steps hang from one *source*, a node above
the weights, which runs once all the steps have run back; until then they leave it the factors.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch.autograd import forward_ad

from ..backend import engine
from ..bridges.gate_order import OURS, PYTORCH, gate_permutation
from ..kernels import cells
from ..kernels.engine import GateRows

linear = torch._C._nn.linear
ENOUGH_ROWS = 64  # for a product with as many terms to be worth its call (measured)
_FLOATS = {torch.float32: "float32", torch.float64: "float64"}
PLAIN = torch.Tensor, torch.nn.Parameter
_C = torch._C
_VF: Any = _C._VariableFunctions


def is_plain_call() -> bool:
    """Whether torch runs operations as they come: nothing records, transforms or casts them.

    torch.compile, which would follow the questions here, is asked about before.
    """
    return not (
        _C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or _C._are_functorch_transforms_active()
        or _C._is_any_autocast_enabled()
        or _C._len_torch_dispatch_stack()
        or _C._len_torch_function_stack()
    )


def is_plain(tensor: Any, dtype: torch.dtype) -> bool:
    """Whether it is a dense tensor on the CPU, of torch's own class and of a dtype."""
    return (
        type(tensor) in PLAIN
        and tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
    )


class StepKind:
    """A cell of torch.nn: its equation here, and torch's own operator.

    formula  (x, states, weights) -> new states, in torch's operators
    """

    def __init__(self, family: str, cell: str, formula: Callable[..., Any]) -> None:
        self.cell, self.formula = cells.get(cell), formula
        order, signs = gate_permutation(family, PYTORCH, len(OURS[family]))
        blocks = {
            gate: (int(order[k]), 1 if signs is None else int(signs[k]))
            for k, gate in enumerate(OURS[family])
        }
        x, h = self.cell.input_gates, self.cell.recurrent_gates
        table = []
        for g, name in enumerate(self.cell.gates):
            block, sign = blocks[name[0]]
            table.append((block if g in x else -1, block if g in h else -1, sign))
        self._table, self._rows = tuple(table), {}  # type: tuple[Any, ...], dict[Any, Any]
        self.states = len(self.cell.states)
        self.blocks = len(x)  # of a row of gates
        self.apart = x != h  # whether the two products' gradients differ

    def rows(self, dtype: torch.dtype) -> GateRows | None:
        """The engine's step; None where it has none."""
        key = engine(), dtype
        if key not in self._rows:
            self._rows[key] = key[0].gate_rows(self.cell, self._table, _FLOATS[dtype])
        return self._rows[key]

    def step(
        self, rows: GateRows, x: torch.Tensor, states: Sequence[torch.Tensor], weights: Any
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """The new states, and what backward needs; the states are dense."""
        w_ih, w_hh, b_ih, b_hh = weights
        h, count = states[0], self.blocks
        gx, gh = linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)
        H = h.shape[-1]
        N, saved = h.numel() // H, gx
        if rows.stored > count:
            count = rows.stored
            saved = gx.new_empty((N, count, H))
        new = gx if self.blocks == 1 and h.dim() == 2 else torch.empty_like(h)
        if len(states) == 1:
            rows.forward(N, H, gx.data_ptr(), gh.data_ptr(), saved.data_ptr(), count,
                         h.data_ptr(), new.data_ptr())  # fmt: skip
            return (new,), saved
        _, c = states
        new_c = torch.empty_like(c)
        rows.forward(N, H, gx.data_ptr(), gh.data_ptr(), saved.data_ptr(), count,
                     h.data_ptr(), c.data_ptr(), new.data_ptr(), new_c.data_ptr())  # fmt: skip
        return (new, new_c), saved


@cache
def kind_of(mode: str) -> StepKind:
    """The kind of a module, by its ``mode`` or, of an RNN's, its ``nonlinearity``."""
    family, cell, formula = {
        "LSTM": ("lstm", "lstm", _VF.lstm_cell),
        "GRU": ("gru", "gru_reset_after", _of_h(_VF.gru_cell)),
        "tanh": ("rnn", "rnn", _of_h(_VF.rnn_tanh_cell)),
        "relu": ("rnn", "rnn_relu", _of_h(_VF.rnn_relu_cell)),
    }[mode.removeprefix("RNN_").lower() if mode.startswith("RNN_") else mode]
    return StepKind(family, cell, formula)


def _of_h(cell: Callable[..., Any]) -> Callable[..., Any]:
    """torch's operator of a cell whose state is h alone."""
    return lambda x, states, *weights: cell(x, states[0], *weights)


# ---- steps of a module


def run_step(
    kind: StepKind,
    rows: GateRows,
    x: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor | None],
    sources: dict[Any, Any],
    place: Any = "_source",
) -> tuple[torch.Tensor, ...]:
    """The new states. x (N, D) and states (N, H), or with an axis of time: (1, N, H) states.

    sources  where the source of the steps before is found by ``place``, as long as it lives
    """
    for state in states:
        if not state.is_contiguous():
            states = [s.contiguous() for s in states]
            break
    if torch.is_grad_enabled():
        for tensor in (x, *states, *weights):
            if tensor is not None and tensor.requires_grad:
                source = _source(kind, weights, sources, place)
                found: Any = _Step.apply(source, rows, x, *states)  # type: ignore[no-untyped-call]
                return found
    return kind.step(rows, x, states, weights)[0]


class Source:
    """Weights of steps, and by the number of a backward pass what these have left there."""

    def __init__(self, kind: StepKind, weights: Sequence[torch.Tensor | None]) -> None:
        self.kind, self.weights = kind, tuple(weights)
        self.versions = _versions(weights)
        self.passes: dict[int, _Pass] = {}

    def is_of(self, weights: Sequence[torch.Tensor | None]) -> bool:
        """Whether these are its weights, unchanged."""
        a, b, c, d = self.weights
        e, f, g, h = weights
        same = a is e and b is f and c is g and d is h
        return same and _versions(weights) == self.versions

    def expect_unchanged(self) -> None:
        """Raise torch's error where a weight was changed between forward and backward."""
        if _versions(self.weights) != self.versions:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: a weight of the module, after its forward; call backward "
                "before the weights change"
            )

    def now(self) -> "_Pass":
        """Take the factors that this backward pass has left here."""
        number = _C._current_graph_task_id()
        found = self.passes.get(number)
        if found is None:
            found = self.passes[number] = _Pass()
            # for a pass that does not come to the weights
            forget: Any = partial(self.passes.pop, number, None)
            torch.autograd.Variable._execution_engine.queue_callback(forget)
        return found


def _versions(weights: Sequence[torch.Tensor | None]) -> Any:
    a, b, c, d = weights
    assert a is not None
    assert b is not None
    if c is None or d is None:
        return a._version, b._version
    return a._version, b._version, c._version, d._version


class _Pass:
    """The weights' gradients of some steps, and the factors of those to come."""

    def __init__(self) -> None:
        self.sums: list[torch.Tensor | None] = [None] * 4
        self.factors: list[tuple[torch.Tensor, ...]] = []
        self.rows = 0

    def add(self, *factors: torch.Tensor) -> None:
        """x, h, and the gradients of their products."""
        self.factors.append(factors)
        self.rows += len(factors[0])
        if self.rows >= ENOUGH_ROWS:
            self.multiply()

    def multiply(self) -> None:
        """Sum up what is there."""
        if not self.factors:
            return
        x, h, dgx, dgh = self.factors[0]
        if len(self.factors) > 1:
            columns: Any = zip(*self.factors, strict=True)
            joined: Any = [
                torch.cat(some) if k < 3 or dgh is not dgx else None
                for k, some in enumerate(columns)
            ]
            x, h, dgx = joined[:3]
            dgh = dgx if joined[3] is None else joined[3]
        self.factors, self.rows = [], 0
        for k, (d, factor) in enumerate(((dgx, x), (dgh, h))):
            total = self.sums[k]
            if total is None:
                self.sums[k] = torch.mm(d.t(), factor)
            else:
                total.addmm_(d.t(), factor)
        dbx = dgx.sum(0)
        for k, bias in ((2, dbx), (3, dbx if dgh is dgx else dgh.sum(0))):
            self.plus(k, bias)

    def plus(self, k: int, more: torch.Tensor | None) -> None:
        """Add to a gradient, out of place: for gradients that are differentiated again."""
        if more is not None:
            total = self.sums[k]
            self.sums[k] = more if total is None else total + more


def _source(
    kind: StepKind, weights: Sequence[torch.Tensor | None], sources: dict[Any, Any], place: Any
) -> Any:
    """A tensor that stands for the weights: that of the last step, if it still hangs somewhere."""
    last = sources.get(place)
    found: Any = None if last is None else last()
    if found is None or not found.source.is_of(weights):
        source = Source(kind, weights)
        found = _Weights.apply(source, *weights)  # type: ignore[no-untyped-call]
        found.source = source
        sources[place] = weakref.ref(found)
    return found


class _Weights(torch.autograd.Function):
    """The source's node."""

    @staticmethod
    def forward(ctx: Any, source: Source, *weights: torch.Tensor | None) -> torch.Tensor:
        ctx.source = source
        ctx.set_materialize_grads(False)
        return weights[0].new_empty(0)  # type: ignore[union-attr]

    @staticmethod
    def backward(ctx: Any, _: Any) -> Any:
        left = ctx.source.passes.pop(_C._current_graph_task_id(), None)
        if left is None:
            return (None,) * 5
        left.multiply()
        needed = ctx.needs_input_grad[1:]
        sums = [d if need else None for d, need in zip(left.sums, needed, strict=True)]
        if sums[2] is not None and sums[2] is sums[3]:
            sums[3] = sums[3].clone()
        return None, *sums


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Any, rows: GateRows, x: Any, *states: Any) -> Any:
        kind = source.source.kind
        new, saved = kind.step(rows, x, states, source.source.weights)
        ctx.source, ctx.rows, ctx.count = source, rows, len(states)
        ctx.set_materialize_grads(False)
        if rows.needs_new:
            ctx.save_for_backward(x, *states, saved, *new)
        else:
            ctx.save_for_backward(x, *states, saved)
        return new

    @staticmethod
    def backward(ctx: Any, *dnew: Any) -> Any:
        source, count = ctx.source.source, ctx.count
        source.expect_unchanged()
        x, *rest = ctx.saved_tensors
        states, saved, new = rest[:count], rest[count], rest[count + 1 :]
        needs = ctx.needs_input_grad
        if _C.is_grad_enabled():
            return _differentiable(source, needs, x, states, dnew)
        kind, h = source.kind, states[0]
        w_ih, w_hh, _, _ = source.weights
        H = h.shape[-1]
        N = h.numel() // H
        size = N, kind.blocks * H
        dgx = h.new_empty(size)
        dgh = h.new_empty(size) if kind.apart else dgx
        dstates = [torch.empty_like(s) for s in states]
        dense = [d if d is None else d.contiguous() for d in dnew]
        addresses = [0 if d is None else d.data_ptr() for d in dense]
        addresses += [s.data_ptr() for s in states]
        addresses += [s.data_ptr() for s in new] or [0] * count
        addresses += [d.data_ptr() for d in dstates]
        ctx.rows.backward(
            N, H, dgx.data_ptr(), dgh.data_ptr(), saved.data_ptr(), saved.numel() // (N * H),
            *addresses,
        )  # fmt: skip
        dx = None
        if needs[2]:
            dx = torch.mm(dgx, w_ih)
            dx = dx if x.dim() == 2 else dx.view(x.shape)
        if needs[3]:
            dh = dstates[0] if h.dim() == 2 else dstates[0][0]
            dh.addmm_(dgh, w_hh)
        if needs[0]:
            flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
            source.now().add(flat, h if h.dim() == 2 else h[0], dgx, dgh)
        return None, None, dx, *dstates


def _differentiable(source: Source, needs: Any, x: Any, states: Any, dnew: Any) -> Any:
    """The same gradients in torch's operators, to be differentiated again."""
    weights = [w for w in source.weights if w is not None]
    given = x, *states, *weights
    wanted = [*needs[2:], *(needs[0] and w.requires_grad for w in weights)]
    # each by a name of its own: h may depend on x
    own = [t.view_as(t) for t in given]
    count = len(states)
    inputs, hx, ws = own[0], own[1 : count + 1], own[count + 1 :]
    if inputs.dim() == 3:
        inputs, hx = inputs.reshape(-1, inputs.shape[-1]), [s[0] for s in hx]
    new = source.kind.formula(inputs, hx, *ws)
    new = new if isinstance(new, tuple) else (new,)
    pairs = [(n, d.reshape(n.shape)) for n, d in zip(new, dnew, strict=True) if d is not None]
    if not pairs:
        return (None,) * len(needs)
    asked = [t for t, want in zip(own, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad(
            [n for n, _ in pairs], asked, [d for _, d in pairs],
            create_graph=True, allow_unused=True,
        )
    )  # fmt: skip
    gradients = [next(found) if want else None for want in wanted]
    if needs[0]:
        left = source.now()
        for k, d in enumerate(gradients[count + 1 :]):
            left.plus(k, d)
    return None, None, *gradients[: count + 1]
