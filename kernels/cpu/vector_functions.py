"""sigmoid, tanh, relu and their derivatives (``functions.py``) on SIMD vectors.

sigmoid and tanh rest on exp of numbers that are not positive, in two parts that lose nothing:

    exp(x) = s (1 + p)    s = 2^n, p = exp(r) - 1 with r = x - n ln 2, |r| <= ln(2) / 2

n is rounded by adding a large constant, whose low mantissa bits then hold n and become the
exponent of s by a shift; p is a polynomial, whose terms are added in pairs since what takes time
is the longest chain of operations. Its coefficients are interpolated at Chebyshev nodes or fitted
for the least largest error: 4e-9 of exp(x) in float32, 2e-17 in float64. sigmoid and tanh are off
by at most 3 units in the last place (tests/test_functions.py).
"""

from numba.core import types
from numba.extending import overload

from .. import functions
from .simd import VectorType, exponent_from_low_bits, fma, magnitude, where, with_sign_of


def exp_parts(x, factor):
    """s and p of exp(factor * x), for x >= 0 and a factor of -1 or -2."""


def _exp_parts_float32(x, factor):
    largest = -88.0 / factor  # s is then 0, or the smallest normal number
    x = where(x > largest, largest, x)
    shifted = fma(x, 1.44269504088896341 * factor, 12582912.0 + 127.0)  # 1.5 * 2^23 + exponent bias
    n = shifted - (12582912.0 + 127.0)
    r = fma(n, -0.693359375, x * factor)  # less n ln 2, ln 2 in two parts
    r = fma(n, 2.12194440e-4, r)
    r2 = r * r
    p = fma(fma(r, 0.1666651964187622, 0.4999999403953552), r2, r)
    q = fma(r2, 0.0013814173871651292, fma(r, 0.008368921466171741, 0.04166840761899948))
    return exponent_from_low_bits(shifted), fma(q, r2 * r2, p)


def _exp_parts_float64(x, factor):
    largest = -709.0 / factor
    x = where(x > largest, largest, x)
    shifted = fma(x, 1.4426950408889634074 * factor, 6755399441055744.0 + 1023.0)  # 1.5 * 2^52
    n = shifted - (6755399441055744.0 + 1023.0)
    r = fma(n, -6.93145751953125e-1, x * factor)
    r = fma(n, -1.42860682030941723212e-6, r)
    r2 = r * r
    r4 = r2 * r2
    p = fma(fma(r, 0.16666666666666669, 0.5000000000000001), r2, r)
    q = fma(r, 0.008333333333329954, 0.04166666666662348)
    q = fma(fma(r, 0.00019841269863453472, 0.0013888888917537852), r2, q)
    t = fma(r, 2.7557267930388147e-06, 2.480152079389527e-05)
    t = fma(fma(r, 2.510061553484457e-08, 2.762032670531763e-07), r2, t)
    return exponent_from_low_bits(shifted), fma(fma(t, r4, q), r4, p)


@overload(exp_parts)
def _(x, factor):
    if isinstance(x, VectorType):
        return _exp_parts_float32 if x.dtype == types.float32 else _exp_parts_float64
    return None


def _sigmoid(x):
    """1 / (1 + e) or e / (1 + e) with e = exp(-|x|)."""
    s, p = exp_parts(magnitude(x), -1.0)
    e = fma(s, p, s)
    return where(x < 0.0, e, 1.0) / (1.0 + e)


def _tanh(x):
    """(1 - e) / (1 + e) with e = exp(-2 |x|); 1 - e loses nothing, near 0 either."""
    size = magnitude(x)
    s, p = exp_parts(size, -2.0)
    less = fma(s, p, s - 1.0)
    y = -less / (less + 2.0)
    return with_sign_of(where(y > size, size, y), x)  # |tanh(x)| <= |x|, in spite of rounding


@overload(functions.sigmoid)
def _(x):
    return _sigmoid if isinstance(x, VectorType) else None


@overload(functions.tanh)
def _(x):
    return _tanh if isinstance(x, VectorType) else None


@overload(functions.relu)
def _(x):
    return (lambda x: where(x < 0.0, 0.0, x)) if isinstance(x, VectorType) else None


@overload(functions.dsigmoid)
def _(y):  # arithmetic alone: the definition serves as it stands
    return functions.dsigmoid if isinstance(y, VectorType) else None


@overload(functions.dtanh)
def _(y):
    return functions.dtanh if isinstance(y, VectorType) else None


@overload(functions.drelu)
def _(y):
    return (lambda y: where(y > 0.0, 1.0, y * 0.0)) if isinstance(y, VectorType) else None
