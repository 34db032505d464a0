import math

import numpy as np
import pytest

from localv4.kernels.sums import dot, total
from tests.kernels.compare import assert_same_bytes


@pytest.mark.parametrize("size", [0, 1, 3, 15, 16, 17, 64, 100, 333])
def test_sums(size: int):
    left, right = np.random.default_rng(size).standard_normal((2, size), np.float32)
    products = left.astype(np.float64) * right
    assert dot(left, right) == pytest.approx(math.fsum(products), abs=1e-5)
    assert total(left) == pytest.approx(math.fsum(left), abs=1e-5)


def test_the_address_does_not_matter():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 200), np.float32)
    expected = np.array([dot(left, right), total(left)], np.float32)
    for offset in range(1, 17):
        buffer = np.empty(2 * 256, np.float32)
        moved, other = buffer[offset : offset + 200], buffer[256 : 256 + 200]
        moved[:], other[:] = left, right
        ours = np.array([dot(moved, other), total(moved)], np.float32)
        assert_same_bytes(ours, expected)
