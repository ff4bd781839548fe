"""A learning rate from a range test: training for some batches while the rate grows."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

RATES = np.geomspace(1e-5, 1, 120)
SMOOTHING = 0.8  # the share of the mean loss so far in the next one


def range_test(step: Callable[[Any, float], float], batches: Iterator[Any]) -> tuple[float, Any]:
    """A good learning rate, and the losses that tell: (rates, 2) of rates and mean losses.

    step     step(batch, rate) trains on a batch with this rate, and returns the loss before
    batches  as many as there are rates

    The rate is a tenth of the one where the loss, averaged over the batches before, is least. The
    test ends where it is four times that.

    References: Smith 2017, *Cyclical learning rates for training neural networks*.
    """
    curve: list[tuple[float, float]] = []
    total = weight = 0.0
    for rate, batch in zip(RATES, batches, strict=False):
        loss = step(batch, float(rate))
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
        mean = total / weight
        if not math.isfinite(mean) or (curve and mean > 4 * min(m for _, m in curve)):
            break
        curve.append((float(rate), mean))
    found = np.array(curve or [(RATES[0], math.nan)])
    best = int(found[:, 1].argmin()) if curve else 0
    return float(found[best, 0] / 10), found
