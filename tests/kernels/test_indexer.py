import numpy as np
import pytest

from localv4 import quant
from localv4.kernels.choice import SETS
from localv4.kernels.index_queries import pack_head
from localv4.kernels.indexer import (
    packed_query_bytes,
    record_score_and_choose,
    record_scores,
    score_scratch_shapes,
)
from localv4.kernels.kv_rows import encode_key
from localv4.kernels.launch import Program
from localv4.quant import bf16
from tests.kernels.compare import (
    F32,
    assert_bf16_close,
    assert_same_bytes,
    needs_compiler,
)
from tests.reference import kernels_indexer as twin
from tests.reference.forward_numerics import Numerics


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


@needs_compiler
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
