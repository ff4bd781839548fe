"""The options of a pass's steps in memory, as compiled code reads them (``option_io.py``)."""

from copy import copy
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..cells import Cell
from ..engine import Array
from ..ragged import Ragged
from ..step_options import StepOptions
from .kernel_cache import NO_FEATURES
from .packing import zeros
from .plan import OptionRecord
from .plans import address_of
from .target import VECTOR_BYTES

AT_RUN_TIME = frozenset({"mask", "resets", "initial", "recurrent_mask", "trace"})


@cache
def compiled_features(features: frozenset[str], backward: bool) -> frozenset[str]:
    """The features of the kernel that runs these: none, a trace alone, or AT_RUN_TIME and others.

    A kernel that has AT_RUN_TIME is given arrays that change nothing for those of them that a pass
    does not have. The others are compiled in: to draw masks that nobody uses would cost time.
    """
    if features <= {"trace"}:
        return features if backward else NO_FEATURES
    return features | AT_RUN_TIME


class OptionMemory:
    """The options of a pass's steps, and the memory that they point to.

    address  of the options, an ``OptionRecord``
    trace    (N, T, S, H), filled by backward, or None if the options do not ask for it; of a ragged
             batch (rows, 1, S, H)
    """

    trace: Array | None = None
    _dinitial: Array = None

    def __init__(
        self,
        steps: StepOptions,
        cell: Cell,
        sizes: tuple[int, int, int, int],
        dtype: Any,
        ragged: Ragged | None = None,
    ) -> None:
        """sizes: N, the rows and steps of xs, which say how many flags there are, and H."""
        N, rows, T, H = sizes
        self._steps, self._sizes = steps, (N, rows, T, len(cell.states), H, dtype)
        defaults, words = _defaults(*self._sizes[1:])
        self._arrays, words = dict(defaults), dict(words)
        arrays = steps.arrays(dtype)
        if ragged is not None and steps.resets is not None:
            arrays["resets"] = ragged.a_step_ahead(np.array(steps.resets, np.uint8))
        for name, array in arrays.items():
            array = np.ascontiguousarray(array, dtype if array.dtype.kind == "f" else None)
            self._arrays[name], words[name] = array, address_of(array)
        words["first_counter"] = steps.first_counter
        self._set(words)

    def _set(self, words: dict[str, int]) -> None:
        self._record = np.array(list(map(words.get, OptionRecord._fields)), np.int64)
        self._words, self.address = words, address_of(self._record)

    def for_backward(self, dreset: Array | None) -> "OptionMemory":
        """The same with memory for what backward fills.

        dreset  (S, N, H), the gradient that resets in later segments have stopped
        """
        found, (N, rows, T, S, H, dtype) = copy(self), self._sizes
        words, lanes = dict(self._words), VECTOR_BYTES // dtype.itemsize
        if self._steps.trace:
            found.trace = np.empty((rows, T, S, H), dtype)
            words["trace"] = address_of(found.trace)
        if self._steps.resets is not None:
            units = -(-H // lanes)
            found._dinitial = zeros((S, units, N | 1, lanes), dtype)
            if dreset is not None:
                wide = np.zeros((S, N, units * lanes), dtype)
                wide[:, :, :H] = dreset
                panels = wide.reshape(S, N, units, lanes).transpose(0, 2, 1, 3)
                found._dinitial[:, :, :N] = panels
            words["dinitial"] = address_of(found._dinitial)
        found._set(words)
        return found

    def dreset(self) -> Array | None:
        """The gradient (S, N, H) that resets have stopped; None without resets."""
        if self._dinitial is None:
            return None
        N, _, _, S, H, _ = self._sizes
        _, units, _, lanes = self._dinitial.shape
        numbers = self._dinitial[:, :, :N].transpose(0, 2, 1, 3)
        return numbers.reshape(S, N, units * lanes)[:, :, :H]


@lru_cache(maxsize=8)
def _defaults(N: int, T: int, S: int, H: int, dtype: Any) -> tuple[Any, dict[str, int]]:
    """Arrays for options that a pass does not have, and the fields of a record without options."""
    arrays = {
        "mask": np.ones((N, T), np.uint8), "resets": np.zeros((N, T), np.uint8),
        "initial": np.zeros((S, H), dtype),
    }  # fmt: skip
    addresses = {name: address_of(array) for name, array in arrays.items()}
    return arrays, dict.fromkeys(OptionRecord._fields, 0) | addresses
