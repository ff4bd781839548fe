"""What may be particular about the steps of a pass, beside the arithmetic of the cell.

A step t of row n, in this order:

    reset      the state becomes ``initial``                      where resets[n, t]
    products   h enters every h Wh as h * scale[n]                (variational dropout)
    the cell   new = forward(gates, state)
    zoneout    a unit of ``new`` keeps its old value              by lot, each state at its rate
    mask       the state stays as it was, the output is 0         where not mask[n, t]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from . import draws
from .once import cached_property

Array = Any


class StepFeatures(NamedTuple):
    """Which options the steps of a pass have.

    zoneout  "" (none), "sampled" or "mean"
    """

    mask: bool = False
    resets: bool = False
    scale: bool = False
    zoneout: str = ""
    trace: bool = False

    @property
    def changes_state(self) -> bool:
        """Whether the state after a step may be another than the cell made."""
        return self.mask or self.resets or bool(self.zoneout)


@dataclass(frozen=True, eq=False)
class StepOptions:
    """What is particular about the steps of a pass.

    mask      (N, T) bool: steps where it is False are left out; None: none are
    resets    (N, T) bool: steps before which the state returns to ``initial``; None: none
    initial   (S, H), S states, on the engine; None: zeros
    scale     (N, H), on the engine: what h is multiplied by on its way into recurrent products,
              the same for all steps (Gal & Ghahramani 2016); None: 1
    zoneout   for each state the share of units that keep their old value at a step (Krueger et
              al. 2017); empty: none do
    seed      of zoneout's draws; None: not drawn, each unit keeps that share of its old value
              instead (what is expected, for use after training)
    first     the number of the first step, for zoneout's draws
    every     keep the state of every so many steps only, and compute again in backward what is
              between them (0: keep all that backward needs)
    trace     whether backward writes down the gradient of the state after every step

    mask and resets are NumPy arrays on every engine.
    """

    mask: Array = None
    resets: Array = None
    initial: Array = None
    scale: Array = None
    zoneout: Sequence[float] = ()
    seed: int | None = None
    first: int = 0
    every: int = 0
    trace: bool = False

    def part(self, start: int, end: int) -> "StepOptions":
        """Those of the steps from start to before end, with everything kept."""
        mask = None if self.mask is None else self.mask[:, start:end]
        resets = None if self.resets is None else self.resets[:, start:end]
        return replace(self, mask=mask, resets=resets, first=self.first + start, every=0)

    @cached_property
    def features(self) -> StepFeatures:
        """Which of the options there are."""
        zoneout = ("mean" if self.seed is None else "sampled") if any(self.zoneout) else ""
        mask, resets, scale = (a is not None for a in (self.mask, self.resets, self.scale))
        return StepFeatures(mask, resets, scale, zoneout, self.trace)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """A seed for each state's zoneout."""
        return tuple(draws.seed_of(self.seed or 0, k) for k in range(len(self.zoneout)))

    def zoned(self, t: int, shape: tuple[int, int], dtype: Any) -> tuple[Array, ...]:
        """Of each state at step t which units (N, H) keep their old value, or what share of it."""
        if self.seed is None:
            return tuple(np.asarray(rate, dtype) for rate in self.zoneout)
        rates = zip(self.seeds, self.zoneout, strict=True)
        return tuple(draws.drawn(seed, self.first + t, *shape, rate) for seed, rate in rates)


NO_OPTIONS = StepOptions()
