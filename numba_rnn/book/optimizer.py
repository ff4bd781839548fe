"""The book's ``common/optimizer.py``: W becomes another W by its gradient dW.

``SGD``        W <- W - lr dW
``Momentum``   v <- momentum v - lr dW;  W <- W + v
``AdaGrad``    h <- h + dW²;  W <- W - lr dW / (sqrt(h) + 1e-7)

are those of ``numba_rnn.training``, and the others are below. All have ``update(params, grads)``,
which changes the parameters in place, and ``lr``, which may be set.
"""

import math
from typing import Any

from ..training import SGD, AdaGrad, Momentum, RMSProp, optimisers

__all__ = ["SGD", "AdaGrad", "Adam", "Momentum", "Nesterov", "RMSprop"]


def _nesterov(W: Any, v: Any, dW: Any, lr: float, momentum: float) -> tuple[Any, ...]:
    v = v * momentum - lr * dW
    return W + momentum * momentum * v - (1 + momentum) * lr * dW, v


class Nesterov(Momentum):
    """v <- momentum v - lr dW;  W <- W + momentum² v - (1 + momentum) lr dW.

    As in the book's code, whose v is the new one. (In the paper that it cites, Bengio et al. 2013,
    it is the old one.)
    """

    rule = staticmethod(_nesterov)


class RMSprop(RMSProp):
    """h <- decay_rate h + (1 - decay_rate) dW²;  W <- W - lr dW / (sqrt(h) + 1e-7)."""

    def __init__(self, lr: float = 0.01, decay_rate: float = 0.99) -> None:
        super().__init__(lr, decay_rate)


class Adam(optimisers.Adam):
    """m <- m + (1 - beta1) (dW - m);  v <- v + (1 - beta2) (dW² - v);

    W <- W - lr_t m / (sqrt(v) + 1e-7), with lr_t = lr sqrt(1 - beta2^t) / (1 - beta1^t) at the
    t-th update. That of ``numba_rnn.training``, and of the paper's algorithm 1, adds 1e-8 to the
    root of the corrected v, v / (1 - beta2^t), instead: while gradients are small, or t is, the
    two differ.
    """

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> None:
        super().__init__(lr, beta1, beta2, eps=1e-7)

    def _numbers(self) -> tuple[float, ...]:
        """With eps / sqrt(bias2): beside the root of the corrected v it is eps beside the raw."""
        *numbers, bias2, eps = super()._numbers()
        return *numbers, bias2, eps / math.sqrt(bias2)
