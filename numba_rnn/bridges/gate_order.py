"""How other libraries lay out the weights of a cell.

Here, as in the book, the gates stand side by side in the columns of Wx (D, G H) and Wh (H, G H),
and in b: f, g, i, o of the LSTM, z, r, h of the GRU, z being the share of the *new* state.

    library    LSTM      GRU       matrices                   biases
    PyTorch    i f g o   r z h *   transposed, (G H, D)       two
    Keras      i f g o   z r h *   (D, G H)                   one; two in a GRU with reset_after
    ONNX       i o f g   z r h *   transposed, a direction    two
    Flax       i f g o   r z h *   a matrix a gate            one, beside h; the GRU's beside x
               (g is c, h is n elsewhere; * z is the share of the *old* state)

An old share becomes a new one by the other sign of all that z sees: sigmoid(-a) = 1 - sigmoid(a).
Two biases of one gate are added up, but for the GRU's candidate whose reset gate comes after the
product, where they are different things (``biases`` of a cell).

A layer that cannot be converted is refused with the reason (``ConversionError``), never
approximated.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..backend import to_host
from ..kernels import cells, deprecated
from ..layers import TimeRecurrent
from ..typing import Array, IntArray
from ..validation import FLOATS, expect_plain_array

T = TypeVar("T")

OURS = {"rnn": "h", "lstm": "fgio", "gru": "zrh"}


class ConversionError(ValueError):
    """The other library has nothing that computes the same."""


class GateOrder(NamedTuple):
    """The order of a library's gates, by their names here; whose share the GRU's z is."""

    rnn: str
    lstm: str
    gru: str
    keeps_old: bool = True


PYTORCH = FLAX = GateOrder("h", "ifgo", "rzh")
KERAS = GateOrder("h", "ifgo", "zrh")
ONNX = GateOrder("h", "iofg", "zrh")


def from_theirs(matrix: Array, family: str, convention: GateOrder) -> Array:
    """(..., G H), their gates side by side, as ours; ``family`` is rnn, lstm or gru."""
    if not matrix.ndim:
        raise ValueError(f"source: expected weights with gates side by side, got {matrix}")
    order, signs = gate_permutation(family, convention, matrix.shape[-1])
    ours = matrix[..., order] if signs is None else matrix[..., order] * signs.astype(matrix.dtype)
    return np.ascontiguousarray(ours)  # of a transposed matrix NumPy makes a transposed one


def to_theirs(matrix: Array, family: str, convention: GateOrder) -> Array:
    """(..., G H), our gates side by side, as theirs; gradients too."""
    order, signs = gate_permutation(family, convention, matrix.shape[-1])
    if signs is not None:
        matrix = matrix * signs.astype(matrix.dtype)
    return matrix[..., np.argsort(order)]


@lru_cache(maxsize=64)
def gate_permutation(
    family: str, convention: GateOrder, columns: int
) -> tuple[IntArray, IntArray | None]:
    """Where our columns are among theirs, and what each is times there; None: 1."""
    there, here = getattr(convention, family), OURS[family]
    if columns % len(here):
        raise ValueError(f"source: expected {len(here)} gates side by side, got {columns} columns")
    order = np.arange(columns).reshape(len(here), -1)[[there.index(gate) for gate in here]]
    signs = np.ones_like(order)
    if not convention.keeps_old or "z" not in here:
        return order.ravel(), None
    signs[here.index("z")] = -1
    return order.ravel(), signs.ravel()


def as_floats(name: str, value: Any) -> Array:
    """A NumPy array of its own, float32 or float64, of whatever a library keeps numbers in.

    Raises TypeError for another dtype.
    """
    expect_plain_array(name, value)
    try:
        array = np.array(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, NotImplementedError) as error:  # PyTorch's bfloat16, or no numbers at all
        got = f"{value.dtype}; convert it before you pass it"
        if getattr(value, "is_meta", False):
            got = "a tensor on the meta device, which holds no numbers; to_empty and "
            got += "load_state_dict give a module some"
        raise TypeError(f"{name}: expected float32 or float64, got {got}") from error
    if array.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32 or float64, got {array.dtype}; convert it before you pass it"
        )
    return array


def library_layer_of(layer: TimeRecurrent, library: str, kinds: Mapping[str, T]) -> T:
    """A library's layer for the cell, from ``kinds``, which has them by the names of cells here.

    Raises ConversionError where there is none, and for a cell that has such a name and is another.
    """
    name = layer.cell.name
    if name not in kinds or layer.cell.forward is not cells.get(name).forward:
        raise ConversionError(f"layer: {library} has no cell {name!r}")
    return kinds[name]


def expect_floats(model: Any, library: str) -> None:
    """Refuse layers, and models of them, with weights in int8. Raises ConversionError."""
    if model.quantised:
        raise ConversionError(
            f"layer: expected weights in float32 or float64 for {library}, got int8 ones; "
            "copy.deepcopy(layer).dequantise() has float32 ones"
        )


def params_of(
    layer: TimeRecurrent, library: str, rates: tuple[str, ...] = (), *, initial: bool = False
) -> dict[str, Array]:
    """The parameters by name, as NumPy arrays.

    rates     what the library has of ``regularise``
    initial   whether it has learnt initial states

    Raises ConversionError for a layer that computes more than its cell.
    """
    expect_floats(layer, library)
    params = dict(zip(layer.param_names, map(to_host, layer.params), strict=True))
    if "initial" in params and not initial:
        raise ConversionError(
            f"layer: {library} has no learnt initial state; pass it as the first state there"
        )
    for name in ("zoneout", "recurrent_dropout", "input_dropout", "weight_drop"):
        if name not in rates and np.any(getattr(layer.regularisers, name, 0)):
            raise ConversionError(
                f"layer: {library} has no {name} in this layer; layer.regularise() switches it off"
            )
    return params


__getattr__ = deprecated.names_of(__name__)
