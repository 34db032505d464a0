import numpy as np
import pytest

from localv4 import quant
from localv4.kernels.entries import record_entries, record_remember
from localv4.kernels.kv_rows import decode_entry
from localv4.kernels.launch import Program
from localv4.kernels.rope import angles, rotate
from localv4.quant import bf16
from tests.kernels.compare import F32, U8, assert_bf16_close, assert_same_bytes
from tests.reference.forward_numerics import Numerics

ROPE_DIM = 8
WIDTH = 72
EPS = 1e-6
FREQUENCIES = np.array([1, 0.5, 0.1, 0.01], np.float32)


def run(values: F32, rows: U8, *, position: int, n_tokens: int, ratio: int, append: bool, trained):
    weight = bf16.round(np.random.default_rng(1).standard_normal(WIDTH))
    program, place = Program(), np.array([position], np.int64)
    tables = np.full((len(values), 2, ROPE_DIM // 2), np.nan, np.float32)
    program.phase("other")
    record_entries(
        program,
        values.copy(),
        weight,
        EPS,
        place,
        n_tokens,
        ratio,
        FREQUENCIES,
        trained,
        append,
        tables,
        rows,
    )
    program.run(1)
    return weight, tables


def unpacked(rows: U8, trained: bool) -> F32:
    out = np.empty((len(rows), WIDTH), np.float32)
    for row, entry in zip(rows, out, strict=True):
        decode_entry(row, ROPE_DIM, int(trained), entry)
    return out


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("position", "n_tokens", "ratio"), [(5, 3, 1), (2, 9, 4), (7, 1, 4), (8, 5, 4), (100, 300, 128)]
)
def test_entries_that_are_complete(position: int, n_tokens: int, ratio: int, trained: bool):
    rng = np.random.default_rng(position)
    values = rng.standard_normal((-(-n_tokens // ratio), WIDTH), np.float32)
    first, last = position // ratio, (position + n_tokens) // ratio
    n_bytes = WIDTH - ROPE_DIM + 2 * ROPE_DIM + 8 if trained else 4 * WIDTH
    append = ratio > 1
    start = first if append else 0
    rows = np.full((start + last - first + 1, n_bytes), 0xAA, np.uint8)
    weight, tables = run(
        values,
        rows,
        position=position,
        n_tokens=n_tokens,
        ratio=ratio,
        append=append,
        trained=trained,
    )
    assert (rows[:start] == 0xAA).all()
    assert (rows[-1] == 0xAA).all()
    num = Numerics("trained" if trained else "float32")
    taken = num.bf(values[: last - first].astype(np.float64))
    expected = num.rms_norm(taken, weight.astype(np.float64), EPS).astype(np.float32)
    for i, entry in enumerate(expected):
        table = np.empty((2, ROPE_DIM // 2), np.float32)
        angles((first + i) * ratio, FREQUENCIES, table)
        assert_same_bytes(tables[i], table)
        rotate(entry, table, np.float32(1), int(trained))
    ours = unpacked(rows[start:-1], trained)
    if trained:
        expected[:, :-ROPE_DIM] = quant.fp8_sim(expected[:, :-ROPE_DIM], 64)
        distinct = ours[:, :-ROPE_DIM] != expected[:, :-ROPE_DIM]
        # a BF16 step of the norm may move a value to the next FP8 number
        assert np.count_nonzero(distinct) <= 0.05 * distinct.size
        assert_bf16_close(ours[:, -ROPE_DIM:], expected[:, -ROPE_DIM:], equal=0.9, steps=2)
    else:
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("position", "n_tokens"), [(0, 1), (15, 1), (9, 5), (14, 4), (3, 40)])
def test_the_ring_keeps_the_last_rows(position: int, n_tokens: int):
    ring = np.zeros((16, 4), np.uint8)
    for place in range(position):
        ring[place % 16] = place
    fresh = np.repeat(np.arange(position, position + n_tokens, dtype=np.uint8), 4).reshape(-1, 4)
    program = Program()
    program.phase("other")
    record_remember(program, np.array([position], np.int64), fresh, ring)
    program.run(1)
    for place in range(max(0, position + n_tokens - 16), position + n_tokens):
        assert (ring[place % 16] == place).all()


def test_nothing_is_written_before_a_window_is_complete():
    rows = np.full((2, 4 * WIDTH), 0xAA, np.uint8)
    values = np.ones((1, WIDTH), np.float32)
    run(values, rows, position=0, n_tokens=3, ratio=4, append=True, trained=False)
    assert (rows == 0xAA).all()
