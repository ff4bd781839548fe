"""Weights from PyTorch and to it: modules, state_dicts, safetensors files.

    weight_ih_l0 (G H, D)    Wx, transposed      bias_ih_l0 + bias_hh_l0   b; of a GRU its two rows
    weight_hh_l0 (G H, H)    Wh, transposed      weight_hr_l0 (P, H)       Wr, transposed

Layer k is ``_l{k}``, its backward direction ``_l{k}_reverse``. torch itself is imported only where
a module is made.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import written_atomically
from ..layers import (
    Bidirectional,
    Stacked,
    TimeGRU,
    TimeLSTM,
    TimeProjectedLSTM,
    TimeRecurrent,
    TimeRNN,
)
from ..optional_deps import optional_import
from ..typing import Array
from ..validation import expect_array, expect_choice
from .gate_order import (
    PYTORCH,
    ConversionError,
    as_floats,
    from_theirs,
    library_layer_of,
    params_of,
    to_theirs,
)
from .stacks import directions_of, layers_of_stack

_NAME = re.compile(r"(weight|bias)_(ih|hh|hr)(?:_l(\d+)(_reverse)?)?")
_GATES = {1: "rnn", 3: "gru", 4: "lstm"}
_KINDS = {  # of a cell here, the module and its nonlinearity
    "rnn": ("RNN", "tanh"),
    "rnn_relu": ("RNN", "relu"),
    "lstm": ("LSTM", ""),
    "lstm_projected": ("LSTM", ""),
    "gru_reset_after": ("GRU", ""),
}
_MODES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
Named = dict[str, Array]


# ---- from PyTorch


def from_torch(
    source: Any, *, prefix: str | None = None, activation: str | None = None
) -> TimeRecurrent | Bidirectional | Stacked:
    """Convert torch.nn.RNN, LSTM or GRU, or their cells, to layers with the same weights.

    Parameters
    ----------
    source : torch module, state_dict or path
        The module, or a larger one that contains it; a state_dict of tensors or arrays; or a
        safetensors file.
    prefix : str, optional
        The prefix of the names in a larger module, ``"encoder.rnn."``; the last dot may be left
        out. It is not needed if there is only one recurrent module.
    activation : {"tanh", "relu"}, optional
        The activation of torch.nn.RNN. A module determines it; for a state_dict the default is
        "tanh".

    Returns
    -------
    TimeRNN, TimeLSTM, TimeProjectedLSTM, TimeGRU, Bidirectional or Stacked
        The layer, batch first, on the CPU, in the dtype of source. Several layers become a Stacked
        with the module's dropout; the GRU has ``reset_after=True``. ``train_flg`` is
        ``module.training``. Weights alone have no mode, ``train_flg`` is then False; set it to True
        for dropout.

    Raises
    ------
    TypeError, ValueError
        If source is no such module; the message has the name that is wrong.

    Notes
    -----
    A file of torch.save is a program that loading would run, so it is refused: write a safetensors
    file.

    Examples
    --------
    >>> weights = {"weight_ih_l0": np.ones((20, 3)), "weight_hh_l0": np.ones((20, 5))}
    >>> from_torch(weights)
    TimeLSTM(cell lstm, D 3, H 5, float64)
    """
    module = None
    if hasattr(source, "state_dict"):
        module, source = source, source.state_dict()
    elif isinstance(source, (str, Path)):
        source = _read(Path(source))
    if not isinstance(source, Mapping):
        raise TypeError(
            "source: expected a torch module, a state_dict or the path of a safetensors file, got "
            f"{type(source).__name__}"
        )
    for name in source:
        if not isinstance(name, str):
            raise TypeError(f"source: expected names of weights, got the key {name!r}")
    prefix, dropout, training = _the_prefix(source, prefix), 0.0, False
    if module is not None:
        own, _, _ = prefix.rpartition(".")
        module = module.get_submodule(own) if own else module
        options, dropout = _module_options(module)
        activation, training = activation or options, bool(module.training)
    activation = expect_choice("activation", activation or "tanh", ("tanh", "relu"))
    directions = _directions(source, prefix)
    numbers = sorted({k for k, _ in directions})
    if numbers != list(range(len(numbers))):
        raise ValueError(f"source: expected layers numbered from 0, got {numbers}")
    both = (0, True) in directions
    for k in numbers:
        if ((k, True) in directions) != both or (k, False) not in directions:
            raise ValueError(
                f"source: expected both directions in all layers or in none, see _l{k}"
            )
    layers: list[TimeRecurrent | Bidirectional] = []
    for k in numbers:
        ahead, *back = (
            layer_of(directions[k, r], activation, f"_l{k}" + "_reverse" * r)
            for r in (False, True)[: 1 + both]
        )
        layers.append(Bidirectional(ahead, *back) if both else ahead)
    result = layers[0] if len(layers) == 1 else Stacked(layers, dropout=dropout)
    result.train_flg = training
    return result


def _module_options(module: Any) -> tuple[str | None, float]:
    """The activation of an RNN, and the dropout, which are not among a module's weights."""
    mode = str(getattr(module, "mode", ""))  # RNN_TANH, RNN_RELU, LSTM, GRU; a cell has none
    of_cell = f"RNN_{getattr(module, 'nonlinearity', '')}".upper()
    return _MODES.get(mode or of_cell), float(getattr(module, "dropout", 0.0)) if mode else 0.0


def _read(path: Path) -> dict[str, Array | None]:
    """The arrays of a file by name; None for what is of no recurrent module."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise ValueError(f"source: expected a safetensors file, got the folder {path}")
    if path.suffix in (".pt", ".pth", ".bin"):
        raise ValueError(
            f"source: expected a safetensors file, got the pickle {path}, whose loading can "
            "run code; in PyTorch: safetensors.torch.save_file(module.state_dict(), path)"
        )
    name = ""
    try:
        with safe_open(path, framework="np") as file:
            ours = "numba_rnn" in (file.metadata() or {})
            arrays: dict[str, Array | None] = dict.fromkeys(file.keys())
            for name in () if ours else filter(_NAME.search, arrays):
                arrays[name] = file.get_tensor(name)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"source: {path} is not a complete safetensors file ({error})") from error
    except (AttributeError, TypeError) as error:  # bfloat16 and its like, which NumPy has not
        raise TypeError(
            f"{name}: expected float32 or float64, got something else ({error}); convert "
            "the module before you save it"
        ) from error
    if ours:
        raise ValueError(
            f"source: {path} is a checkpoint of numba_rnn; numba_rnn.jobs.load_model(path) reads "
            "those of `numba-rnn train`"
        )
    return arrays


def _the_prefix(source: Mapping[str, Any], prefix: str | None) -> str:
    """The prefix of the names of a recurrent module's weights."""
    prefixes = {name[: -len("weight_hh_l0")] for name in source if name.endswith("weight_hh_l0")}
    if not prefixes:  # a cell's names have no number
        prefixes = {name[: -len("weight_hh")] for name in source if name.endswith("weight_hh")}
    if prefix is None and len(prefixes) == 1:
        return prefixes.pop()
    for candidate in (prefix, f"{prefix}."):
        if candidate in prefixes:
            return str(candidate)
    if not prefixes:
        raise ValueError(
            f"source: expected an RNN, LSTM or GRU, got {', '.join(source) or 'no name'}; "
            "for Linear and Embedding use TimeAffine(W.T, b) and TimeEmbedding(W)"
        )
    if prefix is None:
        raise ValueError(
            f"prefix: expected one of {len(prefixes)} recurrent modules, got None: "
            + " or ".join(f"prefix={one!r}" for one in sorted(prefixes))
        )
    have = ", ".join(sorted(map(repr, prefixes)))
    raise ValueError(f"prefix: expected names that begin {prefix!r}, got {have}")


def _directions(source: Mapping[str, Any], prefix: str) -> dict[tuple[int, bool], Named]:
    """The arrays of every layer and direction, by what is left of their names."""
    directions: dict[tuple[int, bool], Named] = {}
    for name, value in source.items():
        match = _NAME.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if match is None:
            continue
        kind, part, number, reverse = match.groups()
        place = directions.setdefault((int(number or 0), bool(reverse)), {})
        place[f"{kind}_{part}"] = as_floats(name, value)
    return directions


def layer_of(arrays: Named, activation: str = "tanh", suffix: str = "") -> TimeRecurrent:
    """One direction of one layer, from arrays by names without their suffix."""
    missing = sorted({"weight_ih", "weight_hh"} - set(arrays))
    if missing:
        names = ", ".join(name + suffix for name in missing)
        raise ValueError(f"source: expected weights of every layer, got no {names}")
    for name in sorted(arrays):
        if name.startswith("weight"):
            expect_array(name + suffix, arrays[name], ("rows", "columns"))
    if ("bias_ih" in arrays) != ("bias_hh" in arrays):
        raise ValueError(
            f"source: expected bias_ih{suffix} and bias_hh{suffix} or neither, got one of them"
        )
    w_ih, w_hh = arrays["weight_ih"], arrays["weight_hh"]
    H = arrays["weight_hr"].shape[1] if "weight_hr" in arrays else w_hh.shape[-1]
    rows = w_hh.shape[0]
    family = _GATES.get(rows // H) if rows % H == 0 else None
    if family is None or w_ih.ndim != 2 or w_ih.shape[0] != rows:
        raise ValueError(
            f"source: expected weight_ih{suffix} (G H, D) and weight_hh{suffix} (G H, H) with G "
            f"1, 3 or 4, got {w_ih.shape} and {w_hh.shape}"
        )
    if "weight_hr" in arrays and family != "lstm":
        raise ValueError(f"source: expected weight_hr{suffix} only in an LSTM, got one in {family}")
    Wx, Wh = (from_theirs(w.T, family, PYTORCH) for w in (w_ih, w_hh))
    biases = []
    for name in ("bias_ih", "bias_hh"):
        bias = arrays.get(name, np.zeros(rows, w_ih.dtype))
        expect_array(name + suffix, bias, (rows,), w_ih.dtype)
        biases.append(from_theirs(bias, family, PYTORCH))
    b_ih, b_hh = biases
    if family == "gru":
        return TimeGRU(Wx, Wh, np.stack([b_ih, b_hh]), reset_after=True)
    if family == "rnn":
        return TimeRNN(Wx, Wh, b_ih + b_hh, activation=activation)
    if "weight_hr" in arrays:
        Wr = np.ascontiguousarray(arrays["weight_hr"].T)
        return TimeProjectedLSTM(Wx, Wh, b_ih + b_hh, Wr)
    return TimeLSTM(Wx, Wh, b_ih + b_hh)


# ---- to PyTorch


def torch_state_dict(layer: TimeRecurrent | Bidirectional | Stacked) -> Named:
    """Return the weights under PyTorch's names. It does not need torch.

    b becomes bias_ih; bias_hh is 0 except for a GRU.

    Parameters
    ----------
    layer : TimeRecurrent, Bidirectional or Stacked
        The layer.

    Returns
    -------
    dict of str to array
        NumPy arrays.

    Raises
    ------
    ConversionError
        For layers that PyTorch lacks: a GRU whose reset gate comes before the product
        (``reset_after=False``), residual connections, layers or directions that differ in cell or
        size, other cells, a learnt initial state, settings of ``regularise``.

    Examples
    --------
    >>> sorted(torch_state_dict(TimeLSTM.create(3, 5)))
    ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
    """
    return _described(layer)[1]


def save_torch(layer: TimeRecurrent | Bidirectional | Stacked, path: str | Path) -> None:
    """Write ``torch_state_dict(layer)`` to a safetensors file, whole or not at all.

    Parameters
    ----------
    layer : TimeRecurrent, Bidirectional or Stacked
        The layer.
    path : str or Path
        The file.

    Raises
    ------
    ConversionError
        For the layers that ``torch_state_dict`` refuses.
    """
    from safetensors.numpy import save_file

    arrays = torch_state_dict(layer)
    with written_atomically(Path(path)) as part:
        save_file(arrays, part)


def to_torch(layer: TimeRecurrent | Bidirectional | Stacked, *, batch_first: bool = True) -> Any:
    """Convert a layer to a torch.nn.RNN, LSTM or GRU with the same weights, on the CPU.

    Parameters
    ----------
    layer : TimeRecurrent, Bidirectional or Stacked
        The layer.
    batch_first : bool, default True
        The option of the torch module.

    Returns
    -------
    torch.nn.RNN, torch.nn.LSTM or torch.nn.GRU
        The module, in training mode if ``layer.train_flg`` is True.

    Raises
    ------
    ConversionError
        For the layers that ``torch_state_dict`` refuses.
    ImportError
        Without torch.
    """
    with optional_import("torch", "to_torch"):
        import torch

    (kind, options), arrays = _described(layer)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    dtype = tensors["weight_ih_l0"].dtype
    module = getattr(torch.nn, kind)(**options, batch_first=batch_first, dtype=dtype)
    module.load_state_dict(tensors)
    return module.train(layer.train_flg)


def _described(layer: Any) -> tuple[tuple[str, dict[str, Any]], Named]:
    """The kind of module, its options, and its weights by name."""
    stack, dropout = layers_of_stack(layer, "PyTorch")
    modules = set()
    arrays: Named = {}
    for k, part in enumerate(stack):
        both = isinstance(part, Bidirectional)
        for reverse, one in enumerate(directions_of(part)):
            kind, own = _weights(one)
            sizes = one.hidden_size, one.output_size if "weight_hr" in own else 0
            modules.add((kind, sizes, both))
            suffix = f"_l{k}" + "_reverse" * reverse
            arrays |= {name + suffix: np.ascontiguousarray(a) for name, a in own.items()}
    if len(modules) > 1:
        raise ConversionError(
            "layer: expected one cell, size and direction for all layers, as PyTorch has it, got "
            + ", ".join(f"{kind} {sizes[0]}" for (kind, _), sizes, _ in sorted(modules))
        )
    ((name, activation), (H, P), both), *_ = modules
    options: dict[str, Any] = {
        "input_size": layer.input_size,
        "hidden_size": H,
        "num_layers": len(stack),
        "bidirectional": both,
    }
    if activation:
        options["nonlinearity"] = activation
    if P:
        options["proj_size"] = P
    if dropout:
        options["dropout"] = dropout
    return (name, options), arrays


def _weights(layer: TimeRecurrent) -> tuple[tuple[str, str], Named]:
    """The module and activation of one direction, and its weights."""
    cell = layer.cell.name
    params = params_of(layer, "PyTorch")
    if cell == "gru":
        raise ConversionError(
            "layer: PyTorch's GRU applies the reset gate after the recurrent product, r * (h Wh); "
            "this one applies it before, (r * h) Wh, and no weights make them equal; "
            "TimeGRU(..., reset_after=True) is PyTorch's"
        )
    kind = library_layer_of(layer, "PyTorch", _KINDS)
    arrays = named(kind[0].lower(), params)
    if cell != "gru_reset_after":
        arrays["bias_hh"] = np.zeros_like(arrays["bias_hh"])  # one bias, where PyTorch adds two
    return kind, arrays


def named(family: str, params: Mapping[str, Array]) -> Named:
    """Wx, Wh, b and Wr, or their gradients, under PyTorch's names: both biases are b."""
    b_ih, b_hh = params["b"] if family == "gru" else (params["b"], params["b"])
    arrays = {
        "weight_ih": to_theirs(params["Wx"], family, PYTORCH).T,
        "weight_hh": to_theirs(params["Wh"], family, PYTORCH).T,
        "bias_ih": to_theirs(b_ih, family, PYTORCH),
        "bias_hh": to_theirs(b_hh, family, PYTORCH),
    }
    if "Wr" in params:
        arrays["weight_hr"] = params["Wr"].T
    return arrays
