"""Which released model has a config's widths, and which layers that one has in all."""

from localv4.config import LayerKind, ModelConfig
from localv4.synthetic_config import FULL_WIDTH, Preset, first_ratios, n_released_layers

__all__ = ["released_kinds"]

_KINDS: dict[int, LayerKind] = {0: "sliding", 4: "csa", 128: "hca"}
_WIDTHS = (
    "hidden_size",
    "num_attention_heads",
    "head_dim",
    "n_routed_experts",
    "moe_intermediate_size",
    "vocab_size",
)


def released_kinds(config: ModelConfig) -> tuple[Preset | None, list[LayerKind]]:
    """Return the release of these widths, or None, and the kinds of all its layers."""
    for preset, sizes in FULL_WIDTH.items():
        same_format = (config.expert_dtype == "fp8") == preset.endswith("base")
        if same_format and all(getattr(config, w) == getattr(sizes, w) for w in _WIDTHS):
            ratios = first_ratios(preset, n_released_layers(preset))
            return preset, [_KINDS[ratio] for ratio in ratios]
    return None, []
