import numpy as np
import pytest

from localv4.kernels.hyper_connections import (
    add_to_copies,
    inverse_rms,
    record_combination,
    record_spreading,
)
from localv4.quant import bf16
from tests.kernels.compare import assert_same_bytes, needs_compiler
from tests.kernels.programs import run, run_recorded
from tests.reference import kernels_hyper_connections as twin
from tests.reference.forward_numerics import sigmoid

EPS = 1e-6


def factors_of(hidden, eps: float):
    n_tokens = len(hidden)
    factors = np.empty(n_tokens, np.float32)
    run(inverse_rms, n_tokens, hidden.reshape(n_tokens, -1), eps, factors)
    return factors


def run_combine(hidden, mix, base, scale, *, eps=EPS, iterations: int = 20, trained: bool = False):
    """Return the combined x, post and residual [old copy, new copy]."""
    n_tokens, n, size = hidden.shape
    x = np.full((n_tokens, size), np.nan, np.float32)
    post = np.full((n_tokens, n), np.nan, np.float32)
    residual = np.full((n_tokens, n * n), np.nan, np.float32)
    run_recorded(
        record_combination,
        hidden.reshape(n_tokens, n * size),
        factors_of(hidden, eps),
        mix,
        base,
        scale,
        EPS,
        iterations,
        trained,
        post,
        residual,
        x,
    )
    return x, post, residual.reshape(n_tokens, n, n).transpose(0, 2, 1)


def random_case(n: int = 4, size: int = 24, n_tokens: int = 5):
    rng = np.random.default_rng(n)
    hidden = bf16.round(rng.standard_normal((n_tokens, n, size)) * 3)
    mix = rng.standard_normal((n_tokens, (2 + n) * n), np.float32) * 4
    base, scale = rng.standard_normal((2 + n) * n, np.float32), rng.standard_normal(3, np.float32)
    return hidden, mix, base, scale


def test_weights_match_the_golden(fixtures):
    mix, base, scale = (fixtures[f"hc_split.{name}"] for name in ("mixes", "base", "scale"))
    # the root mean square of ones is 1, exactly; each copy shows its weight in columns of its own
    ones = np.ones((len(mix), 4, 8), np.float32)
    apart = np.zeros((len(mix), 4, 4), np.float32)
    apart[:, range(4), range(4)] = 2
    _, post, residual = run_combine(ones, mix, base, scale, eps=0.0)
    pre = run_combine(apart, mix, base, scale, eps=0.0)[0] / 2
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
        x = twin.gather(copies, weights.pre)
        for array, expected in zip(ours, (x, weights.post, weights.residual), strict=True):
            np.testing.assert_allclose(array[token], expected, rtol=2e-6, atol=2e-6)


def test_only_the_states_that_leave_are_rounded():
    hidden, mix, base, scale = random_case()
    exact, rounded = (run_combine(hidden, mix, base, scale, trained=t) for t in (False, True))
    for weights, same in zip(rounded[1:], exact[1:], strict=True):
        assert_same_bytes(weights, same)
    assert_same_bytes(rounded[0], bf16.round(exact[0]))
    assert np.mean(rounded[0] != exact[0]) > 0.9


def test_the_residual_is_nearly_doubly_stochastic():
    residual = run_combine(*random_case())[2]
    np.testing.assert_allclose(residual.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(residual.sum(axis=2), 1, atol=1e-3)


def test_extreme_mixes_stay_finite():
    hidden, mix, base, scale = random_case()
    for factor in (80, -80):
        results = run_combine(hidden, np.sign(mix) * np.float32(factor), base, scale)
        assert all(np.isfinite(array).all() for array in results)


@needs_compiler
def test_combining_in_slices():
    """A row among few is cut; among many it is not, and gives the same bytes."""
    hidden, mix, base, scale = random_case(size=1100, n_tokens=40)
    for trained in (False, True):
        whole = run_combine(hidden, mix, base, scale, trained=trained)
        alone = run_combine(hidden[:2].copy(), mix[:2].copy(), base, scale, trained=trained)
        for ours, expected in zip(alone, whole, strict=True):
            assert_same_bytes(ours, expected[:2])


def run_spread(hidden, update, post, residual, trained: bool):
    n_tokens, n, size = hidden.shape
    out = np.full((n_tokens, n * size), np.nan, np.float32)
    by_new_copy = np.ascontiguousarray(residual.transpose(0, 2, 1)).reshape(n_tokens, -1)
    flat = hidden.reshape(n_tokens, -1)
    run_recorded(record_spreading, flat, update, post, by_new_copy, trained, out)
    return out.reshape(hidden.shape)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("size", [24, 1100])
def test_spread(n: int, size: int):
    hidden, mix, base, scale = random_case(n, size, n_tokens=33)
    update = bf16.round(np.random.default_rng(1).standard_normal((len(hidden), hidden.shape[2])))
    _, post, residual = run_combine(hidden, mix, base, scale)
    arrays = hidden, update, post, residual
    tokens = zip(*(array.astype(np.float64) for array in arrays), strict=True)
    expected = np.array([twin.spread(*token) for token in tokens])
    exact = run_spread(*arrays, False)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=4e-6)
    hidden, update, post, residual = (np.ascontiguousarray(array[:3]) for array in arrays)
    assert_same_bytes(run_spread(hidden, update, post, residual, False), exact[:3])  # cut
    assert_same_bytes(run_spread(*arrays, True), bf16.round(exact))


def test_combining_before_the_head():
    hidden, mix, base, scale = random_case()
    n_tokens, n, size = hidden.shape
    mix, base, scale = np.ascontiguousarray(mix[:, :n]), base[:n], scale[:1]
    flat, factors = hidden.reshape(n_tokens, -1), factors_of(hidden, EPS)
    nobody, x = np.empty((0, n), np.float32), np.full((n_tokens, size), np.nan, np.float32)
    weights = mix, base, scale, EPS, 20
    run_recorded(record_combination, flat, factors, *weights, False, nobody, nobody, x)
    for token, copies in enumerate(hidden.astype(np.float64)):
        scaled = mix[token] * twin.inverse_rms(copies, EPS)
        expected = twin.gather(copies, sigmoid(scaled * scale[0] + base) + EPS)
        np.testing.assert_allclose(x[token], expected, rtol=0, atol=4e-6)


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
