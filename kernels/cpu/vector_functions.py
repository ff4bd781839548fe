"""sigmoid, tanh, relu and their derivatives (``functions.py``) on SIMD vectors.

They rest on exp for arguments that are not positive: exp(x) = 2^n exp(r) with |r| <= ln(2)/2, n
rounded by adding a large constant, whose low mantissa bits then hold n and become the exponent of
2^n by a shift. sigmoid is off by at most 2 units in the last place, tanh by 1 (tests/
test_functions.py). Coefficients: Cephes mathematical library (Moshier).
"""

from numba.core import types
from numba.extending import overload

from .. import functions
from .simd import VectorType, exponent_from_low_bits, fma, magnitude, where


def _exp_of_negative_float32(x):
    x = where(x < -88.0, -88.0, x)  # 2^n is then 0, or the smallest normal number
    shifted = fma(x, 1.44269504088896341, 12582912.0 + 127.0)  # 1.5 * 2^23 + exponent bias
    n = shifted - (12582912.0 + 127.0)
    r = fma(n, -0.693359375, x)  # x - n ln 2, ln 2 in two parts
    r = fma(n, 2.12194440e-4, r)
    p = fma(r, 1.9875691500e-4, 1.3981999507e-3)
    p = fma(p, r, 8.3334519073e-3)
    p = fma(p, r, 4.1665795894e-2)
    p = fma(p, r, 1.6666665459e-1)
    p = fma(p, r, 5.0000001201e-1)
    return (fma(p, r * r, r) + 1.0) * exponent_from_low_bits(shifted)


def _exp_of_negative_float64(x):
    x = where(x < -709.0, -709.0, x)
    shifted = fma(x, 1.4426950408889634074, 6755399441055744.0 + 1023.0)  # 1.5 * 2^52 + bias
    n = shifted - (6755399441055744.0 + 1023.0)
    r = fma(n, -6.93145751953125e-1, x)
    r = fma(n, -1.42860682030941723212e-6, r)
    z = r * r
    p = fma(z, 1.26177193074810590878e-4, 3.02994407707441961300e-2)
    p = r * fma(p, z, 9.99999999999999999910e-1)
    q = fma(z, 3.00198505138664455042e-6, 2.52448340349684104192e-3)
    q = fma(q, z, 2.27265548208155028766e-1)
    q = fma(q, z, 2.0)
    return fma(p / (q - p), 2.0, 1.0) * exponent_from_low_bits(shifted)


def _tanh_of_small_float32(x):
    z = x * x
    p = fma(z, -5.70498872745e-3, 2.06390887954e-2)
    p = fma(p, z, -5.37397155531e-2)
    p = fma(p, z, 1.33314422036e-1)
    p = fma(p, z, -3.33332819422e-1)
    return fma(p * z, x, x)


def _tanh_of_small_float64(x):
    z = x * x
    p = fma(z, -9.64399179425052238628e-1, -9.92877231001918586564e1)
    p = fma(p, z, -1.61468768441708447952e3)
    q = fma(z, 1.0, 1.12811678491632931402e2)
    q = fma(q, z, 2.23548839060100448583e3)
    q = fma(q, z, 4.84406305325125486048e3)
    return fma(p / q * z, x, x)


def exp_of_negative(x):
    """exp(x) for x <= 0; below the smallest normal number it is 0."""


def _tanh_of_small(x):
    """tanh(x) for |x| < 0.625."""


def _per_dtype(stub, float32, float64):
    """Register one implementation for each dtype of vector."""

    @overload(stub)
    def implementation(x):
        if isinstance(x, VectorType):
            return float32 if x.dtype == types.float32 else float64
        return None


_per_dtype(exp_of_negative, _exp_of_negative_float32, _exp_of_negative_float64)
_per_dtype(_tanh_of_small, _tanh_of_small_float32, _tanh_of_small_float64)


def _sigmoid(x):
    e = exp_of_negative(-magnitude(x))
    return where(x < 0.0, e, 1.0) / (1.0 + e)


def _tanh(x):
    e = exp_of_negative(-2.0 * magnitude(x))
    large = (1.0 - e) / (1.0 + e)
    signed = where(x < 0.0, -large, large)
    return where(magnitude(x) < 0.625, _tanh_of_small(x), signed)


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
