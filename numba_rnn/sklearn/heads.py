"""Probabilistic losses: quantiles, and distributions whose parameters the network says.

A loss takes scores (N, T, M * P), P for each of M targets (N, T, M), as the layers' losses do; what
is missing (NaN) counts nothing. It is computed on the host, in float64. A head says what scores
mean: quantiles of the target, and one number for it.
"""

from typing import Any

import numpy as np
from scipy import stats
from scipy.special import digamma, expit, gammaln

from ..backend import engine_for_input, to_host
from ..typing import Array, BoolArray

LEAST = 1e-4  # of a scale
FAR = 5.0  # a normal score beyond it says no more
FREEDOM = 2.0  # the least degrees of freedom: a variance is wanted


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return np.logaddexp(0, x)


def expect_quantiles(name: str, quantiles: Any) -> Array:
    """Numbers between 0 and 1, in order."""
    try:
        found = np.asarray(quantiles, np.float64)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    if found.ndim == 0 and np.isfinite(found):
        raise ValueError(
            f"{name}: expected a sequence of numbers between 0 and 1, such as (0.1, 0.5, 0.9), got "
            f"{quantiles!r}"
        )
    if found.ndim != 1 or not len(found) or not ((found > 0) & (found < 1)).all():
        raise ValueError(f"{name}: expected numbers between 0 and 1, got {quantiles!r}")
    if (np.diff(found) <= 0).any():
        raise ValueError(f"{name}: expected numbers in order, each once, got {quantiles!r}")
    return found


class Head:
    """A loss of scores (..., P) of one target each.

    parameters   P
    counts       whether targets are counts, which are not scaled; then a scale is behind each
    """

    name: str
    parameters: int
    counts = False

    def losses(self, scores: Array, ts: Array, scale: Any = 1.0) -> tuple[Array, Array]:
        """The losses (...) of targets (...), and their gradients (..., P) by the scores."""
        raise NotImplementedError

    def quantile(self, scores: Array, q: Any, scale: Any = 1.0) -> Array:
        """The quantile q, a number or an array that fits (...), of the target (...)."""
        raise NotImplementedError

    def normal_scores(self, scores: Array, ts: Array, scale: Any = 1.0) -> Array:
        """Where targets (...) are in the distribution: the numbers of as likely normal ones."""
        raise NotImplementedError

    def forward(self, xs: Array, ts: Array, mask: BoolArray | None = None) -> float:
        """The mean loss of scores xs (N, T, M * P) and targets (N, T, M).

        mask  (N, T) of the steps that count; None: all
        """
        self._engine, self._dtype = engine_for_input(xs), xs.dtype
        scale: Any = 1.0
        if self.counts:
            ts, scale = ts[..., ::2], ts[..., 1::2]
            scale = np.where(scale > 0, scale, 1.0)  # behind the ends of sequences it is 0
        scores = np.asarray(to_host(xs), np.float64).reshape(*ts.shape, self.parameters)
        counts = np.isfinite(ts)
        if mask is not None:
            counts = counts & mask[:, :, None]
        losses, gradient = self.losses(scores, np.where(counts, ts, 1.0), scale)
        number = max(int(counts.sum()), 1)
        self._gradient = np.where(counts[..., None], gradient, 0).reshape(xs.shape) / number
        return float(losses[counts].sum() / number)

    def backward(self) -> Array:
        """The gradient of the mean loss, in the shape of xs."""
        return self._engine.to_device(self._gradient.astype(self._dtype))


class Quantiles(Head):
    """The pinball loss of each of some quantiles, which the scores are.

    Koenker and Bassett (1978), *Regression quantiles*.
    """

    name = "quantile"

    def __init__(self, quantiles: Any) -> None:
        self.quantiles = np.asarray(quantiles, np.float64)
        self.parameters = len(self.quantiles)

    def losses(self, scores: Array, ts: Array, scale: Any = 1.0) -> tuple[Array, Array]:
        wrong = ts[..., None] - scores
        slope = np.where(wrong >= 0, self.quantiles, self.quantiles - 1)
        return (slope * wrong).mean(axis=-1), -slope / self.parameters

    def quantile(self, scores: Array, q: Any, scale: Any = 1.0) -> Array:
        """Between those that were learnt on a line, beyond them with a normal tail."""
        found = np.sort(scores, axis=-1)  # lines that cross
        q = np.broadcast_to(np.asarray(q, np.float64), found.shape[:-1])
        if self.parameters == 1:
            return found[..., 0]
        # in normal scores, where a normal distribution is a line
        at, want = stats.norm.ppf(self.quantiles), stats.norm.ppf(q)
        k = np.clip(np.searchsorted(at, want) - 1, 0, self.parameters - 2)
        low, high = (np.take_along_axis(found, (k + i)[..., None], -1)[..., 0] for i in (0, 1))
        share = (want - at[k]) / (at[k + 1] - at[k])
        return low + np.clip(share, -9, 9) * (high - low)

    def normal_scores(self, scores: Array, ts: Array, scale: Any = 1.0) -> Array:
        found, at = np.sort(scores, axis=-1), stats.norm.ppf(self.quantiles)
        if self.parameters == 1:
            return np.zeros(ts.shape)
        k = np.clip((found <= ts[..., None]).sum(axis=-1) - 1, 0, self.parameters - 2)
        low, high = (np.take_along_axis(found, (k + i)[..., None], -1)[..., 0] for i in (0, 1))
        share = (ts - low) / np.maximum(high - low, LEAST)
        return np.clip(at[k] + share * (at[k + 1] - at[k]), -FAR, FAR)


class Normal(Head):
    """The normal distribution: its mean, and its deviation through a softplus."""

    name, parameters = "normal", 2

    @staticmethod
    def _read(scores: Array) -> tuple[Array, Array]:
        return scores[..., 0], softplus(scores[..., 1]) + LEAST

    def losses(self, scores: Array, ts: Array, scale: Any = 1.0) -> tuple[Array, Array]:
        mean, deviation = self._read(scores)
        z = (ts - mean) / deviation
        losses = 0.5 * z**2 + np.log(deviation) + 0.5 * np.log(2 * np.pi)
        by_deviation = (1 - z**2) / deviation
        return losses, np.stack([-z / deviation, by_deviation * expit(scores[..., 1])], axis=-1)

    def quantile(self, scores: Array, q: Any, scale: Any = 1.0) -> Array:
        mean, deviation = self._read(scores)
        return stats.norm.ppf(q, mean, deviation)

    def normal_scores(self, scores: Array, ts: Array, scale: Any = 1.0) -> Array:
        mean, deviation = self._read(scores)
        return np.clip((ts - mean) / deviation, -FAR, FAR)


class StudentT(Head):
    """Student's t: its centre, its scale and its degrees of freedom, which are above 2."""

    name, parameters = "student_t", 3

    @staticmethod
    def _read(scores: Array) -> tuple[Array, Array, Array]:
        return (
            scores[..., 0],
            softplus(scores[..., 1]) + LEAST,
            softplus(scores[..., 2]) + FREEDOM + LEAST,
        )

    def losses(self, scores: Array, ts: Array, scale: Any = 1.0) -> tuple[Array, Array]:
        centre, scale, freedom = self._read(scores)
        z = (ts - centre) / scale
        reach = 1 + z**2 / freedom
        half = (freedom + 1) / 2
        losses = (
            half * np.log(reach)
            + np.log(scale)
            + 0.5 * np.log(freedom * np.pi)
            + gammaln(freedom / 2)
            - gammaln(half)
        )
        pull = (freedom + 1) * z / (freedom * reach)
        by_freedom = 0.5 * (
            np.log(reach)
            - (freedom + 1) * z**2 / (freedom**2 * reach)
            + 1 / freedom
            + digamma(freedom / 2)
            - digamma(half)
        )
        gradient = [
            -pull / scale,
            (1 - pull * z) / scale * expit(scores[..., 1]),
            by_freedom * expit(scores[..., 2]),
        ]
        return losses, np.stack(gradient, axis=-1)

    def quantile(self, scores: Array, q: Any, scale: Any = 1.0) -> Array:
        centre, scale, freedom = self._read(scores)
        return stats.t.ppf(q, freedom, centre, scale)

    def normal_scores(self, scores: Array, ts: Array, scale: Any = 1.0) -> Array:
        centre, scale, freedom = self._read(scores)
        return np.clip(stats.norm.ppf(stats.t.cdf(ts, freedom, centre, scale)), -FAR, FAR)


class NegativeBinomial(Head):
    """The negative binomial distribution of counts: its mean, and its dispersion.

    The variance is mean + dispersion * mean², as Salinas et al. (2017), *DeepAR*, have it. Both go
    through a softplus; the mean is multiplied by the scale of the series.
    """

    name, parameters, counts = "negative_binomial", 2, True

    @staticmethod
    def _read(scores: Array, scale: Any) -> tuple[Array, Array]:
        return scale * (softplus(scores[..., 0]) + LEAST), softplus(scores[..., 1]) + LEAST

    def losses(self, scores: Array, ts: Array, scale: Any = 1.0) -> tuple[Array, Array]:
        mean, dispersion = self._read(scores, scale)
        number = 1 / dispersion  # of successes, in scipy's words
        share = dispersion * mean
        losses = -(
            gammaln(ts + number)
            - gammaln(number)
            - gammaln(ts + 1)
            + ts * np.log(share / (1 + share))
            - number * np.log1p(share)
        )
        by_mean = (mean - ts) / (mean * (1 + share))
        by_dispersion = number**2 * (digamma(ts + number) - digamma(number) - np.log1p(share)) + (
            mean - ts
        ) / (dispersion * (1 + share))
        gradient = [by_mean * scale * expit(scores[..., 0]), by_dispersion * expit(scores[..., 1])]
        return losses, np.stack(gradient, axis=-1)

    def quantile(self, scores: Array, q: Any, scale: Any = 1.0) -> Array:
        mean, dispersion = self._read(scores, scale)
        number = 1 / dispersion
        return stats.nbinom.ppf(q, number, number / (number + mean))

    def normal_scores(self, scores: Array, ts: Array, scale: Any = 1.0) -> Array:
        mean, dispersion = self._read(scores, scale)
        known = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
        return np.clip(stats.norm.ppf(known.cdf(ts) - known.pmf(ts) / 2), -FAR, FAR)


HEADS: dict[str, Any] = {one.name: one for one in (Quantiles, Normal, StudentT, NegativeBinomial)}
COUNTS = tuple(name for name, one in HEADS.items() if one.counts)
