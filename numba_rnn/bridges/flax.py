"""Weights from Flax (nnx) and to it.

    cell                 of x                         of h
    OptimizedLSTMCell    dense_i (D, 4 H)             dense_h (H, 4 H), bias
    LSTMCell             ii, if_, ig, io (D, H)       hi, hf, hg, ho (H, H), bias
    GRUCell              dense_i (D, 3 H), bias       dense_h (H, 3 H)
    SimpleCell           dense_i (D, H), bias         dense_h (H, H)

The gates' order is in ``gate_order.py``. A GRUCell resets after the product, as TimeGRU with
reset_after=True does, but has no bias there. The state stays with the caller, as ``initial_carry``
and ``return_carry``: h, of an LSTM the pair (c, h), which is (h, c) here.
"""

from typing import Any

import numpy as np

from ..layers import Bidirectional, Stacked, TimeGRU, TimeLSTM, TimeRecurrent, TimeRNN
from ..optional_deps import optional_import
from ..typing import Array
from ..validation import expect_float
from .gate_order import (
    FLAX,
    ConversionError,
    as_floats,
    from_theirs,
    library_layer_of,
    params_of,
    to_theirs,
)
from .stacks import build_stack, directions_of, layers_of_stack

_FAMILIES = {
    "OptimizedLSTMCell": "lstm",
    "LSTMCell": "lstm",
    "GRUCell": "gru",
    "SimpleCell": "rnn",
}
_KINDS = {  # of a cell here, the class and its activation
    "rnn": ("SimpleCell", "tanh"),
    "rnn_relu": ("SimpleCell", "relu"),
    "lstm": ("OptimizedLSTMCell", "tanh"),
    "gru_reset_after": ("GRUCell", "tanh"),
}


# ---- from Flax


def from_flax(source: Any) -> TimeRecurrent | Bidirectional | Stacked:
    """Convert flax.nnx cells to layers with the same weights.

    Parameters
    ----------
    source : nnx module, or list of them
        An LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell (tanh or relu); an nnx.RNN of one; an
        nnx.Bidirectional of two of these; an nnx.Sequential or a list of them, with nnx.Dropout of
        one rate between.

    Returns
    -------
    TimeLSTM, TimeGRU, TimeRNN, Bidirectional or Stacked
        The layer, batch first, in the dtype of the parameters; several layers become a Stacked, the
        GRU has ``reset_after=True``. ``train_flg`` is False if the modules' Dropout is
        deterministic, as after ``model.eval()``.

    Raises
    ------
    ConversionError
        For modules that compute something else: other activations, residual, an initial carry other
        than zeros, reverse outside nnx.Bidirectional, another merge_fn, a dtype that is not that of
        the parameters, subclasses.
    TypeError
        For other modules, and for dtypes other than float32 and float64.

    Examples
    --------
    >>> from flax import nnx
    >>> from_flax(nnx.RNN(nnx.OptimizedLSTMCell(3, 5, rngs=nnx.Rngs(0))))
    TimeLSTM(cell lstm, D 3, H 5, float32)
    """
    with optional_import("flax", "from_flax"):
        from flax import nnx

    if type(source) is nnx.Sequential:
        source = source.layers
        if not isinstance(source, (list, tuple, nnx.List)):
            raise TypeError(f"source: expected layers in nnx.Sequential, got {source!r}")
        source = list(source)
    if not isinstance(source, (list, tuple)):
        source = [source]
    made = build_stack([_part(module) for module in source])
    made.train_flg = not any(type(m) is nnx.Dropout and m.deterministic for m in source)
    return made


def _part(module: Any) -> TimeRecurrent | Bidirectional | float:
    """A layer, or the rate of a dropout."""
    from flax import nnx

    kind = type(module)
    if kind is nnx.Dropout:
        if module.broadcast_dims:
            raise ConversionError(
                "source: nnx.Dropout has broadcast_dims; here each element is dropped on its own"
            )
        return expect_float("source: rate of nnx.Dropout", module.rate, 0, 1)
    if kind is nnx.Bidirectional:
        if module.merge_fn is not nnx.Bidirectional.merge_fn:
            raise ConversionError(
                "source: nnx.Bidirectional has its own merge_fn; here outputs are concatenated"
            )
        ahead, back = (_cell_of(rnn) for rnn in (module.forward_rnn, module.backward_rnn))
        if ahead is back:
            raise ConversionError(
                "source: nnx.Bidirectional has one cell for both directions; here each has its own"
            )
        return Bidirectional(_layer(ahead), _layer(back))
    if kind is nnx.RNN and module.reverse:
        raise ConversionError(
            "source: nnx.RNN has reverse=True; here only the second layer of a Bidirectional reads "
            "backwards (leave out reverse and pass xs[:, ::-1] instead)"
        )
    return _layer(_cell_of(module))


def _cell_of(module: Any) -> Any:
    """The cell of an nnx.RNN, or what is a cell itself."""
    from flax import nnx

    cell = module.cell if type(module) is nnx.RNN else module
    if isinstance(cell, (nnx.RNN, nnx.Bidirectional, nnx.RNNCellBase)):
        if any(type(cell) is getattr(nnx, name) for name in _FAMILIES):
            return cell
        raise ConversionError(
            f"source: expected {', '.join(_FAMILIES)} of flax.nnx themselves, got "
            f"{type(cell).__name__}, which may compute something else"
        )
    raise TypeError(
        f"source: expected {', '.join(_FAMILIES)} of flax.nnx, an RNN or Bidirectional of them, or "
        f"a Sequential or list of these with Dropout between them, got {type(cell).__name__}"
    )


def _layer(cell: Any) -> TimeRecurrent:
    name = type(cell).__name__
    activation = _activation(cell)
    if getattr(cell, "residual", False):
        raise ConversionError(
            f"source: {name} has residual=True, which adds h before tanh; here no cell does"
        )
    if cell.carry_init is not None:
        raise ConversionError(
            f"source: {name} has its own carry_init; layers here start from zeros, or from "
            "set_state"
        )
    Wx, Wh, b = _arrays(cell)
    dtype = Wx.dtype if cell.dtype is None else _dtype(cell)
    if dtype != Wx.dtype:
        raise ConversionError(
            f"source: {name} computes in {dtype} with parameters in {Wx.dtype}; here both "
            "have one dtype"
        )
    family = _FAMILIES[name]
    Wx, Wh, b = (from_theirs(array, family, FLAX) for array in (Wx, Wh, b))
    if family == "lstm":
        return TimeLSTM(Wx, Wh, b)
    if family == "gru":
        return TimeGRU(Wx, Wh, np.stack([b, np.zeros_like(b)]), reset_after=True)
    return TimeRNN(Wx, Wh, b, activation=activation)


def _activation(cell: Any) -> str:
    """The activation's name, tanh or of a SimpleCell relu."""
    from flax import nnx

    name = type(cell).__name__
    known = {"tanh": nnx.tanh, "relu": nnx.relu} if name == "SimpleCell" else {"tanh": nnx.tanh}
    found = [key for key, function in known.items() if cell.activation_fn is function]
    if not found:
        raise ConversionError(
            f"source: {name} has the activation_fn {_spelt(cell.activation_fn)}, here it is "
            f"{' or '.join(f'nnx.{key}' for key in known)}"
        )
    if getattr(cell, "gate_fn", nnx.sigmoid) is not nnx.sigmoid:
        raise ConversionError(
            f"source: {name} has the gate_fn {_spelt(cell.gate_fn)}, here it is nnx.sigmoid"
        )
    return found[0]


def _dtype(cell: Any) -> np.dtype[Any]:
    """The dtype that a cell computes in."""
    try:
        return np.dtype(cell.dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"source: expected a dtype of {type(cell).__name__}, got {cell.dtype!r}"
        ) from error


def _spelt(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def _arrays(cell: Any) -> tuple[Array, Array, Array]:
    """Wx, Wh and b, their gates in Flax's order."""
    name = type(cell).__name__
    if name != "LSTMCell":
        of_x, of_h = _linear(cell, "dense_i"), _linear(cell, "dense_h")
        both = {**of_x, **of_h}
        if "bias" not in both:
            raise ValueError(f"source: expected a bias in {name}, got none")
        return of_x["kernel"], of_h["kernel"], both["bias"]
    xs = [_linear(cell, gate)["kernel"] for gate in ("ii", "if_", "ig", "io")]
    hs = [_linear(cell, gate) for gate in ("hi", "hf", "hg", "ho")]
    try:
        Wh, b = (np.concatenate([h[key] for h in hs], axis=-1) for key in ("kernel", "bias"))
        return np.concatenate(xs, axis=1), Wh, b
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"source: expected gates of one shape in {name}, each with a bias for h Wh ({error})"
        ) from error


def _linear(cell: Any, name: str) -> dict[str, Array]:
    """The arrays of one of its products, the bias where there is one."""
    from flax import nnx

    module = getattr(cell, name)
    if type(module) is not nnx.Linear:
        raise ConversionError(
            f"source: {type(cell).__name__} has a {type(module).__name__} for {name}, here it is "
            "nnx.Linear"
        )
    found = {}
    for key in ("kernel", "bias"):
        param = getattr(module, key)
        if param is not None:
            try:
                value = param[...]
            except (TypeError, KeyError, IndexError) as error:
                raise TypeError(f"{name}.{key}: expected an nnx.Param, got {param!r}") from error
            found[key] = as_floats(f"{name}.{key}", value)
        elif key == "kernel":
            raise TypeError(f"{name}.kernel: expected an nnx.Param, got None")
    return found


# ---- to Flax


def to_flax(layer: TimeRecurrent | Bidirectional | Stacked, *, rngs: Any = None) -> Any:
    """Convert a layer to a flax.nnx module with the same weights.

    Parameters
    ----------
    layer : TimeRecurrent, Bidirectional or Stacked
        The layer. Its state is not converted: in Flax the caller carries it,
        ``module(xs, initial_carry=(c, h))``.
    rngs : nnx.Rngs, optional
        For the dropout of a Stacked; nnx.Rngs(0) if left out.

    Returns
    -------
    nnx.RNN, nnx.Bidirectional or nnx.Sequential
        The module; several layers become an nnx.Sequential. The LSTM becomes an OptimizedLSTMCell.

    Raises
    ------
    ConversionError
        For layers that Flax lacks: a GRU whose reset gate comes before the product
        (``reset_after=False``), or whose candidate has a bias beside h (b[1]) that is not 0,
        residual connections, other cells, a learnt initial state, settings of ``regularise``.
    ValueError
        For float64 if JAX has it switched off.
    ImportError
        Without flax.

    Examples
    --------
    >>> to_flax(TimeLSTM.create(3, 5))(np.ones((2, 7, 3), np.float32)).shape
    (2, 7, 5)
    """
    parts, dropout = layers_of_stack(layer, "Flax")
    described = [[_described(one) for one in directions_of(part)] for part in parts]

    with optional_import("flax", "to_flax"):
        from flax import nnx
    import jax

    if jax.dtypes.canonicalize_dtype(layer.dtype) != layer.dtype:
        raise ValueError(
            "layer: expected float32, got float64, which JAX has switched off; "
            'jax.config.update("jax_enable_x64", True) switches it on'
        )
    rngs = nnx.Rngs(0) if rngs is None else rngs
    modules: list[Any] = []
    for directions in described:
        rnns = [nnx.RNN(_cell(nnx, *one)) for one in directions]
        if modules and dropout:
            modules.append(nnx.Dropout(dropout, deterministic=not layer.train_flg, rngs=rngs))
        modules.append(nnx.Bidirectional(*rnns) if len(rnns) > 1 else rnns[0])
    return modules[0] if len(modules) == 1 else nnx.Sequential(*modules)


def _described(layer: TimeRecurrent) -> tuple[str, str, list[Array]]:
    """The class of its cell, the activation, and Wx, Wh and b in Flax's order."""
    if layer.cell.name == "gru":
        raise ConversionError(
            "layer: Flax's GRU applies the reset gate after the recurrent product, r * (h Wh); "
            "this one applies it before, (r * h) Wh, and no weights make them equal"
        )
    name, activation = library_layer_of(layer, "Flax", _KINDS)
    params = params_of(layer, "Flax")
    b = params["b"]
    if name == "GRUCell":
        if b[1, -layer.hidden_size :].any():
            raise ConversionError(
                "layer: Flax's GRU adds no bias to h Wh in its candidate, x Wx + r * (h Wh); this "
                "one does, x Wx + r * (h Wh + b[1]), and b[1] is not 0"
            )
        b = b.sum(axis=0)
    arrays = params["Wx"], params["Wh"], b
    return name, activation, [to_theirs(array, _FAMILIES[name], FLAX) for array in arrays]


def _cell(nnx: Any, name: str, activation: str, arrays: list[Array]) -> Any:
    import jax.numpy as jnp

    Wx, Wh, b = arrays
    zeros = nnx.initializers.zeros_init()  # what is overwritten needs no random numbers
    cell = getattr(nnx, name)(
        len(Wx),
        len(Wh),
        activation_fn=getattr(nnx, activation),
        kernel_init=zeros,
        recurrent_kernel_init=zeros,
        dtype=Wx.dtype,
        param_dtype=Wx.dtype,
        rngs=nnx.Rngs(0),
    )
    biased = cell.dense_h if name == "OptimizedLSTMCell" else cell.dense_i
    for param, array in (
        (cell.dense_i.kernel, Wx),
        (cell.dense_h.kernel, Wh),
        (biased.bias, b),
    ):
        param[...] = jnp.asarray(array)
    return cell
