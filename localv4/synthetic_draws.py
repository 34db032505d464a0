"""Random numbers that a seed and a name decide, the same on every machine and NumPy.

Only PCG64's integers and exact arithmetic are used, no logarithm or cosine. Knows nothing of
tensors.
"""

import math
import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["RMS_UNEVEN", "direction", "generator", "normal", "uint16", "uneven"]

F32 = NDArray[np.float32]

RMS_UNEVEN = math.sqrt((0.25 + 1 + 1 + 4) / 4)
"""Root mean square of :func:`uneven`."""


def generator(name: str, seed: int) -> np.random.PCG64:
    """Return the stream of random bits of one name."""
    return np.random.PCG64(np.random.SeedSequence((seed, zlib.crc32(name.encode()))))


def uint16(draw: np.random.PCG64, count: int) -> NDArray[np.uint16]:
    """Draw `count` integers of 16 bits."""
    # The raw stream is what NumPy promises to keep; the distributions' streams may change.
    words = np.asarray(draw.random_raw(math.ceil(count / 4)), dtype="<u8")
    return words.view("<u2")[:count]


def normal(draw: np.random.PCG64, shape: tuple[int, ...]) -> F32:
    """Draw nearly normal numbers of mean 0 and deviation 1, within 3.5: a sum of four uniforms."""
    parts = uint16(draw, 4 * math.prod(shape)).reshape(4, *shape)
    centred = parts.sum(axis=0, dtype=np.int32) - 2 * 65535
    return np.asarray(centred.astype(np.float32) / np.float32(65536 / math.sqrt(3)))


def uneven(draw: np.random.PCG64, shape: tuple[int, ...]) -> F32:
    """Draw a factor of 1/2, 1, 1 or 2 for each 32 x 32 block, spread over the elements."""
    blocks = tuple(math.ceil(size / 32) for size in shape)
    choices = np.array([0.5, 1.0, 1.0, 2.0], dtype=np.float32)
    factors = choices[uint16(draw, math.prod(blocks)) % 4].reshape(blocks)
    return np.repeat(np.repeat(factors, 32, 0)[: shape[0]], 32, 1)[:, : shape[1]]


def direction(seed: int, width: int) -> F32:
    """Return what all embeddings have in common: a vector of -1 and 1."""
    signs = uint16(generator("direction", seed), width) % 2
    return signs.astype(np.float32) * np.float32(2) - np.float32(1)
