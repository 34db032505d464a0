"""Which tensors feed which module of a layer, with formats resolved once.

Matrices stay where the checkpoint's maps have them; only small vectors (norms, biases,
sinks, base and scale of mHC) and block scales are widened to float32 here.  Names on the
left are those of the checkpoint.  Follows checkpoint.md (tensors).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.kernels.matmul import Matrix
from localv4.quant import bf16, e8m0
from localv4.tensors import block_prefix

__all__ = [
    "AttentionWeights",
    "BlockWeights",
    "CompressorWeights",
    "ExpertWeights",
    "GateWeights",
    "HeadWeights",
    "HyperWeights",
    "IndexerWeights",
    "MtpWeights",
    "bind_block",
    "bind_expert",
    "bind_head",
    "bind_mtp",
]

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class HyperWeights:
    """mHC around one sublayer, or before the head: fn [M, hc_mult * d], base [M], scale."""

    fn: Matrix
    base: F32
    scale: F32


@dataclass(frozen=True, eq=False)
class CompressorWeights:
    """Projections [coff * width, d], ape float32 [ratio, coff * width], norm [width]."""

    wkv: Matrix
    wgate: Matrix
    ape: F32
    norm: F32


@dataclass(frozen=True, eq=False)
class IndexerWeights:
    """The indexer of a ratio-4 layer."""

    wq_b: Matrix
    weights_proj: Matrix
    compressor: CompressorWeights


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Attention of one layer; wo_a has one matrix for each of the o_groups."""

    wq_a: Matrix
    q_norm: F32
    wq_b: Matrix
    wkv: Matrix
    kv_norm: F32
    wo_a: tuple[Matrix, ...]
    wo_b: Matrix
    attn_sink: F32
    compressor: CompressorWeights | None
    indexer: IndexerWeights | None


@dataclass(frozen=True, eq=False)
class GateWeights:
    """The gate [n_experts, d] with either a bias or a table from token to experts."""

    weight: Matrix
    bias: F32 | None
    tid2eid: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """One expert: w1 (gate) and w3 (up) [m, d], w2 (down) [d, m]."""

    w1: Matrix
    w2: Matrix
    w3: Matrix


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """One block but for its routed experts."""

    hc_attn: HyperWeights
    attn_norm: F32
    attn: AttentionWeights
    hc_ffn: HyperWeights
    ffn_norm: F32
    gate: GateWeights
    shared: ExpertWeights


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """mHC head, norm and output matrix [vocab_size, d]."""

    hc_head: HyperWeights
    norm: F32
    head: Matrix


@dataclass(frozen=True, eq=False)
class MtpWeights:
    """The MTP block: projections of the next token's embedding and of the hidden state."""

    enorm: F32
    hnorm: F32
    e_proj: Matrix
    h_proj: Matrix
    block: BlockWeights
    head: HeadWeights


def _vector(checkpoint: Checkpoint, name: str) -> F32:
    """Return a small tensor as float32 of its own, checked for NaN and infinity."""
    checkpoint.check_finite(name)
    view = checkpoint.view(name)
    return bf16.decode(view) if view.dtype == np.uint16 else np.array(view, np.float32)


def _dense(checkpoint: Checkpoint, name: str) -> Matrix:
    """Bind a BF16 or F32 matrix without scales."""
    view = checkpoint.view(name)
    kind = "bf16" if view.dtype == np.uint16 else "f32"
    return Matrix(kind, view, None, view.shape[1])


def _quantised(checkpoint: Checkpoint, name: str) -> Matrix:
    """Bind a matrix with its scales, which are checked for NaN and infinity first."""
    checkpoint.check_finite(f"{name}.scale")
    weights = checkpoint.view(f"{name}.weight")
    scales = checkpoint.view(f"{name}.scale")
    if checkpoint.tensors[f"{name}.weight"].dtype == "I8":
        return Matrix("fp4", weights, scales, 2 * weights.shape[1])
    widened = e8m0.decode(scales) if scales.dtype == np.uint8 else scales
    return Matrix("fp8", weights, widened, weights.shape[1])


def _output_groups(checkpoint: Checkpoint, name: str, config: ModelConfig) -> tuple[Matrix, ...]:
    """Bind wo_a: a matrix a group, multiplied with unquantised BF16 activations.

    Each weight is rounded to BF16 after scaling.  With UE8M0 scales that changes nothing,
    so the faster order of scaling sums serves; F32 scales need it done weight by weight.
    """
    matrix = _quantised(checkpoint, name)
    if checkpoint.scale_dtype == "F32":
        matrix = Matrix("fp8_as_bf16", matrix.weights, matrix.scales, matrix.n_columns)
    size = config.o_lora_rank
    return tuple(matrix.rows(group * size, size) for group in range(config.o_groups))


def _hyper(checkpoint: Checkpoint, name: str) -> HyperWeights:
    return HyperWeights(
        _dense(checkpoint, f"{name}_fn"),
        _vector(checkpoint, f"{name}_base"),
        _vector(checkpoint, f"{name}_scale"),
    )


def _compressor(checkpoint: Checkpoint, name: str) -> CompressorWeights:
    return CompressorWeights(
        _dense(checkpoint, f"{name}.wkv.weight"),
        _dense(checkpoint, f"{name}.wgate.weight"),
        _vector(checkpoint, f"{name}.ape"),
        _vector(checkpoint, f"{name}.norm.weight"),
    )


def _indexer(checkpoint: Checkpoint, name: str) -> IndexerWeights:
    return IndexerWeights(
        _quantised(checkpoint, f"{name}.wq_b"),
        _dense(checkpoint, f"{name}.weights_proj.weight"),
        _compressor(checkpoint, f"{name}.compressor"),
    )


def _attention(checkpoint: Checkpoint, name: str, layer: int) -> AttentionWeights:
    config = checkpoint.config
    kind = config.layer_kind(layer)
    return AttentionWeights(
        _quantised(checkpoint, f"{name}.wq_a"),
        _vector(checkpoint, f"{name}.q_norm.weight"),
        _quantised(checkpoint, f"{name}.wq_b"),
        _quantised(checkpoint, f"{name}.wkv"),
        _vector(checkpoint, f"{name}.kv_norm.weight"),
        _output_groups(checkpoint, f"{name}.wo_a", config),
        _quantised(checkpoint, f"{name}.wo_b"),
        _vector(checkpoint, f"{name}.attn_sink"),
        None if kind == "sliding" else _compressor(checkpoint, f"{name}.compressor"),
        _indexer(checkpoint, f"{name}.indexer") if kind == "csa" else None,
    )


def _expert(checkpoint: Checkpoint, name: str) -> ExpertWeights:
    return ExpertWeights(*(_quantised(checkpoint, f"{name}.w{number}") for number in (1, 2, 3)))


def bind_expert(checkpoint: Checkpoint, layer: int, expert: int) -> ExpertWeights:
    """Bind one routed expert.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """
    return _expert(checkpoint, f"{block_prefix(checkpoint.config, layer)}ffn.experts.{expert}")


def bind_block(checkpoint: Checkpoint, layer: int) -> BlockWeights:
    """Bind one block; layer num_hidden_layers is the MTP block.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """
    config = checkpoint.config
    prefix = block_prefix(config, layer)
    hashed = config.is_hash_layer(layer)
    gate = GateWeights(
        _dense(checkpoint, f"{prefix}ffn.gate.weight"),
        None if hashed else _vector(checkpoint, f"{prefix}ffn.gate.bias"),
        checkpoint.view(f"{prefix}ffn.gate.tid2eid") if hashed else None,
    )
    return BlockWeights(
        _hyper(checkpoint, f"{prefix}hc_attn"),
        _vector(checkpoint, f"{prefix}attn_norm.weight"),
        _attention(checkpoint, f"{prefix}attn", layer),
        _hyper(checkpoint, f"{prefix}hc_ffn"),
        _vector(checkpoint, f"{prefix}ffn_norm.weight"),
        gate,
        _expert(checkpoint, f"{prefix}ffn.shared_experts"),
    )


def bind_head(checkpoint: Checkpoint, prefix: str = "") -> HeadWeights:
    """Bind a head; the output matrix is shared by the model's and the MTP block's."""
    return HeadWeights(
        _hyper(checkpoint, f"{prefix}hc_head"),
        _vector(checkpoint, f"{prefix}norm.weight"),
        _dense(checkpoint, "head.weight"),
    )


def bind_mtp(checkpoint: Checkpoint) -> MtpWeights:
    """Bind the MTP block of a checkpoint that has one.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """
    prefix = "mtp.0."
    return MtpWeights(
        _vector(checkpoint, f"{prefix}enorm.weight"),
        _vector(checkpoint, f"{prefix}hnorm.weight"),
        _quantised(checkpoint, f"{prefix}e_proj"),
        _quantised(checkpoint, f"{prefix}h_proj"),
        bind_block(checkpoint, checkpoint.config.num_hidden_layers),
        bind_head(checkpoint, prefix),
    )
