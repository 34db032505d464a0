"""One unit of attention: queries to lanes, candidates walked in blocks, results of segments merged.

Scores lie with the heads side by side: a block's entries are unpacked once for all heads of the
unit, and the softmax works on vectors of heads.  Where the CPU multiplies pairs of BF16 numbers
and the numerics are the trained ones, queries, entries and weights are such pairs, two a 32-bit
word; else all are float32.

Knows nothing of units, threads or programs.  Follows forward.md section 4 steps 2, 5 and 6.
"""

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.attention_entries import entry_words, pair_rows
from localv4.kernels.attention_products import GRAIN, LANES, PAIRS, add_products, turn
from localv4.kernels.elementwise import exp_f32
from localv4.kernels.heads import head_norm
from localv4.kernels.kv_rows import decode_entry
from localv4.kernels.rope import rotate
from localv4.kernels.rounding import round_bf16

__all__ = [
    "BEHIND",
    "block_size",
    "carve",
    "finish",
    "lay_out",
    "merge",
    "n_words",
    "prepare",
    "scratch_shapes",
    "walk",
]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
Scratch = tuple[F32, F32, F32, F32, F32, F32, F32]

BEHIND = 16
"""Columns behind those of sums: two hold a head's state.  Also the distance between other rows:
those of a power of two would share few sets of the first cache."""

_WORD_BLOCK, _FLOAT_BLOCK = 256, 64
_PART = 32  # entries that stay in the nearest cache between unpacking and scores
_LARGEST, _TOTAL, _FACTOR = 0, 1, 2  # of a state: largest score, sum of weights; see _rescale
_MINUS_INFINITY = np.float32(-np.inf)
_ONE = np.float32(1)
_SIXTEEN = np.uint32(16)
_UPPER = np.uint32(0xFFFF0000)


@register_jitable  # type: ignore[untyped-decorator]
def block_size(trained: int) -> int:
    """Return how many candidates share a step of the running softmax."""
    return _WORD_BLOCK if trained and PAIRS else _FLOAT_BLOCK


@register_jitable  # type: ignore[untyped-decorator]
def n_words(head_dim: int, trained: int) -> int:
    """Return the words of a query or an entry, whole vectors."""
    words = -(-head_dim // 2) if trained and PAIRS else head_dim
    return -(-words // LANES) * LANES


@register_jitable  # type: ignore[untyped-decorator]
def scratch_shapes(head_dim: int, n_heads: int, trained: int) -> tuple[tuple[int, int], ...]:
    """Return the shapes of a thread's scratch; n_heads is a multiple of 16."""
    pairs, block, words = bool(trained) and PAIRS, block_size(trained), n_words(head_dim, trained)
    columns = words * (2 if pairs else 1) + BEHIND
    shares = block // 2 if pairs else block
    return (
        (2 + LANES, columns),  # heads on their way to lanes
        (_PART if pairs else block, words + BEHIND),  # entries
        (shares if pairs else 0, columns),  # entries in pairs, a column's numbers side by side
        (block, n_heads),  # scores
        (shares, n_heads),  # weights
        (n_heads, shares + BEHIND),  # weights, those of a head side by side
        (3, n_heads),  # state
    )


@leaf
def _part(memory: F32, first: int, shape: tuple[int, int]) -> F32:
    return memory[first : first + shape[0] * shape[1]].reshape(shape)


@leaf
def carve(memory: F32, head_dim: int, n_heads: int, trained: int) -> Scratch:
    """Divide float32 [n] into arrays of `scratch_shapes`."""
    a, b, c, d, e, f, g = scratch_shapes(head_dim, n_heads, trained)
    at_b = a[0] * a[1]
    at_c = at_b + b[0] * b[1]
    at_d = at_c + c[0] * c[1]
    at_e = at_d + d[0] * d[1]
    at_f = at_e + e[0] * e[1]
    at_g = at_f + f[0] * f[1]
    return (
        _part(memory, 0, a),
        _part(memory, at_b, b),
        _part(memory, at_c, c),
        _part(memory, at_d, d),
        _part(memory, at_e, e),
        _part(memory, at_f, f),
        _part(memory, at_g, g),
    )


@leaf
def _pack(row: F32, out: I32) -> None:
    """Put BF16 numbers side by side, two a word."""
    bits = row.view(np.uint32)
    for i in range(out.size):
        out[i] = np.int32((bits[2 * i] >> _SIXTEEN) | (bits[2 * i + 1] & _UPPER))


@leaf
def prepare(
    queries: F32,
    eps: np.float32,
    table: F32,
    head_dim: int,
    first_head: int,
    trained: int,
    room: F32,
    rows: F32,
) -> None:
    """Normalise and turn some heads of a token; `lay_out` brings them where `walk` wants them.

    Parameters
    ----------
    queries
        float32 [n_heads * head_dim]; heads that are not there are zeros.
    eps
        Of the norm; below 0 the queries are normalised already.
    table
        float32 [2, rope_dim / 2]: cosines and sines.
    head_dim, first_head, trained
        As the names say.
    room
        Two rows at least of the first array of the scratch; none of them is one of `rows`.
    rows
        Written: float32 [heads, words], numbers or pairs of BF16 numbers (`n_words`).
    """
    row, size = room[0], rows.shape[1]
    for number in range(rows.shape[0]):
        start = (first_head + number) * head_dim
        n_given = head_dim if start < queries.size else 0
        for column in range(n_given):
            row[column] = queries[start + column]
        for column in range(n_given, row.size):
            row[column] = 0
        if n_given > 0:
            if eps >= 0:
                head_norm(row[:head_dim], eps, trained, room[1, :head_dim])
            rotate(row[:head_dim], table, _ONE, trained)
        if PAIRS and trained:
            _pack(row[: 2 * size], rows[number].view(np.int32))
        else:
            for column in range(size):
                rows[number, column] = row[column]


@leaf
def lay_out(rows: F32, lanes: F32) -> None:
    """Lay sixteen prepared heads, float32 [16, words], side by side: float32 [words, 16]."""
    turn(rows.view(np.int32), lanes.view(np.int32))  # words, not numbers


@leaf
def _entry(
    ring: U8, fresh: U8, compressed: U8, chosen: I32, place: int, position: int, candidate: int
) -> U8:
    """Return the packed row of a candidate of the query at a position."""
    n_recent = min(ring.shape[0], position + 1)
    if candidate >= n_recent:
        entry = candidate - n_recent
        row: U8 = compressed[np.int64(chosen[entry]) if chosen.size > 0 else entry]
        return row
    taken = position + 1 - n_recent + candidate
    recent: U8 = fresh[taken - place] if taken >= place else ring[taken % ring.shape[0]]
    return recent


@leaf
def _rescale(scores: F32, n: int, scale: np.float32, state: F32, sums: F32) -> None:
    """Scale n rows of scores, bring the largest up to date, and shrink what was added before."""
    largest, factors = state[_LARGEST], state[_FACTOR]
    for head in range(factors.size):
        factors[head] = largest[head]
    for i in range(n):
        row = scores[i]
        for head in range(row.size):
            score = np.float32(row[head] * scale)
            row[head] = score
            largest[head] = score if score > largest[head] else largest[head]
    for head in range(factors.size):
        factors[head] = exp_f32(factors[head] - largest[head])
        state[_TOTAL, head] = state[_TOTAL, head] * factors[head]
    for head in range(factors.size):
        factor, sum_row = factors[head], sums[head]
        if factor != _ONE:
            for column in range(sum_row.size):
                sum_row[column] = sum_row[column] * factor


@leaf
def _weigh_words(scores: F32, n: int, state: F32, shares: I32) -> None:
    """Turn scores into weights, rounded to BF16, those of two candidates a word."""
    largest, total = state[_LARGEST], state[_TOTAL]
    for word in range(n // 2):
        one, other, out = scores[2 * word], scores[2 * word + 1], shares[word]
        for head in range(out.size):
            first = exp_f32(one[head] - largest[head])
            second = exp_f32(other[head] - largest[head])
            total[head] = np.float32(total[head] + first) + second
            lower = np.float32(round_bf16(first)).view(np.uint32) >> _SIXTEEN
            out[head] = np.int32(lower | np.float32(round_bf16(second)).view(np.uint32))


@leaf
def _weigh_floats(scores: F32, n: int, trained: int, state: F32, shares: F32) -> None:
    """Turn scores into weights; with `trained` they are rounded to BF16."""
    largest, total = state[_LARGEST], state[_TOTAL]
    for i in range(n):
        row, out = scores[i], shares[i]
        for head in range(out.size):
            weight = exp_f32(row[head] - largest[head])
            total[head] = total[head] + weight
            out[head] = weight
        if trained:
            for head in range(out.size):
                out[head] = round_bf16(out[head])


@leaf
def _block_of_words(
    lanes: F32,
    ring: U8,
    fresh: U8,
    compressed: U8,
    chosen: I32,
    place: int,
    position: int,
    first: int,
    n: int,
    head_dim: int,
    rope_dim: int,
    scale: np.float32,
    scratch: Scratch,
    adds: int,
    sums: F32,
) -> None:
    """Attend to a block of candidates by pairs of BF16 numbers."""
    words, pairs, scores = scratch[1].view(np.int32), scratch[2].view(np.int32), scratch[3]
    shares, turned, state = scratch[4].view(np.int32), scratch[5].view(np.int32), scratch[6]
    size, n_rows = lanes.shape[1], -(-n // GRAIN) * GRAIN
    for start in range(0, n_rows, _PART):
        count = min(_PART, n_rows - start)
        for i in range(count):
            entry = words[i, :size]
            if start + i < n:
                row = _entry(ring, fresh, compressed, chosen, place, position, first + start + i)
                entry_words(row, head_dim, rope_dim, entry)
            else:
                for word in range(size):
                    entry[word] = 0
            if i % 2 == 1:
                pair_rows(words[i - 1, :size], entry, pairs[(start + i) // 2, : 2 * size])
        target = scores[start : start + count]
        add_products(words[:count], lanes.view(np.int32), size, 0, target)
    _rescale(scores, n, scale, state, sums)
    for i in range(n, n_rows):
        for head in range(scores.shape[1]):
            scores[i, head] = _MINUS_INFINITY
    _weigh_words(scores, n_rows, state, shares)
    turn(shares[: -(-n_rows // (2 * LANES)) * LANES], turned)
    add_products(turned, pairs[:, : 2 * size], n_rows // 2, adds, sums)


@leaf
def _block_of_floats(
    lanes: F32,
    ring: U8,
    fresh: U8,
    compressed: U8,
    chosen: I32,
    place: int,
    position: int,
    first: int,
    n: int,
    head_dim: int,
    rope_dim: int,
    scale: np.float32,
    trained: int,
    scratch: Scratch,
    adds: int,
    sums: F32,
) -> None:
    """Attend to a block of candidates by float32."""
    values, scores, shares, turned, state = (
        scratch[1],
        scratch[3],
        scratch[4],
        scratch[5],
        scratch[6],
    )
    size, n_rows = lanes.shape[1], -(-n // GRAIN) * GRAIN
    for i in range(n_rows):
        entry = values[i]
        if i < n:
            row = _entry(ring, fresh, compressed, chosen, place, position, first + i)
            decode_entry(row, rope_dim, trained, entry[:head_dim])
        for column in range(head_dim if i < n else 0, size):
            entry[column] = 0
    add_products(values[:n_rows], lanes, size, 0, scores[:n_rows])
    _rescale(scores, n, scale, state, sums)
    _weigh_floats(scores, n, trained, state, shares)
    turn(shares[: -(-n // LANES) * LANES], turned)
    add_products(turned, values[:, :size], n, adds, sums)


@leaf
def walk(
    lanes: F32,
    ring: U8,
    fresh: U8,
    compressed: U8,
    chosen: I32,
    place: int,
    position: int,
    begin: int,
    end: int,
    head_dim: int,
    rope_dim: int,
    scale: np.float32,
    trained: int,
    scratch: Scratch,
    sums: F32,
) -> None:
    """Attend to candidates begin..end-1 of a token as if there were no others.

    Parameters
    ----------
    lanes
        float32 [n_heads / 16, words, 16], from `lay_out`.
    ring, fresh, compressed, chosen, scale, trained
        As in `attention.record_attend`, of `chosen` the token's row.
    place, position
        Of the chunk's first token, and of this one.
    begin, end, head_dim, rope_dim
        As the names say; end is larger than begin.
    scratch
        From `carve`.
    sums
        Written: float32 [n_heads, columns + 16], the sums of weighted values; in the first two
        columns behind them the largest score and the sum of weights.
    """
    block, state = block_size(trained), scratch[6]
    for head in range(state.shape[1]):
        state[_LARGEST, head] = _MINUS_INFINITY
        state[_TOTAL, head] = 0
        for column in range(sums.shape[1]):
            sums[head, column] = 0
    for first in range(begin, end, block):
        n, adds = min(block, end - first), 1 if first > begin else 0
        if PAIRS and trained:
            _block_of_words(
                lanes,
                ring,
                fresh,
                compressed,
                chosen,
                place,
                position,
                first,
                n,
                head_dim,
                rope_dim,
                scale,
                scratch,
                adds,
                sums,
            )
            continue
        _block_of_floats(
            lanes,
            ring,
            fresh,
            compressed,
            chosen,
            place,
            position,
            first,
            n,
            head_dim,
            rope_dim,
            scale,
            trained,
            scratch,
            adds,
            sums,
        )
    behind = sums.shape[1] - BEHIND
    for head in range(state.shape[1]):
        sums[head, behind + _LARGEST] = state[_LARGEST, head]
        sums[head, behind + _TOTAL] = state[_TOTAL, head]


@leaf
def merge(sums: F32, others: F32) -> None:
    """Add the result of another segment to that of the segments before it; both as `walk` wrote."""
    behind = sums.shape[1] - BEHIND
    for head in range(sums.shape[0]):
        row, more = sums[head], others[head]
        before, after = row[behind + _LARGEST], more[behind + _LARGEST]
        largest = after if after > before else before
        keep, add = exp_f32(before - largest), exp_f32(after - largest)
        for column in range(behind):
            row[column] = np.float32(row[column] * keep) + np.float32(more[column] * add)
        kept = np.float32(row[behind + _TOTAL] * keep)
        row[behind + _TOTAL] = kept + np.float32(more[behind + _TOTAL] * add)
        row[behind + _LARGEST] = largest


@leaf
def finish(sums: F32, sinks: F32, table: F32, head_dim: int, trained: int, out: F32) -> None:
    """Divide sums by all weights, the sinks' too, and turn them back.

    Parameters
    ----------
    sums
        As `walk` wrote them: float32 [at least n_heads, columns + 16].
    sinks
        float32 [n_heads].
    table
        float32 [2, rope_dim / 2].
    head_dim, trained
        As the names say.
    out
        Written: float32 [n_heads * head_dim].
    """
    behind = sums.shape[1] - BEHIND
    for head in range(sinks.size):
        source, target = sums[head], out[head * head_dim : (head + 1) * head_dim]
        divisor = source[behind + _TOTAL] + exp_f32(sinks[head] - source[behind + _LARGEST])
        for column in range(head_dim):
            target[column] = source[column] / divisor
        if trained:
            for column in range(head_dim):
                target[column] = round_bf16(target[column])
        rotate(target, table, np.float32(-1), trained)
