"""Index scores, and the choice of the highest.

Follows forward.md section 6.  With trained numerics queries and keys are FP4 numbers, and
index_tile.py multiplies them packed; float32 numerics, and keys of more columns than that takes,
are multiplied unpacked, with the same rounding.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.choice import choose_row, note_highest, set_shift
from localv4.kernels.index_keys import WIDTH
from localv4.kernels.index_queries import query_bytes
from localv4.kernels.index_scoring import RATIO
from localv4.kernels.index_tile import score_keys
from localv4.kernels.kv_rows import (
    KEY_BLOCK,
    decode_key,
)
from localv4.kernels.launch import Program, Task, kernel
from localv4.kernels.rounding import round_bf16
from localv4.kernels.tiles import TILE, products

__all__ = [
    "SCORED_KEYS",
    "packed_query_bytes",
    "record_score_and_choose",
    "record_scores",
    "score_scratch_shapes",
]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Scratch = tuple[F32, F32, F32]

SCORED_KEYS = 3  # argument that is put anew when the cache's memory moves
_KEYS = 64  # keys that are unpacked together
_MINUS_INFINITY = np.float32(-np.inf)


@leaf
def _score_block(
    queries: F32,
    weights: F32,
    keys: U8,
    trained: int,
    unpacked: F32,
    part: F32,
    sums: F32,
    scores: F32,
) -> None:
    """Score up to 64 keys: for each the sum over heads of relu(q . k) * weight."""
    n = scores.size
    n_filled = -(-n // TILE) * TILE
    for i in range(n):
        decode_key(keys[i], trained, unpacked[i])
    for i in range(n, n_filled):
        for column in range(unpacked.shape[1]):
            unpacked[i, column] = 0
    for first in range(0, queries.shape[1], KEY_BLOCK):
        products(queries, unpacked[:n_filled], first, KEY_BLOCK, part)
        for head in range(queries.shape[0]):
            row, target = part[head, :n], sums[head, :n]
            for i in range(n):
                target[i] = row[i] if first == 0 else target[i] + row[i]
    for i in range(n):
        scores[i] = 0
    for head in range(weights.size):
        weight, row = weights[head], sums[head, :n]
        for i in range(n):
            product = round_bf16(row[i]) if trained else row[i]
            product = np.float32(0) if product <= np.float32(0) else product  # a NaN passes
            weighted = np.float32(product * weight)
            scores[i] += round_bf16(weighted) if trained else weighted
    if trained:
        for i in range(n):
            scores[i] = round_bf16(scores[i])


@leaf
def _score_unpacked(
    queries: F32,
    weights: F32,
    keys: U8,
    trained: int,
    first: int | np.int64,
    last: int | np.int64,
    inputs: F32,
    unpacked: F32,
    sums: F32,
    scores: F32,
) -> None:
    """Score keys first..last-1 of one query, 64 at a time."""
    n_heads, n_rows = weights.size, inputs.shape[0]
    width = inputs.shape[1]
    for head in range(n_rows):
        row = inputs[head]
        for column in range(width):
            row[column] = queries[head * width + column] if head < n_heads else np.float32(0)
    for start in range(first, last, _KEYS):
        end = min(start + _KEYS, last)
        _score_block(
            inputs,
            weights,
            keys[start:end],
            trained,
            unpacked,
            sums[:n_rows],
            sums[n_rows:],
            scores[start:end],
        )


@leaf
def _score(
    queries: F32,
    weights: F32,
    packed: U8,
    keys: U8,
    position: int | np.int64,
    trained: int,
    first: int | np.int64,
    last: int | np.int64,
    inputs: F32,
    unpacked: F32,
    sums: F32,
    scores: F32,
    highest: I32,
) -> None:
    """Score keys first..last-1 of some queries, as far as each sees them, and note the highest."""
    if packed.shape[1] > 0:
        score_keys(packed, weights.shape[1], keys, position, first, last, scores)
    for token in range(scores.shape[0]):
        row = scores[token, : (position + token + 1) // RATIO]
        end = min(last, row.size)
        if packed.shape[1] == 0:
            _score_unpacked(
                queries[token],
                weights[token],
                keys,
                trained,
                first,
                end,
                inputs,
                unpacked,
                sums,
                row,
            )
        note_highest(row, first, end, highest[token])


@kernel("f32[2], f32[2], u8[2], u8[2], i64[1], i64, i64, f32[3], f32[3], f32[3], f32[2], i32[2]")
def _scores(
    queries: F32,
    weights: F32,
    packed: U8,
    keys: U8,
    place: I64,
    trained: int,
    parts: int,
    inputs: F32,
    unpacked: F32,
    sums: F32,
    scores: F32,
    highest: I32,
    unit: int,
    worker: int,
) -> None:
    n_tokens = queries.shape[0]
    n_keys = (place[0] + n_tokens) // RATIO
    # whole sets of any of the tokens, and whole blocks
    size = max(_KEYS, 1 << set_shift(n_keys))
    size *= -(-n_keys // (size * parts))
    first = unit * size
    if first < n_keys:
        _score(
            queries,
            weights,
            packed,
            keys,
            place[0],
            trained,
            first,
            min(first + size, n_keys),
            inputs[worker],
            unpacked[worker],
            sums[worker],
            scores,
            highest,
        )


@kernel(
    "f32[2], f32[2], u8[2], u8[2], i64[1], i64, i64, i32[2], i32[1], f32[2],"
    "f32[3], f32[3], f32[3], f32[2], i32[2]"
)
def _score_and_choose(
    queries: F32,
    weights: F32,
    packed: U8,
    keys: U8,
    place: I64,
    trained: int,
    at_once: int,
    chosen: I32,
    counts: I32,
    best: F32,
    inputs: F32,
    unpacked: F32,
    sums: F32,
    scores: F32,
    highest: I32,
    unit: int,
    worker: int,
) -> None:
    token = unit * at_once
    end = min(token + at_once, queries.shape[0])
    rows = scores[worker * at_once : worker * at_once + end - token]
    sets = highest[worker * at_once : worker * at_once + end - token]
    _score(
        queries[token:end],
        weights[token:end],
        packed[token:end],
        keys,
        place[0] + token,
        trained,
        np.int64(0),  # a literal would compile the function once more
        (place[0] + end) // RATIO,
        inputs[worker],
        unpacked[worker],
        sums[worker],
        rows,
        sets,
    )
    for i in range(end - token):
        row = rows[i, : (place[0] + token + i + 1) // RATIO]
        counts[token + i] = choose_row(row, sets[i], chosen[token + i], best[token + i])


def record_scores(
    program: Program,
    queries: F32,
    weights: F32,
    packed: U8,
    keys: U8,
    place: I64,
    trained: bool,
    parts: int,
    scratch: Scratch,
    scores: F32,
    highest: I32,
) -> Task:
    """Record scoring the keys that each query may see, for few tokens.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    queries
        float32 [n_tokens, n_heads * index_head_dim] from `record_index_queries`.
    weights
        float32 [n_tokens, n_heads], from there too.
    packed
        uint8 [n_tokens, `packed_query_bytes`], from there too.
    keys
        uint8 [.., key bytes]; argument `SCORED_KEYS` of the task.
    place
        int64 [1]: position of the first query; query i sees keys below (place + i + 1) // 4.
    trained
        BF16 rounding of products and sums; keys are packed FP4.
    parts
        Into how many units the keys are split; does not change any byte.
    scratch
        Of the shapes `score_scratch_shapes`, for each thread.
    scores
        Written: float32 [n_tokens, at least n_keys]; the task's last argument but one.
    highest
        Written: int32 [n_tokens, `SETS`], what `record_choose` wants.
    """
    return program.add(
        _scores,
        parts,
        queries,
        weights,
        packed,
        keys,
        place,
        int(trained),
        parts,
        *scratch,
        scores,
        highest,
    )


def record_score_and_choose(
    program: Program,
    queries: F32,
    weights: F32,
    packed: U8,
    keys: U8,
    place: I64,
    trained: bool,
    at_once: int,
    chosen: I32,
    counts: I32,
    best: F32,
    scratch: Scratch,
    scores: F32,
    highest: I32,
) -> Task:
    """Record scores and choice of some tokens at a time, for more tokens than threads.

    Parameters are those of `record_scores` and `record_choose` (choice.py), but:

    at_once
        How many tokens meet the keys that are unpacked once; does not change any byte.
    scores
        float32 [threads * at_once, at least n_keys], the task's last argument but one.
    highest
        int32 [threads * at_once, `SETS`].
    """
    return program.add(
        _score_and_choose,
        -(-len(queries) // at_once),
        queries,
        weights,
        packed,
        keys,
        place,
        int(trained),
        at_once,
        chosen,
        counts,
        best,
        *scratch,
        scores,
        highest,
    )


def _is_packed(width: int, trained: bool) -> bool:
    return trained and width <= WIDTH


def packed_query_bytes(n_heads: int, width: int, trained: bool) -> int:
    """Return the bytes of a token's query as index_tile.py wants it; 0 where it does not serve."""
    return query_bytes(n_heads) if _is_packed(width, trained) else 0


def score_scratch_shapes(
    threads: int, n_heads: int, width: int, trained: bool
) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes of the float32 arrays that `record_scores` wants as scratch."""
    if _is_packed(width, trained):
        return ((threads, 0, 0),) * 3
    rows = -(-n_heads // TILE) * TILE
    return (threads, rows, width), (threads, _KEYS, width), (threads, 2 * rows, _KEYS)
