"""The functions of ``functions.py`` on SIMD vectors.

sigmoid, tanh, exp and softplus rest on exp in parts that lose nothing:

    exp(x) = 2^n (1 + p)    p = exp(r) - 1 with r = x - n ln 2, |r| <= ln(2) / 2

n is rounded by adding a large constant, whose low mantissa bits then hold n and become the
exponent of 2^n by a shift; p is a polynomial, whose terms are added in pairs since what takes time
is the longest chain of operations. Its coefficients are interpolated at Chebyshev nodes or fitted
for the least largest error: 4e-9 of exp(x) in float32, 2e-17 in float64.

softplus takes no logarithm: log(1 + e) = 2 atanh(t / 2) with t = 2 e / (2 + e), which is t and a
polynomial in t² <= 4/9, fitted in the same way: 4e-9 of log(1 + e) in float32, 1e-18 in float64.

These four are off by at most 3 units in the last place (tests/test_functions.py).
"""

from .. import functions
from .simd import (
    exponent_from_low_bits,
    fma,
    magnitude,
    maximum,
    minimum,
    register,
    register_versions,
    register_where,
    square_root,
    where,
    with_sign_of,
)

# Added to n, these make its low bits those of the exponent of 2^n: where the mantissa ends with the
# ones, and the exponent's bias.
ROUND32 = 12582912.0 + 127.0  # 1.5 * 2^23
ROUND64 = 6755399441055744.0 + 1023.0  # 1.5 * 2^52


def reduced(x, factor):
    """n + ROUND, n and p of exp(factor * x)."""


def _reduced_float32(x, factor):
    shifted = fma(x, 1.44269504088896341 * factor, ROUND32)
    n = shifted - ROUND32
    r = fma(n, -0.693359375, x * factor)  # less n ln 2, ln 2 in two parts
    r = fma(n, 2.12194440e-4, r)
    r2 = r * r
    p = fma(fma(r, 0.1666651964187622, 0.4999999403953552), r2, r)
    q = fma(r2, 0.0013814173871651292, fma(r, 0.008368921466171741, 0.04166840761899948))
    return shifted, n, fma(q, r2 * r2, p)


def _reduced_float64(x, factor):
    shifted = fma(x, 1.4426950408889634074 * factor, ROUND64)
    n = shifted - ROUND64
    r = fma(n, -6.93145751953125e-1, x * factor)
    r = fma(n, -1.42860682030941723212e-6, r)
    r2 = r * r
    r4 = r2 * r2
    p = fma(fma(r, 0.16666666666666669, 0.5000000000000001), r2, r)
    q = fma(r, 0.008333333333329954, 0.04166666666662348)
    q = fma(fma(r, 0.00019841269863453472, 0.0013888888917537852), r2, q)
    t = fma(r, 2.7557267930388147e-06, 2.480152079389527e-05)
    t = fma(fma(r, 2.510061553484457e-08, 2.762032670531763e-07), r2, t)
    return shifted, n, fma(fma(t, r4, q), r4, p)


def exp_parts(x, factor):
    """2^n and p of exp(factor * x), for x >= 0 and a factor of -1 or -2."""


def _exp_parts_float32(x, factor):
    largest = -88.0 / factor  # 2^n is then 0, or the smallest normal number
    shifted, _, p = reduced(where(x > largest, largest, x), factor)
    return exponent_from_low_bits(shifted), p


def _exp_parts_float64(x, factor):
    largest = -709.0 / factor
    shifted, _, p = reduced(where(x > largest, largest, x), factor)
    return exponent_from_low_bits(shifted), p


def _exp_float32(x):
    """2^half (1 + p) 2^rest, as 2^n itself is no normal number at either end."""
    x = where(x > 89.0, 89.0, where(x < -104.0, -104.0, x))  # inf and 0
    _, n, p = reduced(x, 1.0)
    half = fma(n, 0.5, ROUND32)
    rest = n - (half - ROUND32) + ROUND32
    s = exponent_from_low_bits(half)
    return fma(s, p, s) * exponent_from_low_bits(rest)


def _exp_float64(x):
    x = where(x > 710.0, 710.0, where(x < -746.0, -746.0, x))
    _, n, p = reduced(x, 1.0)
    half = fma(n, 0.5, ROUND64)
    rest = n - (half - ROUND64) + ROUND64
    s = exponent_from_low_bits(half)
    return fma(s, p, s) * exponent_from_low_bits(rest)


def log_of_one_plus(e):
    """log(1 + e), for e from 0 to 1."""


def _log_of_one_plus_float32(e):
    t = e / fma(e, 0.5, 1.0)
    z = t * t
    p = fma(fma(z, 5.47109825e-4, 2.18764039e-3), z * z, fma(z, 1.25067275e-2, 8.33330203e-2))
    return fma(t * z, p, t)


def _log_of_one_plus_float64(e):
    t = e / fma(e, 0.5, 1.0)
    z = t * t
    z2 = z * z
    p = fma(z, 0.012500000000048477827, 0.083333333333332887062)
    p = fma(fma(z, 0.00043402781159590068677, 0.0022321428553216201156), z2, p)
    q = fma(z, 1.8782407745429984311e-5, 8.8778049205246517229e-5)
    q = fma(fma(z, 9.2353418233068702183e-7, 4.0591800006332636017e-6), z2, q)
    q = fma(fma(z, 8.1108903647632562687e-8, 1.5916753698092444359e-7), z2 * z2, q)
    return fma(t * z, fma(q, z2 * z2, p), t)


def _softplus(x):
    s, p = exp_parts(magnitude(x), -1.0)
    return where(x > 0.0, x, 0.0) + log_of_one_plus(fma(s, p, s))


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


# ---- known to Numba by the names that they are called by

register_versions(reduced, _reduced_float32, _reduced_float64)
register_versions(exp_parts, _exp_parts_float32, _exp_parts_float64)
register_versions(log_of_one_plus, _log_of_one_plus_float32, _log_of_one_plus_float64)

register_versions(functions.sigmoid, _sigmoid)
register_versions(functions.tanh, _tanh)
register_versions(functions.relu, lambda x: where(x < 0.0, 0.0, x))
register_versions(functions.drelu, lambda y: where(y > 0.0, 1.0, y * 0.0))
register_versions(functions.exp, _exp_float32, _exp_float64)
register_versions(functions.softplus, _softplus)
register_versions(functions.absolute, lambda x: magnitude(x))
register_versions(functions.sqrt, lambda x: square_root(x))
register(functions.maximum, maximum)
register(functions.minimum, minimum)
for _composite in functions.COMPOSITES:
    register_versions(_composite, _composite)
register_where(functions.where)
