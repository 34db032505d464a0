"""Which angle a position has: RoPE frequencies, with and without YaRN.

Follows forward.md section 4 (RoPE table); the order of roundings matters at large
positions.  Knows nothing of attention.
"""

import math

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig, RopeScaling

__all__ = ["Rope", "frequencies"]

F32 = NDArray[np.float32]


def _yarn_ramp(scaling: RopeScaling, base: float, dim: int) -> F32:
    """Return for every frequency how far it is interpolated: 0 not at all, 1 fully."""

    def boundary(rotations: float) -> float:
        length = scaling.original_max_position_embeddings
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(boundary(scaling.beta_fast)), 0)
    high: float = min(math.ceil(boundary(scaling.beta_slow)), dim - 1)
    if low == high:
        high += 0.001
    steps = np.arange(dim // 2, dtype=np.float32)
    ramp: F32 = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    return ramp


def frequencies(base: float, dim: int, scaling: RopeScaling | None) -> F32:
    """Return the angle per position of every column pair.

    Parameters
    ----------
    base
        rope_theta or compress_rope_theta.
    dim
        qk_rope_head_dim.
    scaling
        YaRN, or None.

    Returns
    -------
    float32 [dim / 2].  The power is taken in float64 and rounded once; the rest is float32.
    """
    exponents = np.arange(0, dim, 2, dtype=np.float64) / dim
    theta = np.float32(1) / (np.float64(base) ** exponents).astype(np.float32)
    if scaling is None:
        return theta
    ramp = _yarn_ramp(scaling, base, dim)
    interpolated = theta / np.float32(scaling.factor)
    return (interpolated * ramp + theta * (np.float32(1) - ramp)).astype(np.float32)


class Rope:
    """The model's two sets of frequencies: plain layers, and layers that compress (with YaRN)."""

    def __init__(self, config: ModelConfig) -> None:
        dim = config.qk_rope_head_dim
        self._plain = frequencies(config.rope_theta, dim, None)
        self._compressed = frequencies(config.compress_rope_theta, dim, config.rope_scaling)

    def frequencies(self, ratio: int) -> F32:
        """Return the angle per position of every column pair in a layer of this ratio."""
        return self._compressed if ratio else self._plain
