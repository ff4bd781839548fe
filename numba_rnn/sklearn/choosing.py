"""Choices that the data decide: the season, differences, logarithms, lags, the number of epochs.

Each possibility is trained on the beginnings of the series and judged by its forecasts of their
ends, as ``predict`` makes them; nothing is known of what comes after the data.
"""

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.base import clone

from .heads import COUNTS
from .probabilistic import ENOUGH, NOTHING_HELD, Spread, spread_of
from .transform import DIFFERENCES, Transform, filled, find_season

MOST_SERIES, MOST_STEPS = 32, 2000  # that trials look at
ORIGINS = 12  # forecasts of a series that a trial is judged by
HELD = 2  # horizons that a trial is judged by, if there are as many
SMALL = 0.1  # of the deviation of a series, a step
NEAR = 1.5  # times the least error: what is below it takes part in forecasts
MARGIN = 0.9  # the share of the error that something less simple is to have
LEAST = 3  # examples of steps that a trial learns from
LAGS = 6, 24  # lags that are tried where there is no season, and at most

Data = list[Any]  # values (T, C) and known inputs (T, E) of each series


def season_of(data: Data) -> int:
    """The season that most of the series have, weighted by their lengths."""
    votes: dict[int, int] = {}
    for values, _ in data[: 4 * MOST_SERIES]:
        for channel in filled(np.asarray(values[-4 * MOST_STEPS :], np.float64)).T:
            found = find_season(channel)
            votes[found] = votes.get(found, 0) + len(channel)
    return max(votes, key=lambda season: votes[season])


def held_steps(steps: int, horizon: int, share: float) -> int:
    """How many steps at the end of a series a trial is judged by."""
    return max(round(share * steps), min(HELD * horizon, steps // 3), horizon + 1)


def judgeable(data: Data, transform: Transform, horizon: int, share: float) -> Data:
    """The series that are long enough for a trial."""
    least = transform.lost + horizon + LEAST
    return [one for one in data if len(one[0]) - held_steps(len(one[0]), horizon, share) >= least]


def sample_of(data: Data) -> Data:
    """Some of the series, and of each the end."""
    rows = np.unique(np.linspace(0, len(data) - 1, MOST_SERIES).astype(int))
    return [(data[k][0][-MOST_STEPS:], data[k][1][-MOST_STEPS:]) for k in rows]


@dataclass(frozen=True)
class Choice:
    """The best values of all options that are "auto".

    epochs   how many are best; None where no series is long enough to hold out its end
    spread   how far what was held out is from its forecasts
    trials   what was tried
    others   what is nearly as good
    """

    transform: Transform
    epochs: int | None = None
    spread: Spread = NOTHING_HELD
    trials: list[dict[str, Any]] = field(default_factory=list)
    others: "list[Choice]" = field(default_factory=list)


def choose(model: Any, data: Data, transform: Transform) -> Choice:
    """Try what is "auto".

    model      the forecaster; what it has fixed is not tried
    transform  what is fixed, and the first to be tried
    """
    share, horizon = model.validation_fraction, model.horizon
    few = sample_of(data)
    whole = len(few) == len(data) and max(len(values) for values, _ in data) <= MOST_STEPS
    found: dict[Transform, tuple[float, int, Spread]] = {}
    tried: list[dict[str, Any]] = []

    def trial(candidate: Transform, some: Data) -> float:
        usable = judgeable(some, candidate, horizon, share)
        if not usable:
            return np.inf
        error, epochs, _ = found[candidate] = _trial(model, usable, candidate)
        tried.append({**_settings(candidate), "epochs": epochs, "error": error})
        return error

    if model.differencing == "auto" and model.loss not in COUNTS and wanders(few):
        moving = replace(transform, differencing="first")
        transform = moving if judgeable(few, moving, horizon, share) else transform
    if not judgeable(few, transform, horizon, share):
        return Choice(transform)
    best, least = transform, trial(transform, few)
    for stage in _stages(model, transform, few):
        for name, value in stage:
            candidate = replace(best, **{name: value})
            fits = all(candidate.lost + horizon < len(values) for values, _ in data)
            if fits and candidate not in found:
                error = trial(candidate, few)
                if error < MARGIN * least:
                    best, least = candidate, error
    if model.early_stopping == "refit" and not whole:
        trial(best, data)
    near = NEAR * min(error for error, _, _ in found.values())
    others = [
        Choice(other, epochs, spread)
        for other, (error, epochs, spread) in found.items()
        if whole and other != best and error < near
    ]
    _, epochs, spread = found[best]
    if model._head is not None and (spread.plain or spread.held < ENOUGH):
        spread = _held_out(model, judgeable(few, best, horizon, share), best, epochs)
    return Choice(best, epochs, spread, tried, others)


def wanders(data: Data) -> bool:
    """Whether most series go far in small steps: what comes is not at levels that were seen."""
    found = []
    for values, _ in data:
        levels = filled(np.asarray(values, np.float64))
        levels = levels / np.maximum(np.abs(levels).max(axis=0), np.finfo(float).tiny)
        found.append(np.diff(levels, axis=0).std(axis=0) < SMALL * levels.std(axis=0))
    return bool(np.mean(found) > 0.5)


def _settings(transform: Transform) -> dict[str, Any]:
    return {name: getattr(transform, name) for name in ("differencing", "log", "lags")}


def _stages(model: Any, transform: Transform, data: Data) -> list[list[tuple[str, Any]]]:
    """The possibilities that are tried in turn, each on top of the best so far."""
    stages: list[list[tuple[str, Any]]] = []
    counts = model.loss in COUNTS
    if not counts and model.differencing == "auto":
        names = DIFFERENCES if transform.season else ("first",)
        stages.append([("differencing", name) for name in names])
    if (
        not counts
        and model.log == "auto"
        and all(np.nanmin(values, initial=np.inf) > 0 for values, _ in data)
    ):
        stages.append([("log", True)])
    if model.lags == "auto":
        stages.append([("lags", min(transform.season or LAGS[0], LAGS[1]))])
    return stages


def _blank(model: Any) -> Any:
    """A forecaster of the same data that has learnt nothing."""
    blank = clone(model).set_params(
        early_stopping=True, combine=False, warm_start=False, verbose=False, random_state=0
    )
    blank._as_read(model)
    return blank


def _held_out(model: Any, data: Data, transform: Transform, epochs: int) -> Spread:
    """The spread of the ends of short series, of which a trial holds out too few: up to half.

    They chose nothing, neither the transform nor the number of epochs. Their errors are in the
    units of whole series, of which the beginnings may say little.
    """
    whole, trial, horizon = _blank(model), _blank(model), model.horizon
    for one in (whole, trial):
        one._take(data, transform)
    whole._still = None
    whole._measure(data)
    held = []
    for values, _ in data:
        room = min(len(values) // 2, len(values) - transform.lost - horizon - LEAST)
        least = held_steps(len(values), horizon, model.validation_fraction)
        held.append(max(least, min(ENOUGH - 2 + horizon, room)))
    early, late = trial._split_ends(data, held)
    trial._learn(early, transform, epochs=epochs)
    scores, errors = trial._misses(late, whole._still)
    if errors is not None and not model.window:
        errors = errors * np.concatenate([
            [(trial._unit(values[:-steps]) / whole._unit(values)).ravel()] * (steps - horizon + 1)
            for (values, _), steps in zip(data, held, strict=True)
        ])  # fmt: skip
    return spread_of(scores, errors)


def _trial(model: Any, data: Data, transform: Transform) -> tuple[float, int, Spread]:
    """The error of forecasts of the ends of series after training on the rest; epochs; spread."""
    trial = _blank(model)
    horizon = model.horizon
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = [held_steps(len(values), horizon, model.validation_fraction) for values, _ in data]
        trial._learn(data, transform, held)
    errors, count = 0.0, 0
    for (values, known), steps in zip(data, held, strict=True):
        first = len(values) - steps
        ends = np.unique(np.linspace(first, len(values) - horizon, ORIGINS).astype(int))
        said = trial._forecast(
            [values[:end] for end in ends], [known[: end + horizon] for end in ends]
        )
        came = np.stack([values[end : end + horizon] for end in ends])
        size = np.nanmean(np.abs(np.diff(filled(values), axis=0)), axis=0)
        wrong = np.abs(came - said) / np.where(size > 0, size, 1)
        errors, count = errors + np.nansum(wrong), count + int(np.isfinite(wrong).sum())
    best = int(np.argmin(trial.validation_curve_)) + 1
    return float(errors / max(count, 1)), best, Spread(*trial._spread)
