"""Models of amplifiers: the arithmetic of each format, written down here in its own order."""

import copy
import json

import numpy as np
import pytest

from numba_rnn import Stream, TimeAffine, TimeGRU, TimeLSTM
from numba_rnn.bridges import AmpModel, ConversionError, from_amp, to_amp

H, T = 5, 50


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-0.6, 0.6, shape)


def signal(*shape, seed=9):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def played(step, states, xs, head, bias, factor=1):
    """Sample by sample; each goes on from the state that the one ``factor`` before it has left."""
    found, turns = [], [copy.deepcopy(states) for _ in range(factor)]
    for n, x in enumerate(xs):
        h, turns[n % factor] = step(x, turns[n % factor])
        found.append(head @ h + bias)
    return np.array(found)


# ---- Neural Amp Modeler


def nam(D=1, layers=2, outputs=1, rate=48000):
    parts = []
    for k in range(layers):
        size = (D if k == 0 else H) + H
        parts += [
            numbers(4 * H, size, seed=k),
            numbers(4 * H, seed=9 + k),
            numbers(2, H, seed=5 + k),
        ]
    parts += [numbers(outputs, H, seed=70), numbers(outputs, seed=71)]
    config = {"input_size": D, "hidden_size": H, "num_layers": layers}
    if outputs > 1:
        config["out_channels"] = outputs
    return {
        "version": "0.5.4", "metadata": {"name": "made up"}, "architecture": "LSTM",
        "config": config, "weights": [x for part in parts for x in part.ravel().tolist()],
        "sample_rate": rate,
    }  # fmt: skip


def play_nam(data, xs, factor=1):
    rest, (D, layers) = (
        list(data["weights"]),
        (data["config"][n] for n in ("input_size", "num_layers")),
    )

    def taken(*shape):
        size = int(np.prod(shape))
        found = np.array(rest[:size]).reshape(shape)
        del rest[:size]
        return found

    cells, states = [], []
    for k in range(layers):
        cells.append((taken(4 * H, (D if k == 0 else H) + H), taken(4 * H)))
        states.append([taken(H), taken(H)])

    def step(x, states):
        out = []
        for (W, b), (h, c) in zip(cells, states, strict=True):
            i, f, g, o = np.split(W @ np.concatenate([x, h]) + b, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(c)
            out.append([x, c])
        return x, out

    outputs = data["config"].get("out_channels", 1)
    return played(step, states, xs, taken(outputs, H), taken(outputs), factor)


# ---- RTNeural and AIDA-X


def rtneural(*kinds, D=1, **more):
    layers, below = [], D
    for k, kind in enumerate(kinds):
        G = {"lstm": 4, "gru": 3}[kind]
        bias = numbers(2, 3 * H, seed=k) if kind == "gru" else numbers(4 * H, seed=k)
        arrays = [numbers(below, G * H, seed=10 + k), numbers(H, G * H, seed=20 + k), bias]
        layers.append({
            "type": kind, "activation": "", "shape": [None, None, H],
            "weights": [array.tolist() for array in arrays],
        })  # fmt: skip
        below = H
    dense = [numbers(H, 1, seed=30).tolist(), numbers(1, seed=31).tolist()]
    layers.append({"type": "dense", "activation": "", "shape": [None, None, 1], "weights": dense})
    return {"in_shape": [None, None, D], "layers": layers, "metadata": {}, **more}


def play_rtneural(data, xs, factor=1):
    *cells, dense = data["layers"]
    arrays = [[np.array(w) for w in one["weights"]] for one in cells]
    states = [np.zeros((2, H)) for _ in cells]

    def step(x, states):
        out = []
        for (W, U, b), (h, c) in zip(arrays, states, strict=True):
            if W.shape[1] == 4 * H:
                i, f, g, o = np.split(x @ W + h @ U + b, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:  # z is the share of the old state, the reset comes after the product
                z, r, n = np.split(x @ W + b[0], 3)
                rz, rr, rn = np.split(h @ U + b[1], 3)
                z, r = sigmoid(z + rz), sigmoid(r + rr)
                h = z * h + (1 - z) * np.tanh(n + r * rn)
            x = h
            out.append([h, c])
        return x, out

    gain = [10 ** (data.get(name, 0) / 20) for name in ("in_gain", "out_gain")]
    xs = np.concatenate([xs[:, :1] * gain[0], xs[:, 1:]], axis=1)
    head, bias = map(np.array, dense["weights"])
    ys = played(step, states, xs, head.T, bias, factor)
    return (ys + xs[:, :1] * data.get("in_skip", 0)) * gain[1]


# ---- Proteus


def proteus(unit="LSTM", D=1, layers=1, skip=1):
    G, state = {"LSTM": 4, "GRU": 3}[unit], {}
    for k in range(layers):
        state |= {
            f"rec.weight_ih_l{k}": numbers(G * H, D if k == 0 else H, seed=k).tolist(),
            f"rec.weight_hh_l{k}": numbers(G * H, H, seed=10 + k).tolist(),
            f"rec.bias_ih_l{k}": numbers(G * H, seed=20 + k).tolist(),
            f"rec.bias_hh_l{k}": numbers(G * H, seed=30 + k).tolist(),
        }
    state |= {
        "lin.weight": numbers(1, H, seed=40).tolist(),
        "lin.bias": numbers(1, seed=41).tolist(),
    }
    return {
        "model_data": {
            "model": "SimpleRNN", "input_size": D, "skip": skip, "output_size": 1,
            "unit_type": unit, "num_layers": layers, "hidden_size": H, "bias_fl": True,
        },
        "state_dict": state,
    }  # fmt: skip


def play_proteus(data, xs, factor=1):
    state = {name: np.array(value) for name, value in data["state_dict"].items()}
    layers = data["model_data"]["num_layers"]

    def step(x, states):
        out = []
        for k, (h, c) in enumerate(states):
            own = (state[f"rec.{n}_l{k}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            w, u, bi, bh = own
            if data["model_data"]["unit_type"] == "LSTM":
                i, f, g, o = np.split(w @ x + u @ h + bi + bh, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                r, z, n = np.split(w @ x + bi, 3)
                rr, rz, rn = np.split(u @ h + bh, 3)
                r, z = sigmoid(r + rr), sigmoid(z + rz)
                h = (1 - z) * np.tanh(n + r * rn) + z * h
            x = h
            out.append([h, c])
        return x, out

    ys = played(step, np.zeros((layers, 2, H)), xs, state["lin.weight"], state["lin.bias"], factor)
    return ys + xs[:, :1] * data["model_data"]["skip"]


FILES = {
    "nam": (nam(), play_nam, "nam"),
    "nam, one layer, knobs": (nam(D=3, layers=1, outputs=2), play_nam, "nam"),
    "rtneural lstm": (rtneural("lstm", samplerate=48000), play_rtneural, "rtneural"),
    "rtneural gru, knobs": (rtneural("gru", D=2), play_rtneural, "rtneural"),
    "rtneural both": (rtneural("gru", "lstm"), play_rtneural, "rtneural"),
    "aida-x": (
        rtneural("lstm", in_skip=1, in_gain=3.5, out_gain=-6.0, metadata={"samplerate": "48000"}),
        play_rtneural,
        "rtneural",
    ),
    "proteus": (proteus(), play_proteus, "proteus"),
    "proteus, knobs": (proteus(D=3, skip=0), play_proteus, "proteus"),
    "proteus gru": (proteus("GRU", layers=2), play_proteus, "proteus"),
}


def flat(block):
    return block[:, 0] if block.shape[1] == 1 else block


@pytest.mark.parametrize("what", FILES)
def test_files_play_as_their_formats_say(what, tmp_path):
    data, play, kind = FILES[what]
    model = from_amp(data, dtype=np.float64)
    xs = signal(T, model.layers[0].input_size)
    want = play(data, xs)
    got = model.player().play(flat(xs))
    np.testing.assert_allclose(got, flat(want), rtol=1e-12, atol=1e-13)
    half = from_amp(data)
    assert half.layers[0].dtype == np.float32
    np.testing.assert_allclose(half.player().play(flat(xs.astype("f"))), got, rtol=1e-4, atol=3e-6)

    path = tmp_path / "model.json"
    written = to_amp(model, path, format=kind)
    assert json.loads(path.read_text("utf-8")) == written
    np.testing.assert_allclose(play(written, xs), want, rtol=1e-12, atol=1e-13)
    for source in (path, str(path)):
        again = from_amp(source, dtype=np.float64)
        np.testing.assert_array_equal(again.player().play(flat(xs)), got)
        for name in ("sample_rate", "skip", "in_gain", "out_gain"):
            assert getattr(again, name) == getattr(model, name)


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("factor", [2, 3])
def test_another_rate(what, factor):
    """Blocks of any size; each sample goes on from that which is ``factor`` earlier."""
    data, play, _ = FILES[what]
    model = from_amp(data, dtype=np.float64)
    model.sample_rate = 48000
    xs = signal(T, model.layers[0].input_size)
    want = flat(play(data, xs, factor))
    player = model.player(48000 * factor)
    assert player.factor == factor
    for _ in range(2):
        blocks = [player.play(flat(block)) for block in np.split(xs, [1, 8, 8, 21])]
        np.testing.assert_allclose(np.concatenate(blocks), want, rtol=1e-12, atol=1e-13)
        player.reset()


def test_silence_before():
    data = nam(rate=1000)
    model = from_amp(data, dtype=np.float64)
    xs = signal(T)
    player = model.player(prewarm=0.03)
    want = play_nam(data, np.concatenate([np.zeros(30), xs])[:, None])[30:, 0]
    for _ in range(2):
        np.testing.assert_allclose(player.play(xs), want, rtol=1e-12, atol=1e-13)
        player.reset()
    turns = model.player(2000, prewarm=0.03)
    warm = [
        play_nam(data, np.concatenate([np.zeros(30), xs[k::2]])[:, None])[30:, 0] for k in (0, 1)
    ]
    np.testing.assert_allclose(turns.play(xs), np.stack(warm, 1).ravel(), rtol=1e-12, atol=1e-13)


def test_a_model_trains_and_goes_out_again():
    model = from_amp(nam(layers=1))
    lstm, affine = model.layers
    assert lstm.param_names[-1] == "initial"
    xs = signal(2, T, 1).astype("f")
    lstm.backward(affine.backward(np.ones_like(affine.forward(lstm.forward(xs)))))
    for layer in model.layers:
        for param, grad in zip(layer.params, layer.grads, strict=True):
            param -= 0.01 * grad
    again = from_amp(to_amp(model, format="nam"))
    got, want = again.player().play(xs[0, :, 0]), Stream(model.layers).step_many(xs[0])[:, 0]
    np.testing.assert_allclose(got, want, atol=1e-6)


def changed(data, *keys, to=None, drop=False):
    data = copy.deepcopy(data)
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    if drop:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    return data


def layer_of(**change):
    data = rtneural("lstm")
    data["layers"][0] |= change
    return data


WRONG = {
    "nothing": ({}, ValueError, "expected the key 'architecture' .* got none"),
    "other keys": ({"a": 1}, ValueError, r"'state_dict' \(Proteus\), got 'a'"),
    "wavenet": (nam() | {"architecture": "WaveNet"}, ConversionError, "'LSTM', got 'WaveNet'"),
    "no config": (changed(nam(), "config", drop=True), ValueError, "key 'config', got 'version'"),
    "no size": (
        changed(nam(), "config", "hidden_size", drop=True), ValueError, "key 'config.hidden_size'",
    ),
    "size": (
        changed(nam(), "config", "hidden_size", to=-1), ValueError,
        "whole number from 1 under 'config.hidden_size', got -1; .*export it again",
    ),
    "true": (changed(nam(), "config", "num_layers", to=True), ValueError, "num_layers', got True"),
    "huge": (
        changed(nam(), "config", "hidden_size", to=10**9), ValueError, "list of .* under 'weights'",
    ),
    "layers": (changed(nam(), "config", "num_layers", to=10**12), ValueError, "under 'weights'"),
    "short": (nam() | {"weights": nam()["weights"][:-1]}, ValueError, "a list of 386 .* got one"),
    "text": (
        nam() | {"weights": ["1"] * 386}, ValueError, r"numbers of shape \(386,\) under 'weights'",
    ),
    "nan": (
        nam() | {"weights": [float("nan")] * 386}, ValueError, "finite numbers under 'weights'",
    ),
    "too large": (
        nam() | {"weights": [1e300] * 386}, ValueError, "finite numbers under 'weights'",
    ),
    "rate": (nam(rate="fast"), ValueError, "a number under 'sample_rate', got 'fast'"),
    "rate 0": (nam(rate=0), ValueError, "sample_rate: expected a finite number above 0"),
    "conv": (
        {"layers": [{"type": "conv1d"}, *rtneural("lstm")["layers"]]}, ConversionError,
        "types 'lstm' and 'gru' and one 'dense' on top, got 1 'conv1d'",
    ),
    "no dense": ({"layers": rtneural("lstm")["layers"][:1]}, ConversionError, "on top, got lstm"),
    "no type": (
        changed(rtneural("lstm"), "layers", 0, "type", drop=True), ValueError, r"layers\[0\].type'",
    ),
    "no in_shape": (
        changed(rtneural("lstm"), "in_shape", drop=True), ValueError, "the key 'in_shape'",
    ),
    "in_shape": (rtneural("lstm") | {"in_shape": []}, ValueError, "under 'in_shape', got None"),
    "activation": (layer_of(activation="relu"), ConversionError, r"\[0\].activation is 'relu'"),
    "arrays": (layer_of(weights=[1]), ValueError, r"a list of 3 under 'layers\[0\].weights'"),
    "rows": (
        layer_of(weights=[[[1, 2], [3]], [], []]), ValueError,
        r"of shape \(1, 20\) under 'layers\[0\].weights\[0\]', got something else",
    ),
    "shape": (layer_of(shape=[None, None, 4]), ValueError, r"\(1, 16\) .* got \(1, 20\)"),
    "skip": (rtneural("lstm", in_skip=2), ConversionError, "0 or 1 under 'in_skip', got 2"),
    "unit": (
        changed(proteus(), "model_data", "unit_type", to="RNN"), ConversionError, "'RNN'; expected",
    ),
    "no array": (
        changed(proteus(), "state_dict", "rec.bias_hh_l0", drop=True), ValueError,
        "the key 'state_dict.rec.bias_hh_l0', got",
    ),
    "array": (
        changed(proteus(), "state_dict", "lin.weight", to=[[1.0]]), ValueError,
        r"of shape \(1, 5\) under 'state_dict.lin.weight', got \(1, 1\)",
    ),
    "a number": (3, TypeError, "source: expected a path or a dict, got int"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what):
    data, error, says = WRONG[what]
    with pytest.raises(error, match=says):
        from_amp(data)


def test_files_that_are_not_whole(tmp_path):
    path = tmp_path / "amp.nam"
    whole = json.dumps(nam())
    for text in (whole[:-1], "", "[" * 100_000, "\x00"):
        path.write_text(text, "utf-8")
        with pytest.raises(ValueError, match=r"amp\.nam is not a complete JSON file"):
            from_amp(path)
    path.write_text("[1]", "utf-8")
    with pytest.raises(ValueError, match=r"expected an object in .*, got list"):
        from_amp(path)
    with pytest.raises(FileNotFoundError):
        from_amp(tmp_path / "none.nam")


def model_of(*layers, **options):
    top = layers[-1].hidden_size
    return AmpModel([*layers, TimeAffine.create(top, 1, rng=0)], **options)


LSTM, GRU = TimeLSTM.create(1, 4, rng=0), TimeGRU.create(1, 4, rng=0, reset_after=True)
NOT_THERE = {
    "a gru in nam": (model_of(GRU), "nam", "a .nam file has no cell 'gru_reset_after'"),
    "skip in nam": (model_of(LSTM, skip=True), "nam", "skip: a .nam file has no place for it"),
    "gain": (model_of(LSTM, out_gain=1), "proteus", "out_gain: Proteus has no place"),
    "sizes": (model_of(LSTM, TimeLSTM.create(4, 3)), "nam", r"layers of one size, got \[4, 3\]"),
    "kinds": (model_of(LSTM, TimeGRU.create(4, 4, reset_after=True)), "proteus", "of one kind"),
    "book's gru": (model_of(TimeGRU.create(1, 4)), "rtneural", "RTNeural has no cell 'gru'"),
    "initial": (
        model_of(TimeLSTM.create(1, 4).learn_initial_state()), "rtneural", "no learnt initial",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_THERE)
def test_what_a_format_lacks_is_refused(what, tmp_path):
    model, kind, says = NOT_THERE[what]
    with pytest.raises(ConversionError, match=says):
        to_amp(model, tmp_path / "amp", format=kind)
    assert not list(tmp_path.iterdir())


def test_players_and_models_check_what_they_are_given():
    model = model_of(LSTM, sample_rate=48000)
    for rate in (44100, 24000, 47999):
        with pytest.raises(ValueError, match=f"whole multiple of 48000.*got {rate}; resample"):
            model.player(rate)
    player = model.player()
    for block in (np.zeros((3, 2), "f"), np.zeros((1, 2, 1), "f")):
        with pytest.raises(ValueError, match=r"block: expected shape \(N, 1\)"):
            player.play(block)
    with pytest.raises(TypeError, match="block: expected float32"):
        player.play(np.zeros(3))
    with pytest.raises(ValueError, match="block"):
        player.play(np.full(3, np.nan, "f"))
    assert player.play(np.zeros(0, "f")).shape == (0,)
    unknown = model_of(LSTM)
    with pytest.raises(ValueError, match=r"sample_rate: .* does not say its own rate, got 48000"):
        unknown.player(48000)
    with pytest.raises(ValueError, match="prewarm: expected a model with a sample_rate"):
        unknown.player(prewarm=1)
    with pytest.raises(TypeError, match="layers: expected a TimeAffine on top"):
        AmpModel([LSTM])
    with pytest.raises(TypeError, match="model: expected an AmpModel, got TimeLSTM"):
        to_amp(LSTM, format="nam")
    with pytest.raises(ValueError, match="format: expected one of nam, rtneural, proteus"):
        to_amp(model, format="wav")


def test_blocks_that_are_no_samples_are_refused_with_the_remedy():
    player = AmpModel([TimeLSTM.create(1, 4, rng=0), TimeAffine.create(4, 1, rng=0)]).player()
    samples = np.array([0, 16384, -32768], np.int16)
    with pytest.raises(TypeError, match=r"block: .*got int16; block\.astype.* / 32768 converts"):
        player.play(samples)
    with pytest.raises(TypeError, match="block: expected an array, got list"):
        player.play([0.1, 0.2])
    assert player.play(samples.astype(np.float32) / 32768).shape == (3,)


def test_numbers_that_are_not_finite_are_refused_by_name_and_those_of_numpy_are_written(tmp_path):
    layers = [TimeLSTM.create(1, 4, rng=0), TimeAffine.create(4, 1, rng=1)]
    told = {"loss": np.float32(0.5), "gains": np.arange(2), "steps": (np.int64(3), True, None)}
    model = AmpModel(layers, np.float32(48000), metadata=told)
    for name in ("nam", "rtneural", "proteus"):
        made = to_amp(model, tmp_path / "x.json", format=name)
        assert json.loads((tmp_path / "x.json").read_text()) == made
        assert {key: made["metadata"][key] for key in told} == {
            "loss": 0.5, "gains": [0, 1], "steps": [3, True, None]
        }  # fmt: skip
        for value, error, says in (
            (np.nan, ValueError, r"metadata\['a'\]\['b'\]: JSON has finite numbers, got nan"),
            (object(), TypeError, r"metadata\['a'\]\['b'\]: expected text, numbers, lists"),
        ):
            wrong = AmpModel(layers, metadata={"a": {"b": value}})
            with pytest.raises(error, match=says):
                to_amp(wrong, format=name)
    layers[0].params[1][2, 3] = np.nan
    with pytest.raises(ValueError, match=r"layers\[0\].params\[1\]: .* got nan at \(2, 3\)"):
        to_amp(model, format="nam")
