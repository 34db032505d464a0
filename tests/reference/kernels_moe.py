"""Gate, choice and activation of the mixture of experts, float64: spec/forward.md section 7."""

import math

import numpy as np
from numpy.typing import NDArray

from tests.reference.forward_numerics import Floats


def affinity(logit: float) -> float:
    """Return sqrt(softplus(logit)), softplus being its argument above 20."""
    return math.sqrt(logit if logit > 20 else math.log1p(math.exp(logit)))


def choose(affinities: NDArray[np.float32], bias: NDArray[np.float32], count: int) -> list[int]:
    """Return the experts of the highest biased affinities, equal ones from the lowest up."""
    biased = affinities + bias
    return sorted(range(len(biased)), key=lambda expert: (-biased[expert], expert))[:count]


def weigh(affinities: Floats, chosen: list[int], route_scale: float) -> Floats:
    """Return the chosen experts' weights, which sum to `route_scale`."""
    return affinities[chosen] / sum(affinities[chosen]) * route_scale


def activate(gate: float, up: float, weight: float, limit: float) -> float:
    """Return weight * silu(gate) * up, gate clamped above and up on both sides."""
    if limit > 0:
        gate, up = min(gate, limit), min(max(up, -limit), limit)
    return weight * gate / (1 + math.exp(-gate)) * up
