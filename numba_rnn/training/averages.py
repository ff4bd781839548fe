"""Averages of the weights along a run, which often do better than the last weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from ..backend import engine_of_param, move
from ..typing import Array
from ..validation import expect_array, expect_finite, expect_float, expect_int
from .accumulation import apply_rule

_AVERAGE, _RAW = "average/", "raw/"  # names in a file start so, of arrays beside the model's


def _towards(mean: Any, W: Any, share: float) -> tuple[Any, ...]:
    return (mean + (W - mean) * share,)


class WeightAverage:
    """Base class of averages: mean <- mean + (W - mean) share, after every update.

    Attributes
    ----------
    updates : int
        The number of weights in the average.
    """

    waits: ClassVar[bool] = False  # whether it begins some time after the run

    def __init__(self) -> None:
        self.updates = 0
        self._means: list[Array] | None = None

    def _share(self) -> float:
        """The share of the newest weights."""
        raise NotImplementedError

    @property
    def waiting(self) -> bool:
        """Whether the average has yet to begin."""
        return self.waits and self._means is None

    def begin(self, params: Sequence[Array]) -> None:
        """Begin with these weights.

        Parameters
        ----------
        params : list of arrays
            The weights, which stay as they are.
        """
        self._means, self.updates = [engine_of_param(p).xp.zeros_like(p) for p in params], 0
        self._take(params)

    def update(self, params: Sequence[Array]) -> None:
        """Take the weights after an update into the average, if it has begun.

        Parameters
        ----------
        params : list of arrays
            The weights, which stay as they are.

        Raises
        ------
        ValueError
            If these are not the parameters that it has begun with.
        """
        if self._means is not None:
            self._take(params)
        elif not self.waits:
            self.begin(params)

    def _take(self, params: Sequence[Array]) -> None:
        means = self._means_of(params)
        self.updates += 1
        apply_rule(_towards, list(zip(means, params, strict=True)), (self._share(),))

    def _means_of(self, params: Sequence[Array]) -> list[Array]:
        """The means where the parameters are, which may have moved."""
        sizes = [(mean.shape, mean.dtype) for mean in self._means or ()]
        if sizes != [(param.shape, param.dtype) for param in params]:
            raise ValueError(
                f"params: expected those that the average has begun with, {len(sizes)} arrays, got "
                f"{len(params)}, or others; each run needs an average of its own"
            )
        self._means = [
            move(mean, engine_of_param(param))
            for mean, param in zip(self._means or (), params, strict=True)
        ]
        return self._means

    def end_epoch(self, params: Sequence[Array], scores: Sequence[float]) -> bool:
        """Begin after an epoch, if it is time.

        Parameters
        ----------
        params : list of arrays
            The weights.
        scores : sequence of float
            The validation's score after each epoch; the lowest is the best.

        Returns
        -------
        bool
            Whether it begins with these weights.
        """
        begins = self.waiting and self._shall_begin(scores)
        if begins:
            self.begin(params)
        return begins

    def _shall_begin(self, scores: Sequence[float]) -> bool:
        return False

    @contextmanager
    def in_place_of(self, params: Sequence[Array]) -> Iterator[None]:
        """Put the average into the parameters while the block runs, if it has begun.

        Parameters
        ----------
        params : list of arrays
            The parameters, which are afterwards what they were.
        """
        if self._means is None:
            yield
            return
        means, before = self._means_of(params), [param.copy() for param in params]
        try:
            for param, mean in zip(params, means, strict=True):
                param[...] = mean
            yield
        finally:
            for param, raw in zip(params, before, strict=True):
                param[...] = raw

    def state(self) -> dict[str, Any]:
        """Return name, options and ``updates``, for a checkpoint.

        Returns
        -------
        dict
            The numbers; the average itself is ``in_place_of`` the parameters.
        """
        options = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {"name": type(self).__name__, **options}

    def restore(self, updates: int, params: Sequence[Array]) -> None:
        """Set the average to the parameters as they are.

        Parameters
        ----------
        updates : int
            The number of weights in it; 0: it has not begun.
        params : list of arrays
            The average, of which copies are taken.
        """
        self.updates, self._means = updates, [p.copy() for p in params] if updates else None


class ExponentialAverage(WeightAverage):
    """The exponential moving average of the weights (EMA).

    Update n keeps min(decay, (n - 1) / (n + 9)) of the mean: it reaches back some 1 / (1 - decay)
    updates, but at first only a tenth of those so far, so that a short run is not held back by the
    weights that it began with.

    Parameters
    ----------
    decay : float, default 0.999
        The share that is kept in the long run, below 1.

    Attributes
    ----------
    updates : int
        The number of weights in the average.

    References
    ----------
    - Polyak & Juditsky 1992, *Acceleration of stochastic approximation by averaging*.
    - Abadi et al. 2016, *TensorFlow*: ``ExponentialMovingAverage(decay, num_updates)``, whose decay
      begins so.

    Examples
    --------
    >>> import numpy as np
    >>> average, W = ExponentialAverage(decay=0.5), np.zeros(1)
    >>> for W[0] in (3.0, 6.0):
    ...     average.update([W])
    >>> with average.in_place_of([W]):
    ...     print(W)
    [5.72727273]
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = expect_float("decay", decay, 0, 1)

    def _share(self) -> float:
        return 1 - min(self.decay, (self.updates - 1) / (self.updates + 9))


class NonMonotoneAverage(WeightAverage):
    """The mean of all weights since validation last failed to improve (NT-ASGD).

    It begins after the first epoch whose score is worse than the best of all but the last
    ``interval`` epochs before. Until then the Trainer neither lowers the learning rate nor loses
    patience.

    Parameters
    ----------
    interval : int, default 5
        The number of epochs without improvement, n in the paper.

    Attributes
    ----------
    updates : int
        The number of weights in the average, 0 before it begins.

    Notes
    -----
    The paper's learning rate stays the same: ``SGD`` with ``Trainer(decay=1)``.

    References
    ----------
    - Merity, Keskar & Socher 2017, *Regularizing and optimizing LSTM language models*, algorithm 1,
      with an epoch as the logging interval and the comparison of the authors' code.
    """

    waits = True

    def __init__(self, interval: int = 5) -> None:
        super().__init__()
        self.interval = expect_int("interval", interval)

    def _share(self) -> float:
        return 1 / self.updates

    def _shall_begin(self, scores: Sequence[float]) -> bool:
        earlier = scores[: -1 - self.interval]
        return bool(earlier) and scores[-1] > min(earlier)


def expect_average(average: Any, valid: Any) -> WeightAverage | None:
    """Refuse an average that is none, that another run has used, or that nothing can begin."""
    if average is None:
        return None
    if not isinstance(average, WeightAverage):
        raise TypeError(
            f"average: expected ExponentialAverage() or NonMonotoneAverage(), got {average!r}"
        )
    if average.updates:
        raise ValueError(
            f"average: expected a new one, got one of {average.updates} updates; each run needs "
            "its own"
        )
    if average.waits and valid is None:
        raise ValueError(
            f"valid: expected validation data, whose score decides when {type(average).__name__} "
            "begins, got None"
        )
    return average


# ---- checkpoints


def expect_same_average(average: WeightAverage | None, saved: Any) -> int:
    """The number of weights in a checkpoint's average, if it is of that kind."""
    mine = None if average is None else average.state()
    updates = 0 if saved is None else expect_int("average: updates", saved["updates"], 0)
    if mine is not None:
        mine["updates"] = updates
    if mine != saved:
        raise ValueError(
            f"average: expected {_spell(mine)}, got {_spell(saved)}; a run keeps the one that it "
            "began with"
        )
    return updates


def _spell(state: Any) -> str:
    if state is None:
        return "none"
    options = ", ".join(f"{k}={v}" for k, v in state.items() if k not in ("name", "updates"))
    return f"{state['name']}({options})"


def both_in_one(
    weights: dict[str, Array], means: dict[str, Array], *, average_first: bool
) -> dict[str, Array]:
    """A model's arrays, with the weights or with their average, and the others beside them."""
    first, second = (means, weights) if average_first else (weights, means)
    prefix = _RAW if average_first else _AVERAGE
    beside = {
        prefix + name: array
        for name, array in second.items()
        if not np.array_equal(array, first[name], equal_nan=True)  # a cell's probe may be NaN
    }  # fmt: skip
    return first | beside


def weights_and_average(arrays: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The two that ``both_in_one`` was given, each with all other arrays of a checkpoint."""
    found = []
    for prefix in (_RAW, _AVERAGE):
        beside = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        for name, array in beside.items():
            like = arrays[name]
            expect_array(f"{prefix}{name}", array, like.shape, like.dtype)
            expect_finite(f"{prefix}{name}", array)
        found.append({**arrays, **beside})
    return found[0], found[1]
