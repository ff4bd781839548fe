"""Matrices as panels (``gemm.py``), made by NumPy once for many uses: a stream's weights."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..engine import Array
from ..layout import layout
from .plans import address_of, aligned
from .simd import VECTOR_BYTES


class Packed(NamedTuple):
    """Matrices in panels."""

    memory: list[Array]
    addresses: list[int]
    columns: int
    bfloat16: bool = False


def pack_weights(cell: Cell, params: Sequence[Array], bfloat16: bool) -> Packed:
    """Wx and Wh as ``forward.py`` packs them: a matrix for each gate, in this engine's order.

    params are those that ``plans.with_weights`` makes.
    """
    Wx, Wh, _, *own = params
    at, H, P = layout(cell), cell.hidden_size(params), Wh.shape[0]
    Wr = own[0] if own else Wh[:, at.early * H :]
    if bfloat16:
        Wx, Wh, Wr = map(_pairs_of_rows, (Wx, Wh, Wr))
    early, late = at.h_blocks[: at.early], [block - at.early for block in at.h_blocks[at.early :]]
    of_x, of_h = (
        _panels([W[:, block * H : (block + 1) * H] for block in blocks], W.dtype)
        for W, blocks in ((Wx, at.x_blocks), (Wh, early))
    )
    wide = [np.pad(Wr[:, k * P : (k + 1) * P], ((0, 0), (0, H - P))) for k in late]
    of_operand = _panels(wide, Wr.dtype)
    packed = [of_x, np.concatenate([of_h.reshape(-1), of_operand.reshape(-1)])]
    memory = [placed(panels) for panels in packed]
    return Packed([m for m, _ in memory], [a for _, a in memory], H, bfloat16)


def pack_affine(affine: Sequence[Array]) -> Packed:
    """W (H, outputs) and, for a last row, b (outputs,)."""
    W, b = affine
    memory, address = placed(_panels([np.vstack([W, b])], W.dtype))
    return Packed([memory], [address], W.shape[1])


def _panels(matrices: Sequence[Array], dtype: Any) -> Array:
    """The panels of matrices (rows, columns), one after the other (see ``gemm.py``)."""
    if not matrices:
        return np.zeros((0, 1, 1), dtype)
    panels = []
    for matrix in matrices:
        rows, columns = matrix.shape
        lanes = VECTOR_BYTES // matrix.itemsize
        count = -(-columns // lanes)
        padded = np.zeros((rows | 1, count * lanes), matrix.dtype)
        padded[:rows, :columns] = matrix
        panels.append(padded.reshape(rows | 1, count, lanes).transpose(1, 0, 2))
    return np.concatenate(panels)


def _pairs_of_rows(matrix: Array) -> Array:
    """A matrix of words (``low_precision.py``), whose dtype they are said to have."""
    halves = upper_halves(np.ascontiguousarray(matrix)).astype(np.uint32)
    halves = np.pad(halves, ((0, len(halves) % 2), (0, 0)))
    return (halves[::2] | halves[1::2] << 16).view(matrix.dtype)


def upper_halves(panels: Array) -> Array:
    """float32 as bfloat16: the upper 16 bits, rounded to the nearest (even)."""
    bits = panels.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def placed(panels: Array) -> tuple[Array, int]:
    """A copy whose address is a multiple of 64, and that address."""
    copy = zeros(panels.shape, panels.dtype)
    copy[...] = panels
    return copy, address_of(copy)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of zeros whose address is a multiple of 64."""
    size = int(np.prod(shape))
    memory, address = aligned(size * dtype.itemsize, dtype)
    start = (address - address_of(memory)) // dtype.itemsize
    memory[start : start + size] = 0
    return memory[start : start + size].reshape(shape)
