"""numba_rnn.torch in place of torch.nn: the same outputs, states and gradients, by torch's own."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import numba_rnn.torch
from helpers import relative_error
from numba_rnn import cell, use_backend
from numba_rnn.functions import sigmoid, tanh
from numba_rnn.torch import restore

pytestmark = [  # of torch's: where proj_size is set, and at its first forward mode
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
]
LIMITS = {torch.float32: 2e-5, torch.float64: 1e-12}
KINDS = {
    "tanh": ("RNN", {"nonlinearity": "tanh"}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
}


def pair(kind, *sizes, seed=0, **options):
    """torch's module and ours with the same weights."""
    name, own = KINDS[kind]
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, name)(*sizes, **{**own, **options})
    ours = getattr(numba_rnn.torch, name)(*sizes, **{**own, **options})
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(output):
    """All tensors of a module's output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, PackedSequence):
        return [output.data]
    return [t for part in output for t in tensors(part)]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_outputs_states_and_gradients(data):
    draw = data.draw
    kind, dtype = draw(st.sampled_from(list(KINDS))), draw(st.sampled_from(list(LIMITS)))
    N, T, D, H = (draw(st.integers(low, high)) for low, high in ((1, 4), (1, 5), (1, 5), (3, 18)))
    layers, both, batch_first, bias, given_state = (
        draw(st.integers(1, 3)), *(draw(st.booleans()) for _ in range(4)),
    )  # fmt: skip
    form = draw(st.sampled_from(["batch", "one", "packed", "unsorted"]))
    theirs, ours = pair(
        kind, D, H, layers, bidirectional=both, batch_first=batch_first, bias=bias, dtype=dtype
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def random(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

    outer = () if form == "one" else (N,)
    P = getattr(theirs, "proj_size", 0) or H
    hx = []
    if given_state:
        hx = [random(layers * (1 + both), *outer, P)]
        if theirs.mode == "LSTM":
            hx.append(random(layers * (1 + both), *outer, H))
    xs = random(*outer, T, D) if batch_first or form == "one" else random(T, N, D)
    if form in ("batch", "one"):
        agree_on(theirs, ours, xs, hx, LIMITS[dtype])
        return
    lengths = rng.integers(1, T + 1, N)
    if form == "packed":
        lengths = np.sort(lengths)[::-1].copy()

    def pack(xs):
        return pack_padded_sequence(
            xs, torch.from_numpy(lengths), batch_first=batch_first, enforce_sorted=form == "packed"
        )

    agree_on(theirs, ours, xs, hx, LIMITS[dtype], pack)


def agree_on(theirs, ours, xs, hx, limit, pack=lambda xs: xs):
    found = []
    for module in (theirs, ours):
        module.zero_grad()
        x, states = xs.detach().requires_grad_(), [s.detach().requires_grad_() for s in hx]
        arguments = [pack(x)]
        if states:
            arguments.append(tuple(states) if module.mode == "LSTM" else states[0])
        result = module(*arguments)
        outputs = tensors(result)
        rng = torch.Generator().manual_seed(3)
        sum(
            (o * torch.randn(o.shape, generator=rng, dtype=o.dtype)).sum() for o in outputs
        ).backward()
        leaves = [x, *states, *module.parameters()]
        found.append((result, outputs, [leaf.grad for leaf in leaves]))
    (their_result, *theirs_), (our_result, *ours_) = found
    if isinstance(their_result[0], PackedSequence):
        for a, b in zip(their_result[0][1:], our_result[0][1:], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    for want, got in zip(theirs_, ours_, strict=True):
        for a, b in zip(want, got, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert relative_error(b.detach().numpy(), a.detach().numpy()) < limit


# ---- as modules go


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_module_that_it_replaces(kind):
    theirs, ours = pair(kind, 3, 5, num_layers=2, bidirectional=True, dropout=0.1)
    assert isinstance(ours, type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    xs = torch.randn(4, 2, 3)
    ours.eval()
    want = ours(xs)[0].detach()
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    again = type(ours)(3, 5, num_layers=2, bidirectional=True, **KINDS[kind][1]).eval()
    again.load_state_dict(torch.load(buffer, weights_only=True))
    for module in (again, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(xs)[0].detach(), want, rtol=0, atol=0)
    double = ours.double()(xs.double())[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float().detach(), want)


def test_weights_that_change_are_seen():
    theirs, ours = pair("gru", 3, 5)
    xs = torch.randn(4, 2, 3)
    with torch.no_grad():
        for change in (
            lambda m: m.weight_ih_l0.mul_(0.5),
            lambda m: m.bias_hh_l0.add_(1.0),
            lambda m: m.weight_hh_l0.data.zero_(),
            lambda m: setattr(m.weight_ih_l0, "data", torch.full((15, 3), 0.25)),
        ):
            for module in (theirs, ours):
                change(module)
            torch.testing.assert_close(ours(xs)[0], theirs(xs)[0])


def test_a_module_may_run_twice_before_backward():
    theirs, ours = pair("lstm", 3, 5)
    xs = torch.randn(4, 2, 3)
    found = []
    for module in (theirs, ours):
        first, state = module(xs)
        second, _ = module(xs.flip(0), state)
        with torch.no_grad():
            module(xs)
        (first * second).sum().backward(retain_graph=True)
        (first * second).sum().backward()
        found.append([p.grad.clone() for p in module.parameters()])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


def test_an_input_that_was_changed_is_found_out():
    _, ours = pair("lstm", 3, 5)
    xs = torch.randn(4, 2, 3)
    out, _ = ours(xs)
    xs.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


MODULES = [
    *((lambda kind=kind: pair(kind, 3, 5)[1]) for kind in KINDS),
    lambda: numba_rnn.torch.Recurrent("mgu", 3, 5),
]
REMEDY = r"numba_rnn\.torch\.restore\(model\) makes its modules torch's own again"


@pytest.mark.parametrize("make", MODULES)
def test_gradients_of_gradients_are_refused(make):
    """Be they fed by inputs, states, weights or incoming gradients."""
    module = make()
    xs = torch.randn(2, 4, 3)
    hs, after = module(xs)
    one = isinstance(after, torch.Tensor)
    states = [torch.randn(s.shape) for s in ([after] if one else after)]
    outer, weights = torch.randn(hs.shape), list(module.parameters())
    leaves = [xs, *states, outer, *weights]
    for leaf in leaves:
        for other in leaves:
            other.requires_grad_(other is leaf)
        by = weights[0] if leaf is outer else leaf
        by.requires_grad_()
        hs, _ = module(xs, states[0] if one else tuple(states))
        (gradient,) = torch.autograd.grad((hs * outer).sum(), by, create_graph=True)
        with pytest.raises(RuntimeError, match=f"first derivatives alone.*{REMEDY}"):
            torch.autograd.grad(gradient.sum(), leaf)
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        torch.autograd.functional.hvp(lambda xs: module(xs)[0].sum(), xs.detach(), xs.detach())


def test_gradients_with_a_graph_are_those_without():
    theirs, ours = pair("lstm", 3, 5)
    xs = torch.randn(4, 2, 3, requires_grad=True)
    want, got = (
        torch.autograd.grad(
            module(xs)[0].square().sum(), [xs, *module.parameters()], create_graph=True
        )
        for module in (theirs, ours)
    )
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a)


def test_weights_that_were_changed_before_backward_are_found_out():
    for module in pair("lstm", 3, 5):
        out, _ = module(torch.randn(4, 2, 3, requires_grad=True))
        with torch.no_grad():
            module.weight_hh_l0.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def tangent(function, *given):
    with forward_ad.dual_level():
        return function(*(forward_ad.make_dual(x, torch.ones_like(x)) for x in given))


TRANSFORMS = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "vmap": lambda f, x: torch.func.vmap(f)(x[None]),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
    "dual": tangent,
    "dual, no_grad": lambda f, x: torch.no_grad()(tangent)(f, x),
    "batched gradients": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivatives_other_than_backward_are_refused(transform, make, frozen):
    module = make().requires_grad_(not frozen)
    with pytest.raises(RuntimeError, match=f"by backward and torch.autograd.grad alone.*{REMEDY}"):
        TRANSFORMS[transform](lambda xs: module(xs)[0], torch.randn(2, 4, 3))


def test_derivatives_by_weights_other_than_backward_are_refused():
    _, ours = pair("gru", 3, 5)
    xs, values = torch.randn(2, 4, 3), {k: v.detach() for k, v in ours.named_parameters()}

    def of_weights(values):
        return torch.func.functional_call(ours, values, (xs,))[0].sum()

    assert of_weights(values) == ours(xs)[0].sum()
    for derive in (
        lambda: torch.func.grad(of_weights)(values),
        lambda: torch.func.jvp(of_weights, (values,), (values,)),
        lambda: tangent(lambda w: of_weights(values | {"weight_hh_l0": w}), values["weight_hh_l0"]),
    ):
        with pytest.raises(RuntimeError, match=f"by backward.*{REMEDY}"):
            derive()


def test_constants_may_be_computed_meanwhile():
    _, ours = pair("gru", 3, 5)
    xs, scales = torch.randn(2, 4, 3), torch.tensor([2.0, 3.0])
    want = ours.requires_grad_(False)(xs)[0].sum()
    got = torch.func.vmap(lambda scale: ours(xs)[0].sum() * scale)(scales)
    torch.testing.assert_close(got, want * scales)
    with forward_ad.dual_level():
        torch.testing.assert_close(ours(xs)[0].sum(), want)


def test_threads_have_layers_of_their_own():
    _, ours = pair("lstm", 3, 17)
    inputs = [torch.randn(30, 2, 3) for _ in range(8)]

    def gradient(xs):
        xs = xs.clone().requires_grad_()
        return torch.autograd.grad(ours(xs)[0].square().sum(), xs)[0]

    want = [gradient(xs) for xs in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for a, b in zip(want, pool.map(gradient, inputs), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: m(torch.ones(4, 2, 7)), RuntimeError, "Expected 3, got 7"),
        (lambda m: m(torch.ones(4)), ValueError, "input of 2 or 3 axes, got 1"),
        (lambda m: m(torch.ones(4, 2, 3), torch.ones(1, 2, 5)), ValueError, r"expected hx \(h_0"),
        (lambda m: m(torch.ones(4, 2, 3), (torch.ones(2, 5),) * 2), ValueError, "3 axes"),
        (lambda m: m(torch.ones(4, 2, 3), (torch.ones(1, 3, 5),) * 2), RuntimeError, "size"),
        (lambda m: m(torch.ones(4, 2, 3).double()), ValueError, "float"),
        (lambda m: m(torch.ones(0, 2, 3)), ValueError, "xs: .* no size 0"),
        (lambda m: m(torch.ones(4, 2, 3, device="meta")), (ValueError, RuntimeError), "meta"),
    ],
)
def test_bad_input(call, error, says):
    _, ours = pair("lstm", 3, 5)
    with pytest.raises(error, match=says):
        call(ours)


def test_torch_compile_leaves_it_alone():
    theirs, ours = pair("lstm", 3, 5)
    compiled = torch.compile(lambda xs: torch.relu(ours(xs * 2)[0]) + 1, backend="eager")
    for N in (2, 3, 4):  # of several shapes, for which it would compile anew
        xs = torch.randn(4, N, 3)
        torch.testing.assert_close(compiled(xs), torch.relu(theirs(xs * 2)[0]) + 1)
    compiled(xs).sum().backward()
    torch.relu(theirs(xs * 2)[0]).sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


@pytest.mark.filterwarnings("ignore")
def test_what_it_would_record_as_constants_is_not_traced():
    _, ours = pair("lstm", 3, 5)
    with torch.no_grad(), pytest.raises(RuntimeError, match="would take what numba_rnn computes"):
        torch.jit.trace(ours.eval(), (torch.randn(4, 2, 3),))
    model = restore(torch.nn.Sequential(ours))
    traced = torch.jit.trace(model.eval(), (torch.randn(4, 2, 3),))
    xs = torch.randn(4, 2, 3)
    torch.testing.assert_close(traced(xs)[0], model(xs)[0])


@pytest.mark.parametrize("grad", [True, False])
def test_half_precision_is_refused(grad):
    model, xs = (
        torch.nn.Sequential(torch.nn.Linear(3, 3), pair("lstm", 3, 5)[1]),
        torch.ones(4, 2, 3),
    )
    says = r"got torch\.bfloat16; torch\.autocast has to be off"
    with (
        torch.set_grad_enabled(grad),
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(TypeError, match=says),
    ):
        model(xs)
    with pytest.raises(TypeError, match=r"expected float32 or float64, got torch\.bfloat16"):
        model.bfloat16()(xs.bfloat16())


# ---- a cell of one's own


@cell(states="h c", weights="p")
def odd(f, g, p, h, c):
    f = sigmoid(f + p * c)
    c = f * c + (1 - f) * tanh(g)
    return tanh(c), c


@pytest.mark.parametrize("name", ["mgu", "slstm", "indrnn", odd])
@pytest.mark.parametrize("batch_first", [True, False])
def test_any_cell_is_a_module(name, batch_first):
    torch.manual_seed(0)
    module = numba_rnn.torch.Recurrent(name, 3, 5, batch_first=batch_first, dtype=torch.float64)
    xs = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    xs = xs if batch_first else xs.transpose(0, 1)
    state = tuple(
        torch.rand(2, 5, dtype=torch.float64, requires_grad=True) for _ in module.cell.states
    )
    mask = torch.tensor([[True, True, False, True], [True] * 4])

    def function(xs, *state):
        hs, after = module(xs, state, mask)
        return hs, *after

    assert torch.autograd.gradcheck(function, (xs, *state))
    names = [name for name, _ in module.named_parameters()]
    assert names == list(module.cell.shapes(3, 5))
    values = tuple(p.detach().requires_grad_() for p in module.parameters())

    def of_weights(*values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), xs)[0]

    assert torch.autograd.gradcheck(of_weights, values)


# ---- an existing model


class Model(torch.nn.Module):
    """A language model as one writes it."""

    def __init__(self, kind="LSTM"):
        super().__init__()
        self.embed = torch.nn.Embedding(17, 12)
        self.rnn = getattr(torch.nn, kind)(12, 18, num_layers=2, dropout=0.3)
        self.decode = torch.nn.Linear(18, 17)

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(self.embed(ids), lengths, enforce_sorted=False)
        out, _ = self.rnn(packed)
        return self.decode(out.data)


def train(model, steps=50):
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    rng, losses = np.random.default_rng(2), []
    for _ in range(steps):
        lengths = torch.from_numpy(rng.integers(1, 10, 6))
        ids = torch.from_numpy(rng.integers(0, 17, (int(lengths.max()), 6)).cumsum(axis=0) % 17)
        labels = pack_padded_sequence((ids + 3) % 17, lengths, enforce_sorted=False).data
        loss = torch.nn.functional.cross_entropy(model(ids, lengths), labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return np.array(losses)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_training_script_has_the_same_losses(kind):
    torch.manual_seed(0)
    model = Model(kind)
    ours, told = copy.deepcopy(model), []
    optimiser_before = torch.optim.SGD(ours.parameters())
    assert numba_rnn.torch.accelerate(ours, told.append) is ours
    assert told == [
        f"rnn: torch.nn.{kind}(12, 18, num_layers=2, dropout=0.3) -> numba_rnn.torch.{kind}"
    ]
    assert {id(p) for p in optimiser_before.param_groups[0]["params"]} == {
        id(p) for p in ours.parameters()
    }
    want = train(model)
    assert want[-5:].mean() < 0.7 * want[:5].mean()
    np.testing.assert_allclose(train(ours), want, rtol=1e-4)


def test_dropout_between_layers_is_torchs_for_dense_input_too():
    theirs, ours = pair("lstm", 3, 5, num_layers=3, dropout=0.5, batch_first=True)
    xs, found = torch.randn(2, 6, 3), []
    for module in (theirs, ours):
        torch.manual_seed(4)
        found.append(module(xs)[0])
    torch.testing.assert_close(found[1], found[0])


def test_accelerate_says_what_it_leaves_and_is_undone():
    class Own(torch.nn.GRU):
        def forward(self, xs):
            return super().forward(xs)[0]

    model = torch.nn.ModuleDict(
        {
            "a": torch.nn.LSTM(3, 5).half(),
            "b": Own(3, 5),
            "c": torch.nn.RNN(3, 5, nonlinearity="relu"),
            "d": torch.nn.Linear(3, 5),
        }
    )
    told = []
    for _ in range(2):
        numba_rnn.torch.accelerate(model, told.append)
    first, second = told[:3], told[3:]
    assert first[0] == "a: torch.nn.LSTM(3, 5) is left: its numbers are torch.float16, not float32"
    assert first[1] == "b: Own(3, 5) is left: a class of its own may compute something of its own"
    assert first[2].startswith("c: torch.nn.RNN(3, 5")
    assert first[2].endswith("-> numba_rnn.torch.RNN")
    assert second == first[:2]
    restore(model)
    assert type(model["c"]) is torch.nn.RNN
    assert type(model["b"]) is Own
    told = []
    numba_rnn.torch.accelerate(torch.nn.GRU(3, 5), told.append)
    assert told == ["the model: torch.nn.GRU(3, 5) -> numba_rnn.torch.GRU"]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_it_runs_on_the_engine_in_force(backend):
    theirs, ours = pair("gru", 3, 5)
    with use_backend(backend, strict=True):
        agree_on(theirs, ours, pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]).data[None],
                 [], 1e-5)  # fmt: skip
