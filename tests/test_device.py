"""Layers, losses, training and streams on a device: a strict stand-in for CuPy and a GPU.

Everything is compared with the numpy engine, whose arithmetic the stand-in shares.
"""

import gc
import itertools
import weakref
from typing import Any
from unittest import mock

import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import (
    DeviceArray,
    EmulatedEngine,
    asnumpy,
    fake_device,
    no_device,
    no_waiting,
    use_fake_device,
    xp,
)
from helpers import DTYPES, REPRESENTATIVES, Array
from numba_rnn import jobs, use_backend
from numba_rnn.models import Rnnlm
from numba_rnn.training import (
    Adam,
    ExponentialAverage,
    SparseRows,
    Trainer,
    TrainingDiverged,
    TruncatedBPTT,
    clip_grads,
    load_checkpoint,
    optimisers,
)

N, T, D, H, V = 2, 4, 3, 5, 7


@pytest.fixture(autouse=True)
def _reference():
    with use_backend("numpy"):
        yield


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def host(value: Any) -> Any:
    """Everything on a device, brought to the host."""
    if isinstance(value, DeviceArray):
        return asnumpy(value)
    if isinstance(value, (tuple, list)):
        return [host(part) for part in value]
    assert not isinstance(value, np.ndarray), "a NumPy array came from the device"
    return value


def same(got: Any, want: Any, rtol: float = 1e-12) -> None:
    """The device's numbers, alone or in lists of lists, and the host's."""
    if isinstance(got, (tuple, list)):
        for one, other in zip(got, want, strict=True):
            same(one, other, rtol)
    else:
        close(host(got), want, rtol)


def close(got: Any, want: Any, rtol: float) -> None:
    if want is None:
        assert got is None
        return
    assert np.asarray(got).dtype == np.asarray(want).dtype
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol / 10)


# ---- layers


def outcome(layer: Any, inputs: tuple[Any, ...], douts: tuple[Any, ...]) -> list[Any]:
    """The results of a layer, forward and backward."""
    out = layer.forward(*inputs)
    back = layer.backward(*douts)
    flat = [out, back]
    for grad in layer.grads:
        flat += [grad.rows, grad.values] if isinstance(grad, SparseRows) else [grad]
    return [*flat, *(getattr(layer, "state", None) or ()), *(getattr(layer, "dstate", None) or ())]


def recurrent(cell: str) -> Any:
    return lambda: rnn.TimeRecurrent.create(D, H, cell=cell, rng=1, dtype=np.float64)


def both_ways() -> Any:
    return rnn.TimeBiLSTM.create(D, H, rng=1, dtype=np.float64)


def stacked() -> Any:
    """H = 5: two layers in both directions, one past which its input goes; a projection."""
    options = {"rng": 1, "dtype": np.float64}
    back = rnn.TimeRNN.create(H, 2, **options)
    layers = [
        rnn.TimeGRU.create(D, H, **options),
        rnn.Bidirectional(rnn.TimeLSTM.create(H, 3, **options), back),
        projected(H, 6, H),
    ]
    return rnn.Stacked(layers, residual=True)


def projected(D: int = D, H: int = 6, P: int = H) -> Any:
    return rnn.TimeProjectedLSTM.create(D, H, proj_size=P, rng=1, dtype=np.float64)


class SizedPooling(rnn.TimePooling):
    """The maximum of sequences, one of which has no steps."""

    def __init__(self) -> None:
        super().__init__("max")

    def forward(self, hs: Any) -> Any:  # type: ignore[override]
        return super().forward(hs, lengths=[T - 1, 0])


XS, IDS = numbers(N, T, D), np.random.default_rng(0).integers(0, V, (N, T))
LABELS = np.where(IDS % 3 == 0, -1, IDS)
LAYERS: dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {
    **{cell: (recurrent(cell), (XS,), (numbers(N, T, H, seed=1),)) for cell in REPRESENTATIVES},
    "both ways": (both_ways, (XS,), (numbers(N, T, 2 * H, seed=1),)),
    "stacked": (stacked, (XS,), (numbers(N, T, H, seed=1),)),
    "projected": (projected, (XS,), (numbers(N, T, H, seed=1),)),
    "one step": (
        lambda: rnn.LSTM.create(D, H, rng=1, dtype=np.float64),
        (XS[:, 0], numbers(N, H), numbers(N, H, seed=2)),
        (numbers(N, H, seed=3),),
    ),
    "embedding": (
        lambda: rnn.TimeEmbedding.create(V, D, rng=1, dtype=np.float64),
        (IDS,),
        (numbers(N, T, D, seed=1),),
    ),
    "embedding, sparse": (
        lambda: rnn.TimeEmbedding.create(V, D, rng=1, dtype=np.float64, sparse=True),
        (IDS,),
        (numbers(N, T, D, seed=1),),
    ),
    "affine": (
        lambda: rnn.TimeAffine.create(D, H, rng=1, dtype=np.float64),
        (XS,),
        (numbers(N, T, H, seed=1),),
    ),
    **{
        f"pooling {name}": (lambda name=name: rnn.TimePooling(name), (XS,), (numbers(N, 1, D),))
        for name in ("last", "mean", "max")
    },
    "pooling, lengths": (SizedPooling, (XS,), (numbers(N, 1, D),)),
    "attention": (
        rnn.TimeAttention,
        (XS, numbers(N, 2, D, seed=1)),
        (numbers(N, 2, D, seed=2),),
    ),
    "softmax": (rnn.TimeSoftmaxWithLoss, (numbers(N, T, V), IDS), (1.5,)),
    "softmax, some ignored": (rnn.TimeSoftmaxWithLoss, (numbers(N, T, V), LABELS), ()),
    "softmax, all ignored": (rnn.TimeSoftmaxWithLoss, (numbers(N, T, V), IDS * 0 - 1), ()),
    "affine and softmax": (
        lambda: rnn.TimeAffineSoftmaxWithLoss.create(D, V, rng=1, dtype=np.float64),
        (XS, LABELS),
        (1.5,),
    ),
    "adaptive softmax": (
        lambda: rnn.TimeAdaptiveSoftmaxWithLoss.create(D, V, (1, 3), rng=1, dtype=np.float64),
        (XS, LABELS),
        (1.5,),
    ),
    **{
        f"sampled softmax, {name}": (
            lambda name=name: rnn.TimeSampledSoftmaxWithLoss.create(
                D, V, samples=5, objective=name, rng=1, dtype=np.float64
            ),
            (XS, LABELS),
            (1.5,),
        )
        for name in ("softmax", "nce")
    },
    "sigmoid": (rnn.TimeSigmoidWithLoss, (XS, (XS + 1) / 2), (0.5,)),
    "sigmoid, bool": (rnn.TimeSigmoidWithLoss, (XS, XS > 0), ()),
    "squares": (rnn.TimeMSE, (XS, XS * 0.5), ()),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


@each_layer
@pytest.mark.parametrize("given", ["on the host", "on the device"])
def test_layers_compute_the_same(name, given):
    make, inputs, douts = LAYERS[name]
    want = outcome(make(), inputs, douts)
    if given == "on the device":
        inputs, douts = (
            tuple(xp.asarray(a) if isinstance(a, np.ndarray) else a for a in some)
            for some in (inputs, douts)
        )
    with use_fake_device():
        same(outcome(make(), inputs, douts), want)


@each_layer
def test_layers_do_not_wait_for_the_device(name):
    make, inputs, douts = LAYERS[name]
    with use_fake_device(), no_waiting():
        outcome(make(), inputs, douts)


@each_layer
def test_inputs_on_a_device_lead_there_whatever_is_in_force(name):
    make, inputs, douts = LAYERS[name]
    want = outcome(make(), inputs, douts)
    with fake_device():
        layer = make().to("cuda")
        on_device = tuple(map(xp.asarray, inputs))
        same(outcome(layer, on_device, douts), want)


@pytest.mark.parametrize("how", ["lengths", "mask"])
@pytest.mark.parametrize("make", [both_ways, stacked, projected, recurrent("gru")])
def test_sequences_as_they_come(make, how):
    """Lengths, masks, resets, learnt starts and regularisers, of several layers too."""
    steps = {
        "lengths": np.array([T, 1]),
        "mask": np.array([[True, False, True, True], [False] * T]),
        "resets": np.array([[False, True, False, True]] * N),
    }

    def run(where: Any) -> list[Any]:
        layer = (
            make()
            .learn_initial_state()
            .regularise(
                zoneout=0.2, recurrent_dropout=0.3, input_dropout=0.3, weight_drop=0.3, rng=2
            )
        )
        for k, param in enumerate(layer.params):
            param += where(numbers(*param.shape, seed=k))
        chosen = {name: where(steps[name]) for name in (how, "resets")}
        hs = layer.forward(where(XS), **chosen)
        dhs = numbers(*hs.shape, seed=1)
        dxs = layer.backward(where(dhs))
        return [hs, dxs, *layer.grads, *layer.state, *layer.dstate]

    want = run(np.asarray)
    with use_fake_device():
        same(run(xp.asarray), want)


@pytest.mark.parametrize(
    "name", [*REPRESENTATIVES, "both ways", "stacked", "projected", "one step"]
)
def test_layers_run_on_the_cuda_engine(name):
    make, inputs, douts = LAYERS[name]
    want = outcome(make(), inputs, douts)
    with use_fake_device(EmulatedEngine), no_waiting():
        got = outcome(make(), inputs, douts)
    same(got, want)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru_reset_after"])
def test_training_runs_on_persistent_kernels(cell):
    def losses() -> list[float]:
        model = Rnnlm(V, 6, 10, cell=cell, dropout=0.0, rng=1)
        optimiser, found = Adam(lr=0.05), []
        for k in range(3):
            found.append(model.forward((IDS + k) % V, (IDS + k + 1) % V))
            model.backward()
            optimiser.update(model.params, model.grads)
        return list(map(float, found))

    want = losses()
    with use_fake_device(lambda: EmulatedEngine(multiprocessors=3)) as engine:
        np.testing.assert_allclose(losses(), want, rtol=1e-5)
    assert set(engine.gpu.launched) == {
        f"{cell}_persistent_forward", f"{cell}_persistent_backward",
        "adam_1", "adam_4", "add_rows_1",
    }  # fmt: skip
    assert want[2] < want[0]


def test_parameters_start_from_the_same_numbers():
    with use_fake_device():
        made = rnn.TimeGRU.create(D, H, rng=3)
        assert all(isinstance(array, DeviceArray) for array in (*made.params, *made.grads))
    same(made.params, rnn.TimeGRU.create(D, H, rng=3).params, 0)


@pytest.mark.parametrize("name", [name for name in LAYERS if name in REPRESENTATIVES])
def test_a_stateful_layer_moves_with_its_state(name):
    blocks = numbers(3, N, T, D)
    layer = rnn.TimeRecurrent.create(D, H, cell=name, rng=1, dtype=np.float64, stateful=True)
    want = [layer.forward(xs) for xs in blocks]
    layer.reset_state()
    with fake_device():
        first = layer.forward(blocks[0])
        layer.backward(first)
        assert layer.to("cuda") is layer
        with pytest.raises(RuntimeError, match="call forward first"):
            layer.backward(first)
        assert isinstance(layer.dh, DeviceArray)
        second = layer.forward(blocks[1])
        layer.to("cpu")
        third = layer.forward(blocks[2])
    close(first, want[0], 0)
    same(second, want[1])
    close(third, want[2], 1e-12)
    assert isinstance(layer.params[0], np.ndarray)
    assert isinstance(layer.grads[0], np.ndarray)


def test_steps_and_given_states_are_taken_from_the_host():
    xs, h, c = numbers(N, T, D), numbers(N, H), numbers(N, H, seed=1)
    layer = rnn.TimeLSTM.create(D, H, rng=1, dtype=np.float64, stateful=True)

    def run() -> list[Any]:
        layer.set_state(h, c)
        return [layer.step(xs[:, t]) for t in range(T)]

    want = run()
    with fake_device():
        layer.to("cuda")
        same(run(), want)


def test_a_stack_moves_with_its_states():
    want, moved = (rnn.Stacked(stacked().layers, dropout=0.0) for _ in range(2))
    first, second = numbers(2, N, T, D)
    for layer in (want, moved):
        layer.set_state(*(tuple(s + 0.1 for s in own) for own in zeros_of(layer)))
    expected = want.forward(first), want.state
    with fake_device():
        assert moved.to("cuda") is moved
        assert all(isinstance(a, DeviceArray) for a in (*moved.params, *moved.grads))
        same(moved.forward(first), expected[0])
        same(moved.state, expected[1])
        moved.set_state(*moved.state)
        want.set_state(*expected[1])
        moved.to("cpu")
        close(moved.forward(second), want.forward(second), 1e-12)


def zeros_of(layer: Any) -> list[Any]:
    layer.forward(numbers(N, T, D) * 0)
    return [tuple(0 * s for s in own) for own in layer.state]


def test_both_directions_move():
    layer = both_ways()
    with fake_device():
        layer.to("cuda")
        arrays = (*layer.forward_layer.params, *layer.backward_layer.params)
        assert all(a is b for a, b in zip(layer.params, arrays, strict=True))
        assert all(isinstance(a, DeviceArray) for a in (*layer.params, *layer.grads))
        layer.to("numpy")
    assert all(isinstance(a, np.ndarray) for a in (*layer.params, *layer.grads))
    assert layer.params[0] is layer.forward_layer.params[0]
    assert layer.grads[-1] is layer.backward_layer.grads[-1]


class Foreign:
    """An array of another library, on the device."""

    __cuda_array_interface__ = None

    def __init__(self, array: Array, kind: int = 2) -> None:  # 2: a GPU
        self.array, self.ndim, self.shape, self.kind = array, array.ndim, array.shape, kind

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.kind, 0


@each_layer
def test_arrays_of_other_libraries_come_in_without_a_copy(name):
    make, inputs, douts = LAYERS[name]
    if inputs[-1].dtype == bool and np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("this NumPy exports no bool")
    want = outcome(make(), inputs, douts)
    with fake_device():
        layer = make().to("cuda")
        same(outcome(layer, tuple(map(Foreign, inputs)), douts), want)


def test_dlpack_shares_memory():
    xs = numbers(N, T, D)
    with use_fake_device():
        layer = rnn.TimeAffine.create(D, H, dtype=np.float64)
        layer.forward(Foreign(xs))
        _, kept = layer._tape
    assert np.shares_memory(kept._numbers, xs)


class OnHost(Foreign):
    """An array of another library, in host memory."""

    __cuda_array_interface__ = property()  # it has none

    def __init__(self, array: Array) -> None:
        super().__init__(array, kind=1)


def test_arrays_of_other_libraries_in_host_memory_are_copied():
    xs = numbers(N, T, D)
    with use_fake_device():
        layer = rnn.TimeAffine.create(D, H, dtype=np.float64)
        same(layer.forward(OnHost(xs)), host(layer.forward(xs)))


# ---- dropout


def test_dropout_depends_on_the_layers_generator_alone():
    ones = np.ones((50, 40), np.float32)
    with use_fake_device():
        layer, again = (rnn.TimeDropout(0.25, rng=5) for _ in range(2))
        with no_waiting():
            out = layer.forward(ones)
            back = layer.backward(ones)
            masks = [out, layer.forward(ones), again.forward(ones), again.forward(ones)]
    first, second, third, fourth = host(masks)
    np.testing.assert_array_equal(host(back), first)
    np.testing.assert_array_equal(first, third)
    np.testing.assert_array_equal(second, fourth)
    assert (first != second).any()
    assert first.dtype == np.float32
    assert set(np.unique(first)) == {0, np.float32(1 / 0.75)}
    assert 0.7 < (first > 0).mean() < 0.8


# ---- errors


def test_a_layer_on_the_host_refuses_what_is_on_a_device():
    with fake_device():
        for make, inputs in (
            (lambda: rnn.TimeLSTM.create(D, H, dtype=np.float64), XS),
            (lambda: rnn.TimeAffine.create(D, H, dtype=np.float64), XS),
            (lambda: rnn.TimeEmbedding.create(V, D), IDS),
            (both_ways, XS),
        ):
            with pytest.raises(TypeError, match=r'on a device; layer.to\("cuda"\).*asnumpy\('):
                make().forward(xp.asarray(inputs))
        layer = rnn.TimeLSTM.create(D, H, dtype=np.float64)
        layer.forward(XS)
        with pytest.raises(TypeError, match=r"^dhs: .* on a device"):
            layer.backward(xp.zeros((N, T, H), np.float64))
        with pytest.raises(TypeError, match=r"^Wh: .* on a device"):
            rnn.TimeLSTM(layer.params[0], xp.asarray(layer.params[1]), layer.params[2])


def test_a_layer_on_the_host_does_not_run_while_cuda_is_in_force():
    layers = [rnn.TimeLSTM.create(D, H), rnn.TimeAffine.create(D, H)]
    with use_fake_device():
        for layer in layers:
            with pytest.raises(TypeError, match=r'current engine is cuda: layer\.to\("cuda"\)'):
                layer.forward(XS.astype(np.float32))
            layer.to("cuda").forward(XS.astype(np.float32))


def test_wrong_arguments_are_refused_on_a_device_too():
    with use_fake_device():
        layer = rnn.TimeLSTM.create(D, H, dtype=np.float64)
        for where in (np.asarray, xp.asarray):
            with pytest.raises(ValueError, match=r"^xs: expected shape \(N, T, 3\), got \(2, 4, 1"):
                layer.forward(where(XS[:, :, :1]))
            with pytest.raises(TypeError, match=r"^xs: expected float64.*got float32"):
                layer.forward(where(XS.astype(np.float32)))
            with pytest.raises(ValueError, match=r"^ids: expected numbers from 0 to 5, got 6 at"):
                rnn.TimeEmbedding.create(6, D).forward(where(np.array([[0, 6]])))
            with pytest.raises(ValueError, match=r"^ts: .* 0 to 6 or -1, got -2 at \(0, 0\)"):
                rnn.TimeSoftmaxWithLoss().forward(where(numbers(1, 1, V)), where(np.array([[-2]])))
            with pytest.raises(ValueError, match=r"^ts: expected finite numbers, got nan at \(0,"):
                rnn.TimeMSE().forward(where(XS), where(XS * np.nan))
            with pytest.raises(ValueError, match=r"^ts: expected numbers from 0 to 1, got -"):
                rnn.TimeSigmoidWithLoss().forward(where(XS), where(XS))
        with pytest.raises(TypeError, match=r"^xs: expected an array .* got list"):
            layer.forward([[[0.0]]])
        with pytest.raises(ValueError, match="to: expected one of cpu, numpy, numba, cuda, got"):
            layer.to("gpu")


def test_without_a_gpu_nothing_moves_there():
    layer = rnn.TimeLSTM.create(D, H)
    with no_device():
        with pytest.raises(rnn.BackendError, match=r"^to: cuda cannot run here: no GPU answers"):
            layer.to("cuda")
        assert layer.to("cpu") is layer
        with pytest.raises(rnn.BackendError, match=r"^an array on a device needs .* no GPU ans"):
            rnn.TimeLSTM(*map(xp.asarray, layer.params))
    for wrong in ([1.0], 1.0, None):
        with pytest.raises(TypeError, match="expected an array of NumPy or of the cuda engine"):
            clip_grads([wrong], 1.0)


# ---- optimisers and clipping


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", optimisers.NAMES)
def test_optimisers_compute_the_same_and_move(name, dtype):
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 5), (7,))]
    grads = [[rng.standard_normal(p.shape).astype(dtype) for p in start] for _ in range(9)]
    want, params = ([p.copy() for p in start] for _ in range(2))
    whole, moving = optimisers.create(name), optimisers.create(name)
    for some in grads:
        whole.update(want, some)
    with fake_device():
        for k, some in enumerate(grads):
            if k == 3:
                params = list(map(xp.asarray, params))
            if k == 6:
                params = list(map(asnumpy, params))
            here = xp.asarray if 3 <= k < 6 else np.asarray
            moving.update(params, list(map(here, some)))
            numbers, arrays = moving.state()
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
            moving = optimisers.create(name, lr=77.0)
            moving.restore(numbers, arrays)
    for one, other in zip(params, want, strict=True):
        close(one, other, 1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("name", optimisers.NAMES)
def test_a_refused_update_on_a_device_changes_nothing(name):
    first, second = numbers(3, 5), numbers(7)
    spoilt = second[:-1], second.astype(int), second * np.nan, second.tolist()
    with fake_device():
        optimiser, params = optimisers.create(name), [xp.asarray(first), xp.asarray(second)]
        for wrong in spoilt:
            with pytest.raises((TypeError, ValueError), match=r"grads\[1\]: expected"):
                optimiser.update(params, [xp.asarray(first), wrong])
        assert optimiser.updates == 0
        for param, start in zip(params, (first, second), strict=True):
            np.testing.assert_array_equal(asnumpy(param), start)


def test_updates_are_in_place_in_any_memory_order():
    for make, order in itertools.product((np.array, xp.array), "CF"):
        with fake_device():
            param = make(numbers(300, 200), order=order)
            optimiser, alias = Adam(), param
            optimiser.update([param], [make(numbers(300, 200, seed=1), order="C")])
            optimiser.update([param], [make(numbers(300, 200, seed=1), order="F")])
        assert alias is param
        got = param if isinstance(param, np.ndarray) else asnumpy(param)
        reference = numbers(300, 200)
        Adam().update([reference], [numbers(300, 200, seed=1)])
        assert np.abs(got - reference).max() < 0.002
        assert (got != numbers(300, 200)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.01, 0.0, 1.0, 1e25, 1e-30, 1e-300, 1e300, np.inf, np.nan])
def test_clipping_computes_the_same(scale, dtype):
    with np.errstate(over="ignore"):
        grads = [(scale * numbers(*s, seed=2)).astype(dtype) for s in ((3, 4), (5,))]
    with fake_device(), np.errstate(invalid="ignore"):
        on_device = list(map(xp.asarray, grads))
        with no_waiting():
            norm = clip_grads(on_device, 0.25)
        want = clip_grads(grads, 0.25)
        assert isinstance(norm, DeviceArray)
        np.testing.assert_allclose(float(norm), want, rtol=1e-6)
        for one, other in zip(on_device, grads, strict=True):
            np.testing.assert_allclose(asnumpy(one), other, rtol=1e-6)
    assert clip_grads([], 1.0) == 0.0


# ---- the language model


CORPUS = np.random.default_rng(0).integers(0, 11, 601)
VALID = np.random.default_rng(1).integers(0, 11, 101)


def trainer(folder: Any = None, dropout: float = 0.0, tie: bool = False, **options: Any) -> Trainer:
    model = Rnnlm(11, 6, 6, layers=2, dropout=dropout, tie=tie, rng=0, dtype="float64")
    blocks = TruncatedBPTT(CORPUS, 2, 3)  # 100 blocks: looked at every 5
    options = {"valid": VALID, "eval_batch": 2, "eval_time": 10, "progress": False, **options}
    return Trainer(model, Adam(0.01), blocks, folder=folder, **options)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_training_runs_the_same_curve(tie, max_norm):
    want = trainer(tie=tie, max_norm=max_norm).fit(2)
    with use_fake_device():
        got = trainer(tie=tie, max_norm=max_norm).fit(2)
    np.testing.assert_allclose(got.train, want.train, rtol=1e-9)
    assert len(got.epochs) == len(want.epochs) == 2
    for one, other in zip(got.epochs, want.epochs, strict=True):
        for key in one:
            assert isinstance(one[key], (int, float))
            np.testing.assert_allclose(one[key], other[key], rtol=1e-9)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("several", [1, 2])
def test_an_iteration_does_not_wait_for_the_device(max_norm, several):
    """Nor does it with an average of the weights, and with several batches."""
    with use_fake_device():
        average = ExponentialAverage() if several > 1 else None
        running = trainer(dropout=0.3, max_norm=max_norm, average=average)
        for block in itertools.islice(running.blocks, 4):
            with no_waiting():
                running._iterate([block] * several)
        with pytest.raises(AssertionError, match="waited"), no_waiting():
            running._iterate([block] * several)  # the fifth: looked at


@pytest.mark.parametrize("tie", [False, True])
def test_a_model_moves_there_and_back(tie):
    ids = CORPUS[:20].reshape(2, 10)
    model, stays = (Rnnlm(11, 6, 6, tie=tie, rng=0, dtype="float64") for _ in range(2))
    adam, adam_stays = Adam(), Adam()
    with fake_device():
        for k, place in enumerate(("cpu", "cuda", "cuda", "cpu", "cuda")):
            assert model.to(place) is model
            found = DeviceArray if place == "cuda" else np.ndarray
            assert all(isinstance(a, found) for a in (*model.params, *model.grads))
            losses = [float(m.forward(ids, ids)) for m in (model, stays)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-12)
            for m, optimiser in ((model, adam), (stays, adam_stays)):
                m.backward()
                optimiser.update(m.params, m.grads)
            if tie:
                model.embedding.params[0][2] = k
                stays.embedding.params[0][2] = k
                assert float(model.affine.params[0][1, 2]) == k
        one, other = model.arrays(), stays.arrays()
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key], 1e-12)
        assert model.perplexity(CORPUS) == pytest.approx(stays.perplexity(CORPUS), rel=1e-12)
        np.testing.assert_array_equal(
            model.generate([1, 2], 20, rng=3), stays.generate([1, 2], 20, rng=3)
        )


def test_checkpoints_go_from_place_to_place(tmp_path):
    first = trainer(tmp_path, max_norm=0.5)
    first.fit(1)
    want, want_content = load_checkpoint(tmp_path / "last.safetensors")
    with use_fake_device():
        second = trainer(max_norm=0.5)
        second.restore(tmp_path / "last.safetensors")
        assert isinstance(second.model.params[0], DeviceArray)
        second.save(tmp_path / "device.safetensors")
        got, content = load_checkpoint(tmp_path / "device.safetensors")
        second.fit(2)
        second.save(tmp_path / "later.safetensors")
    assert content == want_content
    assert got.keys() == want.keys()
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])
    third = trainer(max_norm=0.5)
    third.restore(tmp_path / "later.safetensors")
    third.fit(3)
    first.fit(3)
    np.testing.assert_allclose(third.history.train, first.history.train, rtol=1e-9)


def test_a_stopped_run_resumes_bit_for_bit_on_a_device(tmp_path):
    with use_fake_device():
        whole = trainer(tmp_path / "whole", dropout=0.3, max_norm=0.5, save_every=7)
        whole.fit(2)
        for stop_at in (1, 7, 103):
            first = trainer(tmp_path / str(stop_at), dropout=0.3, max_norm=0.5, save_every=7)
            iterate = first._iterate

            def stopping(batches, first=first, iterate=iterate, stop_at=stop_at):
                iterate(batches)
                first._stop = first.iteration == stop_at

            first._iterate = stopping
            first.fit(2)
            assert first.stopped
            second = trainer(tmp_path / str(stop_at), dropout=0.3, max_norm=0.5, save_every=7)
            second.restore(tmp_path / str(stop_at) / "last.safetensors")
            second.fit(2)
            for file in ("last.safetensors", "best.safetensors"):
                made = (tmp_path / str(stop_at) / file).read_bytes()
                assert made == (tmp_path / "whole" / file).read_bytes()


def test_divergence_on_a_device_is_seen_and_not_saved(tmp_path):
    with use_fake_device():
        running = trainer(tmp_path, max_norm=0.5)
        running.fit(1)
        good = (tmp_path / "last.safetensors").read_bytes()
        running.model.params[-1][...] = np.inf
        with pytest.raises(TrainingDiverged, match=r"iterations 101 to 105: sum of losses nan"):
            running.fit(2)
        running._recent_loss = xp.asarray(np.nan)
        with pytest.raises(TrainingDiverged, match="sum of losses nan"):
            running._save("last")
    assert (tmp_path / "last.safetensors").read_bytes() == good


@pytest.mark.parametrize("in_force", [use_fake_device, lambda: use_backend("numpy")])
def test_out_of_memory_says_the_sizes_and_frees_what_it_can(in_force):
    with in_force() as engine:
        running = trainer()
        held = []

        def fail(self, *args):
            block = xp.zeros((1000,), np.float64)
            held.append(weakref.ref(block))
            raise MemoryError("no more room")

        with (
            mock.patch.object(type(engine), "backward", fail),
            pytest.raises(MemoryError) as caught,
        ):
            running.fit(1)
        message = str(caught.value)
        for part in ("batch 2", "time 3", "parameters", "--batch, --time, --hidden", "no more"):
            assert part in message
        gc.collect()
        assert held[0]() is None  # while the error is still there
        for part in running.model._parts:
            with pytest.raises(RuntimeError, match="call forward first"):
                part._saved()
        running.fit(1)
        assert len(running.history.epochs) == 1


# ---- jobs


def small(tmp_path: Any) -> jobs.TrainConfig:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    return jobs.TrainConfig(
        text=str(text), test=str(text), embed=8, hidden=12, batch=4, time=8, epochs=2, layers=2
    )


def test_a_job_trains_on_a_device_and_its_checkpoint_serves_anywhere(tmp_path):
    with use_fake_device():
        done = jobs.train(small(tmp_path), tmp_path / "run", progress=False, log=str)
        assert isinstance(done.model.params[0], DeviceArray)
        made = jobs.sample(done.model, done.vocabulary, length=20, seed=1)
    model, vocabulary, _ = jobs.load_model(done.checkpoint)
    assert jobs.sample(model, vocabulary, length=20, seed=1) == made
    corpus = vocabulary.encode((tmp_path / "text.txt").read_text())
    found = model.perplexity(corpus, **jobs.evaluation_sizes(corpus))
    assert found == pytest.approx(done.test_perplexity, rel=1e-5)


def test_a_model_that_does_not_fit_says_its_sizes(tmp_path):
    with (
        mock.patch.object(jobs, "Rnnlm", side_effect=MemoryError("no more room")),
        pytest.raises(MemoryError, match=r"embed 8, hidden 12, 2 layers; .*--hidden.*no more"),
    ):
        jobs.train(small(tmp_path), tmp_path / "run", progress=False, log=str)


# ---- streams


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("given", [np.asarray, xp.asarray])
def test_streams(batch, given):
    stack = [
        rnn.TimeLSTM.create(D, H, rng=1),
        rnn.TimeGRU.create(H, 4, rng=2),
        rnn.TimeAffine.create(4, 2, rng=3),
    ]
    frames = numbers(batch, T, D, dtype=np.float32)
    xs = frames[0] if batch == 1 else frames
    x = frames[0, 0] if batch == 1 else frames[:, 0]
    stream = rnn.Stream(stack, batch)
    want = [stream.step(x).copy(), stream.step_many(xs)]
    with fake_device():
        stream = rnn.Stream([layer.to("cuda") for layer in stack], batch)
        first = stream.step(given(x))
        assert isinstance(first, DeviceArray)
        kept, before = first.copy(), stream.snapshot()
        out = xp.empty(want[1].shape, np.float32)
        same([kept, stream.step_many(given(xs))], want, 1e-6)
        stream.restore(before)
        stream.restore(tuple(map(asnumpy, before)))
        assert stream.step_many(given(xs), out) is out
        same(out, want[1], 1e-6)
        stream.reset()
        stream.refresh()
        same(stream.step(given(x)), want[0], 1e-6)
        stream.reset([0])
        stream.reset(np.ones(batch, bool))
        same(stream.step(given(x)), want[0], 1e-6)
        for wrong, says in (
            (x * np.nan, "^x: expected finite numbers, got nan at"),
            (x[..., :1], "^x: expected shape"),
        ):
            with pytest.raises(ValueError, match=says):
                stream.step(given(wrong))
        with pytest.raises(ValueError, match=r"^out: expected"):
            stream.step_many(given(xs), np.empty(want[1].shape, np.float32))
        with pytest.raises(TypeError, match=r"^x: expected an array"):
            stream.step([0.0] * D)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_a_stream_on_the_host_refuses_what_is_on_a_device(engine):
    with use_backend(engine), fake_device():
        stream = rnn.TimeLSTM.create(D, H, rng=1).stream()
        before = stream.snapshot()
        with pytest.raises(TypeError, match=r"^x: .* on a device; layer\.to"):
            stream.step(xp.zeros((D,), np.float32))
        with pytest.raises(TypeError, match=r"^frames: .* on a device; layer\.to"):
            stream.step_many(xp.zeros((T, D), np.float32))
        np.testing.assert_array_equal(stream.snapshot()[0], before[0])


# ---- the stand-in itself


def test_the_stand_in_is_strict():
    array = xp.zeros((3,), np.float32)
    host_array = np.zeros(3, np.float32)
    attempts = [
        lambda: np.asarray(array),
        lambda: array + host_array,
        lambda: host_array + array,
        lambda: host_array.__iadd__(array),
        lambda: array.__setitem__(slice(None), host_array),
        lambda: host_array.__setitem__(slice(None), array),
        lambda: array[np.array([0, 1])],
        lambda: xp.stack([host_array]),
        lambda: xp.where(array > 0, host_array, 0),
        lambda: np.exp(array, out=host_array),
        lambda: np.add.at(array, [0], 1),
        lambda: host_array @ xp.zeros((3, 3), np.float32),
        lambda: np.add(array, 1, where=False),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError):
            attempt()
    with pytest.raises(AttributeError):
        np.median(array)
    assert np.isnan(asnumpy(xp.empty((2,), np.float32))).all()
    with pytest.raises(AssertionError, match="waited"), no_waiting():
        float(array[0])
    with pytest.raises(AssertionError, match="waited"), no_waiting():
        array[array > 0]
