"""How a synthetic checkpoint with skewed routing prefers some experts, and some for a while.

Popularity is in the gates' biases: each expert has the bias with which its affinity is among the
highest as often as its rank by the published share curve asks for. Locality is in the vocabulary:
the words that the head favours belong to topics, words of a topic have part of their embedding in
common, and the head likes to stay with a topic. Embeddings are large beside what the layers add to
them, for otherwise what all tokens have in common there would prefer experts too, and nobody knows
which. Follows the spec's forward pass, section 7; knows nothing of tensors.
"""

import math
from bisect import bisect_left
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from localv4.synthetic_draws import generator, uint16

__all__ = ["COMMON", "OWN", "PREFERENCE_FACTOR", "Topics", "gate_bias"]

F32 = NDArray[np.float32]

OWN = 16.0
"""Deviation of an embedding's own part; layers add a few tenths each."""

COMMON = 3.0
"""Length, by element, of the direction that all embeddings share."""

PREFERENCE_FACTOR = 3.5
"""What the head's preference along that direction grows by, as the direction's share is smaller."""

# The part that a topic's words have in common. A third of the variance: with less a cache would
# hit too seldom, with more too often.
_TOPIC = 12.0
_RMS = math.sqrt(OWN**2 + COMMON**2 + _TOPIC**2)
_WORDS_A_TOPIC = 32
_WORDS_ON_A_TOPIC = 14  # roughly, before another one

# Fraction of the experts, most popular first, and their share of all selections. 9, 25 and 46 % are
# published for the trained model; the others make the curve smooth.
_SHARES = (
    (0.0, 0.0),
    (0.01, 0.085),
    (0.04, 0.28),
    (0.09, 0.5),
    (0.16, 0.665),
    (0.25, 0.8),
    (0.35, 0.89),
    (0.46, 0.95),
    (0.7, 0.988),
    (1.0, 1.0),
)

# The affinity that a fraction of all tokens exceeds, 1, 1/2, 1/4 and so on: the square root of
# softplus(2.04 z) for a normal z, as gates have a gain of 2.0 and norm weights one of 1.02.
_AFFINITIES = (
    *(0.0, 0.833, 1.265, 1.561, 1.781, 1.955, 2.099, 2.222),
    *(2.33, 2.427, 2.514, 2.594, 2.667, 2.736, 2.8, 2.86, 2.917),
)
_EXCEEDED = tuple((0.5**n, affinity) for n, affinity in enumerate(_AFFINITIES))[::-1]
_MIDDLE = 2.0  # keeps the biases around 0; only their differences matter


def gate_bias(name: str, n_experts: int, n_chosen: int, seed: int) -> F32:
    """Return the bias of every expert of one gate.

    Parameters
    ----------
    name
        Of the tensor; each has its own order of popularity.
    n_experts, n_chosen
        Routed experts, and how many a token has. Where `n_chosen` is more than about a tenth of
        `n_experts` popularity is flatter than published, as an expert is chosen once a token.
    seed
        Not negative.

    Returns
    -------
    float32 (n_experts,)
        The same on every machine.
    """
    order = np.argsort(uint16(generator(name, seed), n_experts), kind="stable")
    shares = [_interpolate(_SHARES, rank / n_experts) for rank in range(n_experts + 1)]
    biases = np.empty(n_experts, dtype=np.float32)
    for expert, (low, high) in zip(order, pairwise(shares), strict=True):
        biases[expert] = _MIDDLE - _interpolate(_EXCEEDED, n_chosen * (high - low))
    return biases


def _interpolate(curve: tuple[tuple[float, float], ...], x: float) -> float:
    """Return y at x, or at the end that is nearer."""
    # Not np.interp: a compiler may fuse its products and sums, and round otherwise.
    x = min(max(x, curve[0][0]), curve[-1][0])
    right = bisect_left(curve, (x,), lo=1)
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


class Topics:
    """What embedding and head of the words of each topic have in common.

    Parameters
    ----------
    n_words
        Words that the head favours. A topic is 32 that follow each other.
    width
        Of an embedding.
    seed
        Not negative.
    """

    def __init__(self, n_words: int, width: int, seed: int) -> None:
        n_topics = math.ceil(n_words / _WORDS_A_TOPIC)
        signs = uint16(generator("topics", seed), n_topics * width) % 2
        self._directions = signs.reshape(n_topics, width).astype(np.float32) * 2 - np.float32(1)
        # The logarithm of how much more likely its topic makes a word: there are n_topics times as
        # many others. From a number of bits, as logarithms differ between machines.
        nats = 0.35 * ((n_topics * _WORDS_ON_A_TOPIC) ** 2).bit_length()
        self._attraction = np.float32(nats * _RMS / _TOPIC / width)

    def embeddings(self, words: NDArray[np.int64]) -> F32:
        """Return what to add to the embeddings of words, given by their places among all words."""
        return np.float32(_TOPIC) * self._directions[words // _WORDS_A_TOPIC]

    def head_rows(self, words: NDArray[np.int64]) -> F32:
        """Return what to add to the head's rows for words."""
        return self._attraction * self._directions[words // _WORDS_A_TOPIC]
