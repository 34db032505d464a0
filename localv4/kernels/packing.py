"""Arranged activations once more, sixteen tokens side by side, as the matrix unit wants them.

A block of 16 tokens is, superblock by superblock and pair of lanes by pair of lanes, a tile
of 16 columns of two BF16 numbers, one of each lane.

Knows nothing of how activations were rounded.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels import tiers
from localv4.kernels.amx_tile import BLOCK_TOKENS, GROUPS
from localv4.kernels.launch import Program, kernel
from localv4.kernels.walks import Walk

__all__ = ["record_packing", "room_for_blocks"]

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
_FEWEST = 6  # tokens; fewer are multiplied faster row by row


def room_for_blocks(walk: Walk, n_tokens: int, n_bytes: int) -> tuple[int, int] | None:
    """Return blocks and bytes of each for tokens of `n_bytes`; None if they are not packed."""
    if tiers.active() != "amx" or walk.layout != "bf16" or n_tokens < _FEWEST:
        return None
    return -(-n_tokens // BLOCK_TOKENS), BLOCK_TOKENS * n_bytes


@kernel("u8[2], i32[1], i64, u8[2]")
def _pack_pairs(rows: U8, tokens: I32, n_tokens: int, blocks: U8, unit: int) -> None:
    """BF16 pairs of two lanes -> pairs of one column of each lane."""
    out = blocks[unit].view(np.uint32)
    for token in range(BLOCK_TOKENS):
        index = BLOCK_TOKENS * unit + token
        if index >= n_tokens:
            for place in range(token, out.size, BLOCK_TOKENS):
                out[place] = np.uint32(0)
            continue
        pairs = rows[tokens[index] if tokens.size > 0 else index].view(np.uint32)
        for superblock in range(pairs.size // 128):
            for group in range(GROUPS):
                target = (superblock * GROUPS + group) * 256 + token
                source = superblock * 128 + 2 * group
                for step in range(8):
                    left, right = pairs[source + 16 * step], pairs[source + 16 * step + 1]
                    upper = (left >> np.uint32(16)) | (right & np.uint32(0xFFFF0000))
                    lower = (left & np.uint32(0xFFFF)) | np.uint32(right << np.uint32(16))
                    out[target + 32 * step] = upper
                    out[target + 32 * step + 16] = lower


def record_packing(program: Program, rows: U8, tokens: I32, n_tokens: int, blocks: U8) -> None:
    """Record packing of arranged tokens.

    Parameters
    ----------
    rows
        uint8 [tokens, bytes], arranged.
    tokens
        int32 [n_tokens]: which rows, in this order; empty for the first `n_tokens`.
    blocks
        Written: uint8 as `room_for_blocks` says; tokens that a block lacks are zeros.
    """
    program.add(_pack_pairs, len(blocks), rows, tokens, n_tokens, blocks)
