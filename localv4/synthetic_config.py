"""Sizes of the synthetic checkpoints and their config.json, key for key like the releases'."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

__all__ = [
    "FULL_WIDTH",
    "PRESETS",
    "Preset",
    "Routing",
    "Sizes",
    "config_json",
    "first_ratios",
    "n_released_layers",
]

Preset = Literal["flash", "pro", "flash-base", "pro-base"]
Routing = Literal["random", "uniform", "skewed"]


@dataclass(frozen=True)
class Sizes:
    """The sizes that may be chosen, under config.json's own names."""

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_hash_layers: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int


# Index heads are 16: with few, every ReLU may be off and the selection a tie.
_FLASH = Sizes(
    vocab_size=384,
    hidden_size=256,
    num_attention_heads=8,
    head_dim=128,
    q_lora_rank=128,
    o_groups=4,
    o_lora_rank=128,
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=128,
    num_hash_layers=3,
    index_n_heads=16,
    index_head_dim=64,
    index_topk=16,
)
# wo_a's columns (512) differ from hidden_size, as on the released Pro and unlike Flash.
_PRO = Sizes(
    vocab_size=320,
    hidden_size=128,
    num_attention_heads=4,
    head_dim=256,
    q_lora_rank=128,
    o_groups=2,
    o_lora_rank=128,
    n_routed_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=256,
    num_hash_layers=3,
    index_n_heads=16,
    index_head_dim=128,
    index_topk=8,
)

PRESETS: dict[Preset, Sizes] = {
    "flash": _FLASH,
    "pro": _PRO,
    "flash-base": _FLASH,
    "pro-base": _PRO,
}

# The released widths; the spec's configs.
_FULL_FLASH = Sizes(
    vocab_size=129_280,
    hidden_size=4096,
    num_attention_heads=64,
    head_dim=512,
    q_lora_rank=1024,
    o_groups=8,
    o_lora_rank=1024,
    n_routed_experts=256,
    num_experts_per_tok=6,
    moe_intermediate_size=2048,
    num_hash_layers=3,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=512,
)
_FULL_PRO = replace(
    _FULL_FLASH,
    hidden_size=7168,
    num_attention_heads=128,
    q_lora_rank=1536,
    o_groups=16,
    n_routed_experts=384,
    moe_intermediate_size=3072,
    index_topk=1024,
)

FULL_WIDTH: dict[Preset, Sizes] = {
    "flash": _FULL_FLASH,
    "pro": _FULL_PRO,
    "flash-base": _FULL_FLASH,
    "pro-base": _FULL_PRO,
}

_N_TINY_LAYERS = 5
_N_RELEASED_LAYERS = {"flash": 43, "pro": 61}
_FIRST_RATIO = {"flash": 0, "pro": 128}  # of two layers; then 4 and 128 take turns
_ROUTE_SCALES = {"flash": 1.5, "pro": 2.5}

_LIKE_RELEASES: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "compress_rope_theta": 160000,
    "eos_token_id": 1,
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 1048576,
    "model_type": "deepseek_v4",
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def n_released_layers(preset: Preset) -> int:
    """Return how many body layers the released model has."""
    return _N_RELEASED_LAYERS[preset.partition("-")[0]]


def first_ratios(preset: Preset, n_layers: int) -> tuple[int, ...]:
    """Return the compression ratios of the released model's first layers, continued if need be."""
    first = _FIRST_RATIO[preset.partition("-")[0]]
    return tuple(first if layer < 2 else (4, 128)[layer % 2] for layer in range(n_layers))


def config_json(
    preset: Preset,
    sizes: Sizes,
    compress_ratios: tuple[int, ...] | None,
    dspark: bool,
    mtp: bool = True,
) -> str:
    """Return the text of a config.json; nothing is validated here.

    `compress_ratios` has one entry for each body layer; None means the preset's five. Without
    `mtp` it says that there is no MTP block, and has no ratio for one.
    """
    family, _, base = preset.partition("-")
    ratios = list(
        first_ratios(preset, _N_TINY_LAYERS) if compress_ratios is None else compress_ratios
    )
    values = _LIKE_RELEASES | asdict(sizes)
    values["num_hidden_layers"] = len(ratios)
    values["num_hash_layers"] = min(sizes.num_hash_layers, len(ratios))
    values["compress_ratios"] = ratios + [0] * (3 if dspark else 1 if mtp else 0)
    values["expert_dtype"] = "fp8" if base else "fp4"
    values["routed_scaling_factor"] = _ROUTE_SCALES[family]
    if not mtp and not dspark:
        values["num_nextn_predict_layers"] = 0
    if dspark:
        values |= {
            "dspark_block_size": 4,
            "dspark_markov_rank": 16,
            "dspark_noise_token_id": 2,
            "dspark_target_layer_ids": [0, len(ratios) - 1],
        }
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
