"""The small arithmetic of manifold-constrained hyper-connections (mHC) around a sublayer.

The one matrix product (`mix`) is done beside `inverse_rms`, by matmul.  Follows forward.md
sections 3 and 8; all float32, BF16 only for the states that leave.
"""

import math

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.launch import Program, kernel
from localv4.kernels.rounding import round_bf16
from localv4.kernels.slices import Slices, slice_of
from localv4.kernels.sums import dot

__all__ = ["add_to_copies", "inverse_rms", "record_combination", "record_spreading"]

F32 = NDArray[np.float32]


@leaf
def _sigmoid(value: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) + np.float32(math.exp(-value)))


@leaf
def _normalise(matrix: F32, n: int, across: int, eps: np.float32) -> None:
    """Divide every row (across = n) or column (1) of a flat n x n matrix by its sum plus eps."""
    along = n + 1 - across
    for line in range(n):
        line_sum = np.float32(0)
        for i in range(n):
            line_sum += matrix[line * across + i * along]
        divisor = line_sum + eps
        for i in range(n):
            matrix[line * across + i * along] /= divisor


@leaf
def _sinkhorn(matrix: F32, n: int, eps: np.float32, iterations: int) -> None:
    """Make a flat n x n matrix nearly doubly stochastic, in place.

    A softmax over columns, then normalisations of rows and columns in turn, where the old
    copies are columns and the new ones rows.
    """
    for j in range(n):
        largest = matrix[j]
        for k in range(1, n):
            largest = max(largest, matrix[k * n + j])
        for k in range(n):
            matrix[k * n + j] = np.float32(math.exp(matrix[k * n + j] - largest))
    for step in range(2 * iterations):
        _normalise(matrix, n, 1 if step % 2 == 0 else n, np.float32(0) if step == 0 else eps)
        if step == 0:
            for i in range(n * n):
                matrix[i] += eps


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
            residual[k * n + j] = mix[i] * factor * scale[2] + base[i]


@leaf
def _sum_copies(copies: F32, size: int, weights: F32, out: F32) -> None:
    """Weigh and add columns that lie `size` apart: out = sum_j weights[j] * copies[j * size:]."""
    factor, row = weights[0], copies[: out.size]
    for i in range(out.size):
        out[i] = factor * row[i]
    for j in range(1, weights.size):
        factor, row = weights[j], copies[j * size : j * size + out.size]
        for i in range(out.size):
            out[i] += factor * row[i]


@leaf
def _round(row: F32) -> None:
    for i in range(row.size):
        row[i] = round_bf16(row[i])


@kernel("f32[2], f32, f32[1]")
def inverse_rms(hidden: F32, eps: np.float32, factors: F32, token: int) -> None:
    """Write the inverse root mean square of a token's copies; a unit is a token.

    Parameters
    ----------
    hidden
        float32 [n_tokens, hc_mult * hidden_size].
    eps
        rms_norm_eps.
    factors
        Written: float32 [n_tokens].
    """
    row = hidden[token]
    mean = dot(row, row) / np.float32(row.size)
    factors[token] = np.float32(1) / np.sqrt(np.float32(mean + eps))


@kernel("f32[2], f32[1], f32[2], f32[1], f32[1], f32, i64, i64, i64, i64, f32[2], f32[2], f32[2]")
def _combine(
    hidden: F32,
    factors: F32,
    mix: F32,
    base: F32,
    scale: F32,
    hc_eps: np.float32,
    iterations: int,
    trained: int,
    per_row: int,
    size: int,
    post: F32,
    residual: F32,
    out: F32,
    unit: int,
) -> None:
    n_sums = per_row * out.shape[0]
    if unit >= n_sums:
        token = unit - n_sums
        weights = residual[token]
        _spread_weights(mix[token], factors[token], base, scale, post[token], weights)
        _sinkhorn(weights, post.shape[1], hc_eps, iterations)
        return
    token, first, last = slice_of(unit, per_row, size, out.shape[1])
    pre = np.empty(hidden.shape[1] // out.shape[1], np.float32)
    _head_weights(mix[token], factors[token], base, scale, hc_eps, pre)
    target = out[token, first:last]
    _sum_copies(hidden[token, first:], out.shape[1], pre, target)
    if trained:
        _round(target)


def record_combination(
    program: Program,
    hidden: F32,
    factors: F32,
    mix: F32,
    base: F32,
    scale: F32,
    hc_eps: float,
    iterations: int,
    trained: bool,
    post: F32,
    residual: F32,
    out: F32,
) -> None:
    """Record weighing the copies of the hidden state into one, and the weights for `spread`.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    hidden
        float32 [n_tokens, hc_mult * hidden_size].
    factors
        As written by `inverse_rms`.
    mix
        float32 [n_tokens, (2 + hc_mult) * hc_mult]: hidden times hc_fn; before the head, where no
        spreading follows, [n_tokens, hc_mult].
    base, scale
        float32, the columns of mix, and [3]; before the head [1].
    hc_eps, iterations
        hc_eps, hc_sinkhorn_iters.
    trained
        Round the combined copies to BF16.
    post, residual
        Written: float32 [n_tokens, hc_mult] and [n_tokens, hc_mult * hc_mult], which has the
        weights of all old copies for one new copy side by side; without rows before the head.
    out
        Written: float32 [n_tokens, hidden_size].
    """
    slices = Slices.of(*out.shape)
    program.add(
        _combine,
        len(out) * slices.per_row + len(post),
        hidden,
        factors,
        mix,
        base,
        scale,
        hc_eps,
        iterations,
        int(trained),
        slices.per_row,
        slices.size,
        post,
        residual,
        out,
    )


@kernel("f32[2], f32[2], f32[2], f32[2], i64, i64, i64, f32[2]")
def _spread(
    hidden: F32,
    update: F32,
    post: F32,
    residual: F32,
    trained: int,
    per_row: int,
    size: int,
    out: F32,
    unit: int,
) -> None:
    token, first, last = slice_of(unit, per_row, size, update.shape[1])
    distance, n = update.shape[1], post.shape[1]
    added = update[token, first:last]
    for k in range(n):
        target = out[token, k * distance + first : k * distance + last]
        weights = residual[token, k * n : (k + 1) * n]
        _sum_copies(hidden[token, first:], distance, weights, target)
        factor = post[token, k]
        for i in range(target.size):
            target[i] = factor * added[i] + target[i]
        if trained:
            _round(target)


def record_spreading(
    program: Program,
    hidden: F32,
    update: F32,
    post: F32,
    residual: F32,
    trained: bool,
    out: F32,
) -> None:
    """Record spreading a sublayer's output over the copies.

    That is out_k = post_k u + sum_j residual_jk h_j.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    hidden
        float32 [n_tokens, hc_mult * hidden_size], as it was combined.
    update
        float32 [n_tokens, hidden_size].
    post, residual
        As `record_combination` leaves them.
    trained
        Round the result to BF16.
    out
        Written: float32, the shape of hidden; not hidden itself.
    """
    slices = Slices.of(*update.shape)
    cut = slices.per_row, slices.size
    units = len(update) * slices.per_row
    program.add(_spread, units, hidden, update, post, residual, int(trained), *cut, out)


@kernel("f32[2], i64, f32[2]")
def add_to_copies(update: F32, trained: int, hidden: F32, token: int) -> None:
    """Add a row to every copy of the hidden state (section 9); a unit is a token.

    Parameters
    ----------
    update
        float32 [n_tokens, hidden_size].
    trained
        Round the result to BF16.
    hidden
        Updated: float32 [n_tokens, hc_mult * hidden_size].
    """
    row, size = hidden[token], update.shape[1]
    for first in range(0, row.size, size):
        copy, added = row[first : first + size], update[token]
        for i in range(size):
            copy[i] += added[i]
    if trained:
        _round(row)
