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

What cannot be converted is refused with the reason (``CannotConvert``), never approximated.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..checks import FLOATS, Array

OURS = {"rnn": "h", "lstm": "fgio", "gru": "zrh"}


class CannotConvert(ValueError):  # noqa: N818 (reads as what is wrong)
    """The other side has nothing that computes the same."""


class Convention(NamedTuple):
    """The order of a library's gates, by their names here; whose share the GRU's z is."""

    rnn: str
    lstm: str
    gru: str
    keeps_old: bool = True


PYTORCH = FLAX = Convention("h", "ifgo", "rzh")
KERAS = Convention("h", "ifgo", "zrh")
ONNX = Convention("h", "iofg", "zrh")


def from_theirs(matrix: Array, family: str, convention: Convention) -> Array:
    """(..., G H), their gates side by side, as ours; ``family`` is rnn, lstm or gru."""
    order, signs = arrangement(family, convention, matrix.shape[-1])
    return matrix[..., order] if signs is None else matrix[..., order] * signs.astype(matrix.dtype)


def to_theirs(matrix: Array, family: str, convention: Convention) -> Array:
    """(..., G H), our gates side by side, as theirs; gradients too."""
    order, signs = arrangement(family, convention, matrix.shape[-1])
    if signs is not None:
        matrix = matrix * signs.astype(matrix.dtype)
    return matrix[..., np.argsort(order)]


@lru_cache(maxsize=64)
def arrangement(family: str, convention: Convention, columns: int) -> tuple[Array, Array | None]:
    """Where our columns are among theirs, and what each is times there; None: 1."""
    there, here = getattr(convention, family), OURS[family]
    if columns % len(here):
        raise ValueError(f"expected {len(here)} gates side by side, got {columns} columns")
    order = np.arange(columns).reshape(len(here), -1)[[there.index(gate) for gate in here]]
    signs = np.ones_like(order)
    if not convention.keeps_old or "z" not in here:
        return order.ravel(), None
    signs[here.index("z")] = -1
    return order.ravel(), signs.ravel()


def as_floats(name: str, array: Array) -> Array:
    """A NumPy array of float32 or float64 of its own. Raises TypeError for another dtype."""
    array = np.array(array)
    if array.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32 or float64, got {array.dtype}; convert it where it is from"
        )
    return array
