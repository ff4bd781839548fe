"""The book's ``common/base_model.py``: a model's parameters to a file and back.

The file is the book's: a pickle of a list of arrays in float16. Loading runs nothing that is in
the file: whatever is not a plain array of numbers is refused.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import engine_of_param, to_host
from ..files import written_atomically
from ..typing import Array
from ..validation import format_shape

__all__ = ["BaseModel", "np"]


class BaseModel:
    """Base class of the book's models. A subclass sets ``params`` and ``grads``.

    Attributes
    ----------
    params, grads : list of arrays
        The parameters and their gradients.
    """

    params: list[Array]
    grads: list[Array]

    def forward(self, *args: Any) -> Any:
        """Run the model; the subclass defines it.

        Parameters
        ----------
        *args
            The arguments of the subclass.

        Returns
        -------
        object
            The result of the subclass.

        Raises
        ------
        NotImplementedError
            If the subclass does not define it.
        """
        raise NotImplementedError

    def backward(self, *args: Any) -> Any:
        """Compute the gradients; the subclass defines it.

        Parameters
        ----------
        *args
            The arguments of the subclass.

        Returns
        -------
        object
            The result of the subclass.

        Raises
        ------
        NotImplementedError
            If the subclass does not define it.
        """
        raise NotImplementedError

    def save_params(self, file_name: str | Path | None = None) -> None:
        """Write the parameters to a file in float16.

        Parameters
        ----------
        file_name : str or Path, optional
            The file; the name of the class and .pkl if left out.
        """
        halves = [to_host(param).astype(np.float16) for param in self.params]
        path = Path(file_name or f"{type(self).__name__}.pkl")
        with written_atomically(path) as part, open(part, "wb") as file:
            pickle.dump(halves, file, protocol=4)

    def load_params(self, file_name: str | Path | None = None) -> None:
        """Set the parameters to those of a file, in place.

        Parameters
        ----------
        file_name : str or Path, optional
            The file; the name of the class and .pkl if left out.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If its arrays are not those of the model; the parameters are then as before.
        """
        path = Path(file_name or f"{type(self).__name__}.pkl")
        arrays = _read(path)
        shapes, wanted = ([a.shape for a in each] for each in (arrays, self.params))
        if shapes != wanted:
            expected, got = (", ".join(map(format_shape, each)) for each in (wanted, shapes))
            raise ValueError(f"{path}: expected arrays of shape {expected}, got {got}")
        for param, array in zip(self.params, arrays, strict=True):
            param[...] = engine_of_param(param).to_device(array.astype(param.dtype))


def _read(path: Path) -> list[Array]:
    """The arrays of a pickled list."""
    with open(path, "rb") as file:
        try:
            return [_array(value) for value in _Reader(file).load()]
        except Exception as error:  # of pickle, or NumPy: whatever they say to a broken file
            raise ValueError(
                f"{path}: expected a pickled list of arrays of numbers, got something else "
                f"({error})"
            ) from error


class _State:
    """Stands for whatever a pickle makes of an array: how it is made, and its state."""

    def __init__(self, *made_of: Any) -> None:
        self.made_of, self.state = made_of, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads pickles of arrays, and calls none of the functions that they name."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "_frombuffer", "dtype"):
            return _State
        if (module, name) == ("numpy", "ndarray"):
            return None
        if (module, name) == ("_codecs", "encode"):  # how older protocols spell bytes
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"{module}.{name}")


def _array(value: _State) -> Array:
    """An array of floats from what ``ndarray.__reduce__`` said of it."""
    if value.state:
        _, shape, dtype, by_columns, data = value.state
    else:  # of protocol 5
        data, dtype, shape, order = value.made_of
        by_columns = order == "F"
    kind, order = dtype.made_of[0], dtype.state[1]
    if kind not in ("f2", "f4", "f8") or order not in ("<", ">", "="):
        raise ValueError(f"dtype {order}{kind}")
    return np.frombuffer(data, order + kind).reshape(shape, order="F" if by_columns else "C")
