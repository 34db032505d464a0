"""The released models' config.json, built from their sizes, and their published figures."""

import json
from typing import Any

from localv4.config import ModelConfig
from localv4.synthetic_config import Preset, Sizes, config_json

_FLASH = Sizes(
    vocab_size=129280,
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
_PRO = Sizes(
    vocab_size=129280,
    hidden_size=7168,
    num_attention_heads=128,
    head_dim=512,
    q_lora_rank=1536,
    o_groups=16,
    o_lora_rank=1024,
    n_routed_experts=384,
    num_experts_per_tok=6,
    moe_intermediate_size=3072,
    num_hash_layers=3,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=1024,
)
_RATIOS = {"flash": (0, 0) + (4, 128) * 20 + (4,), "pro": (128, 128) + (4, 128) * 29 + (4,)}


def released_text(preset: Preset, dspark: bool = False) -> str:
    family = preset.partition("-")[0]
    sizes = _FLASH if family == "flash" else _PRO
    return config_json(preset, sizes, _RATIOS[family], dspark)


def released_values(preset: Preset, dspark: bool = False) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(released_text(preset, dspark))
    return values


def released_config(preset: Preset, dspark: bool = False) -> ModelConfig:
    return ModelConfig.from_json(released_text(preset, dspark), "config.json")
