"""Streams compute what the layers compute, step by step, and allocate nothing."""

import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest

from helpers import BACKENDS, DTYPES, OTHER_CELLS, REPRESENTATIVES, Array, relative_error
from numba_rnn import (
    Stream,
    TimeAffine,
    TimeDropout,
    TimeGRU,
    TimeLSTM,
    TimeRecurrent,
    TimeRNN,
    use_backend,
)
from numba_rnn.kernels.cpu import streaming
from numba_rnn.models import Rnnlm

LIMITS = {np.float32: 2e-6, np.float64: 1e-14}
backends = pytest.mark.parametrize("backend", BACKENDS)


def numbers(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def steps(stream: Stream, xs: Array) -> Array:
    """xs (N, T, D), step by step."""
    rows = [
        stream.step(np.ascontiguousarray(xs[0, t] if stream.batch == 1 else xs[:, t])).copy()
        for t in range(xs.shape[1])
    ]
    return np.stack(rows, axis=0 if stream.batch == 1 else 1).reshape(*xs.shape[:2], -1)


def many(stream: Stream, xs: Array) -> Array:
    frames = xs[0] if stream.batch == 1 else xs
    return stream.step_many(frames).reshape(*xs.shape[:2], -1)


def same(backend: str, got: Array, want: Array) -> None:
    """Bit for bit on the numba engine, within rounding on the others."""
    if backend == "numba":
        np.testing.assert_array_equal(got, want)
    else:
        assert relative_error(got, want) < LIMITS[want.dtype.type]


# ---- what they compute


@backends
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", REPRESENTATIVES)
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 9, 1, 1),
        (1, 300, 5, 16),
        (1, 20, 33, 47),
        (1, 100, 70, 24),
        (3, 90, 7, 33),
        (300, 4, 2, 3),
    ],
)
def test_a_stream_is_the_layer(backend, dtype, cell, sizes):
    N, T, D, H = sizes
    with use_backend(backend, strict=True):
        layer = TimeRecurrent.create(D, H, cell=cell, rng=0, dtype=dtype)
        xs = numbers(N, T, D, dtype=dtype)
        want = layer.forward(xs)
        one, other, third = (layer.stream(batch=N) for _ in range(3))
        same(backend, steps(one, xs), want)
        same(backend, many(other, xs), want)
        # in parts, by turns
        parts = [many(third, xs[:, : T // 3]), steps(third, xs[:, T // 3 : T // 2])]
        parts += [many(third, xs[:, T // 2 :])]
        same(backend, np.concatenate([p for p in parts if p.shape[1]], axis=1), want)
        for stream in (one, other, third):
            for state, after in zip(stream.state[0], layer.state, strict=True):
                same(backend, state, after)


@pytest.mark.parametrize("cell", OTHER_CELLS)
def test_a_stream_of_every_other_cell_is_the_layer(cell):
    """Strips of all widths; blocks, steps and snapshots mixed."""
    with use_backend("numba", strict=True):
        for H in (1, 7, 8, 16, 24, 33, 40, 70, 120):
            layer, xs = TimeRecurrent.create(3, H, cell=cell, rng=0), numbers(1, 23, 3, seed=H)
            for param in layer.params:
                param += 0.3 * numbers(*param.shape, seed=H)
            want, stream = layer.forward(xs), layer.stream()
            got = [many(stream, xs[:, :1]), many(stream, xs[:, 1:8]), steps(stream, xs[:, 8:11])]
            before = stream.snapshot()
            many(stream, xs[:, :5])
            stream.restore(before)
            got.append(many(stream, xs[:, 11:]))
            np.testing.assert_array_equal(np.concatenate(got, axis=1), want)


@pytest.mark.parametrize("sizes", [(120, 9), (9, 120), (120, 120)])
def test_small_and_large_layers_go_together(sizes):
    with use_backend("numba", strict=True):
        below = TimeGRU.create(3, sizes[0], rng=0)
        above, top = TimeLSTM.create(*sizes, rng=1), TimeAffine.create(sizes[1], 5, rng=2)
        xs, stream = numbers(1, 19, 3), Stream([below, above, top])
        hs = above.forward(below.forward(xs))
        got = [many(stream, xs[:, :1]), steps(stream, xs[:, 1:4]), many(stream, xs[:, 4:])]
        want = top.forward(hs)
        assert relative_error(np.concatenate(got, axis=1), want) < 1e-6
        np.testing.assert_array_equal(stream.state[0][0], below.h)
        np.testing.assert_array_equal(stream.state[1][1], above.state[1])


@backends
@pytest.mark.parametrize("N", [1, 4])
def test_a_stack_with_an_affine_layer_is_its_layers(backend, N):
    with use_backend(backend, strict=True):
        stack = [
            TimeLSTM.create(5, 20, rng=0),
            TimeGRU.create(20, 17, rng=1),
            TimeRNN.create(17, 16, rng=2),
            TimeAffine.create(16, 37, rng=3),
        ]
        stack[-1].params[1][...] = numbers(37)
        want = xs = numbers(N, 30, 5)
        for layer in stack:
            want = layer.forward(want)
        stream = Stream(stack, batch=N)
        for run in (steps, many):
            stream.reset()
            assert relative_error(run(stream, xs), want) < 2e-6
        assert repr(stream).startswith("Stream(TimeLSTM -> TimeGRU -> TimeRNN -> TimeAffine, D 5")


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_threads_change_no_bit(cell, N):
    with use_backend("numba", strict=True):
        layer = TimeRecurrent.create(9, 70, cell=cell, rng=0)
        xs = numbers(N, 40, 9)
        want = layer.forward(xs)
        for shares in ((2, True), (2, False), (3, False)):
            with mock.patch.object(streaming, "choose_partition", return_value=shares):
                stream = layer.stream(batch=N, threads=shares[0])
            np.testing.assert_array_equal(steps(stream, xs), want)
            stream.reset()
            np.testing.assert_array_equal(many(stream, xs), want)


def test_more_threads_than_there_is_room_for():
    with use_backend("numba", strict=True):
        layer, xs = TimeLSTM.create(8, 300, rng=0), numbers(1, 3, 8)
        np.testing.assert_array_equal(steps(layer.stream(threads=1000), xs), layer.forward(xs))


def test_small_layers_stay_on_one_thread():
    with use_backend("numba", strict=True):
        small, large = (TimeLSTM.create(H, H, rng=0).stream(threads=2) for H in (16, 300))
    assert not small._running._one.shared
    assert not small._running._many.shared
    assert large._running._one.shared
    assert large._running._many.shared


@pytest.mark.parametrize(("N", "D", "H"), [(1, 21, 37), (1, 70, 24), (3, 21, 37)])
@pytest.mark.parametrize("cell", REPRESENTATIVES)
def test_a_bfloat16_stream_is_a_bfloat16_layer(cell, N, D, H):
    with use_backend("numba", strict=True):
        layer = TimeRecurrent.create(D, H, cell=cell, rng=0)
        xs = numbers(N, 40, D)
        exact = layer.forward(xs)
        stream = layer.stream(batch=N, bfloat16=True)
        got = many(stream, xs)
        stream.reset()
        np.testing.assert_array_equal(steps(stream, xs), got)
    with use_backend("numba", strict=True, precision="bfloat16"):
        np.testing.assert_array_equal(got, layer.forward(xs))
        np.testing.assert_array_equal(many(layer.stream(batch=N), xs), got)
    assert 1e-5 < relative_error(got, exact) < 5e-2


def test_bfloat16_wants_float32():
    layer = TimeRNN.create(3, 4, rng=0, dtype=np.float64)
    with pytest.raises(TypeError, match="bfloat16: expected layers in float32, got float64"):
        layer.stream(bfloat16=True)


# ---- the state


@backends
@pytest.mark.parametrize("N", [1, 4])
def test_snapshot_and_restore(backend, N):
    with use_backend(backend, strict=True):
        stream = Stream([TimeLSTM.create(3, 6, rng=0), TimeGRU.create(6, 5, rng=1)], N)
        xs = numbers(N, 12, 3)
        steps(stream, xs[:, :5])
        before = stream.snapshot()
        first = steps(stream, xs[:, 5:])
        assert not np.array_equal(many(stream, xs[:, 5:]), first)
        stream.restore(before)
        same(backend, many(stream, xs[:, 5:]), first)
        stream.restore(before)
        np.testing.assert_array_equal(steps(stream, xs[:, 5:]), first)
        with pytest.raises(ValueError, match="snapshot: expected arrays of shapes"):
            stream.restore(before[:1])


@backends
@pytest.mark.parametrize("rows", [[1, 3], [False, True, False, True], np.array([3, 1])])
def test_reset_of_some_rows(backend, rows):
    with use_backend(backend, strict=True):
        layer = TimeLSTM.create(3, 6, rng=0)
        stream, xs = layer.stream(batch=4), numbers(4, 10, 3)
        steps(stream, xs[:, :5])
        stream.reset(rows)
        got = steps(stream, xs[:, 5:])
        whole, late = layer.forward(xs)[:, 5:], layer.forward(xs[:, 5:])
        same(backend, got[[0, 2]], whole[[0, 2]])
        same(backend, got[[1, 3]], late[[1, 3]])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([4], "rows: expected numbers from 0 to 3"),
        ([-1], "rows: expected numbers from 0 to 3"),
        ([0.5], "rows: expected numbers from 0 to 3"),
        ([True, False], r"rows: expected a mask of shape \(4,\), got \(2,\)"),
    ],
)
def test_rows_that_do_not_exist(rows, says):
    with pytest.raises(ValueError, match=says):
        TimeRNN.create(2, 3, rng=0).stream(batch=4).reset(rows)


@backends
@pytest.mark.parametrize(
    ("n", "k", "array", "says"),
    [
        (0, 1, numbers(5, 20), r"layers\[0\]\.Wh: expected shape \(4, 16\), got \(5, 20\)"),
        (0, 2, numbers(16, dtype=np.float64), r"layers\[0\]\.b: expected float32"),
        (1, 1, numbers(3), r"layers\[1\]\.b: expected shape \(2,\), got \(3,\)"),
    ],
)
def test_a_refused_refresh_changes_nothing(n, k, array, says, backend):
    with use_backend(backend):
        stack = [TimeLSTM.create(3, 4, rng=0), TimeAffine.create(4, 2, rng=1)]
        stream, other = Stream(stack), Stream(stack)
        xs = numbers(9, 3)
        np.testing.assert_array_equal(stream.step_many(xs[:4]), other.step_many(xs[:4]))
        right = [list(layer.params) for layer in stack]
        for layer in stack:
            layer.params[0] = layer.params[0] + 1  # which would be taken
        stack[n].params[k] = array
        with pytest.raises((TypeError, ValueError), match=says):
            stream.refresh()
        np.testing.assert_array_equal(stream.step_many(xs[4:7]), other.step_many(xs[4:7]))
        for layer, params in zip(stack, right, strict=True):
            layer.params[:] = params
        stream.refresh()
        np.testing.assert_array_equal(stream.step_many(xs[7:]), other.step_many(xs[7:]))


@backends
def test_a_refused_snapshot_changes_nothing(backend):
    with use_backend(backend):
        stream = Stream([TimeLSTM.create(3, 4, rng=0), TimeGRU.create(4, 5, rng=1)])
        stream.step(numbers(3))
        before = stream.snapshot()
        spoilt = (before[0] + 1, before[1].astype(np.float64))
        with pytest.raises(TypeError, match="snapshot: expected float32"):
            stream.restore(spoilt)
        for now, then in zip(stream.snapshot(), before, strict=True):
            np.testing.assert_array_equal(now, then)


@backends
def test_the_weights_are_those_of_the_last_refresh(backend):
    with use_backend(backend, strict=True):
        layer, xs = TimeGRU.create(3, 6, rng=0, reset_after=True), numbers(1, 8, 3)
        stream, before = layer.stream(), layer.forward(xs)
        for param in layer.params:
            param *= 2
        after = layer.forward(xs)
        same(backend, many(stream, xs), before)
        stream.refresh()
        np.testing.assert_array_equal(stream.state[0][0], before[:, -1])  # it stays
        stream.reset()
        same(backend, many(stream, xs), after)


# ---- what they are given


@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("cell", REPRESENTATIVES)
def test_a_stream_does_not_read_the_layers_weights(cell, N, weights):
    with use_backend("numba", strict=True):
        layer, xs = TimeRecurrent.create(5, 19, cell=cell, rng=0), numbers(N, 9, 5)
        stream = Stream([layer], batch=N, weights=weights)
        want, before = many(stream, xs), stream.snapshot()
        for param in layer.params:
            param[...] = np.nan
        stream.reset()
        np.testing.assert_array_equal(steps(stream, xs), want)
        stream.restore(before)
        assert np.isfinite(many(stream, xs)).all()


@backends
def test_arrays_of_any_layout_are_taken(backend):
    with use_backend(backend, strict=True):
        layer, xs = TimeLSTM.create(4, 6, rng=0), numbers(1, 5, 4)
        want = layer.forward(xs)
        stream = layer.stream()
        wide = np.zeros((5, 8), np.float32)
        wide[:, ::2] = xs[0]
        got = [stream.step(wide[t, ::2]).copy() for t in range(5)]
        same(backend, np.array(got)[None], want)
        for frames in (wide[:, ::2], xs[0].T.copy().T, np.broadcast_to(xs[0], (5, 4))):
            stream.reset()
            same(backend, stream.step_many(frames)[None], want)
        pair, rows = layer.stream(batch=2), numbers(6, 4)
        apart = pair.step(rows[1::3]).copy()
        pair.reset()
        same(backend, apart, pair.step(rows[1::3].copy()))
        read_only = xs[0, 0].copy()
        read_only.flags.writeable = False
        stream.reset()
        same(backend, stream.step(read_only), want[0, 0])


def test_a_length_one_axis_may_have_any_stride():
    frames = numbers(4, 5).T[:, :1]  # (5, 1), its last stride is no number's size
    layer = TimeRNN.create(1, 3, rng=0)
    got = layer.stream().step_many(frames, np.full((5, 3), np.nan, np.float32))
    np.testing.assert_array_equal(got, layer.forward(frames.copy()[None])[0])


def test_arrays_that_were_unpickled_are_as_good():
    layer = TimeRNN.create(4, 6, rng=0)
    stream, x = layer.stream(), pickle.loads(pickle.dumps(np.ones(4, np.float32)))
    assert x.dtype is not np.ones(4, np.float32).dtype
    with mock.patch("numba_rnn.streaming.validate_array", side_effect=AssertionError("slow way")):
        stream.step(x)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", [TimeRNN, TimeLSTM, TimeGRU])
def test_a_stream_may_be_fed_what_it_gave(kind, threads):
    layer, x = kind.create(512, 512, rng=0), numbers(512)
    fed, copied = layer.stream(threads=threads), layer.stream()
    a = b = x
    for _ in range(20):
        a, b = fed.step(a), copied.step(b).copy()
        np.testing.assert_array_equal(a, b)


class Series:
    """Looks like an array, as pandas' Series do."""

    dtype, ndim, shape = np.dtype(np.float32), 1, (4,)

    def __getitem__(self, key):
        raise TypeError("no array")


BAD = [
    (np.ones(3, np.float32), ValueError, r"x: expected shape \(4,\), got \(3,\)"),
    (np.ones((1, 4), np.float32), ValueError, r"x: expected shape \(4,\), got \(1, 4\)"),
    (np.ones(4), TypeError, "x: expected float32, as the parameters are, got float64"),
    (np.ones(4, np.int32), TypeError, "x: expected float32"),
    ([1, 2, 3, 4], TypeError, r"x: expected an array of shape \(4,\), got list"),
    (Series(), TypeError, r"x: expected an array of shape \(4,\), got Series"),
    (np.array([1, np.nan, 0, 0], np.float32), ValueError, r"x: expected finite .* nan at \(1,\)"),
    (np.array([1, 0, 0, -np.inf], np.float32), ValueError, r"x: expected finite .* -inf"),
]


@backends
@pytest.mark.parametrize(("x", "error", "says"), BAD)
def test_a_bad_step_is_refused_and_changes_nothing(backend, x, error, says):
    with use_backend(backend, strict=True):
        stream = TimeLSTM.create(4, 6, rng=0).stream()
        stream.step(np.ones(4, np.float32))
        before = stream.snapshot()
        with pytest.raises(error, match=says):
            stream.step(x)
        many_says = says.replace("x:", "frames:").split(",")[0].replace(r"\(4", r"\('?T'?, 4")
        with pytest.raises(error, match=many_says[:20].split("(")[0].rstrip("\\")):
            stream.step_many(x[None] if isinstance(x, np.ndarray) else x)
        np.testing.assert_equal(stream.snapshot(), before)


@backends
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("D", [1, 16, 17, 70, 131])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_anywhere_is_found(backend, batch, D, bad):
    with use_backend(backend, strict=True):
        stream = TimeRNN.create(D, 3, rng=0).stream(batch=batch)
        axes = (slice(None),) if batch > 1 else (0,)
        with np.errstate(over="ignore", invalid="ignore"):  # finite, though their sum is not
            stream.step_many(np.full((batch, 3, D), np.finfo(np.float32).max, np.float32)[axes])
        stream.reset()
        before = stream.snapshot()
        for at in range(D):
            frames = numbers(batch, 3, 2 * D)[:, :, :D]  # rows apart
            frames[-1, at % 3, at] = bad
            with pytest.raises(ValueError, match="frames: expected finite"):
                stream.step_many(frames[axes])
            with pytest.raises(ValueError, match="frames: expected finite"):
                stream.step_many(frames[axes].copy())
            with pytest.raises(ValueError, match="x: expected finite"):
                stream.step(frames[:, at % 3][axes])
        np.testing.assert_equal(stream.snapshot(), before)


@backends
def test_batches_of_another_size_are_refused(backend):
    with use_backend(backend, strict=True):
        stream = TimeRNN.create(4, 6, rng=0).stream(batch=3)
        with pytest.raises(ValueError, match=r"x: expected shape \(3, 4\), got \(2, 4\)"):
            stream.step(np.ones((2, 4), np.float32))
        with pytest.raises(ValueError, match=r"frames: expected shape \(3, T, 4\)"):
            stream.step_many(np.ones((2, 5, 4), np.float32))
        with pytest.raises(ValueError, match=r"frames: .* with no size 0"):
            stream.step_many(np.ones((3, 0, 4), np.float32))


def test_where_the_result_goes():
    stream, frames = TimeRNN.create(4, 6, rng=0).stream(), numbers(7, 4)
    out = np.full((7, 6), np.nan, np.float32)
    assert stream.step_many(frames, out) is out
    assert np.isfinite(out).all()
    square = TimeRNN.create(4, 4, rng=0).stream()
    with pytest.raises(ValueError, match=r"out: .*that shares no memory with frames"):
        square.step_many(frames, frames)
    for wrong in (np.empty((7, 5), np.float32), np.empty((7, 6)), np.empty((6, 7), "f4").T):
        with pytest.raises(
            ValueError, match=r"out: expected a writable C-contiguous array of float32"
        ):
            stream.step_many(frames, wrong)


@pytest.mark.parametrize(
    "stack",
    [
        [],
        [TimeAffine.create(3, 4, rng=0)],
        [TimeRNN.create(3, 4, rng=0), TimeDropout(0.5)],
        [TimeRNN.create(3, 4, rng=0), *[TimeAffine.create(4, 4, rng=0)] * 2],
        [TimeAffine.create(3, 3, rng=0), TimeRNN.create(3, 4, rng=0)],
        Rnnlm(5, 3, 4, rng=0),
        None,
    ],
)
def test_what_cannot_be_streamed_is_refused(stack):
    with pytest.raises(TypeError, match="layers: expected recurrent layers"):
        Stream(stack)


def test_layers_that_do_not_fit_are_refused():
    below, above = TimeRNN.create(3, 4, rng=0), TimeRNN.create(5, 4, rng=0)
    with pytest.raises(ValueError, match="layers: expected a layer of 4 inputs in float32 above"):
        Stream([below, above])


# ---- how they live


@pytest.mark.parametrize("N", [1, 2])
def test_a_step_allocates_nothing(N):
    with use_backend("numba", strict=True):
        stream = TimeLSTM.create(16, 33, rng=0).stream(batch=N)
        x = numbers(*((16,) if N == 1 else (N, 16)))
        stream.step(x)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(2000):
                stream.step(x)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 1000
        assert peak - before < 2000


def test_a_long_stream_does_not_drift():
    with use_backend("numba", strict=True):
        layer, xs = TimeLSTM.create(3, 17, rng=0), numbers(1, 20_000, 3)
        stream, want = layer.stream(), layer.forward(xs)
        for t in range(20_000):
            out = stream.step(xs[0, t])
        np.testing.assert_array_equal(out, want[0, -1])


@backends
def test_streams_of_one_layer_in_several_threads(backend):
    def follow(seed: int) -> Array:
        with use_backend(backend, strict=True):
            return steps(layer.stream(), numbers(1, 200, 5, seed=seed))

    layer = TimeLSTM.create(5, 40, rng=0)
    with use_backend(backend, strict=True), ThreadPoolExecutor(8) as pool:
        want = [layer.forward(numbers(1, 200, 5, seed=seed)) for seed in range(8)]
        for got, whole in zip(pool.map(follow, range(8)), want, strict=True):
            same(backend, got, whole)
