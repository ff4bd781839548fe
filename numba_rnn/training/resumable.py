"""Training data with a cursor, so that a run can be resumed amid an epoch."""

import copy
import hashlib
from typing import Any, ClassVar

import numpy as np

from ..typing import AnyArray
from ..validation import expect_int


def expect_steps(name: str, whole: Any, axes: str) -> None:
    """Refuse what is no array with axes."""
    if not isinstance(whole, np.ndarray):
        remedy = f"; np.asarray({name}) converts it" if isinstance(whole, (list, tuple)) else ""
        raise TypeError(f"{name}: expected an array {axes}, got {type(whole).__name__}{remedy}")
    if whole.ndim < 1:
        raise ValueError(f"{name}: expected an array {axes}, got one without axes")


class ResumableData:
    """Base class of training data: where it is, and whether another's place fits.

    A subclass names its numbers: ``_places`` change from batch to batch, ``_sizes`` give them their
    meaning. Each is the key in ``state`` and the attribute.
    """

    _places: ClassVar[dict[str, str]] = {"cursor": "cursor"}
    _sizes: ClassVar[dict[str, str]] = {}
    _arrays: dict[str, AnyArray]
    cursor: int

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def full_batches(self) -> float:
        """How many batches of full size have as many steps as an epoch."""
        raise NotImplementedError

    def state(self) -> dict[str, int]:
        """Return the cursor, all else that changes, and the sizes that give it its meaning.

        Returns
        -------
        dict
            Numbers by name, for a checkpoint.
        """
        return {key: getattr(self, name) for key, name in (self._places | self._sizes).items()}

    def digest(self) -> str:
        """Return a short text that differs for other arrays, other sizes, another order or cursor.

        Returns
        -------
        str
            The digest.
        """
        found = hashlib.sha256(repr(self.state()).encode())
        for name, whole in self._arrays.items():
            found.update(f"{name} {whole.dtype.str} {whole.shape}".encode() + whole.tobytes())
        return found.hexdigest()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was called, in the same order.

        Parameters
        ----------
        state : dict
            The result of ``state``.

        Raises
        ------
        ValueError
            If the sizes differ, or the cursor is below 0 or beyond the end.
        TypeError
            If a number is missing or no whole number.
        """
        for key, name in self._sizes.items():
            if state.get(key) != (mine := getattr(self, name)):
                raise ValueError(f"state: expected {key} {mine}, got {state.get(key)}")
        places = {name: expect_int(k, state.get(k), 0) for k, name in self._places.items()}
        there = copy.copy(self)  # how many batches there are may depend on the epoch
        vars(there).update(places)
        if there.cursor > len(there):
            raise ValueError(f"cursor: expected at most {len(there)}, got {there.cursor}")
        vars(self).update(places)
