"""The options of a pass's steps in memory, as compiled code reads them (``option_io.py``)."""

from functools import cache
from typing import Any

import numpy as np

from ..cells import Cell
from ..engine import Array
from ..step_options import StepOptions
from .kernel_abi import NO_FEATURES
from .packing import zeros
from .plan import OptionRecord
from .plans import address_of
from .simd import VECTOR_BYTES

CHECKED = frozenset({"mask", "resets", "initial", "recurrent_mask", "trace"})


@cache
def compiled_features(features: frozenset[str], backward: bool) -> frozenset[str]:
    """The features of the piece that runs these: none, a trace alone, or CHECKED and others.

    A piece that has CHECKED is given arrays that change nothing for those of them that a pass does
    not have. The others are compiled in: to draw masks that nobody uses would cost time.
    """
    if features <= {"trace"}:
        return features if backward else NO_FEATURES
    return features | CHECKED


class OptionMemory:
    """The options of a pass's steps, and the memory that they point to.

    address  of the options, an ``OptionRecord``
    trace    (N, T, S, H), filled by backward, or None if the options do not ask for it
    """

    def __init__(
        self,
        steps: StepOptions,
        cell: Cell,
        N: int,
        T: int,
        H: int,
        dtype: Any,
        dreset: Array | None = None,
    ) -> None:
        S, lanes = len(cell.states), VECTOR_BYTES // dtype.itemsize
        units = -(-H // lanes)
        self._sizes = S, N, H
        self._dinitial: Array = None
        if steps.resets is not None:
            self._dinitial = zeros((S, units, N | 1, lanes), dtype)
        if dreset is not None:
            wide = np.zeros((S, N, units * lanes), dtype)
            wide[:, :, :H] = dreset
            panels = wide.reshape(S, N, units, lanes).transpose(0, 2, 1, 3)
            self._dinitial[:, :, :N] = panels
        self.trace = np.empty((N, T, S, H), dtype) if steps.trace else None
        nothing = {
            "mask": np.ones((N, T), np.uint8), "resets": np.zeros((N, T), np.uint8),
            "initial": np.zeros((S, H), dtype),
        }  # fmt: skip
        own = {"dinitial": self._dinitial, "trace": self.trace}
        arrays = {
            name: np.ascontiguousarray(array, dtype if array.dtype.kind == "f" else None)
            for name, array in (nothing | steps.arrays(dtype) | own).items()
            if array is not None
        }
        places = {name: address_of(array) for name, array in arrays.items()}
        words = dict.fromkeys(OptionRecord._fields, 0) | places | {"origin": steps.origin}
        self._kept = arrays, np.array(OptionRecord(**words), np.int64)
        self.address = address_of(self._kept[1])

    def dreset(self) -> Array | None:
        """The gradient (S, N, H) that resets have stopped; None without resets."""
        if self._dinitial is None:
            return None
        S, N, H = self._sizes
        _, units, _, lanes = self._dinitial.shape
        numbers = self._dinitial[:, :, :N].transpose(0, 2, 1, 3)
        return numbers.reshape(S, N, units * lanes)[:, :, :H]
