"""Index scores over compressed keys, and the choice of the highest.

Follows forward.md section 6.  With trained numerics the products of a block of 32 columns
are sums of small multiples of a power of two, exact in float32 in any order.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from localv4.kernels._jit import leaf, parallel
from localv4.kernels.kv_rows import KEY_BLOCK, decode_key
from localv4.kernels.rounding import fp4_block, round_bf16
from localv4.kernels.sums import dot

__all__ = ["choose", "hadamard_fp4", "score_entries"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
_ENTRIES = 256


@leaf
def _hadamard_row(row: F32, trained: bool) -> None:
    half = 1
    while half < row.size:
        for start in range(0, row.size, 2 * half):
            for i in range(start, start + half):
                low, high = row[i], row[i + half]
                row[i] = low + high
                row[i + half] = low - high
        half *= 2
    factor = np.float32(np.float64(row.size) ** -0.5)
    for i in range(row.size):
        value = row[i] * factor
        row[i] = round_bf16(value) if trained else value


@leaf
def _simulate_fp4(block: F32) -> None:
    scale = fp4_block(block)
    for i in range(block.size):
        block[i] *= scale


@leaf
def hadamard_fp4(x: F32, trained: bool) -> None:
    """Transform rows [n, power of two] in place (Sylvester order), then simulate FP4."""
    for row in range(x.shape[0]):
        _hadamard_row(x[row], trained)
        if trained:
            for first in range(0, x.shape[1], KEY_BLOCK):
                _simulate_fp4(x[row, first : first + KEY_BLOCK])


@leaf
def _score(queries: F32, weights: F32, key: F32, trained: bool) -> np.float32:
    """Score one key: sum over heads of relu(q . k) * weight."""
    score = np.float32(0)
    for head in range(queries.shape[0]):
        query = queries[head]
        product = np.float32(0)
        for first in range(0, key.size, KEY_BLOCK):
            product += dot(query[first : first + KEY_BLOCK], key[first : first + KEY_BLOCK])
        if trained:
            product = round_bf16(product)
        if not product <= np.float32(0):  # a NaN passes
            weighted = product * weights[head]
            score += round_bf16(weighted) if trained else weighted
    return round_bf16(score) if trained else score


@leaf
def _score_run(
    queries: F32, weights: F32, keys: U8, n_visible: int, trained: bool, scores: F32
) -> None:
    key = np.empty(queries.shape[1], np.float32)
    for entry in range(scores.size):
        if entry < n_visible:
            decode_key(keys[entry], trained, key)
            scores[entry] = _score(queries, weights, key, trained)
        else:
            scores[entry] = -np.inf


@parallel
def score_entries(
    queries: F32, weights: F32, keys: U8, position: int, ratio: int, trained: bool, scores: F32
) -> None:
    """Score the compressed entries that each query may see; the others get -inf.

    Parameters
    ----------
    queries
        float32 [n_tokens, index_n_heads, index_head_dim].
    weights
        float32 [n_tokens, index_n_heads].
    keys
        uint8 [n_entries, key bytes].
    position
        Position of the first query; query i sees entries below (position + i + 1) // ratio.
    trained
        BF16 rounding of products and sums; keys are packed FP4.
    scores
        Written: float32 [n_tokens, n_entries].
    """
    n_tokens, n_entries = scores.shape
    units = (n_entries + _ENTRIES - 1) // _ENTRIES
    for unit in prange(n_tokens * units):
        token, first = unit // units, unit % units * _ENTRIES
        last = min(first + _ENTRIES, n_entries)
        visible = (position + token + 1) // ratio
        _score_run(
            queries[token],
            weights[token],
            keys[first:last],
            visible - first,
            trained,
            scores[token, first:last],
        )


@leaf
def _rank(value: np.float32) -> np.uint32:
    """Map floats to integers of the same order; the two zeros are one."""
    bits = np.float32(value).view(np.uint32)
    if value == np.float32(0):
        return np.uint32(0x80000000)
    if bits & np.uint32(0x80000000):
        return np.uint32(~bits)
    return np.uint32(bits | np.uint32(0x80000000))


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
def _choose_row(row: F32, chosen: I32) -> None:
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
                count += 1
    for slot in range(count, chosen.size):
        chosen[slot] = -1


@leaf
def choose(scores: F32, chosen: I32) -> None:
    """Choose the highest scores of each row; equal ones from the lowest entry up.

    Parameters
    ----------
    scores
        float32 [n_tokens, n_entries]; -inf is never chosen.
    chosen
        Written: int32 [n_tokens, index_topk], entry numbers ascending, then -1.
    """
    for token in range(scores.shape[0]):
        _choose_row(scores[token], chosen[token])
