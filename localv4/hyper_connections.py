"""Manifold-constrained hyper-connections: hc_mult copies of the hidden state around sublayers.

Follows forward.md sections 3 and 8.  Knows nothing of what a sublayer does.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.kernels.hyper_connections import combine, head_combine, spread
from localv4.kernels.matmul import arrange, matmul
from localv4.weights import HyperWeights

__all__ = ["around", "before_head"]

F32 = NDArray[np.float32]


def _mix(flat: F32, weights: HyperWeights) -> F32:
    """Multiply the flattened copies with fn: float32 [n_tokens, M]."""
    return matmul(arrange(flat, weights.fn.lanes, quantised=False), weights.fn, rounds=False)


def around(
    hidden: F32,
    weights: HyperWeights,
    config: ModelConfig,
    trained: bool,
    sublayer: Callable[[F32], F32],
) -> F32:
    """Apply a sublayer between the copies' combination and the spreading of its result.

    Parameters
    ----------
    hidden
        float32 [n_tokens, hc_mult, d].
    weights
        hc_attn or hc_ffn of the block.
    config, trained
        The model; whether states are rounded to BF16.
    sublayer
        Maps float32 [n_tokens, d] to the same shape; includes its norm.

    Returns
    -------
    float32 [n_tokens, hc_mult, d].
    """
    n_tokens, n, size = hidden.shape
    x = np.empty((n_tokens, size), np.float32)
    post = np.empty((n_tokens, n), np.float32)
    residual = np.empty((n_tokens, n, n), np.float32)
    flat = hidden.reshape(n_tokens, n * size)
    combine(
        hidden,
        flat,
        _mix(flat, weights),
        weights.base,
        weights.scale,
        np.float32(config.rms_norm_eps),
        np.float32(config.hc_eps),
        config.hc_sinkhorn_iters,
        trained,
        x,
        np.empty((n_tokens, n), np.float32),
        post,
        residual,
    )
    out = np.empty_like(hidden)
    spread(hidden, sublayer(x), post, residual, trained, out)
    return out


def before_head(hidden: F32, weights: HyperWeights, config: ModelConfig, trained: bool) -> F32:
    """Combine the copies into the head's input, float32 [n_tokens, d]."""
    x = np.empty((hidden.shape[0], hidden.shape[2]), np.float32)
    flat = hidden.reshape(len(hidden), -1)
    head_combine(
        hidden,
        flat,
        _mix(flat, weights),
        weights.base,
        weights.scale,
        np.float32(config.rms_norm_eps),
        np.float32(config.hc_eps),
        trained,
        x,
        np.empty(hidden.shape[:2], np.float32),
    )
    return x
