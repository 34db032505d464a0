"""Attention of every head over window and compressed entries, with a sink.

One shared head serves as keys and values.  Candidates are walked in blocks of 64: the
window from oldest to newest, then the compressed entries, so the blocks of a query depend
on its position alone and not on the chunk.  Entries are unpacked a block at a time for all
heads of a unit.
Follows forward.md section 4 steps 2, 5 and 6.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.elementwise import exp_f32
from localv4.kernels.heads import head_norm
from localv4.kernels.kv_rows import decode_entry
from localv4.kernels.launch import Program, Task, kernel
from localv4.kernels.rope import rotate
from localv4.kernels.rounding import round_bf16
from localv4.kernels.sums import total
from localv4.kernels.tiles import COLUMNS, TILE, add_weighted, products

__all__ = ["COMPRESSED", "RING", "attend_scratch_shapes", "record_attend"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

RING, COMPRESSED = 5, 7  # arguments that are put anew when the cache's memory moves
_BLOCK = 64
_STATE = 3  # a row each: largest score, sum of weights, factor of what was added before
_MINUS_INFINITY = np.float32(-np.inf)


@leaf
def _largest(row: F32) -> np.float32:
    """Return the largest number; compared as integers, which vector code may reorder."""
    largest = np.int32(-(2**31))
    for i in range(row.size):
        bits = np.float32(row[i]).view(np.int32)
        largest = max(largest, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int32(largest ^ ((largest >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@leaf
def _weigh(scores: F32, n: int, scale: np.float32, trained: int, state: F32, head: int) -> None:
    """Turn a head's scores of a block into weights, and bring its running softmax up to date."""
    for i in range(n):
        scores[i] = scores[i] * scale
    for i in range(n, scores.size):
        scores[i] = _MINUS_INFINITY
    largest = max(_largest(scores), state[0, head])
    for i in range(scores.size):
        scores[i] = exp_f32(scores[i] - largest)
    factor = exp_f32(state[0, head] - largest)
    state[0, head] = largest
    state[1, head] = state[1, head] * factor + total(scores)
    state[2, head] = factor
    if trained:
        for i in range(scores.size):
            scores[i] = round_bf16(scores[i])


@leaf
def _load_block(
    ring: U8,
    fresh: U8,
    compressed: U8,
    chosen: I32,
    place: int,
    oldest: int,
    n_recent: int,
    first: int,
    n: int,
    head_dim: int,
    rope_dim: int,
    trained: int,
    block: F32,
) -> None:
    """Unpack candidates first..first+n-1: the window's, then compressed entries."""
    for i in range(n):
        candidate = first + i
        position = oldest + candidate
        if candidate >= n_recent:
            entry = candidate - n_recent
            row = compressed[np.int64(chosen[entry]) if chosen.size > 0 else entry]
        elif position >= place:
            row = fresh[position - place]
        else:
            row = ring[position % ring.shape[0]]
        decode_entry(row, rope_dim, trained, block[i, :head_dim])
        for column in range(head_dim, block.shape[1]):
            block[i, column] = 0
    for i in range(n, -(-n // TILE) * TILE):
        for column in range(block.shape[1]):
            block[i, column] = 0


@kernel(
    "f32[2], f32, f32[3], i64[1], i64, u8[2], u8[2], u8[2], i32[2], i32[1],"
    "f32[1], f32, i64, i64, f32[3], f32[3], f32[3], f32[3], f32[2]"
)
def _attend(
    queries: F32,
    eps: np.float32,
    tables: F32,
    place: I64,
    ratio: int,
    ring: U8,
    fresh: U8,
    compressed: U8,
    chosen: I32,
    n_chosen: I32,
    sinks: F32,
    scale: np.float32,
    trained: int,
    groups: int,
    inputs: F32,
    blocks: F32,
    weights: F32,
    states: F32,
    out: F32,
    unit: int,
    worker: int,
) -> None:
    token, group = unit // groups, unit % groups
    head_dim = queries.shape[1] // sinks.size
    first_head = group * sinks.size // groups
    n_heads = (group + 1) * sinks.size // groups - first_head
    n_rows = -(-n_heads // TILE) * TILE
    query, sums = inputs[worker, :n_rows], inputs[worker, n_rows : 2 * n_rows]
    block, scores, state = blocks[worker], weights[worker, :n_rows], states[worker]
    for head in range(n_rows):
        row = query[head]
        for column in range(row.size):
            row[column] = 0
        if head < n_heads:
            source = queries[
                token, (first_head + head) * head_dim : (first_head + head + 1) * head_dim
            ]
            for column in range(head_dim):
                row[column] = source[column]
            if eps >= 0:
                head_norm(query[head, :head_dim], eps, trained, sums[head, :head_dim])
            rotate(query[head, :head_dim], tables[token], np.float32(1), trained)
        for column in range(row.size):
            sums[head, column] = 0
        state[0, head] = _MINUS_INFINITY
        state[1, head] = 0

    position = place[0] + token
    n_recent = min(ring.shape[0], position + 1)
    n_candidates = n_recent
    if chosen.shape[1] > 0:
        n_candidates += np.int64(n_chosen[token])
    elif ratio > 0:
        n_candidates += (position + 1) // ratio
    for first in range(0, n_candidates, _BLOCK):
        n = min(_BLOCK, n_candidates - first)
        _load_block(
            ring,
            fresh,
            compressed,
            chosen[token],
            place[0],
            position + 1 - n_recent,
            n_recent,
            first,
            n,
            head_dim,
            2 * tables.shape[2],
            trained,
            block,
        )
        n_filled = -(-n // TILE) * TILE
        products(query, block[:n_filled], 0, block.shape[1] // COLUMNS * COLUMNS, scores)
        for head in range(n_rows):
            _weigh(scores[head], n, scale, trained, state, head)
        add_weighted(scores, block, n, state[2, :n_rows], sums)

    for head in range(n_heads):
        number = first_head + head
        divisor = state[1, head] + exp_f32(sinks[number] - state[0, head])
        target = out[token, number * head_dim : (number + 1) * head_dim]
        source = sums[head, :head_dim]
        for column in range(head_dim):
            target[column] = source[column] / divisor
        if trained:
            for column in range(head_dim):
                target[column] = round_bf16(target[column])
        rotate(target, tables[token], np.float32(-1), trained)


def record_attend(
    program: Program,
    queries: F32,
    eps: float | None,
    tables: F32,
    place: I64,
    ratio: int,
    ring: U8,
    fresh: U8,
    compressed: U8,
    chosen: I32,
    n_chosen: I32,
    sinks: F32,
    scale: float,
    trained: bool,
    groups: int,
    scratch: tuple[F32, F32, F32, F32],
    out: F32,
) -> Task:
    """Record attending from each query to its window and its compressed entries.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    queries
        float32 [n_tokens, n_heads * head_dim], as projected: norm and rotation come first.
    eps
        Of the heads' norm; None if the queries are normalised already.
    tables
        float32 [n_tokens, 2, rope_dim / 2]: cosines and sines of the tokens' positions.
    place
        int64 [1]: position of the chunk's first token when the program runs.
    ratio
        Tokens of a compressed entry, 0 without them.
    ring
        uint8 [sliding_window, entry bytes]: the window before the chunk, position p in row
        p % sliding_window.
    fresh
        uint8 [n_tokens, entry bytes]: the chunk's own entries.
    compressed
        uint8 [.., entry bytes].
    chosen
        int32 [n_tokens, n]: entry numbers for each query; with n = 0 a query takes all entries
        that are complete at its position.
    n_chosen
        int32 [n_tokens]: how many of the chosen the query takes; not read with n = 0.
    sinks
        float32 [n_heads]: a logit that takes part in the sum and has no value.
    scale
        Factor of the scores.
    trained
        Entries are packed; weights are rounded to BF16 for the values, the result too.
    groups
        Into how many units the heads of a token are split; does not change any byte.
    scratch
        From `attend_scratch_shapes`, for each thread.
    out
        Written: float32 [n_tokens, n_heads * head_dim], rotated back.
    """
    return program.add(
        _attend,
        len(queries) * groups,
        queries,
        -1.0 if eps is None else eps,
        tables,
        place,
        ratio,
        ring,
        fresh,
        compressed,
        chosen,
        n_chosen,
        sinks,
        scale,
        int(trained),
        groups,
        *scratch,
        out,
    )


def attend_scratch_shapes(
    threads: int, n_heads: int, head_dim: int, groups: int
) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes of the float32 arrays that `record_attend` wants as scratch."""
    largest = -(-n_heads // groups)
    rows = -(-largest // TILE) * TILE
    # rows of a power of two would share few sets of the first cache
    columns = -(-head_dim // COLUMNS) * COLUMNS + 16
    return (
        (threads, 2 * rows, columns),
        (threads, _BLOCK, columns),
        (threads, rows, _BLOCK),
        (threads, _STATE, rows),
    )
