"""How close a kernel comes to its twin."""

from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

COMPILED = not numba.config.DISABLE_JIT
needs_compiler = pytest.mark.skipif(not COMPILED, reason="NUMBA_DISABLE_JIT=1")


def assert_same_bytes(ours: NDArray[Any], expected: NDArray[Any]) -> None:
    """Compare bits, so that the two zeros differ; any NaN is as good as another."""
    assert_same_numbers(ours, expected)
    if ours.dtype.kind == "f":
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(ours[numbers]), np.signbit(expected[numbers]))


def assert_same_numbers(ours: NDArray[Any], expected: NDArray[Any]) -> None:
    """Compare numbers: the two zeros are one, any NaN is as good as another."""
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape
    np.testing.assert_array_equal(ours, expected)


def bf16_steps(ours: F32, expected: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return how many BF16 numbers lie between two arrays, element by element."""
    ranks = []
    for array in (ours, expected.astype(np.float32)):
        upper = (array.view(np.uint32) >> np.uint32(16)).astype(np.int64)
        assert not (array.view(np.uint32) & np.uint32(0xFFFF)).any(), "not BF16 numbers"
        ranks.append(np.where(upper >= 0x8000, 0x8000 - upper, upper))
    return np.asarray(np.abs(ranks[0] - ranks[1]))


def assert_bf16_close(
    ours: F32, expected: NDArray[np.floating[Any]], equal: float = 0.99, steps: int = 1
) -> None:
    """Assert that BF16 numbers are `steps` apart at most, and a share of them equal.

    Both sides round a sum to BF16 that they add up in different orders, so a value close to the
    middle of two BF16 numbers may fall to either.
    """
    distance = bf16_steps(ours, expected)
    assert distance.max(initial=0) <= steps, f"{distance.max()} BF16 steps apart"
    share = np.mean(distance == 0)
    assert share >= equal, f"only {share:.4f} are equal"


def relative_rms(ours: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the root mean square of the error over that of the expected values."""
    error = ours.astype(np.float64) - expected
    return float(np.sqrt(np.mean(error**2) / np.mean(np.square(expected, dtype=np.float64))))
