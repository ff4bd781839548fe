"""The book's parameter lists. Its layers, written down here as on the page, are the oracle.

With the data (NUMBA_RNN_DATA, see test_published.py) the book's own file is read as well.
"""

import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import relative_error
from numba_rnn import (
    Bidirectional,
    TimeAffine,
    TimeBiLSTM,
    TimeGRU,
    TimeLSTM,
    TimeProjectedLSTM,
    TimeRNN,
)
from numba_rnn.bridges import ConversionError, from_book, to_book
from numba_rnn.models import Rnnlm

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
LIMITS = {"float32": 2e-6, "float64": 1e-13}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def book_layer(xs, Wx, Wh, b, h=None):
    """TimeRNN, TimeGRU or TimeLSTM of the book, chapters 5, 6 and appendix C."""
    N, H = len(xs), len(Wh)
    c, hs = np.zeros((N, H), xs.dtype), []
    h = c if h is None else h
    for x in xs.swapaxes(0, 1):
        if Wh.shape[1] == H:
            h = np.tanh(x @ Wx + h @ Wh + b)
        elif Wh.shape[1] == 3 * H:
            z, r = (sigmoid((x @ Wx + h @ Wh + b)[:, k * H : (k + 1) * H]) for k in (0, 1))
            new = np.tanh(x @ Wx[:, 2 * H :] + (r * h) @ Wh[:, 2 * H :] + b[2 * H :])
            h = (1 - z) * h + z * new
        else:
            f, g, i, o = np.split(x @ Wx + h @ Wh + b, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs, axis=1)


def book_model(ids, embed_W, *params):
    """The scores of Rnnlm or BetterRnnlm."""
    *recurrent, affine_W, affine_b = params
    hs = embed_W[ids]
    for k in range(0, len(recurrent), 3):
        hs = book_layer(hs, *recurrent[k : k + 3])
    return hs @ affine_W + affine_b


def numbers(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).uniform(-0.6, 0.6, shape).astype(dtype)


def layer_params(cell, D, H, seed=0, dtype="float32"):
    G = GATES[cell]
    shapes = (D, G * H), (H, G * H), (G * H,)
    return [numbers(*shape, dtype=dtype, seed=seed + k) for k, shape in enumerate(shapes)]


def model_params(cell="lstm", V=7, D=3, H=5, layers=1, tied=False, seed=0, dtype="float32"):
    """The list params of the book's models."""
    embed = numbers(V, D, dtype=dtype, seed=seed)
    found = [embed]
    for k in range(layers):
        found += layer_params(cell, H if k else D, H, seed + 10 * k, dtype)
    affine = embed.T if tied else numbers(H, V, dtype=dtype, seed=seed + 5)
    return [*found, affine, numbers(V, dtype=dtype, seed=seed + 6)]


@settings(deadline=None, max_examples=20)
@given(
    cell=st.sampled_from(list(GATES)),
    N=st.integers(1, 4),
    T=st.integers(1, 6),
    D=st.integers(1, 7),
    H=st.integers(1, 19),
    dtype=st.sampled_from(list(LIMITS)),
    seed=st.integers(0, 99),
)
def test_layers_there_and_back(cell, N, T, D, H, dtype, seed):
    params, xs = layer_params(cell, D, H, seed, dtype), numbers(N, T, D, dtype=dtype, seed=seed)
    layer = from_book(params)
    assert layer.cell.name == cell
    got, want = layer.forward(xs), book_layer(xs, *params)
    assert got.dtype == want.dtype
    assert relative_error(got, want) < LIMITS[dtype]
    for ours, theirs in zip(to_book(layer), params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert not np.shares_memory(ours, theirs)


@settings(deadline=None, max_examples=20)
@given(
    cell=st.sampled_from(list(GATES)),
    N=st.integers(1, 4),
    T=st.integers(1, 6),
    V=st.integers(2, 9),
    D=st.integers(1, 7),
    H=st.integers(1, 19),
    layers=st.integers(1, 3),
    tied=st.booleans(),
    dtype=st.sampled_from(list(LIMITS)),
    seed=st.integers(0, 99),
)
def test_models_there_and_back(cell, N, T, V, D, H, layers, tied, dtype, seed):
    params = model_params(cell, V, H if tied else D, H, layers, tied, seed, dtype)
    ids = np.random.default_rng(seed).integers(0, V, (N, T))
    want = book_model(ids, *params)
    sources = [params, tuple(params)] + ([[*params[:-2], params[-1]]] if tied else [])
    for source in sources:
        model = from_book(source)
        assert (model.tie, model.config["layers"], model.config["cell"]) == (tied, layers, cell)
        got = model.predict(ids)
        assert got.dtype == want.dtype
        assert relative_error(got, want) < LIMITS[dtype]
    for ours, theirs in zip(to_book(model), params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert not any(np.shares_memory(ours, param) for param in model.params)


@settings(deadline=None, max_examples=20)
@given(
    cell=st.sampled_from(list(GATES)),
    N=st.integers(1, 4),
    T=st.integers(1, 6),
    D=st.integers(1, 7),
    H=st.integers(1, 19),
    dtype=st.sampled_from(list(LIMITS)),
    seed=st.integers(0, 99),
)
def test_both_directions_there_and_back(cell, N, T, D, H, dtype, seed):
    params = [*layer_params(cell, D, H, seed, dtype), *layer_params(cell, D, H, seed + 3, dtype)]
    xs = numbers(N, T, D, dtype=dtype, seed=seed)
    layer = from_book(params)
    assert [part.cell.name for part in layer.recurrent] == [cell, cell]
    ahead, back = book_layer(xs, *params[:3]), book_layer(xs[:, ::-1], *params[3:])[:, ::-1]
    assert relative_error(layer.forward(xs), np.concatenate([ahead, back], 2)) < LIMITS[dtype]
    for ours, theirs in zip(to_book(layer), params, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def seq2seq_params(kind, V=7, D=3, H=5, seed=0, dtype="float32", cell="lstm"):
    """The list params of Seq2seq, PeekySeq2seq or AttentionSeq2seq."""
    into, out = (H + D if kind == "peeky" else D), (H if kind == "plain" else 2 * H)
    return [
        *model_params(cell, V, D, H, seed=seed, dtype=dtype)[:4],
        numbers(V, D, seed=seed + 40, dtype=dtype),
        *layer_params(cell, into, H, seed + 41, dtype),
        numbers(out, V, seed=seed + 44, dtype=dtype),
        numbers(V, seed=seed + 45, dtype=dtype),
    ]


def seq2seq_scores(kind, layers, xs, ts):
    """The scores of the book's models, their layers given as functions of arrays."""
    embed, encode, embed_too, decode, affine = layers
    hs = encode(embed(xs))
    h = hs[:, -1]
    repeated = np.repeat(h[:, None], ts.shape[1], axis=1)
    out = embed_too(ts)
    if kind == "peeky":
        out = np.concatenate([repeated, out], axis=2)
    out = decode(out, h)
    if kind == "peeky":
        out = np.concatenate([repeated, out], axis=2)
    if kind == "attention":
        weights = np.exp(np.einsum("nth,nsh->nts", out, hs))
        weights /= weights.sum(axis=2, keepdims=True)
        out = np.concatenate([np.einsum("nts,nsh->nth", weights, hs), out], axis=2)
    return affine(out)


@pytest.mark.parametrize("kind", ["plain", "peeky", "attention"])
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("D", "H"), [(3, 5), (5, 5), (1, 1), (4, 2)])
def test_encoders_and_decoders_there_and_back(kind, cell, dtype, D, H, tmp_path):
    params = seq2seq_params(kind, D=D, H=H, dtype=dtype, cell=cell)
    embed, Wx, Wh, b, embed_too, Wx2, Wh2, b2, affine_W, affine_b = params
    random = np.random.default_rng(0)
    xs, ts = random.integers(0, 7, (2, 6)), random.integers(0, 7, (2, 4))
    arrays = (
        lambda ids: embed[ids],
        lambda x: book_layer(x, Wx, Wh, b),
        lambda ids: embed_too[ids],
        lambda x, h: book_layer(x, Wx2, Wh2, b2, h),
        lambda x: x @ affine_W + affine_b,
    )
    want = seq2seq_scores(kind, arrays, xs, ts)
    path = tmp_path / "model.npz"
    found = from_book(params)
    for ours, theirs in zip(to_book(found, path), params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for model in (found, from_book(path), from_book(to_book(found), dtype=dtype)):
        (first, encoder), (second, decoder, affine) = model

        def decode(x, h, decoder=decoder):
            decoder.set_state(h)
            return decoder.forward(x)

        layers = first.forward, encoder.forward, second.forward, decode, affine.forward
        got = seq2seq_scores(kind, layers, xs, ts)
        assert got.dtype == dtype
        assert relative_error(got, want) < 4 * LIMITS[dtype]


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize(("layers", "tied"), [(1, False), (1, True), (2, True), (2, False)])
def test_files_of_models(cell, layers, tied, tmp_path):
    params = model_params(cell, D=5 if tied else 3, layers=layers, tied=tied)
    path, numbered = tmp_path / "model.npz", tmp_path / "numbered.npz"
    to_book(from_book(params), path)
    np.savez(numbered, *params)
    numerals = [""] if layers == 1 else ["1", "2"]
    with np.load(path) as found:
        assert set(found) == {
            "embed_W", "affine_b", *([] if tied else ["affine_W"]),
            *(f"{cell}_{name}{k}" for k in numerals for name in ("Wx", "Wh", "b")),
        }  # fmt: skip
        by_name = dict(found)
    for source in (path, str(path), numbered, by_name):
        model = from_book(source)
        assert model.tie == tied
        for ours, theirs in zip(to_book(model), params, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.npz", "numbered.npz"]


def test_files_of_layers(tmp_path):
    params = layer_params("lstm", 3, 5)
    to_book(from_book(params), tmp_path / "layer.npz")
    np.savez(tmp_path / "numbered.npz", *params)
    for name in ("layer", "numbered"):
        layer = from_book(tmp_path / f"{name}.npz")
        for ours, theirs in zip(to_book(layer), params, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_files_of_both_directions(tmp_path):
    params = [*layer_params("lstm", 3, 5), *layer_params("lstm", 3, 5, seed=3)]
    to_book(from_book(params), tmp_path / "layer.npz")
    np.savez(tmp_path / "numbered.npz", *params)
    with np.load(tmp_path / "layer.npz") as found:
        assert set(found) == {"Wx1", "Wh1", "b1", "Wx2", "Wh2", "b2"}
    for name in ("layer", "numbered"):
        layer = from_book(tmp_path / f"{name}.npz")
        assert type(layer) is TimeBiLSTM
        for ours, theirs in zip(to_book(layer), params, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_other_dtypes_are_converted_where_it_is_asked_for():
    params = [param.astype(np.float16) for param in model_params()]
    with pytest.raises(TypeError, match=r'embed_W: .* got float16; dtype="float32" converts'):
        from_book(params)
    for dtype in LIMITS:
        for ours, theirs in zip(to_book(from_book(params, dtype=dtype)), params, strict=True):
            assert ours.dtype == dtype
            np.testing.assert_array_equal(ours, theirs.astype(dtype))
    with pytest.raises(TypeError, match="dtype: expected float32 or float64, got 'float16'"):
        from_book(params, dtype="float16")
    with pytest.raises(TypeError, match=r"Wx: expected float32 or float64, got int64$"):
        from_book([np.ones((3, 4), int), np.ones((4, 4)), np.ones(4)], dtype="float32")
    tied = [param.astype(np.float16) for param in model_params(D=5, layers=2, tied=True)]
    assert from_book(tied, dtype="float32").tie


if DATA := os.environ.get("NUMBA_RNN_DATA"):  # not a skip: without it there is nothing to collect

    def test_the_books_own_file():
        path = Path(DATA) / "ptb" / "book_rnnlm.npz"
        with pytest.raises(TypeError, match='got float16; dtype="float32" converts'):
            from_book(path)
        model = from_book(path, dtype="float32")
        assert str(model) == (
            "Rnnlm(vocab_size 10000, embed_size 100, hidden_size 100, cell lstm, layers 1, "
            "dropout 0.0, tie False, init book, dtype float32)"
        )
        with np.load(path) as found:
            params = [found[name].astype(np.float32) for name in (
                "embed_W", "lstm_Wx", "lstm_Wh", "lstm_b", "affine_W", "affine_b",
            )]  # fmt: skip
        ids = np.arange(20).reshape(2, 10)
        assert relative_error(model.predict(ids), book_model(ids, *params)) < LIMITS["float32"]


# ---- what is refused


def changed(place, value, **options):
    def make():
        params = model_params(**options)
        params[place] = value
        return params

    return make


WRONG = {
    "number": (lambda: 3, TypeError, "source: expected a list of parameters, .* got int"),
    "array": (lambda: np.ones((3, 4)), TypeError, "source: .* got ndarray"),
    "none": (list, ValueError, "the 3 parameters of a layer, .* got 0"),
    "four": (lambda: model_params()[:4], ValueError, "the 6 of an Rnnlm, .* got 4"),
    "seven": (lambda: [*model_params(), np.ones(3)], ValueError, "got 7"),
    "gates": (
        lambda: [np.ones((3, 10)), np.ones((5, 10)), np.ones(10)],
        ValueError,
        r"Wh: expected shape \(H, G H\) with G 4 \(LSTM\), 3 \(GRU\) or 1 \(RNN\), got \(5, 10\)",
    ),
    "no whole gates": (lambda: [np.ones((3, 9)), np.ones((5, 9)), np.ones(9)], ValueError, "Wh: "),
    "vector": (lambda: [np.ones((3, 4)), np.ones(4), np.ones(4)], ValueError, r"Wh: .* got \(4,\)"),
    "Wx": (lambda: [np.ones((3, 8)), *layer_params("lstm", 3, 5)[1:]], TypeError, "Wh: .*float64"),
    "b": (
        lambda: [*layer_params("lstm", 3, 5)[:2], numbers(19)],
        ValueError,
        r"b: expected shape \(20,\), got \(19,\)",
    ),
    "embedding": (changed(0, numbers(7)), ValueError, r"embed_W: expected shape \(V, D\)"),
    "sizes": (changed(0, numbers(7, 4)), ValueError, r"Wx: expected shape \(4, 20\), got"),
    "second": (
        changed(4, numbers(4, 20), layers=2),
        ValueError,
        r"Wx2: expected shape \(5, 20\), got \(4, 20\)",
    ),
    "another cell": (
        changed(5, numbers(5, 15), layers=2),
        ValueError,
        r"Wh2: expected shape \(5, 20\), got \(5, 15\)",
    ),
    "affine": (changed(4, numbers(7, 5)), ValueError, r"affine_W: expected shape \(5, 7\)"),
    "words": (changed(5, numbers(8)), ValueError, r"affine_b: expected shape \(7,\), got \(8,\)"),
    "dtypes": (changed(5, np.ones(7)), TypeError, "affine_b: expected float32, .* got float64"),
    "tied": (lambda: [*model_params()[:4], numbers(7)], ValueError, "tie: .* got 3 and 5"),
    "objects": (lambda: [np.array([None])] * 3, TypeError, "Wx: .* got object"),
    "second direction": (
        lambda: [*layer_params("lstm", 3, 5), *layer_params("lstm", 3, 4)],
        ValueError,
        r"Wx2: expected shape \(3, 20\), got \(3, 16\)",
    ),
    "two kinds": (
        lambda: [*layer_params("lstm", 3, 5), *layer_params("gru", 3, 5)], ValueError, "Wx2: ",
    ),
    "directions' dtypes": (
        lambda: [*layer_params("lstm", 3, 5), *layer_params("lstm", 3, 5, dtype="float64")],
        TypeError,
        "Wx2: expected float32, .* got float64",
    ),
    "encoder": (
        lambda: seq2seq_params("plain", D=3)[:1] + seq2seq_params("plain", D=4)[1:],
        ValueError,
        "encoder Wx: expected 3 rows, got 4",
    ),
    "decoder": (
        lambda: seq2seq_params("plain", D=3)[:5] + seq2seq_params("plain", D=4)[5:],
        ValueError,
        "decoder Wx: expected 3 or 8 rows, got 4",
    ),
    "decoder's dtypes": (
        lambda: seq2seq_params("plain")[:4] + seq2seq_params("plain", dtype="float64")[4:],
        TypeError,
        "decoder embed_W: expected float32, .* got float64",
    ),
    "encoder's vector": (
        lambda: [numbers(7), *seq2seq_params("plain")[1:]],
        ValueError,
        r"encoder embed_W: expected shape \(V, D\)",
    ),
    "decoder's state": (
        lambda: seq2seq_params("plain")[:4] + seq2seq_params("plain", H=4)[4:],
        ValueError,
        "decoder Wh: expected 5 rows, got 4",
    ),
    "peeky": (
        lambda: seq2seq_params("peeky")[:8] + seq2seq_params("plain")[8:],
        ValueError,
        "decoder affine_W: expected 10 rows, got 5",
    ),
    "decoder's words": (
        lambda: [*seq2seq_params("plain")[:9], numbers(8)],
        ValueError,
        r"decoder affine_b: expected shape \(7,\)",
    ),
    "decoder's bias": (
        lambda: [*seq2seq_params("plain")[:7], numbers(19), *seq2seq_params("plain")[8:]],
        ValueError,
        r"decoder b: expected shape \(20,\), got \(19,\)",
    ),
    "missing": (
        lambda: {"embed_W": 0, "lstm_Wx": 0, "lstm_Wh": 0, "affine_b": 0},
        ValueError,
        "expected embed_W, Wx, Wh, b, affine_b, got embed_W, lstm_Wx, lstm_Wh, affine_b",
    ),
    "twice": (
        lambda: {"lstm_Wx": 0, "rnn_Wx": 0, "Wh": 0, "b": 0}, ValueError, "expected Wx, Wh, b, got",
    ),
    "numbers": (lambda: {"arr_0": 0, "arr_2": 0}, ValueError, "expected arr_0, arr_1, got"),
    "unknown": (lambda: {"Wx": 0, "Wh": 0, "bias": 0}, ValueError, "expected Wx, Wh, b, got"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_model_of_the_book_is_refused(what):
    make, error, says = WRONG[what]
    with pytest.raises(error, match=says):
        from_book(make())


def test_a_tied_model_with_nan_in_its_embedding_is_tied():
    params = to_book(Rnnlm(5, 4, 4, tie=True, rng=0))
    params[0][2, 1] = np.nan
    for source in ([*params[:4], params[-1]], [*params[:4], params[0].T, params[-1]]):
        model = from_book(source)
        assert model.tie
        np.testing.assert_array_equal(model.embedding.params[0], params[0])


def test_keys_that_are_no_names_and_folders_are_refused(tmp_path):
    with pytest.raises(TypeError, match="source: expected names of arrays, got the key 3"):
        from_book({3: np.ones(3)})
    with pytest.raises(ValueError, match=r"expected an \.npz file, got the folder"):
        from_book(tmp_path)
    with pytest.raises(ValueError, match=r"expected the path of an \.npz file"):
        from_book("a\0b")


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name + ".npy", data)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "model.npz"
    to_book(from_book(model_params()), path)
    whole = path.read_bytes()
    refused = pytest.raises(ValueError, match=r"model\.npz is not a complete \.npz file of arrays")
    for length in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:length])
        with refused:
            from_book(path)
    flipped = bytearray(whole)
    flipped[300] ^= 1  # in the numbers of the first array
    path.write_bytes(flipped)
    with refused:
        from_book(path)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }"
    huge = (header % b"1099511627776, 1048576").ljust(127) + b"\n"
    for content in (huge, b"", b"\x93NUMPY\x01\x00", pickle.dumps([1])):
        zip_of(path, Wx=content)
        with refused:
            from_book(path)
    np.savez(path, Wx=np.array([{}]), Wh=np.ones(3), b=np.ones(3))  # a pickle inside
    with refused:
        from_book(path)
    np.savez(path, Wx=np.ones(3), secret=np.ones(3))
    with pytest.raises(ValueError, match="'secret' is not a parameter name of the book"):
        from_book(path)
    np.save(tmp_path / "one.npy", np.ones(3))
    os.replace(tmp_path / "one.npy", path)
    with refused:
        from_book(path)
    with pytest.raises(FileNotFoundError):
        from_book(tmp_path / "none.npz")


def test_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("Rnnlm.pkl", "Rnnlm.npz"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps([Trap()]))
        with pytest.raises(ValueError, match=r"source: "):
            from_book(path)
    with pytest.raises(ValueError, match=r"np\.savez\(path, \*model\.params\)"):
        from_book(tmp_path / "Rnnlm.pkl")
    assert not (tmp_path / "ran").exists()


NO_BOOK = {
    "relu": (lambda: TimeRNN.create(3, 5, activation="relu"), "no cell 'rnn_relu'"),
    "reset after": (
        lambda: TimeGRU.create(3, 5, reset_after=True), r"r \* \(h Wh\), and no weights make",
    ),
    "projected": (lambda: TimeProjectedLSTM.create(3, 5, proj_size=2), "no cell 'lstm_projected'"),
    "initial": (lambda: TimeLSTM.create(3, 5).learn_initial_state(), "no learnt initial state"),
    "zoneout": (lambda: Rnnlm(7, 3, 5, zoneout=0.1), "the book has no zoneout"),
    "directions": (
        lambda: Bidirectional(TimeLSTM.create(3, 5), TimeGRU.create(3, 5)), "the same cell and H",
    ),
    "sizes": (
        lambda: Bidirectional(TimeLSTM.create(3, 5), TimeLSTM.create(3, 4)), "the same cell and H",
    ),
    "model": (lambda: Rnnlm(7, 3, 5, cell="gru_reset_after"), "no weights make them equal"),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_BOOK)
def test_what_the_book_has_not_is_refused(what, tmp_path):
    make, says = NO_BOOK[what]
    with pytest.raises(ConversionError, match=says):
        to_book(make(), tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model: expected a TimeRecurrent, .* got TimeAffine"):
        to_book(TimeAffine.create(3, 5))


def test_an_npz_file_that_was_made_to_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"Wx": np.zeros((30, 1 << 20), np.float32), "Wh": np.ones((5, 20)), "b": np.ones(20)}
    np.savez_compressed(path, **arrays)
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"a\.npz: expected a file that unpacks to at most 100 times"
    ):
        from_book(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    np.savez_compressed(
        path, *from_book([np.zeros((3, 20)), np.zeros((5, 20)), np.zeros(20)]).params
    )
    assert from_book(path).hidden_size == 5
