"""Sequences as users of scikit-learn have them, and the blocks that layers read.

Here sequences are one array (N, T, ...) where all are of one length, else a list of N arrays
(T_i, ...).
"""

import sys
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_array

from ..typing import AnyArray
from ..validation import expect_plain_array, format_shape
from .frames import called

Sequences = Any  # an array (N, T, ...), or a list of arrays (T_i, ...)
LOOKED_AT = 100_000  # steps, of which ``warn_of_scale`` judges


def listed(X: Any) -> Any:
    """An array of objects (N,) as a list; everything else as it is."""
    return list(X) if isinstance(X, np.ndarray) and X.ndim == 1 and X.dtype == object else X


def is_table(name: str, X: Any) -> bool:
    """Whether X is an array-like (N, F), not sequences (N, T, D) or a list of (T_i, D).

    Raises ValueError for one row of numbers, or a list of rows (T_i,) of different lengths, which
    are neither, and TypeError for masked arrays and their like, and for what is no array.
    """
    expect_plain_array(name, X)
    X = listed(X)
    kinds = (
        f"{name}: expected a table (N, F), sequences (N, T, D) or a list of arrays (T_i, D), got"
    )
    array = hasattr(X, "shape") or hasattr(X, "__array__")
    if not array and (isinstance(X, (str, bytes, Mapping, Set)) or not hasattr(X, "__len__")):
        raise TypeError(f"{kinds} {'None' if X is None else type(X).__name__}")
    several = isinstance(X, (list, tuple))
    shapes = {np.shape(x) for x in X} if several else set()
    if shapes == {()} or getattr(X, "ndim", 2) < 2:
        raise ValueError(
            f"{kinds} shape {format_shape((len(X),) if several else np.shape(X))}. Reshape your "
            "data: "
            f"np.asarray({name})[None] is a table of one row"
        )
    if not several:
        return getattr(X, "ndim", 2) != 3
    if len(shapes) > 1 and all(len(shape) == 1 for shape in shapes):
        raise ValueError(
            f"{name}: expected arrays (steps, features) where sequences differ in length, got "
            f"shapes {', '.join(map(format_shape, sorted(shapes)))}; x[:, None] has one feature"
        )
    return not X or np.ndim(X[0]) != 2


def read_sequences(name: str, X: Any, dtype: Any, *, missing: bool = False) -> Sequences:
    """An array (N, T, D), or a list of (T_i, D), floats that are finite, or NaN where ``missing``.

    Raises ValueError, naming the sequence, where one has no steps or other features.
    """
    remedy = ', and so does layout="ndt"' if missing else ""
    finite: Any = "allow-nan" if missing else True
    if getattr(X, "ndim", 1) == 3:
        try:
            found = check_array(
                X, dtype=dtype, allow_nd=True, input_name=name, ensure_all_finite=finite
            )
        except ValueError as error:
            expect_finite(name, X, X, dtype, error)
            raise
        if 0 in found.shape:
            raise ValueError(
                f"{name}: expected steps and features, got {format_shape(found.shape)}"
            )
        return found
    rows = [as_array(x) for x in X]
    features = rows[0].shape[1]
    for k, row in enumerate(rows):
        if row.ndim != 2 or row.shape[1] != features or not len(row):
            turned = {len(row) for row in rows if row.ndim == 2} == {len(rows[0])}
            raise ValueError(
                f"{name}: expected sequences (steps, {features}) of at least one step, got shape "
                f"{format_shape(row.shape)} in {called(name, X, k)}"
                + ("; x.T swaps steps and features" + remedy if turned and len(row) else "")
            )
    try:
        flat = check_array(
            np.concatenate(rows), dtype=dtype, input_name=name, ensure_all_finite=finite
        )
    except ValueError as error:
        if "could not convert" in str(error):
            raise ValueError(f"{name}: expected numbers; {error}") from error
        expect_finite(name, X, rows, dtype, error)
        raise
    return split(flat, rows)


def as_array(x: Any) -> AnyArray:
    """np.asarray, with NaN for what else says that a value is missing: pandas.NA, None."""
    found = np.asarray(x)
    if found.dtype == object and (pandas := sys.modules.get("pandas")):
        found = np.where(pandas.isna(found), np.nan, found)
    return found


def expect_finite(name: str, X: Any, rows: Any, dtype: Any, error: ValueError) -> None:
    """Raises ValueError where a number of sequences (T_i, D) is infinite, with its place.

    error  scikit-learn's, which does not say where
    """
    if "infinity" not in str(error):
        return
    kind = dtype[0] if isinstance(dtype, list) else dtype
    for k, row in enumerate(rows):
        with np.errstate(over="ignore"):
            wrong = np.argwhere(np.isinf(np.asarray(row, kind)))
        if len(wrong):
            at = tuple(wrong[0])
            raise ValueError(
                f"{called(name, X, k)}: expected finite numbers, got {np.asarray(row)[at]} at step "
                f"{at[0]}; {error}"
            ) from error


def steps_of_table(table: AnyArray, features: int, layout: str | None) -> AnyArray:
    """(N, F) -> (N, T, D), for so many features of a step.

    Raises ValueError where F is no multiple of D.
    """
    if table.shape[1] % features:
        raise ValueError(
            f"step_features: expected a divisor of the {table.shape[1]} features that X has, got "
            f"{features}"
        )
    if layout == "ndt":
        return table.reshape(len(table), features, -1).swapaxes(1, 2)
    return table.reshape(len(table), -1, features)


def steps_first(name: str, X: Any, layout: str | None) -> Any:
    """X (N, T, D), or a list of (T_i, D), whatever its layout is.

    layout  "ndt": features come before steps, X is (N, D, T) or a list of (D, T_i); "ntd": they do
            not; None: they do not, and X is refused where they seem to

    Raises ValueError.
    """
    if layout not in (None, "ntd", "ndt"):
        raise ValueError(f"layout: expected 'ntd', 'ndt' or None, got {layout!r}")
    several = isinstance(X, (list, tuple))
    if layout == "ndt" and several and len(X) and np.ndim(X[0]) == 2:
        return [_turned(x) for x in X]
    block = X
    if several and len(X) and all(type(x) is np.ndarray and x.shape == X[0].shape for x in X):
        block = np.asarray(X)
    if layout == "ntd" or getattr(block, "ndim", None) != 3:
        return X
    if layout == "ndt":
        return np.swapaxes(X, 1, 2)
    if seems_turned(block):
        _, D, T = block.shape
        raise ValueError(
            f"{name}: expected sequences (N, steps, features), got {format_shape(block.shape)}, "
            f'whose values run on along the last axis as steps do: layout="ndt" takes it as {T} '
            f'steps of {D} features, layout="ntd" as {D} steps of {T}'
        )
    return X


def _turned(x: Any) -> Any:
    return x.T if hasattr(x, "T") else np.asarray(x).T


def seems_turned(X: AnyArray) -> bool:
    """Whether an array (N, A, B) looks as if B were its steps.

    That is where B is at least 8 and more than four times A, and neighbours along B are more alike
    than those along A: by the mean square of their differences, over that of any two values along
    the axis.
    """
    N, A, B = X.shape
    if min(N, A) == 0 or max(7, 4 * A) >= B or getattr(X.dtype, "kind", "O") not in "iuf":
        return False
    some = np.asarray(X[:: max(1, N // 100)], np.float64)
    some = some[np.isfinite(some).all(axis=(1, 2))]

    def roughness(axis: int) -> float:
        """1 for values in no order, near 0 for a smooth curve."""
        centred = some - some.mean(axis=axis, keepdims=True)
        differences, spread = np.diff(some, axis=axis), (centred**2).mean()
        return float((differences**2).mean() / (2 * spread)) if spread > 0 else 1.0

    with np.errstate(all="ignore"):
        return len(some) > 0 and roughness(2) < 0.6 * (roughness(1) if A > 1 else 1)


def complete(name: str, sequences: Sequences, *, every_step: bool) -> Sequences:
    """Sequences (T_i, D) whose NaN is the last value before it of the same feature, if any.

    every_step  False: steps that are NaN alone are left out, wherever they are

    Raises ValueError for a sequence that is NaN alone.
    """
    whole = isinstance(sequences, np.ndarray)
    flat = sequences if whole else np.concatenate(sequences)
    if not np.isnan(flat).any():
        return sequences
    found = []
    for k, x in enumerate(sequences):
        missing = np.isnan(x)
        if missing.all():
            raise ValueError(f"{name}: expected a value in each sequence, got NaN alone at {k}")
        if not every_step:
            there = ~missing.all(axis=1)
            x, missing = x[there], missing[there]
        last = np.maximum.accumulate(np.where(missing, 0, np.arange(len(x))[:, None]), axis=0)
        found.append(np.take_along_axis(x, last, axis=0))
    lengths = {len(x) for x in found}
    return np.stack(found) if whole and len(lengths) == 1 else found


def moments(examples: "SequenceDataset") -> tuple[AnyArray, AnyArray]:
    """Mean and standard deviation of each feature of the inputs, over all steps; (D,) float64.

    A feature that is always the same has a deviation of 1. NaN does not count; weights do.
    """
    xs, each = examples.xs, None
    if examples.weights is not None:
        each = np.concatenate(list(examples.weights))
        if len(each) != lengths_of(xs).sum():  # one for each sequence
            each = np.repeat(each, lengths_of(xs))
    whole = isinstance(xs, np.ndarray)
    steps = xs.reshape(-1, xs.shape[2]) if whole else np.concatenate(xs)
    steps = np.ascontiguousarray(steps)  # the order of a sum decides its last bits
    largest = np.nanmax(np.abs(steps), axis=0, initial=0).astype(np.float64)
    size = np.where(largest > 0, largest, 1)  # squares of shares of it do not overflow
    mean = _mean(steps / size, each)
    deviation = np.sqrt(_mean((steps / size - mean) ** 2, each))
    deviation[deviation < 10 * np.finfo(steps.dtype).eps * np.abs(mean)] = 0  # rounding
    mean *= size
    return mean, np.where(deviation > 0, deviation * size, 1)


def _mean(values: AnyArray, weights: AnyArray | None) -> AnyArray:
    """The mean of each column's numbers that are not NaN; 0 where there are none."""
    there = ~np.isnan(values)
    counts = there.sum(axis=0) if weights is None else weights @ there
    values = np.where(there, values, 0)
    sums = values.sum(axis=0) if weights is None else weights @ values
    return sums / np.where(counts > 0, counts, 1)


def warn_of_scale(
    name: str, sequences: Sequences, columns: Any = None, *, targets: bool = False
) -> None:
    """Warn of features of sequences (T_i, D) that are far from unit scale.

    That is a root mean square above 30, or no value of 0.01 or more; for targets one above 10, or a
    standard deviation below a tenth of the mean, too. Fewer than 20 values may be small, or alike,
    by chance. Of many steps some are looked at, drawn by chance.
    """
    whole = isinstance(sequences, np.ndarray)
    steps = sequences.reshape(-1, sequences.shape[2]) if whole else np.concatenate(sequences)
    if len(steps) > LOOKED_AT:  # more would take time, and memory for a copy in float64
        steps = steps[np.random.default_rng(0).integers(len(steps), size=LOOKED_AT)]
    values = np.nan_to_num(steps.astype(np.float64), posinf=np.inf, neginf=-np.inf)
    largest = np.abs(values).max(axis=0)
    shares = values / np.where(largest > 0, largest, 1)
    size, mean, deviation = (
        largest * part
        for part in (np.sqrt((shares**2).mean(axis=0)), shares.mean(axis=0), shares.std(axis=0))
    )
    far = size > (10 if targets else 30)
    if len(values) >= 20:
        far |= (largest > 0) & (largest < 0.01)
        far |= targets & (deviation > 0) & (np.abs(mean) > 10 * deviation)
    if not far.any():
        return
    k = int(far.argmax())
    which = f" in {columns[k]!r}" if columns is not None else f" in feature {k}"
    warnings.warn(
        f"{name}: expected numbers of about unit scale, got a mean of {mean[k]:.2g} and a standard "
        f"deviation of {deviation[k]:.2g}{which if len(far) > 1 else ''}; a network learns badly "
        "from such numbers: scale them to mean 0 and standard deviation 1, as StandardScaler does",
        stacklevel=5,
    )


def lengths_of(sequences: Sequences) -> AnyArray:
    """The number of steps of each, (N,)."""
    return np.array([len(sequence) for sequence in sequences])


def split(flat: AnyArray, like: Sequences) -> Sequences:
    """Steps of all sequences behind each other, (steps, ...), cut up as others are."""
    if isinstance(like, np.ndarray):
        return flat.reshape(*like.shape[:2], *flat.shape[1:])
    return np.split(flat, np.cumsum(lengths_of(like))[:-1])


def concatenate(name: str, targets: Any, like: Sequences) -> AnyArray:
    """Targets of every step of sequences, behind each other: (steps, ...).

    Raises ValueError where a sequence has not one target a step.
    """
    expect_plain_array(name, targets)
    rows = list(targets) if isinstance(targets, (list, tuple)) else list(np.asarray(targets))
    rows, lengths = [np.asarray(row) for row in rows], lengths_of(like)
    if len(rows) != len(lengths):
        raise ValueError(f"{name}: expected targets for {len(lengths)} sequences, got {len(rows)}")
    for k, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if row.shape[:1] != (length,):
            raise ValueError(
                f"{name}: expected {length} targets for the {length} steps of sequence {k}, got "
                f"shape {format_shape(row.shape)}"
            )
    return np.concatenate(rows)


def picked(sequences: Sequences, rows: AnyArray) -> Sequences:
    """Some of them, in that order."""
    if isinstance(sequences, np.ndarray):
        return sequences[rows]
    return [sequences[k] for k in rows]


def pad(sequences: Sequences) -> tuple[AnyArray, AnyArray | None]:
    """An array (N, T, ...) with 0 behind the ends, and the lengths, or None where all are T."""
    if isinstance(sequences, np.ndarray):
        return sequences, None
    lengths = lengths_of(sequences)
    if (lengths == lengths[0]).all():
        return np.stack(sequences), None
    first = sequences[0]
    padded = np.zeros((len(sequences), lengths.max(), *first.shape[1:]), first.dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded, lengths


def mask_of(lengths: AnyArray) -> AnyArray:
    """(N, T) bool, False behind the ends."""
    return np.arange(lengths.max()) < lengths[:, None]


@dataclass(frozen=True)
class SequenceDataset:
    """Sequences and the targets that a network is to learn.

    xs    sequences (T_i, D)
    ts    their targets: for every step, or one step of them where a sequence has one target
    last  (N,) how many targets count, those at the end; None: all
    weights  how much each target counts, sequences (T_i,) as ts are; None: all the same
    """

    xs: Sequences
    ts: Sequences
    last: AnyArray | None = None
    weights: Sequences | None = None

    def __len__(self) -> int:
        return len(self.xs)

    def picked(self, rows: AnyArray) -> "SequenceDataset":
        """Some of them, in that order."""
        last = None if self.last is None else self.last[rows]
        weights = None if self.weights is None else picked(self.weights, rows)
        return SequenceDataset(picked(self.xs, rows), picked(self.ts, rows), last, weights)

    @property
    def count(self) -> float:
        """How many targets count; their weights, where they have some."""
        if self.weights is not None:
            return float(sum(weights.sum() for weights in self.weights))
        return int((lengths_of(self.ts) if self.last is None else self.last).sum())

    def batches(self, size: int, order: AnyArray) -> Iterator["SequenceDataset"]:
        """So many at a time, in that order."""
        for start in range(0, len(order), size):
            yield self.picked(order[start : start + size])

    def targets(self) -> tuple[AnyArray, AnyArray | None]:
        """An array (N, T, ...), and a mask (N, T) of those that count, or their weights; None if
        all do."""
        ts, lengths = pad(self.ts)
        if self.weights is not None:
            return ts, pad(self.weights)[0]
        if self.last is None:
            return ts, None if lengths is None else mask_of(lengths)
        lengths = lengths_of(self.ts)
        behind = np.arange(ts.shape[1]) >= (lengths - self.last)[:, None]
        return ts, behind & mask_of(lengths)
