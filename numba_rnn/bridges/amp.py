"""Models of amplifiers and pedals, as their plugins read them: small LSTMs and GRUs in JSON.

    format      who plays it                   gates                   what else there is
    nam         Neural Amp Modeler (.nam)      i f g o, [x | h] rows   first states of every layer
    rtneural    RTNeural, AIDA-X, NeuralAudio  i f c o; z r h, Keras   dry signal added, gains in dB
    proteus     GuitarML's Proteus, NeuralPi   i f g o; r z n, PyTorch dry signal added

Reading a file is reading JSON: nothing in it is run, and every number is checked before a layer is
made. Formats as their projects document them and as their published models have them.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..backend import to_host
from ..files import written_atomically
from ..layers import Layer, Stacked, TimeAffine, TimeGRU, TimeLSTM, TimeRecurrent
from ..streaming import Stream
from ..typing import Array
from ..validation import (
    expect_array,
    expect_choice,
    expect_finite,
    expect_float,
    expect_float_dtype,
    format_shape,
)
from .gate_order import (
    KERAS,
    PYTORCH,
    ConversionError,
    expect_floats,
    from_theirs,
    library_layer_of,
    params_of,
    to_theirs,
)
from .pytorch import from_torch, torch_state_dict

FORMATS = "nam", "rtneural", "proteus"
_MOST = 1 << 28  # bytes of a file: these have thousands of numbers, not millions
_AGAIN = "the file is damaged or of another format; export it again"


@dataclass
class AmpModel:
    """A network that plays a device, and what a plugin does around it.

    Parameters
    ----------
    layers : list of Layer
        TimeLSTM or TimeGRU, the lowest first, and a TimeAffine on top. The first input is the
        signal, others are the positions of knobs.
    sample_rate : float, optional
        The rate in Hz of the audio that it has learnt from; None if the file does not say it.
    skip : bool, default False
        Whether the signal itself is added to the output.
    in_gain, out_gain : float, default 0.0
        Gains in dB before and behind.
    metadata : dict, optional
        The rest of the file: name, author, loudness and so on.

    Attributes
    ----------
    layers, sample_rate, skip, in_gain, out_gain, metadata
        The arguments.

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit on top of each other.

    Examples
    --------
    >>> from numba_rnn import TimeAffine, TimeLSTM
    >>> model = AmpModel([TimeLSTM.create(1, 16, rng=0), TimeAffine.create(16, 1)], 48000)
    >>> model.player(96000).play(np.zeros(64, np.float32)).shape
    (64,)
    """

    layers: list[Layer]
    sample_rate: float | None = None
    skip: bool = False
    in_gain: float = 0.0
    out_gain: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = list(self.layers)
        Stream(self.layers)  # which checks that they fit
        if not isinstance(self.layers[-1], TimeAffine):
            raise TypeError(f"layers: expected a TimeAffine on top, got {self.layers[-1]!r}")
        if self.sample_rate is not None:
            self.sample_rate = expect_float("sample_rate", self.sample_rate, 0, low_open=True)
        self.in_gain = expect_float("in_gain", self.in_gain, -200, 200)
        self.out_gain = expect_float("out_gain", self.out_gain, -200, 200)

    def player(self, sample_rate: float | None = None, *, prewarm: float = 0.0) -> "AmpPlayer":
        """Return a player of blocks of audio.

        Parameters
        ----------
        sample_rate : float, optional
            The rate of the audio, a whole multiple of that of the model, which is the default.
        prewarm : float, default 0.0
            Seconds of silence that are played before, so that no click is heard at the start.

        Returns
        -------
        AmpPlayer
            The player.
        """
        return AmpPlayer(self, sample_rate, prewarm=prewarm)


class AmpPlayer:
    """Plays an ``AmpModel`` block by block.

    Parameters
    ----------
    model : AmpModel
        The model. Its weights are those of now.
    sample_rate : float, optional
        The rate of the audio, k times that of the model, k a whole number; the default is that of
        the model.
    prewarm : float, default 0.0
        Seconds of silence that are played before.

    Attributes
    ----------
    factor : int
        k. Sample n continues the state that sample n - k has left: k streams take turns, so that
        each of them hears the rate at which the model has learnt.

    Raises
    ------
    ValueError
        If the rate is no multiple, or the model has none.
    """

    def __init__(
        self, model: AmpModel, sample_rate: float | None = None, *, prewarm: float = 0.0
    ) -> None:
        self.factor = _factor(model.sample_rate, sample_rate)
        self._streams = [Stream(model.layers) for _ in range(self.factor)]
        self._skip = model.skip
        self._gains = [10 ** (gain / 20) for gain in (model.in_gain, model.out_gain)]
        self._next = 0  # the stream whose turn it is
        first = self._streams[0]
        count = round(expect_float("prewarm", prewarm, 0) * (model.sample_rate or 0))
        if prewarm and not model.sample_rate:
            raise ValueError(
                "prewarm: expected a model with a sample_rate, got None; set model.sample_rate"
            )
        if count:
            first.step_many(np.zeros((count, first.input_size), first.dtype))
        self._start = first.snapshot()
        self.reset()

    def reset(self) -> None:
        """Start anew, after the silence of ``prewarm``."""
        self._next = 0
        for stream in self._streams:
            stream.restore(self._start)

    def play(self, block: Array) -> Array:
        """Play a block.

        Parameters
        ----------
        block : (T,) array, or (T, D)
            The samples, and in further columns the positions of knobs, in the dtype of the model.

        Returns
        -------
        out : (T,) array, or (T, O)
            The samples of the device; (T,) if there is one output.

        Raises
        ------
        ValueError, TypeError
            If the block does not fit, or has a number that is not finite; nothing is played then.
        """
        first = self._streams[0]
        if not isinstance(block, np.ndarray):
            raise TypeError(f"block: expected an array, got {type(block).__name__}")
        if block.dtype.kind in "iu":
            raise TypeError(
                f"block: expected samples of {first.dtype} between -1 and 1, got {block.dtype}; "
                f"block.astype(np.{first.dtype}) / {1 << (8 * block.dtype.itemsize - 1)} converts "
                "audio of whole numbers"
            )
        xs = block[:, None] if np.ndim(block) == 1 and first.input_size == 1 else block
        expect_array("block", xs, ("N", first.input_size), first.dtype)
        expect_finite("block", xs)
        (loud, out_gain), dtype = self._gains, first.dtype.type
        if loud != 1:
            xs = np.concatenate([xs[:, :1] * dtype(loud), xs[:, 1:]], axis=1)
        ys = np.empty((len(xs), first.output_size), first.dtype)
        for k, stream in enumerate(self._streams):
            at = slice((k - self._next) % self.factor, None, self.factor)
            if len(xs[at]):
                ys[at] = stream.step_many(np.ascontiguousarray(xs[at]))
        self._next = (self._next + len(xs)) % self.factor
        if self._skip:
            ys += xs[:, :1]
        ys *= dtype(out_gain)
        return ys[:, 0] if ys.shape[1] == 1 else ys


def _factor(own: float | None, rate: float | None) -> int:
    if rate is None:
        return 1
    rate = expect_float("sample_rate", rate, 0, low_open=True)
    if own is None:
        raise ValueError(
            "sample_rate: expected None for a model that does not say its own rate, got "
            f"{rate:g}; set model.sample_rate"
        )
    factor = round(rate / own)
    if factor < 1 or abs(factor * own - rate) > 1e-6 * rate:
        raise ValueError(
            f"sample_rate: expected a whole multiple of {own:g}, as the model has learnt, got "
            f"{rate:g}; resample the audio to {own:g}"
        )
    return factor


# ---- reading


def from_amp(source: str | Path | Mapping[str, Any], *, dtype: DTypeLike = np.float32) -> AmpModel:
    """Read a model of an amplifier or a pedal: .nam (LSTM), RTNeural or AIDA-X, Proteus.

    Parameters
    ----------
    source : path or dict
        The file, or the JSON that is in it. Its keys say which format it is.
    dtype : dtype, default float32
        float32 or float64.

    Returns
    -------
    AmpModel
        The layers, which train and stream, and the rest of the file.

    Raises
    ------
    ConversionError
        For networks of other layers: WaveNet, convolutions, other activations.
    ValueError
        If the file is damaged; the message names the key, what was expected and what is there.
    FileNotFoundError
        If there is no such file.
    TypeError
        If source is something else.

    Examples
    --------
    >>> from numba_rnn import TimeAffine, TimeLSTM
    >>> layers = [TimeLSTM.create(1, 8, rng=0), TimeAffine.create(8, 1)]
    >>> from_amp(to_amp(AmpModel(layers, 48000), format="nam")).layers[0]
    TimeLSTM(cell lstm, D 1, H 8, float32)
    """
    kind = expect_float_dtype("dtype", dtype)
    data = _loaded(source)
    for key, read in (("architecture", _from_nam), ("state_dict", _from_proteus)):
        if key in data:
            return read(data, kind)
    if "layers" in data:
        return _from_rtneural(data, kind)
    raise ValueError(
        "source: expected the key 'architecture' (.nam), 'layers' (RTNeural, AIDA-X) or "
        f"'state_dict' (Proteus), got {', '.join(map(repr, data)) or 'none'}"
    )


def _loaded(source: Any) -> Mapping[str, Any]:
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.stat().st_size > _MOST:
            raise ValueError(f"source: expected a file of at most {_MOST} bytes, got {path}")
        try:
            source = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"source: {path} is not a complete JSON file ({error})") from error
        if not isinstance(source, dict):
            raise ValueError(f"source: expected an object in {path}, got {type(source).__name__}")
    if not isinstance(source, Mapping):
        raise TypeError(f"source: expected a path or a dict, got {type(source).__name__}")
    return source


def _item(data: Any, key: str, where: str = "") -> Any:
    """The value under a key that must be there."""
    if not isinstance(data, Mapping) or key not in data:
        have = ", ".join(map(repr, data)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(
            f"source: expected the key {where + key!r}, got {have or 'no keys'}; {_AGAIN}"
        )
    return data[key]


def _list(data: Any, key: str, where: str = "", length: int | None = None) -> list[Any]:
    value = _item(data, key, where)
    if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
        many = "a list" if length is None else f"a list of {length}"
        got = f"one of {len(value)}" if isinstance(value, (list, tuple)) else repr(value)[:40]
        raise ValueError(f"source: expected {many} under {where + key!r}, got {got}; {_AGAIN}")
    return list(value)


def _int(data: Any, key: str, where: str = "", default: int | None = None) -> int:
    value = _item(data, key, where) if default is None else data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"source: expected a whole number from 1 under {where + key!r}, got "
            f"{repr(value)[:40]}; {_AGAIN}"
        )
    return value


def _number(value: Any, key: str) -> float | None:
    """A number, or text that is one, as AIDA-X has its rate; None if there is nothing."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    if isinstance(value, bool) or not np.isfinite(number):
        raise ValueError(
            f"source: expected a number under {key!r}, got {repr(value)[:40]}; {_AGAIN}"
        )
    return number


def _array(value: Any, where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Numbers of a shape, all of them finite in the dtype."""
    try:
        array = np.array(value)
    except (ValueError, RecursionError):  # rows of several lengths
        array = np.array(None)
    if array.dtype.kind not in "iuf" or array.shape != shape:
        got = format_shape(array.shape) if array.dtype.kind in "iuf" else "something else"
        raise ValueError(
            f"source: expected numbers of shape {format_shape(shape)} under {where!r}, got {got}; "
            f"{_AGAIN}"
        )
    with np.errstate(over="ignore"):
        array = array.astype(dtype)
    if not np.isfinite(array).all():
        raise ValueError(
            f"source: expected finite numbers under {where!r}, got NaN or infinity; {_AGAIN}"
        )
    return array


def _from_nam(data: Mapping[str, Any], dtype: np.dtype[Any]) -> AmpModel:
    if data["architecture"] != "LSTM":
        raise ConversionError(
            f"source: expected the architecture 'LSTM', got {data['architecture']!r}, which has no "
            "recurrent layer"
        )
    config = _item(data, "config")
    D = _int(config, "input_size", "config.")
    H = _int(config, "hidden_size", "config.")
    count = _int(config, "num_layers", "config.")
    outputs = _int(config, "out_channels", "config.", 1)
    total = 4 * H * (D + H) + (count - 1) * 8 * H * H + count * 6 * H + outputs * (H + 1)
    rest = _array(_list(data, "weights", length=total), "weights", (total,), dtype)

    def taken(*shape: int) -> Array:
        nonlocal rest
        size = int(np.prod(shape))
        found, rest = rest[:size], rest[size:]
        return found.reshape(shape)

    layers: list[Layer] = []
    for inputs in (D, *[H] * (count - 1)):
        W, b = taken(4 * H, inputs + H), taken(4 * H)
        Wx, Wh, b = (from_theirs(a, "lstm", PYTORCH) for a in (W[:, :inputs].T, W[:, inputs:].T, b))
        layer, start = TimeLSTM(Wx, Wh, b), taken(2, H)
        layers.append(layer.learn_initial_state(start.copy()) if start.any() else layer)
    W = np.ascontiguousarray(taken(outputs, H).T)
    metadata = dict(data.get("metadata") or {})
    rate = _number(data.get("sample_rate"), "sample_rate")
    return AmpModel([*layers, TimeAffine(W, taken(outputs).copy())], rate, metadata=metadata)


def _from_rtneural(data: Mapping[str, Any], dtype: np.dtype[Any]) -> AmpModel:
    described = _list(data, "layers")
    kinds = [_item(one, "type", f"layers[{k}].") for k, one in enumerate(described)]
    others = Counter(repr(kind) for kind in kinds if kind not in ("lstm", "gru", "dense"))
    if others or kinds[:-1].count("dense") or len(kinds) < 2 or kinds[-1] != "dense":
        have = ", ".join(f"{n} {kind}" for kind, n in others.items()) or ", ".join(map(str, kinds))
        raise ConversionError(
            f"source: expected layers of the types 'lstm' and 'gru' and one 'dense' on top, got "
            f"{have or 'none'}"
        )
    below = _list(data, "in_shape")[-1:]
    D = _int({"in_shape": below[0] if below else None}, "in_shape")
    layers: list[Layer] = []
    for k, (kind, one) in enumerate(zip(kinds, described, strict=True)):
        where = f"layers[{k}]."
        H = _int({"shape": (_list(one, "shape", where) or [None])[-1]}, "shape", where)
        if one.get("activation", "") not in ("", "tanh" if kind != "dense" else "linear"):
            raise ConversionError(
                f"source: {where}activation is {one['activation']!r}; here it is "
                f"{'linear' if kind == 'dense' else 'tanh'}"
            )
        weights = _list(one, "weights", where, 2 if kind == "dense" else 3)
        G = {"lstm": 4, "gru": 3, "dense": 1}[kind]
        shapes = [(D, G * H), (H, G * H), (2, G * H) if kind == "gru" else (G * H,)]
        arrays = [
            _array(array, f"{where}weights[{n}]", shape, dtype)
            for n, (array, shape) in enumerate(
                zip(weights, shapes if G > 1 else [shapes[0], shapes[2]], strict=True)
            )
        ]
        if kind == "dense":
            layers.append(TimeAffine(*arrays))
        else:
            Wx, Wh, b = (from_theirs(array, kind, KERAS) for array in arrays)
            layers.append(
                TimeLSTM(Wx, Wh, b) if kind == "lstm" else TimeGRU(Wx, Wh, b, reset_after=True)
            )
        D = H
    metadata = dict(data.get("metadata") or {})
    rate = data.get("samplerate", metadata.get("samplerate"))
    return AmpModel(
        layers,
        _number(rate, "samplerate"),
        _skip(data.get("in_skip"), "in_skip"),
        _number(data.get("in_gain"), "in_gain") or 0.0,
        _number(data.get("out_gain"), "out_gain") or 0.0,
        metadata,
    )


def _skip(value: Any, key: str) -> bool:
    if value not in (None, 0, 1):
        raise ConversionError(f"source: expected 0 or 1 under {key!r}, got {value!r}")
    return bool(value)


def _from_proteus(data: Mapping[str, Any], dtype: np.dtype[Any]) -> AmpModel:
    options, arrays = _item(data, "model_data"), _item(data, "state_dict")
    unit = _item(options, "unit_type", "model_data.")
    if unit not in ("LSTM", "GRU"):
        raise ConversionError(f"source: model_data.unit_type is {unit!r}; expected 'LSTM' or 'GRU'")
    D, H = (_int(options, f"{name}_size", "model_data.") for name in ("input", "hidden"))
    outputs = _int(options, "output_size", "model_data.", 1)
    rows, below, named = (4 if unit == "LSTM" else 3) * H, D, {}
    for k in range(_int(options, "num_layers", "model_data.", 1)):
        for name, shape in (
            ("weight_ih", (rows, below)), ("weight_hh", (rows, H)),
            ("bias_ih", (rows,)), ("bias_hh", (rows,)),
        ):  # fmt: skip
            name = f"rec.{name}_l{k}"
            where = f"state_dict.{name}"
            named[name] = _array(_item(arrays, name, "state_dict."), where, shape, dtype)
        below = H
    W = _array(
        _item(arrays, "lin.weight", "state_dict."), "state_dict.lin.weight", (outputs, H), dtype
    )
    b = _array(_item(arrays, "lin.bias", "state_dict."), "state_dict.lin.bias", (outputs,), dtype)
    stack = from_torch(named)
    layers = list(stack.layers) if isinstance(stack, Stacked) else [stack]
    affine = TimeAffine(np.ascontiguousarray(W.T), b)
    rate = _number(data.get("sample_rate"), "sample_rate")
    skip = _skip(options.get("skip"), "model_data.skip")
    return AmpModel([*layers, affine], rate, skip, metadata=dict(data.get("metadata") or {}))


# ---- writing


def to_amp(model: AmpModel, path: str | Path | None = None, *, format: str) -> dict[str, Any]:  # noqa: A002
    """Write a model as plugins read it.

    Parameters
    ----------
    model : AmpModel
        The model.
    path : str or Path, optional
        A file to write to as well, whole or not at all.
    format : {"nam", "rtneural", "proteus"}
        The format. "rtneural" is also that of AIDA-X.

    Returns
    -------
    dict
        The JSON.

    Raises
    ------
    ValueError, TypeError
        For weights that are not finite, and metadata that JSON cannot hold.
    ConversionError
        For what the format lacks: other cells, layers of several sizes (nam, proteus), a GRU or the
        dry signal (nam), gains (nam, proteus), a learnt initial state (rtneural, proteus).

    Examples
    --------
    >>> from numba_rnn import TimeAffine, TimeLSTM
    >>> model = AmpModel([TimeLSTM.create(1, 8, rng=0), TimeAffine.create(8, 1)], 48000)
    >>> to_amp(model, format="rtneural")["in_shape"]
    [None, None, 1]
    """
    if not isinstance(model, AmpModel):
        raise TypeError(f"model: expected an AmpModel, got {type(model).__name__}")
    writers = {"nam": _to_nam, "rtneural": _to_rtneural, "proteus": _to_proteus}
    recurrent: Any = model.layers[:-1]
    for k, layer in enumerate(model.layers):
        expect_floats(layer, "to_amp")
        for j, array in enumerate(layer.params):
            expect_finite(f"layers[{k}].params[{j}]", to_host(array))
    W, b = map(to_host, model.layers[-1].params)
    made = _json("", writers[expect_choice("format", format, FORMATS)](model, recurrent, W, b))
    if path is not None:
        text = json.dumps(made, allow_nan=False)
        with written_atomically(Path(path)) as part:
            part.write_text(text, encoding="utf-8")
    return made


def _json(where: str, value: Any) -> Any:
    """A value as JSON has it, NumPy's numbers and arrays as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Mapping):
        inside = f"{where}[{{!r}}]" if where else "{}"
        items = ((k.item() if isinstance(k, np.generic) else k, one) for k, one in value.items())
        return {key: _json(inside.format(key), one) for key, one in items}
    if isinstance(value, (list, tuple)):
        return [_json(f"{where}[{k}]", one) for k, one in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: JSON has finite numbers, got {value}; None says there is none")
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"{where}: expected text, numbers, lists or dicts, got {value!r}")
    return value


def _expect_one_size(recurrent: Sequence[Any], library: str) -> int:
    sizes = [layer.hidden_size for layer in recurrent]
    if len(set(sizes)) > 1:
        raise ConversionError(f"layers: {library} has layers of one size, got {sizes}")
    return int(sizes[0])


def _expect_no_more(model: AmpModel, library: str, *names: str) -> None:
    for name in names:
        if getattr(model, name):
            raise ConversionError(
                f"{name}: {library} has no place for it; expected 0, got {getattr(model, name)}"
            )


def _to_nam(model: AmpModel, recurrent: Sequence[TimeRecurrent], W: Array, b: Array) -> Any:
    _expect_no_more(model, "a .nam file", "skip", "in_gain", "out_gain")
    numbers = []
    for layer in recurrent:
        library_layer_of(layer, "a .nam file", {"lstm": ""})
        params = params_of(layer, "a .nam file", initial=True)
        Wx, Wh, bias = (to_theirs(params[name], "lstm", PYTORCH) for name in ("Wx", "Wh", "b"))
        start = params.get("initial", np.zeros((2, layer.hidden_size)))
        numbers += [np.concatenate([Wx, Wh]).T, bias, start]
    config = {
        "input_size": recurrent[0].input_size,
        "hidden_size": _expect_one_size(recurrent, "a .nam file"),
        "num_layers": len(recurrent),
        **({"out_channels": len(b)} if len(b) > 1 else {}),
    }
    return {
        "version": "0.5.4",
        "metadata": model.metadata,
        "architecture": "LSTM",
        "config": config,
        "weights": [x for array in (*numbers, W.T, b) for x in array.ravel().tolist()],
        **({} if model.sample_rate is None else {"sample_rate": model.sample_rate}),
    }


def _to_rtneural(model: AmpModel, recurrent: Sequence[TimeRecurrent], W: Array, b: Array) -> Any:
    layers = []
    for layer in recurrent:
        kind = library_layer_of(layer, "RTNeural", {"lstm": "lstm", "gru_reset_after": "gru"})
        params = params_of(layer, "RTNeural")
        arrays = [to_theirs(params[name], kind, KERAS) for name in ("Wx", "Wh", "b")]
        layers.append((kind, "", layer.hidden_size, arrays))
    layers.append(("dense", "", len(b), [W, b]))
    metadata = dict(model.metadata)
    if model.sample_rate is not None:
        metadata["samplerate"] = f"{model.sample_rate:g}"
    return {
        "in_shape": [None, None, recurrent[0].input_size],
        "layers": [
            {
                "type": kind,
                "activation": activation,
                "shape": [None, None, size],
                "weights": [array.tolist() for array in arrays],
            }
            for kind, activation, size, arrays in layers
        ],
        **({"in_skip": 1} if model.skip else {}),
        **{name: gain for name in ("in_gain", "out_gain") if (gain := getattr(model, name))},
        "metadata": metadata,
    }


def _to_proteus(model: AmpModel, recurrent: Sequence[TimeRecurrent], W: Array, b: Array) -> Any:
    _expect_no_more(model, "Proteus", "in_gain", "out_gain")
    kinds = {"lstm": "LSTM", "gru_reset_after": "GRU"}
    units = {library_layer_of(layer, "Proteus", kinds) for layer in recurrent}
    if len(units) > 1:
        raise ConversionError("layers: Proteus has layers of one kind, got LSTM and GRU")
    H = _expect_one_size(recurrent, "Proteus")
    arrays = torch_state_dict(Stacked(recurrent) if len(recurrent) > 1 else recurrent[0])
    state = {f"rec.{name}": array.tolist() for name, array in arrays.items()}
    return {
        "model_data": {
            "model": "SimpleRNN",
            "input_size": recurrent[0].input_size,
            "skip": int(model.skip),
            "output_size": len(b),
            "unit_type": units.pop(),
            "num_layers": len(recurrent),
            "hidden_size": H,
            "bias_fl": True,
        },
        "state_dict": {**state, "lin.weight": W.T.tolist(), "lin.bias": b.tolist()},
        **({} if model.sample_rate is None else {"sample_rate": model.sample_rate}),
        "metadata": model.metadata,
    }
