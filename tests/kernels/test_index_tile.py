"""Scores of packed keys against the twin: equal bytes on every tier."""

import hashlib

import numpy as np
import pytest

from localv4.kernels import index_tile, tiers
from localv4.kernels._jit import leaf
from localv4.kernels.index_queries import pack_head, query_bytes, unpack_query
from localv4.kernels.kv_rows import decode_key
from localv4.quant import bf16
from tests.kernels.compare import F32, U8, assert_same_bytes, needs_compiler
from tests.kernels.test_tiers import printed
from tests.reference import kernels_indexer as twin

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@leaf
def score_keys(
    packed: U8, n_heads: int, keys: U8, position: int, first: int, last: int, scores: F32
) -> None:
    index_tile.score_keys(packed, n_heads, keys, position, first, last, scores)


def packed_keys(codes: U8, exponents: U8) -> U8:
    """Return rows of keys from codes [n, width] and scale bytes [n, width / 32]."""
    return np.concatenate([codes[:, ::2] | codes[:, 1::2] << 4, exponents], axis=1).astype(np.uint8)


def unpacked(rows: U8) -> F32:
    keys = np.empty((len(rows), rows.shape[1] // 17 * 32), np.float32)
    for row, key in zip(rows, keys, strict=True):
        decode_key(row, 1, key)
    return keys


def packed_queries(values: F32, weights: F32) -> U8:
    rows = np.zeros((len(values), query_bytes(values.shape[1])), np.uint8)
    for token, head in np.ndindex(*weights.shape):
        pack_head(values[token, head], np.float32(weights[token, head]), head, rows[token])
    return rows


def scored(values: F32, weights: F32, keys: U8, *, position: int, first: int = 0) -> F32:
    """Return scores; what is not written keeps a number that is no BF16."""
    scores = np.full((len(values), len(keys)), np.float32(12345.678))
    score_keys(
        packed_queries(values, weights),
        values.shape[1],
        keys,
        position,
        first,
        len(keys),
        scores,
    )
    return scores


def expected_scores(values: F32, weights: F32, keys: U8, *, position: int, first: int = 0) -> F32:
    expected = np.full((len(values), len(keys)), np.float32(12345.678))
    for token, (query, weight) in enumerate(zip(values, weights, strict=True)):
        seen = slice(first, max(first, min(len(keys), (position + token + 1) // 4)))
        expected[token, seen] = twin.scores_in_blocks(query, weight, unpacked(keys[seen]))
    return expected


def random_queries(rng, n_tokens: int, heads: int, width: int, spread: int = 2):
    """Return queries [n_tokens, heads, width] of FP4 numbers, and head weights."""
    shape = (n_tokens, heads, width // 32)
    scales = np.exp2(rng.integers(-spread, spread + 1, shape)).astype(np.float32)
    values = rng.choice(E2M1, (*shape, 32)) * scales[..., None]
    weights = bf16.round(rng.standard_normal((n_tokens, heads)) * 0.1)
    return values.reshape(n_tokens, heads, width), weights


def random_keys(rng, n: int, width: int, spread: int = 2) -> U8:
    codes = rng.integers(0, 16, (n, width)).astype(np.uint8)
    exponents = rng.integers(127 - spread, 128 + spread, (n, width // 32)).astype(np.uint8)
    return packed_keys(codes, exponents)


@pytest.mark.parametrize("heads", [1, 5, 16, 17, 64])
@pytest.mark.parametrize("width", [32, 64, 96, 128])
def test_heads_and_widths(heads: int, width: int):
    rng = np.random.default_rng(heads + width)
    case = *random_queries(rng, 2, heads, width), random_keys(rng, 37, width)
    ours = scored(*case, position=1000)
    assert_same_bytes(ours, expected_scores(*case, position=1000))


@pytest.mark.parametrize("n_keys", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100])
@pytest.mark.parametrize(("position", "first"), [(0, 0), (60, 0), (123, 3), (390, 32)])
def test_parts_of_the_keys_and_what_a_token_sees(n_keys: int, position: int, first: int):
    rng = np.random.default_rng(n_keys)
    case = *random_queries(rng, 9, 3, 64), random_keys(rng, n_keys, 64)
    ours = scored(*case, position=position, first=min(first, n_keys))
    assert_same_bytes(ours, expected_scores(*case, position=position, first=min(first, n_keys)))


def test_scales_far_apart():
    """Blocks whose sums do not fit one float32 together are added in order."""
    rng = np.random.default_rng(3)
    case = *random_queries(rng, 2, 20, 128, spread=12), random_keys(rng, 200, 128, spread=12)
    assert_same_bytes(scored(*case, position=2000), expected_scores(*case, position=2000))


@pytest.mark.parametrize("large", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("apart", [10, 12, 14])
@pytest.mark.parametrize("in_keys", [True, False])
def test_blocks_are_added_in_order(large: tuple[int, int], apart: int, in_keys: bool):
    """Two large blocks cancel; between them, the small ones lose bits once a block."""
    rng = np.random.default_rng(apart)
    values = np.full((1, 4, 4, 32), 6, np.float32)
    values[:, :, large[1]] = -6
    small = [block for block in range(4) if block not in large]
    # sums of few bits, so that the last rounding keeps what is left of them
    values[:, :, small, 1:] = rng.choice(E2M1[[0, 1, 1, 9]], (1, 4, 2, 31))
    codes = np.full((18, 4, 32), 7, np.uint8)
    codes[:, small] = 1
    codes[:, small, 0] = 0
    exponents = np.full((18, 4), 127, np.uint8)
    if in_keys:
        exponents[16:, large] += np.uint8(apart)
        exponents[17, large] -= np.uint8(1)
    else:
        values[:, :, large] *= np.float32(2.0**apart)
    keys = packed_keys(codes.reshape(18, 128), exponents)
    weights = np.eye(4, dtype=np.float32)  # a token for a head
    queries = np.repeat(values.reshape(1, 4, 128), 4, axis=0)
    case = queries, weights, keys
    assert_same_bytes(scored(*case, position=1000), expected_scores(*case, position=1000))


@pytest.mark.parametrize("exponent", [0, 1, 96, 97, 98, 156, 157, 158, 170])
def test_one_key_with_a_scale_far_from_one(exponent: int):
    rng = np.random.default_rng(exponent)
    values, weights = random_queries(rng, 2, 5, 128)
    keys = random_keys(rng, 34, 128)
    keys[20, 66] = exponent
    if exponent < 2:
        keys[20, 32:48] = 0  # as a block of zeros is stored
    case = values, weights, keys
    assert_same_bytes(scored(*case, position=1000), expected_scores(*case, position=1000))


def test_every_code_meets_every_code():
    codes = np.arange(16, dtype=np.uint8)
    keys = packed_keys(np.repeat(codes, 128).reshape(16, 128), np.full((16, 4), 127, np.uint8))
    values = np.zeros((16, 128, 128), np.float32)
    for code, column in np.ndindex(16, 128):
        values[code, column, column] = E2M1[code]
        values[code, column, (column + 1) % 32 + column // 32 * 32] = 6  # keeps the scale at one
    weights = np.exp2(np.arange(128) % 7).astype(np.float32) * np.ones((16, 1), np.float32)
    ours = scored(values, weights, keys, position=100)
    assert_same_bytes(ours, expected_scores(values, weights, keys, position=100))


def test_every_scale_of_a_key():
    exponents = np.repeat(np.arange(40, 200, dtype=np.uint8), 4).reshape(-1, 4)
    rng = np.random.default_rng(5)
    keys = packed_keys(rng.integers(0, 16, (160, 128)).astype(np.uint8), exponents)
    case = *random_queries(rng, 1, 4, 128), keys
    assert_same_bytes(scored(*case, position=1000), expected_scores(*case, position=1000))


def test_the_largest_sums():
    for sign in (1, -1):
        keys = packed_keys(np.full((20, 128), 7, np.uint8), np.full((20, 4), 127, np.uint8))
        values = np.full((1, 16, 128), 6 * sign, np.float32)
        case = values, np.ones((1, 16), np.float32), keys
        assert scored(*case, position=100).tolist() == [[16 * 4608 if sign > 0 else 0] * 20]


def test_zeros_and_keys_without_a_scale():
    rng = np.random.default_rng(6)
    keys = random_keys(rng, 40, 128)
    keys[3, :64] = 0
    keys[5, 64:] = 0
    keys[7, 66] = 255
    values, weights = random_queries(rng, 3, 4, 128)
    values[0] = 0
    values[1, 2, 32:64] = np.nan
    case = values, weights, keys
    ours = scored(*case, position=1000)
    assert_same_bytes(ours, expected_scores(*case, position=1000))
    assert np.isnan(ours[0]).tolist() == [number == 7 for number in range(40)]
    assert np.isnan(ours[1]).all()


@needs_compiler
def test_a_token_alone_gives_its_scores():
    rng = np.random.default_rng(7)
    values, weights = random_queries(rng, 7, 64, 128)
    keys = random_keys(rng, 150, 128)
    whole = scored(values, weights, keys, position=500)
    for token in range(7):
        part = slice(token, token + 1)
        alone = scored(values[part], weights[part], keys, position=500 + token)
        assert_same_bytes(alone, whole[part])


def test_the_statement():
    """The plain function is what runs without a compiler."""
    rng = np.random.default_rng(8)
    values, weights = random_queries(rng, 2, 3, 64)
    keys = random_keys(rng, 9, 64)
    scores = np.full((2, 9), np.float32(12345.678))
    rows = packed_queries(values, weights)
    index_tile.score_keys(rows, 3, keys, 21, 2, 9, scores)
    assert_same_bytes(scores, expected_scores(values, weights, keys, position=21, first=2))


def test_packed_queries_hold_every_number():
    values = np.resize(E2M1, (1, 16, 128)) * np.exp2(np.arange(-60, 4)).reshape(1, 16, 4).repeat(
        32, 2
    ).astype(np.float32)
    weights = bf16.round(np.random.default_rng(0).standard_normal((1, 16)))
    rows = packed_queries(values.astype(np.float32), weights)
    again, factors = unpack_query(rows[0], 16, 128)
    np.testing.assert_array_equal(again, values[0])
    assert_same_bytes(factors, weights[0])


def bytes_of_scores() -> str:
    """Hash scores of many kinds of keys."""
    digest = hashlib.sha256()
    for spread in (1, 9):
        rng = np.random.default_rng(spread)
        values, weights = random_queries(rng, 3, 20, 128, spread)
        keys = random_keys(rng, 77, 128, spread)
        digest.update(scored(values, weights, keys, position=290).tobytes())
    return digest.hexdigest()


SCORES = """
    from localv4.kernels import tiers
    from tests.kernels.test_index_tile import bytes_of_scores

    print(tiers.active(), bytes_of_scores())
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("tier", ["avx512_vnni", "avx512", "avx2", "generic"])
def test_every_tier_gives_the_same_bytes(tier: str):
    if tier not in tiers.available():
        pytest.skip("this CPU cannot run the tier")
    done = printed(SCORES, LOCALV4_TIER=tier)
    assert done.stdout.split() == [tier, bytes_of_scores()], done.stderr[-2000:]
