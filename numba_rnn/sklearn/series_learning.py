"""How a forecaster learns: its options, its choice of a transform, its examples and its loss."""

from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.base import clone

from ..backend import to_host
from ..typing import Array, BoolArray
from ..validation import expect_choice, expect_float, expect_int
from .choosing import Choice, Data, choose, season_of
from .frames import called
from .heads import COUNTS, HEADS, Quantiles, expect_quantiles
from .probabilistic import NOTHING_HELD, ROWS, Spread, correlation_of, spread_of
from .sequences import (
    SequenceDataset,
    lengths_of,
)
from .series_reader import SeriesReader, expect_counts
from .transform import DIFFERENCES, FLAT, SCALINGS, Transform, filled


class SeriesLearning(SeriesReader):
    """A forecaster's training, on series that are read."""

    early_stopping: Any
    differencing_: str | None
    season_: int
    log_: bool
    lags_: int
    _missing: bool  # whether steps of fit were missing
    _flat: list[bool]  # channels in which no series has a scale
    _spread: Any  # a Spread as a tuple: a pickle names no class but the forecaster's
    _typical: list[float]  # the scale of each channel, for series without one; of these rounding
    _steps: list[list[float]] | None  # (horizon, C) the sizes of the targets; None: 1
    _still: list[list[bool]] | None  # (horizon, C) where no naive forecast was wrong; None: nowhere

    def _expect_options(self) -> None:
        """Raises an error for a choice that is none."""
        expect_choice("loss", self.loss, ("mse", *HEADS))
        expect_quantiles("quantiles", self.quantiles)
        if self.loss in COUNTS and (self.differencing not in (None, "auto") or self.log is True):
            raise ValueError(
                f"loss: {self.loss!r} takes counts as they are; expected differencing=None and "
                f"log=False, or 'auto', got {self.differencing!r} and {self.log!r}"
            )
        if self.scaling is not None:
            expect_choice("scaling", self.scaling, SCALINGS)
        if self.differencing is not None:
            expect_choice("differencing", self.differencing, ("auto", *DIFFERENCES))
        if self.season is not None and self.season != "auto":
            expect_int("season", self.season, 2)
        if self.lags != "auto":
            expect_int("lags", self.lags)
        for name, word in (("log", "auto"), ("early_stopping", "refit")):
            value = getattr(self, name)
            if isinstance(value, str) and value != word:
                raise ValueError(f"{name}: expected True, False or {word!r}, got {value!r}")

    def _chosen(self, data: Data) -> Choice:
        """The choice: options that are given, and the best of those that are "auto"."""
        for k, (values, _) in enumerate(data):
            if np.isnan(values).all(axis=0).any():
                channel = int(np.isnan(values).all(axis=0).argmax())
                raise ValueError(
                    f"{called('X', data, k)}: expected values in each channel, got none in "
                    f"{self._column(channel)}"
                )
        counts = self.loss in COUNTS
        if counts:
            expect_counts("X", data, self.loss)
        transform = Transform(
            None if self.differencing == "auto" else self.differencing,
            self._season(data),
            self.log is True,
            "mean_abs" if counts and self.scaling else self.scaling,
            1 if self.lags == "auto" else int(self.lags),
        )
        for k, (values, _) in enumerate(data):
            if len(values) <= transform.lost + self.horizon:
                raise ValueError(
                    f"{called('X', data, k)}: expected at least "
                    f"{transform.lost + self.horizon + 1} steps with "
                    f"differencing={self.differencing!r}, got {len(values)}"
                )
        open_ = "auto" in (self.differencing, self.log, self.lags)
        if not open_ and self.early_stopping != "refit":
            return Choice(transform)
        return choose(self, data, transform)

    def _column(self, channel: int) -> str:
        """How an error calls a channel."""
        return f"the column {self._columns[channel]!r}" if self._columns else f"channel {channel}"

    def _season(self, data: Data) -> int:
        seasonal = self.differencing in ("seasonal", "both")
        if self.season is None or not (seasonal or "auto" in (self.differencing, self.lags)):
            season = 0
        else:
            season = season_of(data) if self.season == "auto" else int(self.season)
        if seasonal and not season:
            raise ValueError(
                f"season: expected the number of steps of a season for differencing="
                f"{self.differencing!r}, got {self.season!r}, and none is found in X"
            )
        return season

    @property
    def _head(self) -> Any:
        """How scores say a distribution; None: they are the forecast."""
        if self.loss == "mse":
            return None
        return Quantiles(self.quantiles) if self.loss == "quantile" else HEADS[self.loss]()

    def _learn(
        self,
        data: Data,
        transform: Transform,
        held: list[int] | None = None,
        epochs: int | None = None,
        spread: Spread = NOTHING_HELD,
    ) -> Self:
        """Train on series.

        held    how many steps of each are held out; None: as ``early_stopping`` says
        epochs  how many, of all the data; None: ``max_epochs``
        spread  of what was held out before, where less is
        """
        valid, train = None, data
        again = self.warm_start and hasattr(self, "network_")
        if not again:
            self._take(data, transform)
        self._still = None
        if epochs is None and self.early_stopping is True:
            train, valid = self._split_ends(data, held, measure=not again)
        elif not again:
            self._measure(train)
        if valid is None and epochs is None:
            epochs = self.max_epochs
        examples = self._examples(train)
        self._fit(examples, self._outputs, valid, epochs=epochs)
        if valid is not None and self._head is not None:
            held_out = spread_of(*self._misses(valid, self._still))
            spread = max(held_out, spread, key=lambda one: one.held)
        self._spread = tuple(spread)
        if held is None:
            self._relate(examples)
        return self

    def _member(self, data: Data, choice: Choice) -> Self:
        """A forecaster that has learnt the same data by another choice."""
        member = clone(self).set_params(
            early_stopping=False, combine=False, warm_start=False, verbose=False,
            random_state=int(self._rng.integers(2**31)),
        )  # fmt: skip
        member._as_read(self)
        return member._learn(data, choice.transform, epochs=choice.epochs, spread=choice.spread)

    def _relate(self, examples: SequenceDataset) -> None:
        """See how the errors of the next steps go together."""
        if self._head is None:
            return
        count = max(1, int(ROWS * len(examples) // max(examples.count, 1)))
        rows = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int))
        scores = self._head.normal_scores(*self._compared(examples.picked(rows)))
        self._correlation = correlation_of(scores)

    def _misses(self, examples: SequenceDataset, still: Any) -> tuple[Array, Array | None]:
        """Normal scores and errors (steps, horizon * C) of the targets that count, for a spread.

        still  (horizon, C) where there is none, as nothing moves there; None: nowhere
        """
        head: Any = self._head
        scores, ts, scale = self._compared(examples)
        if still is not None:
            ts = np.where(np.ravel(still), np.nan, ts)
        errors = None if head.counts else ts - head.quantile(scores, 0.5)
        return head.normal_scores(scores, ts, scale), errors

    def _compared(self, examples: SequenceDataset) -> tuple[Array, Array, Any]:
        """Scores (steps, horizon * C, P) and the targets that count, and their scales."""
        head: Any = self._head
        scale: Any = 1.0
        scores = np.asarray(self._scores(examples.xs), np.float64)
        ts = np.concatenate(list(examples.ts)).astype(np.float64)
        if examples.last is not None:
            lengths = lengths_of(examples.ts)
            counted = [np.arange(T) >= T - n for T, n in zip(lengths, examples.last, strict=True)]
            ts, scores = ts[np.concatenate(counted)], scores[np.concatenate(counted)]
        if head.counts:
            ts, scale = ts[:, ::2], ts[:, 1::2]
        return scores.reshape(*ts.shape, -1), ts, scale

    def _as_read(self, other: "SeriesLearning") -> None:
        """Take the sizes that another forecaster has read from the same X."""
        for name in (
            "_now",
            "_embedded",
            "_table",
            "_horizon",
            "_outputs",
            "_channels",
            "_known_features",
            "n_features_in_",
        ):
            setattr(self, name, getattr(other, name))

    def _take(self, data: Data, transform: Transform) -> None:
        """Take up a transform, and what it needs to know of the data."""
        self.differencing_, self.season_ = transform.differencing, transform.season
        self.log_, self.lags_ = transform.log, transform.lags
        self._missing = any(bool(np.isnan(values).any()) for values, _ in data)
        self._steps = None
        levels = [filled(transform.levels(values), transform.season) for values, _ in data]
        scales = np.stack([transform.measured(one, np.nan)[1] for one in levels])
        flat: Any = ~np.isfinite(scales).any(axis=0)
        size = np.max([np.abs(one).max(axis=0) for one in levels], axis=0)
        rounding = 1.0 if self.loss in COUNTS else FLAT * np.where(size > 0, size, 1)
        self._typical = np.where(
            flat, rounding, np.nanmedian(np.where(flat, 1, scales), axis=0)
        ).tolist()
        self._flat = flat.tolist()

    def _measure(self, data: Data) -> None:
        """The sizes of the targets, so that each of the next steps counts alike; which are 0."""
        differences = self.differencing_ is not None and self.scaling is not None
        if self.loss in COUNTS or not (differences or any(self._flat)):
            return
        squares, count = 0.0, 0
        for ts in self._examples(data).ts:
            found = np.asarray(ts, np.float64)
            squares = squares + np.nansum(found**2, axis=0)
            count = count + np.isfinite(found).sum(axis=0)
        size = np.sqrt(squares / np.maximum(count, 1)).reshape(self.horizon, -1)
        if any(self._flat):
            self._still = np.logical_and(self._flat, size <= 1).tolist()
        if differences:
            self._steps = np.where(size > 0, size, 1).tolist()

    @property
    def _transform(self) -> Transform:
        scaling = "mean_abs" if self.loss in COUNTS and self.scaling else self.scaling
        return Transform(self.differencing_, self.season_, self.log_, scaling, self.lags_)

    def _split_ends(
        self, series: Data, held_steps: list[int] | None = None, measure: bool = True
    ) -> tuple[Data, SequenceDataset]:
        """The beginnings of the series; and forecasts of their ends, which are held out.

        Those are made as ``predict`` makes them: from all steps before, or from a window of them,
        and in the units in which the beginnings are learnt.

        measure  whether these units are to be found
        """
        share = expect_float("validation_fraction", self.validation_fraction, 0, 1, low_open=True)
        least = self.horizon + 1
        early: Data = []
        all_held: list[int] = []
        for k, (values, known) in enumerate(series):
            held = held_steps[k] if held_steps else max(round(share * len(values)), least)
            if len(values) - held < least + self._transform.lost:
                raise ValueError(
                    f"early_stopping: expected series of at least {2 * least} steps, to hold out "
                    f"their ends, got {len(values)} in {called('X', series, k)}; "
                    "early_stopping='refit' or False takes shorter ones"
                )
            early.append((values[:-held], known[:-held]))
            all_held.append(held)
        if measure:
            self._measure(early)
        judged = [
            self._judged(values, known, held - self.horizon + 1)
            for (values, known), held in zip(series, all_held, strict=True)
        ]
        return early, SequenceDataset(
            [xs for part in judged for xs in part.xs],
            [ts for part in judged for ts in part.ts],
            np.concatenate([part.last for part in judged]),
        )

    def _judged(self, values: Array, known: Array, count: int) -> SequenceDataset:
        """The last ``count`` forecasts whose targets are known.

        Those of a whole series are measured by what comes before the first of them.
        """
        lost = self._transform.lost
        origins = range(len(values) - self.horizon - count, len(values) - self.horizon)
        if not self._window:
            inputs, targets = self._example(values, known, origins[0] + 1)
            return SequenceDataset([inputs], [targets], np.array([count]))
        pairs = []
        for origin in origins:
            start = max(origin + 1 - self._window - lost, 0)
            window = slice(start, origin + 1 + self.horizon)
            pairs.append(self._example(values[window], known[window]))
        xs, ts = zip(*pairs, strict=True)
        return SequenceDataset(list(xs), list(ts), np.ones(count, int))

    def _examples(self, series: Data) -> SequenceDataset:
        """Windows of inputs and of the targets at each of their steps."""
        xs, ts, stride = [], [], expect_int("stride", self.stride)
        lost = self._transform.lost
        for values, known in series:
            steps = len(values) - self.horizon - lost  # those whose future is known
            width = min(self._window or steps, steps)
            last = steps - width
            for start in range(last % stride, last + 1, stride):
                window = slice(start, start + width + lost + self.horizon)
                inputs, targets = self._example(values[window], known[window])
                xs.append(inputs)
                ts.append(targets)
        return SequenceDataset(xs, ts)

    def _example(
        self, values: Array, known: Array, measured: int | None = None
    ) -> tuple[Array, Array]:
        """The inputs at the steps whose future is known, and that future: the targets.

        measured  how many steps scales are measured by; None: all whose future is known
        """
        transform, horizon = self._transform, self.horizon
        past = values[:-horizon]
        inputs, naive, unit = self._prepared(past, known, measured)
        levels = transform.levels(values)[transform.lost + 1 :]
        ahead = sliding_window_view(levels, horizon, axis=0).transpose(0, 2, 1)
        if self.loss in COUNTS:
            targets = np.stack([ahead, np.broadcast_to(unit, ahead.shape)], axis=-1)
        else:
            targets = (ahead - naive) / unit
        return inputs, targets.reshape(len(inputs), -1).astype(values.dtype)

    def _prepared(
        self, values: Array, known: Array, measured: int | None = None, last: bool = False
    ) -> tuple[Array, Array, Array]:
        """Inputs of the network, from values (T, C) and known inputs (T + horizon, E).

        last  True: naive forecasts of the last step only

        Returns the inputs at each step, the naive forecasts (T, horizon, C) and the units
        (horizon, C) in which the network says how much the values differ from them.
        """
        transform = self._transform
        raw = transform.levels(values)
        levels = filled(raw, transform.season)
        centre, scale = transform.measured(levels[:measured], self._typical)
        parts = [transform.inputs(levels, centre, scale)]
        steps = len(parts[0])
        if self._missing:
            parts.append(np.isfinite(raw[-steps:]) * 1.0)
        future = known[transform.lost + 1 :, : known.shape[1] - self._now]
        ahead = sliding_window_view(future, self.horizon, axis=0)[:steps]
        parts += [ahead.reshape(steps, -1), known[transform.lost :][:steps, future.shape[1] :]]
        unit = self._sized(scale)
        naive = transform.naive(levels[-transform.lost - 1 :] if last else levels, self.horizon,
                                centre)  # fmt: skip
        return np.concatenate(parts, axis=1).astype(values.dtype), naive, unit

    def _sized(self, scale: Array) -> Array:
        """The units (horizon, C) of targets."""
        unit = np.broadcast_to(scale, (self.horizon, len(scale)))
        return unit if self._steps is None else unit * np.array(self._steps)

    def _unit(self, values: Array) -> Array:
        """The units (horizon, C) of the targets of a whole series."""
        levels = filled(self._transform.levels(values), self._transform.season)
        return self._sized(self._transform.measured(levels, self._typical)[1])

    def _loss(self, scores: Array, ts: Array, mask: BoolArray | None) -> tuple[float, Array]:
        """Targets that are missing (NaN) count nothing."""
        if (head := self._head) is not None:
            return head.forward(scores, ts, mask), head.backward()
        there = np.isfinite(ts)
        if there.all():
            return super()._loss(scores, ts, mask)
        if not there.any():
            return 0.0, scores * 0
        loss, gradient = super()._loss(scores, np.where(there, ts, to_host(scores)), mask)
        counted = there if mask is None else there & mask[:, :, None]
        share = (there.size if mask is None else mask.sum() * ts.shape[2]) / max(counted.sum(), 1)
        return loss * share, gradient * gradient.dtype.type(share)
