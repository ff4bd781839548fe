"""Weights in int8: a kind of weight, and its product with float32 activations.

    W[k, c]  =  w_scale[c] w[k, c]        w: whole numbers, a scale for each column (output)
    a[r, k]  ~  a_scale[r] q[r, k]        q: whole numbers, a scale for each row

    out[r, c] = a_scale[r] * (w_scale[c] * float32(sum over k of q[r, k] w[k, c]))

w and q lie between -127 and 127. The sum is exact, in int32. Everything else is float32, rounded to
nearest after each operation in the order of the brackets, so that an engine can agree bit for bit.
A kernel whose activations are unsigned takes u = q + 128 and subtracts 128 times the sum of w's
column, in integers.

Weights are quantised once:

    w_scale[c] = max over k of |W[k, c]| / 127        w[k, c] = rint(W[k, c] / w_scale[c])

Activations are quantised at every product, in one of two ways. In general the largest of a row sets
its scale:

    largest[r] = max over k of |a[r, k]|
    a_scale[r] = largest[r] / 127                     q[r, k] = rint(a[r, k] * (127 / largest[r]))

The h of many cells lies between -1 and 1, and needs no search for the largest:

    a_scale[r] = 1 / 127                              q[r, k] = rint(127 * a[r, k])

rint rounds to the nearest, halves to the even one; what then lies beyond -127 or 127 becomes that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .once import cached_property

Array = Any

LARGEST = 127  # of the whole numbers on either side
MOST_INPUTS = (2**31 - 1) // (255 * LARGEST)  # of a sum that int32 holds, of u * w too: 66,311
LEAST_ROW = np.float32(2.0**-100)  # a row of smaller numbers counts as zeros
EXACT_IN_FLOAT32 = 2**24 // LARGEST**2  # inputs up to which float32 adds without rounding: 1,040


@dataclass(frozen=True, eq=False, repr=False)
class QuantisedWeight:
    """A matrix in int8, with a scale in float32 for each column, or for each row.

    It is immutable. As a weight of a product it has a scale for each column, its output; as a table
    of rows one for each row. It stands for float32 numbers: ``dtype`` is float32, and
    ``numpy.asarray(weight)`` has them.

    Parameters
    ----------
    values : (rows, columns) array, int8
        The whole numbers, from -127 to 127.
    scale : (columns,) array, or (rows,) with axis 0, float32
        The scales, finite and larger than 0.
    axis : {1, 0}, default 1
        Which of the axes the scales belong to: 1: columns, 0: rows.

    Attributes
    ----------
    values, scale : arrays
        Copies of the arguments, read-only.
    axis : int
        The argument.

    Raises
    ------
    TypeError, ValueError
        If an array is of another dtype or shape, or a number is none of these; or if a column has
        more than ``MOST_INPUTS`` numbers, whose sum int32 might not hold.

    Examples
    --------
    >>> weight = quantise(np.array([[1.0, 0.02], [-0.5, 0.05]], np.float32))
    >>> weight.values
    array([[127,  51],
           [-64, 127]], dtype=int8)
    >>> weight.product(np.array([[2.0, 1.0]], np.float32))  # exactly: 1.5, 0.09
    array([[1.4981712 , 0.09039928]], dtype=float32)
    """

    values: Array
    scale: Array
    axis: int = 1

    __array_ufunc__ = None  # a @ weight is refused: engines call its product

    def __post_init__(self) -> None:
        values, scale = self.values, self.scale
        if not isinstance(values, np.ndarray) or values.dtype != np.int8 or values.ndim != 2:
            raise TypeError(f"values: expected a matrix of int8, got {_kind(values)}")
        if not isinstance(scale, np.ndarray) or scale.dtype != np.float32:
            raise TypeError(f"scale: expected an array of float32, got {_kind(scale)}")
        if self.axis not in (0, 1):
            raise ValueError(f"axis: expected 1 (columns) or 0 (rows), got {self.axis!r}")
        if scale.shape != (values.shape[self.axis],):
            raise ValueError(
                f"scale: expected shape ({values.shape[self.axis]},), one for each "
                f"{'column' if self.axis else 'row'}, got {scale.shape}"
            )
        if values.size and values.min() < -LARGEST:
            raise ValueError(f"values: expected numbers from -{LARGEST} to {LARGEST}, got -128")
        if not ((scale > 0) & (scale < np.inf)).all():
            raise ValueError("scale: expected finite numbers above 0, got others")
        if values.shape[1 - self.axis] > MOST_INPUTS:
            raise ValueError(
                f"values: expected at most {MOST_INPUTS:,} numbers to one scale, whose sums int32 "
                f"holds, got {values.shape[1 - self.axis]:,}; leave this layer in float32"
            )
        self._keep(values.copy(), scale.astype(np.float32), self.axis)

    def _keep(self, values: Array, scale: Array, axis: int) -> "QuantisedWeight":
        values.setflags(write=False)
        scale.setflags(write=False)
        self.__dict__.update(values=values, scale=scale, axis=axis)
        return self

    @staticmethod
    def _view(values: Array, scale: Array, axis: int) -> "QuantisedWeight":
        """One of arrays that are known to be right, which are not copied."""
        return object.__new__(QuantisedWeight)._keep(values, scale, axis)

    # ---- as an array has them

    dtype = np.dtype(np.float32)  # of the numbers that it stands for
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.values.shape

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.values.size

    @property
    def nbytes(self) -> int:
        """The memory that values and scales take."""
        return self.values.nbytes + self.scale.nbytes

    @property
    def T(self) -> "QuantisedWeight":  # noqa: N802 (as an array has it)
        """The transposed matrix, of the same memory."""
        if "T" not in self.kept:
            self.kept["T"] = made = self._view(self.values.T, self.scale, 1 - self.axis)
            made.kept["T"] = self
        return self.kept["T"]

    def __len__(self) -> int:
        return len(self.values)

    def copy(self) -> "QuantisedWeight":
        """Return the weight itself: nothing can change it.

        Returns
        -------
        QuantisedWeight
            The same object.
        """
        return self

    def __copy__(self) -> "QuantisedWeight":
        return self

    def __deepcopy__(self, memo: Any) -> "QuantisedWeight":
        return self

    def __reduce__(self) -> Any:
        return QuantisedWeight, (self.values, self.scale, self.axis)

    def __getitem__(self, index: Any) -> Any:
        """``weight[:, a:b]``: some columns, a QuantisedWeight; ``weight[numbers]``: those rows, as
        float32 arrays."""
        if not isinstance(index, tuple):
            rows = self.values[index].astype(np.float32)
            return rows * (self.scale if self.axis else self.scale[index][..., None])
        if len(index) != 2 or index[0] != slice(None) or not isinstance(index[1], slice):
            raise TypeError(f"index: expected [:, columns] or [row numbers], got {index!r}")
        columns = index[1].indices(self.shape[1])
        if columns == (0, self.shape[1], 1):
            return self
        if columns not in self.kept:
            scale = self.scale[index[1]] if self.axis else self.scale
            self.kept[columns] = self._view(self.values[index], scale, self.axis)
        return self.kept[columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.dequantise(), dtype)

    def __repr__(self) -> str:
        per = "column" if self.axis else "row"
        return f"QuantisedWeight({self.shape[0]} x {self.shape[1]}, int8, a scale per {per})"

    # ---- what it is for

    def dequantise(self) -> Array:
        """Return the numbers that it stands for.

        Returns
        -------
        (rows, columns) array, float32
            Each value times its scale.
        """
        return self.values * (self.scale if self.axis else self.scale[:, None])

    def product(self, activations: Array, bounded: bool = False) -> Array:
        """Multiply float32 activations with it, as the head of this file says.

        Parameters
        ----------
        activations : (..., rows) array, float32
            The left factor.
        bounded : bool, default False
            Whether the activations are known to lie between -1 and 1.

        Returns
        -------
        (..., columns) array, float32
            The product.

        Raises
        ------
        TypeError
            If the activations are not float32, or the scales are those of rows.
        """
        if activations.dtype != np.float32:
            raise TypeError(
                f"activations: expected float32 beside weights in int8, got {activations.dtype}"
            )
        if self.axis != 1:
            raise TypeError("weight: expected a scale for each column, got one for each row")
        q, scale = quantise_activations(activations.reshape(-1, len(self)), bounded)
        sums = (q.astype(self._numbers.dtype) @ self._numbers).astype(np.float32)
        out = scale[:, None] * (self.scale * sums)
        return out.reshape(*activations.shape[:-1], self.shape[1])

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """Everything that was made of it: parts, and panels of engines."""
        return {}

    @cached_property
    def _numbers(self) -> Array:
        """The values in a float dtype in which a product of them is exact, in whatever order it is
        summed: BLAS has none in integers."""
        return self.values.astype(
            np.float32 if self.shape[0] <= EXACT_IN_FLOAT32 else np.float64, order="C"
        )


def quantise(W: Array, name: str = "W") -> QuantisedWeight:
    """Round a weight matrix to int8, with a scale for each column.

    A column without a number of at least 127 x 2^-126 becomes zeros, with the scale 1.

    Parameters
    ----------
    W : (rows, columns) array, float32
        The weights.
    name : str, default "W"
        Its name in errors.

    Returns
    -------
    QuantisedWeight
        The weights, each at most half a scale from what it was.

    Raises
    ------
    TypeError
        If W is not a matrix of float32.
    ValueError
        If a number is NaN or infinite, or there are more than ``MOST_INPUTS`` rows.
    """
    if not isinstance(W, np.ndarray) or W.dtype != np.float32 or W.ndim != 2:
        raise TypeError(f"{name}: expected a matrix of float32, got {_kind(W)}")
    if not np.isfinite(W).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(W))[0]))
        raise ValueError(f"{name}: expected finite numbers, got {W[where]} at {where}")
    scale = np.abs(W).max(axis=0, initial=np.float32(0)) / np.float32(LARGEST)
    small = scale < np.finfo(np.float32).tiny
    scale = np.where(small, np.float32(1), scale)
    values = np.rint(np.where(small, np.float32(0), W) / scale)
    return QuantisedWeight(values.clip(-LARGEST, LARGEST).astype(np.int8), scale)


def quantise_activations(rows: Array, bounded: bool = False) -> tuple[Array, Array]:
    """Round activations to 8 bits, as a product with a quantised weight reads them.

    Parameters
    ----------
    rows : (R, K) array, float32
        The activations.
    bounded : bool, default False
        Whether they are known to lie between -1 and 1. Numbers beyond then count as -1 and 1, and
        NaN as -1. Otherwise a row of zeros, or of numbers below 2^-100, has the scale 0, and one
        with NaN or infinity the scale NaN, so that all its products are NaN.

    Returns
    -------
    q : (R, K) array, int8
        The whole numbers, from -127 to 127.
    scale : (R,) array, float32
        The scale of each row.
    """
    most = np.float32(LARGEST)
    if bounded:
        scaled, scale = rows * most, np.full(len(rows), 1 / most, np.float32)
    else:
        largest = np.abs(rows).max(axis=1)
        finite = largest < np.inf
        some = finite & (largest >= LEAST_ROW)
        factor = np.divide(most, largest, where=some, out=np.zeros_like(largest))
        with np.errstate(invalid="ignore"):  # infinity times 0
            scaled = rows * factor[:, None]
        scale = np.where(some, largest / most, np.where(finite, np.float32(0), np.float32(np.nan)))
    with np.errstate(invalid="ignore"):
        q = np.fmin(np.fmax(np.rint(scaled), -most), most)  # NaN becomes -127
    return q.astype(np.int8), scale


def is_quantised(params: Sequence[Any]) -> bool:
    """Whether there are weights in int8 among parameters."""
    return QuantisedWeight in map(type, params)


def expect_trainable(params: Sequence[Any]) -> None:
    """Refuse weights in int8, which have no gradients. Raises TypeError."""
    if is_quantised(params):
        raise TypeError(
            "params: expected weights in float32 or float64, which have gradients, got int8 ones; "
            "layer.dequantise() makes them float32 again"
        )


def _kind(value: Any) -> str:
    """A description of something, for an error."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
