"""The configs of the first releases, for what can be told of them before any download.

Follows the spec's configs; of the later releases they are not known here. Knows nothing of files.
"""

from localv4.aliases import alias_of
from localv4.config import ModelConfig
from localv4.synthetic_config import FULL_WIDTH, config_json, first_ratios, n_released_layers

__all__ = ["released_config"]


def released_config(repo_id: str) -> ModelConfig | None:
    """Return what a release's config.json says; None for a repo that is not known here."""
    preset = next((name for name in FULL_WIDTH if name == alias_of(repo_id)), None)
    if preset is None:
        return None
    ratios = first_ratios(preset, n_released_layers(preset))
    text = config_json(preset, FULL_WIDTH[preset], ratios, dspark=False)
    return ModelConfig.from_json(text, f"the released config of {repo_id}")
