"""Activations in the order in which the kernels of a weight format walk them.

A superblock's activations lie together, as float32, as BF16 pairs, or, for FP4 weights and
activations rounded to FP8, as integers: all exactly what the products need, so that nothing
is converted in the inner loop.  walks.py says which format has which layout.

Knows nothing of weights.  Follows forward.md section 1 (AQ128).
"""

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.amx_unit import BLOCK_TOKENS, LARGEST_SCALE
from localv4.kernels.arrays import aligned
from localv4.kernels.decode import FP4_OFFSET
from localv4.kernels.launch import Program, kernel
from localv4.kernels.packing import FEWEST_HALVES, record_packing, room_for_blocks
from localv4.kernels.rounding import fp8_blocks
from localv4.kernels.slices import Slices, slice_of
from localv4.kernels.walk import Walk
from localv4.kernels.walks import walk_for, walk_for_many

__all__ = ["ARRANGERS", "Lanes", "arrange", "packing_bytes"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I32 = NDArray[np.int32]
U64 = NDArray[np.uint64]
_BLOCK = 128
# E4M3 values are whole multiples of 2**-9, doubled E2M1 values of 2**-1.
_UNITS = np.float32(512)
_UNIT = np.float32(2.0**-10)
_MIDDLE = np.float32(1.5 * 2**23)
_MIDDLE_BITS = _MIDDLE.view(np.int32)
_LARGEST_SCALE = np.float32(LARGEST_SCALE)


@dataclass(frozen=True, eq=False)
class Lanes:
    """Room for activations in the layout that a weight format needs.

    Attributes
    ----------
    order
        `Matrix.lanes` of the matrices they will meet: the weight format.
    activations
        "fp8": rounded to FP8 in blocks of 128 columns when they are arranged; "bf16": BF16
        numbers already; "f32": any float32.
    n_columns
        Columns before they were arranged.
    walk
        How they meet the weights.
    memory
        uint8 [n_tokens, bytes of a token], aligned to 64 bytes.
    tokens
        int32: which of the memory's tokens are meant, in this order; empty for all.
    blocks
        uint8 [n blocks of 16 tokens, bytes]: the same once more as the matrix unit wants
        them; None where there is none, or for few tokens.
    """

    order: str
    activations: str
    n_columns: int
    walk: Walk
    memory: U8
    tokens: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    blocks: U8 | None = None

    @classmethod
    def room(
        cls,
        order: str,
        quantised: bool,
        n_tokens: int,
        n_columns: int,
        are_bf16: bool = False,
        parts_of: int | None = None,
    ) -> "Lanes":
        """Return room for a number of tokens.

        Parameters
        ----------
        order, n_columns
            See the class.
        quantised
            Round to FP8.
        are_bf16
            What will be arranged are BF16 numbers: permits faster code, and no others then.
        parts_of
            Tokens are multiplied in parts only, as `take` chooses them, of about so many; None
            if all are multiplied together.
        """
        activations = "fp8" if quantised else "bf16" if are_bf16 else "f32"
        walk = walk_for(order, activations)
        if (n_tokens if parts_of is None else parts_of) >= FEWEST_HALVES:
            walk = walk_for_many(walk)
        n_bytes = -(-n_columns // walk.n_columns) * walk.lane_bytes
        memory = aligned((n_tokens, n_bytes), np.uint8)
        blocks = _blocks(walk, n_tokens, n_bytes) if parts_of is None else None
        return cls(order, activations, n_columns, walk, memory, blocks=blocks)

    @classmethod
    def as_they_lie(cls, order: str, x: F32) -> "Lanes":
        """Return float32 [n_tokens, n_columns] for an order whose lanes are the columns.

        That is "f32" with a multiple of 128 columns.
        """
        return cls(order, "f32", x.shape[1], walk_for(order, "f32"), x.view(np.uint8))

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self.tokens.size or len(self.memory)

    def take(self, program: Program, tokens: NDArray[np.int32], room: U8 | None = None) -> "Lanes":
        """Record the choice of some tokens, int32 [n]; later phases multiply with the result.

        If they are packed, they are packed at the start of `room`, uint8 aligned to 64 bytes and of
        `packed_bytes` at least, or in memory of their own if there is none.
        """
        blocks = _blocks(self.walk, tokens.size, self.memory.shape[1], room)
        chosen = replace(self, tokens=tokens, blocks=blocks)
        chosen._pack(program)
        return chosen

    def packed_bytes(self, n_tokens: int) -> int:
        """Return the bytes in which `take` packs so many tokens; 0 if it does not."""
        shape = room_for_blocks(self.walk, n_tokens, self.memory.shape[1])
        return 0 if shape is None else math.prod(shape)

    def _pack(self, program: Program) -> None:
        if self.blocks is not None:
            record_packing(program, self.walk, self.memory, self.tokens, len(self), self.blocks)


def _blocks(walk: Walk, n_tokens: int, n_bytes: int, room: U8 | None = None) -> U8 | None:
    """Return room for packed activations if the matrix unit will multiply them."""
    shape = room_for_blocks(walk, n_tokens, n_bytes)
    if shape is None:
        return None
    size = math.prod(shape)
    if room is None:
        return aligned(shape, np.uint8)
    assert room.size >= size, (room.size, size)
    return room[:size].reshape(shape)


def packing_bytes(order: str, n_columns: int, parts_of: int, n_parts: int, n_tokens: int) -> int:
    """Return the most bytes in which `Lanes.take` packs FP8-rounded tokens; 0 if it does not.

    Parameters
    ----------
    order, n_columns, parts_of
        See `Lanes.room`.
    n_parts, n_tokens
        How often it is called, and with how many tokens in all.
    """
    walk = walk_for(order, "fp8")
    if parts_of >= FEWEST_HALVES:
        walk = walk_for_many(walk)
    n_bytes = -(-n_columns // walk.n_columns) * walk.lane_bytes
    shape = room_for_blocks(walk, BLOCK_TOKENS, n_bytes)
    return 0 if shape is None else shape[1] * (n_parts + (n_tokens - n_parts) // BLOCK_TOKENS)


@cache
def _places(walk: Walk) -> U16:
    """Return the column, or the pair of columns, behind every place of a superblock."""
    columns = walk.columns
    if walk.layout == "bf16":
        upper, lower = columns.reshape(-1, 2, 16).transpose(1, 0, 2)
        assert (upper == lower + 1).all()
        columns = lower.ravel() // 2
    return np.asarray(columns, np.uint16)


@leaf
def _blocks_of(x: F32, n_blocks: int) -> F32:
    """Return a token's activations in blocks of 128 columns, with zeros behind them."""
    blocks = np.empty((n_blocks, _BLOCK), np.float32)
    n_full = x.size // _BLOCK
    for block in range(n_full):
        for i in range(_BLOCK):
            blocks[block, i] = x[_BLOCK * block + i]
    for block in range(n_full, n_blocks):
        for i in range(_BLOCK):
            blocks[block, i] = np.float32(0)
    for i in range(_BLOCK * n_full, x.size):
        blocks[n_full, i - _BLOCK * n_full] = x[i]
    return blocks


@leaf
def _activations(x: F32, quantised: bool, n_blocks: int) -> F32:
    """Return a token's activations in blocks, rounded if asked."""
    blocks = _blocks_of(x, n_blocks)
    if quantised:
        scales = np.empty(n_blocks, np.float32)
        fp8_blocks(blocks, scales)
        for block in range(n_blocks):
            for i in range(_BLOCK):
                blocks[block, i] *= scales[block]
    return blocks


@leaf
def _columns(x: F32, first: int, last: int, width: int) -> F32:
    """Return a token's columns in superblocks from the first to the one before the last."""
    return x[first * width : min(last * width, x.size)]


@kernel("f32[2], i64, i64, i64, u16[1], i64, f32[3]")
def _arrange_f32(
    x: F32, per_row: int, size: int, width: int, places: U16, quantised: int, out: F32, unit: int
) -> None:
    token, first, last = slice_of(unit, per_row, size, out.shape[1])
    target = out[token, first:last]
    columns = _columns(x[token], first, last, width)
    blocks = _activations(columns, quantised != 0, target.size // _BLOCK)
    source = blocks.reshape(target.shape)
    for superblock in range(target.shape[0]):
        for place in range(target.shape[1]):
            target[superblock, place] = source[superblock, places[place]]


@kernel("f32[2], i64, i64, i64, u16[1], i64, i32[3]")
def _arrange_bf16(
    x: F32, per_row: int, size: int, width: int, places: U16, quantised: int, out: I32, unit: int
) -> None:
    token, first, last = slice_of(unit, per_row, size, out.shape[1])
    target = out[token, first:last]
    columns = _columns(x[token], first, last, width)
    blocks = _activations(columns, quantised != 0, 2 * target.size // _BLOCK)
    bits = blocks.view(np.uint32)
    pairs = np.empty((bits.shape[0], _BLOCK // 2), np.int32)
    for block in range(bits.shape[0]):
        for i in range(_BLOCK // 2):
            upper = bits[block, 2 * i + 1] & np.uint32(0xFFFF0000)
            pair = np.uint32(upper | (bits[block, 2 * i] >> np.uint32(16)))
            pairs[block, i] = pair.view(np.int32)
    source = pairs.reshape(target.shape)
    for superblock in range(target.shape[0]):
        for place in range(target.shape[1]):
            target[superblock, place] = source[superblock, places[place]]


@leaf
def _integers(x: F32, n_blocks: int, scales: F32) -> I32:
    """Round to FP8: whole multiples of 2**-9 in blocks of 128 columns, and their scales."""
    blocks = _blocks_of(x, n_blocks)
    fp8_blocks(blocks, scales)
    integers = np.empty((n_blocks, _BLOCK), np.int32)
    for block in range(n_blocks):
        scales[block] *= _UNIT
        for i in range(_BLOCK):
            # a float32 of 2**23 and more ends in its integer; no branch for a NaN
            shifted = np.float32(blocks[block, i] * _UNITS + _MIDDLE)
            integers[block, i] = shifted.view(np.int32) - _MIDDLE_BITS
    return integers


@leaf
def _place_scales(scales: F32, factors: F32) -> None:
    """Write the activations' scales to the last 16 places: lane 4s+z has block z."""
    first = factors.shape[1] - 16
    for superblock in range(factors.shape[0]):
        for lane in range(16):
            factors[superblock, first + lane] = scales[4 * superblock + (lane & 3)]


@kernel("f32[2], i64, i64, i64, u16[1], f32[3]")
def _arrange_integers(
    x: F32, per_row: int, size: int, width: int, places: U16, out: F32, unit: int
) -> None:
    token, first, last = slice_of(unit, per_row, size, out.shape[1])
    target = out[token, first:last]
    scales = np.empty(4 * target.shape[0], np.float32)
    columns = _columns(x[token], first, last, width)
    integers = _integers(columns, scales.size, scales).reshape((target.shape[0], 512))
    for superblock in range(target.shape[0]):
        for place in range(512):
            number = integers[superblock, places[place]]
            highest = _highest(number) << np.int32(12)
            target[superblock, place] = np.float32(highest)
            target[superblock, 512 + place] = np.float32(number - highest)
    _place_scales(scales, target)


@leaf
def _highest(value: np.int32) -> np.int32:
    """Return the highest of three digits of base 64, from -32 to 31."""
    above = np.int32(value + np.int32(32)) >> np.int32(6)
    return np.int32(above + np.int32(32)) >> np.int32(6)


@leaf
def _digits(integers: I32) -> U8:
    """Return integers as three digits of base 64, from -32 to 31, the highest first."""
    digits = np.empty((3, integers.shape[0], _BLOCK), np.uint8)
    for block in range(integers.shape[0]):
        for i in range(_BLOCK):
            value = integers[block, i]
            above = np.int32(value + np.int32(32)) >> np.int32(6)
            highest = _highest(value)
            digits[0, block, i] = np.uint8(highest & np.int32(255))
            digits[1, block, i] = np.uint8((above - (highest << np.int32(6))) & np.int32(255))
            digits[2, block, i] = np.uint8((value - (above << np.int32(6))) & np.int32(255))
    return digits


@leaf
def _split_bytes(words: U64, even: I32, odd: I32) -> None:
    """Put the even and the odd ones of every eight bytes side by side."""
    for i in range(words.size):
        # two exchanges of neighbours
        word = words[i]
        other = (word ^ (word >> np.uint64(8))) & np.uint64(0x0000FF000000FF00)
        word ^= other ^ (other << np.uint64(8))
        other = (word ^ (word >> np.uint64(16))) & np.uint64(0x00000000FFFF0000)
        word ^= other ^ (other << np.uint64(16))
        even[i] = np.uint32(word & np.uint64(0xFFFFFFFF)).view(np.int32)
        odd[i] = np.uint32(word >> np.uint64(32)).view(np.int32)


@leaf
def _place_digits(words: I32, parity: int, values: I32) -> None:
    """Bring the even or the odd digits, four for a lane, into their order."""
    for superblock in range(values.shape[0]):
        for digit in range(3):
            first = (digit * values.shape[0] + superblock) * 64
            for word in range(4):
                for lane in range(16):
                    block = 4 * (lane & 3) + (lane >> 2)
                    place = 128 * digit + 16 * (2 * word + parity) + lane
                    values[superblock, place] = words[first + 4 * block + word]


@leaf
def _place_corrections(integers: I32, apart: bool, values: I32) -> None:
    """Write what the weights' offset adds to each lane: all digits, or highest ones and others."""
    for superblock in range(values.shape[0]):
        for lane in range(16):
            upper, total = np.int32(0), np.int32(0)
            for column in range(32):
                number = integers[4 * superblock + (lane & 3), 32 * (lane >> 2) + column]
                total += number
                if apart:
                    upper += _highest(number)
            if apart:
                lower = total - (upper << np.int32(12))
                values[superblock, 384 + lane] = np.int32(-FP4_OFFSET) * upper
                values[superblock, 400 + lane] = np.int32(-FP4_OFFSET) * lower
            else:
                values[superblock, 384 + lane] = np.int32(-FP4_OFFSET) * total


@kernel("f32[2], i64, i64, i64, i64, i32[3], f32[3]")
def _arrange_digits(
    x: F32, per_row: int, size: int, width: int, apart: int, values: I32, factors: F32, unit: int
) -> None:
    token, first, last = slice_of(unit, per_row, size, values.shape[1])
    target = values[token, first:last]
    scales = np.empty(4 * target.shape[0], np.float32)
    integers = _integers(_columns(x[token], first, last, width), scales.size, scales)
    words = _digits(integers).reshape(3 * integers.size).view(np.uint64)
    even, odd = np.empty(words.size, np.int32), np.empty(words.size, np.int32)
    _split_bytes(words, even, odd)
    for parity in range(2):  # a literal would compile the function twice
        _place_digits(odd if parity else even, parity, target)
    _place_corrections(integers, apart != 0, target)
    _place_scales(scales, factors[token, first:last])


@kernel("f32[2], i64, i64, i64, u16[1], i32[3], f32[3]")
def _arrange_halves(
    x: F32,
    per_row: int,
    size: int,
    width: int,
    places: U16,
    values: I32,
    factors: F32,
    unit: int,
) -> None:
    token, first, last = slice_of(unit, per_row, size, values.shape[1])
    target = values[token, first:last]
    scales = np.empty(4 * target.shape[0], np.float32)
    columns = _columns(x[token], first, last, width)
    integers = _integers(columns, scales.size, scales).reshape((target.shape[0], 512))
    upper, lower = np.empty(512, np.uint32), np.empty(512, np.uint32)
    for superblock in range(target.shape[0]):
        for column in range(512):
            number = integers[superblock, column]
            # the highest digit and the others, multiplied with their scale, are BF16 numbers
            highest = _highest(number) << np.int32(12)
            scale = min(scales[4 * superblock + (column >> 7)], _LARGEST_SCALE)
            upper[column] = np.float32(np.float32(highest) * scale).view(np.uint32)
            lower[column] = np.float32(np.float32(number - highest) * scale).view(np.uint32)
        for word in range(256):
            left, right = places[2 * word], places[2 * word + 1]
            place = 32 * (word >> 4) + (word & 15)
            pair = np.uint32((upper[left] >> np.uint32(16)) | upper[right])
            target[superblock, place] = pair.view(np.int32)
            pair = np.uint32((lower[left] >> np.uint32(16)) | lower[right])
            target[superblock, place + 16] = pair.view(np.int32)
        for block in range(4):
            factors[token, first + superblock, 512 + block] = scales[4 * superblock + block]


ARRANGERS = {
    "f32": _arrange_f32,
    "bf16": _arrange_bf16,
    "integers": _arrange_integers,
    "digits": _arrange_digits,
    "digits_apart": _arrange_digits,
    "halves": _arrange_halves,
}
"""The kernel of every layout of activations."""


def arrange(program: Program, x: F32, lanes: Lanes) -> None:
    """Record putting activations, float32 [n_tokens, n_columns], into their lanes.

    May begin another phase of the same part, so that what follows comes later still.
    """
    n_tokens, n_columns = x.shape
    assert n_columns == lanes.n_columns, (x.shape, lanes.n_columns)
    assert n_tokens == len(lanes.memory), (x.shape, lanes.memory.shape)
    places, layout = _places(lanes.walk), lanes.walk.layout
    superblocks = (n_tokens, -1, lanes.walk.lane_bytes // 4)
    values = lanes.memory.view(np.int32).reshape(superblocks)
    factors = values.view(np.float32)
    quantised = int(lanes.activations == "fp8")
    arguments: dict[str, tuple[Any, ...]] = {
        "f32": (places, quantised, factors),
        "bf16": (places, quantised, values),
        "integers": (places, factors),
        "digits": (0, values, factors),
        "digits_apart": (1, values, factors),
        "halves": (places, values, factors),
    }
    width = lanes.walk.n_columns
    slices = Slices.of(n_tokens, n_columns, width)
    cut = slices.per_row, -(-slices.size // width), width
    program.add(ARRANGERS[layout], n_tokens * slices.per_row, x, *cut, *arguments[layout])
    if lanes.blocks is not None:
        program.phase(program.part)
        lanes._pack(program)
