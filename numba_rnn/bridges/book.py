"""The parameter lists of Deep Learning from Scratch 2: ``layer.params`` and ``model.params``.

    a layer        Wx, Wh, b
    TimeBiLSTM     Wx1, Wh1, b1, Wx2, Wh2, b2
    Rnnlm          embed_W, Wx, Wh, b, affine_W, affine_b
    BetterRnnlm    embed_W, Wx1, Wh1, b1, Wx2, Wh2, b2, embed_W.T, affine_b
    Seq2seq        embed_W, Wx, Wh, b of the encoder, then the six of the decoder, as in an Rnnlm;
                   PeekySeq2seq and AttentionSeq2seq likewise

in the layout that is also ours. Which cell it is follows from Wh (H, G H): G is 4 in an LSTM, 3 in
a GRU, 1 in an RNN. An .npz file has them under the names in the book's code, ``lstm_Wx`` and so on.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ..backend import to_host
from ..files import expect_unpacked, written_atomically
from ..layers import (
    Bidirectional,
    Layer,
    TimeAffine,
    TimeBiGRU,
    TimeBiLSTM,
    TimeBiRNN,
    TimeEmbedding,
    TimeGRU,
    TimeLSTM,
    TimeRecurrent,
    TimeRNN,
)
from ..models import Rnnlm
from ..typing import Array
from ..validation import FLOATS, any_shape, as_array, expect_array, expect_float_dtype
from .gate_order import ConversionError, expect_floats, library_layer_of, params_of
from .stacks import expect_plain_outputs

_CELLS: dict[int, tuple[str, Any, Any]] = {
    1: ("rnn", TimeRNN, TimeBiRNN),
    3: ("gru", TimeGRU, TimeBiGRU),
    4: ("lstm", TimeLSTM, TimeBiLSTM),
}
_KINDS = {"rnn": "rnn", "gru": "gru", "lstm": "lstm"}
_NAME = re.compile(r"(?:rnn_|lstm_|gru_)?((?:Wx|Wh|b)\d*)|(embed_W|affine_W|affine_b)")


class Seq2seq(NamedTuple):
    """The layers of the book's Seq2seq, PeekySeq2seq or AttentionSeq2seq.

    Attributes
    ----------
    encoder : tuple of TimeEmbedding and TimeRecurrent
        Embedding and recurrent layer.
    decoder : tuple of TimeEmbedding, TimeRecurrent and TimeAffine
        Embedding, recurrent layer (stateful) and affine layer. In PeekySeq2seq the inputs of the
        last two are preceded by the last state of the encoder; with attention the inputs of the
        affine layer are preceded by the context.
    """

    encoder: tuple[TimeEmbedding, TimeRecurrent]
    decoder: tuple[TimeEmbedding, TimeRecurrent, TimeAffine]


_ENCODER = ("embed_W", "Wx", "Wh", "b")
_SEQ2SEQ = [
    *(f"encoder {name}" for name in _ENCODER),
    *(f"decoder {name}" for name in (*_ENCODER, "affine_W", "affine_b")),
]
_BOTH_WAYS = ["Wx1", "Wh1", "b1", "Wx2", "Wh2", "b2"]

# ---- from the book


def from_book(
    source: Any, *, dtype: DTypeLike | None = None
) -> TimeRecurrent | Bidirectional | Rnnlm | Seq2seq:
    """Convert the book's parameters to a layer, a language model, or encoder and decoder.

    Parameters
    ----------
    source : list of arrays, dict of str to array, or path
        The list ``params`` of a layer, a TimeBiLSTM, a SimpleRnnlm, an Rnnlm, a BetterRnnlm (with
        or without its embed_W.T) or any Seq2seq; or arrays by name (not for a Seq2seq); or an .npz
        file of them, by name or from ``np.savez(path, *model.params)``.
    dtype : dtype, optional
        float32 or float64, to convert to. The book stores float16.

    Returns
    -------
    TimeRNN, TimeLSTM, TimeGRU, Bidirectional, Rnnlm or Seq2seq
        An Rnnlm is tied if there is no affine_W, or if it is embed_W.T.

    Raises
    ------
    TypeError
        If source is something else, or its dtype is neither float32 nor float64 and none is asked
        for.
    ValueError
        If arrays do not fit together, or a file is damaged.

    Notes
    -----
    The book's own .pkl files are programs that loading would run, so they are refused here;
    ``numba_rnn.book.BaseModel.load_params`` reads them.

    Examples
    --------
    >>> from_book([np.ones((3, 20)), np.ones((5, 20)), np.ones(20)])
    TimeLSTM(cell lstm, D 3, H 5, float64)
    """
    if isinstance(source, (str, Path)):
        source = _read(Path(source))
    if isinstance(source, Mapping):
        for name in source:
            if not isinstance(name, str):
                raise TypeError(f"source: expected names of arrays, got the key {name!r}")
        source = _listed(source)
    if not isinstance(source, Sequence):
        raise TypeError(
            "source: expected a list of parameters, arrays by name, or the path of an .npz file, "
            f"got {type(source).__name__}"
        )
    layers, rest = divmod(len(source) - 2, 3)
    if len(source) == 3:
        names = ["Wx", "Wh", "b"]
    elif len(source) == 6 and np.ndim(source[2]) == 1:  # an Rnnlm has Wh there
        names = _BOTH_WAYS
    elif len(source) == len(_SEQ2SEQ):
        names = _SEQ2SEQ
    elif layers > 0 and rest < 2:
        names = _names(layers, tied=rest == 0)
    else:
        raise ValueError(
            "source: expected the 3 parameters of a layer, the 6 of a TimeBiLSTM, the 6 of an "
            "Rnnlm, the 8 or 9 of a BetterRnnlm, or the 10 of a Seq2seq, "
            f"got {len(source)}"
        )
    wanted = None if dtype is None else expect_float_dtype("dtype", dtype)
    arrays = {
        name: _converted(name, value, wanted) for name, value in zip(names, source, strict=True)
    }
    if len(arrays) == 3:
        return _layer(arrays)
    if names is _BOTH_WAYS:
        return _both_ways(arrays)
    if names is _SEQ2SEQ:
        return _seq2seq(arrays)
    return _model(arrays, layers)


def _read(path: Path) -> dict[str, Array]:
    if path.suffix in (".pkl", ".pickle"):
        raise ValueError(
            f"source: expected an .npz file, got the pickle {path}, whose loading can run code; "
            "numba_rnn.book.BaseModel.load_params reads the book's, or where the book's code runs: "
            "np.savez(path, *model.params)"
        )
    if path.is_dir():
        raise ValueError(f"source: expected an .npz file, got the folder {path}")
    if "\0" in str(path):
        raise ValueError(f"source: expected the path of an .npz file, got {str(path)!r}")
    with open(path, "rb") as file:
        try:
            found = np.load(file, allow_pickle=False)
            members = getattr(getattr(found, "zip", None), "filelist", ())
            expect_unpacked(path, sum(member.file_size for member in members))
            return _arrays_of(found)
        except Exception as error:  # of zipfile, zlib, numpy: whatever they say to a broken file
            raise ValueError(
                f"source: {path} is not a complete .npz file of arrays ({error})"
            ) from error


def _arrays_of(file: Any) -> dict[str, Array]:
    if isinstance(file, np.ndarray):
        raise ValueError("it is one array")
    for name in file.files:  # before anything large is read
        if not (_NAME.fullmatch(name) or re.fullmatch(r"arr_\d+", name)):
            raise ValueError(f"{name!r} is not a parameter name of the book")
    arrays = dict(file)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is not an array")
    return arrays


def _names(layers: int, tied: bool) -> list[str]:
    """The names of a language model's parameters, in their order."""
    numbers = [""] if layers == 1 else [str(k + 1) for k in range(layers)]
    recurrent = [f"{name}{k}" for k in numbers for name in ("Wx", "Wh", "b")]
    return ["embed_W", *recurrent, *([] if tied else ["affine_W"]), "affine_b"]


def _listed(arrays: Mapping[str, Any]) -> list[Any]:
    """Arrays by name in the order of the book's lists."""
    if all(name.startswith("arr_") for name in arrays):  # np.savez gives these to a list
        names = [f"arr_{k}" for k in range(len(arrays))]
        plain = dict(arrays)
    else:
        matches = {name: _NAME.fullmatch(name) for name in arrays}
        plain = {m[1] or m[2] if m else name: arrays[name] for name, m in matches.items()}
        layers = sum(name.startswith("Wx") for name in plain)
        model = any(name.startswith(("embed", "affine")) for name in plain)
        names = ["Wx", "Wh", "b"] if layers < 2 else _BOTH_WAYS
        if model:
            names = _names(layers, tied="affine_W" not in plain)
    if sorted(plain) != sorted(names) or len(plain) != len(arrays):
        raise ValueError(f"source: expected {', '.join(names)}, got {', '.join(arrays)}")
    return [plain[name] for name in names]


def _converted(name: str, value: Any, dtype: np.dtype[Any] | None) -> Array:
    """An array of its own, in the dtype that is asked for."""
    array = np.array(as_array(name, value))
    floating = array.dtype.kind == "f"
    if dtype is not None and floating:
        return array.astype(dtype)
    if array.dtype not in FLOATS:
        hint = f'; dtype="float32" converts {name}' if floating else ""
        raise TypeError(f"{name}: expected float32 or float64, got {array.dtype}{hint}")
    return array


def _gates(name: str, Wh: Array) -> int:
    """How many gates there are beside each other in Wh (H, G H)."""
    expect_array(name, Wh, ("H", "G H"))
    H, columns = Wh.shape
    if columns % H or columns // H not in _CELLS:
        raise ValueError(
            f"{name}: expected shape (H, G H) with G 4 (LSTM), 3 (GRU) or 1 (RNN), got {Wh.shape}"
        )
    return columns // H


def _layer(arrays: Mapping[str, Array], prefix: str = "", **options: Any) -> TimeRecurrent:
    Wx, Wh, b = (arrays[f"{prefix}{name}"] for name in ("Wx", "Wh", "b"))
    _, layer, _ = _CELLS[_gates(f"{prefix}Wh", Wh)]
    try:
        return layer(Wx, Wh, b, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{prefix}{error}") from error


def _both_ways(arrays: dict[str, Array]) -> Bidirectional:
    Wx, Wh = arrays["Wx1"], arrays["Wh1"]
    G = _gates("Wh1", Wh)
    expect_array("Wx1", Wx, ("D", Wh.shape[1]))
    shapes = (Wx.shape, Wh.shape, Wh.shape[1:]) * 2
    for (name, array), shape in zip(arrays.items(), shapes, strict=True):
        expect_array(name, array, shape, Wx.dtype)
    return _CELLS[G][2](*arrays.values())


def _seq2seq(arrays: dict[str, Array]) -> Seq2seq:
    def expect_rows(name: str, *expected: int) -> None:
        if len(arrays[name]) not in expected:
            sizes = " or ".join(map(str, expected))
            raise ValueError(f"{name}: expected {sizes} rows, got {len(arrays[name])}")

    for name, array in arrays.items():
        shape = ("V", "D") if "embed" in name else any_shape(array)
        expect_array(name, array, shape, arrays["encoder embed_W"].dtype)
    encoder = TimeEmbedding(arrays["encoder embed_W"]), _layer(arrays, "encoder ")
    embed = TimeEmbedding(arrays["decoder embed_W"])
    recurrent = _layer(arrays, "decoder ", stateful=True)
    affine = arrays["decoder affine_W"], arrays["decoder affine_b"]
    (V, D), H = embed.W.shape, encoder[1].hidden_size
    expect_rows("encoder Wx", encoder[0].W.shape[1])
    expect_rows("decoder Wh", H)
    expect_rows("decoder Wx", D, H + D)  # the latter is peeky
    expect_array("decoder affine_W", affine[0], ("H", V), embed.dtype)
    expect_array("decoder affine_b", affine[1], (V,), embed.dtype)
    expect_rows("decoder affine_W", *((2 * H,) if recurrent.input_size > D else (H, 2 * H)))
    return Seq2seq(encoder, (embed, recurrent, TimeAffine(*affine)))


def _model(arrays: dict[str, Array], layers: int) -> Rnnlm:
    embed = arrays["embed_W"]
    expect_array("embed_W", embed, ("V", "D"))
    recurrent = _names(layers, tied=True)[1:-1]
    (V, D), Wh = embed.shape, arrays[recurrent[1]]
    G, H = _gates(recurrent[1], Wh), len(Wh)
    shapes: dict[str, tuple[int, ...]] = {"affine_W": (H, V), "affine_b": (V,)}
    for k, name in enumerate(recurrent):  # Wx, Wh, b of each layer
        shapes[name] = ((D if k == 0 else H, G * H), (H, G * H), (G * H,))[k % 3]
    for name in set(arrays) - {"embed_W"}:
        expect_array(name, arrays[name], shapes[name], embed.dtype)
    tie = np.array_equal(arrays.get("affine_W", embed.T), embed.T, equal_nan=True)
    sizes: dict[str, Any] = {"cell": _CELLS[G][0], "layers": layers, "tie": tie}
    model = Rnnlm(V, D, H, **sizes, init="book", dtype=embed.dtype)
    params = {"param/embedding.W": embed, "param/affine.b": arrays["affine_b"]}
    for k, name in enumerate(recurrent):
        params[f"param/recurrent{k // 3}.{name.rstrip('0123456789')}"] = arrays[name]
    if not tie:
        params["param/affine.W"] = arrays["affine_W"]
    model.load_arrays(params)
    return model


# ---- to the book


def to_book(
    model: TimeRecurrent | Bidirectional | Rnnlm | Seq2seq, path: str | Path | None = None
) -> list[Array]:
    """Convert a model to the list of parameters that the book's ``params`` holds.

    Parameters
    ----------
    model : TimeRecurrent, Bidirectional, Rnnlm or Seq2seq
        The model.
    path : str or Path, optional
        An .npz file to write the parameters to as well, by name (those of a Seq2seq by number). It
        is written whole or not at all.

    Returns
    -------
    list of arrays
        NumPy arrays, copies. For a tied model embed_W.T stands in the place of affine_W, as in
        BetterRnnlm.params; the file holds it once.

    Raises
    ------
    ConversionError
        For cells that are not in the book (its RNN uses tanh, its GRU resets before the product), a
        learnt initial state, or settings of ``regularise``.

    Examples
    --------
    >>> [array.shape for array in to_book(TimeLSTM.create(3, 5))]
    [(3, 20), (5, 20), (20,)]
    """
    layers, names = _parts(model)
    arrays = [array for layer in layers for array in _params(layer)]
    if path is not None:
        tied = isinstance(model, Rnnlm) and model.tie
        named = {
            name: array
            for name, array in zip(names, arrays, strict=True)
            if not (tied and name == "affine_W")
        }
        with written_atomically(Path(path)) as part, open(part, "wb") as file:
            np.savez(file, **named)  # type: ignore[arg-type]  # no name is allow_pickle
    return arrays


def _parts(model: Any) -> tuple[list[Layer], list[str]]:
    """The layers in the order of the book's list, and the names of their parameters in a file."""
    if isinstance(model, Rnnlm):
        affine = model._plain_affine()
        if not isinstance(affine, TimeAffine):
            raise ConversionError(
                "model: expected an Rnnlm with an affine output layer, as the book has, got one "
                f"with cutoffs, a {type(affine).__name__}"
            )
        layers = [model.embedding, *model.recurrent, affine]
        cell, names = _cell(model.recurrent[0]), _names(len(model.recurrent), tied=False)
        return layers, [name if "_" in name else f"{cell}_{name}" for name in names]
    if isinstance(model, TimeRecurrent):
        return [model], ["Wx", "Wh", "b"]
    if isinstance(model, Seq2seq):
        layers = [*model.encoder, *model.decoder]
        return layers, [f"arr_{k}" for k in range(len(_SEQ2SEQ))]
    if isinstance(model, Bidirectional):
        expect_plain_outputs("model", model, "the book")
        ahead, back = model.recurrent
        if (ahead.cell.name, ahead.hidden_size) != (back.cell.name, back.hidden_size):
            raise ConversionError(
                f"model: expected both directions with the same cell and H, got {ahead} and {back}"
            )
        return [ahead, back], _BOTH_WAYS
    raise TypeError(
        "model: expected a TimeRecurrent, a Bidirectional, an Rnnlm or a Seq2seq, got "
        f"{type(model).__name__}"
    )


def _params(layer: Layer) -> list[Array]:
    if isinstance(layer, TimeRecurrent):
        _cell(layer)
        params = params_of(layer, "the book")
        return [params[name].copy() for name in ("Wx", "Wh", "b")]
    expect_floats(layer, "the book")
    return [to_host(param).copy() for param in layer.params]


def _cell(layer: TimeRecurrent) -> str:
    if layer.cell.name == "gru_reset_after":
        raise ConversionError(
            "model: the book's GRU applies the reset gate before the recurrent product, "
            "(r * h) Wh; this one applies it after, r * (h Wh), and no weights make them equal"
        )
    return library_layer_of(layer, "the book", _KINDS)
