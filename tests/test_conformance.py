"""Every engine computes what the NumPy engine, the specification, computes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from helpers import (
    ALL_ENGINES,
    DTYPES,
    ENGINES,
    OTHER_CELLS,
    PARTITIONS,
    REPRESENTATIVES,
    Array,
    cancels,
    outcome,
    problem,
    random_problem,
    relative_error,
)
from numba_rnn import cells, use_backend
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.kernels.step_options import NO_OPTIONS, StepOptions

LIMITS = {np.float32: 1e-5, np.float64: 1e-12}

# ---- what is compared


def disagreements(got: dict[str, Array], want: dict[str, Array], limit: float) -> dict[str, Any]:
    """The arrays that differ, and by how much."""
    assert got.keys() == want.keys()
    found: dict[str, Any] = {}
    for name, array in got.items():
        if array.dtype != want[name].dtype or array.shape != want[name].shape:
            found[name] = array.dtype, array.shape
        elif (error := relative_error(array, want[name])) > limit:
            found[name] = error
    return found


# ---- the ways an engine can be made to go wrong


class PoisonedNumPy(ModuleType):
    """NumPy, with all uninitialised memory filled with NaN."""

    def __init__(self) -> None:
        super().__init__("numpy")

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def empty(*args: Any, **options: Any) -> Array:
        return np.full_like(np.empty(*args, **options), np.nan)

    @staticmethod
    def empty_like(*args: Any, **options: Any) -> Array:
        return np.full_like(np.empty_like(*args, **options), np.nan)


@contextmanager
def poisoned_memory(engine: NumpyEngine) -> Iterator[None]:
    """No engine may read what it has not written."""
    with ExitStack() as stack:
        rooms = {type(engine).__module__, NumpyEngine.__module__}
        if engine.xp is not np:  # the emulated GPU does that itself
            rooms = set()
        folders = {room.rpartition(".")[0] for room in rooms}
        rooms |= {
            f"{folder}.{room}" for folder in folders for room in ("plans", "launch", "product")
        }
        for name in rooms:
            module = sys.modules.get(name)
            if module is not None:
                stack.enter_context(mock.patch.object(module, "np", PoisonedNumPy()))
            if hasattr(module, "free_buffers"):  # what it would use again
                module.free_buffers()
        yield


@contextmanager
def shared(engine: NumpyEngine, partition: tuple[int, bool] | None) -> Iterator[None]:
    """Cut the numba engine's work into so many shards, by rows or by units; None: its choice."""
    if engine.name != "numba" or partition is None:
        yield
        return
    module = sys.modules["numba_rnn.kernels.cpu.launch"]
    with mock.patch.object(module, "choose_partition", return_value=partition):
        yield


def spread(array: Array) -> Array:
    """The same numbers with gaps between them, which hold NaN."""
    wide = np.full([2 * size for size in array.shape], np.nan, array.dtype)
    view = wide[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def backwards(array: Array) -> Array:
    """The same numbers stored from the end to the start."""
    every = (slice(None, None, -1),) * array.ndim
    return array[every].copy()[every]


def swapped(array: Array) -> Array:
    """The same numbers with the first two axes stored the other way round."""
    return np.swapaxes(np.swapaxes(array, 0, 1).copy(), 0, 1) if array.ndim > 1 else array


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "spread": spread,
    "backwards": backwards,
    "swapped": swapped,
}


# ---- the suite

# N, T, D, H: single numbers, panels and tiles that are just full and just not, several chunks
SIZES = [(1, 1, 1, 1), (1, 4, 3, 7), (3, 1, 2, 5), (5, 3, 1, 16), (6, 2, 9, 65), (9, 3, 4, 97)]
EDGES = [(n + 1, 2, 17 - n, h) for n, h in enumerate((15, 16, 17, 31, 32, 33, 8, 9, 64))]
CHUNKS = [(7, 60, 3, 33), (1, 300, 2, 3), (300, 3, 2, 4), (140, 5, 18, 17)]


def with_examples(test: Any) -> Any:
    """The sizes that matter, in every layout and however shared."""
    for sizes in (*SIZES, *EDGES):
        test = example(sizes=sizes, layouts=("C",) * 5, partition=None, seed=0)(test)
    for layout in LAYOUTS:
        test = example(sizes=(3, 4, 5, 19), layouts=(layout,) * 5, partition=None, seed=0)(test)
    for partition in PARTITIONS:
        test = example(sizes=(4, 5, 20, 70), layouts=("C",) * 5, partition=partition, seed=0)(test)
    return test


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("backend", ENGINES)
@settings(max_examples=20, deadline=None)
@with_examples
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 20), st.integers(1, 80)),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 5),
    partition=st.sampled_from([None, *PARTITIONS]),
    seed=st.integers(0, 1 << 32),
)
def test_engine_agrees_with_the_reference(backend, name, dtype, sizes, layouts, partition, seed):
    if backend == "cuda":  # as large as an emulator can do
        sizes = tuple(1 + (size - 1) % 13 for size in sizes)
    assume(not cancels(name, sizes[3]))
    p = problem(name, *sizes, dtype, seed=seed)
    want = outcome(NumpyEngine(), p)
    given_ = p.map(*(LAYOUTS[layout] for layout in layouts))  # xs, state, params, dhs, dstate
    with (
        use_backend(backend, strict=True) as engine,
        poisoned_memory(engine),
        shared(engine, partition),
    ):
        got = outcome(engine, given_)
    assert disagreements(got, want, LIMITS[dtype]) == {}
    for before, after in zip(p.arrays(), given_.arrays(), strict=True):
        np.testing.assert_array_equal(after, before, "an input was written to")
        assert not any(np.may_share_memory(after, array) for array in got.values())


@pytest.mark.parametrize("name", OTHER_CELLS)
@pytest.mark.parametrize("backend", ENGINES)
def test_it_does_for_the_other_cells(backend, name):
    dtype = np.float32
    for sizes in (1, 1, 1, 1), (3, 4, 5, 19):
        if backend == "cuda":
            sizes = tuple(1 + (size - 1) % 13 for size in sizes)
        p = problem(name, *sizes, dtype)
        with use_backend(backend, strict=True) as engine, poisoned_memory(engine):
            got = outcome(engine, p)
        assert disagreements(got, outcome(NumpyEngine(), p), LIMITS[dtype]) == {}


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("sizes", CHUNKS)
@pytest.mark.parametrize("backend", ["numba"])
def test_long_and_wide_blocks(backend, sizes, name):
    """Time is cut into chunks, of at least two steps however wide the batch."""
    p = random_problem(name, *sizes)
    want = outcome(NumpyEngine(), p)
    for partition in PARTITIONS:
        with (
            use_backend(backend, strict=True) as engine,
            poisoned_memory(engine),
            shared(engine, partition),
        ):
            assert disagreements(outcome(engine, p), want, 1e-12) == {}, partition


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("sizes", [(9, 40, 7, 70), (2, 5, 33, 47), (1, 3, 4, 64)])
@pytest.mark.parametrize("backend", ["numba"])
def test_sharing_changes_no_bit(backend, sizes, name, dtype):
    """However many threads there are, and whatever they share, the results are the same."""
    p = random_problem(name, *sizes, dtype)
    with use_backend(backend, strict=True) as engine:
        with shared(engine, (1, True)):
            alone = outcome(engine, p)
        for partition in PARTITIONS[1:]:
            with shared(engine, partition):
                np.testing.assert_equal(outcome(engine, p), alone, str(partition))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*REPRESENTATIVES, "lstm_projected"])
@pytest.mark.parametrize("sizes", [(1, 5, 17), (6, 130, 37), (13, 300, 64), (32, 33, 31)])
@pytest.mark.parametrize("backend", ["numba"])
def test_a_step_alone_has_the_bits_of_the_first_of_many(backend, sizes, name, dtype):
    """Weights that are read once, twice or many times: where the caller has them, and in panels."""
    N, D, H = sizes
    p = random_problem(name, N, 9, D, H, dtype)
    with use_backend(backend, strict=True) as engine, poisoned_memory(engine):
        want, _, _ = engine.forward(p.cell, p.xs, p.state, p.params)
        for partition in (1, True), (2, True), (2, False):
            for T in 1, 2, 3, 4:
                with shared(engine, partition):
                    hs, _, _ = engine.forward(p.cell, p.xs[:, :T], p.state, p.params)
                np.testing.assert_array_equal(hs, want[:, :T], f"{partition}, {T} steps")


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_backward_twice_gives_the_same(backend, name):
    p = problem(name, 3, 4, 2, 5)
    with use_backend(backend, strict=True) as engine:
        _, _, saved = engine.forward(p.cell, p.xs, p.state, p.params)
        first, second = (engine.backward(p.cell, p.dhs, p.dstate, saved) for _ in range(2))
    np.testing.assert_equal(first, second)


@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_read_only_arrays_are_taken(backend):
    p = problem("rnn", 3, 4, 2, 5)
    for array in p.arrays():
        array.flags.writeable = False
    with use_backend(backend, strict=True) as engine:
        assert disagreements(outcome(engine, p), outcome(NumpyEngine(), p), 1e-12) == {}


def test_a_saved_gate_is_not_taken_for_a_state():
    """A cell may save a state after the step; a gate that looks like one is none."""

    def forward(gates, state):
        return (state[0] + gates[0], state[1]), (gates[0],)

    def backward(dstate, saved, state):
        dh, dc = dstate
        return (dh * saved[0],), (dh, dc)

    cell = cells.Cell("carry", ("a",), ("h", "c"), ("a",), forward, backward)
    p = random_problem(cell, 2, 3, 4, 5)
    with use_backend("numba", strict=True) as engine:
        assert disagreements(outcome(engine, p), outcome(NumpyEngine(), p), 1e-12) == {}


# ---- the test's test


@pytest.mark.parametrize("how", ["as they are made", "with gaps", "read-only", "another dtype"])
@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.parametrize("name", ["gru2", "indrnn", "lstm", "lstm_peephole", "mingru"])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_gradients_are_written_where_the_caller_says(backend, name, every, how):
    p, steps = random_problem(name, 3, 7, 4, 19, np.float32), StepOptions(checkpoint_every=every)
    with use_backend(backend, strict=True) as engine:
        *_, saved = engine.forward(p.cell, p.xs, p.state, p.params, steps)
        want = engine.backward(p.cell, p.dhs, p.dstate, saved)
        out = [np.full_like(param, np.nan) for param in p.params]
        if how == "with gaps":
            out[0] = spread(out[0])
        elif how == "another dtype":
            out[-1] = out[-1].astype(np.float64)
        elif how == "read-only":
            out[0].flags.writeable = False
            with pytest.raises(ValueError, match="read-only"):
                engine.backward(p.cell, p.dhs, p.dstate, saved, out=out)
            assert np.isnan(out[0]).all()
            return
        got = engine.backward(p.cell, p.dhs, p.dstate, saved, out=out)
    assert all(mine is made for mine, made in zip(out, got.params, strict=True))
    for mine, made in zip(out, want.params, strict=True):
        np.testing.assert_array_equal(mine, made)


@pytest.mark.parametrize("name", cells.names())
def test_a_step_is_a_pass_of_one_step(name):
    p = random_problem(name, 3, 1, 4, 19, np.float32)
    with use_backend("numba", strict=True) as engine:
        after = engine.forward(p.cell, p.xs, p.state, p.params)[1]
        stepped = engine.step(p.cell, p.xs[:, 0], p.state, p.params)
    for got, want in zip(stepped, after, strict=True):
        np.testing.assert_array_equal(got, want)


class WrongEngine(NumpyEngine):
    """Forgets one term of the backward pass; what it returns is itself a fine array."""

    def backward(self, cell, dhs, dstate, saved):
        return super().backward(cell, dhs, (dstate[0], 0 * dstate[1]), saved)


def test_a_wrong_engine_is_caught():
    p = problem("lstm", 2, 3, 4, 5)
    right = outcome(NumpyEngine(), p)
    found = disagreements(outcome(WrongEngine(), p), right, 1e-5)
    assert {"dxs", "dc at the start", "dWx", "dWh", "db"} <= found.keys()
    assert "hs" not in found

    nan = {**right, "hs": np.full_like(right["hs"], np.nan)}
    assert disagreements(nan, right, 1e-5) == {"hs": float("inf")}
    single = {**right, "hs": right["hs"].astype(np.float32)}
    assert disagreements(single, right, 1e-5).keys() == {"hs"}


@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_arrays_that_do_not_fit_together_are_refused(backend):
    """Compiled code would read beyond their end."""
    p = problem("lstm", 2, 3, 4, 5)
    with use_backend(backend, strict=True) as engine:
        for k, name in enumerate(("Wx", "b")):
            params = list(p.params)
            params[2 * k] = params[2 * k][..., :-1]
            with pytest.raises(ValueError, match=f"{name}: expected shape"):
                engine.forward(p.cell, p.xs, p.state, params)
        with pytest.raises(ValueError, match="c: expected shape"):
            engine.forward(p.cell, p.xs, (p.state[0], p.state[1][:1]), p.params)
        state = tuple(s.astype(np.float32) for s in p.state)
        with pytest.raises(TypeError, match="h: expected float64, as xs is, got float32"):
            engine.forward(p.cell, p.xs, state, p.params)


@pytest.mark.parametrize("steps", [NO_OPTIONS, StepOptions(checkpoint_every=2)])
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_changing_the_initial_state_does_not_change_the_gradient(backend, steps):
    p = problem("lstm", 2, 3, 4, 5)
    state = tuple(s.copy() for s in p.state)
    with use_backend(backend, strict=True) as engine:
        _, _, saved = engine.forward(p.cell, p.xs, state, p.params, steps)
        expected = engine.backward(p.cell, p.dhs, p.dstate, saved)
        _, _, saved = engine.forward(p.cell, p.xs, state, p.params, steps)
        for s in state:
            s[...] = np.nan
        np.testing.assert_equal(engine.backward(p.cell, p.dhs, p.dstate, saved), expected)
