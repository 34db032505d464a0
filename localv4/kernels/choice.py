"""The choice of the highest scores, without sorting.

Who scores also notes the highest score of every *set* of neighbouring entries, of which there are
a few thousand at most.  The k-th highest of these is no higher than the k-th highest score, so
only sets that reach it are looked at, and of their entries those that reach it are collected;
when the room for these is full, all but the k highest go.  Equal scores go from the highest entry
number down.  Follows forward.md section 6 step 5.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from localv4.kernels._jit import intrinsic, leaf
from localv4.kernels.launch import Program, Task, kernel
from localv4.kernels.simd import F32X16, I16, I32, I64, LANES, Emitter, vector

__all__ = ["HIGHEST", "SCORES", "SETS", "choose_row", "note_highest", "record_choose", "set_shift"]

F32 = NDArray[np.float32]
I32Array = NDArray[np.int32]
I64Array = NDArray[np.int64]

SCORES, HIGHEST = 0, 1  # arguments that are put anew when the room for scores grows
SETS = 4096
"""Most sets of a row."""

_LEAST_SHIFT = 4  # sets of 16 entries, which are compared at once
_COLLECTED = 4096
_LOWEST = np.int32(-(2**31))
_TOP = np.int32(2**31 - 1)


@leaf
def _rank(value: np.float32) -> np.int32:
    """Map floats to integers of the same order; the two zeros are one."""
    bits = np.float32(value).view(np.int32)
    rank = np.int32(bits ^ ((bits >> np.int32(31)) & _TOP))
    return np.int32(0) if value == np.float32(0) else rank


def _reaching(row: F32, first: int, least: np.int32) -> int:
    """Return which of 16 entries have at least a rank, a bit for each."""
    return sum(int(_rank(row[first + lane]) >= least) << lane for lane in range(LANES))


@intrinsic
def _reaching_lanes(typing: Any, row: Any, first: Any, least: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        emit = Emitter(builder)
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = emit.at(builder.ptrtoint(array.data, I64), args[1], 4)
        values = emit.load(address, F32X16)
        bits = builder.bitcast(values, vector(I32))
        flipped = builder.ashr(bits, emit.splat_constant(I32, 31))
        flipped = builder.and_(flipped, emit.splat_constant(I32, int(_TOP)))
        is_zero = builder.fcmp_ordered("==", values, emit.splat_constant(F32X16.element, 0.0))
        zero = emit.splat_constant(I32, 0)
        ranks = builder.select(is_zero, zero, builder.xor(bits, flipped))
        reached = builder.icmp_signed(">=", ranks, emit.splat(args[2]))
        return builder.zext(builder.bitcast(reached, I16), I64)

    return types.int64(row, types.int64, types.int32), code


@overload(_reaching)  # type: ignore[untyped-decorator]
def _compiled_reaching(row: Any, first: Any, least: Any) -> Any:
    def implementation(row: Any, first: Any, least: Any) -> Any:
        return _reaching_lanes(row, first, least)

    return implementation


@leaf
def set_shift(n: int) -> int:
    """Return the power of two that is the size of sets of a row of n scores."""
    shift = _LEAST_SHIFT
    while ((n - 1) >> shift) >= SETS:
        shift += 1
    return shift


@leaf
def note_highest(row: F32, first: int | np.int64, last: int | np.int64, highest: I32Array) -> None:
    """Note the highest rank of each set.

    Parameters
    ----------
    row
        float32 [n], all scores that the query may see.
    first, last
        The sets of which entries: `first` begins one, `last` ends one or is n.
    highest
        Written for these sets: int32 [at least the sets of n].
    """
    shift = set_shift(row.size)
    for start in range(first, last, 1 << shift):
        entries = row[start : min(start + (1 << shift), last)]
        rank = _LOWEST
        for i in range(entries.size):
            rank = max(rank, _rank(entries[i]))
        highest[start >> shift] = rank


@leaf
def _kth(ranks: I32Array, k: int) -> np.int32:
    """Find the k-th highest rank, bit by bit."""
    found = np.int64(_LOWEST)
    for bit in range(31, -1, -1):
        trial = np.int32(found + (np.int64(1) << bit))
        count = np.int32(0)
        for i in range(ranks.size):
            count = np.int32(count + np.int32(ranks[i] >= trial))  # as narrow as the ranks
        if count >= k:
            found = np.int64(trial)
    return np.int32(found)


@leaf
def _keep_highest(ranks: I32Array, entries: I32Array, count: int, k: int) -> np.int32:
    """Keep the k highest of some entries, in their order; return the lowest rank among them."""
    threshold = _kth(ranks[:count], k)
    room = k
    for i in range(count):
        room -= ranks[i] > threshold
    kept = 0
    for i in range(count):
        if ranks[i] > threshold or (ranks[i] == threshold and room > 0):
            room -= ranks[i] == threshold
            ranks[kept], entries[kept] = ranks[i], entries[i]
            kept += 1
    return threshold


@leaf
def _collect(row: F32, highest: I32Array, ranks: I32Array, entries: I32Array, k: int) -> None:
    """Collect the k highest of a longer row."""
    n, shift = row.size, set_shift(row.size)
    n_sets = ((n - 1) >> shift) + 1
    least = _kth(highest[:n_sets], k) if n_sets > k else _LOWEST
    count = 0
    for number in range(n_sets):
        if highest[number] < least:
            continue
        for start in range(number << shift, min((number + 1) << shift, n), LANES):
            if count + LANES > ranks.size:
                threshold = _keep_highest(ranks, entries, count, k)
                count = k
                if threshold == _TOP:
                    return
                least = np.int32(threshold + 1)  # entries that equal it are too late
            left = n - start
            mask = _reaching(row, start, least) if left >= LANES else (1 << left) - 1
            lane = 0
            while mask >> lane:
                rank = _rank(row[start + lane])
                if (mask >> lane) & 1 and rank >= least:
                    ranks[count], entries[count] = rank, start + lane
                    count += 1
                lane += 1
    _keep_highest(ranks, entries, count, k)


@leaf
def choose_row(row: F32, highest: I32Array, chosen: I32Array, best: F32) -> int:
    """Choose the highest of a row; return how many. See `record_choose`."""
    k = chosen.size
    entries = np.empty(max(_COLLECTED, 2 * k), np.int32)
    n_taken = min(k, row.size)
    if row.size > k and k > 0:
        _collect(row, highest, np.empty(entries.size, np.int32), entries, k)
    else:
        for entry in range(n_taken):
            entries[entry] = entry
    count = 0
    for entry in entries[:n_taken]:
        if row[entry] > -np.inf:
            chosen[count] = entry
            best[count] = row[entry]
            count += 1
    for slot in range(count, k):
        chosen[slot] = -1
    return count


@kernel("f32[2], i32[2], i64[1], i64, i32[2], i32[1], f32[2]")
def _choose(
    scores: F32,
    highest: I32Array,
    place: I64Array,
    ratio: int,
    chosen: I32Array,
    counts: I32Array,
    best: F32,
    token: int,
) -> None:
    row = scores[token, : (place[0] + token + 1) // ratio]
    counts[token] = choose_row(row, highest[token], chosen[token], best[token])


def record_choose(
    program: Program,
    scores: F32,
    highest: I32Array,
    place: I64Array,
    ratio: int,
    chosen: I32Array,
    counts: I32Array,
    best: F32,
) -> Task:
    """Record choosing the highest scores of each row; equal ones from the lowest entry up.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    scores
        float32 [n_tokens, ..]; -inf is never chosen.
    highest
        int32 [n_tokens, at least `SETS`], from `note_highest`.
    place
        int64 [1]: position of the first query when the program runs.
    ratio
        Query i chooses among the first (place + i + 1) // ratio scores of its row.
    chosen
        Written: int32 [n_tokens, index_topk], entry numbers ascending, then -1.
    counts
        Written: int32 [n_tokens], how many were chosen.
    best
        Written: float32 [n_tokens, index_topk], the scores of the chosen.
    """
    return program.add(_choose, len(chosen), scores, highest, place, ratio, chosen, counts, best)
