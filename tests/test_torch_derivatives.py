"""Derivatives of numba_rnn.torch's modules beyond backward: by torch.nn and by gradcheck."""

import copy

import numpy as np
import pytest
import torch
from test_torch_modules import KINDS, pair, tensors
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.nn.utils.rnn import pack_padded_sequence

from helpers import random_problem
from numba_rnn import cells
from numba_rnn.functional import StepOptions
from numba_rnn.torch import Recurrent
from numba_rnn.torch.derivatives import Gradients, Outputs, Pass, apply

pytestmark = [  # of torch's: where proj_size is set, and at its first forward mode
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
    pytest.mark.filterwarnings("ignore:.*performance drop"),
]
LIMIT = 1e-12


def equal(got, want):
    got, want = (torch.utils._pytree.tree_leaves(of) for of in (got, want))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=LIMIT, atol=LIMIT)


def doubles(kind, *sizes, **options):
    return pair(kind, *sizes, dtype=torch.float64, **options)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def values_of(module):
    return {name: value.detach() for name, value in module.named_parameters()}


def outputs(module, values, xs):
    return functional_call(module, values, (xs,))[0]


def dual(module):
    with forward_ad.dual_level():
        out = module(forward_ad.make_dual(XS, 0 * XS + 2))[0]
        return forward_ad.unpack_dual(out).tangent


def by_state(module):
    """By the states, of the states after."""
    h = random(2, 2, 5, seed=4)
    if module.mode == "LSTM":
        return [jac(lambda h: module(XS, (h[..., : module.proj_size or 5], 2 * h))[1])(h)
                for jac in (jacrev, jacfwd)]  # fmt: skip
    return [jac(lambda h: module(XS, h)[1])(h) for jac in (jacrev, jacfwd)]


XS = random(2, 4, 3)
TRANSFORMS = {
    "grad by weights": lambda m: grad(lambda w: outputs(m, w, XS).square().sum())(values_of(m)),
    "grad by xs": lambda m: grad(lambda x: m(x)[0].square().sum())(XS),
    "vjp": lambda m: vjp(lambda w: outputs(m, w, XS), values_of(m))[1](0 * m(XS)[0] + 1),
    "jvp by xs": lambda m: jvp(lambda x: m(x)[0], (XS,), (XS,)),
    "jvp by weights": lambda m: jvp(
        lambda w: outputs(m, w, XS), (values_of(m),), (values_of(m),)
    ),
    "jacrev by xs": lambda m: jacrev(lambda x: m(x)[0])(XS),
    "jacfwd by xs": lambda m: jacfwd(lambda x: m(x)[0])(XS),
    "jacrev by weights": lambda m: jacrev(lambda w: outputs(m, w, XS))(values_of(m)),
    "by states": by_state,
    "hessian": lambda m: hessian(lambda x: m(x)[0].square().sum())(XS),
    "hessian by weights": lambda m: hessian(
        lambda w: outputs(m, {**values_of(m), "weight_hh_l0": w}, XS).square().sum()
    )(values_of(m)["weight_hh_l0"]),
    "jacrev of jacrev": lambda m: jacrev(jacrev(lambda x: m(x)[0].square().sum()))(XS),
    "jacrev of jacfwd": lambda m: jacrev(jacfwd(lambda x: m(x)[0].square().sum()))(XS),
    "jacfwd of jacfwd": lambda m: jacfwd(jacfwd(lambda x: m(x)[0].square().sum()))(XS),
    "third": lambda m: grad(grad(grad(lambda s: m(s * XS)[0].square().sum())))(XS[0, 0, 0]),
    "dual": dual,
    "dual, no_grad": torch.no_grad()(dual),
    "jacobian, vectorised": lambda m: torch.autograd.functional.jacobian(
        lambda x: m(x)[0], XS, vectorize=True
    ),
    "hessian, vectorised": lambda m: torch.autograd.functional.hessian(
        lambda x: m(x)[0].square().sum(), XS, vectorize=True
    ),
    "autograd.functional.hvp": lambda m: torch.autograd.functional.hvp(
        lambda x: m(x)[0].square().sum(), XS, XS
    ),
    "autograd.functional.jvp": lambda m: torch.autograd.functional.jvp(lambda x: m(x)[0], XS, XS),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform, kind):
    theirs, ours = doubles(kind, 3, 5, batch_first=True, bidirectional=True)
    equal(TRANSFORMS[transform](ours), TRANSFORMS[transform](theirs))
    frozen = copy.deepcopy(ours).requires_grad_(False)
    equal(TRANSFORMS[transform](frozen), TRANSFORMS[transform](ours))


def each(function, *batches):
    """vmap as a loop."""
    found = [function(*(x[k] for x in batches)) for k in range(len(batches[0]))]
    return torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *found)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_is_a_loop(kind):
    theirs, ours = doubles(kind, 3, 5, batch_first=True, num_layers=2)
    many, w = random(6, 2, 4, 3), values_of(ours)

    def samples_gradient(m):
        return grad(lambda w, x: outputs(m, w, x[None]).square().sum(), (0, 1))

    equal(vmap(lambda x: ours(x))(many), each(theirs, many))
    equal(
        vmap(samples_gradient(ours), (None, 0))(w, XS),
        each(lambda x: samples_gradient(theirs)(w, x), XS),
    )
    want = torch.stack([theirs(many.select(2, k))[0] for k in range(4)], 1)
    equal(vmap(lambda x: ours(x)[0], 2, 1)(many), want)
    models = [copy.deepcopy(ours) for _ in range(3)]
    with torch.no_grad():
        for k, model in enumerate(models):
            for value in model.parameters():
                value.mul_(1 + 0.1 * k)
    stacked, buffers = stack_module_state(models)
    got = vmap(lambda w, b: functional_call(ours, (w, b), (XS,)))(stacked, buffers)
    equal(got, each(lambda k: models[int(k)](XS), torch.arange(3)))
    got = vmap(grad(lambda w: outputs(ours, w, XS).square().sum()))(stacked)
    want = each(lambda k: grad(lambda w: outputs(theirs, w, XS).square().sum())(
        values_of(models[int(k)])), torch.arange(3))  # fmt: skip
    equal(got, want)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_penalty(kind, packed):
    """The gradients of a loss that has a gradient in it: by weights, inputs and states."""
    found = []
    for module in doubles(kind, 3, 5, num_layers=2, bidirectional=True):
        xs = random(4, 2, 3, seed=1).requires_grad_()
        given = pack_padded_sequence(xs, [4, 2]) if packed else xs
        out = tensors(module(given))[0].mean()
        (gradient,) = torch.autograd.grad(out, xs, create_graph=True)
        loss = out + 10 * (gradient.norm() - 1) ** 2
        found.append(torch.autograd.grad(loss, [xs, *module.parameters()]))
    equal(*found)


def test_resets():
    """Checked by finite differences, forwards and back; vmap makes more rows of the flags, too."""
    _, module = doubles("lstm", 2, 3, bidirectional=True)
    resets = torch.tensor([[False, True], [True, False], [False, False]])
    xs = random(3, 2, 2).requires_grad_()

    def function(xs):
        return module(xs, resets=resets)[0]

    assert torch.autograd.gradcheck(function, xs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, xs, check_fwd_over_rev=True)
    many = random(4, 3, 2, 2)
    equal(vmap(function)(many), each(function, many))


@pytest.mark.parametrize("kind", KINDS)
def test_gradgradcheck_of_modules(kind):
    _, module = doubles(kind, 2, 3)
    names, values = zip(*module.named_parameters(), strict=True)
    leaves = [value.detach().clone().requires_grad_() for value in values]

    def function(xs, *values):
        hs, after = functional_call(module, dict(zip(names, values, strict=True)), xs)
        return hs, *(after if isinstance(after, tuple) else (after,))

    xs = random(3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(function, (xs, *leaves), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (xs, *leaves), check_fwd_over_rev=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [name for name in cells.names() if not cells.get(name).projected])
def test_gradgradcheck_of_every_cell(name, masked):
    """But projected ones, which are modules' (above)."""
    p = random_problem(name, 2, 3, 2, 3)
    module = Recurrent(name, 2, 3, dtype=torch.float64)
    mask = torch.tensor([[True] * 3, [True, False, True]]) if masked else None
    names = [name for name, _ in module.named_parameters()]
    given = [torch.from_numpy(a.copy()).requires_grad_() for a in (p.xs, *p.state, *p.params)]

    def function(xs, *rest):
        state, values = rest[: len(p.state)], rest[len(p.state) :]
        values = dict(zip(names, values, strict=True))
        hs, after = functional_call(module, values, (xs, state, mask))
        return hs, *after

    assert torch.autograd.gradcheck(function, given, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, check_fwd_over_rev=True, fast_mode=True)


def test_gradients_of_gradients_by_everything():
    """Be they fed by inputs, states, weights or incoming gradients; without numbers, too."""
    for N in (2, 0):
        theirs, ours = doubles("lstm", 3, 5)
        found = []
        for module in (theirs, ours) if N else (ours,):
            xs, outer = random(4, N, 3).requires_grad_(), random(4, N, 5).requires_grad_()
            states = [random(1, N, 5, seed=seed).requires_grad_() for seed in (1, 2)]
            hs, (h, c) = module(xs, tuple(states))
            leaves = [xs, *states, *module.parameters()]
            first = torch.autograd.grad(
                (hs * outer).sum() + (h * c).sum(), leaves, create_graph=True
            )
            loss = sum(gradient.square().sum() for gradient in first)
            found.append(torch.autograd.grad(loss, [*leaves, outer]))
        if N:
            equal(*found)


def test_one_step_and_float32():
    for kind in KINDS:
        for module in pair(kind, 3, 5)[1:]:
            xs = torch.randn(1, 1, 3, requires_grad=True)
            (gradient,) = torch.autograd.grad(module(xs)[0].sum(), xs, create_graph=True)
            gradient.square().sum().backward()
            assert xs.grad.dtype == torch.float32
            assert torch.isfinite(xs.grad).all()


def test_the_record_of_forward_serves_all(monkeypatch):
    """A penalty runs forward once."""
    _, ours = doubles("gru", 3, 5)
    monkeypatch.setattr(Pass, "run", lambda *_: pytest.fail("forward ran again"))
    xs = random(4, 2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(ours(xs)[0].sum(), xs, create_graph=True)
    gradient.square().sum().backward()


def test_what_was_changed_before_the_second_backward_is_found_out():
    _, ours = doubles("gru", 3, 5)
    xs = random(4, 2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(ours(xs)[0].sum(), xs, create_graph=True)
    with torch.no_grad():
        ours.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient.sum().backward()


def test_tangents_and_gradients_may_be_none():
    _, ours = doubles("lstm", 3, 5)
    inputs = [random(2, 4, 3), *(value.detach() for value in ours.parameters())]
    this = Pass(ours._form(0), StepOptions(np.ones((2, 4), bool)), 0, len(inputs))
    none = [None] * (len(inputs) - 1)
    hs, h, c = apply(Outputs, this, *inputs, inputs[0], *none)
    zeros = [torch.zeros_like(value) for value in inputs[1:]]
    equal([hs, h, c], apply(Outputs, this, *inputs, inputs[0], *zeros))
    got = apply(Gradients, this, *inputs, hs, None, None)
    equal(got, apply(Gradients, this, *inputs, hs, 0 * h, 0 * c))
