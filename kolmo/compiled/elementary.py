"""Exponentials, logarithms and quantiles without branches, which compilers turn into vector instructions.

numba calls the C library for them, one number at a time. Polynomials are minimax by Remez' algorithm:
2^f on [-1/2, 1/2] to 7e-8 (single) and 2e-16 (double), as a quotient to 4.4e-7 and 1.8e-16, atanh(s)/s in
s^2. The normal quantile is PPND16 of Wichura, Applied Statistics 37 (1988), algorithm AS 241. nan passes
through all of them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import extending, types

from kolmo.compiled.jit import inline, part

_EXP2 = {
    "float32": (
        1.000000071653021186, 0.69314696706684349975, 0.24022119724704667915, 0.055507132587386907459,
        0.0096755413633536390999, 0.0013276477808759291614,
    ),
    "float64": (
        1.000000000000000066, 0.69314718055994977434, 0.24022650695908768923, 0.05550410866445887285,
        0.0096181291080341989694, 0.0013333558228555491507, 0.00015403529961607488353,
        0.00001525265811990086996, 1.321566260169008284e-6, 1.0208537294147603226e-7,
        7.0373182851071940722e-9,
    ),
}  # fmt: skip
#: P in f^2, on [-1/2, 1/2]: 2^f = (P + f) / (P - f), single precision to the rounding of 1 - 2 r
_HALVES = {
    "float32": (2.8854079626379256909, 0.11523692458840070221),
    "float64": (
        2.885390081777942708, 0.11552453009204857364, -0.00092506844909743488398,
        0.000010581926420165474883, -1.2605260768372065148e-7,
    ),
}  # fmt: skip
#: up to s = 1/3, for log(1 + e) = 2 atanh(e / (2 + e))
_ATANH = {
    "float32": (
        1.0000000039604662254, 0.33333157342696060891, 0.20012455057252746676, 0.13980302621026381903,
        0.14089161881347718539,
    ),
    "float64": (
        0.99999999999999995424, 0.33333333333341515827, 0.19999999997588695381, 0.1428571456093519989,
        0.11111095193762016707, 0.090914360716311848855, 0.076817437203343177534, 0.067964941805410968232,
        0.049363509252592605285, 0.088984772694826127084,
    ),
}  # fmt: skip
#: up to s = 0.1716, for the logarithm of a mantissa between sqrt(1/2) and sqrt(2)
_ATANH_MANTISSA = (
    0.99999999999999999886, 0.33333333333333826001, 0.19999999999649442222, 0.14285714380673291229,
    0.11111098494116492824, 0.090918175479424690169, 0.076562218488280577253, 0.074052652825767597173,
)  # fmt: skip
# AS 241: numerators and denominators for |u - 1/2| <= 0.425, and for r = sqrt(-log min(u, 1 - u)) up to and
# beyond 5
_CENTRE = (
    3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
    1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
    3.3430575583588128105e4, 2.5090809287301226727e3,
)  # fmt: skip
_CENTRE_BELOW = (
    1.0, 4.2313330701600911252e1, 6.8718700749205790830e2,
    5.3941960214247511077e3, 2.1213794301586595867e4, 3.9307895800092710610e4,
    2.8729085735721942674e4, 5.2264952788528545610e3,
)  # fmt: skip
_TAIL = (
    1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
    3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
    2.27238449892691845833e-2, 7.74545014278341407640e-4,
)  # fmt: skip
_TAIL_BELOW = (
    1.0, 2.05319162663775882187e0, 1.67638483018380384940e0,
    6.89767334985100004550e-1, 1.48103976427480074590e-1, 1.51986665636164571966e-2,
    5.47593808499534494600e-4, 1.05075007164441684324e-9,
)  # fmt: skip
_FAR = (
    6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0,
    2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
    2.71155556874348757815e-5, 2.01033439929228813265e-7,
)  # fmt: skip
_FAR_BELOW = (
    1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1,
    1.48753612908506148525e-2, 7.86869131145613259100e-4, 1.84631831751005468180e-5,
    1.42151175831644588870e-7, 2.04426310338993978564e-15,
)  # fmt: skip


# untyped, as kernels are
_intrinsic: Any = extending.intrinsic


class Constants(NamedTuple):
    """Numbers in the precision of a kernel: a literal would make everything double."""

    zero: Any
    one: Any
    two: Any
    magic: Any
    """1.5 * 2^(bits of the mantissa): adding it rounds to a whole number."""
    units: Any
    """Largest |exponent| in the units: the product of two such A + B (`halves`) does not overflow."""
    losses: Any
    """Largest |exponent| in the losses."""
    log2e: Any
    linear: Any
    """Where torch's softplus becomes the identity."""
    exp2: tuple[Any, ...]
    halves: tuple[Any, ...]
    atanh: tuple[Any, ...]


@lru_cache(maxsize=2)
def constants(dtype: str) -> Constants:
    """The constants of 'float32' or 'float64'."""
    kind = np.dtype(dtype).type
    mantissa, largest = (23, 126) if dtype == "float32" else (52, 1022)
    plain = (0, 1, 2, 1.5 * 2.0**mantissa, largest // 2 - 2, largest, 1 / math.log(2), 20)
    polynomials = (tuple(kind(v) for v in table[dtype]) for table in (_EXP2, _HALVES, _ATANH))
    return Constants(*(kind(v) for v in plain), *polynomials)


@_intrinsic
def _times_power(context, number, shifted):  # type: ignore[no-untyped-def]
    # number * 2^n for shifted = n + magic, by adding n to the bits of the exponent
    size, mantissa = (32, 23) if number == types.float32 else (64, 52)

    def generate(_, builder, signature, arguments):  # type: ignore[no-untyped-def]
        whole = ir.IntType(size)
        number_bits, exponent = (builder.bitcast(a, whole) for a in arguments)
        exponent = builder.shl(exponent, ir.Constant(whole, mantissa))
        return builder.bitcast(builder.add(number_bits, exponent), arguments[0].type)

    return number(number, shifted), generate


@_intrinsic
def _bits(context, number):  # type: ignore[no-untyped-def]
    # the bits of a double as an integer
    def generate(_, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@_intrinsic
def _magnitude(context, number):  # type: ignore[no-untyped-def]
    # the bits of |number| as an integer: they are ordered as the numbers are, nan above all
    size, whole = (32, types.uint32) if number == types.float32 else (64, types.uint64)

    def generate(_, builder, signature, arguments):  # type: ignore[no-untyped-def]
        bits = builder.bitcast(arguments[0], ir.IntType(size))
        return builder.and_(bits, ir.Constant(bits.type, 2 ** (size - 1) - 1))

    return whole(number), generate


@_intrinsic
def _from_magnitude(context, whole):  # type: ignore[no-untyped-def]
    kind, name = (
        (types.float32, ir.FloatType()) if whole == types.uint32 else (types.float64, ir.DoubleType())
    )

    def generate(_, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], name)

    return kind(whole), generate


@part
def largest(x, i, n):  # type: ignore[no-untyped-def]
    # max |x| of n numbers of a row, nan where there is one
    most = _magnitude(x[i, 0])
    for s in range(n):
        most = max(most, _magnitude(x[i, s]))
    return _from_magnitude(most)


@_intrinsic
def _from_bits(context, whole):  # type: ignore[no-untyped-def]
    def generate(_, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@inline
def polynomial(coefficients, x):  # type: ignore[no-untyped-def]
    # the one with coefficients[k] of x^k
    total = coefficients[len(coefficients) - 1]
    for k in range(len(coefficients) - 2, -1, -1):
        total = total * x + coefficients[k]
    return total


@inline
def exp2(y, limit, c):  # type: ignore[no-untyped-def]
    # 2^y, y first brought into [-limit, limit]
    y = -limit if y < -limit else y
    y = limit if y > limit else y
    shifted = y + c.magic
    return _times_power(polynomial(c.exp2, y - (shifted - c.magic)), shifted)


@inline
def halves(y, c):  # type: ignore[no-untyped-def]
    # A and B with 2^y = A / B, for |y| up to c.units; B is between 2 and 4. Half the multiplications of a
    # polynomial for 2^y, and 1 / (1 + 2^y) = B / (A + B) is off by at most a quarter of the quotient's error
    shifted = y + c.magic
    f = y - (shifted - c.magic)
    even = polynomial(c.halves, f * f)
    return _times_power(even + f, shifted), even - f


@inline
def softplus(t, c):  # type: ignore[no-untyped-def]
    # log(1 + exp(t)) as torch computes it, which is t beyond 20
    e = exp2(-abs(t) * c.log2e, c.losses, c)
    s = e / (c.two + e)
    curved = (c.zero if t < c.zero else t) + c.two * s * polynomial(c.atanh, s * s)
    return t if t > c.linear else curved


@inline
def softplus_slope(t, c):  # type: ignore[no-untyped-def]
    e = exp2(-abs(t) * c.log2e, c.losses, c)
    curved = (e if t < c.zero else c.one) / (c.one + e)
    return c.one if t > c.linear else curved


@inline
def _log(x):  # type: ignore[no-untyped-def]
    # of a normal positive double
    whole = _bits(x)
    # the exponent, one more where the mantissa is above sqrt(2)
    exponent = (whole - 0x3FE6A09E667F3BCD) >> 52
    mantissa = _from_bits(whole - (exponent << 52))
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return np.float64(np.int32(exponent)) * math.log(2) + 2.0 * s * polynomial(_ATANH_MANTISSA, s * s)


@inline
def normal_quantile(u):  # type: ignore[no-untyped-def]
    # of 0 < u < 1, double
    q = u - 0.5
    r = math.sqrt(-_log(u if q < 0.0 else 1.0 - u))
    centre, near, far = 0.180625 - q * q, r - 1.6, r - 5.0
    # all three, then a choice: a branch would keep the vector units idle
    above0, below0 = polynomial(_CENTRE, centre) * abs(q), polynomial(_CENTRE_BELOW, centre)
    above1, below1 = polynomial(_TAIL, near), polynomial(_TAIL_BELOW, near)
    above2, below2 = polynomial(_FAR, far), polynomial(_FAR_BELOW, far)
    above = above0 if centre >= 0.0 else (above2 if far > 0.0 else above1)
    below = below0 if centre >= 0.0 else (below2 if far > 0.0 else below1)
    value = above / below
    return -value if q < 0.0 else value
