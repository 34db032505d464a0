"""Functions of single float32 values, without branches, so that loops over them use vectors.

Knows nothing of what is computed with them.
"""

import numpy as np

from localv4.kernels._jit import leaf

__all__ = ["exp_f32"]

_LOG2E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)  # few bits, so that n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_WHOLE = np.float32(1.5 * 2.0**23)  # its last place is 1: adding it rounds to a whole number
_WHOLE_BITS = np.int32(_WHOLE.view(np.int32))
_LOWEST = np.float32(-86.6)  # below, the result or a factor of it would be denormal
_HIGHEST = np.float32(88.72283)
_C2 = np.float32(5.0000001201e-1)
_C3 = np.float32(1.6666665459e-1)
_C4 = np.float32(4.1665795894e-2)
_C5 = np.float32(8.3334519073e-3)
_C6 = np.float32(1.3981999507e-3)
_C7 = np.float32(1.9875691500e-4)
_ONE = np.float32(1)
_TWO = np.float32(2)
_ZERO = np.float32(0)
_INFINITE = np.float32(np.inf)


@leaf
def exp_f32(x: np.float32) -> np.float32:
    """Return e^x to 2 units in the last place; 0 below -86.6, infinity above 88.72283.

    The argument is n * ln 2 + rest; a polynomial (Cephes expf) serves the rest.
    """
    inside = _LOWEST if x < _LOWEST else x
    inside = _HIGHEST if inside > _HIGHEST else inside
    shifted = np.float32(inside * _LOG2E + _WHOLE)
    n = np.float32(shifted - _WHOLE)
    rest = np.float32(np.float32(inside - n * _LN2_HIGH) - n * _LN2_LOW)
    series = np.float32(_C7 * rest + _C6)
    series = np.float32(series * rest + _C5)
    series = np.float32(series * rest + _C4)
    series = np.float32(series * rest + _C3)
    series = np.float32(series * rest + _C2)
    series = np.float32(np.float32(series * rest) * rest + rest) + _ONE
    # 2^(n - 1), since 2^128 is no float32
    power = np.int32(
        (np.int32(shifted.view(np.int32) - _WHOLE_BITS) + np.int32(126)) << np.int32(23)
    )
    result = np.float32(np.float32(series * _TWO) * power.view(np.float32))
    result = _ZERO if x < _LOWEST else result
    return _INFINITE if x > _HIGHEST else result
