"""Packed entries as pairs of BF16 numbers, against the float32 that kv_rows.py unpacks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4.kernels import attention_entries
from localv4.kernels._jit import leaf
from localv4.kernels.attention_entries import entry_words, pair_rows
from localv4.kernels.kv_rows import decode_entry, encode_entry
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_same_bytes, needs_compiler

I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]


@leaf
def decode_words(codes: U8, exponents: U8, out: I32) -> None:
    attention_entries.decode_words(codes, exponents, out)


def numbers(words: I32) -> F32:
    """Return the BF16 numbers of words, the one in the lower bits first."""
    return bf16.decode(np.ascontiguousarray(words).view(np.uint16))


def packed(values: F32, rope_dim: int) -> U8:
    plain = values.size - rope_dim
    row = np.zeros(plain + 2 * rope_dim + -(-(plain // 64) // 8) * 8, np.uint8)
    encode_entry(values, rope_dim, 1, row)
    return row


@needs_compiler
@pytest.mark.parametrize("exponent", [27, 105, 126, 127, 128, 200, 227, 255])
def test_every_code_in_every_place(exponent: int):
    codes = (np.arange(64)[:, None] + np.arange(256)).astype(np.uint8).reshape(-1)
    codes[codes & 0x7F == 0x7F] = 0
    exponents = np.full(codes.size // 64, exponent, np.uint8)
    ours, expected = np.empty((2, codes.size // 2), np.int32)
    decode_words(codes, exponents, ours)
    attention_entries.decode_words(codes, exponents, expected)
    assert_same_bytes(numbers(ours), numbers(expected))


@needs_compiler
def test_every_block_has_its_scale():
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 0x7F, 448, np.uint8)
    exponents = np.array([120, 131, 255, 127, 100, 140, 119], np.uint8)
    ours, expected = np.empty((2, 224), np.int32)
    decode_words(codes, exponents, ours)
    attention_entries.decode_words(codes, exponents, expected)
    assert_same_bytes(numbers(ours), numbers(expected))


@pytest.mark.parametrize(("head_dim", "rope_dim"), [(72, 8), (512, 64), (128, 128), (192, 64)])
def test_an_entry_is_what_it_is_in_float32(head_dim: int, rope_dim: int):
    rng = np.random.default_rng(head_dim)
    values = bf16.round(rng.standard_normal(head_dim) * np.exp(rng.standard_normal(head_dim)))
    row, expected = packed(values, rope_dim), np.empty(head_dim, np.float32)
    decode_entry(row, rope_dim, 1, expected)
    words = np.full(head_dim // 2 + 12, -1, np.int32)
    entry_words(row, head_dim, rope_dim, words)
    assert_same_bytes(numbers(words)[:head_dim], expected)
    assert not words[head_dim // 2 :].any()


def test_no_number_stays_in_its_block():
    values = np.ones(136, np.float32)
    values[70] = np.nan
    words = np.zeros(68, np.int32)
    entry_words(packed(values, 8), 136, 8, words)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(numbers(words))), np.arange(64, 128))


def test_pairs_of_rows():
    rng = np.random.default_rng(3)
    first, second = rng.integers(-(2**31), 2**31, (2, 40)).astype(np.int32)
    out = np.zeros(80, np.int32)
    pair_rows(first, second, out)
    halves = [row.view(np.uint16) for row in (first, second)]
    np.testing.assert_array_equal(out.view(np.uint16).reshape(80, 2), np.stack(halves, axis=1))
