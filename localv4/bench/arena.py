"""Memory full of weights in one stored format, and matrices that lie in it one after the other.

The weights are random but sane: no NaN, no infinity and no denormal, all of which cost time
that real weights don't.  Scales are near one.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.kernels.matmul import Matrix
from localv4.slots import private_memory

__all__ = ["Arena", "stored_bytes"]

U8 = NDArray[np.uint8]
_POOL_BYTES = 2**24
_BITS = {"fp4": 4, "fp8": 8, "fp8_as_bf16": 8, "bf16": 16, "f32": 32}


def _pool(weight_format: str) -> U8:
    """Return bytes to fill an arena with."""
    rng = np.random.default_rng(0)
    if weight_format == "f32":
        return rng.standard_normal(_POOL_BYTES // 4, np.float32).view(np.uint8)
    pool = rng.integers(0, 256, _POOL_BYTES, np.uint8)
    if weight_format == "bf16":  # of either sign, from 2**-15 to 2
        words = pool.view(np.uint16)
        words[:] = (words & 0x87FF) | 0x3800
    elif weight_format.startswith("fp8"):
        pool[pool & 0x7F == 0x7F] ^= 1
    return pool


def stored_bytes(weight_format: str, rows: int, columns: int) -> int:
    """Return the bytes of a matrix with its scales."""
    return rows * columns * _BITS[weight_format] // 8 + _scale_bytes(weight_format, rows, columns)


def _scale_bytes(weight_format: str, rows: int, columns: int) -> int:
    if weight_format == "fp4":
        return rows * columns // 32
    if weight_format.startswith("fp8"):
        return 4 * math.ceil(rows / 128) * math.ceil(columns / 128)
    return 0


class Arena:
    """Memory that is filled anew for each format.

    Parameters
    ----------
    n_bytes
        Its size.

    Attributes
    ----------
    memory
        uint8 [n_bytes], aligned to 64 bytes; in huge pages, as weights that are streamed.
    """

    def __init__(self, n_bytes: int) -> None:
        whole = np.frombuffer(private_memory(n_bytes), np.uint8)
        self.memory: U8 = whole[:n_bytes]
        self._format = ""

    def fill(self, weight_format: str) -> None:
        """Fill all of it with weights of a format."""
        if weight_format == self._format:
            return
        self._format = weight_format
        pool = _pool(weight_format)
        for first in range(0, self.memory.size, pool.size):
            part = self.memory[first : first + pool.size]
            part[:] = pool[: part.size]

    def matrices(
        self, weight_format: str, rows: int, columns: int, n_bytes: int, first: int = 0
    ) -> Iterator[Matrix]:
        """Yield matrices that lie in a part of the memory, which they fill as far as they fit.

        Parameters
        ----------
        weight_format
            As the arena was filled; their scales are written.
        rows, columns
            Of each matrix.
        n_bytes, first
            Size and start of the part.
        """
        size = -(-stored_bytes(weight_format, rows, columns) // 64) * 64
        for start in range(first, first + n_bytes - size + 1, size):
            yield self._matrix(weight_format, rows, columns, start)

    def _matrix(self, weight_format: str, rows: int, columns: int, start: int) -> Matrix:
        n_scales = _scale_bytes(weight_format, rows, columns)
        end = start + stored_bytes(weight_format, rows, columns)
        weights: NDArray[Any] = self.memory[start : end - n_scales]
        scales: NDArray[Any] | None = None
        if weight_format == "fp4":
            scales = self.memory[end - n_scales : end].reshape(rows, -1)
            scales[:] = 124 + scales % 4
        elif n_scales:
            scales = self.memory[end - n_scales : end].view(np.float32)
            scales = scales.reshape(math.ceil(rows / 128), -1)
            scales[:] = np.float32(0.5)
        dtype = {"bf16": np.uint16, "f32": np.float32}.get(weight_format, np.uint8)
        return Matrix(weight_format, weights.view(dtype).reshape(rows, -1), scales, columns)
