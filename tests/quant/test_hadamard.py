import numpy as np
import pytest

from localv4.errors import InvalidInput
from localv4.quant import bf16, hadamard
from tests.quant.bits import assert_same_bits


@pytest.mark.parametrize("n", [64, 128])
def test_matches_the_golden(kernels, n: int):
    assert_same_bits(hadamard(kernels[f"hadamard{n}.x"]), kernels[f"hadamard{n}.y"])


@pytest.mark.parametrize("n", [1, 2, 4, 64, 256])
def test_is_the_sylvester_matrix(n: int):
    matrix = [[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)]
    x = np.random.default_rng(n).standard_normal((3, n), np.float32)
    wanted = x.astype(np.float64) @ np.array(matrix, np.float64).T / np.sqrt(n)
    np.testing.assert_allclose(hadamard(x, round_bf16=False), wanted, rtol=0, atol=2e-6)


def test_by_hand():
    assert hadamard([1, 2, 3, 8]).tolist() == [7, -3, -4, 2]


def test_rounding_is_the_last_step():
    x = np.random.default_rng(1).standard_normal((2, 3, 64), np.float32)
    exact = hadamard(x, round_bf16=False)
    assert_same_bits(hadamard(x), bf16.round(exact))
    assert (bf16.round(exact) != exact).any()


def test_the_input_stays_and_is_not_returned():
    x = np.random.default_rng(2).standard_normal((4, 128), np.float32)
    before = x.copy()
    x.flags.writeable = False
    assert_same_bits(hadamard(x[::-1, ::2]), hadamard(x[::-1, ::2].copy()))
    assert_same_bits(x, before)
    one = np.ones((2, 1), np.float32)
    assert not np.shares_memory(hadamard(one, round_bf16=False), one)
    assert hadamard(np.empty((0, 8), np.float32)).shape == (0, 8)


def test_no_number_spreads_over_its_row_only():
    x = np.ones((3, 8), np.float32)
    x[0, 2] = np.nan
    x[1, :2] = np.inf
    y = hadamard(x)
    assert np.isnan(y[0]).all()
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[2]).all()


@pytest.mark.parametrize("shape", [(2, 96), (2, 0), ()])
def test_other_lengths_are_refused(shape):
    with pytest.raises(InvalidInput, match=r"96|0 columns|scalar"):
        hadamard(np.ones(shape, np.float32))
