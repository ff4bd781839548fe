"""PyTorch's own inputs for its recurrent modules, which its package carries, here."""

from helpers import run_python

# In a process of its own: torch's tests change torch where they are imported.
VECTORS = '''
import re
import warnings
from collections import Counter

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import numba_rnn.torch
from numba_rnn import use_backend

warnings.filterwarnings("ignore", message="LSTM with projections")
torch.set_num_threads(1)  # the inputs are tiny
LIMITS = {torch.float32: 2e-5, torch.float64: 1e-12}
ran = Counter()


def all_tensors(value):
    """Those of arguments or results, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in all_tensors(part)]
    return []


class Step(torch.nn.Module):
    """A cell of torch's, run as one step of a sequence by a module of ours."""

    def __init__(self, cell, *args, **options):
        super().__init__()
        name = cell.__name__.removesuffix("Cell")
        self.module = getattr(numba_rnn.torch, name)(*args, **options)

    def load_state_dict(self, weights):
        self.module.load_state_dict({f"{name}_l0": value for name, value in weights.items()})

    def forward(self, x, state):
        lstm = isinstance(state, tuple)
        given = tuple(s[None] for s in state) if lstm else state[None]
        _, after = self.module(x[None], given)
        return tuple(s[0] for s in after) if lstm else after[0]


def ours_of(kind):
    if issubclass(kind, torch.nn.RNNCellBase):
        return lambda *args, **options: Step(kind, *args, **options)
    return getattr(numba_rnn.torch, kind.__name__)


def compute(module, args, options):
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in all_tensors(args)]
    left = iter(leaves)

    def again(value):
        if isinstance(value, torch.Tensor):
            return next(left)
        if isinstance(value, PackedSequence):
            return PackedSequence(next(left), *value[1:])
        return tuple(map(again, value))

    outputs = all_tensors(module(*map(again, args), **options))
    outer = torch.Generator().manual_seed(0)
    sum((out * torch.randn(out.shape, generator=outer, dtype=out.dtype)).sum()
        for out in outputs).backward()
    weights = [p.grad for p in module.parameters()]
    return [*outputs, *(leaf.grad for leaf in leaves), *weights]


def check(kind, given, dtype):
    theirs = kind(*given.constructor_input.args, **given.constructor_input.kwargs).to(dtype)
    ours = ours_of(kind)(*given.constructor_input.args, **given.constructor_input.kwargs).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    args, options = given.forward_input.args, given.forward_input.kwargs
    want, got = compute(theirs, args, options), compute(ours, args, options)
    for a, b in zip(want, got, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape and a.dtype == b.dtype
            torch.testing.assert_close(b, a, rtol=LIMITS[dtype], atol=LIMITS[dtype])
    ran[kind.__name__] += 1


def check_error(kind, error):
    given = error.module_error_input
    try:
        module = ours_of(kind)(*given.constructor_input.args, **given.constructor_input.kwargs)
        assert error.error_on is ModuleErrorEnum.FORWARD_ERROR
        module(*given.forward_input.args, **given.forward_input.kwargs)
    except error.error_type as raised:
        assert re.search(error.error_regex, str(raised)), (error.error_regex, str(raised))
    else:
        raise AssertionError(f"{kind}: nothing was raised, expected {error.error_regex}")
    ran["errors"] += 1


kinds = {torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU}
kinds |= {torch.nn.RNNCell, torch.nn.LSTMCell, torch.nn.GRUCell}
with use_backend("numba", strict=True):
    for info in module_db:
        kind = info.module_cls
        if kind not in kinds:
            continue
        packed = {} if issubclass(kind, torch.nn.RNNCellBase) else {"with_packed_sequence": True}
        given = {"device": "cpu", "training": True, "requires_grad": True}
        for given["dtype"] in LIMITS:
            torch.manual_seed(0)
            for one in info.module_inputs_func(info, **given, **packed):
                check(kind, one, given["dtype"])
        if not issubclass(kind, torch.nn.RNNCellBase):
            for error in info.module_error_inputs_func(info, **given | {"dtype": torch.float32}):
                check_error(kind, error)
print(*sorted(ran))
'''


def test_torchs_own_inputs():
    ran = run_python(VECTORS).stdout.split()
    assert ran == ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell", "errors"]
