"""Index scores and the choice of entries, one query and one entry at a time: section 6."""

import numpy as np
from numpy.typing import NDArray

from localv4.quant import bf16
from tests.reference.forward_numerics import Floats, Numerics


def score(num: Numerics, query: Floats, head_weights: Floats, key: Floats) -> float:
    """Score a key [width] for a query [heads, width]: sum over heads of relu(q . k) * weight."""
    products = np.maximum(num.bf(query @ key), 0)
    return float(num.bf(np.sum(num.bf(products * head_weights), keepdims=True))[0])


def scores_in_blocks(
    queries: NDArray[np.float32], weights: NDArray[np.float32], keys: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Score keys [n, width] for queries [heads, width] in the kernels' order, in every bit.

    Sums of 32 columns are exact, the sums of blocks are added in order, and so are heads.
    """
    result = np.zeros(len(keys), np.float32)
    for head, weight in enumerate(weights):
        product = np.zeros(len(keys), np.float32)
        for first in range(0, keys.shape[1], 32):
            block = slice(first, first + 32)
            exact = np.sum(keys[:, block].astype(np.float64) * queries[head, block], axis=1)
            product += exact.astype(np.float32)
        product = bf16.round(np.where(product <= 0, np.float32(0), product))
        result += bf16.round(product * weight)
    return bf16.round(result)


def choose(scores: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Return the `count` highest of a row of scores, ascending by entry; -1 where there is none.

    Equal scores are taken from the lowest entry up; -inf is never taken.
    """
    best = np.argsort(-scores, kind="stable")[:count]
    taken = np.sort(best[scores[best] > -np.inf])
    return np.pad(taken, (0, count - len(taken)), constant_values=-1).astype(np.int32)
