"""Attention of one query by the plain softmax formula, float64: spec/forward.md section 4."""

import numpy as np

from tests.reference.forward_numerics import Floats


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
