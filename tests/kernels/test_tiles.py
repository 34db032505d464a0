"""The vector code against the plain function that states what it does."""

import numpy as np
import pytest

from localv4.kernels import tiles
from localv4.kernels._jit import leaf
from tests.kernels.compare import F32, assert_same_bytes, needs_compiler

pytestmark = needs_compiler


@leaf
def products(left: F32, right: F32, first: int, n_columns: int, out: F32) -> None:
    tiles.products(left, right, first, n_columns, out)


def random(*shape: int) -> F32:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


@pytest.mark.parametrize(("first", "n_columns"), [(0, 16), (0, 528), (32, 32), (512, 16)])
@pytest.mark.parametrize(("n", "m"), [(4, 4), (8, 64), (20, 12)])
def test_products(first: int, n_columns: int, n: int, m: int):
    left, right = random(n, 528), random(m, 528) / np.float32(8)
    ours, expected = np.full((2, n, 64), np.nan, np.float32)
    products(left, right, first, n_columns, ours)
    tiles.products(left, right, first, n_columns, expected)
    np.testing.assert_allclose(ours, expected, rtol=2e-7, atol=1e-5)


def test_sums_depend_on_their_length_alone():
    left, right = random(8, 528), random(64, 528)
    whole, part = np.zeros((2, 8, 64), np.float32)
    products(left, right, 0, 512, whole)
    products(left[4:], right[60:], 0, 512, part[4:])
    assert_same_bytes(part[4:, :4], whole[4:, 60:])


def test_no_number_stays_in_its_row():
    left, right = random(8, 80), random(8, 80)
    left[3, 5] = np.nan
    out = np.zeros((8, 64), np.float32)
    products(left, right, 0, 64, out)
    assert np.isnan(out[3, :8]).all()
    assert np.isnan(out).sum() == 8
