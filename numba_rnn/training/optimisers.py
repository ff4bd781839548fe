"""Optimisers: how a step is made of a gradient.

All share ``update(params, grads)``, which changes the parameters in place, and ``lr``, which may
be changed between updates. What an optimiser remembers of the past (its slots: a momentum, a mean
of squares) is one array per parameter, kept by position: call it with the same list each time.
"""

from typing import Any

import numpy as np

from ..checks import Array, expect_array, expect_choice, expect_float


class Optimiser:
    """Base of the optimisers; a subclass names its slots and updates one parameter."""

    slots: tuple[str, ...] = ()

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.updates = 0
        self._memory: list[tuple[Array, ...]] | None = None

    @property
    def lr(self) -> float:
        """The learning rate; may be set between updates."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = expect_float("lr", value, 0, low_open=True)

    def update(self, params: list[Array], grads: list[Array]) -> None:
        """Change every parameter in place by its gradient.

        Raises ValueError or TypeError where the two lists do not match.
        """
        if len(params) != len(grads):
            raise ValueError(f"grads: expected {len(params)} arrays, as params, got {len(grads)}")
        if self._memory is None:
            self._memory = [tuple(np.zeros_like(p) for _ in self.slots) for p in params]
        if len(params) != len(self._memory):
            raise ValueError(
                f"params: expected {len(self._memory)} arrays, as at the first update, "
                f"got {len(params)}"
            )
        self.updates += 1
        for k, (param, grad, memory) in enumerate(zip(params, grads, self._memory, strict=True)):
            expect_array(f"grads[{k}]", grad, param.shape, param.dtype)
            self._update(param, grad, *memory)

    def _update(self, param: Array, grad: Array, *memory: Array) -> None:
        raise NotImplementedError

    def state(self) -> tuple[dict[str, float], dict[str, Array]]:
        """What a checkpoint needs: numbers (lr, updates, options) and arrays (slot/position)."""
        arrays = {
            f"{slot}/{k}": array
            for k, memory in enumerate(self._memory or [])
            for slot, array in zip(self.slots, memory, strict=True)
        }
        return {"lr": self.lr, "updates": self.updates, **self._options()}, arrays

    def _options(self) -> dict[str, float]:
        """What the constructor was given besides lr."""
        return {k: v for k, v in vars(self).items() if k != "updates" and not k.startswith("_")}

    def restore(self, numbers: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Take up the state that ``state`` returned.

        Raises ValueError where it is that of an optimiser with other options.
        """
        for name, mine in self._options().items():
            if numbers.get(name) != mine:
                raise ValueError(f"{name}: expected {mine}, as before, got {numbers.get(name)}")
        self.lr, self.updates = numbers["lr"], int(numbers["updates"])
        if self.updates and self.slots:
            count = len(arrays) // len(self.slots)
            self._memory = [
                tuple(arrays[f"{slot}/{k}"].copy() for slot in self.slots) for k in range(count)
            ]
        else:
            self._memory = None


class SGD(Optimiser):
    """Stochastic gradient descent: W <- W - lr dW."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)

    def _update(self, param: Array, grad: Array, *memory: Array) -> None:
        param -= self.lr * grad


class Momentum(Optimiser):
    """v <- momentum v - lr dW;  W <- W + v (Polyak 1964)."""

    slots = ("v",)

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = expect_float("momentum", momentum, 0, 1)

    def _update(self, param: Array, grad: Array, *memory: Array) -> None:
        (v,) = memory
        v *= self.momentum
        v -= self.lr * grad
        param += v


class AdaGrad(Optimiser):
    """h <- h + dW²;  W <- W - lr dW / sqrt(h) (Duchi et al. 2011)."""

    slots = ("h",)

    def __init__(self, lr: float = 0.01, eps: float = 1e-7) -> None:
        super().__init__(lr)
        self.eps = expect_float("eps", eps, 0, low_open=True)

    def _update(self, param: Array, grad: Array, *memory: Array) -> None:
        (h,) = memory
        h += grad * grad
        param -= self.lr * grad / (np.sqrt(h) + self.eps)


class RMSProp(Optimiser):
    """h <- decay h + (1 - decay) dW²;  W <- W - lr dW / sqrt(h) (Tieleman & Hinton 2012)."""

    slots = ("h",)

    def __init__(self, lr: float = 0.01, decay: float = 0.99, eps: float = 1e-7) -> None:
        super().__init__(lr)
        self.decay = expect_float("decay", decay, 0, 1)
        self.eps = expect_float("eps", eps, 0, low_open=True)

    def _update(self, param: Array, grad: Array, *memory: Array) -> None:
        (h,) = memory
        h *= self.decay
        h += (1 - self.decay) * grad * grad
        param -= self.lr * grad / (np.sqrt(h) + self.eps)


class Adam(Optimiser):
    """Adaptive moments, bias corrected (Kingma & Ba 2015, algorithm 1)."""

    slots = ("m", "v")

    def __init__(
        self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(lr)
        self.beta1 = expect_float("beta1", beta1, 0, 1)
        self.beta2 = expect_float("beta2", beta2, 0, 1)
        self.eps = expect_float("eps", eps, 0, low_open=True)

    def _update(self, param: Array, grad: Array, *memory: Array) -> None:
        m, v = memory
        m += (1 - self.beta1) * (grad - m)
        v += (1 - self.beta2) * (grad * grad - v)
        m_hat = m / (1 - self.beta1**self.updates)
        v_hat = v / (1 - self.beta2**self.updates)
        param -= self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""

    def __init__(
        self,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps)
        self.weight_decay = expect_float("weight_decay", weight_decay, 0)

    def _update(self, param: Array, grad: Array, *memory: Array) -> None:
        param *= 1 - self.lr * self.weight_decay
        super()._update(param, grad, *memory)


_BY_NAME: dict[str, type[Optimiser]] = {
    kind.__name__.lower(): kind for kind in (SGD, Momentum, AdaGrad, RMSProp, Adam, AdamW)
}
NAMES = tuple(_BY_NAME)


def create(name: str, **options: Any) -> Optimiser:
    """The optimiser of that name: sgd, momentum, adagrad, rmsprop, adam or adamw."""
    return _BY_NAME[expect_choice("optimiser", name, NAMES)](**options)
