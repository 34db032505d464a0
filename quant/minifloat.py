"""Small floats of sign, exponent and mantissa, described by four numbers.

E4M3 and E2M1 differ only in these numbers, so the rounding is written once. Knows nothing of
blocks or scales (spec, forward pass, section 1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.quant.arrays import as_codes, as_float32

_FLOAT32_BIAS = 127
_FLOAT32_MANTISSA = 23
_FLOAT32_SIGN = np.uint32(0x80000000)
_INFINITY = np.uint32(0x7F800000)


@dataclass(frozen=True)
class Minifloat:
    """A float of few bits with subnormals and without infinities.

    Attributes
    ----------
    exponent_bits, mantissa_bits, bias
        The layout, as in IEEE 754: exponent field 0 holds the subnormals.
    largest
        The largest finite value; encoding saturates there.
    nan_code
        What a NaN is encoded as: the code of NaN, or the largest value in a format without NaN.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float
    nan_code: int

    @property
    def n_codes(self) -> int:
        """Number of codes, both signs."""
        return 2 << (self.exponent_bits + self.mantissa_bits)

    def encode(self, x: ArrayLike) -> NDArray[np.uint8]:
        """Return the nearest codes of `x` (any shape): ties to even mantissa, saturating."""
        bits = as_float32(x).view(np.uint32)
        magnitude = bits & ~_FLOAT32_SIGN
        finite = np.minimum(magnitude, np.float32(self.largest).view(np.uint32))
        subnormal = finite < np.uint32((_FLOAT32_BIAS + 1 - self.bias) << _FLOAT32_MANTISSA)
        code = np.where(subnormal, self._encode_subnormal(finite), self._encode_normal(finite))
        sign_position = np.uint32(self.exponent_bits + self.mantissa_bits)
        signed = code | ((bits >> np.uint32(31)) << sign_position)
        return np.where(magnitude > _INFINITY, self.nan_code, signed).astype(np.uint8)

    def _encode_normal(self, magnitude: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Round the mantissa; a carry into the exponent is the right next code."""
        dropped = _FLOAT32_MANTISSA - self.mantissa_bits
        half_less_one = np.uint32((1 << (dropped - 1)) - 1)
        is_odd = (magnitude >> np.uint32(dropped)) & np.uint32(1)
        rounded = (magnitude + half_less_one + is_odd) >> np.uint32(dropped)
        lowest = np.uint32((_FLOAT32_BIAS - self.bias) << self.mantissa_bits)
        # Magnitudes below the normal range would wrap without the floor; they are not used.
        return np.asarray(np.maximum(rounded, lowest) - lowest)

    def _encode_subnormal(self, magnitude: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Count the equal steps below the normal range; the last step is the first normal code."""
        steps = np.float32(2.0 ** (self.bias + self.mantissa_bits - 1))
        with np.errstate(all="ignore"):
            return np.asarray(np.rint(magnitude.view(np.float32) * steps), dtype=np.uint32)

    def table(self) -> NDArray[np.float32]:
        """Return the value of every code, float32 (n_codes,), read-only."""
        code = np.arange(self.n_codes // 2)
        exponent = code >> self.mantissa_bits
        fraction = (code % (1 << self.mantissa_bits)) / (1 << self.mantissa_bits)
        significand = fraction + (exponent > 0)
        value = np.ldexp(significand, np.maximum(exponent, 1) - self.bias)
        value[value > self.largest] = np.nan
        both_signs = np.concatenate([value, -value]).astype(np.float32)
        both_signs.flags.writeable = False
        return both_signs

    def decode(self, codes: ArrayLike, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the values of `codes` (any shape) out of `table`."""
        return np.asarray(table[as_codes(codes, self.n_codes)])
