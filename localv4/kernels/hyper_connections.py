"""The small arithmetic of manifold-constrained hyper-connections (mHC) around a sublayer.

The one matrix product (`mix`) is done before, by matmul.  Follows forward.md sections 3
and 8; all float32, BF16 only for the states that leave.
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from localv4.kernels._jit import leaf, parallel
from localv4.kernels.rounding import round_bf16
from localv4.kernels.sums import dot

__all__ = ["combine", "head_combine", "spread"]

F32 = NDArray[np.float32]


@leaf
def _sigmoid(value: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) + np.float32(math.exp(-value)))


@leaf
def _sinkhorn(matrix: F32, eps: np.float32, iterations: int) -> None:
    """Make a positive matrix nearly doubly stochastic, in place: softmax, then normalise."""
    n = matrix.shape[0]
    for j in range(n):
        largest = matrix[j, 0]
        for k in range(1, n):
            largest = max(largest, matrix[j, k])
        row_sum = np.float32(0)
        for k in range(n):
            matrix[j, k] = np.float32(math.exp(matrix[j, k] - largest))
            row_sum += matrix[j, k]
        for k in range(n):
            matrix[j, k] = matrix[j, k] / row_sum + eps
    for iteration in range(iterations):
        if iteration > 0:
            for j in range(n):
                row_sum = np.float32(0)
                for k in range(n):
                    row_sum += matrix[j, k]
                for k in range(n):
                    matrix[j, k] /= row_sum + eps
        for k in range(n):
            column_sum = np.float32(0)
            for j in range(n):
                column_sum += matrix[j, k]
            for j in range(n):
                matrix[j, k] /= column_sum + eps


@leaf
def _weighted_copies(hidden: F32, weights: F32, trained: bool, out: F32) -> None:
    """Sum the copies with weights: out = sum_j weights[j] * hidden[j]."""
    for i in range(out.size):
        value = np.float32(0)
        for j in range(weights.size):
            value += weights[j] * hidden[j, i]
        out[i] = round_bf16(value) if trained else value


@leaf
def _inverse_rms(row: F32, eps: np.float32) -> np.float32:
    mean = dot(row, row) / np.float32(row.size)
    return np.float32(np.float32(1) / np.sqrt(np.float32(mean + eps)))


@leaf
def _head_weights(
    mix: F32, factor: np.float32, base: F32, scale: F32, hc_eps: np.float32, pre: F32
) -> None:
    for j in range(pre.size):
        pre[j] = _sigmoid(mix[j] * factor * scale[0] + base[j]) + hc_eps


@leaf
def _spread_weights(
    mix: F32, factor: np.float32, base: F32, scale: F32, post: F32, residual: F32
) -> None:
    n = post.size
    for j in range(n):
        value = mix[n + j] * factor * scale[1] + base[n + j]
        post[j] = np.float32(2) * _sigmoid(value)
        for k in range(n):
            i = 2 * n + j * n + k
            residual[j, k] = mix[i] * factor * scale[2] + base[i]


@parallel
def combine(
    hidden: F32,
    flat: F32,
    mix: F32,
    base: F32,
    scale: F32,
    eps: np.float32,
    hc_eps: np.float32,
    iterations: int,
    trained: bool,
    x: F32,
    pre: F32,
    post: F32,
    residual: F32,
) -> None:
    """Weigh the copies of the hidden state into a sublayer's input.

    Parameters
    ----------
    hidden
        float32 [n_tokens, hc_mult, hidden_size].
    flat
        The same memory as [n_tokens, hc_mult * hidden_size].
    mix
        float32 [n_tokens, (2 + hc_mult) * hc_mult]: hidden, flattened, times hc_fn.
    base, scale
        float32 [(2 + hc_mult) * hc_mult] and [3].
    eps, hc_eps, iterations
        rms_norm_eps, hc_eps, hc_sinkhorn_iters.
    trained
        Round x to BF16.
    x
        Written: float32 [n_tokens, hidden_size].
    pre, post, residual
        Written: float32 [n_tokens, hc_mult] twice and [n_tokens, hc_mult, hc_mult]; the last
        two are for `spread`.
    """
    for token in prange(hidden.shape[0]):
        factor = _inverse_rms(flat[token], eps)
        _head_weights(mix[token], factor, base, scale, hc_eps, pre[token])
        _spread_weights(mix[token], factor, base, scale, post[token], residual[token])
        _sinkhorn(residual[token], hc_eps, iterations)
        _weighted_copies(hidden[token], pre[token], trained, x[token])


@leaf
def _spread_token(
    hidden: F32, update: F32, post: F32, residual: F32, trained: bool, out: F32
) -> None:
    n, size = hidden.shape
    for k in range(n):
        for i in range(size):
            value = np.float32(0)
            for j in range(n):
                value += residual[j, k] * hidden[j, i]
            value = post[k] * update[i] + value
            out[k, i] = round_bf16(value) if trained else value


@parallel
def spread(hidden: F32, update: F32, post: F32, residual: F32, trained: bool, out: F32) -> None:
    """Spread a sublayer's output over the copies: out_k = post_k u + sum_j residual_jk h_j.

    Parameters
    ----------
    hidden
        float32 [n_tokens, hc_mult, hidden_size], as it entered `combine`.
    update
        float32 [n_tokens, hidden_size].
    post, residual
        As written by `combine`.
    trained
        Round the result to BF16.
    out
        Written: float32, the shape of hidden.
    """
    for token in prange(hidden.shape[0]):
        _spread_token(
            hidden[token], update[token], post[token], residual[token], trained, out[token]
        )


@leaf
def head_combine(
    hidden: F32,
    flat: F32,
    mix: F32,
    base: F32,
    scale: F32,
    eps: np.float32,
    hc_eps: np.float32,
    trained: bool,
    x: F32,
    pre: F32,
) -> None:
    """Weigh the copies into the head's input, float32 [n_tokens, hidden_size] (section 8).

    Parameters are those of `combine`, with mix [n_tokens, hc_mult] and scale [1].
    """
    for token in range(hidden.shape[0]):
        factor = _inverse_rms(flat[token], eps)
        _head_weights(mix[token], factor, base, scale, hc_eps, pre[token])
        _weighted_copies(hidden[token], pre[token], trained, x[token])
