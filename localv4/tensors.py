"""The tensor contract: every name, shape and dtype that a checkpoint of a config must hold.

Follows the spec's checkpoint layout, table "Tensors of FP4+FP8 checkpoints" and its -Base section;
the sums over the released configs reproduce the published tensor counts and bytes. Knows nothing of
files.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from localv4.config import ModelConfig

__all__ = [
    "DTYPE_BYTES",
    "EXPERT_MATRICES",
    "ExpertFormat",
    "ScaleDtype",
    "TensorSpec",
    "block_prefix",
    "expected_tensors",
    "expert_tensors",
    "mtp_tensors",
]

ExpertFormat = Literal["fp4", "fp8"]
ScaleDtype = Literal["F8_E8M0", "F32"]

DTYPE_BYTES = {"BF16": 2, "F32": 4, "I64": 8, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}
"""Bytes of one stored element, by safetensors dtype name."""

EXPERT_MATRICES = ("w1", "w2", "w3")
"""A routed or shared expert's matrices: gate, down, up."""

_BLOCK = 128  # rows and columns that share an FP8 weight scale
_FP4_BLOCK = 32  # columns that share an FP4 weight scale


class TensorSpec(NamedTuple):
    """One tensor that must be there; a tuple, as there are tens of thousands.

    Attributes
    ----------
    name
        The raw on-disk name.
    shape
        Stored shape; an FP4 matrix has half its columns (two codes a byte).
    dtypes
        Accepted safetensors dtype names, the usual one first.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes in the usual dtype."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtypes[0]]


def block_prefix(config: ModelConfig, layer: int) -> str:
    """Return ``layers.N.``, or ``mtp.0.`` where `layer` is `num_hidden_layers`."""
    return "mtp.0." if layer == config.num_hidden_layers else f"layers.{layer}."


def expected_tensors(
    config: ModelConfig,
    expert_format: ExpertFormat,
    scale_dtype: ScaleDtype,
    mtp: bool,
    routed: bool = True,
) -> Iterator[TensorSpec]:
    """Yield the whole contract, lazily: top, layers in order, then the MTP block if `mtp`.

    Routed experts, nearly all of it, are left out if not `routed`.

    A generator on purpose: a hostile config may ask for millions of experts, and a reader that
    stops at the first missing tensor then does no more work than the checkpoint has tensors.
    """
    vocab_size, hidden = config.vocab_size, config.hidden_size
    yield TensorSpec("embed.weight", (vocab_size, hidden), ("BF16",))
    yield TensorSpec("head.weight", (vocab_size, hidden), ("BF16",))
    yield from _final_tensors("", config)
    for layer in range(config.num_hidden_layers):
        yield from _block_tensors(config, layer, expert_format, scale_dtype, routed)
    if mtp:
        yield from mtp_tensors(config, expert_format, scale_dtype, routed)


def expert_tensors(
    config: ModelConfig,
    layer: int,
    expert: int,
    expert_format: ExpertFormat,
    scale_dtype: ScaleDtype,
) -> Iterator[TensorSpec]:
    """Yield one routed expert's six tensors: weight and scale of w1, w2, w3."""
    prefix = f"{block_prefix(config, layer)}ffn.experts.{expert}."
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    for matrix in EXPERT_MATRICES:
        rows, columns = (hidden, inner) if matrix == "w2" else (inner, hidden)
        if expert_format == "fp8":
            yield from _fp8_linear(prefix + matrix, rows, columns, scale_dtype)
        else:
            yield TensorSpec(f"{prefix}{matrix}.weight", (rows, columns // 2), ("I8",))
            yield TensorSpec(
                f"{prefix}{matrix}.scale", (rows, columns // _FP4_BLOCK), (scale_dtype,)
            )


def _fp8_linear(
    name: str, rows: int, columns: int, scale_dtype: ScaleDtype
) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (rows, columns), ("F8_E4M3",))
    blocks = (math.ceil(rows / _BLOCK), math.ceil(columns / _BLOCK))
    yield TensorSpec(f"{name}.scale", blocks, (scale_dtype,))


def _final_tensors(prefix: str, config: ModelConfig) -> Iterator[TensorSpec]:
    """Yield what stands before the shared head, of the body or of the MTP block."""
    copies = config.hc_mult
    yield TensorSpec(f"{prefix}norm.weight", (config.hidden_size,), ("BF16",))
    yield TensorSpec(f"{prefix}hc_head_fn", (copies, copies * config.hidden_size), ("F32",))
    yield TensorSpec(f"{prefix}hc_head_base", (copies,), ("F32",))
    yield TensorSpec(f"{prefix}hc_head_scale", (1,), ("F32",))


def _block_tensors(
    config: ModelConfig,
    layer: int,
    expert_format: ExpertFormat,
    scale_dtype: ScaleDtype,
    routed: bool,
) -> Iterator[TensorSpec]:
    prefix = block_prefix(config, layer)
    copies, hidden = config.hc_mult, config.hidden_size
    mixes = (2 + copies) * copies
    for part in ("attn", "ffn"):
        yield TensorSpec(f"{prefix}{part}_norm.weight", (hidden,), ("BF16",))
        yield TensorSpec(f"{prefix}hc_{part}_fn", (mixes, copies * hidden), ("F32",))
        yield TensorSpec(f"{prefix}hc_{part}_base", (mixes,), ("F32",))
        yield TensorSpec(f"{prefix}hc_{part}_scale", (3,), ("F32",))
    yield from _attention_tensors(config, f"{prefix}attn.", scale_dtype)
    kind = config.layer_kind(layer)
    if kind != "sliding":
        ratio = config.compress_ratios[layer]
        yield from _compressor_tensors(config, f"{prefix}attn.compressor.", ratio, config.head_dim)
    if kind == "csa":
        yield from _indexer_tensors(config, f"{prefix}attn.indexer.", scale_dtype)
    yield from _router_tensors(config, layer)
    if routed:
        yield from _routed_tensors(config, layer, expert_format, scale_dtype)
    inner = config.moe_intermediate_size
    for matrix in EXPERT_MATRICES:
        rows, columns = (hidden, inner) if matrix == "w2" else (inner, hidden)
        yield from _fp8_linear(f"{prefix}ffn.shared_experts.{matrix}", rows, columns, scale_dtype)


def _routed_tensors(
    config: ModelConfig, layer: int, expert_format: ExpertFormat, scale_dtype: ScaleDtype
) -> Iterator[TensorSpec]:
    """Yield all routed experts of a layer: the first one's tensors under every number."""
    prefix = f"{block_prefix(config, layer)}ffn.experts."
    first = f"{prefix}0."
    of_expert = [
        (spec.name.removeprefix(first), spec.shape, spec.dtypes)
        for spec in expert_tensors(config, layer, 0, expert_format, scale_dtype)
    ]
    for expert in range(config.n_routed_experts):
        for name, shape, dtypes in of_expert:
            yield TensorSpec(f"{prefix}{expert}.{name}", shape, dtypes)


def _attention_tensors(
    config: ModelConfig, prefix: str, scale_dtype: ScaleDtype
) -> Iterator[TensorSpec]:
    n_heads, head_dim, q_rank = config.num_attention_heads, config.head_dim, config.q_lora_rank
    groups, hidden = config.o_groups, config.hidden_size
    out_rank = groups * config.o_lora_rank
    yield TensorSpec(f"{prefix}attn_sink", (n_heads,), ("F32",))
    yield from _fp8_linear(f"{prefix}wq_a", q_rank, hidden, scale_dtype)
    yield TensorSpec(f"{prefix}q_norm.weight", (q_rank,), ("BF16",))
    yield from _fp8_linear(f"{prefix}wq_b", n_heads * head_dim, q_rank, scale_dtype)
    yield from _fp8_linear(f"{prefix}wkv", head_dim, hidden, scale_dtype)
    yield TensorSpec(f"{prefix}kv_norm.weight", (head_dim,), ("BF16",))
    # Its columns are one group's heads, which is hidden_size on Flash and not on Pro.
    yield from _fp8_linear(f"{prefix}wo_a", out_rank, n_heads * head_dim // groups, scale_dtype)
    yield from _fp8_linear(f"{prefix}wo_b", hidden, out_rank, scale_dtype)


def _compressor_tensors(
    config: ModelConfig, prefix: str, ratio: int, width: int
) -> Iterator[TensorSpec]:
    """Yield a compressor of `ratio`; with ratio 4 the windows overlap: two series of columns."""
    columns = 2 * width if ratio == 4 else width
    yield TensorSpec(f"{prefix}ape", (ratio, columns), ("F32",))
    yield TensorSpec(f"{prefix}wkv.weight", (columns, config.hidden_size), ("BF16",))
    yield TensorSpec(f"{prefix}wgate.weight", (columns, config.hidden_size), ("BF16",))
    yield TensorSpec(f"{prefix}norm.weight", (width,), ("BF16",))


def _indexer_tensors(
    config: ModelConfig, prefix: str, scale_dtype: ScaleDtype
) -> Iterator[TensorSpec]:
    n_heads, width = config.index_n_heads, config.index_head_dim
    yield from _fp8_linear(f"{prefix}wq_b", n_heads * width, config.q_lora_rank, scale_dtype)
    yield TensorSpec(f"{prefix}weights_proj.weight", (n_heads, config.hidden_size), ("BF16",))
    yield from _compressor_tensors(config, f"{prefix}compressor.", 4, width)


def _router_tensors(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    prefix = f"{block_prefix(config, layer)}ffn.gate."
    n_experts = config.n_routed_experts
    yield TensorSpec(f"{prefix}weight", (n_experts, config.hidden_size), ("BF16",))
    if config.is_hash_layer(layer):
        table = (config.vocab_size, config.num_experts_per_tok)
        yield TensorSpec(f"{prefix}tid2eid", table, ("I64",))
    else:
        yield TensorSpec(f"{prefix}bias", (n_experts,), ("F32",))


def mtp_tensors(
    config: ModelConfig,
    expert_format: ExpertFormat,
    scale_dtype: ScaleDtype,
    routed: bool = True,
) -> Iterator[TensorSpec]:
    """Yield the MTP block's own tensors; it shares the embedding and the head."""
    layer, hidden = config.num_hidden_layers, config.hidden_size
    prefix = block_prefix(config, layer)
    yield from _block_tensors(config, layer, expert_format, scale_dtype, routed)
    for projection in ("e_proj", "h_proj"):
        yield from _fp8_linear(prefix + projection, hidden, hidden, scale_dtype)
    yield TensorSpec(f"{prefix}enorm.weight", (hidden,), ("BF16",))
    yield TensorSpec(f"{prefix}hnorm.weight", (hidden,), ("BF16",))
    yield from _final_tensors(prefix, config)
