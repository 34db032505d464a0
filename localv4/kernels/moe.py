"""The small arithmetic of the mixture of experts: gate, choice, activation.

Follows forward.md section 7.
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from localv4.kernels._jit import leaf, parallel
from localv4.kernels.rounding import round_bf16

__all__ = ["activate", "route", "score"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@leaf
def _softplus(value: np.float32) -> np.float32:
    if value > np.float32(20):
        return value
    return np.float32(math.log1p(np.float32(math.exp(value))))


@leaf
def score(logits: F32) -> None:
    """Turn gate logits [n_tokens, n_experts] into affinities sqrt(softplus), in place."""
    for token in range(logits.shape[0]):
        for expert in range(logits.shape[1]):
            logits[token, expert] = np.sqrt(_softplus(logits[token, expert]))


@leaf
def _choose(affinities: F32, bias: F32, chosen: I32) -> None:
    taken = np.zeros(affinities.size, np.bool_)
    for slot in range(chosen.size):
        best = -1
        for expert in range(affinities.size):
            if not taken[expert] and (
                best < 0 or affinities[expert] + bias[expert] > affinities[best] + bias[best]
            ):
                best = expert
        taken[best] = True
        chosen[slot] = best


@leaf
def route(
    affinities: F32, bias: F32, route_scale: np.float32, hashed: bool, chosen: I32, weights: F32
) -> None:
    """Choose experts (unless a hash table did) and weigh them.

    Parameters
    ----------
    affinities
        float32 [n_tokens, n_experts].
    bias
        float32 [n_experts], added for the choice only; not read if `hashed`.
    route_scale
        routed_scaling_factor.
    hashed
        `chosen` is given; otherwise it is written: the highest biased affinities,
        descending, equal ones from the lowest expert up.
    chosen
        int32 [n_tokens, num_experts_per_tok].
    weights
        Written: float32, the shape of chosen; they sum to route_scale.
    """
    for token in range(affinities.shape[0]):
        if not hashed:
            _choose(affinities[token], bias, chosen[token])
        weight_sum = np.float32(0)
        for expert in chosen[token]:
            weight_sum += affinities[token, expert]
        for slot in range(chosen.shape[1]):
            weight = affinities[token, chosen[token, slot]] / weight_sum
            weights[token, slot] = weight * route_scale


@leaf
def _activate_token(
    gate: F32, up: F32, weight: np.float32, limit: np.float32, trained: bool, out: F32
) -> None:
    for i in range(gate.size):
        g, u = gate[i], up[i]
        if limit > 0:
            g = min(g, limit)
            u = min(max(u, -limit), limit)
        silu = g / (np.float32(1) + np.float32(math.exp(-g)))
        value = weight * np.float32(silu * u)
        out[i] = round_bf16(value) if trained else value


@parallel
def activate(gate: F32, up: F32, weights: F32, limit: np.float32, trained: bool, out: F32) -> None:
    """SwiGLU with clamps, times the routing weight: out = weight * silu(gate) * up.

    Parameters
    ----------
    gate, up
        float32 [n_tokens, moe_intermediate_size].
    weights
        float32 [n_tokens].
    limit
        swiglu_limit: gate is bounded above, up on both sides; 0 switches it off.
    trained
        Round the result to BF16.
    out
        Written: float32, the shape of gate; may be gate itself.
    """
    for token in prange(gate.shape[0]):
        _activate_token(gate[token], up[token], weights[token], limit, trained, out[token])
