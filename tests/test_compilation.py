"""Compiled code: kept on disk, found again, never used for another source, and not in silence."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from helpers import run_python
from numba_rnn import cells, explain, use_backend
from numba_rnn.kernels import disk_cache, fingerprint
from numba_rnn.kernels.cells import Cell
from numba_rnn.kernels.cpu import compilation, kernel_cache, plans, target
from numba_rnn.kernels.cpu import engine as cpu
from numba_rnn.kernels.cpu.kernel_abi import arguments_address, load_i64
from numba_rnn.kernels.cpu.simd import load_part, store_part
from numba_rnn.kernels.cpu.threads import call_kernel
from numba_rnn.kernels.fingerprint import of_cell
from numba_rnn.kernels.functions import sigmoid, tanh
from numba_rnn.kernels.reference import NumpyEngine

# ---- the cache on disk

TRAIN = """
import numpy as np
from numba_rnn import TimeRNN, use_backend
from numba_rnn.kernels.cpu.kernel_cache import KERNELS

use_backend("numba", strict=True)
layer = TimeRNN.create(3, 5, rng=0)
hs = layer.forward(np.ones((2, 4, 3), np.float32))
layer.backward(hs)

hits = [bool(kernel.cache_hits) for kernel in KERNELS]
print(sum(kernel.cache_hits for kernel in KERNELS), hits.count(False))
print(hs.tobytes().hex(), layer.grads[1].tobytes().hex())
"""


def train(folder: Path) -> tuple[int, int, str]:
    """How many kernels a process finds in a cache, how many it compiles, and its numbers."""
    counts, numbers = run_python(TRAIN, {"NUMBA_CACHE_DIR": str(folder)}).stdout.splitlines()
    hits, misses = map(int, counts.split())
    return hits, misses, numbers


def test_the_source_of_a_module_is_its_file():
    for module in (fingerprint, cpu):
        assert fingerprint._source(module.__name__) == Path(module.__file__).read_bytes()


def test_the_fingerprint_of_an_engine_is_that_of_all_its_modules():
    """Those that define kernels need not be imported for it."""
    names = fingerprint._modules(cpu.__package__)
    own = [name for name in names if name.startswith(f"{cpu.__package__}.")]
    files = Path(cpu.__file__).parent.glob("*.py")
    assert own == sorted(f"{cpu.__package__}.{file.stem}" for file in files if file.stem[0] != "_")


def test_source_is_read_while_other_threads_import(monkeypatch):
    """In a frozen program. Each name of a module that is asked whether it is the engine's lets
    another one come."""
    want = fingerprint._modules(cpu.__package__)
    modules = dict(sys.modules)

    class Name(str):
        def startswith(self, *prefix):
            modules[f"another{len(modules)}"] = sys
            return super().startswith(*prefix)

    modules[Name("made_while_it_reads")] = sys
    monkeypatch.setattr(sys, "modules", modules)
    monkeypatch.setattr(fingerprint.pkgutil, "iter_modules", lambda path: [])
    assert fingerprint._modules(cpu.__package__) == want


def test_a_second_process_compiles_nothing_but_what_is_damaged(tmp_path):
    hits, misses, numbers = train(tmp_path)
    assert hits == 0
    assert misses >= 6  # two passes, their gates, products
    assert train(tmp_path) == (misses, 0, numbers)

    entries = sorted(tmp_path.rglob("*.*"), key=lambda file: file.stat().st_size)
    others = "numba-", "registers-"  # are as good as none where they are damaged
    kernels = [entry for entry in entries if not entry.name.startswith(others)]
    empty, cut, bit, one, other = kernels[:5]  # the smallest: they are compiled again
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    bit.write_bytes(flipped(bit.read_bytes(), 8 * (bit.stat().st_size // 2)))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert train(tmp_path) == (misses - 5, 5, numbers)
    assert train(tmp_path) == (misses, 0, numbers)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.fixture
def entry(tmp_path, monkeypatch) -> Path:
    """The file of a small function, compiled once."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert compile_small() == "compiled"
    (file,) = tmp_path.rglob("*.bin")
    assert compile_small() == "found"
    return file


def small(ctx):
    """A kernel: the number at an address, times three."""
    address = load_i64(arguments_address(ctx), 0)
    store_part(ctx, load_part(ctx, address, 1) * 3.0, address, 1)


def compile_small() -> str:
    made = kernel_cache.find_or_compile(small, kernel_cache.Variant("float64"))
    number = np.array([2.0])
    words = np.array([number.ctypes.data])
    call_kernel(made.address, words.ctypes.data)
    assert number == 6
    return "found" if made.cache_hits else "compiled"


@pytest.mark.parametrize("place", [0, 31, 32, 33, 0.3, 0.6, 0.9, -1])
def test_any_flipped_bit_is_noticed(entry, place):
    whole = entry.read_bytes()
    byte = int(place * len(whole)) if isinstance(place, float) else place % len(whole)
    for bit in (0, 7):
        entry.write_bytes(flipped(whole, 8 * byte + bit))
        assert compile_small() == "compiled"
        assert compile_small() == "found"


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, -1])
def test_a_cut_entry_is_compiled_again(entry, size):
    entry.write_bytes(entry.read_bytes()[:size])
    assert compile_small() == "compiled"
    assert compile_small() == "found"


def test_nothing_is_loaded_that_does_not_verify(entry):
    entry.write_bytes(entry.read_bytes()[:32] + b"kernel\n\nno object code")
    assert compile_small() == "compiled"


def test_what_verifies_but_cannot_be_loaded_is_compiled_again(entry, monkeypatch):
    """As where it calls a function that this process does not have: LLVM would end it."""
    content = kernel_cache.content_of

    def needing_more(symbol, needs, code):
        return content(symbol, [*needs, "numba_rnn_no_such_function"], code)

    entry.unlink()
    monkeypatch.setattr(compilation, "content_of", needing_more)
    assert compile_small() == "compiled"
    assert compile_small() == "compiled"


def test_an_entry_is_for_its_key_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    one, other = disk_cache.Entry("x", "source", 1), disk_cache.Entry("x", "source", 2)
    one.save(b"one")
    other.save(b"other")
    assert (one.load(), other.load()) == (b"one", b"other")
    assert disk_cache.Entry("x", "changed", 1).load() is None
    one._place.rename(other._place)
    assert (one.load(), other.load()) == (None, None)


def test_entries_are_written_whole_and_through_no_link(entry, tmp_path):
    """Another one's file is replaced, not written to; no temporary file is left over."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    entry.unlink()
    entry.symlink_to(victim)
    assert compile_small() == "compiled"
    assert victim.read_text() == "mine"
    assert not entry.is_symlink()
    assert compile_small() == "found"
    assert {file.name for file in entry.parent.iterdir()} == {entry.name, "lock"}


def test_a_cache_that_may_only_be_read_is_read(entry, monkeypatch):
    for name in ("mkdir", "replace"):
        monkeypatch.setattr(Path, name, mock.Mock(side_effect=PermissionError))
    assert compile_small() == "found"
    monkeypatch.setattr(target, "versions", lambda: ("another",) * 3)
    assert compile_small() == compile_small() == "compiled"


def test_where_no_folder_can_be_written_to_it_works_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert compile_small() == compile_small() == "compiled"
    with use_backend("numba", strict=True):
        assert explain().cache == "off: no writable folder; set NUMBA_CACHE_DIR"


# ---- where it is


@pytest.mark.parametrize(
    ("system", "variables", "folder"),
    [
        ("linux", {}, "/home/me/.cache/numba_rnn"),
        ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast/numba_rnn"),
        ("darwin", {"XDG_CACHE_HOME": "/fast"}, "/home/me/Library/Caches/numba_rnn"),
        ("win32", {}, "/home/me/AppData/Local/numba_rnn/Cache"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/numba_rnn/Cache"),
        ("win32", {"LOCALAPPDATA": "/local", "NUMBA_CACHE_DIR": "/named"}, "/named/numba_rnn"),
        ("linux", {"NUMBA_CACHE_DIR": "/named"}, "/named/numba_rnn"),
    ],
)
def test_the_folder_is_where_platformdirs_has_it(system, variables, folder, monkeypatch):
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(disk_cache, "sys", SimpleNamespace(platform=system))
    assert disk_cache.folder() == Path(folder)


def test_who_has_no_home_has_no_cache(monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which is to be ignored")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user it knows not
    assert disk_cache.folder() is None
    assert compile_small() == "compiled"


# ---- what the cached code was compiled from

CELL = """
from numba_rnn.kernels.cells import Cell

def forward(gates, state):
    (a,) = gates
    return ({factor} * a,), ()

def backward(dstate, saved, state):
    (dh,) = dstate
    return ({factor} * dh,), (None,)

LINEAR = Cell("linear", ("h",), ("h",), (), forward, backward)
"""

USE_CELL = """
import numpy as np
from linear import LINEAR
from numba_rnn import TimeRecurrent, use_backend
from numba_rnn.kernels import fingerprint
from numba_rnn.kernels.cpu.kernel_cache import KERNELS
from numba_rnn.kernels.functions import sigmoid, tanh
from numba_rnn.kernels.reference import NumpyEngine

use_backend("numba", strict=True)
one = np.ones((1, 1))
layer = TimeRecurrent(one, 0 * one, np.zeros(1), cell=LINEAR)
h = layer.forward(np.ones((1, 1, 1))).item()
dx = layer.backward(np.ones((1, 1, 1))).item()
hits = sum(kernel.cache_hits for kernel in KERNELS if kernel.__name__ == "forward_gates")
print(fingerprint.of_cell(LINEAR), h, dx, hits)
"""


def use_cell(folder: Path, factor: float) -> tuple[str, float, float, int]:
    """Run a cell from a file, all runs of one folder sharing a cache."""
    (folder / "linear.py").write_text(CELL.format(factor=factor))
    env = {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    fingerprint, h, dx, hits = run_python(USE_CELL, env, cwd=folder).stdout.split()
    return fingerprint, float(h), float(dx), int(hits)


def test_a_changed_cell_is_compiled_anew(tmp_path):
    first, *computed = use_cell(tmp_path, 2.0)
    assert computed == [2, 2, 0]
    changed, *computed = use_cell(tmp_path, 3.0)
    assert computed == [3, 3, 0]
    again, *computed = use_cell(tmp_path, 2.0)
    assert computed == [2, 2, 1]  # what was compiled for this source is found again
    assert first == again != changed


def scaled(forward) -> Cell:
    return replace(cells.get("rnn"), forward=forward)


def by_closure(factor: float) -> Cell:
    def forward(gates, state):
        h = factor * gates[0]
        return (h,), (h,)

    return scaled(forward)


def by_global(factor: float) -> Cell:
    """As in a notebook, where a line above has changed."""
    namespace = {"FACTOR": factor}
    exec("def forward(gates, state): h = FACTOR * gates[0]; return (h,), (h,)", namespace)
    return scaled(namespace["forward"])


def by_default(factor: float) -> Cell:
    def times(x, by=factor):
        return by * x

    def forward(gates, state):
        h = times(gates[0])
        return (h,), (h,)

    return scaled(forward)


def by_function(which: int) -> Cell:
    """A name bound to another function of functions.py."""
    act = (sigmoid, tanh)[which - 1]

    def forward(gates, state):
        h = act(gates[0])
        return (h,), (h,)

    return scaled(forward)


def by_wiring(gate: int) -> Cell:
    cell = cells.get("gru_reset_after")
    return replace(cell, input_only=cell.gates[gate : gate + 1])


@pytest.mark.parametrize("make", [by_closure, by_global, by_default, by_function, by_wiring])
def test_cells_that_differ_share_no_code(make):
    first, second, again = (of_cell(make(k)) for k in (1, 2, 1))
    assert first == again != second


@pytest.mark.parametrize("make", [by_closure, by_default, by_function])
def test_cells_that_differ_compute_what_they_say(make):
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((2, 3, 4))
    for k in (1, 2):
        cell = make(k)
        params = [rng.standard_normal(shape) for shape in cell.shapes(4, 5).values()]
        state = (np.zeros((2, 5)),)
        ours, reference = (
            engine.forward(cell, xs, state, params)[0]
            for engine in (cpu.NumbaEngine(), NumpyEngine())
        )
        np.testing.assert_allclose(ours, reference, rtol=1e-12)


def test_a_cell_that_cannot_be_compiled_is_named_with_its_line():
    def forward(gates, state):
        h = gates[0] ** 2
        return (h,), (h,)

    cell = scaled(forward)
    params = [np.ones(shape) for shape in cell.shapes(2, 3).values()]
    where = rf"test_compilation\.py line {forward.__code__.co_firstlineno + 1}: does not compile"
    with pytest.raises(TypeError, match=rf"cell 'rnn', forward pass, {where}"):
        cpu.NumbaEngine().forward(cell, np.ones((1, 1, 2)), (np.zeros((1, 3)),), params)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gates": "h"}, r"gates: expected a tuple of names, got 'h'"),
        ({"gates": ("h", "h")}, "gates: expected each name once"),
        ({"states": ()}, "states: expected at least one name"),
        ({"saved": ()}, "forward: expected the saved as a tuple of 0, for no names; got 1 members"),
        (
            {"second_product": ("h",)},
            r"second_product \(or operand_gate\), operand and operand_backward: expected all",
        ),
        ({"input_only": ("z",)}, "input_only: expected some of the gates h, got z"),
        ({"recurrent_only": ("h",)}, "recurrent_only: expected at least one gate left with x Wx"),
        ({"weights": ("h",)}, "weights: expected the last of h, after at least one gate"),
        ({"weight_start": {"u": 1.0}}, "weight_start: expected some of the weights .*, got u"),
        ({"biases": 3}, "biases: expected 1 or 2, got 3"),
        ({"forward": lambda gates, state: (gates, 0.0)}, "forward: expected the saved as a tuple"),
        (
            {"forward": lambda gates, state: ((1.0,), gates)},
            "forward: .* from the arguments",
        ),
        ({"backward": lambda d, saved, state: (d, (*d, *d))}, "backward: .* for h; got 2 members"),
    ],
)
def test_a_cell_that_breaks_the_contract_is_refused_where_it_is_made(changes, says):
    with pytest.raises(ValueError, match=f"^cell 'rnn': {says}"):
        replace(cells.get("rnn"), **changes)


# ---- the message


@pytest.fixture
def no_patience(monkeypatch):
    """Messages that come after two seconds come at once."""

    class Timer(threading.Timer):
        def __init__(self, seconds: float, *call: object) -> None:
            assert seconds == 2
            super().__init__(0, *call)

        def cancel(self) -> None:
            if self.ident is not None:
                self.join()

    monkeypatch.setattr(kernel_cache.threading, "Timer", Timer)


def announce_small() -> None:
    with kernel_cache.warn_if_slow_compile("something"):
        compile_small()
        time.sleep(0.01)


def test_compilation_is_announced_and_a_slow_cache_is_not(entry, no_patience, capfd):
    announce_small()
    assert capfd.readouterr() == ("", "")
    entry.unlink()
    announce_small()
    message = "compiling something for this CPU; it is done once, later runs find it in the cache."
    assert capfd.readouterr() == ("", f"numba_rnn: {message}\n")


def test_the_message_names_the_pass_and_the_cell(no_patience, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(plans, "compiled", lambda *_: compile_small())
    for driver in (plans.FORWARD, plans.BACKWARD):
        plans._compiled_kernels(driver, cells.get("rnn"), "float64", plans.NO_FEATURES, 1, 1)
        assert f"the {driver.split('.')[0]} pass of rnn (float64)" in capfd.readouterr().err
        next(tmp_path.rglob("*.bin")).unlink()


def test_what_is_not_kept_is_not_promised(no_patience, capfd, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    announce_small()
    assert "there is no writable cache folder; set NUMBA_CACHE_DIR" in capfd.readouterr().err
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(fingerprint, "of_engine", lambda package: None)
    announce_small()
    assert capfd.readouterr().err.endswith(
        "compiling something for this CPU; later runs do it again.\n"
    )
    assert not list(tmp_path.rglob("*.bin"))


def test_a_failing_compilation_is_silent(monkeypatch, capfd):
    made = threading.Timer
    monkeypatch.setattr(threading, "Timer", lambda seconds, *call: made(seconds / 20, *call))
    with pytest.raises(MemoryError), kernel_cache.warn_if_slow_compile("something"):  # noqa: PT012
        kernel_cache._announce()
        raise MemoryError
    time.sleep(0.3)
    assert capfd.readouterr() == ("", "")


def test_without_stderr_nothing_is_said(entry, no_patience, monkeypatch, capfd):
    entry.unlink()
    monkeypatch.setattr(sys, "stderr", None)
    announce_small()
    assert capfd.readouterr().out == ""


# ---- signals


@pytest.fixture
def signal_within(monkeypatch):
    """Sets when SIGINT comes: where Python calls a function of this name."""

    def wait_for(name):
        def look(frame, event, arg):
            if event == "call" and frame.f_code.co_name == name:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

        sys.setprofile(look)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield wait_for
    sys.setprofile(None)
    signal.signal(signal.SIGINT, before)


# the last two are called by LLVM, by way of ctypes
@pytest.mark.parametrize("place", ["save", "_object_compiled_hook", "_object_getbuffer_hook"])
def test_ctrl_c_amid_compilation_is_raised_at_its_end(entry, signal_within, place):
    entry.unlink()
    signal_within(place)
    with pytest.raises(KeyboardInterrupt):
        compile_small()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert compile_small() == "found"


def test_a_handler_runs_at_once_amid_compilation_and_may_set_another(entry, signal_within):
    entry.unlink()
    came = []

    def note(number, frame):
        came.append(entry.exists())
        signal.signal(number, signal.SIG_IGN)

    signal.signal(signal.SIGINT, note)
    signal_within("save")
    assert compile_small() == "compiled"
    assert came == [False]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_thread_compiles_and_leaves_the_handlers_alone(entry):
    entry.unlink()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(compile_small).result() == "compiled"


# ---- several processes


def test_processes_that_start_together_compile_once(tmp_path):
    """Numba's own cache, shared without a lock, may give one process another's code."""
    with ThreadPoolExecutor() as pool:
        counts = list(pool.map(train, [tmp_path] * 3))
    kernels = sum(counts[0][:2])
    assert sum(misses for _, misses, _ in counts) == kernels
    assert sum(hits for hits, _, _ in counts) == 2 * kernels
    assert len({numbers for _, _, numbers in counts}) == 1


@pytest.fixture
def held(tmp_path, monkeypatch):
    """An entry whose lock somebody has who does not come back."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(disk_cache.Entry, "patience", 0.2)
    entry = disk_cache.Entry("x", "source")
    with entry.alone():
        yield entry


def test_who_has_stopped_is_waited_for_once(held):
    for _ in range(3):
        with held.alone():
            assert held.load() is None
    assert disk_cache.Entry.patience == 0


def test_what_another_process_has_saved_ends_the_wait(held, monkeypatch):
    monkeypatch.setattr(disk_cache.Entry, "patience", 300.0)
    monkeypatch.setattr(disk_cache.time, "sleep", lambda _: held.save(b"code"))
    with held.alone():
        assert held.load() == b"code"
    assert disk_cache.Entry.patience == 300


def test_it_is_locked_on_windows_too(tmp_path, monkeypatch):
    """By msvcrt, whose lock is refused by PermissionError while another one has it."""
    owners: list[int] = []

    def locking(file: int, how: str, count: int) -> None:
        assert (how, count) == ("not blocking", 1)
        owners.append(file)
        if len(owners) in (2, 3):
            raise PermissionError(13, "Permission denied")

    windows = ModuleType("msvcrt")
    windows.locking, windows.LK_NBLCK = locking, "not blocking"
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    spec = util.spec_from_file_location("disk_cache_on_windows", disk_cache.__file__)
    module = util.module_from_spec(spec)
    with mock.patch.object(sys, "platform", "win32"):
        spec.loader.exec_module(module)
    entry = module.Entry("x", "source")
    with entry.alone(), entry.alone():
        assert len(owners) == 4  # the second one came three times


ELSEWHERE = """
import numpy as np
from numba_rnn import TimeRecurrent, cell, functions, use_backend
from numba_rnn.kernels.cpu.kernel_cache import KERNELS

print("imported" if __name__ != "__main__" else "run")

@cell(weights="u")
def somewhere(a, u, h):
    return functions.tanh(a + u * h)

layer = TimeRecurrent.create(2, 3, cell=somewhere, rng=0)
with use_backend("numba", strict=True):
    hs = layer.forward(np.ones((1, 2, 2), np.float32))
    layer.backward(hs)
print(sum(kernel.cache_hits for kernel in KERNELS if "gates" in kernel.__name__))
"""


def test_a_cell_is_found_in_the_cache_wherever_it_is_defined(tmp_path):
    """In a module, in a program, in exec: the compiled code imports neither."""
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE, encoding="utf-8")
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    assert run_python("import elsewhere", env).stdout.split() == ["imported", "0"]
    assert run_python(ELSEWHERE, env).stdout.split() == ["run", "2"]
    executed = f"exec({ELSEWHERE!r}, {{'__name__': None}})"
    assert run_python(executed, env).stdout.split() == ["imported", "2"]
