"""The number formats once more, one value at a time in exact rational arithmetic.

Shares nothing with localv4.quant, so that an error would have to be made twice.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

E2M1_MAGNITUDES = [Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)]
E4M3_MAGNITUDES = [
    Fraction(code, 512) if code < 8 else Fraction(8 + code % 8, 1024) * 2 ** (code // 8)
    for code in range(127)
]
FLOAT32_MAX = Fraction(float(np.finfo(np.float32).max))


def nearest_code(value: float, magnitudes: Sequence[Fraction]) -> int:
    """Return the code of the nearest magnitude (ties: even code), with the sign bit on top."""
    exact = abs(Fraction(value))
    code = min(range(len(magnitudes)), key=lambda c: (abs(magnitudes[c] - exact), c % 2))
    sign_bit = 128 if len(magnitudes) > 8 else 8
    return code + sign_bit * (math.copysign(1, value) < 0)


def to_float32(value: Fraction) -> Fraction:
    """Round to float32, nearest with ties to even, normal range."""
    if value == 0:
        return value
    exponent = math.frexp(value.numerator / value.denominator)[1] - 24
    step = Fraction(2) ** max(exponent, -149)
    return round(value / step) * step


def power_of_two(amax: float, largest: int) -> Fraction:
    """Return a block's scale: the least power of two not below the float32 quotient."""
    reciprocal = Fraction(float(np.float32(1 / largest)))
    quotient = to_float32(Fraction(amax) * reciprocal)
    power = Fraction(2) ** -127
    while power < quotient:
        power *= 2
    return power


def quantise_block(
    values: NDArray[Any], smallest_amax: float, magnitudes: Sequence[Fraction]
) -> tuple[list[int], Fraction]:
    """Return the codes and the scale of one block of finite values."""
    amax = max(smallest_amax, *(abs(float(v)) for v in values))
    scale = power_of_two(amax, int(magnitudes[-1]))
    codes = []
    for v in values:
        scaled = min(abs(Fraction(float(v))) / scale, magnitudes[-1])
        codes.append(nearest_code(math.copysign(float(scaled), float(v)), magnitudes))
    return codes, scale
