"""Arrays that compiled code knows by their addresses."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.slots import private_memory

__all__ = ["LINE", "address", "aligned"]

LINE = 64
"""Bytes of a cache line, and of the widest vector."""

_PRIVATE_BYTES = 2**20  # from which on memory must go back to the system when it is dropped


def address(array: NDArray[Any]) -> int:
    """Return where an array's first element lies."""
    return int(array.__array_interface__["data"][0])


def aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Return uninitialised memory that starts at a multiple of 64 bytes."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes >= _PRIVATE_BYTES:
        whole = np.frombuffer(private_memory(n_bytes, huge=False), np.uint8)
        return whole[:n_bytes].view(dtype).reshape(shape)
    memory = np.empty(n_bytes + LINE, np.uint8)
    start = -address(memory) % LINE
    return memory[start : start + n_bytes].view(dtype).reshape(shape)
