"""RoPE frequencies with every rounding spelled out: spec/forward.md section 4 (RoPE table)."""

import math

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
ONE = np.float32(1)


def frequencies(
    base: float, dim: int, original: int, factor: float, beta_fast: float, beta_slow: float
) -> F32:
    """Return the angle per position of every pair, float32 [dim / 2]; `original` 0 is no YaRN.

    Of the powers only base^(2i / dim) is taken in float64, and rounded once; its reciprocal and
    the blend are float32 operations.
    """
    thetas = [ONE / np.float32(base ** (2 * i / dim)) for i in range(dim // 2)]
    if original:
        low, high = (
            dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(base))
            for beta in (beta_fast, beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
        high += 0.001 if low == high else 0
        for i, theta in enumerate(thetas):
            ramp = np.float32(i - np.float32(low)) / np.float32(high - low)
            ramp = min(max(ramp, np.float32(0)), ONE)
            thetas[i] = theta / np.float32(factor) * ramp + theta * (ONE - ramp)
    return np.array(thetas, np.float32)
