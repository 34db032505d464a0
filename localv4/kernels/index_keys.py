"""Packed index keys to registers with sixteen keys in their lanes, as the products want them.

A key's row is ``[packed FP4 | UE8M0 scales, one per 32 columns]`` (kv_rows.py).  Sixteen rows
are turned once, while they are packed; after that every register holds the same few columns of
all sixteen, unscaled, and no product needs a sum over lanes.

* Bytes: register 2w+h of a block has its columns 8w+2i+h for i < 4, as 12 more than twice the
  value.
* Pairs, for the matrix unit: register 4w+j has the columns 8w+j and 8w+4+j as BF16, times a
  power of two if wanted.

Keys have four blocks here; what a row lacks counts as zero.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from localv4.kernels import tiers
from localv4.kernels.decode import FP4_OFFSET
from localv4.kernels.simd import F32X16, I8, I16, I32, I64, LANES, Emitter, vector
from localv4.quant import bf16, e2m1

__all__ = [
    "BLOCKS",
    "BYTE_COLUMNS",
    "BYTE_REGISTERS",
    "PAIR_COLUMNS",
    "PAIR_REGISTERS",
    "WIDTH",
    "group_rows",
    "key_bytes_of_group",
    "key_pairs_of_group",
    "key_scales_of_group",
    "store_group",
]

BLOCKS = 4
WIDTH = 32 * BLOCKS
"""Most columns of a key."""

BYTE_REGISTERS, PAIR_REGISTERS = 8, 16  # of a block
_WORDS = 4  # 32-bit words of a block's codes
_VALUES = e2m1.decode(np.arange(16, dtype=np.uint8))
_BYTES = [FP4_OFFSET + int(2 * value) for value in _VALUES]
_PAIR_BITS = [int(bits) for bits in bf16.encode(_VALUES).view(np.int16)]


def _byte_columns() -> NDArray[np.int64]:
    block, word, half, i = np.meshgrid(*map(np.arange, (BLOCKS, _WORDS, 2, 4)), indexing="ij")
    return np.asarray(32 * block + 8 * word + 2 * i + half, np.int64).ravel()


def _pair_columns() -> NDArray[np.int64]:
    block, word, j, i = np.meshgrid(*map(np.arange, (BLOCKS, _WORDS, 4, 2)), indexing="ij")
    return np.asarray(32 * block + 8 * word + j + 4 * i, np.int64).ravel()


BYTE_COLUMNS = _byte_columns()
"""int64 [128]: the column of each place of a lane, register by register."""

PAIR_COLUMNS = _pair_columns()
"""The same for pairs."""


def _turned_words(emit: Emitter, rows: list[Any], block: int) -> list[Any]:
    """Return the four 32-bit words of a block's codes, a register with those of 16 keys each."""
    parts = [emit.load(emit.offset(row, 16 * block), vector(I32, 4)) for row in rows]
    quads = [
        emit.join(emit.join(parts[i], parts[4 + i]), emit.join(parts[8 + i], parts[12 + i]))
        for i in range(4)
    ]

    def picked(left: Any, right: Any, lanes: list[int]) -> Any:
        return emit.shuffle(left, right, [4 * quad + lane for quad in range(4) for lane in lanes])

    low, high = [0, LANES, 1, LANES + 1], [2, LANES + 2, 3, LANES + 3]
    words = []
    for lanes in (low, high):
        left, right = picked(quads[0], quads[1], lanes), picked(quads[2], quads[3], lanes)
        words += [
            picked(left, right, [0, 1, LANES, LANES + 1]),
            picked(left, right, [2, 3, LANES + 2, LANES + 3]),
        ]
    return words


def _byte_values(emit: Emitter, nibbles: Any) -> Any:
    """Look up 64 codes."""
    builder, kind = emit.builder, vector(I8, 64)
    tier = tiers.active()
    if tier == "avx2":
        table = emit.constant(I8, _BYTES * 2)
        name, half = "llvm.x86.avx2.pshuf.b", vector(I8, 32)
        return emit.join(*(emit.call(name, half, table, part) for part in emit.halves(nibbles)))
    if tier != "generic":
        return emit.call(
            "llvm.x86.avx512.pshuf.b.512", kind, emit.constant(I8, _BYTES * 4), nibbles
        )

    def constant(value: int) -> Any:
        return emit.splat_constant(I8, value, 64)

    code = builder.and_(nibbles, constant(7))
    size = code  # twice the value, for the first five codes
    for number, doubled in ((5, 6), (6, 8), (7, 12)):
        size = builder.select(
            builder.icmp_unsigned("==", code, constant(number)), constant(doubled), size
        )
    negative = builder.icmp_unsigned(">", nibbles, constant(7))
    size = builder.select(negative, builder.sub(constant(0), size), size)
    return builder.add(size, constant(FP4_OFFSET))


def key_bytes_of_group(emit: Emitter, rows: list[Any], block: int) -> list[Any]:
    """Sixteen rows' addresses -> 8 registers of a block's bytes."""
    builder, kind, registers = emit.builder, vector(I8, 64), []
    mask = emit.splat_constant(I8, 15, 64)
    for words in _turned_words(emit, rows, block):
        for value in (words, builder.lshr(words, emit.splat_constant(I32, 4))):
            nibbles = builder.and_(builder.bitcast(value, kind), mask)
            registers.append(_byte_values(emit, nibbles))
    return registers


def key_pairs_of_group(emit: Emitter, rows: list[Any], block: int, powers: Any) -> list[Any]:
    """Sixteen rows' addresses -> 16 registers of a block's BF16 pairs.

    `powers` holds what is added to the bits of numbers that are not zero, 32 lanes of int16.
    """
    builder, kind, registers = emit.builder, vector(I16, 32), []
    # the permutation reads five bits of an index, and the table stands there twice
    table = emit.constant(I16, _PAIR_BITS * 2)
    for words in _turned_words(emit, rows, block):
        for j in range(4):
            index = builder.lshr(words, emit.splat_constant(I32, 4 * j)) if j else words
            index = builder.bitcast(index, kind)
            value = emit.call("llvm.x86.avx512.permvar.hi.512", kind, table, index)
            size = builder.and_(value, emit.splat_constant(I16, 0x7FFF, 32))
            some = builder.icmp_unsigned("!=", size, emit.splat_constant(I16, 0, 32))
            registers.append(builder.select(some, builder.add(value, powers), value))
    return registers


def key_scales_of_group(emit: Emitter, rows: list[Any], n_blocks: Any, room: Any) -> list[Any]:
    """Sixteen rows' addresses -> float32 scales of each block; 255 is NaN, a missing one zero.

    `room` is the address of 64 bytes.
    """
    builder = emit.builder
    # a row ends with its scales; four bytes before its end are all of them, or a code before
    place = builder.sub(builder.mul(n_blocks, ir.Constant(I64, 17)), ir.Constant(I64, 4))
    for number, row in enumerate(rows):
        word = emit.load(builder.add(row, place), I32)
        emit.store(emit.offset(room, 4 * number), word, 4)
    words = emit.load(room, vector(I32), 64)
    missing = builder.sub(ir.Constant(I64, BLOCKS), n_blocks)
    shift = emit.splat(builder.trunc(builder.mul(missing, ir.Constant(I64, 8)), I32))
    words = builder.lshr(words, shift)
    scales = []
    for block in range(BLOCKS):
        octets = builder.lshr(words, emit.splat_constant(I32, 8 * block)) if block else words
        octets = builder.and_(octets, emit.splat_constant(I32, 255))
        bits = builder.shl(octets, emit.splat_constant(I32, 23))
        unknown = builder.icmp_unsigned("==", octets, emit.splat_constant(I32, 255))
        bits = builder.select(unknown, emit.splat_constant(I32, 0x7FC00000), bits)
        scales.append(builder.bitcast(bits, F32X16))
    return scales


def group_rows(emit: Emitter, address: Any, row_bytes: Any, first: Any, last: Any) -> list[Any]:
    """Return the addresses of rows first..first+15; from `last` on it is the one before."""
    builder, rows = emit.builder, []
    final = builder.sub(last, ir.Constant(I64, 1))
    for i in range(LANES):
        number = builder.add(first, ir.Constant(I64, i))
        there = builder.icmp_signed("<", number, final)
        number = builder.select(there, number, final)
        rows.append(builder.add(address, builder.mul(number, row_bytes)))
    return rows


def store_group(
    emit: Emitter,
    rows: list[Any],
    n_blocks: Any,
    registers_of: Callable[[Emitter, list[Any], int], list[Any]],
    n_registers: int,
    target: Callable[[int, int], Any],
) -> None:
    """Store the registers of sixteen rows, block by block; zeros for missing ones.

    Parameters
    ----------
    emit, rows
        The rows' addresses from `group_rows`.
    n_blocks
        How many blocks a row has.
    registers_of, n_registers
        `key_bytes_of_group` or `key_pairs_of_group`, and the registers of a block.
    target
        Where a register of a block is to lie: (block, number) -> address.
    """
    builder = emit.builder
    for block in range(BLOCKS):
        there = builder.icmp_signed(">", n_blocks, ir.Constant(I64, block))
        with builder.if_else(there) as (then, otherwise):
            with then:
                for number, register in enumerate(registers_of(emit, rows, block)):
                    emit.store(target(block, number), register, 64)
            with otherwise:
                nothing = emit.splat_constant(I8, 0, 64)
                for number in range(n_registers):
                    emit.store(target(block, number), nothing, 64)
