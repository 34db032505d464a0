"""Which tensors feed which module of a layer, with formats resolved once.

Matrices stay where their source has them, which is the checkpoint's map or memory of the
process; small tensors (norms, biases, sinks, routing tables, base and scale of mHC, scales of
FP8) are copied.  Names on the left are those of the checkpoint.  Follows checkpoint.md (tensors).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint import TensorInfo
from localv4.config import ModelConfig
from localv4.kernels.matmul import Matrix
from localv4.quant import bf16, e8m0
from localv4.tensors import ScaleDtype, block_prefix

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
    "WeightSource",
    "bind_block",
    "bind_expert",
    "bind_head",
    "bind_mtp",
]

F32 = NDArray[np.float32]


class WeightSource(Protocol):
    """Where tensors lie: a `Checkpoint`, or what stands before one."""

    @property
    def config(self) -> ModelConfig:
        """The model."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""

    @property
    def scale_dtype(self) -> ScaleDtype:
        """Dtype of all scales."""

    def view(self, name: str) -> NDArray[Any]:
        """Return a tensor where it lies; see `Checkpoint.view`."""

    def check_finite(self, name: str) -> None:
        """Raise DamagedCheckpoint for NaN or infinity."""


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
    tid2eid: NDArray[np.int32] | None


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """One expert: w1 (gate) and w3 (up) [m, d], w2 (down) [d, m]."""

    w1: Matrix
    w2: Matrix
    w3: Matrix

    @property
    def words(self) -> NDArray[np.int64]:
        """Where w1, w3 and w2 lie, for kernels: int64 [3, MATRIX_WORDS]."""
        return np.stack([self.w1.words, self.w3.words, self.w2.words])


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


def _vector(source: WeightSource, name: str) -> F32:
    """Return a small tensor as float32 of its own, checked for NaN and infinity."""
    source.check_finite(name)
    view = source.view(name)
    return bf16.decode(view) if view.dtype == np.uint16 else np.array(view, np.float32)


def _dense(source: WeightSource, name: str) -> Matrix:
    """Bind a BF16 or F32 matrix without scales."""
    view = source.view(name)
    kind = "bf16" if view.dtype == np.uint16 else "f32"
    return Matrix(kind, view, None, view.shape[1])


def _quantised(source: WeightSource, name: str) -> Matrix:
    """Bind a matrix with its scales, which are checked for NaN and infinity first."""
    source.check_finite(f"{name}.scale")
    weights = source.view(f"{name}.weight")
    scales = source.view(f"{name}.scale")
    if source.tensors[f"{name}.weight"].dtype == "I8":
        return Matrix("fp4", weights, scales, 2 * weights.shape[1])
    widened = e8m0.decode(scales) if scales.dtype == np.uint8 else np.array(scales)
    return Matrix("fp8", weights, widened, weights.shape[1])


def _output_groups(source: WeightSource, name: str, config: ModelConfig) -> tuple[Matrix, ...]:
    """Bind wo_a: a matrix a group, multiplied with unquantised BF16 activations.

    Each weight is rounded to BF16 after scaling.  With UE8M0 scales that changes nothing,
    so the faster order of scaling sums serves; F32 scales need it done weight by weight.
    """
    matrix = _quantised(source, name)
    if source.scale_dtype == "F32":
        matrix = Matrix("fp8_as_bf16", matrix.weights, matrix.scales, matrix.n_columns)
    size = config.o_lora_rank
    return tuple(matrix.rows(group * size, size) for group in range(config.o_groups))


def _hyper(source: WeightSource, name: str) -> HyperWeights:
    return HyperWeights(
        _dense(source, f"{name}_fn"),
        _vector(source, f"{name}_base"),
        _vector(source, f"{name}_scale"),
    )


def _compressor(source: WeightSource, name: str) -> CompressorWeights:
    return CompressorWeights(
        _dense(source, f"{name}.wkv.weight"),
        _dense(source, f"{name}.wgate.weight"),
        _vector(source, f"{name}.ape"),
        _vector(source, f"{name}.norm.weight"),
    )


def _indexer(source: WeightSource, name: str) -> IndexerWeights:
    return IndexerWeights(
        _quantised(source, f"{name}.wq_b"),
        _dense(source, f"{name}.weights_proj.weight"),
        _compressor(source, f"{name}.compressor"),
    )


def _attention(source: WeightSource, name: str, layer: int) -> AttentionWeights:
    config = source.config
    kind = config.layer_kind(layer)
    return AttentionWeights(
        _quantised(source, f"{name}.wq_a"),
        _vector(source, f"{name}.q_norm.weight"),
        _quantised(source, f"{name}.wq_b"),
        _quantised(source, f"{name}.wkv"),
        _vector(source, f"{name}.kv_norm.weight"),
        _output_groups(source, f"{name}.wo_a", config),
        _quantised(source, f"{name}.wo_b"),
        _vector(source, f"{name}.attn_sink"),
        None if kind == "sliding" else _compressor(source, f"{name}.compressor"),
        _indexer(source, f"{name}.indexer") if kind == "csa" else None,
    )


def _expert(source: WeightSource, name: str) -> ExpertWeights:
    return ExpertWeights(*(_quantised(source, f"{name}.w{number}") for number in (1, 2, 3)))


def bind_expert(source: WeightSource, layer: int, expert: int) -> ExpertWeights:
    """Bind one routed expert.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """
    return _expert(source, f"{block_prefix(source.config, layer)}ffn.experts.{expert}")


def bind_block(source: WeightSource, layer: int) -> BlockWeights:
    """Bind one block; layer num_hidden_layers is the MTP block.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """
    config = source.config
    prefix = block_prefix(config, layer)
    hashed = config.is_hash_layer(layer)
    gate = GateWeights(
        _dense(source, f"{prefix}ffn.gate.weight"),
        None if hashed else _vector(source, f"{prefix}ffn.gate.bias"),
        source.view(f"{prefix}ffn.gate.tid2eid").astype(np.int32) if hashed else None,
    )
    return BlockWeights(
        _hyper(source, f"{prefix}hc_attn"),
        _vector(source, f"{prefix}attn_norm.weight"),
        _attention(source, f"{prefix}attn", layer),
        _hyper(source, f"{prefix}hc_ffn"),
        _vector(source, f"{prefix}ffn_norm.weight"),
        gate,
        _expert(source, f"{prefix}ffn.shared_experts"),
    )


def bind_head(source: WeightSource, prefix: str = "") -> HeadWeights:
    """Bind a head; the output matrix is shared by the model's and the MTP block's."""
    return HeadWeights(
        _hyper(source, f"{prefix}hc_head"),
        _vector(source, f"{prefix}norm.weight"),
        _dense(source, "head.weight"),
    )


def bind_mtp(source: WeightSource) -> MtpWeights:
    """Bind the MTP block of a checkpoint that has one.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """
    prefix = "mtp.0."
    return MtpWeights(
        _vector(source, f"{prefix}enorm.weight"),
        _vector(source, f"{prefix}hnorm.weight"),
        _quantised(source, f"{prefix}e_proj"),
        _quantised(source, f"{prefix}h_proj"),
        bind_block(source, source.config.num_hidden_layers),
        bind_head(source, prefix),
    )
