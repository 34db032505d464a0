"""Compressed entries by the whole-sequence formula, float64: spec/forward.md section 5."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def entries(kv: Floats, score: Floats, ape: Floats, overlap: bool) -> Floats:
    """Return one entry for every full window of tokens: [n_tokens // ratio, width].

    `kv` and `score` are the tokens' projections [n_tokens, columns], `ape` is [ratio, columns].
    With overlap an entry covers the window before it as well, by the first half of the columns.
    """
    ratio, columns = ape.shape
    width = columns // 2 if overlap else columns
    result = np.zeros((len(kv) // ratio, width))
    for entry in range(len(result)):
        values, scores = [], []
        for token in range((entry - 1) * ratio if overlap else entry * ratio, (entry + 1) * ratio):
            if token < 0:
                continue
            half = slice(width, None) if overlap and token >= entry * ratio else slice(width)
            values.append(kv[token, half])
            scores.append(score[token, half] + ape[token % ratio, half])
        shares = np.exp(scores - np.max(scores, axis=0))
        result[entry] = np.sum(shares * values, axis=0) / np.sum(shares, axis=0)
    return result
