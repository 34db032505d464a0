"""Router and experts of one layer: spec/forward.md section 7."""

import numpy as np

from tests.reference.forward_attention import Indices, Observe
from tests.reference.forward_numerics import Floats, Numerics, sigmoid
from tests.reference.forward_weights import Weights


def expert(weights: Weights, num: Numerics, prefix: str, x: Floats, share: Floats) -> Floats:
    """One expert on x [N, d] with the routing weights ``share`` [N], applied before w2."""
    limit = weights.config.swiglu_limit or np.inf
    gate = np.minimum(num.quantised(x, weights(prefix + "w1.weight")), limit)
    up = np.clip(num.quantised(x, weights(prefix + "w3.weight")), -limit, limit)
    inner = share[:, None] * (gate * sigmoid(gate) * up)
    return num.quantised(num.bf(inner), weights(prefix + "w2.weight"))


def route(weights: Weights, layer: int, x: Floats, ids: Indices) -> tuple[Indices, Floats]:
    """Experts of every token [S, k], best first (hash layers: table order), and their weights."""
    config = weights.config
    prefix = weights.block_prefix(layer) + "ffn.gate."
    logits = x @ weights(prefix + "weight").T
    affinity = np.sqrt(np.logaddexp(0, logits))
    if layer < config.num_hash_layers:
        experts = weights.hash_table(layer)[ids]
    else:
        order = np.argsort(-(affinity + weights(prefix + "bias")), axis=1, kind="stable")
        experts = order[:, : config.num_experts_per_tok]
    shares = np.take_along_axis(affinity, experts, axis=1)
    shares = shares / shares.sum(axis=1, keepdims=True) * config.routed_scaling_factor
    return experts, shares


def feed_forward(
    weights: Weights, num: Numerics, layer: int, x: Floats, ids: Indices, observe: Observe
) -> Floats:
    """The sublayer's output [S, d] for its normalised input x [S, d] and the tokens [S]."""
    experts, shares = route(weights, layer, x, ids)
    observe("router_indices", layer, 0, experts)
    observe("router_weights", layer, 0, shares)
    prefix = weights.block_prefix(layer) + "ffn."
    out = np.zeros_like(x)
    for number in np.unique(experts):
        rows, slots = np.nonzero(experts == number)
        name = f"{prefix}experts.{number}."
        out[rows] += expert(weights, num, name, x[rows], shares[rows, slots])
    out += expert(weights, num, prefix + "shared_experts.", x, np.ones(len(x)))
    return num.bf(out)
