import numpy as np
import pytest

from localv4.kernels.hyper_connections import (
    add_to_copies,
    combine,
    head_combine,
    inverse_rms,
    spread,
)
from localv4.quant import bf16
from tests.kernels.compare import assert_bf16_close, assert_same_bytes
from tests.kernels.programs import run
from tests.reference import kernels_hyper_connections as twin
from tests.reference.forward_numerics import sigmoid

EPS = 1e-6


def factors_of(hidden, eps: float):
    n_tokens = len(hidden)
    factors = np.empty(n_tokens, np.float32)
    run(inverse_rms, n_tokens, hidden.reshape(n_tokens, -1), eps, factors)
    return factors


def run_combine(hidden, mix, base, scale, *, eps=EPS, iterations: int = 20, trained: bool = False):
    """Return the normalised x (by a norm of ones), pre, post and residual [old copy, new copy]."""
    n_tokens, n, size = hidden.shape
    x = np.full((n_tokens, size), np.nan, np.float32)
    pre, post = np.full((2, n_tokens, n), np.nan, np.float32)
    residual = np.full((n_tokens, n * n), np.nan, np.float32)
    run(
        combine,
        n_tokens,
        hidden.reshape(n_tokens, n * size),
        factors_of(hidden, eps),
        mix,
        base,
        scale,
        np.linspace(1, 2, size, dtype=np.float32),
        EPS,
        EPS,
        iterations,
        int(trained),
        x,
        pre,
        post,
        residual,
    )
    return x, pre, post, residual.reshape(n_tokens, n, n).transpose(0, 2, 1)


def normalised(x):
    """The norm that follows, in float64."""
    root = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + EPS)
    return x / root * np.linspace(1, 2, x.shape[-1])


def random_case(n: int = 4, size: int = 24, n_tokens: int = 5):
    rng = np.random.default_rng(n)
    hidden = bf16.round(rng.standard_normal((n_tokens, n, size)) * 3)
    mix = rng.standard_normal((n_tokens, (2 + n) * n), np.float32) * 4
    base, scale = rng.standard_normal((2 + n) * n, np.float32), rng.standard_normal(3, np.float32)
    return hidden, mix, base, scale


def test_weights_match_the_golden(fixtures):
    mix, base, scale = (fixtures[f"hc_split.{name}"] for name in ("mixes", "base", "scale"))
    ones = np.ones((len(mix), 4, 8), np.float32)  # their root mean square is 1, exactly
    _, pre, post, residual = run_combine(ones, mix, base, scale, eps=0.0)
    for ours, name in ((pre, "pre"), (post, "post"), (residual, "comb")):
        np.testing.assert_allclose(ours, fixtures[f"hc_split.{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_combine(n: int, iterations: int):
    hidden, mix, base, scale = random_case(n)
    ours = run_combine(hidden, mix, base, scale, iterations=iterations)
    for token, copies in enumerate(hidden.astype(np.float64)):
        scaled = mix[token] * twin.inverse_rms(copies, EPS)
        weights = twin.split(scaled, base, scale, EPS, iterations)
        x = normalised(twin.gather(copies, weights.pre))
        for array, expected in zip(ours, (x, *weights), strict=True):
            np.testing.assert_allclose(array[token], expected, rtol=2e-6, atol=2e-6)


def test_only_the_states_that_leave_are_rounded():
    hidden, mix, base, scale = random_case()
    exact, rounded = (run_combine(hidden, mix, base, scale, trained=t) for t in (False, True))
    for weights, same in zip(rounded[1:], exact[1:], strict=True):
        assert_same_bytes(weights, same)
    combined = np.array([twin.gather(*pair) for pair in zip(hidden, exact[1], strict=True)])
    expected = normalised(bf16.round(combined))
    assert_bf16_close(rounded[0], bf16.round(expected), equal=0.97)
    twice = np.mean(rounded[0] != bf16.round(normalised(combined)))
    assert twice > 0.1, "rounding after the norm only would do"


def test_the_residual_is_nearly_doubly_stochastic():
    residual = run_combine(*random_case())[3]
    np.testing.assert_allclose(residual.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(residual.sum(axis=2), 1, atol=1e-3)


def test_extreme_mixes_stay_finite():
    hidden, mix, base, scale = random_case()
    for factor in (80, -80):
        results = run_combine(hidden, np.sign(mix) * np.float32(factor), base, scale)
        assert all(np.isfinite(array).all() for array in results)


def run_spread(hidden, update, post, residual, trained: bool, slice_size: int):
    n_tokens, n, size = hidden.shape
    out = np.full((n_tokens, n * size), np.nan, np.float32)
    n_slices = -(-size // slice_size)
    by_new_copy = np.ascontiguousarray(residual.transpose(0, 2, 1)).reshape(n_tokens, -1)
    flat = hidden.reshape(n_tokens, -1)
    arguments = flat, update, post, by_new_copy, int(trained), n_slices, slice_size, out
    run(spread, n_tokens * n_slices, *arguments)
    return out.reshape(hidden.shape)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("slice_size", [24, 16, 5])
def test_spread(n: int, slice_size: int):
    hidden, mix, base, scale = random_case(n)
    update = bf16.round(np.random.default_rng(1).standard_normal((len(hidden), hidden.shape[2])))
    _, _, post, residual = run_combine(hidden, mix, base, scale)
    arrays = hidden, update, post, residual
    tokens = zip(*(array.astype(np.float64) for array in arrays), strict=True)
    expected = np.array([twin.spread(*token) for token in tokens])
    exact = run_spread(*arrays, False, slice_size)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=4e-6)
    assert_same_bytes(exact, run_spread(*arrays, False, 24))
    assert_same_bytes(run_spread(*arrays, True, slice_size), bf16.round(exact))


def test_head_combine():
    hidden, mix, base, scale = random_case()
    n_tokens, n, size = hidden.shape
    mix, base, scale = np.ascontiguousarray(mix[:, :n]), base[:n], scale[:1]
    norm = np.linspace(1, 2, size, dtype=np.float32)
    results = []
    for trained in (0, 1):
        x, pre = np.empty((n_tokens, size), np.float32), np.empty_like(mix)
        flat, factors = hidden.reshape(n_tokens, -1), factors_of(hidden, EPS)
        weights = mix, base, scale, norm
        run(head_combine, n_tokens, flat, factors, *weights, EPS, EPS, trained, x, pre)
        results.append(x)
    for token, copies in enumerate(hidden.astype(np.float64)):
        scaled = mix[token] * twin.inverse_rms(copies, EPS)
        expected = sigmoid(scaled * scale[0] + base) + EPS
        np.testing.assert_allclose(pre[token], expected, rtol=1e-6)
        x = twin.gather(copies, expected)
        np.testing.assert_allclose(results[0][token], normalised(x), rtol=0, atol=4e-6)
        rounded = bf16.round(normalised(bf16.round(x)))
        assert_bf16_close(results[1][token], rounded, equal=0.9)


def test_add_to_copies():
    hidden = random_case()[0]
    n_tokens, _, size = hidden.shape
    update = np.random.default_rng(1).standard_normal((n_tokens, size), np.float32)
    expected = hidden + update[:, None]
    for trained in (0, 1):
        out = hidden.reshape(n_tokens, -1).copy()
        run(add_to_copies, n_tokens, update, trained, out)
        wanted = bf16.round(expected) if trained else expected
        assert_same_bytes(out.reshape(hidden.shape), wanted)
