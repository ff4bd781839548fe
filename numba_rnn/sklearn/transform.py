"""Inputs and targets of a forecaster's network: logarithms, differences, scales.

The network says by how much each of the next steps differs from a naive forecast of it, in units of
the series' scale. Differences decide which naive forecast that is, so that one that says 0 is as
good as this one:

    None        the mean (with scaling "standard"; otherwise 0)
    "first"     the last value
    "seasonal"  the value a season before
    "both"      the value a season before, and what was gained in the last season
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..typing import AnyArray, Array

DIFFERENCES = "first", "seasonal", "both"
SCALINGS = "standard", "mean_abs"
LONGEST_SEASON = 400
FLAT = 1e-9  # a deviation that is so small a share of the numbers is rounding


@dataclass(frozen=True)
class Transform:
    """From values (T, C) to what a network reads, and from what it says to forecasts.

    differencing  None or one of ``DIFFERENCES``
    season        the number of steps of a season; 0: none
    log           whether logarithms are taken first
    scaling       None or one of ``SCALINGS``
    lags          how many of the last values are read at each step
    """

    differencing: str | None = None
    season: int = 0
    log: bool = False
    scaling: str | None = None
    lags: int = 1

    @property
    def _first(self) -> int:
        return int(self.differencing in ("first", "both"))

    @property
    def _back(self) -> int:
        return self.season if self.differencing in ("seasonal", "both") else 0

    @property
    def lost(self) -> int:
        """The number of steps at the beginning that have no difference."""
        return self._first + self._back

    def levels(self, values: Array) -> Array:
        """(T, C) float64, logarithms where wanted; what is missing (NaN) as it is."""
        levels = np.asarray(values, np.float64)
        if not self.log:
            return levels
        if (levels <= 0).any():
            raise ValueError(
                f"log: expected numbers above 0, got {np.nanmin(levels):g} in X; log=False "
                "takes any"
            )
        return np.log(levels)

    def differences(self, levels: Array) -> Array:
        """(T - lost, C), of levels without gaps."""
        found = levels
        if self._back:
            found = found[self._back :] - found[: -self._back]
        return np.diff(found, axis=0) if self._first else found

    def measured(self, levels: Array, otherwise: Any = 1.0) -> tuple[Array, Array]:
        """The centre and the scale (C,) of the differences of levels.

        otherwise  the scale of what is flat
        """
        found = self.differences(levels)
        nothing = np.zeros(levels.shape[1])
        if self.scaling is None:
            return nothing, nothing + 1
        if not len(found):
            return nothing, nothing + otherwise
        size = np.abs(found).max(axis=0)
        shares = found / np.where(size > 0, size, 1)  # their squares do not overflow
        centre = shares.mean(axis=0) if self.scaling == "standard" else nothing
        scale = shares.std(axis=0) if self.scaling == "standard" else np.abs(shares).mean(axis=0)
        return centre * size, np.where(scale > FLAT, scale * size, otherwise)

    def inputs(self, levels: Array, centre: Array, scale: Array) -> Array:
        """(T - lost, lags * C): scaled differences, the newest first, 0 before the first."""
        scaled = (self.differences(levels) - centre) / scale
        steps = len(scaled)
        return np.concatenate(
            [np.pad(scaled, ((lag, 0), (0, 0)))[:steps] for lag in range(self.lags)], axis=1
        )

    def naive(self, levels: Array, horizon: int, centre: Array) -> Array:
        """(T - lost, horizon, C): at each step the naive forecast of the next."""
        now = np.arange(self.lost, len(levels))[:, None]
        ahead = np.arange(1, horizon + 1)
        if not self._back:
            last = levels[now] if self._first else np.tile(centre, (len(now), 1, 1))
            return np.repeat(last, horizon, axis=1)
        seasons = -(-ahead // self._back)
        found = levels[now + ahead - self._back * seasons]
        if self._first:
            found = found + seasons[:, None] * (levels[now] - levels[now - self._back])
        return found

    def values(self, levels: Array) -> Array:
        """Values, of levels."""
        return np.exp(levels) if self.log else levels


def filled(levels: Array, season: int = 0) -> Array:
    """Levels (T, C) with what was a season before, or just before, where they are missing.

    What is missing at the beginning is what comes first.
    """
    missing = np.isnan(levels)
    if not missing.any():
        return levels
    levels = levels.copy()
    for channel, gaps in zip(levels.T, missing.T, strict=True):
        if gaps.all():
            channel[:] = 0
            continue
        channel[: np.argmin(gaps)] = channel[np.argmin(gaps)]
        for t in np.flatnonzero(np.isnan(channel)):
            channel[t] = channel[t - season] if 0 < season <= t else channel[t - 1]
    return levels


def find_season(values: AnyArray) -> int:
    """The number of steps of a season of values (T,), by autocorrelation; 0 where there is none.

    A parabola is subtracted first, as a trend. If nothing comes back clearly, the differences are
    looked at.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 10:
        return 0
    values = values / (np.abs(values).max() or 1)
    at = np.linspace(-1, 1, len(values))
    trend = np.polynomial.Polynomial.fit(at, values, 2)
    return _recurring(values - trend(at), 0.5) or _recurring(np.diff(values), 0.25)


def _recurring(values: Array, least: float) -> int:
    """The first peak of the autocorrelation that is nearly as high as any, and above ``least``."""
    count = len(values)
    longest = min(count // 3, LONGEST_SEASON)
    deviation = values.std()
    if longest < 3 or not deviation > FLAT:
        return 0
    size = 2 ** int(np.ceil(np.log2(2 * count)))
    power = np.abs(np.fft.rfft((values - values.mean()) / deviation, size)) ** 2
    found = np.fft.irfft(power)[: longest + 1] / (count - np.arange(longest + 1))
    inner = found[1:-1]
    peaks = 1 + np.flatnonzero((inner > found[:-2]) & (inner >= found[2:]))
    peaks = peaks[(peaks > 1) & (found[peaks] > max(least, 3 / np.sqrt(count)))]
    return int(peaks[found[peaks] > 0.8 * found[peaks].max()][0]) if len(peaks) else 0
