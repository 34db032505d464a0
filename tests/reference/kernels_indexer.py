"""Index scores and the choice of entries, one query and one entry at a time: section 6."""

import numpy as np
from numpy.typing import NDArray

from tests.reference.forward_numerics import Floats, Numerics


def score(num: Numerics, query: Floats, head_weights: Floats, key: Floats) -> float:
    """Score a key [width] for a query [heads, width]: sum over heads of relu(q . k) * weight."""
    products = np.maximum(num.bf(query @ key), 0)
    return float(num.bf(np.sum(num.bf(products * head_weights), keepdims=True))[0])


def choose(scores: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Return the `count` highest of a row of scores, ascending by entry; -1 where there is none.

    Equal scores are taken from the lowest entry up; -inf is never taken.
    """
    best = np.argsort(-scores, kind="stable")[:count]
    taken = np.sort(best[scores[best] > -np.inf])
    return np.pad(taken, (0, count - len(taken)), constant_values=-1).astype(np.int32)
