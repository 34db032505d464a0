"""What a checkpoint's config.json says about the model, checked once and frozen.

Every value is validated here, so that the rest of the engine may rely on it: types, ranges, the
divisibility that the block formats need, and the fixed choices (activation, scoring, quantisation)
that localv4 implements. Knows nothing of tensors or files other than config.json. Follows the
spec's checkpoint layout (symbols, early releases) and revisions (DSpark, pruned, V4.1).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from localv4.config_fields import Fields
from localv4.errors import ModelNotFound, UnsupportedModel
from localv4.untrusted import parse_object, read_object

__all__ = ["CONFIG_LIMIT_BYTES", "CONFIG_NAME", "LayerKind", "ModelConfig", "RopeScaling"]

LayerKind = Literal["sliding", "csa", "hca"]

_KINDS: dict[int, LayerKind] = {0: "sliding", 4: "csa", 128: "hca"}
CONFIG_NAME = "config.json"
CONFIG_LIMIT_BYTES = 4 * 2**20
_BLOCK = 128  # columns that share an activation scale and a weight scale

# Limits far above any release; they keep a hostile config from asking for absurd work.
_MAX_LAYERS = 512
_MAX_WIDTH = 2**18
_MAX_COUNT = 4096
_MAX_VOCAB = 2**22
_MAX_POSITIONS = 2**30

# Keys that must have one value if they are present. Early releases and community copies lack some.
_FIXED: dict[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "hidden_act": ("silu",),
    "n_group": (1, None),
    "n_shared_experts": (1,),
    "norm_topk_prob": (True,),
    "num_key_value_heads": (1,),
    "scoring_func": ("sqrtsoftplus",),
    "tie_word_embeddings": (False,),
    "topk_group": (1, None),
    "topk_method": ("noaux_tc",),
}
_FIXED_QUANTIZATION: dict[str, tuple[object, ...]] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3",),
    "scale_fmt": ("ue8m0",),
    "activation_scheme": ("dynamic",),
    "weight_block_size": ([_BLOCK, _BLOCK],),
}


@dataclass(frozen=True)
class RopeScaling:
    """YaRN parameters of the compressed layers' rotary embedding."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V4 model's sizes and constants, under config.json's own names.

    Attributes
    ----------
    compress_ratios
        One ratio (0, 4 or 128) for each of the `num_hidden_layers` body layers. Longer lists on
        disk (the MTP block, a DSpark drafter) are cut; the MTP block always has ratio 0.
    rope_scaling
        None where config.json says null: no YaRN.
    expert_dtype
        What config.json claims ("fp4", "fp8" or None). Tensor dtypes decide, not this.
    is_dspark
        Whether any ``dspark_*`` key is present: ``mtp.*`` is then a drafter that localv4 leaves
        unread.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    compress_ratios: tuple[int, ...]
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_hash_layers: int
    routed_scaling_factor: float
    swiglu_limit: float
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    num_nextn_predict_layers: int
    bos_token_id: int
    eos_token_id: int
    expert_dtype: str | None
    is_dspark: bool

    @classmethod
    def from_json(cls, text: str, source: str) -> "ModelConfig":
        """Parse and validate the text of a config.json.

        Parameters
        ----------
        text
            The JSON document.
        source
            What to call it in a message, usually its path.

        Raises
        ------
        DamagedCheckpoint
            If a key is missing, has the wrong type, is out of range or contradicts another.
        UnsupportedModel
            If it describes something other than the DeepSeek-V4 that localv4 runs.
        """
        return _from_object(parse_object(text, source), source)

    @classmethod
    def from_folder(cls, path: Path) -> "ModelConfig":
        """Read and validate ``path/config.json``.

        Raises
        ------
        ModelNotFound
            If the folder holds no config.json.
        DamagedCheckpoint, UnsupportedModel
            As :meth:`from_json`.
        """
        file = Path(path) / CONFIG_NAME
        values = read_object(file, CONFIG_LIMIT_BYTES)
        if values is None:
            raise ModelNotFound(
                f"{path} holds no config.json; name the folder of a DeepSeek-V4 checkpoint"
            )
        return _from_object(values, str(file))

    @classmethod
    def from_path(cls, path: Path) -> "ModelConfig":
        """Read and validate a config.json, or that of a folder.

        Raises
        ------
        ModelNotFound, DamagedCheckpoint, UnsupportedModel
            As :meth:`from_folder`.
        """
        if path.is_dir():
            return cls.from_folder(path)
        # What is not UTF-8 is not JSON either, and is refused as such.
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        return cls.from_json(text, str(path))

    def layer_kind(self, layer: int) -> LayerKind:
        """Attention kind of a layer; `num_hidden_layers` names the MTP block."""
        if layer == self.num_hidden_layers:
            return "sliding"
        return _KINDS[self.compress_ratios[layer]]

    def is_hash_layer(self, layer: int) -> bool:
        """Whether the layer routes by token id (``tid2eid``); never true of the MTP block."""
        return layer < self.num_hash_layers


def _from_object(values: dict[str, Any], source: str) -> ModelConfig:
    fields = Fields(values, source)
    _refuse_other_models(fields)
    config = ModelConfig(
        **_sizes(fields),
        **_constants(fields),
        compress_ratios=_compress_ratios(fields),
        rope_scaling=_rope_scaling(fields),
        expert_dtype=fields.choice("expert_dtype", (None, "fp4", "fp8")),
        is_dspark=any(key.startswith("dspark_") for key in values),
    )
    _check_consistency(config, fields)
    _check_layout(config, fields)
    return config


def _refuse_other_models(fields: Fields) -> None:
    if fields.text("model_type") != "deepseek_v4":
        raise fields.unsupported(
            "model_type", "model_type 'deepseek_v4' (Flash, Pro and their -Base)"
        )
    fields.require_fixed(_FIXED)
    if fields.has("quantization_config"):
        fields.section("quantization_config").require_fixed(_FIXED_QUANTIZATION)


def _sizes(fields: Fields) -> dict[str, Any]:
    limits = {
        "vocab_size": _MAX_VOCAB,
        "hidden_size": _MAX_WIDTH,
        "num_hidden_layers": _MAX_LAYERS,
        "num_attention_heads": _MAX_COUNT,
        "head_dim": _MAX_COUNT,
        "qk_rope_head_dim": _MAX_COUNT,
        "q_lora_rank": _MAX_WIDTH,
        "o_groups": _MAX_COUNT,
        "o_lora_rank": _MAX_WIDTH,
        "sliding_window": _MAX_WIDTH,
        "n_routed_experts": _MAX_COUNT,
        "num_experts_per_tok": _MAX_COUNT,
        "moe_intermediate_size": _MAX_WIDTH,
        "hc_mult": 16,
        "hc_sinkhorn_iters": 1000,
        "index_n_heads": _MAX_COUNT,
        "index_head_dim": _MAX_COUNT,
        "index_topk": _MAX_POSITIONS,
        "max_position_embeddings": _MAX_POSITIONS,
    }
    counted_from_zero = {
        "num_hash_layers": _MAX_LAYERS,
        "num_nextn_predict_layers": _MAX_LAYERS,
        "bos_token_id": _MAX_VOCAB,
        "eos_token_id": _MAX_VOCAB,
    }
    return {key: fields.integer(key, 1, high) for key, high in limits.items()} | {
        key: fields.integer(key, 0, high) for key, high in counted_from_zero.items()
    }


def _constants(fields: Fields) -> dict[str, Any]:
    return {
        "routed_scaling_factor": fields.number("routed_scaling_factor", 1e-6, 1e6),
        "swiglu_limit": fields.number("swiglu_limit", 0.0, 1e6),
        "hc_eps": fields.number("hc_eps", 1e-12, 1.0),
        "rms_norm_eps": fields.number("rms_norm_eps", 1e-12, 1.0),
        "rope_theta": fields.number("rope_theta", 2.0, 1e12),
        "compress_rope_theta": fields.number("compress_rope_theta", 2.0, 1e12),
    }


def _compress_ratios(fields: Fields) -> tuple[int, ...]:
    ratios = fields.integers("compress_ratios")
    n_layers = fields.integer("num_hidden_layers", 1, _MAX_LAYERS)
    if len(ratios) < n_layers:
        raise fields.damaged(f"compress_ratios has {len(ratios)} entries for {n_layers} layers")
    if unknown := sorted(set(ratios) - set(_KINDS)):
        raise UnsupportedModel(
            f"{fields.source} has compress_ratios {unknown[:4]}; localv4 runs ratios 0, 4 and 128"
        )
    return ratios[:n_layers]


def _rope_scaling(fields: Fields) -> RopeScaling | None:
    if fields.is_null("rope_scaling"):
        return None
    scaling = fields.section("rope_scaling")
    scaling.require_fixed({"type": ("yarn",), "rope_type": ("yarn",)})
    beta_fast = scaling.number("beta_fast", 1e-3, 1e6)
    beta_slow = scaling.number("beta_slow", 1e-3, 1e6)
    if beta_slow > beta_fast:
        raise scaling.damaged(f"beta_slow {beta_slow} is larger than beta_fast {beta_fast}")
    return RopeScaling(
        factor=scaling.number("factor", 1.0, 1e6),
        original_max_position_embeddings=scaling.integer(
            "original_max_position_embeddings", 1, _MAX_POSITIONS
        ),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
    )


def _check_consistency(config: ModelConfig, fields: Fields) -> None:
    """Refuse values that contradict each other."""
    if config.num_attention_heads % config.o_groups:
        raise fields.damaged(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"o_groups {config.o_groups}"
        )
    for small, large in (
        ("qk_rope_head_dim", "head_dim"),
        ("qk_rope_head_dim", "index_head_dim"),
        ("num_experts_per_tok", "n_routed_experts"),
        ("num_hash_layers", "num_hidden_layers"),
    ):
        if getattr(config, small) > getattr(config, large):
            raise fields.damaged(
                f"{small} {getattr(config, small)} is larger than {large} {getattr(config, large)}"
            )
    for key in ("bos_token_id", "eos_token_id"):
        if getattr(config, key) >= config.vocab_size:
            raise fields.damaged(
                f"{key} {getattr(config, key)} lies outside vocab_size {config.vocab_size}"
            )


def _check_layout(config: ModelConfig, fields: Fields) -> None:
    """Refuse sizes that the block formats of the spec cannot carry."""
    for key, size in (
        ("hidden_size", config.hidden_size),
        ("q_lora_rank", config.q_lora_rank),
        ("o_groups x o_lora_rank", config.o_groups * config.o_lora_rank),
        ("moe_intermediate_size", config.moe_intermediate_size),
    ):
        if size % _BLOCK:
            raise fields.unsupported_size(key, size, f"a multiple of {_BLOCK}")
    if config.qk_rope_head_dim % 2:
        raise fields.unsupported_size("qk_rope_head_dim", config.qk_rope_head_dim, "an even number")
    unrotated = config.head_dim - config.qk_rope_head_dim
    if unrotated == 0 or unrotated % 64:
        raise fields.unsupported_size(
            "head_dim - qk_rope_head_dim", unrotated, "a positive multiple of 64"
        )
    width = config.index_head_dim
    if width < 32 or width & (width - 1):
        raise fields.unsupported_size("index_head_dim", width, "a power of two from 32 up")
