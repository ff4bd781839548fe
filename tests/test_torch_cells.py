"""Cells of PyTorch, and layers at a single step of time, beside torch's own."""

import copy
import io
import threading

import pytest

torch = pytest.importorskip("torch")

import numba_rnn.torch  # noqa: E402
from numba_rnn.backend import use_backend  # noqa: E402
from numba_rnn.torch import steps  # noqa: E402

KINDS = ["RNN", "LSTM", "GRU"]


def pair(kind, D=3, H=5, *args, dtype=torch.float64, **options):
    """torch's module and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(D, H, *args, dtype=dtype, **options)
    return theirs, numba_rnn.torch.accelerate(copy.deepcopy(theirs), log=lambda line: None)


def unrolled(module, xs, state=None):
    """All that a loop over the steps gives, flat."""
    outs = []
    for x in xs:
        state = module(x, state)
        outs.append(torch.cat(state if isinstance(state, tuple) else (state,), -1))
    return torch.stack(outs)


def expect_same(theirs, ours, call, tolerance=1e-12):
    """Outputs and the gradients of inputs and weights of a call of both modules."""
    found = []
    for module in (theirs, ours):
        module.zero_grad()
        torch.manual_seed(1)
        out, inputs = call(module)
        (out * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum().backward()
        grads = [tensor.grad for tensor in (*inputs, *module.parameters())]
        found.append([out.detach(), *grads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["RNN", "relu", "LSTM", "GRU"])
@pytest.mark.parametrize("N", [1, 3, 70])
@pytest.mark.parametrize("H", [1, 16, 21])
def test_a_loop_over_a_cell_is_that_of_torch(kind, N, H):
    for bias in (True, False):
        options = {"nonlinearity": "relu"} if kind == "relu" else {}
        kind = kind.replace("relu", "RNN")
        theirs, ours = pair(f"{kind}Cell", 3, H, bias=bias, **options)

        def call(module):
            xs = torch.linspace(-1, 2, 5 * N * 3).double().view(5, N, 3).requires_grad_()
            return unrolled(module, xs), [xs]

        expect_same(theirs, ours, call)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_takes_what_torchs_takes(kind):
    theirs, ours = pair(f"{kind}Cell")
    count = 2 if kind == "LSTM" else 1
    wide = torch.randn(4, 10, 2).double()

    def state(h):
        return (h, 0.5 * h) if count == 2 else h

    inputs = {
        "without a batch": (torch.randn(3).double(), state(torch.randn(5).double())),
        "without batch and state": (torch.randn(3).double(), None),
        "no rows": (torch.randn(0, 3).double(), state(torch.randn(0, 5).double())),
        "strided": (wide[:, :3, 1], state(wide[:, ::2, 0])),
        "expanded": (
            torch.randn(3).double().expand(4, 3), state(torch.randn(4, 1).double().expand(4, 5)),
        ),
        "of a conjugate": (
            torch.randn(4, 3, dtype=torch.complex128).conj().imag,
            state(torch.randn(4, 5, dtype=torch.complex128).conj().imag),
        ),
    }  # fmt: skip
    for name, (x, hx) in inputs.items():
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                a, b = theirs(x, hx), ours(x, hx)
            for p, q in zip(*((a, b) if count == 2 else ((a,), (b,))), strict=True):
                torch.testing.assert_close(p, q, msg=name)
                assert p.stride() == q.stride(), name
    none, ours_of_none = pair(f"{kind}Cell", 0)
    torch.testing.assert_close(*(
        torch.cat(m(torch.zeros(2, 0).double())) if count == 2 else m(torch.zeros(2, 0).double())
        for m in (none, ours_of_none)
    ))  # fmt: skip
    bad = [
        (torch.zeros(2, 4).double(), None),
        (torch.zeros(2, 2, 3).double(), None),
        (torch.zeros(2, 3).double(), state(torch.zeros(2, 4).double())),
        (torch.zeros(2, 3).double(), state(torch.zeros(3, 5).double())),
        (torch.zeros(2, 3), None),
    ]
    for x, hx in bad:
        for module in (theirs, ours):
            with pytest.raises((RuntimeError, ValueError)) as error:
                module(x, hx)
        assert "numba_rnn" not in str(error.value)  # torch's own words


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # within torch.func.jvp
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_any_order_and_all_of_torch_func(kind):
    _, ours = pair(f"{kind}Cell", 2, 3)
    x = torch.randn(2, 2, 2).double().requires_grad_()
    params = dict(ours.named_parameters())

    def call(x, *weights):
        named = dict(zip(params, weights, strict=True))
        return torch.func.functional_call(
            _Unrolled(ours), {f"cell.{k}": w for k, w in named.items()}, (x,)
        )

    given = (x, *params.values())
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)
    each = torch.func.vmap(torch.func.grad(lambda w, x: call(x, *w).sum()), (None, 1))
    per_row = each(tuple(params.values()), x.detach())
    whole = torch.autograd.grad(call(x, *params.values()).sum(), list(params.values()))
    for rows, total in zip(per_row, whole, strict=True):
        torch.testing.assert_close(rows.sum(0), total)
    _, tangent = torch.func.jvp(
        lambda x: call(x, *params.values()), (x.detach(),), (torch.ones_like(x),)
    )
    e = 1e-6
    near = (call(x + e, *params.values()) - call(x - e, *params.values())) / (2 * e)
    torch.testing.assert_close(tangent, near.detach(), rtol=1e-6, atol=1e-8)


class _Unrolled(torch.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, xs):
        # a state that belongs to xs: torch's cells add in place, which vmap lets no others do
        h = 0 * xs[0][..., :1].expand(*xs.shape[1:-1], self.cell.hidden_size)
        return unrolled(self.cell, xs, (h, h) if isinstance(self.cell, torch.nn.LSTMCell) else h)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_may_change_in_any_way_between_steps(kind):
    """Through .data too, which torch does not count; what is kept is refused as torch does."""
    theirs, ours = pair(f"{kind}Cell")
    x = torch.randn(2, 3).double()
    for change in (
        lambda m: m.weight_hh.data.mul_(2), lambda m: m.bias_ih.data.add_(1),
        lambda m: setattr(m.weight_ih, "data", m.weight_ih.data[:, [1, 0, 2]]),
        lambda m: setattr(m, "weight_ih", torch.nn.Parameter(m.weight_ih.detach() - 1)),
    ):  # fmt: skip
        found = []
        for module in (theirs, ours):
            change(module)
            found.append(unrolled(module, x[None]))
        torch.testing.assert_close(*found)
    loss = unrolled(ours, x[None]).sum()
    with torch.no_grad():
        ours.weight_hh.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_backward_passes_over_parts_of_a_loop(kind):
    """Twice through one graph, of parts, in threads, and to inputs alone."""
    _, ours = pair(f"{kind}Cell")
    xs = torch.randn(6, 2, 3).double().requires_grad_()
    out = unrolled(ours, xs)
    weights = list(ours.parameters())
    parts = [torch.autograd.grad(o.sum(), weights, retain_graph=True) for o in out]
    whole = torch.autograd.grad(out.sum(), weights, retain_graph=True)
    for k, total in enumerate(whole):
        torch.testing.assert_close(sum(part[k] for part in parts), total)
    torch.autograd.grad(out.sum(), xs, retain_graph=True)
    again = torch.autograd.grad(out.sum(), weights, retain_graph=True)
    torch.testing.assert_close(again, whole)
    found = {}

    def run(k):
        found[k] = torch.autograd.grad(out[k].sum(), weights, retain_graph=True)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, part in enumerate(parts):
        torch.testing.assert_close(found[k], part)
    (source,) = [ours.__dict__["_source"]()]
    assert not source.source.passes  # nothing is left of any pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_copied_saved_and_restored(kind):
    theirs, ours = pair(f"{kind}Cell")
    x = torch.randn(2, 3).double()
    want = unrolled(ours, x[None])
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert type(other) is type(ours)
        assert torch.equal(unrolled(other, x[None]), want)
    assert type(numba_rnn.torch.restore(ours)) is type(theirs)
    assert vars(ours).keys() == vars(theirs).keys()


def test_another_engine_leaves_steps_to_torch():
    theirs, ours = pair("LSTMCell")
    x = torch.randn(2, 3).double()
    with use_backend("numpy"):
        assert steps.kind_of("LSTM").rows(x.dtype) is None
        assert torch.equal(unrolled(ours, x[None]), unrolled(theirs, x[None]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (1, True), (3, False), (2, True)])
def test_a_layer_at_one_step_is_that_of_torch(kind, batch_first, layers, both):
    for bias, dropout in ((True, 0.3), (False, 0.0)):
        theirs, ours = pair(
            kind, 3, 5, layers, bias=bias, bidirectional=both, batch_first=batch_first,
            dropout=dropout if layers > 1 else 0.0,
        )  # fmt: skip
        assert _is_a_step(ours, batch_first)
        strides = []

        def call(module, strides=strides):
            xs = torch.linspace(-1, 1, 12).double()
            xs = xs.view((4, 1, 3) if batch_first else (1, 4, 3)).requires_grad_()
            h = torch.linspace(-1, 1, layers * (1 + both) * 20).double()
            h = h.view(-1, 4, 5).requires_grad_()
            hs, state = module(xs, (h, h * h) if kind == "LSTM" else h)
            states = state if kind == "LSTM" else (state,)
            strides.append([tensor.stride() for tensor in (hs, *states)])
            seen = [hs.reshape(4, -1), *(s.transpose(0, 1).reshape(4, -1) for s in states)]
            return torch.cat(seen, 1), [xs, h]

        expect_same(theirs, ours, call)
        assert strides[0] == strides[1]
        with torch.no_grad():
            hs, state = ours(torch.zeros((4, 1, 3) if batch_first else (1, 4, 3)).double())
            last = (state if kind == "LSTM" else (state,))[0]
            before = last.clone()
            hs.zero_()
            assert torch.equal(last, before)


def _is_a_step(module, batch_first):
    shape = (4, 1, 3) if batch_first else (1, 4, 3)
    return module._one_step(torch.zeros(shape).double(), None) is not None
