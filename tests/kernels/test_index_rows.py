import numpy as np
import pytest

from localv4 import quant
from localv4.kernels.index_queries import unpack_query
from localv4.kernels.index_rows import record_index_queries, record_keys
from localv4.kernels.indexer import packed_query_bytes
from localv4.kernels.kv_rows import decode_key
from localv4.kernels.launch import Program
from localv4.kernels.rope import angles, rotate
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_same_bytes, assert_same_numbers
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
