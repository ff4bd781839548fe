"""Products of large float32 matrices on the tensor cores, which know TF32 only.

A float32 is the sum of two TF32 numbers, a = a1 + a2, but for its last bits. Of

    a b = a1 b1 + a1 b2 + a2 b1 + a2 b2

the last term is below what float32 keeps, and the others are one product of three times the
contraction (3xTF32), a third of the tensor cores' speed, several times that of float32 arithmetic:

    [ a1  a2  a1 ] [ b2 ]
                   [ b1 ]         the small terms first
                   [ b1 ]

Tall matrices are taken in blocks of rows, so that the copies stay small, and long contractions in
blocks that are added up in float32: within a product the tensor cores round towards 0. Infinity
becomes NaN, as its rest is none.
"""

from functools import cache
from typing import Any

import numpy as np

from ..engine import product_in_parts
from .kernel import Gpu, Kernel

MIN_FLOPS = 4e9  # operations from which on the copies cost less than they save
_THREADS = 256
_BLOCK = 1 << 25  # numbers of a matrix copied at a time
_LONGEST = 1024  # contraction of one product, which is off by some 1e-9 of each of its terms


def product(gpu: Gpu, a: Any, b: Any) -> Any:
    """a b for matrices; a transposed one may be a view of what it is transposed of.

    Of stacks of matrices, too, which go to the library.
    """
    (m, k), n = a.shape[-2:], b.shape[-1]
    if a.ndim > 2 or a.dtype != np.float32 or 2 * m * n * k < MIN_FLOPS:
        return product_in_parts(gpu.xp.matmul, a, b)
    matmul = gpu.xp.matmul
    out = gpu.xp.empty((m, n), a.dtype)
    with gpu.products("tf32"):
        if k <= _LONGEST:
            each = max(1, _BLOCK // k)
            right = _split_3xtf32(gpu, b, contracted=0)
            for r in range(0, m, each):
                matmul(_split_3xtf32(gpu, a[r : r + each], 1), right, out=out[r : r + each])
            return out
        each = min(_LONGEST, max(1, _BLOCK // max(m, n)))
        for r in range(0, k, each):
            left, right = (
                _split_3xtf32(gpu, a[:, r : r + each], 1),
                _split_3xtf32(gpu, b[r : r + each], 0),
            )
            if r == 0:
                matmul(left, right, out=out)
            else:
                out += matmul(left, right)
    return out


def _split_3xtf32(gpu: Gpu, matrix: Any, contracted: int) -> Any:
    """The left factor (contracted 1) as [a1 a2 a1], the right one (0) as [b2; b1; b1]."""
    order = "large, small, large" if contracted else "small, large, large"
    row_major = matrix.strides[1] == matrix.itemsize  # else it is the transposed of such a one
    if not row_major:
        matrix, contracted = matrix.T, 1 - contracted
    if matrix.strides[1] != matrix.itemsize:
        matrix = gpu.xp.ascontiguousarray(matrix)
    rows, columns = matrix.shape
    stride = matrix.strides[0] // matrix.itemsize
    shape = (rows, 3 * columns) if contracted else (3 * rows, columns)
    row, block = (3 * columns, columns) if contracted else (columns, rows * columns)
    out = gpu.xp.empty(shape, matrix.dtype)
    wide = columns % 4 == 0 and stride % 4 == 0 and gpu.address(matrix) % 16 == 0
    kernel = _kernel(order, 4 if wide else 1)
    grid = rows, -(-columns // (kernel.threads * (4 if wide else 1)))
    sizes = {"stride": stride, "row": row, "block": block, "size": columns}
    gpu.launch(kernel, grid, kernel.arguments(source=matrix, out=out, **sizes))
    return out if row_major else out.T


@cache
def _kernel(order: str, count: int) -> Kernel:
    """Split a matrix, ``count`` numbers a thread: blockIdx.x is the row."""
    lines = [
        f"j = (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x) * {count}",
        "if j >= size:",
        "    return",
        f"x = load{count}(source, cuda.blockIdx.x * stride + j)",
        "pattern = tf32(x)",
        "large, small = numbers(pattern), numbers(tf32(numbers(tf32_residual_bits(x, pattern))))",
        f"first, second, third = {order}",
        "place = cuda.blockIdx.x * row + j",
        "write(out, place, first)",
        "write(out, place + block, second)",
        "write(out, place + 2 * block, third)",
    ]
    name = f"thirds_{'right' if order.startswith('small') else 'left'}_{count}"
    return Kernel(name, lines, _THREADS)
