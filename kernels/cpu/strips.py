"""Strips of units, into which a step as one function is cut (``fused_step.py``)."""

from ..cells import Cell
from ..layout import layout
from .target import VECTOR_BYTES, vector_registers


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


def strip_bytes(cell: Cell, D: int, H: int, P: int, size: int) -> int:
    """The memory that a layer's weights take, at most: that of strips of whole vectors.

    One vector more, since the last strip may be wider than the units that are left.
    """
    at = layout(cell)
    rows = len(cell.gates) + at.x_gates * (D | 1) + at.early * (P | 1) + at.late * (H | 1)
    return (-(-H * size // VECTOR_BYTES) + 1) * rows * VECTOR_BYTES


def x_ahead(cell: Cell, T: int, D: int, H: int, size: int) -> dict[str, int]:
    """The fields of a plan that say for how many steps x Wx is made ahead (measured)."""
    at = layout(cell)
    weight_bytes = size * H * (D * at.x_gates + H * (at.early + at.late))
    if T == 1 or not (D >= 64 or (D >= 8 and weight_bytes > 1 << 15)):
        return {"block": T, "ahead_step": 0, "ahead_panel": 0, "x_inner": D}
    block = min(T, 64)
    panel = (block | 1) * VECTOR_BYTES
    return {"block": block, "ahead_step": VECTOR_BYTES, "ahead_panel": panel, "x_inner": 0}
