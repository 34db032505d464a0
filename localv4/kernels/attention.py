"""Attention of every head over window and compressed entries, with a sink.

One shared head serves as keys and values.  A query's candidates are the window from oldest to
newest, then the compressed entries.  They are cut into up to `SEGMENTS` segments, as few as keep
many threads busy, each with a running softmax of its own, that are merged in order.  Blocks and
segments depend on the number of candidates alone, so the same bytes come out whether one unit walks
all segments of a query (many tokens) or many units walk one each (few tokens, a long context).
Follows forward.md section 4 steps 2, 5 and 6.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.attention_products import LANES
from localv4.kernels.attention_walk import (
    carve,
    finish,
    lay_out,
    merge,
    n_words,
    prepare,
    scratch_shapes,
    walk,
)
from localv4.kernels.launch import Program, Task, kernel

__all__ = ["COMPRESSED", "RING", "SEGMENTS", "attend_scratch_shapes", "record_attend"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

RING, COMPRESSED = 0, 2  # arguments that are put anew when the cache's memory moves
SEGMENTS = 16
"""Most segments of a query; they bound what is kept until it is merged."""

_GRAIN = 32  # candidates: a segment has some times as many
_FEW, _ENOUGH = 4, 160  # segments, and the candidates of each that they have where there are more
_UNPACKING, _PRODUCTS = 2, 3  # shares of a segment's time, all heads together
_PREPARED_HEADS = 4  # of a unit that prepares: a divisor of 16
_MERGED_HEADS = 4  # of a unit that merges


@leaf
def _segments(n_candidates: int) -> tuple[int, int]:
    """Return how many segments there are, and the candidates of each but the last."""
    most = min(max(n_candidates // _ENOUGH, _FEW), SEGMENTS)
    size = _GRAIN * -(-n_candidates // (_GRAIN * most))
    return -(-n_candidates // size), size


@leaf
def _groups(n_segments: int, n_tiles: int, most: int, threads: int) -> int:
    """Return into how many groups of heads segments are cut; each unpacks entries for itself."""
    best, least = 1, np.inf
    for groups in range(1, most + 1):
        rounds = -(-n_segments * groups // threads)
        cost = rounds * (_UNPACKING * n_tiles + _PRODUCTS * -(-n_tiles // groups))
        if cost < least:
            best, least = groups, cost
    return best


@leaf
def _n_candidates(position: int, window: int, ratio: int, chosen: I32, n_chosen: int) -> int:
    """Return the candidates of the query at a position; `chosen` is its row."""
    n_recent = min(window, position + 1)
    if chosen.size > 0:
        return n_recent + n_chosen
    return n_recent + ((position + 1) // ratio if ratio > 0 else 0)


@kernel(
    "u8[2], u8[2], u8[2], f32[2], f32, f32[3], i64[1], i64, i32[2], i32[1], f32[1], f32, i64, i64,"
    "f32[2], f32[4], f32[3], f32[2]"
)
def _attend(
    ring: U8,
    fresh: U8,
    compressed: U8,
    queries: F32,
    eps: np.float32,
    tables: F32,
    place: I64,
    ratio: int,
    chosen: I32,
    n_chosen: I32,
    sinks: F32,
    scale: np.float32,
    trained: int,
    groups: int,
    memory: F32,
    lanes: F32,
    partial: F32,
    out: F32,
    unit: int,
    worker: int,
) -> None:
    """Do all of a token for a group of its heads."""
    token, group = unit // groups, unit % groups
    head_dim, rope_dim = queries.shape[1] // sinks.size, 2 * tables.shape[2]
    n_tiles = -(-sinks.size // LANES)
    first_tile, end_tile = group * n_tiles // groups, (group + 1) * n_tiles // groups
    n_heads = LANES * (end_tile - first_tile)
    scratch = carve(memory[worker], head_dim, n_heads, trained)
    own = lanes[worker, : end_tile - first_tile]
    room, rows = scratch[0][:2], scratch[0][2:, : own.shape[1]]
    for tile in range(end_tile - first_tile):
        first = LANES * (first_tile + tile)
        prepare(queries[token], eps, tables[token], head_dim, first, trained, room, rows)
        lay_out(rows, own[tile])
    position = place[0] + token
    n_candidates = _n_candidates(position, ring.shape[0], ratio, chosen[token], n_chosen[token])
    n_segments, size = _segments(n_candidates)
    sums = partial[2 * worker, :n_heads]
    for segment in range(n_segments):
        target = partial[2 * worker + min(segment, 1), :n_heads]
        walk(
            own,
            ring,
            fresh,
            compressed,
            chosen[token],
            place[0],
            position,
            segment * size,
            min((segment + 1) * size, n_candidates),
            head_dim,
            rope_dim,
            scale,
            trained,
            scratch,
            target,
        )
        if segment > 0:
            merge(sums, target)
    first, end = LANES * first_tile, min(LANES * end_tile, sinks.size)
    target_out = out[token, first * head_dim : end * head_dim]
    finish(sums, sinks[first:end], tables[token], head_dim, trained, target_out)


@kernel("f32[2], f32, f32[3], i64, i64, f32[2], f32[3]")
def _prepare(
    queries: F32,
    eps: np.float32,
    tables: F32,
    n_heads: int,
    trained: int,
    memory: F32,
    rows: F32,
    unit: int,
    worker: int,
) -> None:
    """Prepare some heads of a token."""
    units = rows.shape[1] // _PREPARED_HEADS
    token, first = unit // units, unit % units * _PREPARED_HEADS
    head_dim = queries.shape[1] // n_heads
    room = carve(memory[worker], head_dim, rows.shape[1], trained)[0]
    target = rows[token, first : first + _PREPARED_HEADS]
    prepare(queries[token], eps, tables[token], head_dim, first, trained, room, target)


@kernel(
    "u8[2], u8[2], u8[2], i64[1], i64, i32[2], i32[1], f32, i64, i64, i64, i64, i64,"
    "f32[2], f32[3], f32[4], f32[3]"
)
def _attend_segment(
    ring: U8,
    fresh: U8,
    compressed: U8,
    place: I64,
    ratio: int,
    chosen: I32,
    n_chosen: I32,
    scale: np.float32,
    trained: int,
    head_dim: int,
    rope_dim: int,
    groups: int,
    threads: int,
    memory: F32,
    rows: F32,
    lanes: F32,
    partial: F32,
    unit: int,
    worker: int,
) -> None:
    """Do a segment of a token for a group of its heads; for all where segments are enough."""
    token, rest = unit // (SEGMENTS * groups), unit % (SEGMENTS * groups)
    segment, group = rest // groups, rest % groups
    position = place[0] + token
    n_candidates = _n_candidates(position, ring.shape[0], ratio, chosen[token], n_chosen[token])
    n_segments, size = _segments(n_candidates)
    n_tokens, n_tiles = rows.shape[0], lanes.shape[1]
    n_groups = _groups(n_segments * n_tokens, n_tiles, groups, threads)
    if segment >= n_segments or group >= n_groups:
        return
    first, end = group * n_tiles // n_groups, (group + 1) * n_tiles // n_groups
    scratch = carve(memory[worker], head_dim, LANES * (end - first), trained)
    own = lanes[worker, : end - first]
    for tile in range(first, end):
        lay_out(rows[token, LANES * tile : LANES * (tile + 1)], own[tile - first])
    walk(
        own,
        ring,
        fresh,
        compressed,
        chosen[token],
        place[0],
        position,
        segment * size,
        min((segment + 1) * size, n_candidates),
        head_dim,
        rope_dim,
        scale,
        trained,
        scratch,
        partial[token * SEGMENTS + segment, LANES * first : LANES * end],
    )


@kernel("i64[1], i64, i64, i32[2], i32[1], f32[3], f32[1], i64, f32[3], f32[2]")
def _merge_segments(
    place: I64,
    window: int,
    ratio: int,
    chosen: I32,
    n_chosen: I32,
    tables: F32,
    sinks: F32,
    trained: int,
    partial: F32,
    out: F32,
    unit: int,
) -> None:
    """Merge the segments of a token for some heads."""
    units = -(-sinks.size // _MERGED_HEADS)
    token, first = unit // units, unit % units * _MERGED_HEADS
    end = min(first + _MERGED_HEADS, sinks.size)
    n_candidates = _n_candidates(place[0] + token, window, ratio, chosen[token], n_chosen[token])
    n_segments, _ = _segments(n_candidates)
    sums = partial[token * SEGMENTS, first:end]
    for segment in range(1, n_segments):
        merge(sums, partial[token * SEGMENTS + segment, first:end])
    head_dim = out.shape[1] // sinks.size
    target = out[token, first * head_dim : end * head_dim]
    finish(sums, sinks[first:end], tables[token], head_dim, trained, target)


def _divide(n_tokens: int, threads: int, n_heads: int) -> tuple[int, bool]:
    """Return the groups of a token's heads, and whether segments are units of their own."""
    n_tiles = -(-n_heads // LANES)
    return min(-(-threads // n_tokens), n_tiles), threads > max(1, (n_tokens - 1) * n_tiles)


def record_attend(
    program: Program,
    queries: F32,
    eps: float | None,
    tables: F32,
    place: I64,
    ratio: int,
    window: int,
    ring: U8,
    fresh: U8,
    compressed: U8,
    chosen: I32,
    n_chosen: I32,
    sinks: F32,
    scale: float,
    trained: bool,
    threads: int,
    scratch: Sequence[NDArray[np.float32]],
    out: F32,
) -> Task:
    """Record attending from each query to its window and its compressed entries.

    Parameters
    ----------
    program
        Gets tasks in its last phase, and for few tokens in two more phases.
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
    window
        Tokens of the window, the query's own among them.
    ring
        uint8 [window, entry bytes]: the window before the chunk, position p in row p % window.
        May be put later, as `compressed` may.
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
    threads
        For how finely work is divided; does not change any byte.
    scratch
        Of `attend_scratch_shapes`.
    out
        Written: float32 [n_tokens, n_heads * head_dim], rotated back; may be `queries`.

    Returns
    -------
    The task that reads `ring` and `compressed`, its arguments `RING` and `COMPRESSED`.
    """
    n_tokens, n_heads = len(queries), sinks.size
    groups, split = _divide(n_tokens, threads, n_heads)
    memory, rows, lanes, partial = scratch
    given_eps = -1.0 if eps is None else eps
    if not split:
        return program.add(
            _attend,
            n_tokens * groups,
            ring,
            fresh,
            compressed,
            queries,
            given_eps,
            tables,
            place,
            ratio,
            chosen,
            n_chosen,
            sinks,
            scale,
            int(trained),
            groups,
            memory,
            lanes,
            partial,
            out,
        )
    part = program.part
    program.add(
        _prepare,
        n_tokens * rows.shape[1] // _PREPARED_HEADS,
        queries,
        given_eps,
        tables,
        n_heads,
        int(trained),
        memory,
        rows,
    )
    program.phase(part)
    task = program.add(
        _attend_segment,
        n_tokens * SEGMENTS * groups,
        ring,
        fresh,
        compressed,
        place,
        ratio,
        chosen,
        n_chosen,
        scale,
        int(trained),
        queries.shape[1] // n_heads,
        2 * tables.shape[2],
        groups,
        threads,
        memory,
        rows,
        lanes,
        partial,
    )
    program.phase(part)
    program.add(
        _merge_segments,
        n_tokens * -(-n_heads // _MERGED_HEADS),
        place,
        window,
        ratio,
        chosen,
        n_chosen,
        tables,
        sinks,
        int(trained),
        partial,
        out,
    )
    return task


def attend_scratch_shapes(
    n_tokens: int, threads: int, n_heads: int, head_dim: int, trained: bool
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the float32 arrays that `record_attend` wants as scratch.

    Parameters
    ----------
    n_tokens, threads, n_heads, head_dim, trained
        As given to `record_attend`.
    """
    groups, split = _divide(n_tokens, threads, n_heads)
    n_tiles = -(-n_heads // LANES)
    tiles = n_tiles if split else -(-n_tiles // groups)
    shapes, words = scratch_shapes(head_dim, LANES * tiles, trained), n_words(head_dim, trained)
    return (
        (threads, sum(rows * columns for rows, columns in shapes)),
        (n_tokens if split else 0, LANES * tiles, words),
        (threads, tiles, words, LANES),
        (n_tokens * SEGMENTS if split else 2 * threads, LANES * tiles, shapes[0][1]),
    )
