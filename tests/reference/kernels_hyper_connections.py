"""Hyper-connections of one token, float64: spec/forward.md sections 3 and 8."""

from typing import NamedTuple

import numpy as np

from tests.reference.forward_numerics import Floats, sigmoid


class Split(NamedTuple):
    """Weights of the copies: into a sublayer [n], out of it [n], and among themselves [n, n]."""

    pre: Floats
    post: Floats
    residual: Floats


def inverse_rms(hidden: Floats, eps: float) -> float:
    """Return 1 / sqrt(mean of squares + eps) over all copies."""
    return float(1 / np.sqrt(np.mean(hidden**2) + eps))


def split(mix: Floats, base: Floats, scale: Floats, hc_eps: float, iterations: int) -> Split:
    """Turn a token's mix [2n + n*n], already multiplied with its inverse RMS, into weights."""
    n = round((len(mix) + 1) ** 0.5) - 1
    pre = sigmoid(mix[:n] * scale[0] + base[:n]) + hc_eps
    post = 2 * sigmoid(mix[n : 2 * n] * scale[1] + base[n : 2 * n])
    logits = (mix[2 * n :] * scale[2] + base[2 * n :]).reshape(n, n)
    residual = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual = residual / residual.sum(axis=1, keepdims=True) + hc_eps
    for iteration in range(iterations):
        if iteration:
            residual = residual / (residual.sum(axis=1, keepdims=True) + hc_eps)
        residual = residual / (residual.sum(axis=0, keepdims=True) + hc_eps)
    return Split(pre, post, residual)


def gather(hidden: Floats, pre: Floats) -> Floats:
    """Return a sublayer's input: the copies [n, d] weighed and added."""
    return np.asarray(sum(pre[j] * hidden[j] for j in range(len(pre))))


def spread(hidden: Floats, update: Floats, post: Floats, residual: Floats) -> Floats:
    """Return the copies after a sublayer: the residual's first index is the old copy."""
    n = len(post)
    return np.array(
        [post[k] * update + sum(residual[j, k] * hidden[j] for j in range(n)) for k in range(n)]
    )
