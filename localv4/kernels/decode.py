"""Stored weights to vector registers: one superblock of every format, by several kinds of code.

All ways to decode a format give the same values in the same lanes and steps; which one is used
depends on what the CPU has (walks.py).  Values are unscaled and exact.

* FP4: 128 bytes are 256 columns.  Lane 4q+2i+d holds scale block 4i+q of 32 columns; the
  32-bit word 2j+d of that block gives the lane the columns 8(2j+d) to 8(2j+d)+7.
* FP4 as integers: 256 bytes are 512 columns.  Lane 4s+z holds scale block 4z+s of 32 columns.
* FP8: 256 bytes.  Lane 8q+4e+d holds scale block q of 128 columns, and of it the columns
  32i+16e+8h+2d and the next one, for i < 4 and h < 2.
* BF16: 512 bytes are 256 columns.  Lane l holds columns 32k+2l and 32k+2l+1, for k < 8.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from localv4.kernels.simd import F16, F32, F32X16, I8, I16, I32, I64, Emitter, vector
from localv4.quant import bf16, e2m1, e4m3

__all__ = [
    "BF16_COLUMNS",
    "FP4_BYTE_COLUMNS",
    "FP4_COLUMNS",
    "FP4_INTEGER_COLUMNS",
    "FP4_OFFSET",
    "FP4_TILE_COLUMNS",
    "FP8_COLUMNS",
    "bf16_to_f32",
    "bf16_to_tiles",
    "e4m3_to_bf16",
    "fp4_to_bytes",
    "fp4_to_f32",
    "fp4_to_integers",
    "fp4_to_tiles",
    "fp8_through_f16",
    "fp8_to_bf16",
    "fp8_to_f32",
    "fp8_to_tiles",
]

# Twice the magnitude of the eight E2M1 codes, four bits each, code 0 in the lowest bits.
_E2M1_DOUBLED = 0xC8643210
FP4_OFFSET = 12
_FP4_BYTES = [FP4_OFFSET + int(2 * value) for value in e2m1.decode(np.arange(16, dtype=np.uint8))]
_MINUS_ZERO = 0x8000  # as BF16
_FP4_DOUBLED_BITS = bf16.encode(2 * e2m1.decode(np.arange(16, dtype=np.uint8)))
# BF16 bits of zero and the seven E4M3 subnormals, lower and upper bytes.
_TINY_BITS = bf16.encode(e4m3.decode(np.arange(8, dtype=np.uint8)))
_TINY_LOW = [int(bits) & 255 for bits in _TINY_BITS]
_TINY_HIGH = [int(bits) >> 8 for bits in _TINY_BITS]


def _bit_matrix(*rows: int) -> int:
    """Return 8 rows of 8 bits, that of the highest result bit first, as a signed 64-bit number."""
    return int.from_bytes(bytes(rows), "little", signed=True)


# A code's bits: sign 128, exponent 64 32 16 8, mantissa 4 2 1.  BF16's exponent is 120 more, so its
# bits are the code's, but for four copies of the highest one, inverted, behind that.
_HIGH_MATRIX = _bit_matrix(128, 64, 64, 64, 64, 64, 32, 16)
_LOW_MATRIX = _bit_matrix(8, 4, 2, 1, 0, 0, 0, 0)


def _fp4_columns() -> NDArray[np.int64]:
    """Step 8j+2n adds column 8(2j+d)+4+n, the next step the one four before."""
    step, half, lane = np.meshgrid(np.arange(8), np.arange(2), np.arange(16), indexing="ij")
    block = 4 * ((lane >> 1) & 1) + (lane >> 2)
    word = 2 * (step >> 2) + (lane & 1)
    return np.asarray(32 * block + 8 * word + 4 * (1 - half) + (step & 3), np.int64).ravel()


def _fp4_integer_columns() -> NDArray[np.int64]:
    """Step 8w+n adds column 8w+n of the lane's block."""
    step, lane = np.meshgrid(np.arange(32), np.arange(16), indexing="ij")
    return np.asarray(32 * (4 * (lane & 3) + (lane >> 2)) + step, np.int64).ravel()


def _fp4_byte_columns() -> NDArray[np.int64]:
    """Step 2w+h multiplies four columns a lane: 8w+2b+h of its block for byte b."""
    word, h, lane, byte = np.meshgrid(*map(np.arange, (4, 2, 16, 4)), indexing="ij")
    block = 4 * (lane & 3) + (lane >> 2)
    return np.asarray(32 * block + 8 * word + 2 * byte + h, np.int64).ravel()


def _fp4_tile_columns() -> NDArray[np.int64]:
    """Place 32b+8j+w is column 32b+4w+j."""
    block, j, word = np.meshgrid(np.arange(16), np.arange(4), np.arange(8), indexing="ij")
    return np.asarray(32 * block + 4 * word + j, np.int64).ravel()


def _fp8_columns() -> NDArray[np.int64]:
    """Add in steps 2(2i+h) and 2(2i+h)+1 columns 32i+16e+8h+2d+1 and 32i+16e+8h+2d."""
    step, half, lane = np.meshgrid(np.arange(8), np.arange(2), np.arange(16), indexing="ij")
    first = 128 * (lane >> 3) + 32 * (step >> 1) + 16 * ((lane >> 2) & 1)
    return np.asarray(first + 8 * (step & 1) + 2 * (lane & 3) + 1 - half, np.int64).ravel()


def _bf16_columns() -> NDArray[np.int64]:
    """Add in steps 2k and 2k+1 columns 32k+2l+1 and 32k+2l."""
    k, half, lane = np.meshgrid(np.arange(8), np.arange(2), np.arange(16), indexing="ij")
    return np.asarray(32 * k + 2 * lane + 1 - half, np.int64).ravel()


FP4_COLUMNS = _fp4_columns()
FP4_INTEGER_COLUMNS = _fp4_integer_columns()
FP4_BYTE_COLUMNS = _fp4_byte_columns()
FP4_TILE_COLUMNS = _fp4_tile_columns()
FP8_COLUMNS = _fp8_columns()
BF16_COLUMNS = _bf16_columns()


def _fp4_words(emit: Emitter, address: Any) -> list[Any]:
    """128 bytes -> two registers of 32-bit words in lane order."""
    low = emit.load(address, vector(I32))
    high = emit.load(emit.offset(address, 64), vector(I32))
    return [
        emit.shuffle(
            low,
            high,
            [16 * i + 4 * q + 2 * j + d for q in range(4) for i in range(2) for d in range(2)],
        )
        for j in range(2)
    ]


def _fp4_blocks(emit: Emitter, address: Any) -> list[Any]:
    """256 bytes -> the four 32-bit words of 16 blocks, a register each, by interleaving twice."""
    quarters = [emit.load(emit.offset(address, 64 * z), vector(I32)) for z in range(4)]

    def interleaved(left: Any, right: Any, width: int, half: int) -> Any:
        """Take, of every four lanes, a half of both in turns of `width`."""
        lanes = [
            4 * s + 2 * half + i + 16 * side
            for s in range(4)
            for first in range(0, 2, width)
            for side in (0, 1)
            for i in range(first, first + width)
        ]
        return emit.shuffle(left, right, lanes)

    words = []
    for half in (0, 1):
        left = interleaved(quarters[0], quarters[1], 1, half)
        right = interleaved(quarters[2], quarters[3], 1, half)
        words += [interleaved(left, right, 2, part) for part in (0, 1)]
    return words


def _e2m1_doubled(emit: Emitter, words: Any, shift: int) -> tuple[Any, Any]:
    """Return twice the magnitude, and the sign bit in place, of the nibble at `shift`."""
    builder = emit.builder
    nibble = builder.lshr(words, emit.splat_constant(I32, shift))
    index = builder.and_(nibble, emit.splat_constant(I32, 7))
    table = emit.splat_constant(I32, _E2M1_DOUBLED - (1 << 32))
    entry = builder.lshr(table, builder.shl(index, emit.splat_constant(I32, 2)))
    sign = builder.shl(
        builder.and_(nibble, emit.splat_constant(I32, 8)), emit.splat_constant(I32, 28)
    )
    return builder.and_(entry, emit.splat_constant(I32, 15)), sign


def fp4_to_f32(emit: Emitter, address: Any) -> list[Any]:
    """128 bytes -> 16 registers of float32 in the order of `FP4_COLUMNS`."""
    builder, steps = emit.builder, []
    for words in _fp4_words(emit, address):
        for n in range(4):
            for half in (4, 0):
                doubled, sign = _e2m1_doubled(emit, words, 4 * (n + half))
                value = builder.sitofp(doubled, F32X16)
                value = builder.fmul(value, emit.splat_constant(F32, 0.5))
                bits = builder.or_(builder.bitcast(value, vector(I32)), sign)
                steps.append(builder.bitcast(bits, F32X16))
    return steps


def fp4_to_integers(emit: Emitter, address: Any) -> list[Any]:
    """256 bytes -> 32 registers of float32, twice the values."""
    builder, steps = emit.builder, []
    for words in _fp4_blocks(emit, address):
        for n in range(8):
            doubled, sign = _e2m1_doubled(emit, words, 4 * n)
            bits = builder.bitcast(builder.sitofp(doubled, F32X16), vector(I32))
            steps.append(builder.bitcast(builder.or_(bits, sign), F32X16))
    return steps


def fp4_to_bytes(emit: Emitter, address: Any, wide: bool, permutes: bool) -> list[Any]:
    """256 bytes -> 8 registers of unsigned bytes, twice the values plus `FP4_OFFSET`.

    Parameters
    ----------
    wide
        The CPU has 512-bit byte shuffles.
    permutes
        It has permutations of 64 bytes, which read six bits of an index and so need no mask.
    """
    builder, kind = emit.builder, vector(I8, 64)
    mask = emit.splat_constant(I8, 15, 64)
    registers = []
    for words in _fp4_blocks(emit, address):
        shifted = builder.lshr(
            builder.bitcast(words, vector(I16, 32)), emit.splat_constant(I16, 4, 32)
        )
        for index in (words, shifted):
            nibbles = builder.bitcast(index, kind)
            if permutes:
                table = emit.constant(I8, _FP4_BYTES * 4)
                name = "llvm.x86.avx512.permvar.qi.512"
                registers.append(emit.call(name, kind, table, nibbles))
                continue
            nibbles = builder.and_(nibbles, mask)
            if wide:
                table = emit.constant(I8, _FP4_BYTES * 4)
                registers.append(emit.call("llvm.x86.avx512.pshuf.b.512", kind, table, nibbles))
                continue
            table = emit.constant(I8, _FP4_BYTES * 2)
            name, half = "llvm.x86.avx2.pshuf.b", vector(I8, 32)
            parts = (emit.call(name, half, table, part) for part in emit.halves(nibbles))
            registers.append(emit.join(*parts))
    return registers


def fp4_to_tiles(emit: Emitter, address: Any, lowered: Sequence[Any] | None) -> list[Any]:
    """64 bytes -> 4 registers of 32 BF16 that are twice the values, one for each scale block.

    Place 8j+w of a block has its column 4w+j.  All zeros are negative.  `lowered`, a register for
    each, divide a block by a power of two: its exponent, as in a BF16 number.
    """
    builder, kind = emit.builder, vector(I16, 32)
    bits = [int(bits) if bits & 0x7FFF else _MINUS_ZERO for bits in _FP4_DOUBLED_BITS]
    table = emit.constant(I16, bits * 2)
    shifts = emit.constant(I16, [4 * j for j in range(4) for _ in range(8)])
    registers = []
    for block in range(4):
        words = emit.load(emit.offset(address, 16 * block), vector(I16, 8))
        words = emit.shuffle(words, words, list(range(8)) * 4)
        # the permutation reads five bits of an index, and the table stands there twice
        index = builder.lshr(words, shifts)
        registers.append(emit.call("llvm.x86.avx512.permvar.hi.512", kind, table, index))
    return _lowered(emit, registers, lowered)


def _lowered(emit: Emitter, registers: list[Any], lowered: Sequence[Any] | None) -> list[Any]:
    """Divide BF16 numbers by powers of two: only a negative zero saturates, and stays one."""
    if lowered is None:
        return registers
    return [
        emit.call("llvm.ssub.sat.v32i16", values.type, values, exponents)
        for values, exponents in zip(registers, lowered, strict=True)
    ]


def _e4m3_to_f32(emit: Emitter, code: Any) -> Any:
    """Decode i32 lanes 0..255: exponent moved by bits, subnormals by a subtraction, exact."""
    i32 = vector(I32)
    builder = emit.builder
    magnitude = builder.and_(code, emit.splat_constant(I32, 0x7F))
    shifted = builder.shl(magnitude, emit.splat_constant(I32, 20))
    normal = builder.add(shifted, emit.splat_constant(I32, 120 << 23))
    above = builder.bitcast(builder.add(shifted, emit.splat_constant(I32, 121 << 23)), F32X16)
    subnormal = builder.fsub(above, emit.splat_constant(F32, 2.0**-6))
    is_subnormal = builder.icmp_unsigned("<", magnitude, emit.splat_constant(I32, 8))
    value = builder.select(is_subnormal, builder.bitcast(subnormal, i32), normal)
    is_nan = builder.icmp_unsigned("==", magnitude, emit.splat_constant(I32, 0x7F))
    value = builder.select(is_nan, emit.splat_constant(I32, 0x7FC00000), value)
    sign = builder.shl(
        builder.and_(code, emit.splat_constant(I32, 0x80)), emit.splat_constant(I32, 24)
    )
    return builder.bitcast(builder.or_(value, sign), F32X16)


def _fp8_pairs(emit: Emitter, address: Any) -> list[Any]:
    """256 bytes -> 8 registers of 16 byte pairs, one for each i and h."""
    pairs = []
    for i in range(4):
        both = emit.join(
            emit.load(emit.offset(address, 32 * i), vector(I16)),
            emit.load(emit.offset(address, 128 + 32 * i), vector(I16)),
        )
        for h in range(2):
            lanes = [
                16 * q + 8 * e + 4 * h + d for q in range(2) for e in range(2) for d in range(4)
            ]
            pairs.append(emit.shuffle(both, both, lanes))
    return pairs


def fp8_to_f32(emit: Emitter, address: Any) -> list[Any]:
    """256 bytes -> 16 registers of float32 in the order of `FP8_COLUMNS`, on any CPU."""
    steps = []
    for pair in _fp8_pairs(emit, address):
        words = emit.builder.zext(pair, vector(I32))
        upper = emit.builder.lshr(words, emit.splat_constant(I32, 8))
        lower = emit.builder.and_(words, emit.splat_constant(I32, 0xFF))
        steps += [_e4m3_to_f32(emit, upper), _e4m3_to_f32(emit, lower)]
    return steps


def fp8_through_f16(emit: Emitter, address: Any) -> list[Any]:
    """256 bytes -> 16 registers of float32 that are the values times 2**-8.

    For CPUs that convert half precision: an E4M3 code's bits are those of a half whose
    exponent is 8 lower, subnormals included.  A NaN code counts as 480 here.
    """
    builder, steps = emit.builder, []
    keep = emit.splat_constant(I16, 0xBF80 - (1 << 16))
    one = emit.splat_constant(I16, 1)
    for pair in _fp8_pairs(emit, address):
        for byte in (pair, builder.shl(pair, emit.splat_constant(I16, 8))):
            bits = builder.and_(builder.ashr(byte, one), keep)
            steps.append(builder.fpext(builder.bitcast(bits, vector(F16)), F32X16))
    return steps


def e4m3_to_bf16(emit: Emitter, codes: Any, negative_zeros: bool = False) -> list[Any]:
    """64 codes -> 2 registers of BF16: of the lower and of the upper half of every 16 codes.

    Both bytes of a normal number are affine over the bits of its code; zeros and subnormals come
    from a table.  A NaN code counts as 480.  Zeros keep their signs, or all have a minus.
    """
    builder, kind = emit.builder, vector(I8, 64)
    tiny_high = [_MINUS_ZERO >> 8 if negative_zeros else 0, *_TINY_HIGH[1:]]
    exponent = builder.and_(codes, emit.splat_constant(I8, 0x78, 64))
    tiny = builder.icmp_unsigned("==", exponent, emit.splat_constant(I8, 0, 64))
    halves = []
    for matrix, added, table in ((_LOW_MATRIX, 0, _TINY_LOW), (_HIGH_MATRIX, 0x3C, tiny_high)):
        rows = builder.bitcast(emit.splat_constant(I64, matrix, 8), kind)
        name = "llvm.x86.vgf2p8affineqb.512"
        normal = emit.call(name, kind, codes, rows, ir.Constant(I8, added))
        name = "llvm.x86.avx512.permvar.qi.512"
        looked_up = emit.call(name, kind, emit.constant(I8, table * 8), codes)
        halves.append(builder.select(tiny, looked_up, normal))
    sign = builder.and_(codes, emit.splat_constant(I8, -128, 64))
    lower, upper = halves[0], builder.or_(halves[1], sign)
    registers = []
    for h in range(2):
        places = [16 * lane + 8 * h + byte for lane in range(4) for byte in range(8)]
        order = [place + 64 * part for place in places for part in range(2)]
        registers.append(builder.bitcast(emit.shuffle(lower, upper, order), vector(I16, 32)))
    return registers


def fp8_to_bf16(emit: Emitter, address: Any) -> list[Any]:
    """256 bytes -> 8 registers of 16 BF16 pairs; a NaN code counts as 480."""
    pairs = []
    for i in range(4):
        codes = emit.join(
            emit.load(emit.offset(address, 32 * i), vector(I8, 32)),
            emit.load(emit.offset(address, 128 + 32 * i), vector(I8, 32)),
        )
        pairs += e4m3_to_bf16(emit, codes)
    return pairs


def fp8_to_tiles(emit: Emitter, address: Any, lowered: Sequence[Any] | None) -> list[Any]:
    """128 bytes -> 4 registers of 32 BF16, the products of two neighbouring lanes each.

    The even places are those of the lower lane in their order, the odd ones those of the upper.
    All zeros are negative.  `lowered` divide the registers by powers of two, as in `fp4_to_tiles`.
    """
    kind, words = vector(I8, 64), vector(I64, 8)
    # of 16 bytes the lower halves of both words, then the upper ones; in each the later column
    # of both lanes first
    order = [8 * h + 4 * part + byte for part in (0, 1) for h in (0, 1) for byte in (1, 3, 0, 2)]
    registers = []
    left, right = emit.load(address, words), emit.load(emit.offset(address, 64), words)
    for e in range(2):
        lanes = [2 * e, 2 * e + 1, 4 + 2 * e, 5 + 2 * e]
        chosen = emit.shuffle(left, right, [*lanes, *(8 + lane for lane in lanes)])
        codes = emit.call(
            "llvm.x86.avx512.pshuf.b.512",
            kind,
            emit.builder.bitcast(chosen, kind),
            emit.constant(I8, order * 4),
        )
        registers += e4m3_to_bf16(emit, codes, negative_zeros=True)
    return _lowered(emit, registers, lowered)


def bf16_to_tiles(emit: Emitter, address: Any) -> list[Any]:
    """512 bytes -> 8 registers of 32 BF16, the products of two neighbouring lanes each."""
    order = [4 * quad + word for quad in range(8) for word in (1, 3, 0, 2)]
    steps = []
    for k in range(8):
        pairs = emit.load(emit.offset(address, 64 * k), vector(I16, 32))
        steps.append(emit.builder.bitcast(emit.shuffle(pairs, pairs, order), vector(I64, 8)))
    return emit.transposed(steps)


def bf16_to_f32(emit: Emitter, address: Any) -> list[Any]:
    """512 bytes of BF16 -> 16 registers of float32 in the order of `BF16_COLUMNS`."""
    steps = []
    for k in range(8):
        pairs = emit.load(emit.offset(address, 64 * k), vector(I32))
        upper = emit.builder.and_(pairs, emit.splat_constant(I32, -65536))
        lower = emit.builder.shl(pairs, emit.splat_constant(I32, 16))
        steps += [emit.builder.bitcast(half, F32X16) for half in (upper, lower)]
    return steps
