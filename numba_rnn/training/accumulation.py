"""The gradient of several batches, as if they were one; and rules that engines apply to arrays."""

from collections.abc import Callable, Sequence
from typing import Any

from ..backend import engine_of_param
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
        self._sums: list[Array] = []
        self._loss: Scalar = 0.0
        self._weight = 0.0

    def begin(self, grads: Sequence[Array]) -> None:
        """Forget all batches."""
        if [(g.shape, type(g)) for g in grads] != [(s.shape, type(s)) for s in self._sums]:
            self._sums = [engine_of_param(grad).xp.zeros_like(grad) for grad in grads]
        for total in self._sums:
            total[...] = 0
        self._loss, self._weight = 0.0, 0.0

    def add(self, grads: Sequence[Array], loss: Scalar, weight: float) -> None:
        """Add a batch."""
        apply_rule(_add, list(zip(self._sums, grads, strict=True)), factor=float(weight))
        self._loss += loss * weight
        self._weight += weight

    def take(self, grads: Sequence[Array]) -> Scalar:
        """Put the mean gradient into ``grads``, and return the mean loss."""
        share = 1 / self._weight if self._weight else 0.0
        apply_rule(_take, list(zip(grads, self._sums, strict=True)), factor=share)
        return self._loss * share
