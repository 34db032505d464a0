"""Index queries of FP4 numbers packed for the products with keys, once a token.

A packed query has a row for every head (rows up to a multiple of `ROWS` are zero) in sections:

* with a matrix unit ``[BF16 values | head weights]``, values block by block for every 16
  heads, in the columns' order of index_keys.py's pairs;
* else ``[signed bytes, twice the unscaled values | offsets | factors | head weights]`` in the
  order of its bytes; offsets (int32) take off what the unsigned keys add, and add the bits of
  `MAGIC`; factors (float32) are a quarter of the scales; both have one number for each of four
  blocks.

Blocks that a query lacks are zero.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels import tiers
from localv4.kernels._jit import leaf
from localv4.kernels.decode import FP4_OFFSET
from localv4.kernels.index_keys import BLOCKS, BYTE_COLUMNS, PAIR_COLUMNS, WIDTH
from localv4.kernels.kv_rows import FP4_FLOOR, FP4_RECIPROCAL, KEY_BLOCK, block_scale

__all__ = [
    "MAGIC",
    "ROWS",
    "TILE_ROWS",
    "QueryLayout",
    "in_matrix_unit",
    "pack_head",
    "query_bytes",
    "unpack_query",
]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

MAGIC = 1.5 * 2.0**23
"""Whole numbers below 2**22 added to the bits of this float32 are added to its value."""

_MAGIC_BITS = int(np.float32(MAGIC).view(np.int32))
_QUARTER = np.float32(0.25)
_SMALL = np.float32(2.0**-125)


def in_matrix_unit() -> bool:
    """Return whether products are made in the CPU's matrix unit."""
    return tiers.active() == "amx"


_PAIRS = in_matrix_unit()
_COLUMNS = PAIR_COLUMNS if _PAIRS else BYTE_COLUMNS
_CODE_BYTES = 2 * WIDTH if _PAIRS else WIDTH

TILE_ROWS = 16
"""Heads of a tile of the matrix unit."""

ROWS = 2 * TILE_ROWS if _PAIRS else 16
"""Heads are padded to a multiple."""


class QueryLayout:
    """Bytes of all sections before one, for each row."""

    offsets = WIDTH
    factors = offsets + 4 * BLOCKS
    weights = 2 * WIDTH if _PAIRS else factors + 4 * BLOCKS


_OFFSETS, _FACTORS, _WEIGHTS = QueryLayout.offsets, QueryLayout.factors, QueryLayout.weights


def query_bytes(n_heads: int) -> int:
    """Return the bytes of a token's packed query."""
    return -(-n_heads // ROWS) * ROWS * (_WEIGHTS + 4)


@leaf
def pack_head(values: F32, weight: np.float32, head: int, packed: U8) -> None:
    """Pack one head of a query.

    Parameters
    ----------
    values
        float32 [index_head_dim], FP4 numbers times a power of two for every 32 columns; at most
        128.
    weight
        The head's, as it multiplies.
    head
        Its number.
    packed
        Written at the head's places: uint8 [query_bytes], zero before the first head.
    """
    n_rows = packed.size // (_WEIGHTS + 4)
    if _PAIRS:
        upper = packed[: n_rows * _CODE_BYTES].view(np.uint16)
        for place in range(WIDTH):
            column = _COLUMNS[place]
            if column < values.size:
                bits = np.float32(values[column]).view(np.uint32)
                tile = head // TILE_ROWS * BLOCKS + place // KEY_BLOCK
                row = tile * TILE_ROWS + head % TILE_ROWS
                upper[row * KEY_BLOCK + place % KEY_BLOCK] = np.uint16(bits >> np.uint32(16))
    else:
        signed = packed[head * _CODE_BYTES : (head + 1) * _CODE_BYTES].view(np.int8)
        offsets = packed[n_rows * _OFFSETS : n_rows * _FACTORS].view(np.int32)
        factors = packed[n_rows * _FACTORS : n_rows * _WEIGHTS].view(np.float32)
        for block in range(values.size // KEY_BLOCK):
            part = values[block * KEY_BLOCK : (block + 1) * KEY_BLOCK]
            scale = block_scale(part, FP4_FLOOR, FP4_RECIPROCAL)
            doubled, total = np.float32(2) / scale, 0
            for i in range(KEY_BLOCK):
                place = block * KEY_BLOCK + i
                value = np.float32(values[_COLUMNS[place]] * doubled)
                code = np.int32(value) if value == value else np.int32(0)
                signed[place] = np.int8(code)
                total += int(code)
            offsets[head * BLOCKS + block] = np.int32(_MAGIC_BITS - FP4_OFFSET * total)
            # a block of zeros has a scale so small that its quarter is slow to multiply with
            quarter = np.float32(0) if scale <= _SMALL else np.float32(scale * _QUARTER)
            factors[head * BLOCKS + block] = quarter
    weights = packed[n_rows * _WEIGHTS :].view(np.float32)
    weights[head] = weight


def unpack_query(packed: U8, n_heads: int, width: int) -> tuple[F32, F32]:
    """Return the values, float32 [n_heads, width], and the head weights of a packed query."""
    n_rows = packed.size // (_WEIGHTS + 4)
    weights = packed[n_rows * _WEIGHTS :].view(np.float32)[:n_heads]
    codes = packed[: n_rows * _CODE_BYTES]
    values = np.empty((n_rows, WIDTH), np.float32)
    if _PAIRS:
        bits = codes.view(np.uint16).astype(np.uint32) << 16
        tiles = bits.view(np.float32).reshape(-1, BLOCKS, TILE_ROWS, KEY_BLOCK)
        values[:, _COLUMNS] = tiles.swapaxes(1, 2).reshape(n_rows, WIDTH)
    else:
        factors = packed[n_rows * _FACTORS : n_rows * _WEIGHTS].view(np.float32)
        # keys are doubled too, as far as factors know
        scales = np.repeat(2 * factors.reshape(n_rows, BLOCKS), KEY_BLOCK, axis=1)
        values[:, _COLUMNS] = codes.view(np.int8).reshape(n_rows, WIDTH)
        values *= scales
    return values[:n_heads, :width], weights
