"""Cells of one's own, from the public package: layers, models, checkpoints."""

import copy
import pickle

import numpy as np
import pytest

import numba_rnn as rnn
from helpers import BACKENDS, central_differences, relative_error
from numba_rnn import cells, diagnostics, jobs, use_backend
from numba_rnn.functions import sigmoid, tanh
from numba_rnn.layers.base import BackwardBeforeForward
from numba_rnn.models import Rnnlm


@rnn.cell(states="h c", weights="p", bias_start={"f": 1.0})
def own(f, g, p, h, c):
    f = sigmoid(f + p * c)
    c = f * c + (1 - f) * tanh(g)
    return tanh(c), c


@pytest.fixture
def registered():
    cells.register(own)
    yield
    del cells._registry()["own"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_of_it_has_the_gradients_of_its_forward(backend):
    TimeOwn = rnn.time_layer(own)
    rng = np.random.default_rng(0)
    with use_backend(backend):
        layer = TimeOwn.create(3, 4, rng=1, dtype=np.float64)
        assert type(layer).__name__ == "TimeOwn"
        assert layer.param_names == ("Wx", "Wh", "b", "w")
        xs, dhs = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 4))

        def loss():
            return float((layer.forward(xs) * dhs).sum())

        loss()
        assert layer.c.shape == (2, 4)
        dxs = layer.backward(dhs)
        assert layer.dc.shape == (2, 4)
        for array, gradient in zip([xs, *layer.params], [dxs, *layer.grads], strict=True):
            assert relative_error(gradient.copy(), central_differences(loss, array)) < 1e-7


def test_its_constructor_takes_its_parameters():
    TimeOwn = rnn.time_layer(own)
    made = TimeOwn.create(3, 4, rng=1, stateful=True)
    same = TimeOwn(*made.params, stateful=True)
    assert same.stateful
    with pytest.raises(TypeError, match=r"TimeOwn: expected the parameters Wx, Wh, b, w of .* own"):
        TimeOwn(*made.params[:3])


@pytest.mark.parametrize("make", [rnn.Bidirectional, rnn.Stacked])
def test_it_goes_into_larger_layers(make):
    net = make.create(3, 4, layer=own, rng=0)
    hs = net.forward(np.ones((2, 5, 3), np.float32))
    assert {layer.cell for layer in net.recurrent} == {own.cell}
    assert net.backward(np.ones_like(hs)).shape == (2, 5, 3)


def test_a_language_model_of_it_is_loaded_by_its_name(registered, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 40, encoding="utf-8")
    settings = jobs.TrainConfig(
        text=str(text), cell="own", hidden=8, embed=8, epochs=1, batch=2, time=5
    )
    run = jobs.train(settings, tmp_path / "run", progress=False, log=lambda _: None)
    model, _, _ = jobs.load_model(run.checkpoint)
    assert model.recurrent[0].cell is own.cell
    del cells._registry()["own"]
    with pytest.raises(jobs.UnknownCell, match="cell 'own', which is not registered; first import"):
        jobs.load_model(run.checkpoint)
    cells.register(own)


def test_a_model_takes_the_cell_itself():
    model = Rnnlm(11, 4, 6, cell=own, rng=0)
    assert model.config["cell"] == "own"
    ids = np.arange(10).reshape(2, 5)
    assert np.isfinite(model.forward(ids, ids + 1))


def test_parameters_of_another_cell_of_that_name_are_refused():
    @rnn.cell(name="own", states="h c", weights="p")
    def changed(f, g, p, h, c):
        f = sigmoid(f + p * c)
        c = f * c + tanh(g)
        return tanh(c), c

    model, other = (Rnnlm(7, 4, 5, cell=c, rng=0) for c in (own, changed))
    before = [param.copy() for param in other.params]
    with pytest.raises(
        ValueError, match=r"^cell: .* 'own' as it is registered, got those of another"
    ):
        other.load_arrays(model.arrays())
    for param, was in zip(other.params, before, strict=True):
        np.testing.assert_array_equal(param, was)
    Rnnlm(7, 4, 5, cell=own, rng=1).load_arrays(model.arrays())
    older = {name: array for name, array in model.arrays().items() if name != "cell"}
    Rnnlm(7, 4, 5, cell=own, rng=1).load_arrays(older)


def test_a_name_stands_for_one_cell(registered):
    assert cells.get("own") is own.cell
    cells.register(own)  # again
    with pytest.raises(ValueError, match="a cell named 'lstm' is already registered"):
        cells.register(rnn.cell(name="lstm")(lambda a, h: tanh(a + h)))
    with pytest.raises(TypeError, match="cell: expected a cell, got 3"):
        cells.register(3)


def test_a_mistake_is_found_where_the_cell_is_written():
    with pytest.raises(ValueError, match="write where"):

        @rnn.cell
        def wrong(a, h):
            return a if a > 0 else h


def test_starts_are_numbers_or_ranges():
    @rnn.cell(states="h, c", bias_start={"f": (1.0, 2.0), "g": -1.0})
    def ranged(f, g, h, c):
        c = sigmoid(f) * c + tanh(g)
        return tanh(c), c

    b = rnn.time_layer(ranged).create(3, 500, rng=0).params[2]
    assert 1 <= b[:500].min() < 1.1 < 1.9 < b[:500].max() <= 2
    assert (b[500:] == -1).all()
    for wrong in ((2.0, 1.0), (1.0, 2.0, 3.0), "1"):
        with pytest.raises(ValueError, match="f: expected a finite number, or"):
            rnn.cell(name="x", bias_start={"f": wrong})(lambda f, h: tanh(f + h))


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda a, h: sigmoid * h, "got the function sigmoid: call it"),
        (lambda a, h: a + h * np.ones(3), r"a weight \(weights=...\) for one that differs"),
        (lambda a, h: None, "is a return missing"),
    ],
)
def test_mistakes_are_told_with_what_to_write(step, says):
    with pytest.raises(ValueError, match=says):
        rnn.cell(name="mistaken")(step)


# ---- copies


def pickled(x):
    return pickle.loads(pickle.dumps(x))


def layers():
    yield rnn.TimeLSTM.create(3, 4, rng=0)
    yield rnn.TimeBiGRU.create(3, 4, rng=0)
    yield rnn.time_layer(own).create(3, 4, rng=0).learn_initial_state().regularise(zoneout=0.1)
    yield rnn.Stacked.create(3, 4, layer=own, rng=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_layers_are_copied_and_pickled(registered, copied):
    xs = np.ones((2, 5, 3), np.float32)
    for layer in layers():
        other = copied(layer)
        assert type(other).__name__ == type(layer).__name__
        np.testing.assert_equal(other.forward(xs), layer.forward(xs))
        other.params[0][...] = 0
        assert layer.params[0].any()
        assert copied(own) is own
    model = copied(Rnnlm(11, 4, 4, cell="mgu", tie=True, rng=0))
    model.params[0][...] = 3
    assert (model.affine.params[0] == 3).all()  # still one array


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled])
def test_a_copy_has_nothing_of_what_forward_keeps(registered, backend, copied):
    """It lies in memory that compiled code knows by its address."""
    rng = np.random.default_rng(0)
    xs, dhs = (rng.standard_normal((2, 50, n)).astype(np.float32) for n in (3, 4))
    with use_backend(backend):
        for layer in (rnn.TimeLSTM.create(3, 4, rng=0), rnn.time_layer(own).create(3, 4, rng=0)):
            layer.forward(xs)
            want = layer.backward(dhs)
            layer.forward(xs, trace=True)
            other = copied(layer)
            assert other.trace is None
            with pytest.raises(BackwardBeforeForward):
                other.backward(dhs)
            del other
            for _ in range(2):
                rnn.TimeLSTM.create(3, 4, rng=1).forward(2 * xs)
            np.testing.assert_array_equal(layer.backward(dhs), want)


def test_a_model_is_copied_between_forward_and_backward():
    model = Rnnlm(11, 4, 4, layers=2, dropout=0.2, tie=True, rng=0)
    ids = np.arange(10).reshape(2, 5)
    model.forward(ids, ids + 1)
    other = copy.deepcopy(model)
    model.backward()
    assert other.forward(ids, ids, train_flg=False) != model.forward(ids, ids + 1, train_flg=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_stream_is_not_copied(copied):
    stream = rnn.TimeLSTM.create(3, 4, rng=0).stream()
    with pytest.raises(TypeError, match=r"restore\(stream\.snapshot\(\)\)"):
        copied(stream)


def test_a_subclass_of_a_cells_layer_is_copied_as_it_is(registered):
    class Mine(rnn.time_layer(own)):
        def forward(self, xs, **options):
            return 2 * super().forward(xs, **options)

    layer, xs = Mine.create(3, 4, rng=0), np.ones((2, 5, 3), np.float32)
    other = copy.deepcopy(layer)
    assert type(other) is Mine
    np.testing.assert_array_equal(other.forward(xs), layer.forward(xs))


def test_states_may_have_the_names_of_what_every_layer_has():
    @rnn.cell(states="h trace params type step")
    def crowded(a, h, trace, params, type, step):  # noqa: A002
        return tanh(a + trace), 0.5 * trace + a, h, params, type

    layer = rnn.time_layer(crowded).create(3, 4, rng=0, stateful=True)
    xs = np.ones((2, 5, 3), np.float32)
    hs = layer.forward(xs, trace=True)
    dxs = layer.backward(np.ones_like(hs))
    assert dxs.dtype == layer.dtype == np.float32
    assert layer.trace.states["trace"].shape == (2, 5, 4)
    assert len(layer.params) == 3
    np.testing.assert_array_equal(layer.step(xs[:, 0]), layer.h)
    assert len(layer.state) == 5


def test_a_cell_takes_the_place_of_another():
    first, second = (rnn.cell(name="again")(lambda a, h: tanh(a + h)) for _ in range(2))
    try:
        cells.register(first)
        with pytest.raises(ValueError, match="replace=True replaces it"):
            cells.register(second)
        cells.register(second, replace=True)
        assert cells.get("again") is second.cell
    finally:
        del cells._registry()["again"]


def test_a_cell_nobody_knows_is_copied_but_not_pickled():
    layer = rnn.time_layer(own).create(3, 4, rng=0)
    assert copy.deepcopy(layer).cell is layer.cell
    with pytest.raises(TypeError, match="cell 'own': a cell can only be pickled if"):
        pickle.dumps(layer)


# ---- a view inside


def reset(r, h):
    r = sigmoid(r)
    return r * h


@rnn.cell(states="h c", second_product="a", operand=reset)
def seen(f, r, a, h, c):
    f = sigmoid(f)
    candidate = tanh(a)
    c = f * c + (1 - f) * candidate
    return c / 2, c


def test_a_trace_shows_whatever_has_a_name():
    """Gates of the second product too; not the states, which it shows as states."""
    assert seen.cell.gate_names == ("f", "r", "candidate")
    layer = rnn.time_layer(seen).create(3, 4, rng=0, dtype=np.float64)
    hs = layer.forward(np.random.default_rng(0).standard_normal((2, 5, 3)), trace=True)
    trace = layer.trace
    for name, gate in (("f", "f"), ("r", "r"), ("candidate", "a")):
        activation = tanh if name == "candidate" else sigmoid
        expected = activation(trace.pre_activations[gate])
        np.testing.assert_allclose(trace.gates[name], expected, atol=1e-12)
    np.testing.assert_allclose(trace.states["c"], 2 * hs, atol=1e-12)
    assert list(diagnostics.saturation(trace)["gate"]) == ["f", "r", "candidate"]


def test_a_cell_of_nothing_but_its_state_shows_that():
    assert rnn.cell(name="x")(lambda a, h: tanh(a)).cell.gate_names == ("h",)


# ---- losses of ragged batches


@pytest.mark.parametrize("make", [rnn.TimeMSE, rnn.TimeSigmoidWithLoss])
def test_losses_leave_out_what_a_mask_leaves_out(make):
    rng, mask = np.random.default_rng(0), np.array([[True, True, False], [True, False, False]])
    xs, ts = rng.standard_normal((2, 3, 4)), rng.uniform(0, 1, (2, 3, 4))
    part, whole = make(), make()
    unknown = np.where(mask[:, :, None], ts, np.nan)
    assert part.forward(xs, unknown, mask=mask) == pytest.approx(whole.forward(xs[mask], ts[mask]))
    gradient = part.backward()
    np.testing.assert_allclose(gradient[mask], whole.backward())
    assert not gradient[~mask].any()
    assert part.forward(xs, ts, mask=np.zeros((2, 3), bool)) == 0
    assert not part.backward().any()
    np.testing.assert_equal(part.forward(xs, ts, mask=np.ones((2, 3), bool)), part.forward(xs, ts))
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 3\)"):
        part.forward(xs, ts, mask=mask[:1])
    with pytest.raises(ValueError, match=r"mask: expected xs of shape \(N, T, ...\) with a mask"):
        part.forward(xs[0, 0], ts[0, 0], mask=mask)


WEIGHTS = np.array([[2, 0, 1, 3], [0, 0, 0, 0], [1, 4, 0, 1]])


@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("make", [rnn.TimeMSE, rnn.TimeSigmoidWithLoss, rnn.TimeSoftmaxWithLoss])
def test_weights_of_steps_count_as_if_they_were_repeated(make, kind):
    rng, labels = np.random.default_rng(0), make is rnn.TimeSoftmaxWithLoss
    xs = rng.standard_normal((3, 4, 5))
    ts = rng.integers(-1, 5, (3, 4)) if labels else rng.random((3, 4, 5))
    again = [
        np.repeat(a.reshape(12, *a.shape[2:]), WEIGHTS.ravel(), axis=0)[None] for a in (xs, ts)
    ]
    loss, weights = make(), WEIGHTS.astype(kind)
    assert loss.forward(xs, ts, weights=weights) == pytest.approx(make().forward(*again), rel=1e-12)
    numeric = central_differences(lambda: make().forward(xs, ts, weights=weights), xs)
    assert relative_error(loss.backward(), numeric) < 1e-7
    assert make().forward(xs, ts, weights=0 * weights) == 0
    if not labels:
        mask = np.arange(4) < np.array([[3], [4], [2]])
        masked = make().forward(xs, ts, mask, weights=weights)
        assert masked == pytest.approx(make().forward(xs, ts, weights=weights * mask), rel=1e-12)
    for wrong in (weights[:2], -WEIGHTS, WEIGHTS * np.nan, WEIGHTS > 0):
        with pytest.raises(ValueError, match="weights: expected"):
            loss.forward(xs, ts, weights=wrong)


def test_what_a_cell_lacks_is_not_dropped():
    for name in ("weight_drop", "recurrent_dropout"):
        with pytest.raises(ValueError, match=f"{name}: the cell indrnn has no h Wh, got 0.5"):
            rnn.TimeRecurrent.create(3, 4, cell="indrnn").regularise(**{name: 0.5})
