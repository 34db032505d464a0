import numpy as np
import pytest

from localv4.kernels.norm import record_rms_norm
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_bf16_close, assert_same_bytes
from tests.kernels.programs import run_recorded
from tests.reference.forward_numerics import Numerics

EPS = 1e-6


def rms_norm(x: F32, weight: F32, eps: float, trained: bool) -> F32:
    out: F32 = np.full_like(x, np.nan)
    run_recorded(record_rms_norm, x, weight, eps, trained, out)
    return out


def random_rows(n_rows: int, n_columns: int, seed: int = 0):
    """Return rows of BF16 numbers with sizes from 2^-20, where eps counts, to 2^10."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, n_columns)) * 2.0 ** np.linspace(-20, 10, n_rows)[:, None]
    return bf16.round(x)


@pytest.mark.parametrize("n_columns", [1, 7, 64, 192])
def test_rms_norm(n_columns: int):
    x = random_rows(9, n_columns)
    weight = bf16.round(np.random.default_rng(1).standard_normal(n_columns))
    before = x.copy()
    exact = Numerics("float32").rms_norm(x.astype(np.float64), weight.astype(np.float64), EPS)
    ours = rms_norm(x, weight, EPS, trained=False)
    np.testing.assert_allclose(ours, exact, rtol=1e-6)
    assert ours.dtype == np.float32
    assert_bf16_close(rms_norm(x, weight, EPS, trained=True), bf16.round(exact))
    assert_same_bytes(x, before)


def test_rms_norm_rounds_once_at_the_end():
    x, weight = random_rows(5, 64, seed=2), np.ones(64, np.float32)
    exact = rms_norm(x, weight, EPS, trained=False)
    assert_same_bytes(rms_norm(x, weight, EPS, trained=True), bf16.round(exact))


def test_a_row_alone_gives_its_bytes():
    x = random_rows(6, 96, seed=3)
    weight = random_rows(1, 96, seed=4)[0]
    for trained in (False, True):
        whole = rms_norm(x, weight, EPS, trained)
        alone = [rms_norm(x[i : i + 1], weight, EPS, trained) for i in range(6)]
        assert_same_bytes(np.concatenate(alone), whole)


def test_a_long_row_is_cut_unless_it_is_one_of_many_or_its_own_result():
    x = random_rows(40, 1100, seed=5)
    weight = random_rows(1, 1100, seed=6)[0]
    for trained in (False, True):
        whole = rms_norm(x, weight, EPS, trained)
        assert_same_bytes(rms_norm(x[:2].copy(), weight, EPS, trained), whole[:2])
        own = x[:2].copy()
        run_recorded(record_rms_norm, own, weight, EPS, trained, own)
        assert_same_bytes(own, whole[:2])


def test_zeros_stay_zeros():
    x = np.zeros((2, 64), np.float32)
    assert (rms_norm(x, np.ones(64, np.float32), EPS, trained=True) == 0).all()
