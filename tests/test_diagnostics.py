"""The view inside: known answers, and the structure of the pictures."""

import io
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose

import numba_rnn as rnn
from fake_device import use_fake_device
from helpers import CALLING_ALL, central_differences, run_python
from numba_rnn import diagnostics as d
from numba_rnn import jobs
from numba_rnn.diagnostics.metrics import thresholds
from numba_rnn.models import Rnnlm
from numba_rnn.text import Vocabulary

N, T, D, H = 3, 9, 4, 5
LAYERS = {
    "lstm": (rnn.TimeLSTM, {}),
    "gru": (rnn.TimeGRU, {}),
    "gru_reset_after": (rnn.TimeGRU, {"reset_after": True}),
    "rnn": (rnn.TimeRNN, {}),
    "rnn_relu": (rnn.TimeRNN, {"activation": "relu"}),
}


def traced(kind="lstm", *, at=None, **particular):
    """A layer that ran forward with a trace and backward from the last step, or from ``at``."""
    make, options = LAYERS[kind]
    layer = make.create(D, H, rng=0, dtype=np.float64, **options)
    rng = np.random.default_rng(1)
    hs = layer.forward(rng.standard_normal((N, T, D)), trace=True, **particular)
    dhs = np.zeros_like(hs)
    last = np.full(N, T - 1) if at is None else np.asarray(at)
    dhs[np.arange(N), last] = rng.standard_normal((N, H))
    layer.backward(dhs)
    return layer


def linear_rnn(Wh, steps=21, rows=2, **particular):
    """A tanh RNN that stays at 0, where it is linear, with a loss of its last step."""
    H = len(Wh)
    layer = rnn.TimeRNN(np.eye(H), np.array(Wh, float), np.zeros(H))
    hs = layer.forward(np.zeros((rows, steps, H)), trace=True, **particular)
    return layer, np.zeros_like(hs)


def rotation(H, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((H, H)))[0]


def columns(table):
    assert len({len(column) for column in table.values()}) == 1
    assert all(isinstance(column, np.ndarray) and column.ndim == 1 for column in table.values())
    return len(next(iter(table.values())))


# ---- gradients


@pytest.mark.parametrize("rate", [0.5, 1.0, 1.25])
def test_a_linear_rnn_shrinks_gradients_by_its_factor(rate):
    layer, dhs = linear_rnn(rate * rotation(4))
    dhs[:, -1] = [[3, 0, 0, 4], [0, 0, 0, 1]]
    layer.backward(dhs)
    table = d.gradient_flow(layer.trace, "h")
    assert columns(table) == 21
    assert_allclose(table["lag"], np.arange(21))
    assert_allclose(table["low"], rate ** np.arange(21), rtol=1e-12)
    assert_allclose(table["high"], 5 * rate ** np.arange(21), rtol=1e-12)
    assert_allclose(table["mean"], 3 * rate ** np.arange(21), rtol=1e-12)
    assert d.gradient_growth(layer.trace) == pytest.approx(rate, rel=1e-12)


def test_lags_count_from_each_rows_own_last_step():
    lengths = np.array([9, 4, 6])
    layer = traced("rnn", at=lengths - 1, lengths=lengths)
    table = d.gradient_flow(layer.trace, "h")
    assert table["rows"].tolist() == [3, 3, 3, 3, 2, 2, 1, 1, 1]
    norms = np.linalg.norm(layer.trace.gradients["h"], axis=2)
    for lag in range(9):
        rows = np.flatnonzero(lengths > lag)
        assert_allclose(table["mean"][lag], norms[rows, lengths[rows] - 1 - lag].mean())


def test_growth_compares_steps_of_the_same_row():
    """Rows that end early do not look like a change of the gradient."""
    layer, dhs = linear_rnn(0.5 * rotation(3), steps=8, lengths=[8, 3])
    dhs[0, 7], dhs[1, 2] = 1e-6, 1e6
    layer.backward(dhs)
    assert d.gradient_growth(layer.trace) == pytest.approx(0.5, rel=1e-9)


def test_steps_left_out_in_between_are_no_lag():
    mask = np.ones((1, 7), bool)
    mask[0, [2, 3, 6]] = False
    layer, dhs = linear_rnn(0.5 * rotation(3), steps=7, rows=1, mask=mask)
    dhs[0, 5] = [1, 0, 0]
    layer.backward(dhs)
    assert_allclose(d.gradient_flow(layer.trace, "h")["mean"], 0.5 ** np.arange(4), rtol=1e-12)


def test_the_last_step_is_the_last_that_the_loss_looks_at():
    layer, dhs = linear_rnn(0.5 * rotation(3), steps=7, rows=3)
    dhs[0, 4], dhs[1, 2] = [0, 1, 0], [0, 2, 0]  # and nothing of row 2
    layer.backward(dhs)
    table = d.gradient_flow(layer.trace, "h")
    assert table["rows"].tolist() == [2, 2, 2, 1, 1]
    assert_allclose(table["high"], [2, 1, 0.5, 0.125, 0.0625], rtol=1e-12)


def test_what_lies_before_a_reset_is_another_sequence():
    resets = np.zeros((2, 8), bool)
    resets[0, [2, 5]] = True
    layer, dhs = linear_rnn(0.5 * rotation(3), steps=8, resets=resets)
    dhs[:, [4, 7]] = 1
    layer.backward(dhs)
    assert d.gradient_flow(layer.trace, "h")["rows"].tolist() == [2, 2, 2, 1, 1, 1, 1, 1]
    assert layer.trace.resets[0, 5]


def test_a_gradient_from_beyond_the_block_does_not_move_the_last_step():
    """It arrives after the end of a row, in steps that the mask left out, one of them reset."""
    resets = np.zeros((2, 8), bool)
    resets[0, 6] = True
    layer, dhs = linear_rnn(0.5 * rotation(3), steps=8, lengths=[4, 8], resets=resets)
    dhs[0, 3] = 1
    layer.backward(dhs, np.ones((2, 3)))
    table = d.gradient_flow(layer.trace, "h")
    assert table["rows"].tolist() == [2, 2, 2, 2, 1, 1, 1, 1]
    assert_allclose(table["mean"], 0.5 ** np.arange(8) * 3**0.5, rtol=1e-12)


def test_all_states_by_default():
    table = d.gradient_flow(traced().trace)
    assert columns(table) == 2 * T
    assert table["state"].tolist() == ["h"] * T + ["c"] * T
    assert table["mean"][T] == 0  # the last c acts through the last h
    assert (np.delete(table["mean"], T) > 0).all()


def test_the_traces_gradients_are_central_differences():
    """By h and c after a step in the middle: what the loss makes of a nudge there."""
    layer = traced()
    rng, cut = np.random.default_rng(1), 4
    xs = rng.standard_normal((N, T, D))
    dhs = np.zeros((N, T, H))
    dhs[:, -1] = rng.standard_normal((N, H))
    rest = rnn.TimeLSTM(*layer.params)
    state = [layer.trace.states[name][:, cut].copy() for name in ("h", "c")]

    def loss():
        rest.set_state(*state)
        return float((rest.forward(xs[:, cut + 1 :])[:, -1] * dhs[:, -1]).sum())

    for name, value in zip(("h", "c"), state, strict=True):
        wanted = central_differences(loss, value)
        assert_allclose(layer.trace.gradients[name][:, cut], wanted, rtol=1e-6, atol=1e-9)


def test_no_gradient_at_all():
    layer, dhs = linear_rnn(rotation(3))
    layer.backward(dhs)
    assert columns(d.gradient_flow(layer.trace)) == 0
    assert np.isnan(d.gradient_growth(layer.trace))
    assert "the loss looks at no step" in d.summary(layer)
    assert "none arrives" in texts(d.plot_gradient_flow(layer.trace))


def test_tiny_and_huge_gradients_have_norms():
    for rate in (1e-20, 1e20):
        layer, dhs = linear_rnn(rate * np.eye(3))
        dhs[:, -1] = 1
        with np.errstate(all="ignore"):
            layer.backward(dhs)
        table = d.gradient_flow(layer.trace)
        assert table["mean"][-1] == 0 if rate < 1 else not np.isfinite(table["mean"][-1])
        assert d.gradient_growth(layer.trace) == pytest.approx(rate, rel=1e-9)
        drawn(d.plot_gradient_flow, layer.trace)


# ---- gates


@pytest.mark.parametrize(
    ("cell", "gate", "ends"),
    [
        ("lstm", "f", (0, 1)),
        ("lstm", "g", (-1, 1)),
        ("gru", "z", (0, 1)),
        ("gru", "h", (-1, 1)),
        ("gru_reset_after", "h", (-1, 1)),  # a tanh, but not of its pre-activation alone
        ("gru_reset_after", "h_recurrent", None),
        ("rnn", "h", (-1, 1)),
        ("rnn_relu", "h", None),
        (CALLING_ALL, "a", None),
    ],
)
def test_the_range_of_a_gate(cell, gate, ends):
    assert d.value_range(cell, gate) == ends


def test_the_range_of_a_gate_scaled_and_shifted():
    def forward(gates, state):
        a, b, c = gates
        (h,) = state
        wide, hard = 3 * rnn.kernels.functions.tanh(a), rnn.kernels.functions.hard_sigmoid(b)
        return (h + c,), (wide, hard + 1, wide * hard, h)

    cell = rnn.cells.Cell(
        name="scaled", gates=("a", "b", "c"), states=("h",), saved=("wide", "hard", "both", "old"),
        forward=forward, backward=lambda dstate, saved, state: ((None,) * 3, dstate),
    )  # fmt: skip
    found = {gate: d.value_range(cell, gate) for gate in cell.saved}
    assert found == {"wide": (-3, 3), "hard": (1, 2), "both": (-3, 3), "old": None}
    assert_allclose(thresholds(-3, 3), (-2.7, 2.7))
    assert_allclose(thresholds(1, 2), (1.1, 1.9))


def test_saturation_of_known_pre_activations():
    """x goes straight to the gates of an LSTM with two units."""
    logit = np.log(9)  # sigmoid 0.9
    bend = np.arctanh(0.9)
    e = 1e-6
    of_f = [logit + e, logit - e, -logit - e, -logit + e]
    of_g = [bend + e, -bend - e, -bend - e, 0]
    xs = np.zeros((1, 4, 8))
    xs[0, :, 0], xs[0, :, 2] = of_f, of_g  # unit 0 of f and of g; the others see 0
    layer = rnn.TimeLSTM(np.eye(8), np.zeros((2, 8)), np.zeros(8))
    layer.forward(xs, trace=True)
    table = d.saturation(layer.trace, by="unit")
    assert columns(table) == 8
    assert table["gate"].tolist() == list("ffggiioo")
    assert table["unit"].tolist() == [0, 1] * 4
    assert table["left"].tolist() == [0.25, 0, 0.5, 0, 0, 0, 0, 0]
    assert table["right"].tolist() == [0.25, 0, 0.25, 0, 0, 0, 0, 0]
    table = d.saturation(layer.trace)
    assert columns(table) == 4
    assert table["left"].tolist() == [0.125, 0.25, 0, 0]
    assert table["values"].tolist() == [8] * 4
    assert table["below"].tolist() == [0.1, -0.9, 0.1, 0.1]
    assert_allclose(table["mean"], [0.5, -0.9 / 8, 0.5, 0.5], atol=1e-6)


def test_masked_steps_do_not_saturate():
    xs = np.full((2, 4, 1), 100.0)
    xs[0, :2] = xs[1, :1] = 0
    layer = rnn.TimeRNN(np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1))
    layer.forward(xs, lengths=[2, 2], trace=True)
    table = d.saturation(layer.trace)
    assert table["values"].tolist() == [4]
    assert table["right"].tolist() == [0.25]


def test_a_batch_without_steps_has_no_saturation():
    layer = rnn.TimeLSTM.create(D, H, rng=0)
    layer.forward(np.ones((N, T, D), np.float32), lengths=[0] * N, trace=True)
    table = d.saturation(layer.trace)
    assert table["values"].tolist() == [0] * 4
    assert table["left"].tolist() == table["right"].tolist() == [0] * 4
    assert np.isnan(table["mean"]).all()
    d.plot_saturation(layer.trace)
    d.plot_gates(layer.trace)


# ---- weights


def test_spectrum_of_known_blocks():
    turn = rotation(3)
    blocks = {
        "f": np.diag([3.0, -0.5, 2.0]),
        "g": 0.7 * turn,
        "i": np.array([[0.0, 8, 0], [0, 0, 8], [0, 0, 0]]),  # nilpotent: radius 0
        "o": turn @ np.diag([4.0, 2.0, 1.0]) @ turn.T,
    }
    layer = rnn.TimeLSTM(np.zeros((2, 12)), np.hstack(list(blocks.values())), np.zeros(12))
    table = d.spectrum(layer)
    assert columns(table) == 4
    assert table["gate"].tolist() == list("fgio")
    assert_allclose(table["radius"], [3, 0.7, 0, 4], atol=1e-9)
    assert_allclose(table["largest"], [3, 0.7, 8, 4])
    assert_allclose(table["smallest"], [0.5, 0.7, 0, 1], atol=1e-12)
    assert_allclose(table["condition"], [6, 1, np.inf, 4])
    table = d.singular_values(layer)
    assert columns(table) == 12
    assert table["gate"].tolist() == [g for g in "fgio" for _ in range(3)]
    assert table["index"].tolist() == [0, 1, 2] * 4
    assert_allclose(table["value"], [3, 2, 0.5, 0.7, 0.7, 0.7, 8, 8, 0, 4, 2, 1], atol=1e-12)


def test_blocks_are_those_of_recurrent_gates():
    layer = traced("gru_reset_after")
    table = d.spectrum(layer)
    assert table["gate"].tolist() == ["z", "r", "h_recurrent"]
    assert_allclose(table["condition"], 1)  # created orthogonal
    step = rnn.GRU(*layer.params, reset_after=True)
    assert d.spectrum(step)["radius"].tolist() == table["radius"].tolist()


# ---- the report


def test_summary_says_what_happens_to_the_gradient():
    layer, dhs = linear_rnn(0.5 * rotation(4))
    dhs[:, -1] = 1
    layer.backward(dhs)
    said = d.summary(layer)
    assert "h  shrinks by a factor of 0.50 a step: after 20 steps 9.5e-05 % is left" in said
    assert re.search(r"^  h +0\.500 +0\.500 to 0\.500 +1$", said, re.M)
    assert re.search(r"^  h +0\.000 +0\.0 % < -0\.9 +0\.0 % > 0\.9 +0 of 4$", said, re.M)
    layer, dhs = linear_rnn(1.5 * rotation(4))
    dhs[:, -1] = 1
    layer.backward(dhs)
    said = d.summary(layer)
    assert "grows by a factor of 1.50 a step: after 20 steps it is 3.33e+03 times as large" in said
    layer, dhs = linear_rnn(rotation(4))
    dhs[:, -1] = 1
    layer.backward(dhs)
    assert "keeps its size (1.000 a step): after 20 steps 100 % is left" in d.summary(layer)


def test_summary_says_where_a_gradient_ends():
    layer, dhs = linear_rnn([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]])
    dhs[:, -1] = 1
    layer.backward(dhs)
    assert "nothing at all arrives beyond lag 2" in d.summary(layer)
    layer, dhs = linear_rnn(1e200 * np.eye(2))
    dhs[:, -1] = 1
    with np.errstate(all="ignore"):
        layer.backward(dhs)
    assert "infinite or NaN from lag 2 on" in d.summary(layer)


def test_summary_counts_stuck_units():
    layer = rnn.TimeRNN(np.diag([9.0, -9, 0]), np.zeros((3, 3)), np.zeros(3))
    layer.forward(np.ones((1, 10, 3)), trace=True)
    assert re.search(r"33\.3 % < -0\.9 +33\.3 % > 0\.9 +2 of 3$", d.summary(layer), re.M)
    assert "none before backward" in d.summary(layer)


def test_summary_without_a_trace_says_how_to_get_one():
    layer = rnn.TimeGRU.create(D, H, rng=0)
    said = d.summary(layer)
    assert "spectral radius" in said
    assert "forward(xs, trace=True)" in said


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_has_a_summary(kind):
    said = d.summary(traced(kind))
    assert "a step: after 8 steps" in said
    assert ("without bounds" in said) == (kind in ("rnn_relu", "gru_reset_after"))


# ---- pictures


def texts(figure):
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def drawn(draw, *args, **options):
    """A picture, saved: warnings of matplotlib show here, and the same bytes come each time."""
    saved = []
    for _ in range(2):
        figure, file = draw(*args, **options), io.BytesIO()
        figure.savefig(file, dpi=50)
        saved.append(file.getvalue())
    assert saved[0] == saved[1]
    return figure


@pytest.mark.parametrize("kind", LAYERS)
def test_plot_gates(kind):
    resets = np.zeros((N, T), bool)
    resets[1, 3] = True
    trace = traced(kind, at=[4, 5, 8], lengths=[5, 6, 9], resets=resets).trace
    figure = drawn(d.plot_gates, trace, row=1)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == len(trace.gate_names)
    for axes, name in zip(panels, trace.gate_names, strict=True):
        (image,) = axes.images
        shown = image.get_array()
        assert shown.shape == (H, T)
        assert shown.mask[:, 6:].all()
        assert not shown.mask[:, :6].any()
        assert_allclose(shown[:, :6], trace.gates[name][1].T[:, :6])
        ends = d.value_range(trace.cell, name)
        largest = np.abs(trace.gates[name][1, :6]).max()
        wanted = ends or ((0 if kind == "rnn_relu" else -largest), largest)
        assert_allclose(image.get_clim(), wanted)
        assert axes.get_ylabel() == f"{name}\nunit"
        assert {line.get_xdata()[0] for line in axes.lines} == {2.5}
    assert "left out by the mask" in texts(figure)
    assert "state reset" in texts(figure)


def test_plot_gates_of_some_with_labels():
    trace = traced().trace
    figure = drawn(d.plot_gates, trace, gates=["o", "f"], labels=list("a $b$\nd\u2192f"))
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_ylabel()[0] for axes in panels] == ["o", "f"]
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == list("a␣$b$↵d→f")
    assert not figure.legends
    words = ["$x", "_y", "\\frac{", *["$\\frac$"] * (T - 3)]
    figure = drawn(d.plot_gates, trace, labels=words)  # text, not formulas
    (*_, last) = (axes for axes in figure.axes if axes.images)
    assert [label.get_text() for label in last.get_xticklabels()] == words


def test_plot_gradient_flow():
    traces = {kind: traced(kind).trace for kind in ("lstm", "rnn")}
    figure = drawn(d.plot_gradient_flow, traces, state=None)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [re.sub("× .*", "", text) for text in said] == ["lstm h: ", "lstm c: ", "rnn h: "]
    assert said[0].endswith(f"× {d.gradient_growth(traces['lstm']):.2f} a step")
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    table = d.gradient_flow(traces["lstm"], "h")
    assert_allclose(lines[said[0]], table["mean"] / table["mean"][0])
    assert len(lines[said[1]]) == T - 1  # c has none at lag 0
    assert len(axes.collections) == 3  # from the smallest row to the largest
    assert "vanishing: under 1/1000" in texts(figure)
    assert "exploding: over 1000 times" in texts(figure)


def test_plot_gradient_flow_shows_all_of_a_vanishing_gradient():
    layer, dhs = linear_rnn(0.1 * rotation(3))
    dhs[:, -1] = 1
    layer.backward(dhs)
    (axes,) = drawn(d.plot_gradient_flow, layer.trace).axes
    assert axes.get_ylim()[0] < 1e-20
    assert axes.get_ylim()[1] > 1e3


def test_plot_saturation():
    trace = traced("gru_reset_after").trace
    figure = drawn(d.plot_saturation, trace)
    assert [axes.get_title() for axes in figure.axes] == ["z", "r", "h"]
    for axes, gate in zip(figure.axes, "zrh", strict=True):
        (histogram, *ends) = axes.patches
        assert histogram.get_data().values.sum() == pytest.approx(100)
        assert len(ends) == 2
        assert axes.get_xlim() == d.value_range(trace.cell, gate)


@pytest.mark.parametrize(("kind", "gates"), [("rnn", "h"), ("gru", "zrh"), ("lstm", "fgio")])
def test_plot_spectrum(kind, gates):
    layer = traced(kind)
    layer.params[1] *= 1.5
    figure = drawn(d.plot_spectrum, layer)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[: len(gates)] == [f"{gate}: radius 1.50" for gate in gates]
    assert titles[len(gates) :] == ["from 1.50 to 1.5"] * len(gates)
    for axes in figure.axes[: len(gates)]:
        circle, *_, points = axes.lines
        assert_allclose(np.hypot(*circle.get_data()), 1)
        assert_allclose(np.hypot(*points.get_data()), 1.5)
        assert axes.get_xlim()[1] > 1.5
    for axes in figure.axes[len(gates) :]:
        assert_allclose(axes.lines[-1].get_ydata(), 1.5)


def test_pictures_go_on_the_figure_given():
    from matplotlib.figure import Figure

    layer = traced()
    for draw, what in (
        (d.plot_gates, layer.trace),
        (d.plot_saturation, layer.trace),
        (d.plot_spectrum, layer),
    ):
        figure = Figure()
        assert draw(what, figure=figure) is figure
        assert figure.axes
    axes = Figure().subplots()
    assert d.plot_gradient_flow(layer.trace, axes=axes) is axes.figure


# ---- what is refused


@pytest.mark.parametrize(
    "call",
    [
        d.gradient_flow, d.gradient_growth, d.saturation, d.plot_gates, d.plot_saturation,
        d.plot_gradient_flow,
    ],
)  # fmt: skip
def test_without_a_trace_the_error_says_how_to_get_one(call):
    layer = rnn.TimeLSTM.create(D, H, rng=0)
    layer.forward(np.ones((N, T, D), np.float32))
    with pytest.raises(ValueError, match=r"trace.*got None; .*forward\(xs, trace=True\)"):
        call(layer.trace)
    with pytest.raises(TypeError, match=r"trace.*got TimeLSTM; it has one in \.trace"):
        call(layer)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda layer: d.gradient_flow(layer.trace, "k"), ValueError, "state: .*h, c, got 'k'"),
        (lambda layer: d.gradient_growth(layer.trace, "k"), ValueError, "state: .*h, c, got 'k'"),
        (lambda layer: d.plot_gradient_flow(layer.trace, "k"), ValueError, "state: .*h, c, got"),
        (lambda layer: d.plot_gradient_flow({}), ValueError, "traces: .*got none"),
        (lambda layer: d.plot_gradient_flow({"a": None}), ValueError, r"traces\['a'\]: .*None"),
        (lambda layer: d.plot_gradient_flow(layer.trace, axes=1), TypeError, "axes: .*got int"),
        (lambda layer: d.saturation(layer.trace, by="row"), ValueError, "by: .*gate, unit, got"),
        (lambda layer: d.plot_gates(layer.trace, N), ValueError, "row: expected 0 to 2, got 3"),
        (lambda layer: d.plot_gates(layer.trace, -1), ValueError, "row: expected at least 0"),
        (lambda layer: d.plot_gates(layer.trace, gates=["z"]), ValueError, "f, g, i, o, got 'z'"),
        (lambda layer: d.plot_gates(layer.trace, gates="f"), TypeError, "list of names, .*'f'"),
        (lambda layer: d.plot_gates(layer.trace, gates=[]), ValueError, "f, g, i, o, got none"),
        (lambda layer: d.plot_gates(layer.trace, labels="abc"), ValueError, "expected 9, .*got 3"),
        (lambda layer: d.plot_gates(layer.trace, figure=1), TypeError, "figure: .*got int"),
        (lambda layer: d.value_range(layer.cell, "z"), ValueError, "f, g, i, o, got 'z'"),
        (lambda layer: d.spectrum(layer.trace), TypeError, "layer: .*TimeLSTM, got Trace"),
        (lambda layer: d.summary(layer.trace), TypeError, "layer: .*TimeLSTM, got Trace"),
    ],
)
def test_wrong_arguments(call, error, says):
    with pytest.raises(error, match=says):
        call(traced())


def test_gradients_before_backward():
    layer = rnn.TimeLSTM.create(D, H, rng=0)
    layer.forward(np.ones((N, T, D), np.float32), trace=True)
    for call in (d.gradient_flow, d.gradient_growth, d.plot_gradient_flow):
        with pytest.raises(RuntimeError, match="gradients: call backward first"):
            call(layer.trace)


def test_layers_that_have_no_spectrum():
    with pytest.raises(
        TypeError, match=r"got TimeBiRNN; pass its forward_layer or its backward_layer"
    ):
        d.spectrum(rnn.TimeBiRNN.create(D, H, rng=0))
    layer = rnn.TimeRNN.create(D, H, rng=0)
    layer.params[1][2, 3] = np.nan
    with pytest.raises(ValueError, match=r"Wh: expected finite numbers, got nan at \(2, 3\)"):
        d.spectrum(layer)
    with pytest.raises(ValueError, match="bounded gates, got rnn_relu, with h"):
        d.plot_saturation(traced("rnn_relu").trace)


def input_only_layer():
    """A cell without any recurrent product: a leaky integrator."""
    cell = rnn.cells.Cell(
        name="leaky", gates=("a",), states=("h",), saved=("a",), input_only=("a",),
        forward=lambda gates, state: ((0.5 * state[0] + gates[0],), (gates[0],)),
        backward=lambda dstate, saved, state: ((dstate[0],), (0.5 * dstate[0],)),
    )  # fmt: skip
    return rnn.TimeRecurrent.create(D, H, cell=cell, rng=0)


def test_a_cell_without_recurrent_weights():
    layer = input_only_layer()
    hs = layer.forward(np.ones((N, T, D), np.float32), trace=True)
    hs[:, :-1] = 0
    layer.backward(hs)
    assert "Recurrent weights: none" in d.summary(layer)
    assert d.gradient_growth(layer.trace) == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(ValueError, match="with recurrent weights Wh, got leaky"):
        d.spectrum(layer)


def test_numbers_need_no_matplotlib_and_pictures_name_the_remedy():
    run_python(
        """
        import sys
        sys.modules["matplotlib"] = None  # as if it were not installed
        import numpy as np
        import numba_rnn

        assert "numba_rnn.diagnostics" not in sys.modules  # loaded where it is first used
        d = numba_rnn.diagnostics
        layer = numba_rnn.TimeLSTM.create(3, 4, rng=0)
        hs = layer.forward(np.ones((2, 5, 3), np.float32), trace=True)
        layer.backward(hs)
        assert d.summary(layer)
        for draw, what in (
            (d.plot_gates, layer.trace), (d.plot_gradient_flow, layer.trace),
            (d.plot_saturation, layer.trace), (d.plot_spectrum, layer),
        ):
            try:
                draw(what)
            except ImportError as error:
                assert 'pip install "numba-rnn[plot]"' in str(error)
            else:
                raise AssertionError(draw)
        """,
        {"NUMBA_RNN_BACKEND": "numpy"},
    )


def test_a_layer_on_a_device_is_measured_on_the_host():
    want = traced("lstm")
    with use_fake_device():
        layer = rnn.TimeLSTM.create(D, H, rng=0, dtype=np.float64)
        xs = np.random.default_rng(1).standard_normal((N, T, D))
        hs = layer.forward(xs, trace=True)
        layer.backward(hs)
        assert d.spectrum(layer)["radius"] == pytest.approx(d.spectrum(want)["radius"])
        assert d.saturation(layer.trace)["mean"] == pytest.approx(d.saturation(want.trace)["mean"])
        assert "a step: after 8 steps" in d.summary(layer)


# ---- models


def test_a_model_that_traces():
    model = Rnnlm(11, 4, 6, layers=2, rng=0)
    ids = np.arange(10).reshape(2, 5)
    quiet = model.forward(ids, ids + 1)
    assert all(layer.trace is None for layer in model.recurrent)
    model.reset_state()
    assert model.forward(ids, ids + 1, trace=True) == quiet
    model.backward()
    for layer in model.recurrent:
        assert d.gradient_flow(layer.trace, "h")["rows"].tolist() == [2] * 5


def test_a_text_that_the_font_cannot_show(tmp_path):
    """Boxes, and a word on fonts, not a warning for each character."""
    vocabulary = Vocabulary.of("吾輩は猫である\t\n", "char")
    model = Rnnlm(len(vocabulary), 4, 6, rng=0)
    tokens = jobs.trace_text(model, vocabulary, "猫である\t\n")
    assert tokens == list("猫である\t")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pictures: no installed font has")
        paths = jobs.plot_internals(model, tokens, tmp_path)
    assert {path.stem for path in paths} == {"gradient", "gates", "saturation", "weights"}
    gradient = model.recurrent[0].trace.gradients["h"]
    # of the last token's loss alone: what comes from there, and nothing made on the way
    xs = model.embedding.forward(vocabulary.encode("猫である\t")[None])
    layer = rnn.TimeLSTM(*model.recurrent[0].params)
    dhs = np.zeros_like(layer.forward(xs, trace=True))
    dhs[:, -1] = gradient[:, -1]
    layer.backward(dhs)
    assert_allclose(gradient, layer.trace.gradients["h"], rtol=1e-4, atol=1e-9)


def test_it_draws_on_pyplots_figures():
    """In a process of its own: pyplot keeps what it makes."""
    code = """
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from numba_rnn import TimeRNN, diagnostics
layer = TimeRNN.create(3, 4, rng=0)
figure = plt.figure(layout="constrained")
assert diagnostics.plot_spectrum(layer, figure=figure) is figure
top, bottom = plt.figure(layout="constrained").subfigures(2)
layer.forward(np.ones((1, 4, 3), np.float32), lengths=[3], trace=True)
assert diagnostics.plot_gates(layer.trace, figure=top) is top
top.figure.canvas.draw()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
