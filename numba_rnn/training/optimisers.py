"""Optimisers: how a step is made of a gradient.

All share ``update(params, grads)``, which changes the parameters in place, and ``lr``, which may
be changed between updates. An optimiser keeps its slots (a momentum, a mean of squares) by
position, one array per parameter: call it with the same list each time.

Each is a rule, a plain function of numbers: (W, slots, dW, numbers) -> new W, new slots. The
engine applies it to whole arrays, where the parameters are. It multiplies what is remembered by its
share instead of adding a share of a difference: where squares overflow inf - inf would be NaN. A
mean of squares that is infinite stays so, as in PyTorch, and that place of the parameter stays too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import Engine, engine_of_param, move, to_host
from ..kernels.functions import sqrt
from ..kernels.quantisation import expect_trainable
from ..kernels.sparse_rows import SparseRows, numbers_of
from ..typing import Array, Scalar
from ..validation import (
    expect_array,
    expect_choice,
    expect_finite,
    expect_float,
    expect_ids,
    expect_int,
    expect_writable,
    format_shape,
    validate_array,
)
from .accumulation import apply_rule

_ONE_EACH = "this optimiser has been used for other parameters, each model needs its own"


class Optimiser:
    """Base class of the optimisers. A subclass names its slots and its rule.

    Parameters
    ----------
    lr : float
        The learning rate, larger than 0.

    Attributes
    ----------
    slots : tuple of str
        The names of the arrays that the optimiser keeps for each parameter, in the order in which
        the rule takes them.
    squares : tuple of str
        Those slots that are sums or means of squares.
    rule : callable
        ``(W, *slots, dW, *numbers) -> (W, *slots)``; see ``Engine.update``. The method
        ``_numbers`` returns the numbers of the current update.
    lazy : bool
        Whether a gradient may be a ``SparseRows``, whose other rows of the parameter and of the
        slots then stay as they are.
    updates : int
        The number of updates so far.
    """

    lazy = False
    slots: tuple[str, ...] = ()
    squares: tuple[str, ...] = ()
    rule: Callable[..., tuple[Any, ...]]

    def _numbers(self) -> tuple[float, ...]:
        raise NotImplementedError

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.updates = 0
        self._memory: list[tuple[Array, ...]] | None = None

    @property
    def lr(self) -> float:
        """The learning rate; it may be set between updates."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = expect_float("lr", value, 0, low_open=True)

    def update(
        self,
        params: Sequence[Array],
        grads: Sequence[Array | SparseRows],
        *,
        max_norm: float | None = None,
        check_finite: bool = True,
    ) -> Scalar | None:
        """Change every parameter in place, where the parameters are.

        If an error is raised, no parameter has changed.

        Parameters
        ----------
        params : list of arrays
            The parameters.
        grads : list of arrays or SparseRows
            One gradient for each parameter, in its shape and dtype.
        max_norm : float, optional
            The largest norm of all gradients together: the step is that of gradients after
            ``clip_grads``, which here stay as they are.
        check_finite : bool, default True
            Whether to search the gradients for NaN and infinity first, which reads them once more
            (a fifth to a third of the time). With ``max_norm`` the norm finds them in any case.

        Returns
        -------
        norm : float, 0-d array or None
            The norm of all gradients together, before clipping; on a GPU a 0-d array, and None
            without ``max_norm``, if it is on a GPU or not ``check_finite``.

        Raises
        ------
        ValueError, TypeError
            If the two lists do not match, a parameter is not a writeable floating-point array, or a
            gradient is not finite; the message names the array. (Gradients on a GPU are not
            searched for NaN, because that would wait for the device.)
        """
        if len(params) != len(grads):
            raise ValueError(f"grads: expected {len(params)} arrays, as params, got {len(grads)}")
        expect_trainable(params)
        engines = [engine_of_param(param) for param in params]
        for k, (engine, param) in enumerate(zip(engines, params, strict=True)):
            expect_array(f"params[{k}]", param, param.shape, None, engine)
            expect_writable(f"params[{k}]", param)
        memory = self._memory_for(params, engines)
        accepted: list[Any] = [
            self._accepted(f"grads[{k}]", grad, param, engine)
            for k, (engine, param, grad) in enumerate(zip(engines, params, grads, strict=True))
        ]
        values = numbers_of(accepted)
        on_host = all(isinstance(grad, np.ndarray) for grad in values)
        checked = check_finite or max_norm is not None
        norm, factor = _norm_and_factor(engines, values, max_norm, on_host and checked)
        if checked and not (on_host and math.isfinite(norm)):
            for k, grad in enumerate(numbers_of(grads)):
                if isinstance(grad, np.ndarray):
                    expect_finite(f"grads[{k}]", grad)
            if max_norm is not None and on_host:
                raise ValueError(f"grads: expected a norm that can be clipped, got {norm}")
        if isinstance(factor, float) and any(factor < np.finfo(g.dtype).tiny for g in accepted):
            accepted = [grad.copy() for grad in accepted]
            engines[0].clip_norm(numbers_of(accepted), max_norm or 1.0)
            factor = 1.0
        self._memory, before = memory, self._memory
        self.updates += 1
        numbers = self._numbers()
        groups = [
            (param, *slots, grad)
            for param, slots, grad in zip(params, memory, accepted, strict=True)
        ]
        try:
            apply_rule(self.rule, groups, numbers, factor)
        except Exception:  # of a rule
            self._memory, self.updates = before, self.updates - 1
            raise
        return norm

    def expect_kind(self, name: str, grad: Any) -> None:
        """Refuse a ``SparseRows`` where the rule changes other rows too.

        Parameters
        ----------
        name : str
            The name of the gradient in the message.
        grad : array or SparseRows
            A gradient.

        Raises
        ------
        TypeError
            If it is a ``SparseRows``, and ``lazy`` is False.
        """
        if isinstance(grad, SparseRows) and not self.lazy:
            raise TypeError(
                f"{name}: expected an array, because {type(self).__name__} changes rows without a "
                "gradient too, got SparseRows; SGD, AdaGrad and Adam(lazy=True) take these, "
                "TimeEmbedding(..., sparse=False) makes none"
            )

    def _accepted(self, name: str, grad: Any, param: Array, engine: Engine) -> Any:
        """A gradient that fits, where the engine has its arrays."""
        if not isinstance(grad, SparseRows):
            return validate_array(name, grad, param.shape, param.dtype, engine)
        self.expect_kind(name, grad)
        if grad.shape != param.shape:
            raise ValueError(
                f"{name}: expected shape {format_shape(param.shape)}, got "
                f"{format_shape(grad.shape)}"
            )
        shape, rows = (*np.shape(grad.rows), *param.shape[1:]), grad.rows
        values = validate_array(f"{name}.values", grad.values, shape, param.dtype, engine)
        if isinstance(rows, np.ndarray) or not engine.is_native(rows):
            # those on a device are not looked at, which would be to wait for it
            expect_ids(f"{name}.rows", rows, ("N",), len(param))
            if not (rows[1:] > rows[:-1]).all():
                raise ValueError(f"{name}.rows: expected numbers that increase, got {rows}")
            rows = engine.to_device(rows.astype(np.int64))
        return SparseRows(rows, values, grad.shape)

    def _memory_for(
        self, params: Sequence[Array], engines: list[Engine]
    ) -> list[tuple[Array, ...]]:
        """The slots of each parameter, where it is; zeros before the first update."""
        if self._memory is None:
            return [
                tuple(engine.xp.zeros_like(p) for _ in self.slots)
                for engine, p in zip(engines, params, strict=True)
            ]
        if len(params) != len(self._memory):
            raise ValueError(
                f"params: expected {len(self._memory)} arrays, as at the first update, "
                f"got {len(params)}; {_ONE_EACH}"
            )
        for k, (param, slots) in enumerate(zip(params, self._memory, strict=True)):
            if slots and slots[0].shape != param.shape:
                raise ValueError(
                    f"params[{k}]: expected shape {format_shape(slots[0].shape)}, as at the first "
                    f"update, got {format_shape(param.shape)}; {_ONE_EACH}"
                )
            for slot in slots:
                if slot.dtype != param.dtype:
                    raise TypeError(
                        f"params[{k}]: expected {slot.dtype}, as at the first update, "
                        f"got {param.dtype}; {_ONE_EACH}"
                    )
        # the parameters may have moved since, or the slots come from a checkpoint
        return [
            tuple(move(slot, engine) for slot in slots)
            for engine, slots in zip(engines, self._memory, strict=True)
        ]

    def state(self) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the state of the optimiser for a checkpoint.

        Returns
        -------
        numbers : dict of str to float
            lr, updates and the options of the optimiser.
        arrays : dict of str to array
            The slots as NumPy arrays, named slot/position, wherever the parameters are.
        """
        arrays = {
            f"{slot}/{k}": to_host(array)
            for k, memory in enumerate(self._memory or [])
            for slot, array in zip(self.slots, memory, strict=True)
        }
        return {"lr": self.lr, "updates": self.updates, **self._options()}, arrays

    def _options(self) -> dict[str, float]:
        """The constructor's arguments besides lr."""
        return {k: v for k, v in vars(self).items() if k != "updates" and not k.startswith("_")}

    def restore(self, numbers: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Set the state to a result of ``state``. If an error is raised, nothing has changed.

        Parameters
        ----------
        numbers : dict of str to float
            The numbers that ``state`` returned.
        arrays : dict of str to array
            The arrays that ``state`` returned.

        Raises
        ------
        ValueError, TypeError
            If the state is incomplete, is one that no update leaves behind, or is that of an
            optimiser with other options.
        """
        for name, mine in self._options().items():
            # a checkpoint that does not say has what the class says
            theirs = numbers.get(name, getattr(type(self), name, None))
            if theirs != mine:
                raise ValueError(f"{name}: expected {mine}, as before, got {theirs}")
        lr = expect_float("lr", numbers.get("lr"), 0, low_open=True)
        updates = expect_int("updates", numbers.get("updates"), 0)
        for name in arrays:
            if name.rpartition("/")[0] not in self.slots:
                raise ValueError(f"{name}: expected {', '.join(self.slots) or 'no'} arrays")
        if self.slots and bool(updates) != bool(arrays):
            expected = f"{self.slots[0]}/0 and so on" if updates else "no arrays"
            raise ValueError(
                f"updates: expected {expected} after {updates} updates, got {len(arrays)} arrays"
            )
        memory = []
        for k in range(-(-len(arrays) // max(1, len(self.slots)))):
            names = [f"{slot}/{k}" for slot in self.slots]
            shape = getattr(arrays.get(names[0]), "shape", ())
            for slot, name in zip(self.slots, names, strict=True):
                expect_array(name, arrays.get(name), shape)
                _expect_possible(name, arrays[name], slot in self.squares)
            memory.append(tuple(arrays[name].copy() for name in names))
        self.lr, self.updates, self._memory = lr, updates, memory or None


def _expect_possible(name: str, array: Array, squares: bool) -> None:
    """Refuse what no update leaves: NaN, squares below 0, infinity where they are no squares."""
    if not squares:
        expect_finite(name, array)
    elif not (array >= 0).all():
        where = tuple(int(i) for i in np.argwhere(~(array >= 0))[0])
        raise ValueError(
            f"{name}: expected squares, none below 0, got {array[where]} at {format_shape(where)}"
        )


def _norm_and_factor(
    engines: Sequence[Engine], grads: Sequence[Array], max_norm: float | None, checked: bool
) -> tuple[Any, Any]:
    """The norm of all gradients, None where nobody asks for it, and what clips them."""
    if max_norm is not None:
        limit = expect_float("max_norm", max_norm, 0, low_open=True)
        if len(set(engines)) > 1:
            raise ValueError("max_norm: expected parameters in one memory, got some on a device")
        return engines[0].clip_factor(grads, limit) if grads else (0.0, 1.0)
    if not checked:
        return None, 1.0
    return engines[0].norm(grads) if grads else 0.0, 1.0


def _sgd(W: Any, dW: Any, lr: float) -> tuple[Any, ...]:
    return (W - lr * dW,)


class SGD(Optimiser):
    """Stochastic gradient descent: W <- W - lr dW.

    Parameters
    ----------
    lr : float, default 0.01
        The learning rate.
    """

    lazy = True
    rule = staticmethod(_sgd)

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)

    def _numbers(self) -> tuple[float, ...]:
        return (self.lr,)


def _momentum(W: Any, v: Any, dW: Any, lr: float, momentum: float) -> tuple[Any, ...]:
    v = v * momentum - lr * dW
    return W + v, v


class Momentum(Optimiser):
    """Gradient descent with momentum: v <- momentum v - lr dW; W <- W + v.

    Parameters
    ----------
    lr : float, default 0.01
        The learning rate.
    momentum : float, default 0.9
        The decay of the velocity v.

    References
    ----------
    - Polyak 1964, *Some methods of speeding up the convergence of iteration methods*.
    """

    slots = ("v",)
    rule = staticmethod(_momentum)

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = expect_float("momentum", momentum, 0, 1)

    def _numbers(self) -> tuple[float, ...]:
        return self.lr, self.momentum


def _adagrad(W: Any, h: Any, dW: Any, lr: float, eps: float) -> tuple[Any, ...]:
    h = h + dW * dW
    return W - lr * (dW / (sqrt(h) + eps)), h


class AdaGrad(Optimiser):
    """AdaGrad: h <- h + dW²; W <- W - lr dW / sqrt(h).

    Parameters
    ----------
    lr : float, default 0.01
        The learning rate.
    eps : float, default 1e-7
        It is added to the root.

    References
    ----------
    - Duchi et al. 2011, *Adaptive subgradient methods*.
    """

    lazy = True
    slots = squares = ("h",)
    rule = staticmethod(_adagrad)

    def __init__(self, lr: float = 0.01, eps: float = 1e-7) -> None:
        super().__init__(lr)
        self.eps = expect_float("eps", eps, 0, low_open=True)

    def _numbers(self) -> tuple[float, ...]:
        return self.lr, self.eps


def _rmsprop(
    W: Any, h: Any, dW: Any, lr: float, decay: float, share: float, eps: float
) -> tuple[Any, ...]:
    h = h * decay + share * dW * dW
    return W - lr * (dW / (sqrt(h) + eps)), h


class RMSProp(Optimiser):
    """RMSProp: h <- decay h + (1 - decay) dW²; W <- W - lr dW / sqrt(h).

    Parameters
    ----------
    lr : float, default 0.01
        The learning rate.
    decay : float, default 0.99
        The decay of the mean h.
    eps : float, default 1e-7
        It is added to the root.

    References
    ----------
    - Tieleman & Hinton 2012, lecture 6.5 of *Neural networks for machine learning*.
    """

    slots = squares = ("h",)
    rule = staticmethod(_rmsprop)

    def __init__(self, lr: float = 0.01, decay: float = 0.99, eps: float = 1e-7) -> None:
        super().__init__(lr)
        self.decay = expect_float("decay", decay, 0, 1)
        self.eps = expect_float("eps", eps, 0, low_open=True)

    def _numbers(self) -> tuple[float, ...]:
        return self.lr, self.decay, 1 - self.decay, self.eps


def _adam(
    W: Any, m: Any, v: Any, dW: Any,
    beta1: float, share1: float, beta2: float, share2: float, rate: float, root2: float, eps: float,
) -> tuple[Any, ...]:  # fmt: skip
    m = m * beta1 + share1 * dW
    v = v * beta2 + share2 * dW * dW
    return W - rate * (m / (sqrt(v) / root2 + eps)), m, v


class Adam(Optimiser):
    """Adam: adaptive moments with bias correction.

    Parameters
    ----------
    lr : float, default 0.001
        The learning rate.
    beta1 : float, default 0.9
        The decay of the mean of the gradient.
    beta2 : float, default 0.999
        The decay of the mean of its square.
    eps : float, default 1e-8
        It is added to the root of the corrected second moment.
    lazy : bool, default False
        Whether gradients may be ``SparseRows``, as an embedding with ``sparse=True`` has. Rows
        without a gradient then keep their moments and are not changed, which differs from Adam:
        there the moments decay, and what is left of m changes the row.

    Notes
    -----
    Lazy Adam computes what PyTorch's SparseAdam computes, with eps added to the corrected root. The
    correction of the bias counts all updates, not those of a row.

    The book's form adds 1e-7 to the root of the raw second moment: ``numba_rnn.book.Adam``.

    References
    ----------
    - Kingma & Ba 2015, *Adam*, algorithm 1.
    """

    slots, squares = ("m", "v"), ("v",)
    rule: Callable[..., tuple[Any, ...]] = staticmethod(_adam)

    def __init__(
        self,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        *,
        lazy: bool = False,
    ) -> None:
        super().__init__(lr)
        self.lazy = bool(lazy)
        self.beta1 = expect_float("beta1", beta1, 0, 1)
        self.beta2 = expect_float("beta2", beta2, 0, 1)
        self.eps = expect_float("eps", eps, 0, low_open=True)

    def _numbers(self) -> tuple[float, ...]:
        """The bias of m is corrected in the rate, that of v in its root: v / bias2 may overflow."""
        bias1, bias2 = 1 - self.beta1**self.updates, 1 - self.beta2**self.updates
        shares = self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2
        return *shares, self.lr / bias1, math.sqrt(bias2), self.eps


def _adamw(
    W: Any, m: Any, v: Any, dW: Any,
    beta1: float, share1: float, beta2: float, share2: float, rate: float, root2: float, eps: float,
    keep: float,
) -> tuple[Any, ...]:  # fmt: skip
    m = m * beta1 + share1 * dW
    v = v * beta2 + share2 * dW * dW
    return W * keep - rate * (m / (sqrt(v) / root2 + eps)), m, v


class AdamW(Adam):
    """Adam with decoupled weight decay.

    Parameters
    ----------
    lr : float, default 0.001
        The learning rate.
    beta1 : float, default 0.9
        The decay of the mean of the gradient.
    beta2 : float, default 0.999
        The decay of the mean of its square.
    eps : float, default 1e-8
        It is added to the root of the corrected second moment.
    weight_decay : float, default 0.01
        The share of W that is subtracted at each update, times lr.
    lazy : bool, default False
        As that of Adam; rows without a gradient do not decay either.

    References
    ----------
    - Loshchilov & Hutter 2019, *Decoupled weight decay regularization*, algorithm 2.
    """

    rule = staticmethod(_adamw)

    def __init__(
        self,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        lazy: bool = False,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps, lazy=lazy)
        self.weight_decay = expect_float("weight_decay", weight_decay, 0)

    def _numbers(self) -> tuple[float, ...]:
        return *super()._numbers(), 1 - self.lr * self.weight_decay


_BY_NAME: dict[str, type[Optimiser]] = {
    kind.__name__.lower(): kind for kind in (SGD, Momentum, AdaGrad, RMSProp, Adam, AdamW)
}
NAMES = tuple(_BY_NAME)


def create(name: str, **options: Any) -> Optimiser:
    """The optimiser of that name: sgd, momentum, adagrad, rmsprop, adam or adamw."""
    return _BY_NAME[expect_choice("optimiser", name, NAMES)](**options)
