"""The gradient of a matrix in which only some rows have one, such as that of an embedding."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Array = Any


class SparseRows:
    """A (V, ...) array of which some rows are given and the others are 0.

    Parameters
    ----------
    rows : (K,) array, int64
        The numbers of the rows, which increase.
    values : (K, ...) array, float32 or float64
        The rows.
    shape : tuple of int
        The shape of the whole array.

    Attributes
    ----------
    rows, values, shape
        As above. A layer that is run again sets them anew.

    Notes
    -----
    ``numpy.asarray(gradient)`` is the whole array. SGD and AdaGrad compute the same from it as from
    these rows, bit for bit unless gradients are clipped, whose norm is then summed in another
    order.

    Examples
    --------
    >>> gradient = SparseRows(np.array([1, 3]), np.array([[1.0, 2.0], [3.0, 4.0]]), (5, 2))
    >>> gradient
    SparseRows(2 of 5 rows, float64)
    >>> np.asarray(gradient)[:, 0]
    array([0., 1., 0., 3., 0.])
    """

    def __init__(self, rows: Array, values: Array, shape: tuple[int, ...]) -> None:
        self.rows, self.values, self.shape = rows, values, tuple(shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the values."""
        return self.values.dtype

    def converted(self, function: Callable[[Array], Array]) -> "SparseRows":
        """Apply a function to the rows and to the values.

        Parameters
        ----------
        function : callable
            The function of an array.

        Returns
        -------
        SparseRows
            A new one with the results.
        """
        return SparseRows(function(self.rows), function(self.values), self.shape)

    def copy(self) -> "SparseRows":
        """Copy rows and values.

        Returns
        -------
        SparseRows
            The copy.
        """
        return self.converted(lambda array: array.copy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = np.zeros(self.shape, self.dtype if dtype is None else dtype)
        whole[self.rows] = self.values
        return whole

    def __repr__(self) -> str:
        return f"SparseRows({len(self.rows)} of {self.shape[0]} rows, {self.dtype})"


def numbers_of(arrays: Iterable[Any]) -> list[Array]:
    """The arrays that hold all numbers but zeros: of ``SparseRows`` their values."""
    return [array.values if isinstance(array, SparseRows) else array for array in arrays]
