"""Pictures for a lecture: their numbers, their order, and that nothing lies on anything else."""

import hashlib
import inspect
import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import numba_rnn as rnn
from helpers import run_python
from numba_rnn import cells, diagnostics, viz
from numba_rnn.functions import (
    exp,
    hard_sigmoid,
    minimum,
    relu,
    sigmoid,
    softplus,
    sqrt,
    tanh,
    where,
)
from numba_rnn.layers import TimeRecurrent
from numba_rnn.viz import style
from numba_rnn.viz.graph_figure import picture_of
from numba_rnn.viz.graph_layout import place
from numba_rnn.viz.recording import record_step
from numba_rnn.viz.step_graph import StepGraph

N, T, D, H = 2, 3, 3, 5


@rnn.cell(states="h c", weights="p_f")
def forgetful(f, g, p_f, h, c):
    f = sigmoid(f + p_f * c)
    c = f * c + (1 - f) * tanh(g)
    return tanh(c), c


@rnn.cell(states="h c")
def of_all_kinds(f, g, i, h, c):
    """The operations that no cell of the zoo has; not a cell that learns."""
    c = where(f > 0.1, c * c, -c / (2 + abs(g))) + hard_sigmoid(i) - 0.5 * minimum(g, i)
    return tanh(c) + exp(-relu(g)) * sqrt(1 + softplus(i)) - h, c


CELLS = ["rnn", "lstm", "gru", "gru_reset_after", "forgetful"]


@pytest.fixture(autouse=True)
def readable_engine():
    """Run on NumPy, which compiles nothing: other tests check the numbers of a run."""
    with rnn.use_backend("numpy"):
        yield


def layer_of(name, D=D, H=H, dtype=np.float64):
    cell = {"forgetful": forgetful, "of_all_kinds": of_all_kinds}.get(name, name)
    cell = getattr(cell, "cell", cell)
    own = {"proj_size": 2} if getattr(cell, "projected", cell == "lstm_projected") else {}
    layer = TimeRecurrent.create(D, H, cell=cell, rng=0, dtype=dtype, **own)
    rng = np.random.default_rng(1)
    for param in layer.params:
        param += 0.2 * rng.standard_normal(param.shape)
    return layer


def inputs(N=N, T=T, D=D, seed=2, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((N, T, D)).astype(dtype)


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# ---- numbers


@pytest.mark.parametrize("affine", ["fused", "apart"])
@pytest.mark.parametrize("name", [*rnn.cells.names(), "forgetful", "of_all_kinds"])
def test_the_graphs_numbers_are_the_layers(name, affine):
    """Of one step, whose gradients are a layer's own; the graph computes them node by node."""
    layer = layer_of(name)
    rng = np.random.default_rng(3)
    P = layer.output_size
    state = [rng.uniform(0.2, 1, (N, n)) for n in layer.cell.state_sizes(H, P)]
    x, dhs = inputs(T=1), rng.standard_normal((N, 1, P))
    layer.set_state(*state)
    layer.forward(x)
    dxs = layer.backward(dhs)

    graph = StepGraph(layer.cell, affine)
    found = record_step(layer, x, dhs, state, -1).numbers(graph)
    for node, value in zip(graph.outputs.values(), layer.state, strict=True):
        assert_allclose(found.values[node], value, rtol=1e-12, atol=1e-14)
    assert_allclose(found.gradients[graph.inputs["x"]], dxs[:, 0], rtol=1e-10, atol=1e-13)
    for name_of, d in zip(layer.cell.states, layer.dstate, strict=True):
        node = graph.inputs[f"{name_of}_prev"]
        assert_allclose(found.gradients[node], d, rtol=1e-10, atol=1e-13)
    grads = dict(zip(layer.param_names, layer.grads, strict=True))
    grads |= dict(zip(layer.cell.weights, grads.pop("w", ()), strict=True))
    if layer.cell.biases == 2:
        grads["b[0]"], grads["b[1]"] = grads.pop("b")
    assert set(graph.params) == set(grads)
    for param, node in graph.params.items():
        assert_allclose(found.gradients[node], grads[param], rtol=1e-10, atol=1e-13)


def test_a_step_in_the_middle_sees_what_came_back_from_later_ones():
    layer, xs = layer_of("lstm"), inputs()
    dhs = np.random.default_rng(4).standard_normal((N, T, H))
    layer.forward(xs, trace=True)
    layer.backward(dhs)
    graph = StepGraph(layer.cell)
    found = record_step(layer, xs, dhs, None, 1).numbers(graph)
    trace = layer.trace
    for state in ("h", "c"):
        value = found.values[graph.outputs[f"{state}_next"]]
        assert_allclose(value, trace.states[state][:, 1], rtol=1e-12)
        back = found.gradients[graph.inputs[f"{state}_prev"]]
        before = trace.gradients[state][:, 0] - (dhs[:, 0] if state == "h" else 0)
        assert_allclose(back, before, rtol=1e-10, atol=1e-14)


def test_the_layer_is_left_as_it_is():
    layer = rnn.TimeLSTM.create(D, H, rng=0, dtype=np.float64, stateful=True)
    layer.forward(inputs())
    state, tape = layer.state, layer._tape
    before = [array.copy() for array in (*layer.params, *layer.grads)]
    viz.graph(layer, inputs(), show="both")
    viz.backward_steps(layer, inputs())
    viz.unrolled(layer, xs=inputs())
    viz.saved_bytes(layer, 2, 3)
    assert layer.state is state
    assert layer._tape is tape
    for array, old in zip((*layer.params, *layer.grads), before, strict=True):
        assert_array_equal(array, old)


# ---- the computation graph


def test_the_rnns_nodes_are_the_books():
    graph = StepGraph(layer_of("rnn").cell)
    edges = {(use.source.label, node.label) for node in graph.nodes for use in node.uses}
    assert edges == {
        ("x_t", "MatMul"), ("Wx", "MatMul"), ("h_prev", "MatMul"), ("Wh", "MatMul"),
        ("MatMul", "+"), ("b", "+"), ("+", "tanh"), ("tanh", "h_next"),
    }  # fmt: skip
    labels = [node.label for node in graph.nodes]
    assert labels.count("MatMul") == 2
    assert labels.count("+") == 1


@pytest.mark.parametrize(
    ("name", "affine", "wanted"),
    [
        ("lstm", "fused", ["Affine f g i o"]),
        ("lstm", "apart", ["Affine f", "Affine g", "Affine i", "Affine o"]),
        ("gru", "fused", ["Affine h", "Affine z r"]),
        ("gru_reset_after", "fused", ["Affine h", "Affine h_recurrent", "Affine z r"]),
    ],
)
def test_affines_are_gathered_or_apart(name, affine, wanted):
    graph = StepGraph(layer_of(name).cell, affine)
    assert sorted(n.label for n in graph.nodes if n.kind == "Affine") == wanted
    assert sum(n.kind == "slice" for n in graph.nodes) == (affine == "fused")


def test_the_grus_reset_gate_scales_h_before_its_product():
    graph = StepGraph(layer_of("gru").cell)
    affine = next(node for node in graph.nodes if node.label == "Affine h")
    scaled = next(use.source for use in affine.uses if use.source.label == "×")
    assert {use.name for use in scaled.uses} == {"r", "h_prev"}


def test_values_and_gradients_stand_on_the_picture():
    layer, x = layer_of("rnn", 2, 3), inputs(1, 1, 2)
    layer.forward(x)
    dxs = layer.backward(np.ones((1, 1, 3)))
    h, dx = layer.h[0], dxs[0, 0]
    for show, inside in (("values", [h]), ("gradients", [dx]), ("both", [h, dx])):
        found = " ".join(words(viz.graph(layer, x, show=show))).replace("\n", " ")
        for array in inside:
            assert " ".join(map(style.number, array)) in found
        assert (" ".join(map(style.number, h)) in found) == (show != "gradients")


def test_shapes_and_norms():
    layer = layer_of("lstm", 7, 6)
    found = words(viz.graph(layer, show="shapes"))
    assert {"(N, 7)", "(N, 6)", "A\n(N, 24)", "Wx (7, 24)", "Wh (6, 24)", "b (24,)"} <= set(found)
    assert "(4, 7)" in words(viz.graph(layer, inputs(4, 2, 7), show="shapes"))
    xs = inputs(4, 2, 7)
    norm = f"‖{style.number(np.linalg.norm(xs[:, 1]))}‖"
    assert norm in words(viz.graph(layer, xs, show="values"))
    mean = f"mean {style.number(xs[:, 1].mean())}"
    assert mean in words(viz.graph(layer, xs, show="values", large="mean"))


def test_names_alone():
    found = words(viz.graph(layer_of("lstm")))
    assert {"f", "g", "i", "o", "c_prev", "h_next", "slice", "One step of LSTM"} <= set(found)
    assert not any(character.isdigit() for text in found for character in text)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.123, "0.12"), (-0.5, "−0.5"), (0, "0"), (-0.0, "0"), (123.4, "123"), (2e-7, "2e−7"),
     (99.4, "99"), (-99.7, "−100"),
     (1e9, "1e+09"), (np.inf, "inf")],
)  # fmt: skip
def test_numbers_are_short(value, wanted):
    assert style.number(value) == wanted


# ---- nothing lies on anything else


def boxes(picture):
    """(left, right, low, high) of everything that has a place of its own."""
    items = list(dict.fromkeys([*picture.placed.nodes, *picture.placed.labels]))
    return [(i.x - i.width / 2, i.x + i.width / 2, i.y - i.below, i.y + i.above) for i in items]


@pytest.mark.parametrize("affine", ["fused", "apart"])
@pytest.mark.parametrize("name", CELLS)
def test_nothing_overlaps_and_all_is_on_the_page(name, affine):
    layer = layer_of(name, 2, 3)
    graph = StepGraph(layer.cell, affine)
    found = record_step(layer, inputs(1, T, 2), None, None, -1).numbers(graph)
    picture = picture_of(graph, found, "both", "norm", ["title"])
    places = boxes(picture)
    for a, b in itertools.combinations(places, 2):
        apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
        assert apart, (a, b)
    for left, right, low, high in places:
        assert left >= 0
        assert right <= picture.width
        assert low >= 0
        assert high <= picture.height
    for path in picture.placed.paths:  # in every column beside what stands there, never through it
        for item in path[1:-1]:
            for node in picture.placed.nodes:
                if node.column == item.column:
                    assert item.y > node.y + node.above or item.y < node.y - node.below


def test_letters_fit_into_what_was_reserved_for_them():
    """The width of a letter is estimated; matplotlib knows what it draws."""
    layer = layer_of("lstm", 2, 3)
    figure = viz.graph(layer, inputs(1, T, 2), show="both")
    figure.canvas.draw()
    page = figure.bbox
    drawn = [t.get_window_extent() for axes in figure.axes for t in axes.texts if t.get_text()]
    assert len(drawn) > 40
    for box in drawn:
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
    for a, b in itertools.combinations(drawn, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width <= 0 or height <= 2, (a, b)  # lines of one box may touch


def test_layout_of_a_chain_is_straight():
    placed = place([(1, 1)] * 4, [(0, 1), (1, 2), (2, 3)], [(0.5, 0.2, 0.2)] * 3)
    assert len({round(item.y, 9) for path in placed.paths for item in path}) == 1
    xs = [item.x for item in placed.nodes]
    assert xs == sorted(xs)


def test_layout_finds_an_order_without_crossings():
    edges = [(0, 5), (1, 4), (2, 3)]
    placed = place([(1, 1)] * 6, edges, [(0.5, 0.2, 0.2)] * 3)
    heights = [(placed.nodes[a].y, placed.nodes[b].y) for a, b in edges]
    assert [b for _, b in sorted(heights)] == sorted(b for _, b in heights)


@pytest.mark.parametrize("size", [(8, 4.5), (16, 9)])
def test_a_figure_that_is_given_is_drawn_on(size):
    figure = Figure(figsize=size)
    assert viz.graph(layer_of("rnn"), figure=figure) is figure
    sizes = {text.get_fontsize() for text in figure.axes[0].texts}
    assert min(sizes) > 5
    assert viz.valve(0.3, figure=Figure(figsize=size)).axes


# ---- the backward pass, step by step


def test_the_rnns_steps_are_the_lectures():
    layer, x = layer_of("rnn"), inputs(T=1)
    h_prev = np.random.default_rng(5).standard_normal((N, H))
    dh = np.random.default_rng(6).standard_normal((N, 1, H))
    layer.set_state(h_prev)
    layer.forward(x)
    dx = layer.backward(dh)[:, 0]
    steps = viz.backward_steps(layer, x, dh, state=[h_prev])
    assert [step.title for step in steps] == [
        "Backward: start", "(1) dh_next arrives", "(2) dtanh", "(3) addition node",
        "(4) multiplication nodes",
    ]  # fmt: skip
    assert steps[2].equations == ("dt = dh_next × (1 − h_next²)",)
    assert steps[3].equations == ("db = Σ dt", "dt goes on to both products")
    assert steps[4].equations == (
        "dWh = h_prevᵀ dt", "dh_prev = dt Whᵀ", "dWx = xᵀ dt", "dx = dt Wxᵀ",
    )  # fmt: skip
    dt = dh[:, 0] * (1 - layer.h**2)
    dWx, dWh, db = layer.grads
    assert_allclose(steps[1].gradients["dh_next"], dh[:, 0])
    assert_allclose(steps[2].gradients["dt"], dt)
    assert_allclose(steps[3].gradients["db"], db)
    last = steps[4].gradients
    assert set(last) == {"dWh", "dh_prev", "dWx", "dx"}
    for name, wanted in (("dWh", dWh), ("dWx", dWx), ("dx", dx), ("dh_prev", layer.dh)):
        assert_allclose(last[name], wanted, rtol=1e-12)


@pytest.mark.parametrize("affine", ["fused", "apart"])
@pytest.mark.parametrize("name", [*CELLS, "of_all_kinds"])
def test_steps_follow_the_gradient_and_find_all_of_it(name, affine):
    layer, x = layer_of(name), inputs(T=1)
    layer.forward(x)
    dhs = np.ones((N, 1, H))
    dxs = layer.backward(dhs)
    graph = StepGraph(layer.cell, affine)
    compares = [n.label for n in graph.nodes if n.label.startswith(">")]  # without a gradient
    assert bool(compares) == (name == "of_all_kinds")
    passed = set()
    steps = viz.backward_steps(layer, x, dhs, affine=affine)
    for step in steps:
        for node in step.nodes:  # nothing is gone through before all that it feeds
            for user in node.users:
                used = {(user, k) for k, use in enumerate(user.uses) if use.source is node}
                assert used <= passed or user.label in compares
        passed |= set(step.edges)
        assert step.equations or step.title == "Backward: start"
    assert len(passed) == len(graph.edges) - 2 * len(compares)  # what decides, and what it sees
    found = {name: array for step in steps for name, array in step.gradients.items()}
    if "dA" in found:
        parts = [found[f"da_{gate}"] for gate in layer.cell.gates if f"da_{gate}" in found]
        if found["dA"].shape[1] == sum(part.shape[1] for part in parts):
            assert_allclose(np.hstack(parts), found["dA"], rtol=1e-12)
    assert_allclose(found["dx"], dxs[:, 0], rtol=1e-10)
    assert_allclose(found["dh_prev"], layer.dh, rtol=1e-10, atol=1e-14)
    assert_allclose(found["dWx"], layer.grads[0], rtol=1e-10, atol=1e-14)
    if name == "forgetful":
        assert_allclose(found["dp_f"], layer.grads[3][0], rtol=1e-10, atol=1e-14)


def test_the_lstms_equations_are_its_backward_functions():
    steps = viz.backward_steps(layer_of("lstm"), inputs())
    found = {text for step in steps for text in step.equations}
    assert {
        "do = dh_next × tanh_c", "dtanh_c = dh_next × o", "dc += dtanh_c × (1 − tanh_c²)",
        "df = dc × c_prev", "dg = dc × i", "di = dc × g", "dc_prev = dc × f",
        "da_f = df × f × (1 − f)", "da_g = dg × (1 − g²)", "dA = [da_f da_g da_i da_o]",
        "dWx = xᵀ dA", "dh_prev = dA Whᵀ", "db = Σ dA",
    } <= found  # fmt: skip


@rnn.cell(states="h c", weights="p q")
def of_weights(a, s, p, q, h, c):
    """Operations on weights alone, and one node that sees two slices."""
    c = sigmoid(p) * c + s * a
    return tanh(c) / (1 + q * q), exp(q) + c


def test_what_is_the_same_for_all_rows_adds_up_over_them():
    peephole = viz.backward_steps(layer_of("lstm_peephole"), inputs())
    assert "dp_o = Σ du3 × c" in {text for step in peephole for text in step.equations}

    layer, x = layer_of(of_weights), inputs(T=1)
    steps = viz.backward_steps(layer, x, state=[np.ones((N, H))] * 2)
    assert {
        "dexp_q = Σ dc_next", "dq += dexp_q × exp_q", "dq += d(1+(q·q)) × q",
        "dtanh_u3 = dh_next / (1+(q·q))", "d(1+(q·q)) = Σ −dh_next × h_next / (1+(q·q))",
        "du1 = Σ du3 × c_prev", "dp = du1 × u1 × (1 − u1)",
    } <= {text for step in steps for text in step.equations}  # fmt: skip
    found = {name: array for step in steps for name, array in step.gradients.items()}
    assert {found[name].shape for name in ("dexp_q", "d(1+(q·q))", "du1", "dp", "dq")} == {(H,)}
    assert "(N,)" not in words(viz.graph(layer, show="shapes"))


def test_a_slices_gradients_are_put_together_in_the_order_of_the_gates():
    @rnn.cell
    def seen_together(a, b, s, h):
        return tanh(a) * s + sigmoid(b) + a * s

    steps = viz.backward_steps(layer_of(seen_together), inputs())
    (text,) = next(step.equations for step in steps if step.title.endswith("slice"))
    assert text == "dA = [da_a da_b da_s]"


@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_the_gif_has_a_frame_for_each_step_and_the_same_bytes_again(name, tmp_path):
    layer, xs, path = layer_of(name, 2, 2), inputs(1, 2, 2), tmp_path / "backward.gif"
    sums = []
    for _ in range(2):
        viz.animate_backward(layer, path, xs, seconds=0.5, dpi=30)
        sums.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert sums[0] == sums[1]
    with Image.open(path) as film:
        assert film.n_frames == len(viz.backward_steps(layer, xs)) + 1
        assert film.info["duration"] == 500
    assert [file.name for file in tmp_path.iterdir()] == ["backward.gif"]


def test_frames_show_more_and_more_gradients():
    layer, xs = layer_of("rnn", 2, 2), inputs(1, 2, 2)
    frames, steps = viz.backward_frames(layer, xs), viz.backward_steps(layer, xs)
    counts = [len(words(frame)) for frame in frames]
    assert [words(f)[-1].startswith("above a line") for f in frames] == [True] * len(frames)
    for frame, step in zip(frames, steps, strict=False):
        assert step.title in words(frame)
        assert all(any(text in line for line in words(frame)) for text in step.equations)
    titles = [1 + bool(step.equations) for step in steps] + [1]
    shown = [count - title for count, title in zip(counts, titles, strict=True)]
    assert shown == sorted(shown)
    assert np.diff(shown).tolist() == [1, 1, 3, 4, 0]  # the edges of each step


def test_a_gif_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        viz.animate_valve([0.5], tmp_path / "missing" / "valve.gif", dpi=20)
    with pytest.raises(ValueError, match=r"openings\[1\]"):
        viz.animate_valve([0.5, 1.5], tmp_path / "valve.gif")
    for name in ("valve", "valve.png", "valve.jpg", ""):
        with pytest.raises(ValueError, match=r"path: expected a name that ends in \.gif"):
            viz.animate_valve([0.5], tmp_path / name)
    assert not list(tmp_path.iterdir())


# ---- unrolled


def test_unrolled_has_a_layer_for_each_step_and_one_rolled_up():
    for name, rolled in (("rnn", True), ("lstm", False)):
        found = words(viz.unrolled(layer_of(name), T=5, rolled=rolled))
        assert found.count(name.upper()) == 5 + rolled
        assert [found.count(f"x_{t}") for t in range(5)] == [1] * 5
        assert [found.count(f"h_{t}") for t in range(5)] == [2] * 5  # out, and on
        assert [found.count(f"c_{t}") for t in range(5)] == [name == "lstm"] * 5
        assert found.count("=") == rolled


@pytest.mark.parametrize(("T", "k", "cuts"), [(6, 3, 1), (7, 2, 3), (4, 4, 0), (3, 1, 2)])
def test_truncated_bptt_is_cut_after_every_k_steps(T, k, cuts):
    found = words(viz.unrolled(layer_of("gru"), T=T, truncated=k))
    assert found.count("cut") == found.count("✕") == cuts
    assert not {"cut", "✕"} & set(words(viz.unrolled(layer_of("gru"), T=T, backward=True)))


@pytest.mark.parametrize("name", ["rnn", "lstm", "slstm"])
def test_the_loops_end_before_the_equals_sign(name):
    axes = viz.unrolled(layer_of(name), T=2).axes[0]
    left = next(text.get_position()[0] for text in axes.texts if text.get_text() == "=")
    assert max(max(line.get_xdata()) for line in axes.lines) + 0.4 < left


def test_unrolled_values_are_those_of_a_run():
    layer, xs = layer_of("rnn", 2, 2), inputs(2, 3, 2)
    hs = layer.forward(xs)
    found = words(viz.unrolled(layer, xs=xs, row=1))
    for t in range(3):
        assert "\n".join([f"x_{t}", *map(style.number, xs[1, t])]) in found
        assert "\n".join([*map(style.number, hs[1, t]), f"h_{t}"]) in found


@pytest.mark.parametrize("truncated", [None, 2])
@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_unrolled_gradients_are_those_that_come_back(name, truncated):
    """The gradient that later steps give to a step is dstate of a run that starts there."""
    layer, xs, dhs = layer_of(name, 2, 3), inputs(2, 5, 2), inputs(2, 5, 3, seed=3)
    found = words(viz.unrolled(layer, xs=xs, dhs=dhs, truncated=truncated, row=1))
    block, seen = truncated or 5, 0
    for t in range(4):
        end = (t // block + 1) * block
        assert any(word.startswith(f"dh_{t}") for word in found) == (t + 1 < end)
        if t + 1 == end:
            continue
        layer.reset_state()
        layer.forward(xs[:, : t + 1])
        layer.set_state(*layer.state)
        layer.forward(xs[:, t + 1 : end])
        layer.backward(dhs[:, t + 1 : end])
        norms = [f"‖{style.number(np.linalg.norm(d[1]))}‖" for d in layer.dstate]
        numbers = map(style.number, layer.dstate[0][1])
        want = {"rnn": [f"dh_{t}", *numbers], "lstm": [f"dh_{t}", norms[0], f"dc_{t}", norms[-1]]}
        assert "\n".join(want[name]) in found
        seen += 1
    assert seen == (4 if truncated is None else 2)


def test_unrolled_gradients_want_a_run():
    layer = layer_of("rnn")
    with pytest.raises(ValueError, match="dhs: expected xs as well"):
        viz.unrolled(layer, dhs=inputs(N, T, H))
    with pytest.raises(ValueError, match="dhs"):
        viz.unrolled(layer, xs=inputs(), dhs=inputs(N, T, H + 1))


# ---- valves and memory


@pytest.mark.parametrize(
    ("opening", "text"),
    [
        (0.7, "0.7 (70%)"),
        (0.2, "0.2 (20%)"),
        (1, "1 (100%)"),
        (0, "0 (0%)"),
        (0.006, "< 0.01 (< 1%)"),
    ],
)
def test_the_water_behind_a_valve_stands_as_high_as_it_is_open(opening, text):
    figure = viz.valve(opening)
    assert text in words(figure)
    full, behind = figure.axes[0].patches[:2]
    assert behind.get_height() == pytest.approx(opening * full.get_height())


def test_a_forget_gate_as_a_film(tmp_path):
    layer = layer_of("lstm")
    layer.forward(inputs(), trace=True)
    viz.animate_valve(layer.trace.gates["f"][0, :, 0], tmp_path / "f.gif", dpi=20)
    with Image.open(tmp_path / "f.gif") as film:
        assert film.n_frames == T


def test_what_forward_keeps_is_what_the_cell_saves():
    """The reference engine keeps, of an LSTM's step, four gates, two states and x."""
    layer = layer_of("lstm")
    one, two = (viz.saved_bytes(layer, 2, steps) for steps in (10, 20))
    assert two - one >= 10 * 6 * 2 * H * 8
    with rnn.use_backend("numba", strict=True):
        layer = layer_of("lstm", 8, 16, np.float32)
        sizes = [viz.saved_bytes(layer, 32, steps) for steps in (32, 64)]
        assert sizes[1] - sizes[0] == pytest.approx(32 * 6 * 32 * 16 * 4, rel=0.01)
        less = viz.saved_bytes(layer, 32, 64, checkpoint_every=8)
        assert less < sizes[1] / 10


def test_memory_draws_what_is_kept():
    layer = layer_of("gru")
    axes = viz.memory(layer, T=(8, 16), checkpoint_every=(0, 4), N=3).axes[0]
    for line, every in zip(axes.lines, (0, 4), strict=True):
        kept = [viz.saved_bytes(layer, 3, steps, every) for steps in (8, 16)]
        unit = line.get_ydata()[0] / kept[0]
        assert_allclose(line.get_ydata(), np.multiply(kept, unit))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["8", "16"]
    line = viz.memory(layer, T=(16, 4), checkpoint_every=[0], N=1).axes[0].lines[0]
    assert list(line.get_xdata()) == [4, 16]


# ---- the room


def test_pictures_of_traces_are_those_of_diagnostics():
    assert viz.gates is diagnostics.plot_gates
    assert viz.gradient_flow is diagnostics.plot_gradient_flow


def test_matplotlib_is_loaded_by_the_first_picture():
    program = """
import sys
import numba_rnn
from numba_rnn import viz
assert "matplotlib" not in sys.modules
sys.modules["matplotlib.figure"] = None
try:
    viz.valve(0.5)
except ImportError as error:
    print(error)
"""
    assert 'pip install "numba-rnn[viz]"' in run_python(program).stdout


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda r: viz.graph(rnn.TimeAffine.create(2, 3)), TypeError, "layer: expected"),
        (lambda r: viz.graph(r, show="numbers"), ValueError, "show: expected one of values"),
        (lambda r: viz.graph(r, show="values"), ValueError, "xs: expected"),
        (lambda r: viz.graph(r, inputs(D=4)), ValueError, "xs: expected shape"),
        (lambda r: viz.graph(r, inputs(dtype=np.float32)), TypeError, "xs: expected float64"),
        (lambda r: viz.graph(r, inputs() * np.nan), ValueError, "xs: expected finite"),
        (lambda r: viz.graph(r, inputs(), step=3), ValueError, "step: expected -3 to 2, got 3"),
        (lambda r: viz.graph(r, inputs(), np.ones((1, 1, 1))), ValueError, "dhs: expected"),
        (lambda r: viz.graph(r, inputs()[:, 0], [[1.0]]), TypeError, "dhs: expected an array"),
        (lambda r: viz.graph(r, inputs(), np.full((N, T, H), np.nan)), ValueError, "dhs: .*finite"),
        (lambda r: viz.graph(r, affine="none"), ValueError, "affine: expected"),
        (lambda r: viz.graph(r, large="max"), ValueError, "large: expected"),
        (lambda r: viz.graph(r, figure=3), TypeError, "figure: expected"),
        (lambda r: viz.unrolled(r, T=0), ValueError, "T: expected at least 1"),
        (lambda r: viz.unrolled(r, T=1000), ValueError, "T: expected at most"),
        (lambda r: viz.unrolled(r, T=2, xs=inputs()), ValueError, "T: expected 3"),
        (lambda r: viz.unrolled(r, truncated=0), ValueError, "truncated: expected"),
        (lambda r: viz.unrolled(r, xs=inputs(), row=2), ValueError, "row: expected 0 to 1"),
        (lambda r: viz.valve(1.1), ValueError, "opening: expected"),
        (lambda r: viz.valve(1.1), ValueError, "from 0 to 1, got"),
        (lambda r: viz.valve(True), TypeError, "opening: expected a number"),
        (lambda r: viz.valve("open"), TypeError, "opening: expected a number"),
        (lambda r: viz.valve(float("nan")), ValueError, "opening: expected"),
        (lambda r: viz.memory(r, T=()), ValueError, "T: expected some"),
        (lambda r: viz.memory(r, T=5), TypeError, "T: expected some numbers, got 5"),
        (lambda r: viz.saved_bytes(r, 0, 3), ValueError, "N: expected at least 1"),
        (lambda r: viz.animate_valve([], "x.gif"), ValueError, "openings: expected"),
        (lambda r: viz.animate_valve(["a"], "x.gif"), TypeError, "openings: expected numbers"),
        (lambda r: viz.animate_valve([1], "x.gif", seconds=700), ValueError, "seconds: expected"),
        (lambda r: viz.animate_valve([1], "x.gif", labels=[]), ValueError, "labels: expected 1"),
        (lambda r: viz.animate_backward(r, "x.gif", inputs(), seconds=0), ValueError, "seconds"),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call(layer_of("rnn"))


# ---- the code beside the equation


def test_source_is_the_text_of_the_file():
    for name in ("rnn", "lstm", "gru"):
        made = cells.get(name)
        for part in ("forward", "backward"):
            shown = viz.source(name, part)
            assert shown.place == f"kernels/cells/{name}.py"
            assert str(shown) == inspect.getsource(getattr(made, part))
            assert shown == viz.source(made, part)
    layer = rnn.TimeLSTM.create(2, 3, rng=0)
    assert viz.source(layer) == viz.source("lstm")
    assert viz.source(layer.forward).place == "numba_rnn/layers/recurrent.py"
    assert str(viz.source("gru", "operand")) == inspect.getsource(cells.get("gru").operand)


def test_source_of_a_cell_written_once_is_what_was_derived():
    @rnn.cell
    def halved(a, h):
        return tanh(a) + h / 2

    assert str(viz.source(halved, "backward")).strip() == halved.source("backward").strip()
    assert viz.source(halved).place == ""


def test_source_in_a_notebook():
    shown = viz.source("rnn")
    assert shown._repr_markdown_() == f"`kernels/cells/rnn.py`\n\n```python\n{shown}```"
    assert str(shown.lines("tanh", "return")) == "h = tanh(a)\nreturn (h,), (h,)\n"


def test_source_of_nothing():
    with pytest.raises(TypeError, match="what: expected a cell, a layer or a function, got 3"):
        viz.source(3)
    with pytest.raises(TypeError, match="what: expected code that is in a file, got <function"):
        viz.source(eval("lambda x: x"))
    with pytest.raises(ValueError, match="the cell lstm has no operand"):
        viz.source("lstm", "operand")
    with pytest.raises(ValueError, match="part: expected one of forward, backward, operand"):
        viz.source("lstm", "middle")
