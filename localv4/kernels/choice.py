"""The choice of the highest scores, without sorting.

Follows forward.md section 6 step 5.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.launch import Program, Task, kernel

__all__ = ["SCORES", "choose_row", "record_choose"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

SCORES = 0  # the argument that is put anew when the room for scores grows
_SIGN = np.uint32(0x80000000)


@leaf
def _rank(value: np.float32) -> np.uint32:
    """Map floats to integers of the same order; the two zeros are one."""
    bits = np.float32(value).view(np.uint32)
    flipped = np.uint32(~bits) if bits & _SIGN else np.uint32(bits | _SIGN)
    return _SIGN if value == np.float32(0) else flipped


@leaf
def _threshold(row: F32, count: int) -> tuple[np.uint32, int]:
    """Find the rank of the count-th highest value, and how many of that rank belong to it.

    Counts values byte by byte of their rank, highest byte first: four passes, no sorting.
    """
    prefix = np.uint32(0)
    room = count
    counts = np.empty(256, np.int64)
    for step in range(4):
        shift = np.uint32(24 - 8 * step)
        counts[:] = 0
        for value in row:
            rank = _rank(value)
            if step == 0 or (rank >> (shift + np.uint32(8))) == prefix:
                counts[np.int64((rank >> shift) & np.uint32(255))] += 1
        byte = 255
        while counts[byte] < room:
            room -= counts[byte]
            byte -= 1
        prefix = np.uint32((prefix << np.uint32(8)) | np.uint32(byte))
    return prefix, room


@leaf
def choose_row(row: F32, chosen: I32, best: F32) -> int:
    """Choose the highest of a row; return how many. See `record_choose`."""
    threshold, room = np.uint32(0), 0
    if row.size > chosen.size:
        threshold, room = _threshold(row, chosen.size)
    count = 0
    for entry in range(row.size):
        rank = _rank(row[entry])
        if rank > threshold or (rank == threshold and room > 0):
            if rank == threshold:
                room -= 1
            if row[entry] > -np.inf:
                chosen[count] = entry
                best[count] = row[entry]
                count += 1
    for slot in range(count, chosen.size):
        chosen[slot] = -1
    return count


@kernel("f32[2], i64[1], i64, i32[2], i32[1], f32[2]")
def _choose(
    scores: F32, place: I64, ratio: int, chosen: I32, counts: I32, best: F32, token: int
) -> None:
    row = scores[token, : (place[0] + token + 1) // ratio]
    counts[token] = choose_row(row, chosen[token], best[token])


def record_choose(
    program: Program, scores: F32, place: I64, ratio: int, chosen: I32, counts: I32, best: F32
) -> Task:
    """Record choosing the highest scores of each row; equal ones from the lowest entry up.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    scores
        float32 [n_tokens, ..]; -inf is never chosen.
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
    return program.add(_choose, len(chosen), scores, place, ratio, chosen, counts, best)
