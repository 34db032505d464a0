"""What one token makes of a model, for the speed model: bytes by format, from names and sizes.

Knows nothing of files or of rates.
"""

from localv4.inventory import Inventory
from localv4.speed import Work
from localv4.tensors import expected_tensors

__all__ = ["token_work"]

_HEAD = ("head.weight", "hc_head_fn")


def token_work(inventory: Inventory) -> Work:
    """Return what a token makes of a model."""
    config, formats = inventory.config, (inventory.expert_format, inventory.scale_dtype)
    sizes = dict.fromkeys(("fp8", "bf16", "beside", "head"), 0)
    for spec in expected_tensors(config, *formats, mtp=False, routed=False):
        part = _part_of(spec.name, spec.dtypes[0])
        if part is not None:
            sizes[part] += spec.nbytes
    expert_is_fp8 = inventory.expert_format == "fp8"
    expert_products = 3 * config.hidden_size * config.moe_intermediate_size
    routed = config.num_hidden_layers * config.num_experts_per_tok * expert_products
    return Work(
        layers=config.num_hidden_layers,
        hash_layers=config.num_hash_layers,
        experts=config.n_routed_experts,
        experts_per_token=config.num_experts_per_tok,
        expert_bytes=inventory.expert_bytes,
        expert_is_fp8=expert_is_fp8,
        dense_fp8_bytes=sizes["fp8"],
        dense_bf16_bytes=sizes["bf16"],
        beside_bytes=sizes["beside"],
        head_bytes=sizes["head"],
        n_products=routed + sizes["fp8"] + sizes["beside"] + sizes["bf16"] // 2,
    )


def _part_of(name: str, dtype: str) -> str | None:
    """Return what a tensor counts as; None for what no token passes through as a whole."""
    if not name.startswith("layers."):
        return "head" if name in _HEAD else None
    module = name.split(".", 2)[2]
    if dtype == "I64":
        return None
    if module.startswith("ffn.shared_experts.w2."):
        return "beside"  # w1 and w3 are multiplied along with the gate
    is_scale = module.endswith(".scale")
    return "fp8" if dtype == "F8_E4M3" or is_scale else "bf16"
