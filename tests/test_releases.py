"""What is known in code of the released models' configs."""

import json

import pytest

from localv4.aliases import ALIASES
from localv4.config import ModelConfig
from localv4.inventory import take_inventory
from localv4.releases import released_config
from localv4.synthetic_config import Preset
from tests.released import released_config as published_config

# (layers, hidden, heads, experts, first ratios, last ratio, published tensor bytes)
FACTS = {
    "flash": (43, 4096, 64, 256, (0, 0, 4, 128), 4, 159_609_485_896),
    "pro": (61, 7168, 128, 384, (128, 128, 4, 128), 4, 864_704_792_696),
    "flash-base": (43, 4096, 64, 256, (0, 0, 4, 128), 4, 292_555_345_480),
    "pro-base": (61, 7168, 128, 384, (128, 128, 4, 128), 4, 1_602_325_824_632),
}


@pytest.mark.parametrize("name", FACTS)
def test_a_release_is_known_with_its_sizes(name: Preset) -> None:
    config = released_config(ALIASES[name].repo_id)
    assert config is not None
    sizes = (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.n_routed_experts,
        config.compress_ratios[:4],
        config.compress_ratios[-1],
        take_inventory(config).total.nbytes,
    )
    assert sizes == FACTS[name]
    assert config.expert_dtype == ("fp8" if name.endswith("base") else "fp4")
    assert config == published_config(name)


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_every_field_is_the_published_one(name: str, shared) -> None:
    values = json.loads((shared / "spec" / "configs" / f"{name}.json").read_text())
    config = released_config(ALIASES[name].repo_id)
    assert config is not None
    # Flash's own names no format, which means the same
    published = ModelConfig.from_json(json.dumps(values | {"expert_dtype": "fp4"}), name)
    assert config == published


@pytest.mark.parametrize("name", ["flash-0731", "pro-0813"])
def test_of_later_releases_and_others_nothing_is_known(name: str) -> None:
    assert released_config(ALIASES[name].repo_id) is None
    assert released_config("some-one/model") is None
    assert released_config("") is None
