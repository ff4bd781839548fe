"""PyTorch's own inputs for its recurrent modules, which its package carries, here.

With them what torch's ``test_modules.py`` asks of every module: forward beside the oracle, errors,
factory arguments, pickles, inputs with gaps, gradients and their gradients. Left out is

    cpu_gpu_parity, memory_format   of other devices and of images
    multiple_device_transfer        the same
"""

from helpers import run_python

# In a process of its own: torch's tests change torch where they are imported.
COMMON = '''
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


def ours_of(kind):
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


def inputs_of(info, dtype, **more):
    packed = {} if issubclass(info.module_cls, torch.nn.RNNCellBase) else more
    given = {"device": "cpu", "dtype": dtype, "training": True, "requires_grad": True}
    torch.manual_seed(0)
    return info.module_inputs_func(info, **given, **packed)


kinds = {torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU}
kinds |= {torch.nn.RNNCell, torch.nn.LSTMCell, torch.nn.GRUCell}
infos = [info for info in module_db if info.module_cls in kinds]
'''

VECTORS = (
    COMMON
    + """
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


with use_backend("numba", strict=True):
    for info in infos:
        kind = info.module_cls
        for dtype in LIMITS:
            for one in inputs_of(info, dtype, with_packed_sequence=True):
                check(kind, one, dtype)
        given = {"device": "cpu", "dtype": torch.float32, "training": True, "requires_grad": True}
        for error in info.module_error_inputs_func(info, **given):
            check_error(kind, error)
print(*sorted(ran))
"""
)


def test_torchs_own_inputs():
    ran = run_python(VECTORS).stdout.split()
    assert ran == ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell", "errors"]


QUESTIONS = (
    COMMON
    + """
import io

from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_utils import noncontiguous_like


def with_gaps(value):
    if isinstance(value, torch.Tensor):
        return noncontiguous_like(value) if value.numel() > 1 else value
    return tuple(map(with_gaps, value)) if type(value) is tuple else value


def ask(kind, given):
    args, options = given.constructor_input.args, given.constructor_input.kwargs
    options = {name: value for name, value in options.items() if name not in ("device", "dtype")}
    for dtype in LIMITS:
        module = ours_of(kind)(*args, **options, device="cpu", dtype=dtype)
        assert {p.dtype for p in module.parameters()} == {dtype}
    there = ours_of(kind)(*args, **options, device="meta")
    assert all(p.is_meta for p in there.parameters())
    inputs = given.forward_input.args
    want = all_tensors(module(*inputs))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert all(map(torch.equal, all_tensors(again(*inputs)), want))
    ran["pickle"] += 1
    for a, b in zip(all_tensors(module(*map(with_gaps, inputs))), want, strict=True):
        torch.testing.assert_close(a, b)
    ran["gaps"] += 1
    leaves = [t for t in all_tensors(inputs) if t.requires_grad]
    weights = list(module.parameters())

    def call(*_):
        return tuple(t for t in all_tensors(module(*inputs)) if t.requires_grad)

    assert gradcheck(call, (*leaves, *weights), fast_mode=True)
    ran["gradcheck"] += 1
    assert gradgradcheck(call, (*leaves, *weights), fast_mode=True)
    ran["gradgradcheck"] += 1


with use_backend("numba", strict=True):
    for info in infos:
        for one in inputs_of(info, torch.float64):
            ask(info.module_cls, one)
print(*sorted(ran))
"""
)


def test_torchs_own_questions():
    ran = run_python(QUESTIONS).stdout.split()
    assert ran == ["gaps", "gradcheck", "gradgradcheck", "pickle"]
