"""Arranged activations once more, sixteen tokens side by side, as the matrix unit wants them.

A block of 16 tokens is, group by group of 32 columns and superblock by superblock, a tile of
16 columns, which are the tokens, of two BF16 numbers in 16 rows.  For FP8 and BF16 a group is a
pair of lanes, and the two numbers are one of each lane.  For FP4 there are two such tiles, of upper
and of lower digits, and behind them the scales of the tokens.  The last 64 bytes say whether one of
the activations is so small or large that amx_folded.py cannot take them.

Knows nothing of how activations were rounded.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels import tiers
from localv4.kernels._jit import leaf
from localv4.kernels.amx_rows import groups
from localv4.kernels.amx_unit import (
    BLOCK_TAIL,
    BLOCK_TOKENS,
    LARGEST_SCALE,
    group_bytes,
)
from localv4.kernels.launch import Program, kernel
from localv4.kernels.threads import usable_cpus
from localv4.kernels.walk import Walk

__all__ = ["FEWEST_HALVES", "record_packing", "room_for_blocks"]

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
FEWEST_HALVES = 6 if usable_cpus() <= 4 else 9
"""Fewer tokens are multiplied faster by bytes; many CPUs share a matrix unit between two."""
_FEWEST_PAIRS = 3
# Bits of usual BF16 numbers: 2**-40 to 2**40.
_SMALLEST, _LARGEST = np.uint32((127 - 40) << 7), np.uint32((127 + 40) << 7)

_LARGEST_SCALE = np.float32(LARGEST_SCALE).view(np.uint32)
_TAIL_WORDS = BLOCK_TAIL // 4


def room_for_blocks(walk: Walk, n_tokens: int, n_bytes: int) -> tuple[int, int] | None:
    """Return blocks and bytes of each for tokens of `n_bytes`; None if they are not packed."""
    many = walk.layout == "bf16" and n_tokens >= _FEWEST_PAIRS
    if tiers.active() != "amx" or not (many or walk.layout == "halves"):
        return None
    n_groups = n_bytes // walk.lane_bytes * groups(walk)
    return -(-n_tokens // BLOCK_TOKENS), n_groups * group_bytes(walk) + BLOCK_TAIL


@leaf
def _is_unusual(number: np.uint32) -> np.uint32:
    """Return 1 if a BF16 number, given by its bits, is tiny, huge or none; zeros are usual."""
    magnitude = number & np.uint32(0x7FFF)
    return np.uint32((magnitude - _SMALLEST > _LARGEST - _SMALLEST) & (magnitude != 0))


@kernel("u8[2], i32[1], i64, u8[2]")
def _pack_pairs(rows: U8, tokens: I32, n_tokens: int, blocks: U8, unit: int) -> None:
    """BF16 pairs of two lanes -> pairs of one column of each lane."""
    out = blocks[unit].view(np.uint32)
    unusual = np.uint32(0)
    for token in range(BLOCK_TOKENS):
        index = BLOCK_TOKENS * unit + token
        if index >= n_tokens:
            for place in range(token, out.size, BLOCK_TOKENS):
                out[place] = np.uint32(0)
            continue
        pairs = rows[tokens[index] if tokens.size > 0 else index].view(np.uint32)
        n_superblocks = pairs.size // 128
        for superblock in range(n_superblocks):
            for group in range(8):
                target = (group * n_superblocks + superblock) * 256 + token
                source = superblock * 128 + 2 * group
                for step in range(8):
                    left, right = pairs[source + 16 * step], pairs[source + 16 * step + 1]
                    upper = (left >> np.uint32(16)) | (right & np.uint32(0xFFFF0000))
                    lower = (left & np.uint32(0xFFFF)) | np.uint32(right << np.uint32(16))
                    out[target + 32 * step] = upper
                    out[target + 32 * step + 16] = lower
                    for pair in (left, right):
                        for number in (pair >> np.uint32(16), pair & np.uint32(0xFFFF)):
                            unusual |= _is_unusual(number)
    out[out.size - _TAIL_WORDS] = unusual


@kernel("u8[2], i32[1], i64, u8[2]")
def _pack_halves(rows: U8, tokens: I32, n_tokens: int, blocks: U8, unit: int) -> None:
    """Upper and lower digits of each group, then the scales."""
    out = blocks[unit].view(np.uint32)
    unusual = np.uint32(0)
    for token in range(BLOCK_TOKENS):
        index = BLOCK_TOKENS * unit + token
        if index >= n_tokens:
            for place in range(token, out.size, BLOCK_TOKENS):
                out[place] = np.uint32(0)
            continue
        words = rows[tokens[index] if tokens.size > 0 else index].view(np.uint32)
        n_superblocks = words.size // 528
        for superblock in range(n_superblocks):
            for group in range(16):
                target = (group * n_superblocks + superblock) * 528 + token
                source = superblock * 528 + 32 * group
                for word in range(32):
                    out[target + 16 * word] = words[source + word]
                scale = words[superblock * 528 + 512 + (group >> 2)]
                out[target + 512] = scale
                unusual |= np.uint32(scale >= _LARGEST_SCALE)
    out[out.size - _TAIL_WORDS] = unusual


def record_packing(
    program: Program, walk: Walk, rows: U8, tokens: I32, n_tokens: int, blocks: U8
) -> None:
    """Record packing of arranged tokens.

    Parameters
    ----------
    walk
        Whose layout the rows have.
    rows
        uint8 [tokens, bytes], arranged.
    tokens
        int32 [n_tokens]: which rows, in this order; empty for the first `n_tokens`.
    blocks
        Written: uint8 as `room_for_blocks` says; tokens that a block lacks are zeros.
    """
    pack = _pack_halves if walk.layout == "halves" else _pack_pairs
    program.add(pack, len(blocks), rows, tokens, n_tokens, blocks)
