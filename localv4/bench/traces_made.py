"""Routing traces made by chance: uniform, or skewed as published for released models.

Popularity comes from a curve (50, 80, 95% of selections in 9, 25, 46% of experts), drifts, and
a part of the choices repeats those of the last tokens.  Hash layers choose uniformly.  Knows
nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from localv4.bench.traces import NOTHING, Trace

__all__ = ["FLASH", "PUBLISHED", "SKEWED", "UNIFORM", "Drift", "Shape", "add_predictions", "make"]

F64 = NDArray[np.float64]

PUBLISHED = ((0.50, 0.09), (0.80, 0.25), (0.95, 0.46))
"""Shares of the selections, and of the experts that get them."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model as far as a cache knows them."""

    n_layers: int = 43
    n_experts: int = 256
    n_chosen: int = 6
    n_hash_layers: int = 3
    expert_bytes: int = 13_369_344


FLASH = Shape()


@dataclass(frozen=True)
class Drift:
    """How popular experts are, and for how long.

    Attributes
    ----------
    curve
        As `PUBLISHED`; empty for all the same.
    sigma
        Of the logarithm of the factor by which popularity is changed.
    tokens
        After so many the factors are drawn anew; or, if `smooth`, have forgotten all but 1/e.
    smooth
        Factors wander and do not jump.
    repeats
        Share of choices that repeat one of the last tokens'.
    window
        How many tokens are "the last".
    """

    curve: tuple[tuple[float, float], ...] = PUBLISHED
    sigma: float = 1.4
    tokens: int = 100
    smooth: bool = False
    repeats: float = 0.1
    window: int = 4


SKEWED = Drift()
UNIFORM = Drift((), 0.0, 100, False, 0.0, 4)


def make(shape: Shape, drift: Drift, chunks: Sequence[int], seed: int = 0) -> Trace:
    """Return a trace of random choices.

    Parameters
    ----------
    shape
        The model's sizes.
    drift
        Popularity.
    chunks
        Tokens of every chunk.
    seed
        The same arguments give the same trace.
    """
    rng = np.random.default_rng(seed)
    popularity = _popularity(shape, drift, rng)
    n_tokens = sum(chunks)
    chosen = np.empty((n_tokens, shape.n_layers, shape.n_chosen), np.uint16)
    factors = drift.sigma * rng.standard_normal(popularity.shape)
    for token in range(n_tokens):
        if drift.smooth:
            kept = np.exp(-1 / drift.tokens)
            noise = rng.standard_normal(popularity.shape)
            factors = kept * factors + drift.sigma * np.sqrt(1 - kept**2) * noise
        elif token % drift.tokens == 0:
            factors = drift.sigma * rng.standard_normal(popularity.shape)
        if drift.smooth or token % drift.tokens == 0:
            weights = popularity * np.exp(factors)
            weights[: shape.n_hash_layers] = 1
        # the first to arrive of exponential times are a draw by weight without repetition
        times = rng.standard_exponential(popularity.shape) / weights
        if token and drift.repeats:
            _repeat(times, chosen[max(0, token - drift.window) : token], shape, drift, rng)
        chosen[token] = np.argpartition(times, shape.n_chosen, axis=1)[:, : shape.n_chosen]
    sizes = np.array(chunks, np.int64)
    return Trace(chosen, sizes, shape.n_experts, shape.n_hash_layers, shape.expert_bytes)


def _popularity(shape: Shape, drift: Drift, rng: np.random.Generator) -> F64:
    """Return weights [n_layers, n_experts], every layer's experts in an order of its own."""
    n = shape.n_experts
    if not drift.curve:
        return np.ones((shape.n_layers, n))
    shares = np.array([0, *(share for _, share in drift.curve), 1.0])
    selections = np.array([0, *(selected for selected, _ in drift.curve), 1.0])
    ranks = np.arange(n + 1) / n
    # on an axis of roots, so that the head is steep
    curve = np.interp(np.sqrt(ranks), np.sqrt(shares), selections)
    weights = np.sort(np.maximum(np.diff(curve), 1e-6))[::-1]
    return rng.permuted(np.tile(weights / weights.sum(), (shape.n_layers, 1)), axis=1)


def _repeat(
    times: F64, last: NDArray[np.uint16], shape: Shape, drift: Drift, rng: np.random.Generator
) -> None:
    """Let some of the last tokens' experts arrive first."""
    layers, slots = np.nonzero(rng.random((shape.n_layers, shape.n_chosen)) < drift.repeats)
    scored = layers >= shape.n_hash_layers
    layers, slots = layers[scored], slots[scored]
    tokens = rng.integers(0, len(last), layers.size)
    times[layers, last[tokens, layers, slots]] = 0


def add_predictions(trace: Trace, recalls: Sequence[float], seed: int = 0) -> Trace:
    """Return the trace with predictions that name about such shares of the experts chosen.

    As many as are chosen are named, the first one half as often again right as the mean, the
    last half as often, which is how gates do one layer ahead.  A wrong one is what some other
    token chose in that layer, so that popular ones are named more often.  Hash layers have none.
    """
    rng = np.random.default_rng(seed)
    ranks = np.linspace(1.5, 0.5, trace.chosen.shape[2])
    predicted = {}
    for recall in recalls:
        others = trace.chosen[rng.permutation(trace.n_tokens)]
        right = rng.random(trace.chosen.shape) < recall * ranks
        named = np.where(right, trace.chosen, others)
        # a wrong one that is right by chance would raise the recall
        lucky = (others[..., None] == trace.chosen[:, :, None]).any(-1)
        named[~right & lucky] = NOTHING
        named[:, : trace.n_hash_layers] = NOTHING
        predicted[f"recall {recall:.0%}"] = named
    return replace(trace, predicted=predicted)
