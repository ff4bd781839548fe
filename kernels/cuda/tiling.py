"""How a persistent kernel is cut, and whether there should be one.

A block has ``units`` hidden units and ``rows`` rows of the batch at a time; its warps share the
contraction of the product (``split_k``) and its columns (``split_n``). Which cut is best is
estimated from what a step has to wait for: the other blocks, the first byte and the bytes of what
they wrote, the tensor cores.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cells import Cell
from ..layout import layout
from .kernel import DeviceLimits

PRECISIONS = ("float32", "tf32", "bfloat16")
_LOADS_ON_THEIR_WAY = 8  # 16-byte loads of the exchange a lane has in flight


@dataclass(frozen=True)
class Tiling:
    """How a persistent kernel is cut.

    size     H, units of the layer
    gates    recurrent gates: columns of a unit forward, H numbers of contraction each backward
    forward  forward or backward
    units    hidden units of a block, a multiple of 8
    rows     rows of the batch at a time, a multiple of 16
    split_k  warps that share the contraction
    split_n  warps that share the columns
    """

    size: int
    gates: int
    forward: bool
    units: int
    rows: int
    split_k: int
    split_n: int
    precision: str

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.split_k * self.split_n

    @property
    def blocks(self) -> int:
        """Of a group."""
        return -(-self.size // self.units)

    @property
    def columns(self) -> int:
        """Of a block's product."""
        return self.units * (self.gates if self.forward else 1)

    @property
    def chunks(self) -> int:
        """The contraction in sixteens, as many for each warp."""
        contraction = self.size * (1 if self.forward else self.gates)
        each = -(-contraction // (16 * self.split_k))
        ahead = self.ahead
        return self.split_k * (-(-each // ahead) * ahead if each > ahead else each)

    @property
    def ahead(self) -> int:
        """Chunks whose exchange is loaded at once."""
        return max(1, _LOADS_ON_THEIR_WAY // (self.rows // 8))

    @property
    def stride(self) -> int:
        """From row to row of the exchange."""
        odd = self.chunks % 2  # a lone block's rows: neighbours in different banks
        return 16 * self.chunks + (16 if self.blocks == 1 and not odd else 0)

    @property
    def sums(self) -> int:
        """Of a tile: those of float32's three products stay apart, not to wait for each other."""
        return 3 if self.precision == "float32" else 1

    @property
    def single_block(self) -> bool:
        """A group is one block."""
        return self.blocks == 1

    @property
    def weights(self) -> int:
        """Words of a block's weights."""
        return self.columns * self.chunks * (8 if self.precision == "bfloat16" else 16)

    @property
    def partials(self) -> int:
        """Words of the warps' partial sums."""
        return self.split_k * self.rows * self.part_stride

    @property
    def part_stride(self) -> int:
        """From row to row of the warps' partial sums: rows of a fragment are in different banks."""
        return self.columns + (8 if self.columns % 16 == 0 else 16)

    def shared(self, tiles: int) -> int:
        """Bytes of shared memory, for groups of so many times ``rows`` rows."""
        lone = self.rows * tiles * self.stride if self.single_block else 0
        return 4 * (self.weights + self.partials + lone)


@dataclass(frozen=True)
class LaunchPlan:
    """A tiling, and how many times its rows a group has; what a step takes, and would without."""

    tiling: Tiling
    tiles: int
    groups: int
    microseconds: float
    step_by_step: float

    def worthwhile(self, T: int) -> bool:
        """Whether so many steps are worth packing the weights for."""
        return _PACKING + T * self.microseconds < T * self.step_by_step


# The times of a step's parts, in microseconds on an H200: guessed from its data sheet, not
# measured. They only have to order the choices. For all other GPUs (capabilities 8.x, 10.x, 12.x)
# they are taken as they are, so whether a persistent kernel pays there is a guess twice over.
_MEETING, _FIRST_BYTE, _FIRST_BYTE_SHARED = 0.9, 0.7, 0.1
_L2_BYTES, _PORT_BYTES = 4.5e6, 0.11e6  # a microsecond: of the device, of a multiprocessor
_PRODUCTS, _AFTER_EACH_OTHER = 1000.0, 0.012  # mma a microsecond; from one to one that needs it
_STEP_BY_STEP = 25.0  # a product and a launch, from Python
_FLOP = {
    "float32": 30e6,
    "tf32": 150e6,
    "bfloat16": 150e6,
}  # a microsecond, of the product of a step
_PACKING = 40.0  # once


def plan(
    cell: Cell, N: int, H: int, forward: bool, precision: str, device: DeviceLimits
) -> tuple[LaunchPlan | None, str]:
    """The best way to run so many rows and units persistently, or None; and why."""
    gates = layout(cell).early
    if layout(cell).late:
        return None, f"{cell.name} multiplies by Wh twice: two products a step"
    if cell.normalised or cell.operand_gate:
        why = "normalises over all units" if cell.normalised else "has an operand"
        return None, f"{cell.name} {why} within a step, which needs separate kernels"
    if not gates:
        return None, f"{cell.name} has no recurrent product: a thread runs through all steps"
    step_by_step = _STEP_BY_STEP + 2 * N * H * H * gates / _FLOP[precision]
    plans = [
        LaunchPlan(*cut, step_by_step)
        for units in (8, 16, 32, 64, 128)
        for rows in (16, 32)
        for warps in (8, 16)
        for split_n in (1, 2, 4, 8, 16)
        if split_n <= warps
        and (cut := _cut(N, H, gates, forward, units, rows, warps, split_n, precision, device))
    ]
    if not plans and not device.cooperative:
        return None, "on this GPU, or with its driver, blocks cannot wait for each other"
    if not plans:
        return None, f"the recurrent weights of H {H} do not fit on the chip"
    best = min(plans, key=lambda plan: plan.microseconds)
    if best.microseconds > step_by_step:
        return None, f"N {N} and H {H} are large enough for one product a step"
    return best, (
        f"the weights stay on chip, {best.tiling.units} units a block, "
        f"{best.tiling.blocks * best.groups} blocks in {best.groups} groups"
    )


def _cut(
    N: int, H: int, gates: int, forward: bool, units: int, rows: int, warps: int, split_n: int,
    precision: str, device: DeviceLimits,
) -> tuple[Tiling, int, int, float] | None:  # fmt: skip
    """A tiling, tiles, groups, and microseconds; None where the device has no room for it."""
    if units >= 2 * H and units > 8:
        return None
    c = Tiling(H, gates, forward, units, rows, warps // split_n, split_n, precision)
    if c.columns % (8 * split_n):
        return None
    most = device.multiprocessors // c.blocks
    if most == 0 or not (c.single_block or device.cooperative):
        return None
    tiles = -(-N // (rows * most))
    groups = -(-N // (rows * tiles))
    pairs = -(-units * rows // c.threads)
    each, own = c.chunks // c.split_k, rows // 16 * (c.columns // 8 // split_n)
    loads = 4 * _LOADS_ON_THEIR_WAY * (2 if each > c.ahead else 1)
    registers = 40 + 4 * own * c.sums + loads + pairs * (4 + 2 * gates)
    if pairs > 4 or registers > (230 if warps == 8 else 120) or c.shared(tiles) > device.shared:
        return None
    read = 4 * min(rows, N) * 16 * c.chunks  # bytes, of which the first cache keeps a part
    times = (1 + split_n) / 2
    exchange = max(read * c.blocks * groups / _L2_BYTES, read * times / _PORT_BYTES)
    of_a_chunk = 1 if precision == "bfloat16" else 2 if precision == "tf32" else 6
    products = (rows // 16) * (c.columns // 8) * c.chunks * of_a_chunk / _PRODUCTS
    chain = each * of_a_chunk / c.sums * _AFTER_EACH_OTHER
    partials = c.partials * 2 / 32e3
    first = _FIRST_BYTE_SHARED if c.single_block else _FIRST_BYTE + 0.2 + exchange
    meeting = 0 if c.single_block else _MEETING
    return c, tiles, groups, meeting + tiles * (first + max(products, chain) + partials)


def packed(xp: Any, Wh: Any, tiling: Tiling) -> Any:
    """The weights of all blocks in the order of shared memory, from Wh (H, gates H).

    bfloat16 travels as float32 of the same bits, two to a number.
    """
    c, H = tiling, tiling.size
    each = Wh.reshape(H, c.gates, H)
    # (columns of a unit, units, contraction)
    each = each.transpose(1, 2, 0) if c.forward else each.reshape(1, H, c.gates * H)
    full = xp.zeros((each.shape[0], c.blocks * c.units, 16 * c.chunks), Wh.dtype)
    full[:, :H, : each.shape[2]] = each
    full = full.reshape(each.shape[0], c.blocks, c.units, 16 * c.chunks).transpose(1, 0, 2, 3)
    full = full.reshape(c.blocks, c.columns // 8, 8, c.chunks, 16).transpose(0, 1, 3, 2, 4)
    full = xp.ascontiguousarray(full)
    if c.precision != "bfloat16":
        return full
    pattern = full.view(np.uint32)
    rounded = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16  # to the nearest, ties to even
    # the addition would turn NaN into 0
    rounded = xp.where((pattern & 0x7FFFFFFF) > 0x7F800000, np.uint32(0x7FC0), rounded)
    rounded = rounded.reshape(-1, 2)
    return (rounded[:, 0] | (rounded[:, 1] << 16)).astype(np.uint32).view(np.float32)
