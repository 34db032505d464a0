"""From projections to packed rows: KV entries of tokens and of the compressor, the window's ring.

A unit is an entry.  Position and count are found from the step's position when a kernel runs,
so that a recorded program serves every step.  Follows forward.md section 4 step 3 and section 5.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.kv_rows import encode_entry
from localv4.kernels.launch import Program, Task, kernel
from localv4.kernels.norm import rms_norm_row
from localv4.kernels.rope import angles, rotate
from localv4.kernels.rounding import round_bf16

__all__ = ["ENTRY_ROWS", "RING", "finish_row", "record_entries", "record_remember"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

ENTRY_ROWS = 10  # arguments of tasks that are put anew when the cache's memory moves
RING = 2


@leaf
def finish_row(
    row: F32,
    weight: F32,
    eps: np.float32,
    position: int,
    frequencies: F32,
    trained: int,
    table: F32,
) -> None:
    """Normalise and rotate an entry in place; `table` gets its cosines and sines."""
    if trained:
        # a compressor's values are rounded before the norm; those of a projection are already
        for i in range(row.size):
            row[i] = round_bf16(row[i])
    rms_norm_row(row, weight, eps, trained, row)
    angles(position, frequencies, table)
    rotate(row, table, np.float32(1), trained)


@kernel("f32[2], f32[1], f32, i64[1], i64, i64, f32[1], i64, i64, f32[3], u8[2]")
def _finish_entries(
    values: F32,
    weight: F32,
    eps: np.float32,
    place: I64,
    n_tokens: int,
    ratio: int,
    frequencies: F32,
    trained: int,
    first_row: int,
    tables: F32,
    rows: U8,
    unit: int,
) -> None:
    first = place[0] // ratio
    if first + unit >= (place[0] + n_tokens) // ratio:
        return
    finish_row(
        values[unit],
        weight,
        eps,
        (first + unit) * ratio,
        frequencies,
        trained,
        tables[unit],
    )
    row = unit if first_row == 0 else first + unit
    encode_entry(values[unit], 2 * frequencies.size, trained, rows[row])


def record_entries(
    program: Program,
    values: F32,
    weight: F32,
    eps: float,
    place: I64,
    n_tokens: int,
    ratio: int,
    frequencies: F32,
    trained: bool,
    append: bool,
    tables: F32,
    rows: U8,
) -> Task:
    """Record norm, rotation and packing of the entries that a chunk completes.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    values
        float32 [at least n_entries, head_dim], overwritten.
    weight, eps
        Of the norm.
    place
        int64 [1]: position of the chunk's first token when the program runs.
    n_tokens, ratio
        Of the chunk; tokens of an entry.  An entry is rotated to its first token.
    frequencies
        float32 [rope_dim / 2].
    trained
        Round to BF16 and pack as FP8.
    append
        Entry e goes to row e of `rows`; else the chunk's first entry goes to row 0.
    tables
        Written: float32 [at least n_entries, 2, rope_dim / 2], cosines and sines.
    rows
        Written: uint8 [.., entry bytes]; argument `ENTRY_ROWS` of the task.
    """
    units = -(-n_tokens // ratio)
    return program.add(
        _finish_entries,
        units,
        values,
        weight,
        eps,
        place,
        n_tokens,
        ratio,
        frequencies,
        int(trained),
        int(append),
        tables,
        rows,
    )


@kernel("i64[1], u8[2], u8[2]")
def _remember(place: I64, fresh: U8, ring: U8, unit: int) -> None:
    skipped = max(fresh.shape[0] - ring.shape[0], 0)
    source = fresh[skipped + unit]
    target = ring[(place[0] + skipped + unit) % ring.shape[0]]
    for i in range(source.size):
        target[i] = source[i]


def record_remember(program: Program, place: I64, fresh: U8, ring: U8) -> Task:
    """Record copying a chunk's rows into the window's ring, which holds position p in row p % n."""
    return program.add(_remember, min(len(fresh), len(ring)), place, fresh, ring)
