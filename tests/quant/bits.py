"""Comparisons by bits: 0.0 is not -0.0, and one NaN is as good as another."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

AWKWARD_NAN_BITS = np.array(
    [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32
)


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Assert that two arrays have one dtype, shape and content."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))
    np.testing.assert_array_equal(actual, expected)


def around(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the float32 neighbours of positive values, below and above."""
    return np.nextafter(values, np.float32(0)), np.nextafter(values, np.float32(np.inf))
