"""The vector code against the plain functions that state what it does."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4.kernels import attention_products as products
from localv4.kernels._jit import leaf
from localv4.kernels.arrays import aligned
from localv4.kernels.attention_products import GRAIN
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_same_bytes, needs_compiler

pytestmark = needs_compiler

Words = NDArray[Any]
KINDS = pytest.mark.parametrize("dtype", [np.float32, np.int32])


@leaf
def add_products(left: Words, right: Words, n_words: int, adds: int, out: F32) -> None:
    products.add_products(left, right, n_words, adds, out)


@leaf
def turn(source: Words, target: Words) -> None:
    products.turn(source, target)


def random(dtype: Any, *shape: int) -> Words:
    """Return words: float32 numbers, or two BF16 numbers each."""
    rng = np.random.default_rng(shape)
    if dtype == np.float32:
        return rng.standard_normal(shape, np.float32)
    values = rng.standard_normal((*shape[:-1], 2 * shape[-1]), np.float32)
    return bf16.encode(values).view(np.int32)


@KINDS
@pytest.mark.parametrize("adds", [0, 1])
@pytest.mark.parametrize(("n", "m"), [(32, 16), (64, 64), (96, 48), (160, 80)])
@pytest.mark.parametrize("n_words", [16, 48, 272])
def test_products(dtype: Any, n: int, m: int, n_words: int, adds: int):
    left, right = random(dtype, n, 288), random(dtype, 300, m)
    before = random(np.float32, n, m)
    ours, expected = before.copy(), before.copy()
    add_products(left, right, n_words, adds, ours)
    products.add_products(left, right, n_words, adds, expected)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@KINDS
def test_few_rows_and_words(dtype: Any):
    """The least that `GRAIN` allows, and half of a pair of tiles."""
    for n in (GRAIN, 16):
        n_words = GRAIN // 2 if dtype == np.int32 else 1
        left, right = random(dtype, n, 16), random(dtype, 16, 16)
        ours, expected = np.full((2, n, 16), np.nan, np.float32)
        add_products(left, right, n_words, 0, ours)
        products.add_products(left, right, n_words, 0, expected)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@KINDS
def test_columns_in_tiles_give_the_same_bytes(dtype: Any):
    left, right = random(dtype, 32, 64), random(dtype, 64, 48)
    tiles = np.ascontiguousarray(right.reshape(64, 3, 16).transpose(1, 0, 2))
    whole, tiled = np.full((2, 32, 48), np.nan, np.float32)
    add_products(left, right, 64, 0, whole)
    add_products(left, tiles, 64, 0, tiled)
    assert_same_bytes(tiled, whole)


@KINDS
def test_sums_depend_on_their_length_alone(dtype: Any):
    left, right = random(dtype, 96, 64), random(dtype, 64, 80)
    whole, part = np.zeros((2, 96, 80), np.float32)
    add_products(left, right, 32, 0, whole)
    add_products(left[64:], right[:, 48:].copy(), 32, 0, part[64:])
    assert_same_bytes(part[64:, :32], whole[64:, 48:])


@KINDS
def test_strides_and_memory_of_any_alignment(dtype: Any):
    left, right = random(dtype, 32, 48), random(dtype, 48, 32)
    expected = np.zeros((32, 32), np.float32)
    add_products(left, right, 32, 0, expected)
    for offset in (0, 1, 16):
        wide, room = aligned((48, 96), dtype), aligned((32, 100), np.float32)
        wide[:, offset : offset + 32] = right
        add_products(left, wide[:, offset : offset + 32], 32, 0, room[:, offset:])
        assert_same_bytes(room[:, offset : offset + 32], expected)


@KINDS
def test_no_number_stays_in_its_row_and_column(dtype: Any):
    left, right = random(dtype, 32, 32), random(dtype, 32, 32)
    for array, row in ((left, 3), (right, 5)):
        array[row, 7] = 0x7FC00000 if dtype == np.int32 else np.nan
    out = np.zeros((32, 32), np.float32)
    add_products(left, right, 32, 0, out)
    lost = np.zeros((32, 32), bool)
    lost[3], lost[:, 7] = True, True
    np.testing.assert_array_equal(np.isnan(out), lost)


@KINDS
@pytest.mark.parametrize(("n", "m"), [(16, 16), (32, 48), (64, 16)])
def test_turn(dtype: Any, n: int, m: int):
    source = random(dtype, n, m)
    ours = np.zeros((m, n + 16), dtype)
    expected = ours.copy()
    turn(source, ours)
    products.turn(source, expected)
    assert_same_bytes(ours, expected)
