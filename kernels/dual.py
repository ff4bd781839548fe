"""Dual numbers: an array and its tangent, which NumPy's operations carry along.

An operation on a ``Dual`` computes the value as it would without it, and beside it the derivative
of the value in the direction of the tangents that went in. So a program that is written for arrays,
run on duals, is its own forward-mode derivative: the NumPy engine's ``forward`` gives
Jacobian-vector products, its ``backward`` those of the gradient, which are Hessian-vector products.
Value and tangent may be duals themselves, which gives derivatives of higher order; then every array
that has tangents is such a dual.

There are rules for what the NumPy engine, the options of a step and ``functions.py`` do. At a kink
the slope is that of ``autodiff/gradient.py``: of equal numbers the second is chosen, and a constant
before the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any


class Dual(np.lib.mixins.NDArrayOperatorsMixin):
    """An array and its tangent, which has its shape and dtype."""

    __slots__ = ("tangent", "value")

    def __init__(self, value: Array, tangent: Array) -> None:
        self.value, self.tangent = value, tangent

    def __repr__(self) -> str:
        return f"Dual({self.value!r}, {self.tangent!r})"

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    dtype = property(lambda self: self.value.dtype)
    T = property(lambda self: Dual(self.value.T, self.tangent.T))

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, key: Any) -> "Dual":
        return Dual(self.value[key], self.tangent[key])

    def _linear(self, name: str, *args: Any, **named: Any) -> "Dual":
        """A method that is linear in the array."""
        parts = (getattr(part, name)(*args, **named) for part in (self.value, self.tangent))
        return Dual(*parts)

    def reshape(self, *shape: Any) -> "Dual":
        return self._linear("reshape", *shape)

    def sum(self, axis: int, keepdims: bool = False) -> "Dual":
        return self._linear("sum", axis=axis, keepdims=keepdims)

    def mean(self, axis: int, keepdims: bool = False) -> "Dual":
        return self._linear("mean", axis=axis, keepdims=keepdims)

    def copy(self) -> "Dual":
        return self._linear("copy")

    def astype(self, dtype: Any, copy: bool = True) -> "Dual":
        return self._linear("astype", dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None) -> Any:
        """The value and its tangent; ``a += b`` makes a new dual."""
        if method != "__call__":
            return NotImplemented
        values = [value_of(x) for x in inputs]
        y = ufunc(*values)
        if ufunc in _STEPS:
            return y
        if ufunc not in _RULES:
            return NotImplemented
        tangents = [x.tangent if isinstance(x, Dual) else None for x in inputs]
        with np.errstate(divide="ignore", invalid="ignore"):
            tangent = _RULES[ufunc](y, *values, *tangents)
        return Dual(y, _broadcast(tangent, y.shape))

    def __array_function__(self, function: Any, types: Any, args: Any, named: Any) -> Any:
        if function is np.where:
            condition, a, b = args
            y = np.where(condition, value_of(a), value_of(b))
            return Dual(y, np.where(condition, tangent_or_0(a), tangent_or_0(b)))
        if function not in _LINEAR:
            return NotImplemented
        first, *others = args
        of_one = isinstance(first, Dual)
        values, tangents = (
            function(part(first) if of_one else [part(x) for x in first], *others, **named)
            for part in (value_of, tangent_of)
        )
        if isinstance(values, list):
            return [Dual(v, t) for v, t in zip(values, tangents, strict=True)]
        return Dual(values, tangents)


def value_of(x: Any) -> Any:
    """The value of a dual; anything else itself."""
    return x.value if isinstance(x, Dual) else x


def tangent_of(x: Any) -> Any:
    """The tangent of a dual; zeros for an array without one."""
    return x.tangent if isinstance(x, Dual) else np.zeros_like(x)


def tangent_or_0(x: Any) -> Any:
    """The tangent of a dual; else a 0 that has no dtype."""
    return x.tangent if isinstance(x, Dual) else 0


def lifted(x: Array, tangents: Sequence[Array | None]) -> Array:
    """The array as a dual in several directions, one within the other; None: zeros.

    In one direction an array without a tangent stays as it is, which costs nothing.
    """
    if not tangents or (len(tangents) == 1 and tangents[0] is None):
        return x
    *others, last = (np.zeros_like(x) if t is None else t for t in tangents)
    return Dual(lifted(x, others), lifted(last, [np.zeros_like(x)] * len(others)))


def highest(x: Any, order: int) -> Any:
    """The derivative in all directions of a dual in so many."""
    for _ in range(order):
        x = tangent_of(x)
    return x


def _broadcast(tangent: Array, shape: tuple[int, ...]) -> Array:
    return tangent if tangent.shape == shape else np.broadcast_to(tangent, shape)


def _times(rule: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The rule of a function of one number, of its slope from output and argument."""
    return lambda y, a, ta: ta * rule(y, a)


def _product(multiply: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def rule(y: Any, a: Any, b: Any, ta: Any, tb: Any) -> Any:
        if ta is None:
            return multiply(a, tb)
        return multiply(ta, b) if tb is None else multiply(ta, b) + multiply(a, tb)

    return rule


def _difference(y: Any, a: Any, b: Any, ta: Any, tb: Any) -> Any:
    if ta is None:
        return -tb
    return ta if tb is None else ta - tb


def _quotient(y: Any, a: Any, b: Any, ta: Any, tb: Any) -> Any:
    if tb is None:
        return ta / b
    return (-y * tb if ta is None else ta - y * tb) / b


def _choice(chosen: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def rule(y: Any, a: Any, b: Any, ta: Any, tb: Any) -> Any:
        if ta is None:  # a constant is chosen of equal numbers
            a, b, ta, tb = b, a, tb, ta
        return np.where(chosen(a, b), ta, 0 if tb is None else tb)

    return rule


_RULES: dict[Any, Callable[..., Any]] = {
    np.add: lambda y, a, b, ta, tb: tb if ta is None else ta if tb is None else ta + tb,
    np.subtract: _difference,
    np.multiply: _product(np.multiply),
    np.matmul: _product(np.matmul),
    np.divide: _quotient,
    np.negative: lambda y, a, ta: -ta,
    np.exp: _times(lambda y, a: y),
    np.tanh: _times(lambda y, a: 1 - y * y),
    np.log1p: _times(lambda y, a: 1 / (1 + a)),
    np.sqrt: _times(lambda y, a: 0.5 / y),
    np.absolute: _times(lambda y, a: np.sign(a)),
    np.maximum: _choice(np.greater),
    np.minimum: _choice(np.less),
}
_STEPS = {np.less, np.less_equal, np.greater, np.greater_equal, np.heaviside, np.sign}
_LINEAR = {np.split, np.stack, np.concatenate, np.broadcast_to}
