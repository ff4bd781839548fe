"""numba_rnn.torch in place of torch.nn: the same outputs, states and gradients, by torch's own."""

import copy
import gc
import io
import pickle
import re
import weakref
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
from numba_rnn import cell, cells, use_backend
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
            if a.numel():
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


def test_constants_may_be_computed_meanwhile():
    _, ours = pair("gru", 3, 5)
    xs, scales = torch.randn(2, 4, 3), torch.tensor([2.0, 3.0])
    want = ours.requires_grad_(False)(xs)[0].sum()
    got = torch.func.vmap(lambda scale: ours(xs)[0].sum() * scale)(scales)
    torch.testing.assert_close(got, want * scales)
    with forward_ad.dual_level():
        torch.testing.assert_close(ours(xs)[0].sum(), want)


def test_threads_may_share_a_module():
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


@pytest.mark.parametrize("make", MODULES)
def test_backward_may_run_again_with_a_retained_graph(make):
    module, xs = make(), torch.randn(4, 2, 3, requires_grad=True)
    hs, after = module(xs)
    loss = hs.square().sum() + (after if isinstance(after, torch.Tensor) else after[0]).sum()
    leaves = [xs, *module.parameters()]
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    module(torch.randn(4, 2, 3))  # another pass in between
    for other in (second, torch.autograd.grad(loss, leaves)):
        for want, got in zip(first, other, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="retain_graph"):
        torch.autograd.grad(loss, leaves)


def records(out):
    """Those of the nodes behind a tensor."""
    nodes, seen, found = [out.grad_fn], set(), []
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [node.record] if hasattr(node, "record") else []
            nodes += [before for before, _ in node.next_functions]
    return found


@pytest.mark.parametrize("backwards", [False, True])
def test_memory_goes_with_the_graph(backwards):
    """At once: nothing waits for the collector of garbage."""
    _, ours = pair("lstm", 3, 5, num_layers=2, bidirectional=True)
    gc.collect()
    gc.disable()
    try:
        out, after = ours(torch.randn(4, 2, 3))
        seen = [weakref.ref(record) for record in records(out)]
        assert len(seen) == 4
        if backwards:
            out.sum().backward()
        assert all(ref() is not None for ref in seen)  # it may be retained
        del out, after
        assert not any(ref() for ref in seen)
    finally:
        gc.enable()


def test_weights_are_converted_once_where_no_gradient_is_asked_for():
    _, ours = pair("lstm", 3, 5)
    xs = torch.randn(4, 2, 3)
    with torch.no_grad():
        ours(xs)
        params = ours._form(0)._last[2]
        ours(xs)
        assert ours._form(0)._last[2] is params
        assert ours.double()(xs.double())[0].dtype == torch.float64  # of equal numbers
        assert pickle.loads(pickle.dumps(ours))(xs.double())[0].dtype == torch.float64


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_weights_of_two_dtypes_are_refused(kind, name):
    _, ours = pair(kind, 3, 5)
    with torch.no_grad():
        ours(torch.randn(4, 2, 3))
    getattr(ours, name).data = getattr(ours, name).data.double()
    xs = torch.randn(4, 2, 3, dtype=ours.weight_ih_l0.dtype)
    for grad in (True, False):
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(TypeError, match=r"^weights: .* one dtype"),
        ):
            ours(xs)


def test_a_cells_parameters_are_not_copied():
    module = numba_rnn.torch.Recurrent("gru", 3, 5)
    arrays = module._form().params(list(module.parameters()))
    for array, param in zip(arrays, module.parameters(), strict=True):
        assert array.ctypes.data == param.data_ptr()


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
        (lambda m: m(torch.ones(4, 2, 3, device="meta")), TypeError, "meta"),
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


EXPORTERS = {
    "jit.trace": lambda model, xs: torch.jit.trace(model, (xs,)),
    "jit.script": lambda model, xs: torch.jit.script(model),
    "export": lambda model, xs: torch.export.export(model, (xs,)).module(),
}


class InAModel(torch.nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent, self.affine = recurrent, torch.nn.Linear(5, 2)

    def forward(self, xs):
        return self.affine(self.recurrent(xs)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lstm", "gru", "relu"])
@pytest.mark.parametrize("export", EXPORTERS.values(), ids=EXPORTERS)
def test_exporters_see_the_operators_of_torch(export, kind):
    theirs, ours = pair(kind, 3, 5)
    model, xs = InAModel(ours).eval(), torch.randn(4, 2, 3)
    with torch.no_grad():
        exported = export(model, xs)
        torch.testing.assert_close(exported(xs), model.affine(theirs(xs)[0]))
    # jit.script puts what it takes into the model itself
    left = type(theirs) if export is EXPORTERS["jit.script"] else type(ours)
    assert type(model.recurrent) is left


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lstm", "gru", "relu"])
def test_onnx_is_exported_as_torch_exports_it(kind):
    onnx = pytest.importorskip("onnx")
    _, ours = pair(kind, 3, 5)
    file = io.BytesIO()
    torch.onnx.export(ours.eval(), (torch.randn(4, 2, 3),), file, dynamo=False)
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    assert kind.upper().replace("RELU", "RNN") in [node.op_type for node in nodes]


@pytest.mark.parametrize("model", [3, None, {}, [torch.nn.GRU(3, 5)], torch.nn.GRU], ids=repr)
@pytest.mark.parametrize("change", [numba_rnn.torch.accelerate, restore])
def test_only_modules_are_swapped(change, model):
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got \w+"):
        change(model)


EXPORTED = EXPORTERS["jit.script"], (lambda model, xs: torch.export.export(model, (xs,)))
RECORDERS = {
    "jit.script": EXPORTED[0],
    "export": EXPORTED[1],
    "export, strict": lambda model, xs: torch.export.export(model, (xs,), strict=True),
    "fx": lambda model, xs: torch.fx.symbolic_trace(model),
    "make_fx": lambda model, xs: torch.fx.experimental.proxy_tensor.make_fx(model)(xs),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS)
def test_whatever_records_operations_is_refused_with_the_remedy(record):
    _, ours = pair("lstm", 3, 5)
    xs = torch.randn(4, 2, 3)
    models = [InAModel(numba_rnn.torch.Recurrent("mgu", 3, 5)), InAModel(ours)]
    for model in models[: 1 if record in EXPORTED else 2]:
        with torch.no_grad(), pytest.raises(Exception, match=re.escape("torch.restore(model)")):
            record(model.eval(), xs)
    if record is not RECORDERS["export, strict"]:  # which takes no LSTM of torch's, either
        with torch.no_grad():
            assert record(restore(InAModel(ours).eval()), xs) is not None


def test_half_precision_is_refused():
    module = pair("lstm", 3, 5)[1].bfloat16()
    says = r"expected float32 or float64, got torch\.bfloat16; module\.float\(\)"
    with pytest.raises(TypeError, match=says):
        module(torch.ones(4, 2, 3).bfloat16())


@pytest.mark.parametrize("kind", ["lstm", "gru", "relu"])
@pytest.mark.parametrize("arrives", [torch.float32, torch.bfloat16])
def test_in_autocast_it_computes_in_float32_and_returns_what_torch_does(kind, arrives):
    theirs, ours = pair(kind, 3, 5)
    xs, h = torch.randn(4, 2, 3).to(arrives), torch.randn(1, 2, 5).to(arrives)
    hx = (h, h) if kind == "lstm" else h
    want, _ = theirs(xs.float(), (h.float(), h.float()) if kind == "lstm" else h.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = theirs(xs, hx), ours(xs, hx)
        flat = [[out, *(s if kind == "lstm" else (s,))] for out, s in (a, b)]
        assert [t.dtype for t in flat[0]] == [t.dtype for t in flat[1]]
        assert torch.equal(b[0], ours.float()(xs, hx)[0])
    torch.testing.assert_close(b[0].float(), want.to(b[0].dtype).float())
    b[0].float().sum().backward()
    assert ours.weight_hh_l0.grad.dtype is torch.float32


def test_tensors_without_numbers_are_refused():
    module = numba_rnn.torch.accelerate(torch.nn.LSTM(3, 5, device="meta"), log=lambda line: None)
    for device in ("meta", "cpu"):
        with pytest.raises(TypeError, match=r"on the meta device, which holds none; .*restore"):
            module(torch.ones(4, 2, 3, device=device))
    assert restore(module, log=lambda line: None)(torch.ones(4, 2, 3, device="meta"))[0].is_meta


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


@pytest.mark.parametrize("name", cells.names())
def test_gradcheck_of_every_cell(name):
    torch.manual_seed(0)
    module = numba_rnn.torch.Recurrent(name, 2, 5, dtype=torch.float64)
    xs = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    state = [torch.rand(2, 5, dtype=torch.float64) + 0.5 for _ in module.cell.states]
    values = [value.detach().requires_grad_() for value in (*state, *module.parameters())]
    names, mask = list(dict(module.named_parameters())), torch.tensor([[True, False, True]] * 2)

    def function(xs, *values):
        state, weights = values[: len(state_names)], values[len(state_names) :]
        given = dict(zip(names, weights, strict=True))
        hs, after = torch.func.functional_call(module, given, (xs, state, mask))
        return hs, *after

    state_names = module.cell.states
    with use_backend("numpy"):
        assert torch.autograd.gradcheck(function, (xs, *values))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"xs": torch.ones(2, 4, 7)}, ValueError, r"^xs: expected shape \(N, T, 3\)"),
        ({"state": [torch.ones(2, 5)] * 2}, TypeError, "^state: expected h, got 2 arrays"),
        ({"state": [torch.ones(3, 5)]}, ValueError, r"^h: expected shape \(2, 5\), got \(3, 5\)"),
        ({"state": [torch.ones(2, 5).double()]}, TypeError, "^h: expected float32"),
        ({"mask": torch.ones(2, 3) > 0}, ValueError, r"^mask: expected shape \(2, 4\)"),
        ({"mask": torch.ones(2, 4)}, TypeError, "^mask: expected booleans"),
    ],
)
def test_bad_input_of_a_cells_module(change, error, says):
    module = numba_rnn.torch.Recurrent("mgu", 3, 5)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=says):
            module(**{"xs": torch.ones(2, 4, 3), **change})


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


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("form", ["batch", "packed", "one"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "projected", "gru"])
def test_a_dropout_behind_draws_as_behind_torchs(kind, batch_first, form, grad):
    """It goes through memory, so that outputs and states have to lie there as torch's do."""
    for both, layers, N, T in (False, 1, 1, 4), (True, 1, 3, 4), (False, 2, 3, 1), (True, 2, 2, 3):
        theirs, ours = pair(
            kind, 3, 5, num_layers=layers, bidirectional=both, batch_first=batch_first
        )
        xs = torch.randn(N, T, 3) if batch_first else torch.randn(T, N, 3)
        if form == "one":
            xs = xs[0] if batch_first else xs[:, 0]
        if form == "packed":
            lengths = torch.arange(N).remainder(T).add(1)
            lengths[-1] = T
            xs = pack_padded_sequence(xs, lengths, batch_first, enforce_sorted=False)
        with torch.set_grad_enabled(grad):
            for want, got in zip(*(map(tensors, [theirs(xs), ours(xs)])), strict=True):
                torch.manual_seed(0)
                want = torch.nn.functional.dropout(want)
                torch.manual_seed(0)
                got = torch.nn.functional.dropout(got)
                torch.testing.assert_close(got, want, msg=f"{both} {layers} {N} {T}")


class Named(torch.nn.LSTM):
    """A subclass that computes as torch does."""

    def __init__(self, *sizes, name="its name"):
        super().__init__(*sizes)
        self.name = name

    def extra_repr(self):
        return f"{self.name}, {super().extra_repr()}"


class Own(torch.nn.GRU):
    """A subclass with a forward of its own."""

    def forward(self, xs):
        return super().forward(xs)[0]


class Checked(torch.nn.GRU):
    """A subclass with a method of its own that torch's forward calls, and ours does not."""

    def permute_hidden(self, hx, permutation):
        return 2 * super().permute_hidden(hx, permutation)


def test_accelerate_says_what_it_leaves_and_is_undone():
    patched = torch.nn.GRU(3, 5)
    patched.forward = lambda xs: xs
    parts = {
        "a": torch.nn.LSTM(3, 5).half(),
        "b": Own(3, 5),
        "c": Checked(3, 5),
        "d": patched,
        "e": torch.nn.LSTMCell(3, 5),
        "f": torch.nn.RNN(3, 5, nonlinearity="relu"),
        "g": Named(3, 5),
        "h": numba_rnn.torch.Recurrent("mgu", 3, 5),
        "i": torch.nn.Linear(3, 5),
    }
    kinds = {name: type(part) for name, part in parts.items()}
    model, told = torch.nn.ModuleDict(parts), []
    for _ in range(2):
        numba_rnn.torch.accelerate(model, told.append)
    left = [
        "a: torch.nn.LSTM(3, 5) is left as it is: its dtype is torch.float16, not float32",
        "b: Own(3, 5) is left as it is: it has its own forward",
        "c: Checked(3, 5) is left as it is: it has its own forward",
        "d: torch.nn.GRU(3, 5) is left as it is: it has its own forward",
    ]
    swapped = [
        "e: torch.nn.LSTMCell(3, 5) -> numba_rnn.torch.LSTMCell",
        "f: torch.nn.RNN(3, 5) -> numba_rnn.torch.RNN",
        "g: Named(its name, 3, 5) -> numba_rnn.torch.LSTM",
    ]
    assert told == left + swapped + left
    told = []
    assert restore(model, told.append) is model
    assert told == ["h: Recurrent(mgu, 3, 5) is left as it is: no torch class computes the same"]
    assert {name: type(part) for name, part in model.items()} == kinds
    numba_rnn.torch.accelerate(torch.nn.GRU(3, 5), told.append)
    assert told[1] == "the model: torch.nn.GRU(3, 5) -> numba_rnn.torch.GRU"


def test_a_subclass_that_keeps_torchs_forward_runs_here():
    torch.manual_seed(0)
    theirs = Named(3, 5)
    ours = numba_rnn.torch.accelerate(copy.deepcopy(theirs), lambda line: None)
    kind = type(ours)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert isinstance(module, Named)
        assert isinstance(module, numba_rnn.torch.LSTM)
        assert type(module) is kind
        assert module.name == "its name"
        with use_backend("numpy"):
            agree_on(theirs, module, torch.randn(4, 2, 3), [], 1e-5)
        assert type(restore(module)) is Named


class Half(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


CHANGES = {
    "parametrization": lambda m: parametrize.register_parametrization(m, "weight_hh_l0", Half()),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "two": lambda m: CHANGES["parametrization"](parametrizations.weight_norm(m, "weight_ih_l0")),
    "prune": lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
}


@pytest.mark.parametrize("make", [torch.nn.RNN, torch.nn.GRU, Named])
@pytest.mark.parametrize("change", CHANGES)
def test_parametrized_modules_are_swapped_and_restored(change, make):
    def made():
        torch.manual_seed(0)
        return make(4, 5)

    def changed(module):
        torch.manual_seed(1)
        CHANGES[change](module)
        return module

    def losses(module, steps=3):
        optimiser, found = torch.optim.SGD(module.parameters(), 0.5), []
        for _ in range(steps):
            optimiser.zero_grad()
            loss = module(xs)[0].square().mean()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        return found

    def quietly(module):
        return numba_rnn.torch.accelerate(module, lambda line: None)

    xs, plain = torch.randn(6, 3, 4), type(made())
    want = losses(changed(made()))
    for swap_last in (True, False):
        module = quietly(changed(made())) if swap_last else changed(quietly(made()))
        assert "numba_rnn" in str(type(module).__mro__)
        if change != "prune":  # whose modules torch does not copy
            np.testing.assert_allclose(losses(copy.deepcopy(module)), want, rtol=1e-4)
        np.testing.assert_allclose(losses(module), want, rtol=1e-4)
        told = []
        restore(module, told.append)
        assert not told
        assert "numba_rnn" not in str(type(module).__mro__)
        assert not any("numba_rnn" in str(type(v)) for v in vars(module).values())
        module = quietly(module)
        if change == "prune":
            prune.remove(module, "weight_hh_l0")
        else:
            parametrize.remove_parametrizations(module, "weight_hh_l0")
        if change == "two":
            parametrize.remove_parametrizations(module, "weight_ih_l0")
        assert isinstance(module, plain)
        module = restore(module, told.append)
        assert type(module) is plain
        assert not told
        with torch.no_grad():
            out = module(xs)[0]
            torch.testing.assert_close(quietly(module)(xs)[0], out)


# ---- no rows


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("form", ["time first", "batch first", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_no_rows(kind, form, state):
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.5}
    theirs, ours = pair(kind, 3, 5, batch_first=form == "batch first", **options)
    P = getattr(theirs, "proj_size", 0) or 5
    hx = [torch.zeros(4, 0, P), torch.zeros(4, 0, 5)][: 1 + (theirs.mode == "LSTM")]
    xs = torch.zeros((0, 6, 3) if form == "batch first" else (6, 0, 3))

    def pack(xs):
        return PackedSequence(xs.reshape(0, 3), torch.zeros(6, dtype=torch.int64))

    agree_on(
        theirs, ours, xs, hx if state else [], 1e-6, pack if form == "packed" else lambda xs: xs
    )
    assert all((p.grad == 0).all() for p in ours.parameters())
    with torch.no_grad():
        assert [t.shape for t in tensors(ours(xs))] == [t.shape for t in tensors(theirs(xs))]


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_cells_module_takes_no_rows(batch_first):
    module = numba_rnn.torch.Recurrent("mgu", 3, 5, batch_first=batch_first)
    hs, (h,) = module(torch.zeros((0, 6, 3) if batch_first else (6, 0, 3)))
    assert hs.shape == ((0, 6, 5) if batch_first else (6, 0, 5))
    assert h.shape == (0, 5)
    hs.sum().backward()
    assert all((p.grad == 0).all() for p in module.parameters())


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_it_runs_on_the_engine_in_force(backend):
    theirs, ours = pair("gru", 3, 5)
    with use_backend(backend, strict=True):
        agree_on(theirs, ours, pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]).data[None],
                 [], 1e-5)  # fmt: skip


def test_signs_that_torch_has_yet_to_apply():
    theirs = torch.nn.GRU(3, 4)
    ours = numba_rnn.torch.accelerate(copy.deepcopy(theirs), log=lambda line: None)
    xs, grads = torch.view_as_complex(torch.randn(5, 2, 3, 2)).conj().imag, []
    assert xs.is_neg()
    for module in theirs, ours:
        leaf = xs.clone().requires_grad_()
        out, _ = module(xs + 0 * leaf)
        assert torch.allclose(out, module(xs)[0], atol=1e-6)
        numbers = torch.complex(out, out).conj()
        (numbers.imag * numbers.real**2).sum().backward()
        grads.append(module.weight_hh_l0.grad)
    assert torch.allclose(*grads, atol=1e-5)
