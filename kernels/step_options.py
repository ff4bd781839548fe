"""The options of the steps of a pass, around the arithmetic of the cell.

A step t of row n, in this order:

    reset      the state becomes ``initial``                      where resets[n, t]
    products   h enters every h Wh as h * recurrent_mask[n]       (variational dropout)
    the cell   new = forward(gates, state)
    zoneout    a unit of ``new`` keeps its old value              at random, each state at its rate
    mask       the state stays as it was, the output is 0         where not mask[n, t]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from . import counter_rng, deprecated
from .once import cached_property

Array = Any


class StepFeatures(NamedTuple):
    """The options that the steps of a pass have.

    Attributes
    ----------
    mask, resets, recurrent_mask : bool
        Whether the option is used.
    zoneout : {"", "sampled", "mean"}
        "": none. "sampled": units keep their old value at random. "mean": the expected value.
    trace : bool
        Whether backward records the gradient of the state after every step.
    """

    mask: bool = False
    resets: bool = False
    recurrent_mask: bool = False
    zoneout: str = ""
    trace: bool = False

    @property
    def changes_state(self) -> bool:
        """Whether the state after a step may differ from what the cell computed."""
        return self.mask or self.resets or bool(self.zoneout)


@deprecated.fields(every="checkpoint_every", first="t_offset", scale="recurrent_mask")
@dataclass(frozen=True, eq=False)
class StepOptions:
    """The options of the steps of a pass.

    ``mask`` and ``resets`` are NumPy arrays on every engine; ``initial`` and ``recurrent_mask`` are
    arrays of the engine.

    Parameters
    ----------
    mask : (N, T) bool array or None, default None
        Steps where it is False are left out: the state stays as it was, the output is 0. None: no
        step is left out.
    resets : (N, T) bool array or None, default None
        Before steps where it is True the state is set to ``initial``. None: there are no resets.
    initial : (S, H) array or None, default None
        The state that resets return to, one row for each of the S states. None: zeros.
    recurrent_mask : (N, H) array or None, default None
        The factor of h on its way into recurrent products, the same for all steps: variational
        dropout (Gal & Ghahramani 2016). None: 1.
    zoneout : sequence of float, default none
        For each state, the share of units that keep their old value at a step (Krueger et al.
        2017).
    seed : int or None, default None
        The seed of zoneout's random masks. None: nothing is drawn; each unit keeps that share of
        its old value, the expected value, which is used after training.
    t_offset : int, default 0
        The number of the first step, for zoneout's random masks.
    row_offset : int, default 0
        The number of the first row within the batch, for zoneout's random masks: other processes
        may have the rows before it.
    checkpoint_every : int, default 0
        Gradient checkpointing: forward keeps the state of one step in so many, and backward
        recomputes the steps between them. 0: forward keeps everything that backward needs.
    trace : bool, default False
        Whether backward records the gradient of the state after every step.

    Examples
    --------
    >>> import numpy as np
    >>> options = StepOptions(mask=np.ones((2, 7), bool), zoneout=(0.1,), seed=0)
    >>> options.segment(2, 5).mask.shape
    (2, 3)
    >>> options.features
    StepFeatures(mask=True, resets=False, recurrent_mask=False, zoneout='sampled', trace=False)
    """

    mask: Array = None
    resets: Array = None
    initial: Array = None
    recurrent_mask: Array = None
    zoneout: Sequence[float] = ()
    seed: int | None = None
    t_offset: int = 0
    row_offset: int = 0
    checkpoint_every: int = 0
    trace: bool = False

    def segment(self, start: int, end: int) -> "StepOptions":
        """Return the options of some of the steps, without checkpointing.

        Parameters
        ----------
        start : int
            The first step.
        end : int
            The step behind the last one.

        Returns
        -------
        StepOptions
            The options of steps start to end - 1.
        """
        mask = None if self.mask is None else self.mask[:, start:end]
        resets = None if self.resets is None else self.resets[:, start:end]
        return replace(
            self, mask=mask, resets=resets, t_offset=self.t_offset + start, checkpoint_every=0
        )

    part = deprecated.attribute("segment")

    @cached_property
    def features(self) -> StepFeatures:
        """The options that are used, as ``StepFeatures``."""
        zoneout = ("mean" if self.seed is None else "sampled") if any(self.zoneout) else ""
        mask, resets, recurrent_mask = (
            a is not None for a in (self.mask, self.resets, self.recurrent_mask)
        )
        return StepFeatures(mask, resets, recurrent_mask, zoneout, self.trace)

    def arrays(self, dtype: Any) -> dict[str, Array]:
        """Return the arrays of the options, as compiled code reads them.

        Parameters
        ----------
        dtype : dtype
            Of the rates.

        Returns
        -------
        dict of str to array
            mask and resets (N, T) uint8; initial and recurrent_mask as they are, of the engine's
            library; with zoneout rates (S,), or seeds and thresholds (S,) int64 and origin (1,)
            int64.
        """
        found = {
            name: getattr(self, name) for name in ("mask", "resets", "initial", "recurrent_mask")
        }
        found = {name: array for name, array in found.items() if array is not None}
        for name in found.keys() & {"mask", "resets"}:
            found[name] = np.ascontiguousarray(found[name], np.uint8)
        if self.features.zoneout == "mean":
            found["rates"] = np.array(self.zoneout, dtype)
        elif self.features.zoneout:
            found["seeds"] = np.array(self.seeds, np.uint64).view(np.int64)
            found["thresholds"] = np.array(list(map(counter_rng.threshold, self.zoneout)), np.int64)
            found["origin"] = np.array([self.origin], np.int64)
        return found

    @property
    def origin(self) -> int:
        """The place of the first row at the first step, for zoneout's random masks."""
        return counter_rng.place(self.t_offset, self.row_offset)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """A seed for zoneout of each state."""
        return counter_rng.seeds_of(self.seed or 0, *range(len(self.zoneout)))

    def zoneout_at(self, t: int, shape: tuple[int, int], dtype: Any) -> tuple[Array, ...]:
        """Return, for each state, what zoneout keeps at a step.

        Parameters
        ----------
        t : int
            The step, counted from ``t_offset``.
        shape : (N, H)
            The shape of a state.
        dtype : dtype
            float32 or float64.

        Returns
        -------
        tuple of arrays
            With a seed (N, H) bool: the units that keep their old value. Without one () of that
            dtype: the share of its old value that every unit keeps.
        """
        if self.seed is None:
            return tuple(np.asarray(rate, dtype) for rate in self.zoneout)
        rates, at = zip(self.seeds, self.zoneout, strict=True), (self.t_offset + t, self.row_offset)
        return tuple(counter_rng.drawn(seed, shape, rate, *at) for seed, rate in rates)


NO_OPTIONS = StepOptions()
__getattr__ = deprecated.names_of(__name__)
