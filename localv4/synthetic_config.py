"""Sizes of the synthetic checkpoints and their config.json, key for key like the releases'."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["PRESETS", "Preset", "Sizes", "config_json"]

Preset = Literal["flash", "pro", "flash-base", "pro-base"]


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
_RATIOS = {"flash": (0, 0, 4, 128, 4), "pro": (128, 128, 4, 128, 4)}
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


def config_json(
    preset: Preset, sizes: Sizes, compress_ratios: tuple[int, ...] | None, dspark: bool
) -> str:
    """Return the text of a config.json; nothing is validated here.

    `compress_ratios` has one entry for each body layer; None means the preset's five.
    """
    family, _, base = preset.partition("-")
    ratios = list(_RATIOS[family] if compress_ratios is None else compress_ratios)
    values = _LIKE_RELEASES | asdict(sizes)
    values["num_hidden_layers"] = len(ratios)
    values["num_hash_layers"] = min(sizes.num_hash_layers, len(ratios))
    values["compress_ratios"] = ratios + [0] * (3 if dspark else 1)
    values["expert_dtype"] = "fp8" if base else "fp4"
    values["routed_scaling_factor"] = _ROUTE_SCALES[family]
    if dspark:
        values |= {
            "dspark_block_size": 4,
            "dspark_markov_rank": 16,
            "dspark_noise_token_id": 2,
            "dspark_target_layer_ids": [0, len(ratios) - 1],
        }
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
