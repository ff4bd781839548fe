"""Weights from Keras 3 and to it.

    kernel (D, G H)            Wx      bias (G H,)                       b
    recurrent_kernel (H, G H)  Wh      bias (2, 3 H), GRU reset_after    its two rows

with the gates in another order, see ``gate_order.py``. Layers are known by the names of their
classes and by what ``get_config`` says; keras itself is imported only where one is made.
"""

from typing import Any

import numpy as np

from ..backend import to_host
from ..layers import Bidirectional, Reversed, Stacked, TimeGRU, TimeLSTM, TimeRecurrent, TimeRNN
from ..optional_deps import optional_import
from ..typing import Array
from ..validation import expect_int
from .gate_order import (
    KERAS,
    ConversionError,
    as_floats,
    from_theirs,
    library_layer_of,
    params_of,
    to_theirs,
)
from .stacks import Part, build_stack, directions_of, layers_of_stack

_FAMILIES = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
_MERGES = {"concat": "concat", "sum": "sum", "mean": "ave", "mul": "mul"}  # ours, theirs
_KNOWN = (*_FAMILIES, "Bidirectional", "Sequential", "Dropout")
_SAID = "activation", "go_backwards", "stateful", "dropout", "recurrent_dropout"
_ELSEWHERE = {  # what is a layer here, but no recurrent one
    "Dense": "TimeAffine(*dense.get_weights())",
    "Embedding": "TimeEmbedding(*embedding.get_weights())",
}
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # of a cell here, the class and its options
    "rnn": ("SimpleRNN", {"activation": "tanh"}),
    "rnn_relu": ("SimpleRNN", {"activation": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"reset_after": False}),
    "gru_reset_after": ("GRU", {"reset_after": True}),
}


# ---- from Keras


def from_keras(source: Any) -> TimeRecurrent | Bidirectional | Reversed | Stacked:
    """Convert Keras' SimpleRNN (tanh or relu), LSTM or GRU to layers with the same weights.

    Parameters
    ----------
    source : Keras layer, or list of them
        A built layer; a Bidirectional of such (any merge_mode but None); a Sequential or a list of
        these, with Dropout of one rate between them.

    Returns
    -------
    TimeRNN, TimeLSTM, TimeGRU, Bidirectional, Reversed or Stacked
        The layer in the dtype of source; several layers become a Stacked, ``go_backwards`` a
        Reversed with its outputs in_reading_order. ``stateful`` is converted with the states, in
        both directions, ``dropout`` becomes ``regularise(input_dropout=...)``.

    Raises
    ------
    ConversionError
        For layers that compute something else: other activations, a merge_mode of None,
        subclasses, RNN around a cell, mixed precision, recurrent_dropout of a cell with gates.
    TypeError
        For other layers, and for dtypes other than float32 and float64.
    ValueError
        For a layer that is not built.

    Notes
    -----
    Keras layers have no mode, so ``train_flg`` is False; set it to True for dropout.

    Layers here return all steps. With return_sequences=False Keras returns the last state alone:
    ``layer.h``, for a Bidirectional the states of ``layer.forward_layer`` and
    ``layer.backward_layer`` concatenated. At steps that a mask leaves out hs is 0, as with
    zero_output_for_mask.

    Examples
    --------
    >>> import keras
    >>> layer = keras.layers.LSTM(5)
    >>> layer.build((None, None, 3))
    >>> from_keras(layer)
    TimeLSTM(cell lstm, D 3, H 5, float32)
    """
    if not isinstance(source, (list, tuple)):
        source = source.layers if _class_of(source) == "Sequential" else [source]
    for layer in source:
        _class_of(layer)  # what is not taken at all is said first
    for layer in source[:-1]:
        if getattr(layer, "return_sequences", True) is False:
            raise ValueError(
                f"source: expected return_sequences=True below the last layer, got False of "
                f"{layer.name}"
            )
    result = build_stack([_part(layer) for layer in source])
    result.train_flg = False
    return result


def _class_of(layer: Any) -> str:
    """The name of one of Keras' own classes."""
    kind = type(layer)
    theirs = {base.__name__ for base in kind.__mro__ if base.__module__.split(".")[0] == "keras"}
    if kind.__module__.split(".")[0] == "keras" and kind.__name__ in _KNOWN:
        return kind.__name__
    if theirs & {"RNN", "Bidirectional", "Sequential"}:
        raise ConversionError(
            f"source: expected Keras' own SimpleRNN, LSTM and GRU, got {kind.__name__}, which may "
            "compute something else"
        )
    also = _ELSEWHERE.get(kind.__name__)
    raise TypeError(
        "source: expected Keras' SimpleRNN, LSTM, GRU, a Bidirectional of them, or a Sequential or "
        f"list of these with Dropout between them, got {kind.__name__}"
        + (
            f"; {kind.__name__} is {also}: from_keras converts recurrent layers only"
            if also
            else ""
        )
    )


def _part(layer: Any) -> Part | float:
    """A layer, or the rate of a dropout."""
    kind = _class_of(layer)
    if kind == "Sequential":
        raise TypeError("source: expected layers in the Sequential, got another Sequential")
    if kind == "Dropout":
        if layer.noise_shape is not None:
            raise ConversionError(
                f"source: {layer.name} has a noise_shape; here each element is dropped on its own"
            )
        return float(layer.rate)
    if kind != "Bidirectional":
        result = _layer(layer)
        if layer.go_backwards:
            return Reversed(result, in_reading_order=True)
        return result
    if layer.merge_mode not in _MERGES.values():
        raise ConversionError(
            f"source: {layer.name} has merge_mode {layer.merge_mode!r}, two outputs; here there is "
            'one: set merge_mode to "concat" and take its halves, np.split(hs, 2, axis=2)'
        )
    for inner, backwards in ((layer.forward_layer, False), (layer.backward_layer, True)):
        if getattr(inner, "go_backwards", backwards) != backwards:
            raise ConversionError(
                f"source: {layer.name} has go_backwards={not backwards} in {inner.name}; in a "
                "Bidirectional here the first layer reads forwards and the second backwards"
            )
    ahead, back = _layer(layer.forward_layer), _layer(layer.backward_layer)
    _expect_dtype(layer, ahead.dtype)
    carries, back.stateful = back.stateful, False
    merge = next(ours for ours, theirs in _MERGES.items() if theirs == layer.merge_mode)
    both = Bidirectional(ahead, back, merge=merge)
    back.stateful = carries  # as in Keras and the book, though its state comes from the future
    return both


def _layer(layer: Any) -> TimeRecurrent:
    """One layer in one direction."""
    name, family = layer.name, _FAMILIES.get(_class_of(layer))
    if family is None:
        raise TypeError(f"source: expected SimpleRNN, LSTM or GRU in Bidirectional, got {name}")
    if not (layer.built and layer.weights):
        raise ValueError(
            f"source: expected a built layer, got {name} without weights; calling it on data, or "
            f"layer.build((None, None, D)), makes them"
        )
    config = layer.get_config()
    for key in (*_SAID, *(("reset_after",) if family == "gru" else ())):
        if key not in config:
            raise ValueError(f"source: expected {key} in the config of {name}, got none")
    _expect_computed_here(name, family, config)
    Wx, Wh, *biases = (
        from_theirs(as_floats(weight.path, weight.value), family, KERAS) for weight in layer.weights
    )
    _expect_dtype(layer, Wx.dtype)
    two = family == "gru" and config["reset_after"]
    b = biases[0] if biases else np.zeros((2,) * two + Wx.shape[1:], Wx.dtype)
    stateful = config["stateful"]
    result: TimeRecurrent
    if family == "lstm":
        result = TimeLSTM(Wx, Wh, b, stateful=stateful)
    elif family == "gru":
        result = TimeGRU(Wx, Wh, b, stateful=stateful, reset_after=two)
    else:
        result = TimeRNN(Wx, Wh, b, stateful=stateful, activation=config["activation"])
    _drop_as(layer, config, result)
    states = [as_floats(v.path, v.value) for v in layer.states or ()] if stateful else []
    if any(state.any() for state in states):  # zeros are no state: another batch may come
        result.set_state(*states)
    return result


def _expect_computed_here(name: str, family: str, config: dict[str, Any]) -> None:
    allowed = ("tanh", "relu") if family == "rnn" else ("tanh",)
    if config["activation"] not in allowed:
        raise ConversionError(
            f"source: {name} has the activation {config['activation']!r}, here it is "
            f"{' or '.join(allowed)}"
        )
    if config.get("recurrent_activation", "sigmoid") != "sigmoid":
        raise ConversionError(
            f"source: {name} has the recurrent_activation {config['recurrent_activation']!r}, "
            "here it is sigmoid"
        )


def _expect_dtype(layer: Any, dtype: np.dtype[Any]) -> None:
    """Weights are float32 or float64 by now."""
    if layer.compute_dtype != dtype.name:
        raise ConversionError(
            f"source: {layer.name} computes in {layer.compute_dtype} with weights in {dtype}; here "
            "both have one dtype"
        )


def _drop_as(layer: Any, config: dict[str, Any], result: TimeRecurrent) -> None:
    """Drop what Keras drops: with one mask for all gates, the same at every step."""
    rates = {name: config[name] for name in ("dropout", "recurrent_dropout")}
    if not any(rates.values()):
        return
    one_mask = type(layer).__name__ == "SimpleRNN" or layer.cell.implementation == 2
    if not one_mask:
        raise ConversionError(
            f"source: {layer.name} has a dropout mask for each gate (recurrent_dropout, or "
            "implementation=1); here all gates share one; after training set "
            "layer.cell.dropout and layer.cell.recurrent_dropout to 0"
        )
    result.regularise(input_dropout=rates["dropout"], recurrent_dropout=rates["recurrent_dropout"])


# ---- to Keras


def to_keras(
    layer: TimeRecurrent | Bidirectional | Reversed | Stacked, *, batch_size: int | None = None
) -> Any:
    """Convert a layer to a built Keras layer with the same weights.

    Parameters
    ----------
    layer : TimeRecurrent, Bidirectional, Reversed or Stacked
        The layer.
    batch_size : int, optional
        The batch size to which a stateful layer of Keras is fixed. A layer that has a state
        determines it.

    Returns
    -------
    keras.Layer
        The layer; several layers become a Sequential. It returns all steps (return_sequences), and
        0 at steps that a mask leaves out, as here.

    Raises
    ------
    ConversionError
        For layers that Keras lacks: residual connections, other cells, a learnt initial state, a
        Bidirectional that is stateful forwards alone or of two sizes, a Reversed without
        in_reading_order, settings of ``regularise`` except input_dropout and, for TimeRNN,
        recurrent_dropout.
    ValueError
        For float64 if JAX under Keras has it switched off.
    ImportError
        Without keras.

    Examples
    --------
    >>> to_keras(TimeGRU.create(3, 5)).compute_output_shape((2, 7, 3))
    (2, 7, 5)
    """
    parts, dropout = layers_of_stack(layer, "Keras")
    weights = [[array for one in directions_of(part) for array in _weights(one)] for part in parts]
    shape = (_batch_size(parts, batch_size), None, layer.input_size)
    dtype = layer.dtype.name

    with optional_import("keras", "to_keras"):
        import keras

    number = keras.ops.convert_to_tensor(np.zeros((), dtype))
    if as_floats("layer", number).dtype != dtype:
        raise ValueError(
            f"layer: expected float32, got {dtype}, which {keras.backend.backend()} under Keras "
            "has switched off"
        )
    result = [_keras_layer(keras.layers, part, dtype) for part in parts]
    model = result[0]
    if len(result) == 1:
        model.build(shape)
    else:
        model = keras.Sequential([keras.Input(batch_shape=shape, dtype=dtype), result[0]])
        for part in result[1:]:
            if dropout:
                model.add(keras.layers.Dropout(dropout, dtype=dtype))
            model.add(part)
    for theirs, ours, arrays in zip(result, parts, weights, strict=True):
        theirs.set_weights(arrays)
        peers = getattr(theirs, "forward_layer", theirs), getattr(theirs, "backward_layer", None)
        for peer, one in zip(peers, directions_of(ours), strict=False):
            for variable, state in zip(peer.states or (), one.state or (), strict=False):
                variable.assign(to_host(state))
    return model


def _weights(layer: TimeRecurrent) -> list[Array]:
    """Keras' kernel, recurrent_kernel and bias."""
    family = _FAMILIES[library_layer_of(layer, "Keras", _KINDS)[0]]
    has = ("input_dropout", "recurrent_dropout")[: 1 + (family == "rnn")]
    params = params_of(layer, "Keras", has)
    return [to_theirs(params[name], family, KERAS) for name in ("Wx", "Wh", "b")]


def _batch_size(parts: tuple[Part, ...], batch_size: int | None) -> int | None:
    """The number of rows that stateful layers are fixed to; any other layer takes any."""
    if batch_size is not None:
        expect_int("batch_size", batch_size)
    stateful = [one for part in parts for one in directions_of(part) if one.stateful]
    if not stateful:
        return batch_size
    batch = next((len(one.h) for one in stateful if one.h is not None), batch_size)
    if batch is None:
        raise ValueError(
            "batch_size: expected the number of rows of a stateful layer of Keras, got None"
        )
    if batch_size not in (None, batch):
        raise ValueError(f"batch_size: expected {batch}, as the state has, got {batch_size}")
    return batch


def _keras_layer(layers: Any, part: Part, dtype: str) -> Any:
    """The layer, not yet built."""
    directions, result = directions_of(part), []
    for k, one in enumerate(directions):
        name, options = library_layer_of(one, "Keras", _KINDS)
        result.append(
            getattr(layers, name)(
                one.hidden_size,
                **options,
                dropout=getattr(one.regularisers, "input_dropout", 0.0),
                recurrent_dropout=getattr(one.regularisers, "recurrent_dropout", 0.0),
                stateful=one.stateful,
                go_backwards=k == 1 or isinstance(part, Reversed),
                return_sequences=True,
                zero_output_for_mask=True,
                dtype=dtype,
            )
        )
    if not isinstance(part, Bidirectional):
        if isinstance(part, Reversed) and not part.in_reading_order:
            raise ConversionError(
                "layer: Keras' go_backwards has its outputs in the order of reading; expected "
                "in_reading_order=True, got False"
            )
        return result[0]
    if result[0].stateful != result[1].stateful:
        raise ConversionError(
            "layer: a stateful Bidirectional of Keras carries the state in both directions, here "
            "only in one"
        )
    if len({one.hidden_size for one in directions}) > 1:
        raise ConversionError(
            "layer: expected both directions of one size, as Keras has them, got "
            + " and ".join(str(one.hidden_size) for one in directions)
        )
    return layers.Bidirectional(
        result[0], merge_mode=_MERGES[part.merge], backward_layer=result[1], dtype=dtype
    )
