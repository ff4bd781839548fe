"""The options of a pass's steps in memory, as compiled code reads them (``step_arguments.py``)."""

from functools import cache
from typing import Any

import numpy as np

from ..cells import Cell
from ..engine import Array
from ..step_options import StepFeatures, StepOptions
from .kernel_abi import NO_FEATURES
from .packing import zeros
from .plans import address_of
from .simd import VECTOR_BYTES

TRACED = StepFeatures(trace=True)


@cache
def compiled_features(features: StepFeatures, backward: bool) -> StepFeatures:
    """The features of the piece that runs these: none, a trace alone, or all of them.

    A piece with all of them checks at run time which are used. Zoneout is the exception and is
    compiled in: a run-time check would either draw masks that nobody uses, or branch at every
    number.
    """
    if not (features.changes_state or features.recurrent_mask):
        return TRACED if backward and features.trace else NO_FEATURES
    return StepFeatures(True, True, True, features.zoneout, trace=True)


class OptionMemory:
    """The fields of a plan for the options of its steps, and the memory that they point to.

    trace   (N, T, S, H), filled by backward, or None if the options do not ask for it
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
        self._kept: list[Array] = []
        self._sizes = S, N, H
        units = -(-H // lanes)
        self._dinitial: Array = None
        if steps.resets is not None:
            self._dinitial = zeros((S, units, N | 1, lanes), dtype)
        if dreset is not None:
            wide = np.zeros((S, N, units * lanes), dtype)
            wide[:, :, :H] = dreset
            panels = wide.reshape(S, N, units, lanes).transpose(0, 2, 1, 3)
            self._dinitial[:, :, :N] = panels
        self.trace = np.empty((N, T, S, H), dtype) if steps.trace else None
        arrays = steps.arrays(dtype) | {"dinitial": self._dinitial, "trace": self.trace}
        self.fields = {name: self._at(array, dtype) for name, array in arrays.items()}
        self.fields["origin"] = steps.origin

    def _at(self, array: Array | None, dtype: Any) -> int:
        """The address of an array's numbers in C order, fractions in a dtype; 0 for None."""
        if array is None:
            return 0
        self._kept.append(np.ascontiguousarray(array, dtype if array.dtype.kind == "f" else None))
        return address_of(self._kept[-1])

    def dreset(self) -> Array | None:
        """The gradient (S, N, H) that resets have stopped; None without resets."""
        if self._dinitial is None:
            return None
        S, N, H = self._sizes
        _, units, _, lanes = self._dinitial.shape
        numbers = self._dinitial[:, :, :N].transpose(0, 2, 1, 3)
        return numbers.reshape(S, N, units * lanes)[:, :, :H]
