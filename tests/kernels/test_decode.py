"""Stored weights to registers, each decoder by itself, against localv4.quant: every code."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import pytest
from numba import types
from numpy.typing import NDArray

from localv4.kernels import decode, tiers
from localv4.kernels._jit import intrinsic
from localv4.kernels.simd import I16, Emitter
from localv4.quant import bf16, e2m1, e4m3
from tests.kernels.compare import assert_same_bytes, needs_compiler

pytestmark = needs_compiler

ALL_CODES = np.arange(256, dtype=np.uint8)
Decoder = Callable[[Emitter, Any], list[Any]]


def needs(tier: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(tier not in tiers.available(), reason=f"this CPU has no {tier}")


def decoded(decoder: Decoder, stored: NDArray[np.uint8], dtype: Any) -> NDArray[Any]:
    """Return every superblock's registers, [superblock, register, lane]."""

    @intrinsic
    def code(typing: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            emit = Emitter(builder)
            for number, register in enumerate(decoder(emit, args[0])):
                emit.store(emit.offset(args[1], 64 * number), register)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    def all_superblocks(
        source: int, source_bytes: int, target: int, target_bytes: int, count: int
    ) -> None:
        for i in range(count):
            code(source + i * source_bytes, target + i * target_bytes)

    out = np.zeros((len(stored), 32, 64), np.uint8)
    numba.njit(all_superblocks)(
        stored.ctypes.data, stored.shape[1], out.ctypes.data, out.strides[0], len(stored)
    )
    return out.view(dtype)


def every_code_everywhere(n_bytes: int) -> NDArray[np.uint8]:
    """Return 256 superblocks; each byte of them takes every value."""
    octets: NDArray[np.uint8] = ALL_CODES[:, None] + np.arange(n_bytes, dtype=np.uint8) * 7
    return np.ascontiguousarray(octets)


FP4 = every_code_everywhere(128)
FP4_VALUES = e2m1.decode(e2m1.unpack(FP4))
LONG_FP4 = every_code_everywhere(256)
LONG_FP4_VALUES = e2m1.decode(e2m1.unpack(LONG_FP4))
FP8 = every_code_everywhere(256)
FP8_VALUES = e4m3.decode(FP8)


def test_fp4_to_f32():
    ours = decoded(decode.fp4_to_f32, FP4, np.float32)[:, :16]
    assert_same_bytes(ours.reshape(256, 256), FP4_VALUES[:, decode.FP4_COLUMNS])


def test_fp4_to_integers():
    ours = decoded(decode.fp4_to_integers, LONG_FP4, np.float32).reshape(256, 512)
    np.testing.assert_array_equal(ours, 2 * LONG_FP4_VALUES[:, decode.FP4_INTEGER_COLUMNS])


@pytest.mark.parametrize(
    ("wide", "permutes"),
    [
        pytest.param(False, False, marks=needs("avx2")),
        pytest.param(True, False, marks=needs("avx512")),
        pytest.param(True, True, marks=needs("avx512_bf16")),
    ],
)
def test_fp4_to_bytes(wide: bool, permutes: bool):
    decoder = partial(decode.fp4_to_bytes, wide=wide, permutes=permutes)
    ours = decoded(decoder, LONG_FP4, np.uint8)[:, :8].reshape(256, 512)
    expected = 2 * LONG_FP4_VALUES[:, decode.FP4_BYTE_COLUMNS] + decode.FP4_OFFSET
    np.testing.assert_array_equal(ours, expected)


def test_fp8_to_f32():
    ours = decoded(decode.fp8_to_f32, FP8, np.float32)[:, :16]
    assert_same_bytes(ours.reshape(256, 256), FP8_VALUES[:, decode.FP8_COLUMNS])


@needs("avx2")
def test_fp8_through_f16_is_off_by_256_and_takes_nan_codes_for_480():
    ours = decoded(decode.fp8_through_f16, FP8, np.float32)[:, :16].reshape(256, 256)
    values = with_480(FP8_VALUES, FP8)
    assert_same_bytes(ours * np.float32(256), values[:, decode.FP8_COLUMNS])


def with_480(values: NDArray[np.float32], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return decoded codes as CPUs without a table see them: a NaN code is 480."""
    sign = np.where(codes < 128, np.float32(1), np.float32(-1))
    return np.where(np.isnan(values), sign * np.float32(480), values)


@needs("avx512_bf16")
def test_fp8_to_bf16():
    ours = decoded(decode.fp8_to_bf16, FP8, np.uint16)[:, :8].reshape(256, 8, 16, 2)
    upper, lower = np.moveaxis(decode.FP8_COLUMNS.reshape(8, 2, 16), 1, 0)
    values = with_480(FP8_VALUES, FP8)
    assert_same_bytes(bf16.decode(ours[..., 0]), values[:, lower])
    assert_same_bytes(bf16.decode(ours[..., 1]), values[:, upper])


def in_tiles(columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the columns of every pair of lanes, [group, place]: both lanes in turns."""
    chains = columns.reshape(16, 8, 2).transpose(1, 0, 2)  # step, group, lane -> group, step, lane
    return chains.reshape(8, 32)


def with_minus(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give all zeros a minus, as tiles have them."""
    return np.where(values == 0, np.float32(-0.0), values)


def lowering(decoder: Callable[..., list[Any]], exponent: int) -> Decoder:
    """Return the decoder with weights divided by 2**exponent, another one for each register."""

    def lowered(emit: Emitter, address: Any) -> list[Any]:
        taken = [emit.splat_constant(I16, (exponent + i) << 7, 32) for i in range(4)]
        return decoder(emit, address, taken)

    return lowered


def plain(decoder: Callable[..., list[Any]]) -> Decoder:
    return lambda emit, address: decoder(emit, address, None)


SOME_EXPONENTS = [0, 1, 30, 57]


@needs("avx512_bf16")
def test_fp8_to_tiles():
    halves = FP8.reshape(-1, 128)
    ours = decoded(plain(decode.fp8_to_tiles), halves, np.uint16)[:, :4].reshape(256, 8, 32)
    values = with_minus(with_480(FP8_VALUES, FP8))
    assert_same_bytes(bf16.decode(ours), values[:, in_tiles(decode.FP8_COLUMNS)])


@needs("avx512_bf16")
@pytest.mark.parametrize("exponent", SOME_EXPONENTS)
def test_fp8_to_tiles_divided_by_powers_of_two(exponent: int):
    halves = FP8.reshape(-1, 128)
    decoder = lowering(decode.fp8_to_tiles, exponent)
    ours = decoded(decoder, halves, np.uint16)[:, :4].reshape(256, 8, 32)
    values = with_minus(with_480(FP8_VALUES, FP8))[:, in_tiles(decode.FP8_COLUMNS)]
    powers = np.float32(0.5) ** (exponent + np.arange(8, dtype=np.float32) % 4)
    assert_same_bytes(bf16.decode(ours), values * powers[:, None])


@needs("avx512")
def test_bf16_to_tiles():
    stored = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    ours = decoded(decode.bf16_to_tiles, stored.view(np.uint8), np.uint16)[:, :8]
    np.testing.assert_array_equal(ours, stored[:, in_tiles(decode.BF16_COLUMNS)])


@needs("avx512")
def test_fp4_to_tiles_is_twice_the_values():
    lines = LONG_FP4.reshape(-1, 64)
    ours = decoded(plain(decode.fp4_to_tiles), lines, np.uint16)[:, :4].reshape(256, 512)
    values = with_minus(2 * LONG_FP4_VALUES)
    assert_same_bytes(bf16.decode(ours), values[:, decode.FP4_TILE_COLUMNS])


@needs("avx512")
@pytest.mark.parametrize("exponent", SOME_EXPONENTS)
def test_fp4_to_tiles_divided_by_powers_of_two(exponent: int):
    lines = LONG_FP4.reshape(-1, 64)
    decoder = lowering(decode.fp4_to_tiles, exponent)
    ours = decoded(decoder, lines, np.uint16)[:, :4].reshape(256, 16, 32)
    values = with_minus(2 * LONG_FP4_VALUES)[:, decode.FP4_TILE_COLUMNS].reshape(256, 16, 32)
    powers = np.float32(0.5) ** (exponent + np.arange(16, dtype=np.float32) % 4)
    assert_same_bytes(bf16.decode(ours), values * powers[:, None])


def test_bf16_to_f32():
    stored = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    ours = decoded(decode.bf16_to_f32, stored.view(np.uint8), np.uint32)[:, :16]
    values = bf16.decode(stored)[:, decode.BF16_COLUMNS]
    np.testing.assert_array_equal(ours.reshape(256, 256), values.view(np.uint32))


@pytest.mark.parametrize(
    "columns",
    [
        "FP4_COLUMNS",
        "FP4_INTEGER_COLUMNS",
        "FP4_BYTE_COLUMNS",
        "FP4_TILE_COLUMNS",
        "FP8_COLUMNS",
        "BF16_COLUMNS",
    ],
)
def test_every_column_has_one_place(columns: str):
    places = getattr(decode, columns)
    assert sorted(places) == list(range(len(places)))
