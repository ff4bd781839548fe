"""Rows of members that differ in length (``../ragged.py``), from the caller's array and back."""

from typing import NamedTuple

import numpy as np

from ..engine import Array
from ..ragged import Ragged
from .kernel_cache import compiled
from .parallel_for import parallel_for, shards_for
from .plans import address_of, contiguous_rows


class Moving(NamedTuple):
    """An array (N, T, columns) of the caller's and its rows (rows, columns); strides in bytes."""

    firsts: int  # how many rows the steps before each have
    members: int  # of each member the bytes from the array's start to its first step
    array: int
    time: int
    rows: int
    row: int
    columns: int


def _move(kernel: str, members: Ragged, array: Array, rows: Array) -> None:
    row, time, _ = array.strides
    starts = members.starts(row, time)
    given = Moving(
        address_of(members.firsts), address_of(starts), address_of(array), time,
        address_of(rows), rows.strides[0], rows.shape[1],
    )  # fmt: skip
    address = compiled(f"ragged_kernels.{kernel}", rows.dtype.name)
    parallel_for(address, given, len(rows), shards_for(len(rows), rows.size))


def pack_rows(members: Ragged, array: Array) -> Array:
    """The rows (rows, columns) of an array (N, T, columns)."""
    array = contiguous_rows(array)
    rows = np.empty((members.rows, array.shape[2]), array.dtype)
    _move("pack_rows", members, array, rows)
    return rows


def unpack_rows(members: Ragged, rows: Array, by_time: bool) -> Array:
    """An array (N, T, columns), 0 where a member has no step.

    by_time  whether its steps lie one after the other in memory
    """
    N, T, columns = members.N, members.T, rows.shape[1]
    array = np.zeros((T, N, columns) if by_time else (N, T, columns), rows.dtype)
    array = array.swapaxes(0, 1) if by_time else array
    _move("unpack_rows", members, array, rows)
    return array
