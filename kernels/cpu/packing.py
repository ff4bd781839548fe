"""Matrices as panels (``gemm.py``), made by NumPy once for many uses: a stream's weights."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..engine import Array
from ..layout import layout
from ..quantisation import QuantisedWeight
from .plan import write
from .plans import address_of, aligned
from .target import VECTOR_BYTES, int8_unsigned, vector_registers


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


def wide_bytes(cell: Cell) -> int:
    """How wide a strip is where units suffice: its sums take a quarter of the registers."""
    registers, bits = vector_registers()
    most = registers // 4 * bits // 8 // max(1, layout(cell).early)
    return max(VECTOR_BYTES, min(4 * VECTOR_BYTES, 1 << most.bit_length() - 1))


def strips_of(halves: int, times: int) -> tuple[int, int]:
    """How many strips of so many vectors there are, and how many halves of one are left.

    One that lacks but a half is whole: two strips instead of it would wait for their sums twice.
    """
    many = (halves + (times > 1)) // (2 * times)
    return many, max(0, halves - 2 * many * times)


def pack_strips(cell: Cell, params: Sequence[Array]) -> Packed:
    """The weights of a layer, strip by strip, as ``fused_step.py`` reads them.

    params are those that ``plans.merge_bias`` makes.
    """
    Wx, Wh, b, *own = params
    H, P, inputs, early = (
        cell.hidden_size(params),
        Wh.shape[0],
        cell.input_gates,
        layout(cell).early,
    )
    added = (*inputs, *range(len(cell.gates) - len(cell.weights), len(cell.gates)))
    rows = b.reshape(-1, len(added), H)
    biases = np.zeros((1, len(cell.gates), H), b.dtype)
    biases[0, added] = rows[0]
    for row, g in zip(rows[-1] if cell.biases == 2 else (), cell.recurrent_gates, strict=False):
        biases[0, g] = biases[0, g] + row if g in added else row
    Wr = (own[0] if own else Wh[:, early * H :]).reshape(H, -1, P)
    Wr = np.pad(Wr, ((0, 0), (0, 0), (0, H - P)))
    parts = biases, Wx.reshape(-1, len(inputs), H), Wh[:, : early * H].reshape(P, early, H), Wr
    half, times = VECTOR_BYTES // b.itemsize // 2, wide_bytes(cell) // VECTOR_BYTES
    many, rest = strips_of(-(-H // half), times)
    strips = [2 * half * times] * many + [2 * half] * (rest // 2) + [half] * (rest % 2)
    pieces, start = [], 0
    for lanes in strips:
        for k, part in enumerate(parts):
            width = max(lanes, 2 * half) if k < 2 else lanes
            strip = part[:, :, start : start + lanes]
            strip = np.pad(strip, ((0, 0), (0, 0), (0, width - strip.shape[2])))
            if part is not biases:
                strip = _side_by_side(strip, min(width, 2 * half))
            pieces.append(strip.reshape(-1))
        start += lanes
    pieces.append(np.zeros(-sum(map(len, pieces)) % (2 * half), b.dtype))
    memory, address = placed(np.concatenate(pieces))
    return Packed([memory], [address], H)


def _side_by_side(strip: Array, lanes: int) -> Array:
    """(rows, gates, W) as (gates, W / lanes, rows, lanes), with a row more where that is even."""
    rows, gates, width = strip.shape
    strip = np.pad(strip, ((0, 1 - rows % 2), (0, 0), (0, 0)))
    return strip.reshape(len(strip), gates, width // lanes, lanes).transpose(1, 2, 0, 3)


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
