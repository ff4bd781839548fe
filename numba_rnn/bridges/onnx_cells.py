"""The arithmetic of ONNX's nodes RNN, LSTM and GRU, and the cells that do it here.

A ``RnnNodeSpec`` is all that such a node's attributes say of one direction. Where a cell of the
library computes that, it is taken; for everything else (``activations``, ``clip``, ``input_forget``
with peepholes) one is written with ``numba_rnn.cell``, once for a kind:

    f, g, h   the activation functions, each of its input clipped to [-clip, clip]

    RNN       h = f(a)
    LSTM      c = f(a_f + p_f c) c + f(a_i + p_i c) g(a_g),  h = f(a_o + p_o c) h(c)
              input_forget: 1 - f(a_i + p_i c) in place of the forget gate; W, R, B and P of the
              forget gate are looked at by nobody, as in ONNX Runtime
    GRU       h = f(z) h + (1 - f(z)) g(a_h + (f(r) h) R_h), or with linear_before_reset
              g(a_h + f(r) (h R_h + b_h)), what is clipped being the whole argument of g

``h(c)`` is not clipped, as it is not in ONNX Runtime.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..custom import cell
from ..kernels import cells
from ..kernels.cells import Cell
from ..kernels.functions import (
    absolute,
    exp,
    maximum,
    minimum,
    relu,
    sigmoid,
    softplus,
    tanh,
    where,
)
from ..kernels.once import once
from ..typing import AnyArray, Array
from .gate_order import ONNX, ConversionError

GATES = {"RNN": ONNX.rnn, "LSTM": ONNX.lstm, "GRU": ONNX.gru}
PEEPHOLES = "iof"


class Activation(NamedTuple):
    """An activation function of ONNX, with its numbers if it takes any."""

    name: str
    alpha: float | None = None
    beta: float | None = None


# the numbers that each function takes, and what they are where the file says nothing; None: there
# ONNX and ONNX Runtime differ, or have none
ACTIVATIONS: Mapping[str, Mapping[str, float | None]] = {
    "Relu": {},
    "Tanh": {},
    "Sigmoid": {},
    "Affine": {"alpha": None, "beta": None},
    "LeakyRelu": {"alpha": 0.01},
    "ThresholdedRelu": {"alpha": None},
    "ScaledTanh": {"alpha": None, "beta": None},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "Elu": {"alpha": 1.0},
    "Softsign": {},
    "Softplus": {},
}
SIGMOID, TANH, RELU = Activation("Sigmoid"), Activation("Tanh"), Activation("Relu")
DEFAULTS = {"RNN": (TANH,), "LSTM": (SIGMOID, TANH, TANH), "GRU": (SIGMOID, TANH)}


class RnnNodeSpec(NamedTuple):
    """The computation of a node in one direction.

    op           RNN, LSTM or GRU
    activations  f; f, g and h; f and g
    clip         the largest argument of an activation function, None: no limit
    reset_after  a GRU's linear_before_reset
    coupled      an LSTM's input_forget
    peepholes    whether an LSTM has P
    """

    op: str
    activations: tuple[Activation, ...]
    clip: float | None = None
    reset_after: bool = False
    coupled: bool = False
    peepholes: bool = False


def _library() -> dict[RnnNodeSpec, str]:
    lstm, gru = RnnNodeSpec("LSTM", DEFAULTS["LSTM"]), RnnNodeSpec("GRU", DEFAULTS["GRU"])
    return {
        RnnNodeSpec("RNN", (TANH,)): "rnn",
        RnnNodeSpec("RNN", (RELU,)): "rnn_relu",
        lstm: "lstm",
        lstm._replace(peepholes=True): "lstm_peephole",
        lstm._replace(coupled=True): "lstm_cifg",
        gru: "gru",
        gru._replace(reset_after=True): "gru_reset_after",
    }


LIBRARY = _library()
_written: dict[Cell, RnnNodeSpec] = {}


@once
def cell_of(kind: RnnNodeSpec) -> Cell:
    """The cell that computes it: the library's, or one that is written now.

    Raises ConversionError for what no cell can be, such as a gate that is a constant.
    """
    if kind in LIBRARY:
        return cells.get(LIBRARY[kind])
    try:
        made = cells.get(_WRITERS[kind.op](kind, _name(kind)))
    except ValueError as error:
        raise ConversionError(f"{kind.op} with {_spelled(kind)}: {error}") from error
    _written[made] = kind
    return made


def kind_of(made: Cell) -> RnnNodeSpec | None:
    """The kind of node that computes what a cell computes, or None."""
    for kind, name in LIBRARY.items():
        if cells.get(name) is made:
            return kind
    return _written.get(made)


def _spelled(kind: RnnNodeSpec) -> str:
    return ", ".join(" ".join(map(str, a)).replace(" None", "") for a in kind.activations)


def _name(kind: RnnNodeSpec) -> str:
    functions = "_".join(a.name.lower() for a in kind.activations)
    return f"onnx_{kind.op}_{functions}_{hashlib.sha1(repr(kind).encode()).hexdigest()[:8]}".lower()


# ---- cells


def _function(activation: Activation, clip: float | None = None) -> Callable[[Any], Any]:
    """The activation function, of what is clipped if ``clip`` is a number."""
    alpha, beta = activation.alpha, activation.beta
    plain = {
        "Relu": relu,
        "Tanh": tanh,
        "Sigmoid": sigmoid,
        "Affine": lambda x: alpha * x + beta,
        "LeakyRelu": lambda x: where(x >= 0, x, alpha * x),
        "ThresholdedRelu": lambda x: where(x > alpha, x, 0.0),
        "ScaledTanh": lambda x: alpha * tanh(beta * x),
        "HardSigmoid": lambda x: minimum(maximum(alpha * x + beta, 0), 1),
        "Elu": lambda x: where(x >= 0, x, alpha * (exp(minimum(x, 0)) - 1)),
        "Softsign": lambda x: x / (1 + absolute(x)),
        "Softplus": softplus,
    }[activation.name]
    return plain if clip is None else lambda x: plain(minimum(maximum(x, -clip), clip))


def _rnn(kind: RnnNodeSpec, name: str) -> Any:
    f = _function(kind.activations[0], kind.clip)

    @cell(name=name)
    def rnn(a, h):  # type: ignore[no-untyped-def]
        return f(a)

    return rnn


def _lstm(kind: RnnNodeSpec, name: str) -> Any:
    sigma, tau = (_function(one, kind.clip) for one in kind.activations[:2])
    phi = _function(kind.activations[2])
    start = {} if kind.coupled else {"f": 1.0}
    options: dict[str, Any] = {"states": "h c", "name": name, "bias_start": start}

    def lstm(f, g, i, o, h, c):  # type: ignore[no-untyped-def]
        c = sigma(f) * c + sigma(i) * tau(g)
        return sigma(o) * phi(c), c

    def peephole(f, g, i, o, p_f, p_i, p_o, h, c):  # type: ignore[no-untyped-def]
        c = sigma(f + p_f * c) * c + sigma(i + p_i * c) * tau(g)
        return sigma(o + p_o * c) * phi(c), c

    def coupled(i, g, o, h, c):  # type: ignore[no-untyped-def]
        i = sigma(i)
        c = (1 - i) * c + i * tau(g)
        return sigma(o) * phi(c), c

    def coupled_peephole(i, g, o, p_i, p_o, h, c):  # type: ignore[no-untyped-def]
        i = sigma(i + p_i * c)
        c = (1 - i) * c + i * tau(g)
        return sigma(o + p_o * c) * phi(c), c

    if kind.peepholes:
        weights = " ".join(f"p_{gate}" for gate in _peepholes(kind))
        return cell(weights=weights, **options)(coupled_peephole if kind.coupled else peephole)
    return cell(**options)(coupled if kind.coupled else lstm)


def _gru(kind: RnnNodeSpec, name: str) -> Any:
    f, g = (_function(one, kind.clip) for one in kind.activations)

    def reset(r, h):  # type: ignore[no-untyped-def]
        return f(r) * h

    def before(z, r, a, h):  # type: ignore[no-untyped-def]
        z = f(z)
        return z * h + (1 - z) * g(a)

    def after(z, r, a, u, h):  # type: ignore[no-untyped-def]
        z = f(z)
        return z * h + (1 - z) * g(a + f(r) * u)

    if kind.reset_after:
        return cell(name=name, input_only="a", recurrent_only="u", biases=2)(after)
    return cell(name=name, second_product="a", operand=reset)(before)


_WRITERS: dict[str, Callable[[RnnNodeSpec, str], Any]] = {"RNN": _rnn, "LSTM": _lstm, "GRU": _gru}


# ---- weights


def _columns(kind: RnnNodeSpec) -> tuple[tuple[str, int], ...]:
    """Which of ONNX's gates are ours, in our order, and with which sign.

    Of the library's cells the GRU gives z to the new state, and ``lstm_cifg`` has the forget gate
    where ONNX has the input gate: each is 1 less the other, which is the other sign of all it sees.
    """
    sign = -1 if kind in LIBRARY else 1
    if kind.op == "RNN":
        return (("h", 1),)
    if kind.op == "GRU":
        return ("z", sign), ("r", 1), ("h", 1)
    return (("i", sign), ("g", 1), ("o", 1)) if kind.coupled else tuple((n, 1) for n in "fgio")


def _signed(sign: int, matrix: Array) -> Array:
    return matrix if sign > 0 else -matrix


def _peepholes(kind: RnnNodeSpec) -> str:
    return "io" if kind.coupled else "fio"


def columns_of(kind: RnnNodeSpec, matrix: AnyArray) -> AnyArray:
    """(..., G H) columns of ONNX's gates, as the cell has them."""
    gates = GATES[kind.op]
    parts = dict(zip(gates, np.split(matrix, len(gates), axis=-1), strict=True))
    return np.concatenate([_signed(s, parts[gate]) for gate, s in _columns(kind)], axis=-1)


def params_of(
    kind: RnnNodeSpec, W: Array, R: Array, B: Array, P: Array | None
) -> tuple[Array, ...]:
    """W (G H, D), R (G H, H), B (2 G H,) and P (3H,) of one direction, as the cell's parameters."""
    biases = [columns_of(kind, b) for b in np.split(B, 2)]
    b = np.stack(biases) if kind.reset_after else biases[0] + biases[1]
    params = columns_of(kind, W.T), columns_of(kind, R.T), b
    if P is None:
        return params
    rows = dict(zip(PEEPHOLES, np.split(P, 3), strict=True))
    return (*params, np.stack([rows[gate] for gate in _peepholes(kind)]))


def weights_of(
    kind: RnnNodeSpec, Wx: Array, Wh: Array, b: Array, w: Array | None = None
) -> tuple[Array, Array, Array, Array | None]:
    """The other way round: W, R, B and P of one direction; 0 where nobody looks."""

    def theirs(matrix: Array) -> Array:
        columns = _columns(kind)
        blocks = np.split(matrix, len(columns), axis=-1)
        parts = {gate: _signed(s, p) for (gate, s), p in zip(columns, blocks, strict=True)}
        nothing = np.zeros_like(blocks[0])
        return np.concatenate([parts.get(gate, nothing) for gate in GATES[kind.op]], axis=-1)

    rows = b if kind.reset_after else (b, np.zeros_like(b))
    B = np.concatenate([theirs(row) for row in rows])
    P = None
    if w is not None:
        own = dict(zip(_peepholes(kind), w, strict=True))
        P = np.concatenate([own.get(gate, np.zeros_like(w[0])) for gate in PEEPHOLES])
    return theirs(Wx).T, theirs(Wh).T, B, P


def attributes_of(kind: RnnNodeSpec, directions: int = 1) -> dict[str, Any]:
    """The node's attributes but ``hidden_size`` and ``direction``."""
    found: dict[str, Any] = {}
    if kind.activations != DEFAULTS[kind.op]:
        functions = kind.activations * directions
        found["activations"] = [one.name for one in functions]
        for number in ("alpha", "beta"):
            values = [v for one in functions if (v := getattr(one, number)) is not None]
            if values:
                found[f"activation_{number}"] = values
    if kind.clip is not None:
        found["clip"] = kind.clip
    if kind.reset_after:
        found["linear_before_reset"] = 1
    if kind.coupled:
        found["input_forget"] = 1
    return found
