"""Attention of every head over window and compressed entries, with a sink.

One shared head serves as keys and values.  Candidates are walked in blocks of 64: the
window from oldest to newest, then the compressed entries, so the blocks of a query depend
on its position alone and not on the chunk.
Follows forward.md section 4 steps 5 and 6.
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from localv4.kernels._jit import leaf, parallel
from localv4.kernels.kv_rows import decode_entry
from localv4.kernels.rounding import round_bf16
from localv4.kernels.sums import dot

__all__ = ["attend"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
_BLOCK = 64


@leaf
def _attend_block(
    query: F32,
    block: F32,
    n: int,
    scale: np.float32,
    largest: np.float32,
    weight_sum: np.float32,
    trained: bool,
    out: F32,
) -> tuple[np.float32, np.float32]:
    """Add one block of `n` candidates to a head's running softmax."""
    scores = np.empty(_BLOCK, np.float32)
    new_largest = largest
    for slot in range(n):
        scores[slot] = dot(query, block[slot]) * scale
        new_largest = max(new_largest, scores[slot])
    correction = np.float32(math.exp(largest - new_largest))
    block_sum = np.float32(0)
    for i in range(out.size):
        out[i] *= correction
    for slot in range(n):
        weight = np.float32(math.exp(scores[slot] - new_largest))
        block_sum += weight
        if trained:
            weight = round_bf16(weight)
        values = block[slot]
        for i in range(out.size):
            out[i] += weight * values[i]
    return new_largest, weight_sum * correction + block_sum


@leaf
def _load_block(
    window: F32,
    compressed: U8,
    chosen: I32,
    first: int,
    rope_dim: int,
    trained: bool,
    block: F32,
    n: int,
) -> None:
    """Copy candidates first..first+n-1: the window's, then compressed entries."""
    for i in range(n):
        entry = first + i - window.shape[0]
        if entry < 0:
            for column in range(block.shape[1]):
                block[i, column] = window[first + i, column]
        else:
            if chosen.size > 0:
                entry = np.int64(chosen[entry])
            decode_entry(compressed[entry], rope_dim, trained, block[i])


@leaf
def _attend_token(
    queries: F32,
    window: F32,
    compressed: U8,
    chosen: I32,
    n_chosen: int,
    sinks: F32,
    rope_dim: int,
    scale: np.float32,
    trained: bool,
    out: F32,
) -> None:
    """Attend with some heads of one token."""
    n_heads, head_dim = queries.shape
    block = np.empty((_BLOCK, head_dim), np.float32)
    largest = np.full(n_heads, -np.inf, np.float32)
    weight_sum = np.zeros(n_heads, np.float32)
    for head in range(n_heads):
        for i in range(head_dim):
            out[head, i] = 0
    n_candidates = window.shape[0] + n_chosen
    for first in range(0, n_candidates, _BLOCK):
        n = min(_BLOCK, n_candidates - first)
        _load_block(window, compressed, chosen, first, rope_dim, trained, block, n)
        for head in range(n_heads):
            largest[head], weight_sum[head] = _attend_block(
                queries[head],
                block,
                n,
                scale,
                largest[head],
                weight_sum[head],
                trained,
                out[head],
            )
    for head in range(n_heads):
        sink = np.float32(math.exp(sinks[head] - largest[head]))
        divisor = weight_sum[head] + sink
        for i in range(head_dim):
            value = out[head, i] / divisor
            out[head, i] = round_bf16(value) if trained else value


@parallel
def attend(
    queries: F32,
    window: F32,
    compressed: U8,
    chosen: I32,
    n_chosen: I32,
    sinks: F32,
    position: int,
    rope_dim: int,
    scale: np.float32,
    trained: bool,
    head_groups: int,
    out: F32,
) -> None:
    """Attend from each query to its window and its compressed entries.

    Parameters
    ----------
    queries
        float32 [n_tokens, n_heads, head_dim].
    window
        float32 [sliding_window - 1 + n_tokens, head_dim]: entries of the positions
        ``position - sliding_window + 1`` on; rows before position 0 are not read.
    compressed
        uint8 [n_entries, entry bytes].
    chosen
        int32 [n_tokens, n]: entry numbers for each query; with n = 0 a query takes the
        entries 0..n_chosen-1.
    n_chosen
        int32 [n_tokens]: how many entries the query takes.
    sinks
        float32 [n_heads]: a logit that takes part in the sum and has no value.
    position
        Position of the first query.
    rope_dim
        Trailing columns of an entry stored as BF16.
    scale
        Factor of the scores.
    trained
        Entries are packed; weights are rounded to BF16 for the values, the result too.
    head_groups
        Into how many units the heads of a token are split; does not change any byte.
    out
        Written: float32 [n_tokens, n_heads, head_dim].
    """
    n_tokens, n_heads = queries.shape[:2]
    n_window = window.shape[0] - n_tokens + 1
    for unit in prange(n_tokens * head_groups):
        token, group = unit // head_groups, unit % head_groups
        first = group * n_heads // head_groups
        last = (group + 1) * n_heads // head_groups
        n_recent = min(n_window, position + token + 1)
        _attend_token(
            queries[token, first:last],
            window[token + n_window - n_recent : token + n_window],
            compressed,
            chosen[token],
            n_chosen[token],
            sinks[first:last],
            rope_dim,
            scale,
            trained,
            out[token, first:last],
        )
