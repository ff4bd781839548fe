"""The options of the steps of a pass, around the arithmetic of the cell.

A step t of row n, in this order:

    reset      the state becomes ``initial``                      where resets[n, t]
    products   h enters every h Wh as h * recurrent_mask[n]       (variational dropout)
    the cell   new = forward(gates, state)
    zoneout    a unit of ``new`` keeps its old value              at random, each state at its rate
    clip       every state is cut off at -clip and clip
    mask       the state stays as it was, the output is 0         where not mask[n, t]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np

from . import counter_rng, deprecated
from .once import cached_property

Array = Any

# Kinds of values at a step of a row. Engines load a value as its kind says.
Flag = Annotated[Any, "flag"]  # one for all units
RowPerState = Annotated[Any, "row per state"]  # for each state (H,), the same for all rows
Scalar = Annotated[Any, "scalar"]  # one for all states and units
ScalarPerState = Annotated[Any, "scalar per state"]  # for each state a number
MaskPerState = Annotated[Any, "mask per state"]  # for each state a random flag of each unit


class StepValues(NamedTuple):
    """The options at one step, for the functions of ``step.py``; None for each that is not used.

    Attributes
    ----------
    mask : flag
        Whether the step takes place.
    resets : flag
        Whether the state is reset before the step.
    initial : row per state
        The state that a reset returns to; zeros if it is None.
    zoneout : mask per state
        Whether the unit keeps its old value, drawn at random.
    zoneout_rates : scalar per state
        The share of its old value that a unit keeps.
    clip : scalar
        The largest absolute value of a state after the step.
    """

    mask: Flag = None
    resets: Flag = None
    initial: RowPerState = None
    zoneout: MaskPerState = None
    zoneout_rates: ScalarPerState = None
    clip: Scalar = None


VALUE_KINDS: dict[str, str] = {
    name: kind.__metadata__[0]
    for name, kind in get_type_hints(StepValues, include_extras=True).items()
}


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
        recomputes the steps between them. 0: forward keeps everything that backward needs. The
        Numba engine rounds it up to whole chunks; the CUDA engine keeps the first state alone and
        recomputes all steps.
    trace : bool, default False
        Whether backward records the gradient of the state after every step.
    clip : float or None, default None
        Every state, and so the output, is clipped to [-clip, clip] after zoneout; where it was
        clipped its gradient is 0. None: nothing is clipped. The state before the first step and
        ``initial`` are not clipped.

    Examples
    --------
    >>> import numpy as np
    >>> options = StepOptions(mask=np.ones((2, 7), bool), zoneout=(0.1,), seed=0)
    >>> options.segment(2, 5).mask.shape
    (2, 3)
    >>> sorted(options.features)
    ['mask', 'zoneout']
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
    clip: float | None = None

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

    def live_inputs(self, xp: Any, xs: Array) -> Array:
        """Return inputs that are 0 where a step is masked, where they may hold anything.

        Parameters
        ----------
        xp : module
            NumPy or CuPy, whose array xs is.
        xs : (N, T, ...) array
            The inputs, with as many axes behind those of the mask as they have.

        Returns
        -------
        array
            A copy; xs itself if there is no mask.
        """
        if self.mask is None:
            return xs
        return xp.where(xp.asarray(self.mask)[..., None], xs, xs.dtype.type(0))

    @cached_property
    def features(self) -> frozenset[str]:
        """The names of the options that are used, which are those that are not None:
        ``StepValues`` has those that act on a state, the others are "recurrent_mask" and "trace".
        Zoneout is used where a rate is not 0; without a seed its name is "zoneout_rates".
        """
        found = {"recurrent_mask", *VALUE_KINDS} - {"zoneout", "zoneout_rates"}
        found = {name for name in found if getattr(self, name) is not None}
        if self.resets is None:
            found.discard("initial")
        if any(self.zoneout):
            found.add("zoneout_rates" if self.seed is None else "zoneout")
        return frozenset(found | {"trace"} if self.trace else found)

    @property
    def zoneout_rates(self) -> Sequence[float]:
        """Zoneout's rates, for ``StepValues``."""
        return self.zoneout

    def at(self, t: int, state: Sequence[Array]) -> StepValues:
        """Return the options of a step.

        Parameters
        ----------
        t : int
            The step.
        state : tuple of (N, H) arrays
            The state before it: initial values, random masks and rates are of its shapes and dtype.

        Returns
        -------
        StepValues
            Flags (N, 1) bool; a number (); rows (H,), numbers () and masks (N, H) bool for each
            state.
        """
        dtype, rows, widths = state[0].dtype, len(state[0]), [s.shape[1] for s in state]

        def value(name: str) -> Any:
            kind, given = VALUE_KINDS[name], getattr(self, name)
            if kind == "flag":
                return given[:, t, None]
            if kind == "row per state":
                pairs = zip(given, widths, strict=True)
                return tuple(a[:n].astype(dtype, copy=False) for a, n in pairs)
            if kind == "scalar":
                return np.asarray(given, dtype)
            if kind == "scalar per state":
                return tuple(np.asarray(number, dtype) for number in given)
            at = self.t_offset + t, self.row_offset
            shares = zip(self.seeds, widths, given, strict=True)
            return tuple(counter_rng.drawn(seed, (rows, n), p, *at) for seed, n, p in shares)

        return StepValues(**{name: value(name) for name in VALUE_KINDS if name in self.features})

    def arrays(self, dtype: Any) -> dict[str, Array]:
        """Return the arrays of the options, as compiled code reads them.

        Parameters
        ----------
        dtype : dtype
            Of numbers.

        Returns
        -------
        dict of str to array
            Flags (N, T) uint8, those of resets a step ahead: whether the state is reset after the
            step. Rows and the recurrent mask as they are, of the engine's library. A scalar (1,),
            scalars (S,). With random masks seeds and thresholds (S,) and first_counter (1,), int64.
        """
        found = {}
        for name in self.features - {"trace"}:
            kind, given = VALUE_KINDS.get(name, "row per state"), getattr(self, name)
            if kind == "mask per state":
                found["seeds"] = np.array(self.seeds, np.uint64).view(np.int64)
                found["thresholds"] = np.array(list(map(counter_rng.threshold, given)), np.int64)
                found["first_counter"] = np.array([self.first_counter], np.int64)
            elif kind == "scalar":
                found[name] = np.array([given], dtype)
            elif kind == "scalar per state":
                found[name] = np.array(given, dtype)
            elif name == "resets":
                found[name] = np.zeros(given.shape, np.uint8)
                found[name][..., :-1] = given[..., 1:]
            elif kind == "flag":
                found[name] = np.array(given, np.uint8)
            else:
                found[name] = given
        return found

    @property
    def first_counter(self) -> int:
        """The place of the first row at the first step, for zoneout's random masks."""
        return counter_rng.counter(self.t_offset, self.row_offset)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """A seed for zoneout of each state."""
        return counter_rng.seeds_of(self.seed or 0, *range(len(self.zoneout)))


NO_OPTIONS = StepOptions()
__getattr__ = deprecated.names_of(__name__)
