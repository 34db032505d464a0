import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from localv4 import quant
from localv4.kernels.kv_rows import decode_entry, decode_key, encode_entry, encode_key
from localv4.quant import bf16, e2m1
from tests.kernels.compare import F32, assert_same_bytes, assert_same_numbers

NUMBERS = st.floats(-4, 4, width=32) | st.floats(-(2.0**100), 2.0**100, width=32)


def entry_round_trip(values: F32, rope_dim: int, trained: bool = True) -> F32:
    plain = values.shape[1] - rope_dim
    n_bytes = plain + 2 * rope_dim + -(-(plain // 64) // 8) * 8 if trained else 4 * values.shape[1]
    rows = np.full((len(values), n_bytes), 0xAA, np.uint8)
    out = np.empty_like(values)
    for entry, row, back in zip(values.copy(), rows, out, strict=True):
        encode_entry(entry, rope_dim, int(trained), row)
        decode_entry(row, rope_dim, int(trained), back)
    return out


def key_round_trip(values: F32, trained: bool = True) -> F32:
    size = values.shape[1]
    rows = np.full((len(values), size // 2 + size // 32 if trained else 4 * size), 0xAA, np.uint8)
    out = np.empty_like(values)
    for key, row, back in zip(values.copy(), rows, out, strict=True):
        encode_key(key, int(trained), row)
        decode_key(row, int(trained), back)
    return out


def simulated_entry(values: F32, rope_dim: int) -> F32:
    plain = values.shape[1] - rope_dim
    return np.concatenate([quant.fp8_sim(values[:, :plain], 64), values[:, plain:]], axis=1)


@pytest.mark.parametrize(
    ("head_dim", "rope_dim"), [(128, 64), (192, 64), (256, 64), (512, 64), (704, 64), (64, 64)]
)
def test_entries(head_dim: int, rope_dim: int):
    rng = np.random.default_rng(head_dim)
    sizes = 2.0 ** rng.integers(-30, 30, (3, head_dim // 64))
    values = bf16.round(rng.standard_normal((3, head_dim)) * np.repeat(sizes, 64, axis=1))
    expected = simulated_entry(values, rope_dim)
    assert_same_numbers(entry_round_trip(values, rope_dim), expected)


def test_entries_match_the_golden(fixtures):
    x, y = fixtures["act_quant64_sim.x"], fixtures["act_quant64_sim.y"]
    assert_same_numbers(entry_round_trip(x, 0), y)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (1, 72), elements=NUMBERS))
def test_any_entry(values: F32):
    values = bf16.round(values)
    assert_same_numbers(entry_round_trip(values, 8), simulated_entry(values, 8))


def test_every_bf16_number_in_the_rope_columns():
    values = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    values = values[np.isfinite(values)].reshape(-1, 256)
    assert_same_bytes(entry_round_trip(values, 256), values)


@np.errstate(over="ignore")
def test_every_fp8_code_with_every_scale():
    codes = np.arange(256, dtype=np.uint8).reshape(4, 64)
    for scale in range(1, 255):
        scales = np.full((4, 8), scale, np.uint8)
        out = np.empty((4, 64), np.float32)
        for row, entry in zip(np.concatenate([codes, scales], axis=1), out, strict=True):
            decode_entry(row, 0, 1, entry)
        assert_same_bytes(out, quant.fp8_dequant(codes, scales[:, :1]))


@pytest.mark.parametrize("width", [32, 64, 128])
def test_keys(width: int):
    rng = np.random.default_rng(width)
    sizes = 2.0 ** rng.integers(-30, 30, (5, width // 32))
    values = bf16.round(rng.standard_normal((5, width)) * np.repeat(sizes, 32, axis=1))
    assert_same_numbers(key_round_trip(values), quant.fp4_sim(values))


def test_keys_match_the_golden(fixtures):
    x, y = fixtures["fp4_quant32_sim.x"], fixtures["fp4_quant32_sim.y"]
    assert_same_numbers(key_round_trip(x), y)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (1, 32), elements=NUMBERS))
def test_any_key(values: F32):
    assert_same_numbers(key_round_trip(values), quant.fp4_sim(values))


def test_a_key_packed_twice_stays():
    """Keys are quantised before they are packed, so packing may change nothing."""
    once = quant.fp4_sim(np.random.default_rng(1).standard_normal((9, 64), np.float32))
    assert_same_numbers(key_round_trip(once), once)


@np.errstate(over="ignore")
def test_every_fp4_byte_with_every_scale():
    octets = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for scale in range(1, 255):
        scales = np.full((16, 1), scale, np.uint8)
        out = np.empty((16, 32), np.float32)
        for row, key in zip(np.concatenate([octets, scales], axis=1), out, strict=True):
            decode_key(row, 1, key)
        assert_same_bytes(out, quant.fp4_dequant(e2m1.unpack(octets), scales))


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.uint32, (2, 32), elements=st.integers(0, 2**32 - 1)))
def test_without_rounding_a_row_is_its_bits(bits):
    values = bits.view(np.float32)
    for ours in (entry_round_trip(values, 8, trained=False), key_round_trip(values, trained=False)):
        assert (ours.view(np.uint32) == bits).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@np.errstate(all="ignore")
def test_no_number_is_still_none(poison: float):
    values = np.ones((1, 128), np.float32)
    values[0, 5] = poison
    entry, key = entry_round_trip(values, 64), key_round_trip(values)
    assert np.isnan(entry[0, :64]).all()
    assert np.isnan(key[0, :32]).all()
    assert (entry[0, 64:] == 1).all()
    assert (key[0, 32:] == 1).all()
