"""Manifold-constrained hyper-connections: hc_mult copies of the hidden state around sublayers.

Follows forward.md sections 3 and 8.  Knows nothing of what a sublayer does.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.kernels.hyper_connections import (
    inverse_rms,
    record_combination,
    record_spreading,
)
from localv4.kernels.launch import Program
from localv4.kernels.matmul import Lanes, arrange, multiply
from localv4.kernels.norm import record_rms_norm, room_for_norm
from localv4.weights import HyperWeights
from localv4.workspace import Workspace

__all__ = ["record_before_head", "record_combine", "record_spread"]

F32 = NDArray[np.float32]

_SUPERBLOCK = 128  # columns to which lanes of float32 are padded


def _record_mix(
    program: Program, hidden: F32, weights: HyperWeights, eps: float, workspace: Workspace
) -> tuple[F32, F32]:
    """Record the copies times fn, and their inverse root mean square; return where both will be."""
    n_tokens, n_columns = hidden.shape
    order = weights.fn.lanes
    if order == "f32" and n_columns % _SUPERBLOCK == 0:  # their lanes are the columns as they lie
        lanes = Lanes.as_they_lie(order, hidden)
    else:
        lanes = workspace.lanes("hidden", order, False, n_columns)
        program.phase("mhc")
        arrange(program, hidden, lanes)
    factors = workspace.f32("factors", n_tokens)
    mix = workspace.f32("mix", n_tokens, weights.fn.n_rows)
    program.phase("mhc")
    program.add(inverse_rms, n_tokens, hidden, eps, factors)
    multiply(program, lanes, weights.fn, mix, rounds=False)
    return mix, factors


def _weight_buffers(config: ModelConfig, workspace: Workspace) -> tuple[F32, F32]:
    """Return what combining leaves for spreading: post and residual."""
    n = config.hc_mult
    post = workspace.f32("post", workspace.n_tokens, n)
    return post, workspace.f32("residual", workspace.n_tokens, n * n)


def record_combine(
    program: Program,
    hidden: F32,
    weights: HyperWeights,
    norm: F32,
    config: ModelConfig,
    workspace: Workspace,
    x: F32,
) -> None:
    """Record what comes before a sublayer: the copies' combination and the norm.

    Parameters
    ----------
    hidden
        float32 [n_tokens, hc_mult * d].
    weights, norm
        hc_attn or hc_ffn of the block, and the weight of the norm.
    config, workspace
        The model; buffers.
    x
        Written: float32 [n_tokens, d], the sublayer's input.
    """
    buffers = _weight_buffers(config, workspace)
    _record_x(program, hidden, weights, norm, config, workspace, buffers, x)


def _record_x(
    program: Program,
    hidden: F32,
    weights: HyperWeights,
    norm: F32,
    config: ModelConfig,
    workspace: Workspace,
    buffers: tuple[F32, F32],
    x: F32,
) -> None:
    """Record the copies' combination and its norm; `buffers` get the weights for spreading."""
    mix, factors = _record_mix(program, hidden, weights, config.rms_norm_eps, workspace)
    trained = workspace.trained
    combined = room_for_norm(x, lambda: workspace.f32("combined", *x.shape))
    program.phase("mhc")
    record_combination(
        program,
        hidden,
        factors,
        mix,
        weights.base,
        weights.scale,
        config.hc_eps,
        config.hc_sinkhorn_iters,
        trained,
        *buffers,
        combined,
    )
    program.phase("mhc")
    record_rms_norm(program, combined, norm, config.rms_norm_eps, trained, x)


def record_spread(
    program: Program, hidden: F32, update: F32, config: ModelConfig, workspace: Workspace, out: F32
) -> None:
    """Record what comes after a sublayer; no other combination may lie in between.

    Parameters
    ----------
    hidden
        float32 [n_tokens, hc_mult * d], as given to `record_combine`.
    update
        float32 [n_tokens, d], the sublayer's output.
    config, workspace
        As given to `record_combine`.
    out
        Written: the shape of hidden, other memory.
    """
    program.phase("mhc")
    buffers = _weight_buffers(config, workspace)
    record_spreading(program, hidden, update, *buffers, workspace.trained, out)


def record_before_head(
    program: Program,
    hidden: F32,
    weights: HyperWeights,
    norm: F32,
    config: ModelConfig,
    workspace: Workspace,
    x: F32,
) -> None:
    """Record the copies' combination into the head's normalised input x, float32 [n_tokens, d]."""
    nobody = np.empty((0, config.hc_mult), np.float32)
    _record_x(program, hidden, weights, norm, config, workspace, (nobody, nobody), x)
