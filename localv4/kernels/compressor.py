"""The compressor's state machine: tokens in, one entry out for every window of `ratio`.

One code path for prefill and decode: a chunk is fed token by token into the decode state; a
unit is a run of columns.  Follows forward.md section 5 (decode state).
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.elementwise import exp_f32
from localv4.kernels.launch import Program, Task, kernel

__all__ = ["KV_STATE", "SCORE_STATE", "record_compress"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

KV_STATE, SCORE_STATE = 5, 6  # arguments that are put anew when the cache changes
_COLUMNS = 64
_MINUS_INFINITY = np.float32(-np.inf)


@leaf
def _emit(kv: F32, score: F32, first: int, upper: int, ratio: int, out: F32) -> None:
    """Softmax over the slots of each column, weighted sum: a-columns for the first `ratio`.

    The columns are out.size from `first` on, from `upper` on for the slots after `ratio`.
    """
    n_slots = kv.shape[0]
    largest = np.full(out.size, _MINUS_INFINITY, np.float32)
    weight_sum = np.zeros(out.size, np.float32)
    for slot in range(n_slots):
        start = first if slot < ratio else upper
        scores = score[slot, start : start + out.size]
        for i in range(out.size):
            largest[i] = max(largest[i], scores[i])
    for i in range(out.size):
        out[i] = 0
    for slot in range(n_slots):
        start = first if slot < ratio else upper
        scores, values = score[slot, start : start + out.size], kv[slot, start : start + out.size]
        for i in range(out.size):
            weight = exp_f32(scores[i] - largest[i])
            weight_sum[i] += weight
            out[i] += weight * values[i]
    for i in range(out.size):
        out[i] = out[i] / weight_sum[i]


@leaf
def _feed(kv: F32, score: F32, ape: F32, kv_slot: F32, score_slot: F32) -> None:
    for i in range(kv.size):
        kv_slot[i] = kv[i]
        score_slot[i] = score[i] + ape[i]


@kernel("f32[2], f32[2], f32[2], i64[1], i64, f32[2], f32[2], f32[2]")
def _compress(
    kv: F32,
    score: F32,
    ape: F32,
    place: I64,
    overlap: int,
    kv_state: F32,
    score_state: F32,
    entries: F32,
    unit: int,
) -> None:
    ratio, width = ape.shape[0], entries.shape[1]
    first, last = unit * _COLUMNS, min(width, (unit + 1) * _COLUMNS)
    entry = 0
    for token in range(kv.shape[0]):
        phase = (place[0] + token) % ratio
        slot = phase + ratio if overlap else phase
        # with overlap the upper half of the columns goes the same way
        for start in range(first, kv.shape[1], width):
            stop = start + last - first
            _feed(
                kv[token, start:stop],
                score[token, start:stop],
                ape[phase, start:stop],
                kv_state[slot, start:stop],
                score_state[slot, start:stop],
            )
        if phase == ratio - 1:
            upper = first + width if overlap else first
            _emit(kv_state, score_state, first, upper, ratio, entries[entry, first:last])
            entry += 1
            if overlap:
                for row in range(ratio):
                    for start in range(first, kv.shape[1], width):
                        for column in range(start, start + last - first):
                            kv_state[row, column] = kv_state[row + ratio, column]
                            score_state[row, column] = score_state[row + ratio, column]


def record_compress(
    program: Program,
    kv: F32,
    score: F32,
    ape: F32,
    place: I64,
    overlap: bool,
    kv_state: F32,
    score_state: F32,
    entries: F32,
) -> Task:
    """Record feeding tokens to the compressor and writing the entries that they complete.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    kv, score
        float32 [n_tokens, coff * width]: projections of the tokens; coff is 2 with overlap.
    ape
        float32 [ratio, coff * width], added to the scores by position inside the window.
    place
        int64 [1]: position of the chunk's first token when the program runs.
    overlap
        An entry covers the window before as well (ratio 4): its a-columns come first.
    kv_state, score_state
        float32 [coff * ratio, coff * width], updated in place.
    entries
        Written: float32 [at least n_entries, width], not yet normalised.
    """
    units = -(-entries.shape[1] // _COLUMNS)
    return program.add(
        _compress, units, kv, score, ape, place, int(overlap), kv_state, score_state, entries
    )
