"""The compressor's state machine: tokens in, one entry out for every window of `ratio`.

One code path for prefill and decode: a chunk is fed token by token into the decode state,
columns in parallel.  Follows forward.md section 5 (decode state).
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from localv4.kernels._jit import leaf, parallel

__all__ = ["compress"]

F32 = NDArray[np.float32]
_COLUMNS = 64


@leaf
def _emit(kv: F32, score: F32, a_column: int, b_column: int, ratio: int) -> np.float32:
    """Softmax over the slots of one column, weighted sum; a-columns for the first `ratio`."""
    n_slots = kv.shape[0]
    largest = np.float32(-np.inf)
    for slot in range(n_slots):
        column = a_column if slot < ratio else b_column
        largest = max(largest, score[slot, column])
    weight_sum = np.float32(0)
    value = np.float32(0)
    for slot in range(n_slots):
        column = a_column if slot < ratio else b_column
        weight = np.float32(math.exp(score[slot, column] - largest))
        weight_sum += weight
        value += weight * kv[slot, column]
    return value / weight_sum


@leaf
def _compress_columns(
    kv: F32,
    score: F32,
    ape: F32,
    position: int,
    overlap: bool,
    kv_state: F32,
    score_state: F32,
    entries: F32,
    first: int,
    last: int,
) -> None:
    """Feed all tokens to the columns first..last-1 (and, with overlap, their upper halves)."""
    ratio, width = ape.shape[0], entries.shape[1]
    entry = 0
    for token in range(kv.shape[0]):
        phase = (position + token) % ratio
        slot = phase + ratio if overlap else phase
        for column in range(first, last):
            kv_state[slot, column] = kv[token, column]
            score_state[slot, column] = score[token, column] + ape[phase, column]
            if overlap:
                upper = column + width
                kv_state[slot, upper] = kv[token, upper]
                score_state[slot, upper] = score[token, upper] + ape[phase, upper]
        if phase == ratio - 1:
            for column in range(first, last):
                upper = column + width if overlap else column
                entries[entry, column] = _emit(kv_state, score_state, column, upper, ratio)
                if overlap:
                    for row in range(ratio):
                        kv_state[row, column] = kv_state[row + ratio, column]
                        kv_state[row, upper] = kv_state[row + ratio, upper]
                        score_state[row, column] = score_state[row + ratio, column]
                        score_state[row, upper] = score_state[row + ratio, upper]
            entry += 1


@parallel
def compress(
    kv: F32,
    score: F32,
    ape: F32,
    position: int,
    overlap: bool,
    kv_state: F32,
    score_state: F32,
    entries: F32,
) -> None:
    """Feed tokens to the compressor and write the entries that they complete.

    Parameters
    ----------
    kv, score
        float32 [n_tokens, coff * width]: projections of the tokens; coff is 2 with overlap.
    ape
        float32 [ratio, coff * width], added to the scores by position inside the window.
    position
        Position of the first token.
    overlap
        An entry covers the window before as well (ratio 4): its a-columns come first.
    kv_state, score_state
        float32 [coff * ratio, coff * width], updated in place.
    entries
        Written: float32 [n_entries, width], not yet normalised.
    """
    width = entries.shape[1]
    for unit in prange((width + _COLUMNS - 1) // _COLUMNS):
        first, last = unit * _COLUMNS, min(width, (unit + 1) * _COLUMNS)
        _compress_columns(
            kv, score, ape, position, overlap, kv_state, score_state, entries, first, last
        )
