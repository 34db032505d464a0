"""Rounding of single values and of blocks, against localv4.quant: every code, tie and neighbour."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from localv4 import quant
from localv4.kernels import rounding
from localv4.quant import bf16, e2m1, e4m3, e8m0
from tests.kernels.compare import COMPILED, F32, assert_same_bytes, assert_same_numbers
from tests.quant.bits import AWKWARD_NAN_BITS

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
NANS = AWKWARD_NAN_BITS.view(np.float32)


def one_by_one(function: Callable[[np.float32], Any], values: NDArray[Any], dtype: Any) -> Any:
    return np.array([function(value) for value in values], dtype)


def with_neighbours(values: NDArray[Any]) -> F32:
    """Return values of both signs, the middles between them, and what lies next to all these."""
    magnitudes = np.unique(np.abs(values[np.isfinite(values)]))
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    points = np.concatenate([magnitudes, middles]).astype(np.float32)
    around = [np.nextafter(points, np.float32(end)) for end in (0, np.inf)]
    points = np.concatenate([points, *around])
    points = points[points <= magnitudes.max()]
    return np.concatenate([points, -points])


def test_round_bf16_at_every_bf16_number_and_between():
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    for lower in (0x0000, 0x7FFF, 0x8000, 0x8001, 0xFFFF) if COMPILED else (0x7FFF, 0x8000):
        values = (upper | np.uint32(lower)).view(np.float32)
        numbers = values[~np.isnan(values)]
        ours = one_by_one(rounding.round_bf16, numbers, np.float32)
        assert_same_bytes(ours, bf16.round(numbers))


def test_round_bf16_keeps_nan():
    assert np.isnan(one_by_one(rounding.round_bf16, NANS, np.float32)).all()


@settings(deadline=None, max_examples=200)
@given(FINITE)
def test_round_bf16_of_any_number(value: float):
    ours = np.float32(rounding.round_bf16(np.float32(value)))
    assert ours.tobytes() == bf16.round(np.float32(value)).tobytes()


def test_round_e4m3_at_every_code_and_between():
    points = with_neighbours(e4m3.decode(np.arange(256, dtype=np.uint8)))
    ours = one_by_one(rounding.round_e4m3, points, np.float32)
    assert_same_numbers(ours, e4m3.decode(e4m3.encode(points)))


def test_round_e2m1_at_every_code_and_between():
    points = with_neighbours(e2m1.decode(np.arange(16, dtype=np.uint8)))
    ours = one_by_one(rounding.round_e2m1, points, np.float32)
    assert_same_numbers(ours, e2m1.decode(e2m1.encode(points)))


@settings(deadline=None, max_examples=200)
@given(st.floats(-448, 448, width=32) | st.floats(-0.03125, 0.03125, width=32))
def test_rounding_of_any_number(value: float):
    assert rounding.round_e4m3(np.float32(value)) == e4m3.decode(e4m3.encode(value))
    value = float(np.float32(value * 6 / 448))
    assert rounding.round_e2m1(np.float32(value)) == e2m1.decode(e2m1.encode(value))


@pytest.mark.parametrize(("function", "twin"), [("e4m3", e4m3), ("e2m1", e2m1)])
def test_zero_keeps_its_sign(function: str, twin: Any):
    tiny = np.array([0, 1e-45, 1e-40, 2.0**-126, 2.0**-11, 2.0**-10], np.float32)
    values = np.concatenate([tiny, -tiny])
    ours = one_by_one(getattr(rounding, f"round_{function}"), values, np.float32)
    assert_same_bytes(ours, twin.decode(twin.encode(values)))
    ours = one_by_one(getattr(rounding, f"encode_{function}"), 0 * values, np.uint8)
    assert_same_bytes(ours, twin.encode(0 * values))


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_too_large_becomes_the_largest_number(sign: int):
    for function, largest in ((rounding.round_e4m3, 448), (rounding.round_e2m1, 6)):
        for value in (1.001 * largest, 1.2 * largest, 1e30, np.inf):
            assert function(np.float32(sign * value)) == sign * largest


def test_every_e4m3_code_survives():
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    ours = one_by_one(rounding.encode_e4m3, e4m3.decode(codes), np.uint8)
    np.testing.assert_array_equal(ours, codes)


def test_every_e2m1_code_survives():
    codes = np.array([code for code in range(16) if code != 8], np.uint8)
    ours = one_by_one(rounding.encode_e2m1, e2m1.decode(codes), np.uint8)
    np.testing.assert_array_equal(ours, codes)


BLOCKS = hnp.arrays(
    np.float32, 32, elements=st.floats(-4, 4, width=32) | st.floats(-(2.0**100), 2.0**100, width=32)
)


def fp8_block(block: F32) -> np.float32:
    scales = np.zeros(1, np.float32)
    rounding.fp8_blocks(block[None], scales)
    return np.float32(scales[0])


def assert_same_fp8_block(values: F32) -> None:
    block = values.copy()
    scale = fp8_block(block)
    codes, scales = quant.act_quant(values, block.size)
    assert_same_numbers(block, e4m3.decode(codes))
    assert scale == scales[0]
    assert_same_numbers(block * scale, quant.fp8_sim(values, block.size))


def assert_same_fp4_block(values: F32) -> None:
    block = values.copy()
    scale = rounding.fp4_block(block)
    codes, scale_codes = quant.fp4_quant(values, block.size)
    assert_same_numbers(block, e2m1.decode(codes))
    assert np.float32(scale) == e8m0.decode(scale_codes)[0]


@settings(deadline=None, max_examples=100)
@given(BLOCKS)
def test_any_block(values: F32):
    assert_same_fp8_block(values)
    assert_same_fp4_block(values)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_blocks_of_random_numbers(size: int):
    rng = np.random.default_rng(size)
    for exponent in range(-40, 40, 4):
        values = rng.standard_normal(size, np.float32) * np.float32(2.0**exponent)
        assert_same_fp8_block(values)
        assert_same_fp4_block(values)


def test_many_blocks_are_rounded_one_by_one():
    rng = np.random.default_rng(0)
    values = (
        rng.standard_normal((7, 128), np.float32) * np.exp2(np.arange(7, dtype=np.float32))[:, None]
    )
    blocks, scales = values.copy(), np.zeros(7, np.float32)
    rounding.fp8_blocks(blocks, scales)
    codes, expected = quant.act_quant(values, 128)
    assert_same_numbers(blocks, e4m3.decode(codes))
    assert_same_numbers(scales, expected[:, 0])


def test_the_scale_at_and_around_every_power():
    for largest, check in ((448, assert_same_fp8_block), (6, assert_same_fp4_block)):
        powers = np.ldexp(np.float32(largest), np.arange(-30, 100)).astype(np.float32)
        for towards in (np.float32(0), np.float32(np.inf)):
            for value in (*powers, *np.nextafter(powers, towards)):
                check(np.array([value, -value / 3], np.float32))


def test_the_floors():
    for check in (assert_same_fp8_block, assert_same_fp4_block):
        for value in (0.0, -0.0, 1e-45, -1e-38, 1e-6, 1e-4, -1.1e-4):
            check(np.full(32, value, np.float32))


@pytest.mark.parametrize("quantise", [fp8_block, rounding.fp4_block])
@np.errstate(all="ignore")
def test_a_block_with_no_number_in_it_reads_back_as_none(quantise: Callable[[F32], np.float32]):
    for poison in [*NANS, np.inf, -np.inf]:
        block = np.ones(32, np.float32)
        block[5] = poison
        scale = quantise(block)
        assert np.isnan(block * np.float32(scale)).all()


@np.errstate(all="ignore")
def test_e4m3_encodes_nan():
    assert {int(rounding.encode_e4m3(nan)) & 0x7F for nan in NANS} == {0x7F}
