"""The work of training around the cells: an optimiser's rule, norms, softmax, an embedding's
gradient.

Each is a kernel (``training_kernels.py``) that works on a range of items (``parallel_for.py``):
blocks of numbers, rows, groups of columns. A sum is made within an item, and of items in their
order afterwards, so that no bit depends on how many threads there are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..engine import Array
from ..sparse_rows import SparseRows, numbers_of
from .kernel_cache import Rule, compiled
from .parallel_for import parallel_for, shards_for
from .plans import address_of
from .target import VECTOR_BYTES

BLOCK = 4096  # numbers of an item
GROUP = 4 * VECTOR_BYTES  # bytes of a row of an item that is some columns


# ---- blocks of arrays


class Blocks(NamedTuple):
    """Arrays that lie without gaps, as blocks.

    table    for each parameter, or row of one whose gradient is sparse, the number of its first
             block, how many numbers it has, and the addresses of its arrays
    numbers  the address of the kernel's numbers, in the arrays' dtype
    out      the address of a float64 for each block
    """

    table: int
    numbers: int
    out: int


def blocks_of(groups: Sequence[Sequence[Array]]) -> tuple[Array, int, int]:
    """The table of ``Blocks``, how many blocks there are, and how many numbers."""
    parts: list[Any] = []
    blocks = numbers = 0
    for *arrays, last in groups:
        (values,), count = numbers_of([last]), 1
        if isinstance(last, SparseRows):
            count = len(last.rows)
            each, k = values.size // max(1, count), np.arange(count)
            places = [address_of(a) + last.rows * (each * a.itemsize) for a in arrays]
            places.append(address_of(values) + k * (each * values.itemsize))
            first = blocks + k * -(-each // BLOCK)
            parts.append(np.stack([first, np.full_like(k, each), *places], axis=1))
        else:
            each = values.size
            parts.append([(blocks, each, *map(address_of, (*arrays, values)))])
        blocks, numbers = blocks + count * -(-each // BLOCK), numbers + values.size
    parts.append([(1 << 62, 0, *[0] * len(groups[0]))])  # no block is in it
    return np.concatenate(parts, dtype=np.int64), blocks, numbers


def update(
    rule: Callable[..., Any], groups: Sequence[Sequence[Array]], numbers: Sequence[float]
) -> None:
    """Apply a rule to arrays and their gradient, group by group.

    numbers  what the gradients are multiplied by, and the rule's numbers
    """
    dtype = groups[0][0].dtype
    table, blocks, count = blocks_of(groups)
    kernel = compiled(
        "training_kernels.update_blocks",
        dtype.name,
        rule=Rule(rule, len(groups[0]) - 1, len(numbers) - 1),
    )
    given = np.array(numbers, dtype)
    arguments = Blocks(address_of(table), address_of(given), 0)
    parallel_for(kernel, arguments, blocks, shards_for(blocks, count * len(groups[0])))


def sum_of_squares(arrays: Sequence[Array]) -> float:
    """The sum of the squares of all numbers of arrays."""
    table, blocks, count = blocks_of([[array] for array in arrays])
    out = np.empty(blocks)
    kernel = compiled("training_kernels.squares_of_blocks", arrays[0].dtype.name)
    arguments = Blocks(address_of(table), 0, address_of(out))
    parallel_for(kernel, arguments, blocks, shards_for(blocks, count))
    return float(out.sum())


# ---- softmax and its loss


class Rows(NamedTuple):
    """Rows of scores (V,), and of each its label (int64); its largest score, the logarithm of
    sum(exp(score - largest)) and what its gradient is multiplied by (float64); the gradient."""

    V: int
    scores: int
    labels: int
    largest: int
    log_sums: int
    weights: int
    gradient: int


def log_sum_exp(scores: Array) -> Array:
    """The largest score of each row, and log(sum(exp(score - largest))), in float64."""
    out = np.empty((2, len(scores)))
    largest, sums = map(address_of, out)
    given = Rows(scores.shape[1], address_of(scores), 0, largest, sums, 0, 0)
    shards = shards_for(len(scores), scores.size)
    parallel_for(
        compiled("training_kernels.log_sums", scores.dtype.name), given, len(scores), shards
    )
    return out


def softmax_gradient(scores: Array, sums: Array, labels: Array, weights: Array) -> Array:
    """weights[r] times the gradient of the loss of row r with respect to its scores."""
    out = np.empty_like(scores)
    places = (address_of(array) for array in (scores, labels, *sums, weights, out))
    given = Rows(scores.shape[1], *places)
    shards = shards_for(len(scores), scores.size)
    parallel_for(
        compiled("training_kernels.softmax_gradients", scores.dtype.name),
        given,
        len(scores),
        shards,
    )
    return out


# ---- the gradient of an embedding


class Segments(NamedTuple):
    """out (V, D) [rows[k]] += values[order[k]], rows sorted; an item is some columns."""

    out: int
    values: int
    rows: int
    order: int
    length: int
    D: int


def add_rows(out: Array, rows: Array, values: Array) -> None:
    """out[rows[k]] += values[k] for every k."""
    order = np.argsort(rows, kind="stable")
    rows, D = np.asarray(rows[order], np.int64), out.shape[1]
    places = address_of(out), address_of(values), address_of(rows), address_of(order)
    given = Segments(*places, length=len(rows), D=D)
    items = -(-D * out.itemsize // GROUP)
    shards = shards_for(items, values.size)
    parallel_for(compiled("training_kernels.add_segments", out.dtype.name), given, items, shards)
