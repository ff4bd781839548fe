"""The gradient of several batches, as if they were one; and rules that engines apply to arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import engine_of_param, to_host
from ..kernels.sparse_rows import SparseRows
from ..layers.dense import distinct
from ..typing import Array, Scalar


def apply_rule(
    rule: Callable[..., tuple[Any, ...]],
    groups: Sequence[Sequence[Array]],
    numbers: Sequence[float] = (),
    factor: Any = 1.0,
) -> None:
    """``Engine.update_all``, for each engine that has some of the arrays."""
    engines = [engine_of_param(group[0]) for group in groups]
    for engine in dict.fromkeys(engines):
        mine = [group for other, group in zip(engines, groups, strict=True) if other is engine]
        engine.update_all(rule, mine, numbers, factor)


def _add(total: Any, dW: Any) -> tuple[Any, ...]:
    return (total + dW,)


def _take(dW: Any, total: Any) -> tuple[Any, ...]:
    return (total,)


class GradientMean:
    """The mean of losses and gradients over several batches, weighted by how much each counts.

    A loss is a mean itself; weighted so, the mean of means is that of one large batch.
    """

    def __init__(self) -> None:
        self._sums: list[Any] = []
        self._loss: Scalar = 0.0
        self._weight = 0.0

    def begin(self, grads: Sequence[Any]) -> None:
        """Forget all batches."""
        if [(g.shape, type(g)) for g in grads] != [(s.shape, type(s)) for s in self._sums]:
            self._sums = [
                grad.converted(lambda array: array[:0])
                if isinstance(grad, SparseRows)
                else engine_of_param(grad).xp.zeros_like(grad)
                for grad in grads
            ]
        for total in self._sums:
            if isinstance(total, SparseRows):
                total.rows, total.values = total.rows[:0], total.values[:0]
            else:
                total[...] = 0
        self._loss, self._weight = 0.0, 0.0

    def add(self, grads: Sequence[Any], loss: Scalar, weight: float) -> None:
        """Add a batch."""
        pairs = list(zip(self._sums, grads, strict=True))
        for total, grad in pairs:
            if isinstance(total, SparseRows):
                _add_rows(total, grad, weight)
        dense = [pair for pair in pairs if not isinstance(pair[0], SparseRows)]
        apply_rule(_add, dense, factor=float(weight))
        self._loss += loss * weight
        self._weight += weight

    def take(self, grads: Sequence[Any]) -> Scalar:
        """Put the mean gradient into ``grads``, and return the mean loss."""
        share, pairs = (
            1 / self._weight if self._weight else 0.0,
            zip(grads, self._sums, strict=True),
        )
        dense = []
        for grad, total in pairs:
            if isinstance(total, SparseRows):
                grad.rows, grad.values = total.rows, total.values * total.dtype.type(share)
            else:
                dense.append((grad, total))
        apply_rule(_take, dense, factor=share)
        return self._loss * share


def _add_rows(total: SparseRows, grad: SparseRows, weight: float) -> None:
    """total += weight * grad. On a device this waits for it."""
    engine, K = engine_of_param(grad.values), len(total.rows)
    found = distinct(np.concatenate([to_host(total.rows), to_host(grad.rows)]))
    rows, places = map(engine.to_device, found)
    values = engine.xp.zeros((len(rows), *grad.shape[1:]), grad.dtype)
    values[places[:K]] = total.values
    values[places[K:]] += grad.values * grad.dtype.type(weight)
    total.rows, total.values = rows, values
