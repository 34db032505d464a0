"""A needle in up to a million tokens: the packed index finds what float32 scores find.

One key of many lies along what a query looks for, with as much noise as the others; the choice by
FP4 keys and queries must hold it wherever it lies, as the choice by float32 scores does.
"""

import numpy as np
import pytest

from localv4 import quant
from localv4.kernels.choice import SETS, record_choose
from localv4.kernels.index_rows import record_index_queries
from localv4.kernels.indexer import packed_query_bytes, record_scores, score_scratch_shapes
from localv4.kernels.launch import Program
from localv4.quant import bf16
from tests.reference import kernels_indexer as twin

HEADS, WIDTH, CHOSEN, THREADS = 64, 128, 512, 2
DEPTHS = (0.0, 0.1, 0.5, 0.9, 1.0)


def packed_keys(keys):
    """Return keys as the cache holds them: turned, FP4, with a scale for 32 columns."""
    codes, scales = quant.activations.fp4_quant(quant.hadamard(keys), 32)
    return np.concatenate([quant.e2m1.pack(codes), scales], axis=1)


def choose_packed(queries, weights, keys):
    """Return what one query chooses of packed keys, by the kernels that decode by."""
    n_keys = len(keys)
    place = np.array([4 * n_keys - 1], np.int64)
    tables = np.zeros((1, 2, 32), np.float32)
    tables[:, 0] = 1  # no rotation
    packed = np.zeros((1, packed_query_bytes(HEADS, WIDTH, True)), np.uint8)
    queries, weights = queries.reshape(1, -1).copy(), weights[None].copy()
    shapes = score_scratch_shapes(THREADS, HEADS, WIDTH, True)
    first, second, third = (np.empty(shape, np.float32) for shape in shapes)
    scores, highest = np.empty((1, n_keys), np.float32), np.empty((1, SETS), np.int32)
    chosen, counts = np.empty((1, CHOSEN), np.int32), np.empty(1, np.int32)
    program = Program()
    program.phase("indexer")
    record_index_queries(program, queries, tables, weights, True, packed)
    program.phase("indexer")
    record_scores(
        program, queries, weights, packed, keys, place, True, 8, (first, second, third), scores,
        highest,
    )  # fmt: skip
    program.phase("indexer")
    best = np.empty((1, CHOSEN), np.float32)
    record_choose(program, scores, highest, place, 4, chosen, counts, best)
    program.run(THREADS)
    return chosen[0, : counts[0]]


@pytest.mark.parametrize("n_keys", [1024, 16_384, 262_144])
def test_a_needle_is_found_at_any_depth(n_keys: int):
    rng = np.random.default_rng(n_keys)
    queries = bf16.round(rng.standard_normal((HEADS, WIDTH)) + rng.standard_normal(WIDTH))
    weights = bf16.round(rng.uniform(0.1, 1, HEADS))
    keys = rng.standard_normal((n_keys, WIDTH), np.float32)
    sought = weights @ queries
    places = [round(depth * (n_keys - 1)) for depth in DEPTHS]
    keys[places] += 5 * sought / np.linalg.norm(sought)
    keys = bf16.round(keys)
    exact = np.maximum(keys @ queries.T, 0) @ weights
    by_float32 = twin.choose(exact.astype(np.float32), CHOSEN)
    assert np.isin(places, by_float32).all()
    chosen = choose_packed(queries, weights, packed_keys(keys))
    assert len(chosen) == CHOSEN
    assert np.isin(places, chosen).all()
    # rounding to FP4 changes who comes last among the chosen, not who comes first
    first = np.argsort(-exact)[: CHOSEN // 8]
    assert np.isin(first, chosen).all()
