"""The steps of one unit of attention by themselves; test_attention.py judges the whole."""

import numpy as np
import pytest

from localv4.kernels.attention_products import PAIRS
from localv4.kernels.attention_walk import (
    BEHIND,
    block_size,
    carve,
    finish,
    lay_out,
    merge,
    n_words,
    prepare,
    scratch_shapes,
)
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_same_bytes

HEAD_DIM, ROPE_DIM = 72, 8
EPS = np.float32(-1)  # normalised already


def no_rotation() -> F32:
    return np.array([[1] * (ROPE_DIM // 2), [0] * (ROPE_DIM // 2)], np.float32)


@pytest.mark.parametrize("trained", [0, 1])
@pytest.mark.parametrize(("head_dim", "n_heads"), [(72, 16), (512, 64), (128, 32)])
def test_scratch_is_divided_without_overlap(head_dim: int, n_heads: int, trained: int):
    shapes = scratch_shapes(head_dim, n_heads, trained)
    memory = np.zeros(sum(rows * columns for rows, columns in shapes), np.float32)
    parts = carve(memory, head_dim, n_heads, trained)
    assert [part.shape for part in parts] == list(shapes)
    for number, part in enumerate(parts, 1):
        part[:] += number
    expected = [np.full(rows * columns, i) for i, (rows, columns) in enumerate(shapes, 1)]
    np.testing.assert_array_equal(memory, np.concatenate(expected))
    assert block_size(trained) % 32 == 0


@pytest.mark.parametrize("trained", [0, 1])
def test_heads_lie_side_by_side(trained: int):
    rng = np.random.default_rng(1)
    queries = bf16.round(rng.standard_normal((18, HEAD_DIM)))
    room = np.full(scratch_shapes(HEAD_DIM, 16, trained)[0], np.nan, np.float32)
    rows = np.full((16, n_words(HEAD_DIM, trained)), np.nan, np.float32)
    for first in (0, 16):
        lanes = np.full(rows.shape[::-1], np.nan, np.float32)
        for part in range(0, 16, 4):
            some = rows[part : part + 4]
            args = queries.reshape(-1), EPS, no_rotation(), HEAD_DIM, first + part, trained
            prepare(*args, room, some)
        lay_out(rows, lanes)
        if trained and PAIRS:
            halves = bf16.decode(lanes.view(np.uint16).reshape(-1, 16, 2))
            lanes = np.swapaxes(halves, 1, 2).reshape(-1, 16).copy()
        given = queries[first : first + 16].T
        assert_same_bytes(lanes[:HEAD_DIM, : given.shape[1]], given.copy())
        assert not lanes[HEAD_DIM:].any()
        assert not lanes[:, given.shape[1] :].any()


def result(values: F32, largest: F32, total: F32) -> F32:
    """Return sums with what lies behind them."""
    sums = np.zeros((len(values), values.shape[1] + BEHIND), np.float32)
    sums[:, : values.shape[1]] = values
    sums[:, values.shape[1]], sums[:, values.shape[1] + 1] = largest, total
    return sums


def test_segments_merged_and_divided_are_one_softmax():
    rng = np.random.default_rng(2)
    scores, values = rng.standard_normal((3, 40)) * 9, rng.standard_normal((40, HEAD_DIM))
    parts = []
    for part in (slice(0, 25), slice(25, 40)):
        largest = scores[:, part].max(axis=1)
        shares = np.exp(scores[:, part] - largest[:, None])
        sums = result(shares @ values[part], largest, shares.sum(axis=1))
        parts.append(sums)
    merge(*parts)
    sinks = rng.standard_normal(3, np.float32)
    out = np.empty(3 * HEAD_DIM, np.float32)
    finish(parts[0], sinks, no_rotation(), HEAD_DIM, 0, out)
    shares = np.exp(scores)
    expected = shares @ values / (shares.sum(axis=1) + np.exp(sinks))[:, None]
    np.testing.assert_allclose(out.reshape(3, -1), expected, rtol=0, atol=1e-6)
    finish(parts[0], sinks, no_rotation(), HEAD_DIM, 1, out)
    np.testing.assert_allclose(out.reshape(3, -1), expected, rtol=2**-8, atol=1e-6)
    assert_same_bytes(out, bf16.round(out))
