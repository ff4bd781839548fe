"""The book's ``common/optimizer.py``: W becomes another W by its gradient dW.

``SGD``        W <- W - lr dW
``Momentum``   v <- momentum v - lr dW;  W <- W + v
``AdaGrad``    h <- h + dW²;  W <- W - lr dW / (sqrt(h) + 1e-7)

are those of ``numba_rnn.training``, and the others are below. All have ``update(params, grads)``,
which changes the parameters in place, and ``lr``, which may be set.
"""

from typing import Any

from ..training import SGD, AdaGrad, Momentum, RMSProp, optimisers

__all__ = ["SGD", "AdaGrad", "Adam", "Momentum", "Nesterov", "RMSprop"]


def _nesterov(W: Any, v: Any, dW: Any, lr: float, momentum: float) -> tuple[Any, ...]:
    v = v * momentum - lr * dW
    return W + momentum * momentum * v - (1 + momentum) * lr * dW, v


class Nesterov(Momentum):
    """Nesterov momentum: v <- momentum v - lr dW; W <- W + momentum² v - (1 + momentum) lr dW.

    Parameters
    ----------
    lr : float, default 0.01
        The learning rate.
    momentum : float, default 0.9
        The decay of the velocity v.

    Notes
    -----
    As in the book's code, v in the second equation is the new one. (In the paper that the book
    cites, Bengio et al. 2013, it is the old one.)
    """

    rule = staticmethod(_nesterov)


class RMSprop(RMSProp):
    """RMSprop: h <- decay_rate h + (1 - decay_rate) dW²; W <- W - lr dW / (sqrt(h) + 1e-7).

    Parameters
    ----------
    lr : float, default 0.01
        The learning rate.
    decay_rate : float, default 0.99
        The decay of the mean h.
    """

    def __init__(self, lr: float = 0.01, decay_rate: float = 0.99) -> None:
        super().__init__(lr, decay_rate)


class Adam(optimisers.Adam):
    """The book's Adam: m <- m + (1 - beta1) (dW - m); v <- v + (1 - beta2) (dW² - v).

    W <- W - lr_t m / (sqrt(v) + 1e-7), with lr_t = lr sqrt(1 - beta2^t) / (1 - beta1^t) at the t-th
    update.

    Parameters
    ----------
    lr : float, default 0.001
        The learning rate.
    beta1 : float, default 0.9
        The decay of the mean of the gradient.
    beta2 : float, default 0.999
        The decay of the mean of its square.

    Notes
    -----
    ``numba_rnn.training.Adam``, and the paper's algorithm 1, add 1e-8 to the root of the corrected
    v, v / (1 - beta2^t), instead. The two differ while gradients or t are small.
    """

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> None:
        super().__init__(lr, beta1, beta2, eps=1e-7)

    def _numbers(self) -> tuple[float, ...]:
        """With eps / sqrt(bias2): beside the root of the corrected v it is eps beside the raw."""
        *numbers, root2, eps = super()._numbers()
        return *numbers, root2, eps / root2
