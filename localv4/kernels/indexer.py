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


@parallel
def hadamard_fp4(x: F32, trained: bool) -> None:
    """Transform rows [n, power of two] in place (Sylvester order), then simulate FP4."""
    n_rows, size = x.shape
    factor = np.float32(np.float64(size) ** -0.5)
    for i in prange(n_rows):
        row = x[i]
        half = 1
        while half < size:
            for start in range(0, size, 2 * half):
                for j in range(start, start + half):
                    low, high = row[j], row[j + half]
                    row[j] = low + high
                    row[j + half] = low - high
            half *= 2
        for j in range(size):
            value = row[j] * factor
            row[j] = round_bf16(value) if trained else value
        if trained:
            for first in range(0, size, KEY_BLOCK):
                block = row[first : first + KEY_BLOCK]
                scale = fp4_block(block)
                for j in range(KEY_BLOCK):
                    block[j] *= scale


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
        if product > 0:
            weighted = product * weights[head]
            score += round_bf16(weighted) if trained else weighted
    return round_bf16(score) if trained else score


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
        token = unit // units
        first = unit % units * _ENTRIES
        visible = (position + token + 1) // ratio
        key = np.empty(queries.shape[2], np.float32)
        for entry in range(first, min(first + _ENTRIES, n_entries)):
            if entry < visible:
                decode_key(keys[entry], trained, key)
                scores[token, entry] = _score(queries[token], weights[token], key, trained)
            else:
                scores[token, entry] = -np.inf


@parallel
def choose(scores: F32, chosen: I32) -> None:
    """Choose the highest scores of each row; equal ones from the lowest entry up.

    Parameters
    ----------
    scores
        float32 [n_tokens, n_entries]; -inf is never chosen.
    chosen
        Written: int32 [n_tokens, index_topk], entry numbers ascending, then -1.
    """
    n_tokens, n_entries = scores.shape
    limit = chosen.shape[1]
    for token in prange(n_tokens):
        row = scores[token]
        threshold = np.float32(-np.inf)
        room = 0  # how many entries at the threshold are taken
        if n_entries > limit:
            threshold = np.partition(row, n_entries - limit)[n_entries - limit]
            room = limit
            for entry in range(n_entries):
                if row[entry] > threshold:
                    room -= 1
        count = 0
        for entry in range(n_entries):
            take = row[entry] > threshold
            if not take and room > 0 and row[entry] == threshold and threshold > -np.inf:
                take = True
                room -= 1
            if take:
                chosen[token, count] = entry
                count += 1
        for slot in range(count, limit):
            chosen[token, slot] = -1
