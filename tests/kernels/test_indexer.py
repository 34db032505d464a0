import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from localv4 import quant
from localv4.kernels.indexer import choose, hadamard_fp4, score_entries
from localv4.kernels.kv_rows import encode_keys
from localv4.quant import bf16
from tests.kernels.compare import (
    F32,
    assert_bf16_close,
    assert_same_bytes,
    assert_same_numbers,
)
from tests.reference import kernels_indexer as twin
from tests.reference.forward_numerics import Numerics, hadamard_matrix


@pytest.mark.parametrize("size", [64, 128])
def test_hadamard_matches_the_golden(fixtures, size: int):
    x = fixtures[f"hadamard{size}.x"].copy()
    hadamard_fp4(x, trained=True)
    assert_same_numbers(x, quant.fp4_sim(fixtures[f"hadamard{size}.y"]))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_hadamard(size: int):
    x = bf16.round(np.random.default_rng(size).standard_normal((7, size)))
    expected = x.astype(np.float64) @ hadamard_matrix(size) * size**-0.5
    exact, rounded = x.copy(), x.copy()
    hadamard_fp4(exact, trained=False)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-6)
    hadamard_fp4(rounded, trained=True)
    assert_same_numbers(rounded, quant.fp4_sim(quant.hadamard(x)))


def random_scoring(n_tokens: int, n_entries: int, heads: int = 3, width: int = 64):
    """Return queries, head weights and keys, all as quantised as the trained numerics want."""
    rng = np.random.default_rng(n_entries)
    queries = quant.fp4_sim(rng.standard_normal((n_tokens, heads, width), np.float32) * 3)
    weights = bf16.round(rng.standard_normal((n_tokens, heads)) * 0.1)
    return queries, weights, quant.fp4_sim(rng.standard_normal((n_entries, width), np.float32))


def packed(keys: F32, trained: bool):
    width = keys.shape[1]
    rows = np.empty((len(keys), width // 2 + width // 32 if trained else 4 * width), np.uint8)
    encode_keys(keys.copy(), trained, rows)
    return rows


def run_scores(queries, weights, keys, *, position: int, trained: bool):
    scores = np.full((len(queries), len(keys)), np.nan, np.float32)
    score_entries(queries, weights, packed(keys, trained), position, 4, trained, scores)
    return scores


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("position", "n_entries"), [(0, 2), (17, 7), (1020, 258)])
def test_scores(trained: bool, position: int, n_entries: int):
    case = random_scoring(5, n_entries)
    ours = run_scores(*case, position=position, trained=trained)
    num = Numerics("trained" if trained else "float32")
    queries, weights, keys = (array.astype(np.float64) for array in case)
    expected = np.full(ours.shape, -np.inf)
    for token, entry in np.ndindex(ours.shape):
        if entry < (position + token + 1) // 4:
            expected[token, entry] = twin.score(num, queries[token], weights[token], keys[entry])
    visible = np.isfinite(expected)
    assert (ours[~visible] == -np.inf).all()
    if trained:
        assert_bf16_close(ours[visible], expected[visible])
    else:
        np.testing.assert_allclose(ours[visible], expected[visible], rtol=0, atol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_a_token_alone_gives_its_scores(trained: bool):
    queries, weights, keys = random_scoring(6, 9)
    whole = run_scores(queries, weights, keys, position=30, trained=trained)
    for token in range(6):
        part = slice(token, token + 1)
        query, weight = queries[part], weights[part]
        alone = run_scores(query, weight, keys, position=30 + token, trained=trained)
        assert_same_bytes(alone, whole[part])


def test_negative_products_count_for_nothing():
    queries = np.ones((1, 2, 32), np.float32)
    queries[0, 1] = -1
    weights = np.array([[2, 1000]], np.float32)
    keys = np.ones((1, 32), np.float32)
    for trained in (False, True):
        assert run_scores(queries, weights, keys, position=3, trained=trained).tolist() == [[64]]
        assert run_scores(queries, -weights, keys, position=3, trained=trained).tolist() == [[-64]]


def run_choose(scores: F32, count: int):
    chosen = np.full((len(scores), count), -7, np.int32)
    choose(scores, chosen)
    return chosen


def assert_right_choice(scores: F32, count: int) -> None:
    expected = np.stack([twin.choose(row, count) for row in scores])
    assert_same_bytes(run_choose(scores, count), expected)


TIED = st.sampled_from([-np.inf, -2.5, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0078125, 3e38])
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(0, 40)), elements=TIED | NUMBERS),
    st.integers(0, 45),
)
def test_choice(scores: F32, count: int):
    assert_right_choice(scores, count)


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(np.float32, (1, 30), elements=TIED), st.integers(1, 29))
def test_choice_among_ties(scores: F32, count: int):
    assert_right_choice(scores, count)


@pytest.mark.parametrize("count", [1, 5, 299, 300, 301])
def test_choice_of_many(count: int):
    rng = np.random.default_rng(count)
    scores = bf16.round(rng.standard_normal((3, 300)))  # BF16 numbers tie often
    scores[1, 40:] = -np.inf
    scores[2] = 0
    scores[2, ::2] = -0.0
    assert_right_choice(scores, count)


def test_by_hand():
    scores = np.array([[1, 3, 2, 3, -np.inf, 3, 0, -0.0]], np.float32)
    assert run_choose(scores, 2).tolist() == [[1, 3]]
    assert run_choose(scores, 4).tolist() == [[1, 2, 3, 5]]
    assert run_choose(scores, 6).tolist() == [[0, 1, 2, 3, 5, 6]]
    assert run_choose(scores, 8).tolist() == [[0, 1, 2, 3, 5, 6, 7, -1]]
