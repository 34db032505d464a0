"""Attention of one query, float64: spec/forward.md section 4, plain and in the kernel's order."""

import math

import numpy as np

from tests.reference.forward_numerics import Floats, Numerics


def attend(queries: Floats, keys: Floats, sinks: Floats, scale: float) -> Floats:
    """Attend with heads [n_heads, c] to keys [n, c], which are the values too.

    A head's sink is a logit of its softmax that carries no value.
    """
    result = np.zeros_like(queries)
    for head, query in enumerate(queries):
        scores = keys @ query * scale
        largest = scores.max()
        shares = np.exp(scores - largest)
        result[head] = shares @ keys / (shares.sum() + np.exp(sinks[head] - largest))
    return result


def attend_in_segments(
    queries: Floats, keys: Floats, sinks: Floats, scale: float, block: int, most_segments: int
) -> Floats:
    """Attend as trained: weights rounded to BF16 for the values, and the result.

    Segments have a running softmax each: one for 160 keys, but at least 4 and at most
    ``most_segments``, of as many times 32 keys as that takes.
    """
    num = Numerics("trained")
    n_segments = min(max(4, len(keys) // 160), most_segments)
    size = 32 * math.ceil(len(keys) / (32 * n_segments))
    result = np.zeros_like(queries)
    for head, query in enumerate(queries):
        top, total, weighted = -np.inf, 0.0, np.zeros(queries.shape[1])
        for first in range(0, len(keys), size):
            own_top, own_total, own_weighted = -np.inf, 0.0, np.zeros(queries.shape[1])
            for start in range(first, min(first + size, len(keys)), block):
                values = keys[start : min(start + block, first + size)]
                scores = values @ query * scale
                new_top = max(own_top, scores.max())
                shares = np.exp(scores - new_top)
                shrink = np.exp(own_top - new_top)
                own_total = own_total * shrink + shares.sum()
                own_weighted = own_weighted * shrink + num.bf(shares) @ values
                own_top = new_top
            new_top = max(top, own_top)
            keep, add = np.exp(top - new_top), np.exp(own_top - new_top)
            total = total * keep + own_total * add
            weighted = weighted * keep + own_weighted * add
            top = new_top
        result[head] = num.bf(weighted / (total + np.exp(sinks[head] - top)))
    return result
