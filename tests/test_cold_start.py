"""A process that finds all code in the cache: what it imports, and that it computes the same."""

import re
import sys
from pathlib import Path

import numba
import pytest
from numba.core.registry import cpu_target

from helpers import run_python
from numba_rnn.kernels.cpu import compilation, kernel_cache, target

FIRST_CALLS = """
import sys
import numpy as np
import numba_rnn
from numba_rnn import TimeAffine, TimeGRU, TimeLSTM, use_backend
from numba_rnn.kernels.cpu.kernel_cache import KERNELS
from numba_rnn.training import Adam

use_backend("numba", strict=True)
rng = np.random.default_rng(0)
xs = rng.standard_normal((4, 20, 3)).astype(np.float32)
found = []
for layer in (TimeLSTM.create(3, 5, rng=0), TimeGRU.create(3, 5, rng=0)):
    stream = numba_rnn.Stream([layer, TimeAffine.create(5, 2, rng=0)])
    found += [stream.step(xs[0, 0]).copy(), stream.step_many(xs[0])]
    found += [layer.stream(batch=4).step(xs[:, 0])]
    hs = layer.forward(xs, mask=np.ones((4, 20), bool))
    layer.backward(hs)
    Adam().update(layer.params, layer.grads, max_norm=1.0)
    found += [hs, *layer.grads, *layer.params]
engine = use_backend("numba").__enter__()
found += [engine.dropout(1, (4, 5, 6), 0.5, np.dtype(np.float32))]
found += [engine.product(xs[0], np.ones((3, 7000), np.float32))]
print(*(array.tobytes().hex() for array in found))
print(*(name for name in ("numba", "scipy", "sympy") if name in sys.modules))
print(numba_rnn.explain().versions["numba"], all(kernel.cache_hits for kernel in KERNELS))
"""


def test_a_warm_process_imports_no_compiler_and_computes_the_same(tmp_path):
    env = {"NUMBA_CACHE_DIR": str(tmp_path)}
    cold, warm = (run_python(FIRST_CALLS, env).stdout.splitlines() for _ in range(2))
    assert (cold[0], warm[0]) == (cold[0], cold[0])
    assert "numba" in cold[1].split()
    assert warm[1] == ""
    assert (cold[2], warm[2]) == (f"{numba.__version__} False", f"{numba.__version__} True")
    for entry in tmp_path.rglob("*.bin"):  # what is kept needs no library but ours and C's
        if entry.name.partition("-")[0] not in ("numba", "registers"):
            needs = entry.read_bytes()[32:].split(b"\n", 2)[1].decode().split()
            assert all(need.startswith("numba_rnn_") or need in ("log", "exp") for need in needs)


MACHINE = """
import sys
from numba_rnn.kernels.cpu import target
found = *target.versions(), *target.machine()
assert "numba" not in sys.modules
from numba import __version__
from numba.core.registry import cpu_target
print(found[1] == __version__, found[3:] == cpu_target.target_context.codegen().magic_tuple())
"""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"NUMBA_CPU_NAME": "generic"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_FEATURES": "-avx512f"},
        {"NUMBA_CPU_NAME": "sandybridge"},
        {"NUMBA_ENABLE_AVX": "0"},
    ],
)
def test_the_processor_is_what_numba_compiles_for(variables):
    assert run_python(MACHINE, variables).stdout == "True True\n"


def test_a_setting_of_numba_is_read_where_it_has_been_imported(monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_NAME", "too late")
    assert target.setting("CPU_NAME") == numba.config.CPU_NAME
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 7)
    assert target.setting("NUMBA_NUM_THREADS", 1) == 7
    assert target.machine() == cpu_target.target_context.codegen().magic_tuple()


@pytest.mark.parametrize(("said", "is_set"), [("1", True), ("0", False), ("no number", False)])
def test_numbas_switch_is_found_in_the_environment(said, is_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", said)
    assert bool(target.setting("DISABLE_JIT", 0)) is is_set


def test_numba_is_imported_unless_an_earlier_process_could(tmp_path, monkeypatch):
    """One that is broken is found out before anything is to be compiled."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    imported = []
    monkeypatch.setattr(kernel_cache.importlib, "import_module", imported.append)
    kernel_cache.expect_numba()
    kernel_cache.expect_numba()
    assert imported == ["numba"]
    monkeypatch.setattr(kernel_cache.np, "__version__", "another")
    kernel_cache.expect_numba()
    assert imported == ["numba", "numba"]


def test_kernels_are_where_their_names_say():
    modules = {module.__name__.rpartition(".")[2]: module for module in compilation._MODULES}
    found = set()
    for file in Path(kernel_cache.__file__).parent.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        found |= set(re.findall(r'"(\w+)\.(\w+)"', text))
    found = {(module, name) for module, name in found if module in modules}
    assert len(found) > 20
    for module, name in found:
        assert getattr(modules[module], name).__code__.co_varnames[0] == "ctx"


def test_modules_that_numba_compiles_are_not_imported_by_others():
    """Those that the engine imports import neither Numba nor them."""
    code = """
        import sys
        import numba_rnn.kernels.cpu.engine
        ours = [name for name in sys.modules if name.startswith("numba_rnn.kernels.cpu.")]
        print(*(name.rpartition(".")[2] for name in ours))
    """
    host = set(run_python(code).stdout.split())
    compiled = {module.__name__.rpartition(".")[2] for module in compilation._MODULES}
    assert not host & (compiled | {"compilation", "kernel_abi", "simd"})
