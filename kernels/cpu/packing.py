"""Matrices as panels (``gemm.py``), made by NumPy once for many uses: a stream's weights."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..engine import Array
from ..layout import layout
from ..quantisation import QuantisedWeight
from . import threads
from .kernel_cache import compiled
from .plan import write
from .plans import address_of, aligned, compiling
from .strips import strip_bytes
from .target import VECTOR_BYTES, int8_unsigned


class Packed(NamedTuple):
    """Matrices in panels, of so many numbers in a word."""

    memory: list[Array]
    addresses: list[int]
    columns: int
    word: int = 1


def pack_weights(cell: Cell, params: Sequence[Array], bfloat16: bool) -> Packed:
    """Wx, Wh and Wr as ``forward.py`` packs them: a matrix for each gate, in this engine's order.

    params are those that ``plans.merge_bias`` makes.
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
    memory = [placed(panels) for panels in (of_x, of_h, _panels(wide, Wr.dtype))]
    return Packed([m for m, _ in memory], [a for _, a in memory], H, 2 if bfloat16 else 1)


def pack_quantised(cell: Cell, params: Sequence[Any]) -> Packed:
    """The same of weights in int8, which keep their panels (``int8.py``)."""
    at, H = layout(cell), cell.hidden_size(params)
    Wx, Wh = params[0], params[1] if cell.recurrent_gates else params[0]
    Wr, skip = (params[-1], at.early) if cell.projected else (Wh, 0)
    late = tuple(block - skip for block in at.h_blocks[at.early :])
    P = Wh.shape[0] if cell.recurrent_gates else H
    memory = [
        _quantised_panels(Wx, at.x_blocks, H, H),
        _quantised_panels(Wh, at.h_blocks[: at.early], H, H),
        _quantised_panels(Wr, late, P, H),
    ]
    return Packed([m for m, _ in memory], [a for _, a in memory], H, 4)


def pack_quantised_matrix(weight: QuantisedWeight) -> tuple[Array, int]:
    """The panels of a whole matrix in int8, and where they begin."""
    return _quantised_panels(weight, (0,), weight.shape[1], weight.shape[1])


def _quantised_panels(
    weight: QuantisedWeight, blocks: tuple[int, ...], columns: int, width: int
) -> tuple[Array, int]:
    """Blocks of columns in panels, each padded to a width: words, what sums begin with, scales."""
    key = blocks, columns, width, int8_unsigned()
    if key not in weight.kept:
        K = len(weight)
        values = np.pad(weight.values, ((0, -K % 4), (0, 0)))
        words = values.reshape(-1, 4, values.shape[1]).transpose(0, 2, 1).copy().view(np.float32)
        starts = values.sum(0, dtype=np.int32) * np.int32(-128 * int8_unsigned())
        lines = np.vstack([words[:, :, 0], starts.view(np.float32), weight.scale])
        parts = [lines[:, block * columns : (block + 1) * columns] for block in blocks]
        wide = [np.pad(part, ((0, 0), (0, width - columns))) for part in parts]
        weight.kept[key] = placed(_panels(wide, np.float32))
    return weight.kept[key]


def write_packed(plan: Array, packed: Packed) -> None:
    """Write into a plan where its weights are."""
    pWx, pWh, pWr = packed.addresses
    write(plan, pWx=pWx, pWh=pWh, pWr=pWr)


def pack_strips(cell: Cell, params: Sequence[Array]) -> Packed:
    """The weights of a layer, strip by strip (``fused_step.py``).

    params are those that ``plans.merge_bias`` makes.
    """
    Wx, Wh, b, *own = params
    (D, _), P, H, size = Wx.shape, Wh.shape[0], cell.hidden_size(params), b.itemsize
    memory, address = aligned(strip_bytes(cell, D, H, P, size), b.dtype)
    Wr = own[0] if own else Wh[:, layout(cell).early * H :]
    write(
        plan := np.zeros(threads.PLAN_WORDS, np.int64),
        pWx=address, D=D, H=H, P=P, size=size, Wx=address_of(Wx), Wx_row=Wx.strides[0],
        Wh=address_of(Wh), Wh_row=Wh.strides[0], Wr=address_of(Wr), Wr_row=Wr.strides[0],
        b=address_of(b), b_row=b.strides[0],
    )  # fmt: skip
    with compiling(cell, "packing", b.dtype.name):
        kernel = compiled("fused_step.pack", b.dtype.name, cell)
    threads.call_kernel(kernel, address_of(plan))
    return Packed([memory], [address], H)


FEW_OUTPUTS = 2  # of an affine layer, for which a panel would be wide (measured)


def pack_affine(affine: Sequence[Array]) -> Packed:
    """W (H, outputs) and, for a last row, b (outputs,); for few outputs a padded row for each.

    Of a W in int8 b is by itself.
    """
    W, b = affine
    if isinstance(W, QuantisedWeight):
        (memory, address), (bias, bias_address) = pack_quantised_matrix(W), placed(b)
        return Packed([memory, bias], [address, bias_address], W.shape[1], 4)
    both, lanes = np.vstack([W, b]), VECTOR_BYTES // W.itemsize
    few = W.shape[1] <= FEW_OUTPUTS
    in_rows = np.pad(both.T, ((0, 0), (0, -len(both) % lanes))) if few else _panels([both], W.dtype)
    memory, address = placed(in_rows)
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
    """A matrix of words (``bfloat16.py``), whose dtype they are said to have."""
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
