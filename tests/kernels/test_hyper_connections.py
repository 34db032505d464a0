import numpy as np
import pytest

from localv4.kernels.hyper_connections import combine, head_combine, spread
from localv4.quant import bf16
from tests.kernels.compare import assert_bf16_close, assert_same_bytes
from tests.reference import kernels_hyper_connections as twin
from tests.reference.forward_numerics import sigmoid

EPS = np.float32(1e-6)


def run_combine(hidden, mix, base, scale, *, eps=EPS, iterations: int = 20, trained: bool = False):
    """Return x, pre, post and residual."""
    n_tokens, n, size = hidden.shape
    x = np.empty((n_tokens, size), np.float32)
    pre, post = np.empty((2, n_tokens, n), np.float32)
    residual = np.empty((n_tokens, n, n), np.float32)
    flat = hidden.reshape(n_tokens, n * size)
    combine(hidden, flat, mix, base, scale, eps, EPS, iterations, trained, x, pre, post, residual)
    return x, pre, post, residual


def random_case(n: int = 4, size: int = 24, n_tokens: int = 5):
    rng = np.random.default_rng(n)
    hidden = bf16.round(rng.standard_normal((n_tokens, n, size)) * 3)
    mix = rng.standard_normal((n_tokens, (2 + n) * n), np.float32) * 4
    base, scale = rng.standard_normal((2 + n) * n, np.float32), rng.standard_normal(3, np.float32)
    return hidden, mix, base, scale


def test_weights_match_the_golden(fixtures):
    mix, base, scale = (fixtures[f"hc_split.{name}"] for name in ("mixes", "base", "scale"))
    ones = np.ones((len(mix), 4, 8), np.float32)  # their root mean square is 1, exactly
    x, pre, post, residual = run_combine(ones, mix, base, scale, eps=np.float32(0))
    for ours, name in ((pre, "pre"), (post, "post"), (residual, "comb")):
        np.testing.assert_allclose(ours, fixtures[f"hc_split.{name}"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(x[:, 0], fixtures["hc_split.pre"].sum(axis=1), rtol=0, atol=4e-6)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_combine(n: int, iterations: int):
    hidden, mix, base, scale = random_case(n)
    ours = run_combine(hidden, mix, base, scale, iterations=iterations)
    for token, copies in enumerate(hidden.astype(np.float64)):
        scaled = mix[token] * twin.inverse_rms(copies, float(EPS))
        weights = twin.split(scaled, base, scale, float(EPS), iterations)
        x = twin.gather(copies, weights.pre)
        for array, expected in zip(ours, (x, *weights), strict=True):
            np.testing.assert_allclose(array[token], expected, rtol=2e-6, atol=2e-6)


def test_only_the_states_that_leave_are_rounded():
    case = random_case()
    exact, rounded = run_combine(*case), run_combine(*case, trained=True)
    assert_same_bytes(rounded[0], bf16.round(exact[0]))
    for weights, same in zip(rounded[1:], exact[1:], strict=True):
        assert_same_bytes(weights, same)


def test_the_residual_is_nearly_doubly_stochastic():
    residual = run_combine(*random_case())[3]
    np.testing.assert_allclose(residual.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(residual.sum(axis=2), 1, atol=1e-3)


def test_extreme_mixes_stay_finite():
    hidden, mix, base, scale = random_case()
    for factor in (80, -80):
        results = run_combine(hidden, np.sign(mix) * np.float32(factor), base, scale)
        assert all(np.isfinite(array).all() for array in results)


@pytest.mark.parametrize("n", [2, 4])
def test_spread(n: int):
    hidden, mix, base, scale = random_case(n)
    update = bf16.round(np.random.default_rng(1).standard_normal((len(hidden), hidden.shape[2])))
    _, _, post, residual = run_combine(hidden, mix, base, scale)
    expected = np.array(
        [
            twin.spread(*arrays)
            for arrays in zip(
                *(a.astype(np.float64) for a in (hidden, update, post, residual)), strict=True
            )
        ]
    )
    exact, rounded = np.empty_like(hidden), np.empty_like(hidden)
    spread(hidden, update, post, residual, False, exact)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=4e-6)
    spread(hidden, update, post, residual, True, rounded)
    assert_same_bytes(rounded, bf16.round(exact))


def test_head_combine():
    hidden, mix, base, scale = random_case()
    mix, base, scale = np.ascontiguousarray(mix[:, :4]), base[:4], scale[:1]
    flat = hidden.reshape(len(hidden), -1)
    x, pre = np.empty((len(hidden), hidden.shape[2]), np.float32), np.empty_like(mix)
    head_combine(hidden, flat, mix, base, scale, EPS, EPS, False, x, pre)
    for token, copies in enumerate(hidden.astype(np.float64)):
        scaled = mix[token] * twin.inverse_rms(copies, float(EPS))
        expected = sigmoid(scaled * scale[0] + base) + float(EPS)
        np.testing.assert_allclose(pre[token], expected, rtol=1e-6)
        np.testing.assert_allclose(x[token], twin.gather(copies, expected), rtol=0, atol=4e-6)
    rounded = np.empty_like(x)
    head_combine(hidden, flat, mix, base, scale, EPS, EPS, True, rounded, pre)
    assert_bf16_close(rounded, bf16.round(x), equal=1)
