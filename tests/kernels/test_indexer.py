import numpy as np
import pytest

from localv4 import quant
from localv4.kernels.choice import SETS
from localv4.kernels.index_queries import pack_head, unpack_query
from localv4.kernels.indexer import (
    packed_query_bytes,
    record_index_queries,
    record_keys,
    record_score_and_choose,
    record_scores,
    score_scratch_shapes,
)
from localv4.kernels.kv_rows import decode_key, encode_key
from localv4.kernels.launch import Program
from localv4.kernels.rope import angles, rotate
from localv4.quant import bf16
from tests.kernels.compare import (
    F32,
    assert_bf16_close,
    assert_same_bytes,
    assert_same_numbers,
)
from tests.reference import kernels_indexer as twin
from tests.reference.forward_numerics import Numerics, hadamard_matrix


def no_rotation(n_tokens: int) -> F32:
    tables = np.zeros((n_tokens, 2, 4), np.float32)
    tables[:, 0] = 1
    return tables


def hadamard_fp4(x: F32, trained: bool) -> None:
    """Transform rows in place, as queries of as many tokens with one head."""
    program = Program()
    program.phase("indexer")
    weights = np.ones((len(x), 1), np.float32)
    nothing = np.zeros((len(x), 0), np.uint8)
    record_index_queries(program, x, no_rotation(len(x)), weights, trained, nothing)
    program.run(1)


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
    for key, row in zip(keys.copy(), rows, strict=True):
        encode_key(key, int(trained), row)
    return rows


def packed_queries(queries, weights, trained: bool):
    """Return queries as they are multiplied; without a byte where they are not packed."""
    n_tokens, heads, width = queries.shape
    rows = np.zeros((n_tokens, packed_query_bytes(heads, width, trained)), np.uint8)
    if rows.size:
        for token, head in np.ndindex(n_tokens, heads):
            pack_head(queries[token, head], weights[token, head], head, rows[token])
    return rows


def scratch(heads: int, width: int, *, trained: bool):
    first, second, third = (
        np.full(shape, np.nan, np.float32)
        for shape in score_scratch_shapes(1, heads, width, trained)
    )
    return first, second, third


def run_scores(queries, weights, keys, *, position: int, trained: bool, parts: int = 1):
    """Return scores [n_tokens, n_entries], -inf for what a query may not see."""
    scores = np.full((len(queries), len(keys)), -np.inf, np.float32)
    program = Program()
    program.phase("indexer")
    record_scores(
        program,
        queries.reshape(len(queries), -1),
        weights,
        packed_queries(queries, weights, trained),
        packed(keys, trained),
        np.array([position], np.int64),
        trained,
        parts,
        scratch(*queries.shape[1:], trained=trained),
        scores,
        np.zeros((len(queries), SETS), np.int32),
    )
    program.run(1)
    return scores


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("position", "n_entries"), [(0, 2), (17, 7), (1023, 258)])
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


@pytest.mark.parametrize("trained", [False, True])
def test_neither_parts_nor_the_way_change_a_byte(trained: bool):
    queries, weights, keys = random_scoring(3, 300, heads=5)
    whole = run_scores(queries, weights, keys, position=1190, trained=trained)
    for parts in (2, 3, 8):
        other = run_scores(queries, weights, keys, position=1190, trained=trained, parts=parts)
        assert_same_bytes(other, whole)
    expected = np.stack([twin.choose(row, 20) for row in whole])
    for at_once in (1, 2, 3):
        chosen, best = np.full((3, 20), -7, np.int32), np.full((3, 20), np.nan, np.float32)
        counts, place = np.zeros(3, np.int32), np.array([1190], np.int64)
        program, room = Program(), np.full((at_once, 300), np.nan, np.float32)
        program.phase("indexer")
        record_score_and_choose(
            program,
            queries.reshape(3, -1),
            weights,
            packed_queries(queries, weights, trained),
            packed(keys, trained),
            place,
            trained,
            at_once,
            chosen,
            counts,
            best,
            scratch(5, 64, trained=trained),
            room,
            np.zeros((at_once, SETS), np.int32),
        )
        program.run(1)
        assert_same_bytes(chosen, expected)
        assert counts.tolist() == [20, 20, 20]
        assert_same_bytes(best, np.take_along_axis(whole, expected, 1))


@pytest.mark.parametrize("width", [64, 256])
def test_keys_too_wide_to_be_multiplied_packed_have_the_same_rounding(width: int):
    queries, weights, keys = random_scoring(2, 70, heads=3, width=width)
    ours = run_scores(queries, weights, keys, position=278, trained=True)
    assert (packed_query_bytes(3, width, True) > 0) == (width == 64)
    for token in range(2):
        expected = twin.scores_in_blocks(queries[token], weights[token], keys[:69])
        assert_same_bytes(ours[token, :69], expected)


@pytest.mark.parametrize("trained", [False, True])
def test_queries_are_turned_first_and_head_weights_scaled(trained: bool):
    rng = np.random.default_rng(3)
    queries = bf16.round(rng.standard_normal((2, 9 * 64)))
    weights = bf16.round(rng.standard_normal((2, 9)))
    turns = rng.uniform(0, 6, (2, 4)).astype(np.float32)
    tables = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    expected = queries.reshape(-1, 64).copy()
    for row, token in zip(expected, np.repeat([0, 1], 9), strict=True):
        rotate(row, tables[token], np.float32(1), int(trained))
    hadamard_fp4(expected, trained)
    scaled = weights * np.float32(64**-0.5 * 9**-0.5)
    program = Program()
    program.phase("indexer")
    rows = np.zeros((2, packed_query_bytes(9, 64, trained)), np.uint8)
    record_index_queries(program, queries, tables, weights, trained, rows)
    program.run(1)
    assert_same_bytes(queries.reshape(-1, 64), expected)
    assert_same_bytes(weights, bf16.round(scaled) if trained else scaled)
    for token in range(2 if trained else 0):
        values, factors = unpack_query(rows[token], 9, 64)
        assert_same_numbers(values, queries[token].reshape(9, 64))
        assert_same_bytes(factors, weights[token])


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("position", "n_tokens"), [(0, 3), (2, 9), (7, 1), (8, 4)])
def test_keys_of_the_windows_that_are_complete(position: int, n_tokens: int, trained: bool):
    rng = np.random.default_rng(position)
    values = rng.standard_normal((-(-n_tokens // 4), 64), np.float32)
    weight = bf16.round(rng.standard_normal(64))
    frequencies = np.array([1, 0.5, 0.1, 0.01], np.float32)
    first, last = position // 4, (position + n_tokens) // 4
    n_bytes = 64 // 2 + 2 if trained else 256
    rows = np.full((last + 1, n_bytes), 0xAA, np.uint8)
    expected = rows.copy()
    num = Numerics("trained" if trained else "float32")
    normed = num.rms_norm(num.bf(values.astype(np.float64)), weight.astype(np.float64), 1e-6)
    program, place = Program(), np.array([position], np.int64)
    program.phase("compressor")
    record_keys(program, values, weight, 1e-6, place, n_tokens, frequencies, trained, rows)
    program.run(1)
    untouched = [*range(first), last]
    assert_same_bytes(rows[untouched], expected[untouched])
    for key in range(first, last):
        row, table = normed[key - first].astype(np.float32), np.empty((2, 4), np.float32)
        angles(4 * key, frequencies, table)
        rotate(row, table, np.float32(1), int(trained))
        wanted, ours = row[None].copy(), np.empty(64, np.float32)
        hadamard_fp4(wanted, trained)
        decode_key(rows[key], int(trained), ours)
        if trained:
            # a BF16 step of the norm may move a value to the next FP4 number
            assert np.mean(ours == wanted[0]) > 0.9
        else:
            np.testing.assert_allclose(ours, wanted[0], rtol=0, atol=1e-5)
