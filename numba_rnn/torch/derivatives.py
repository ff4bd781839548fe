"""A pass as two functions of autograd that can be differentiated forever, forwards and under vmap.

    Outputs(x, u...)        D^n f(x) [u...]             hs and the states after; n directions u
    Gradients(x, y, u...)   D^n (J(x)^T y) [u...]       the gradient by x, for y by what comes out

x is (xs, states, weights), and each u is as x. Without directions these are forward and backward.
Both kinds of derivatives of both are made of the two again:

                     by x, for z          by y, for z         by one u, for z
    Outputs          Gradients(x, z, u...)                    Gradients(x, z, the other u)
    Gradients        Gradients(x, y, u..., z)  Outputs(x, u..., z)  Gradients(x, y, the other u, z)

and forwards a tangent of x is one more direction, that of y or u takes its place. ``functional``
computes them for any cell. A tangent or gradient that is None is 0.

Under vmap rows of a batch become more rows, as long as the weights are shared and no gradient of
weights is asked for; else it is a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.autograd import forward_ad

from .. import functional
from ..backend import engine
from ..functional import Direction, Record, StepOptions
from .threads import torch_threads
from .weights import Form, array_of, tensor_of

Tensors = Sequence[Any]  # tensors or None
Options: TypeAlias = StepOptions | torch.Tensor


def run_pass(
    form: Form, options: Options, xs: torch.Tensor, state: Tensors, params: Any
) -> functional.Result:
    """The forward pass of arrays.

    options  of the steps; or the batch sizes of a PackedSequence, whose data xs is, and hs
    """
    given, before = (form.cell, array_of(xs)), arrays_of(state) or None
    if isinstance(options, torch.Tensor):
        return functional.forward_packed(*given, options.numpy(), before, params)
    return functional.forward(*given, before, params, options)


@dataclass(frozen=True, eq=False)
class Pass:
    """Everything of a pass that is no tensor.

    options  as ``run_pass`` takes them
    states   how many states are given; without any they are zeros
    count    how many tensors go in: xs, those states, the weights
    record   of the forward pass of these inputs, if there is one already
    """

    form: Form
    options: Options
    states: int
    count: int
    record: Record | None = None

    def split(self, inputs: Tensors) -> tuple[Any, Tensors, Tensors]:
        """xs, states and weights."""
        return inputs[0], inputs[1 : 1 + self.states], inputs[1 + self.states :]

    def groups(self, tensors: Tensors) -> list[Tensors]:
        """x and directions."""
        starts = range(0, len(tensors), self.count)
        return [tensors[start : start + self.count] for start in starts]

    def parts(self, tensors: Tensors) -> tuple[Tensors, Tensors, list[Tensors]]:
        """x, y and directions."""
        end = self.count + 1 + len(self.form.cell.states)
        return tensors[: self.count], tensors[self.count : end], self.groups(tensors[end:])

    def run(self, inputs: Tensors) -> functional.Result:
        """The forward pass without directions."""
        xs, state, weights = self.split(inputs)
        params = self.form.params([weight.detach() for weight in weights])
        return run_pass(self.form, self.options, xs, state, params)

    def direction(self, tangents: Tensors, inputs: Tensors) -> Direction:
        """Tangents of the inputs as those of arrays."""
        xs, state, weights = self.split(tangents)
        params = None
        if any(weight is not None for weight in weights):
            pairs = zip(weights, self.split(inputs)[2], strict=True)
            filled = [torch.zeros_like(w) if t is None else t for t, w in pairs]
            params = self.form.params(filled)
        return Direction(None if xs is None else array_of(xs), arrays_of(state), params)

    def gradients(self, found: Any, inputs: Tensors) -> tuple[torch.Tensor, ...]:
        """Gradients of arrays as those of the inputs."""
        weights = self.form.gradients(found.params, self.split(inputs)[2])
        return tensor_of(found.xs), *map(tensor_of, found.state[: self.states]), *weights


def transformed(tensors: Tensors, keep: bool) -> bool:
    """Whether torch.func or forward mode is at work on tensors.

    keep  whether some of them require a gradient
    """
    of, dual = torch._C._functorch, forward_ad._current_level >= 0
    return (keep and torch._C._are_functorch_transforms_active()) or any(
        of.is_functorch_wrapped_tensor(t)
        or of.is_legacy_batchedtensor(t)
        or (dual and forward_ad.unpack_dual(t).tangent is not None)  # type: ignore[no-untyped-call]
        for t in tensors
        if t is not None
    )


def arrays_of(tensors: Tensors) -> list[Any]:
    """The arrays of tensors, of which some may be None."""
    return [None if tensor is None else array_of(tensor) for tensor in tensors]


def apply(function: type["_Function"], pass_: Pass, *tensors: Any) -> tuple[Any, ...]:
    """One of the two functions.

    The batches of ``torch.autograd.grad(is_grads_batched=True)``, which no function of autograd
    takes, are taken apart and put together again.
    """
    batched = [t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors]
    if not any(batched):
        return function.apply(pass_, *tensors)  # type: ignore[no-untyped-call]
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    given = [
        torch._remove_batch_dim(t, level, 1, 0) if b else t
        for t, b in zip(tensors, batched, strict=True)
    ]
    dims = None, *(0 if b else None for b in batched)
    info = SimpleNamespace(batch_size=len(given[batched.index(True)]))
    found, _ = function.vmap(info, dims, pass_, *given)  # type: ignore[no-untyped-call]
    return tuple(torch._add_batch_dim(t, 0, level) for t in found)


def _flat(groups: Sequence[Tensors]) -> list[Any]:
    return [tensor for group in groups for tensor in group]


def _is_zero(group: Tensors) -> bool:
    return all(tensor is None for tensor in group)


def _sum(terms: Sequence[Tensors]) -> Tensors:
    return [sum(parts[1:], start=parts[0]) for parts in zip(*terms, strict=True)]


def _instead(us: list[Tensors], k: int, *new: Tensors) -> list[Any]:
    """The directions with others in the place of one."""
    return _flat([*us[:k], *new, *us[k + 1 :]])


def _of_directions(us: list[Tensors], needed: Sequence[bool], gradient: Any) -> list[Any]:
    """The gradients by directions, as far as they are needed; ``gradient`` takes the number of one.

    None for each tensor that is None.
    """
    found: list[Any] = []
    for k, u in enumerate(us):
        some = any(needed[k * len(u) : (k + 1) * len(u)])
        of_u = gradient(k) if some else (None,) * len(u)
        found += [None if t is None else d for t, d in zip(u, of_u, strict=True)]
    return found


class _Function(torch.autograd.Function):
    """A function of (pass, *tensors), all of which are kept."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.pass_, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


def _loop(function: type[_Function], info: Any, dims: Any, pass_: Pass, *tensors: Any) -> Any:
    """The rule for vmap: one after the other."""
    dims = dims[1:]
    if any(dim is not None for dim in dims[: pass_.count]):
        pass_ = replace(pass_, record=None)
    each = [
        apply(
            function, pass_,
            *(t if d is None else t.select(d, k) for t, d in zip(tensors, dims, strict=True)),
        )
        for k in range(info.batch_size)
    ]  # fmt: skip
    return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(each[0])


class Outputs(_Function):
    """(pass, *x, *u...) -> hs and the states after, or their derivative in directions."""

    @staticmethod
    def forward(pass_: Pass, *tensors: Any) -> Any:
        x, *us = pass_.groups(tensors)
        with torch_threads(engine()):
            if us:
                record = pass_.record or pass_.run(x).record
                hs, after = functional.jvp(record, *(pass_.direction(u, x) for u in us))
            else:
                hs, after, _ = pass_.run(x)
        return tuple(map(tensor_of, (hs, *after)))

    @staticmethod
    def backward(ctx: Any, *z: Any) -> Any:
        pass_, (x, *us), needed = (
            ctx.pass_,
            ctx.pass_.groups(ctx.saved_tensors),
            ctx.needs_input_grad[1:],
        )
        of_x: Any = (None,) * len(x)
        if any(needed[: len(x)]):
            of_x = apply(Gradients, pass_, *x, *z, *_flat(us))
        of_us = _of_directions(
            us, needed[len(x) :], lambda k: apply(Gradients, pass_, *x, *z, *_instead(us, k))
        )
        return None, *of_x, *of_us

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
        pass_, (x, *us) = ctx.pass_, ctx.pass_.groups(ctx.saved_tensors)
        of_x, *of_us = pass_.groups(tangents)
        terms = [] if _is_zero(of_x) else [apply(Outputs, pass_, *x, *_flat([*us, of_x]))]
        terms += [
            apply(Outputs, pass_, *x, *_instead(us, k, u))
            for k, u in enumerate(of_us)
            if not _is_zero(u)
        ]
        return tuple(_sum(terms))

    @staticmethod
    def vmap(info: Any, dims: Any, pass_: Pass, *tensors: Any) -> Any:
        B, of_rows = info.batch_size, range(1 + pass_.states)
        places = [(place % pass_.count in of_rows, dim) for place, dim in enumerate(dims[1:])]
        shared = all(dim is None or is_row for is_row, dim in places)
        if isinstance(pass_.options, torch.Tensor) or not shared:
            return _loop(Outputs, info, dims, pass_, *tensors)
        given = []
        for tensor, (is_row, dim) in zip(tensors, places, strict=True):
            if is_row and tensor is not None:
                each = tensor.expand(B, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
                tensor = each.flatten(0, 1)
            given.append(tensor)
        flags = {
            name: np.tile(flag, (B, 1))
            for name in ("mask", "resets")
            if (flag := getattr(pass_.options, name)) is not None
        }
        options = replace(pass_.options, **flags)
        found = apply(Outputs, replace(pass_, options=options, record=None), *given)
        N = len(given[0]) // B
        return tuple(t.unflatten(0, (B, N)) for t in found), (0,) * len(found)


class Gradients(_Function):
    """(pass, *x, *y, *u...) -> the gradient by x, or its derivative in directions."""

    @staticmethod
    def forward(pass_: Pass, *tensors: Any) -> Any:
        x, y, us = pass_.parts(tensors)
        record = pass_.record or pass_.run(x).record
        dhs, *dstate = arrays_of(y)
        with torch_threads(record.engine):
            if us:
                along = [pass_.direction(u, x) for u in us]
                found = functional.hvp(record, dhs, dstate, *along)
            else:
                found = functional.backward(record, dhs, dstate)
        return pass_.gradients(found, x)

    @staticmethod
    def backward(ctx: Any, *z: Any) -> Any:
        pass_, (x, y, us), needed = (
            ctx.pass_,
            ctx.pass_.parts(ctx.saved_tensors),
            ctx.needs_input_grad[1:],
        )
        of_x: Any = (None,) * len(x)
        if any(needed[: len(x)]):
            of_x = apply(Gradients, pass_, *x, *y, *_flat([*us, z]))
        end = len(x) + len(y)
        of_y: Any = (None,) * len(y)
        if any(needed[len(x) : end]):
            of_y = apply(Outputs, pass_, *x, *_flat([*us, z]))
            of_y = [None if t is None else d for t, d in zip(y, of_y, strict=True)]
        of_us = _of_directions(
            us, needed[end:], lambda k: apply(Gradients, pass_, *x, *y, *_instead(us, k, z))
        )
        return None, *of_x, *of_y, *of_us

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
        pass_, (x, y, us) = ctx.pass_, ctx.pass_.parts(ctx.saved_tensors)
        of_x, of_y, of_us = pass_.parts(tangents)
        terms = [] if _is_zero(of_x) else [apply(Gradients, pass_, *x, *y, *_flat([*us, of_x]))]
        if not _is_zero(of_y):
            terms.append(apply(Gradients, pass_, *x, *of_y, *_flat(us)))
        terms += [
            apply(Gradients, pass_, *x, *y, *_instead(us, k, u))
            for k, u in enumerate(of_us)
            if not _is_zero(u)
        ]
        return tuple(_sum(terms))

    @staticmethod
    def vmap(info: Any, dims: Any, pass_: Pass, *tensors: Any) -> Any:
        return _loop(Gradients, info, dims, pass_, *tensors)
