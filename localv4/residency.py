"""Which experts are worth their memory: how often each was chosen lately.

Every choice counts half as much `HALF_LIFE` tokens later.  The scores of all experts are kept,
resident or not, so the order of eviction does not depend on the size of the cache, and a larger
one holds whatever a smaller one would: it is never worse.  Why this and not LRU:
benchmarks/README.md (policies).  Knows nothing of memory or disks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK_TOKENS_COUNTED", "HALF_LIFE", "Popularity"]

HALF_LIFE = 32.0  # tokens
CHUNK_TOKENS_COUNTED = 32
"""A longer chunk counts like so many tokens: a prompt tells what is popular, and does not make
forgotten what an answer needed."""

_MOST = 1e200  # of what a choice counts, before all scores are scaled down


class Popularity:
    """Scores of experts; a key is layer * n_experts + expert.

    Parameters
    ----------
    n_keys
        Experts of all layers.
    half_life
        Tokens after which a choice counts half.

    Attributes
    ----------
    scores
        float64 [n_keys]: comparable with each other at any moment; 0 was never chosen.
    """

    def __init__(self, n_keys: int, half_life: float = HALF_LIFE) -> None:
        self.scores: NDArray[np.float64] = np.zeros(n_keys)
        self._growth = 2.0 ** (1 / half_life)
        self._choice = 1.0  # what a choice counts now: growing it spares decaying all scores

    def begin(self, n_tokens: int) -> None:
        """Let a chunk of tokens begin."""
        self._choice *= self._growth ** min(n_tokens, CHUNK_TOKENS_COUNTED)
        if self._choice > _MOST:
            self.scores /= self._choice
            self._choice = 1.0

    def count(self, keys: Sequence[int] | NDArray[np.int64], n_tokens: int = 1) -> None:
        """Count the choices of a chunk's tokens in one layer; a key stands for each choice."""
        weight = self._choice * min(n_tokens, CHUNK_TOKENS_COUNTED) / n_tokens
        np.add.at(self.scores, keys, weight)
