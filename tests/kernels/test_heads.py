import numpy as np

from localv4.kernels.heads import head_norm
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_bf16_close
from tests.reference.forward_numerics import Numerics

EPS = 1e-6


def random_queries(n_rows: int, n_columns: int, seed: int) -> F32:
    """Return rows of BF16 numbers with sizes from 2^-20, where eps counts, to 2^10."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, n_columns)) * 2.0 ** np.linspace(-20, 10, n_rows)[:, None]
    return bf16.round(x)


def normalised(queries: F32, trained: bool) -> F32:
    result = queries.copy()
    for row in result:
        head_norm(row, np.float32(EPS), int(trained), np.full_like(row, np.nan))
    return result


def test_without_rounding():
    queries = random_queries(9, 128, seed=5)
    exact = Numerics("float32").head_norm(queries.astype(np.float64), EPS)
    np.testing.assert_allclose(normalised(queries, trained=False), exact, rtol=1e-6)


def test_every_step_is_rounded():
    queries = random_queries(40, 64, seed=6)
    expected = Numerics("trained").head_norm(queries.astype(np.float64), EPS)
    once = bf16.round(Numerics("float32").head_norm(queries.astype(np.float64), EPS))
    ours = normalised(queries, trained=True)
    assert_bf16_close(ours, expected)
    assert np.mean(ours != once) > 0.1, "rounding at the end only would do"


def test_zeros_stay_zeros():
    for trained in (False, True):
        assert (normalised(np.zeros((2, 64), np.float32), trained) == 0).all()
