import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.config import ModelConfig, RopeScaling
from localv4.errors import DamagedCheckpoint, LocalV4Error, ModelNotFound, UnsupportedModel
from tests.released import released_config, released_text, released_values

NUMBERS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "qk_rope_head_dim",
    "q_lora_rank",
    "o_groups",
    "o_lora_rank",
    "sliding_window",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "routed_scaling_factor",
    "hc_mult",
    "hc_sinkhorn_iters",
    "hc_eps",
    "rms_norm_eps",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "rope_theta",
    "compress_rope_theta",
    "max_position_embeddings",
)


def parse(values: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_json(json.dumps(values), "config.json")


def flash_with(**changes: Any) -> dict[str, Any]:
    return released_values("flash") | changes


def flash_without(key: str) -> dict[str, Any]:
    values = released_values("flash")
    del values[key]
    return values


def test_flash_reads_as_released() -> None:
    config = released_config("flash")
    assert (config.hidden_size, config.num_hidden_layers, config.n_routed_experts) == (
        4096,
        43,
        256,
    )
    assert config.rope_scaling == RopeScaling(16.0, 65536, 32.0, 1.0)
    assert len(config.compress_ratios) == 43
    assert not config.is_dspark
    assert isinstance(config.rope_theta, float)


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_the_released_files_say_the_same(shared: Path, name: str) -> None:
    released = json.loads((shared / "spec/configs" / f"{name}.json").read_text())
    ours = released_values(name)  # type: ignore[arg-type]
    # The first Flash has no expert_dtype; transformers_version says nothing about the model.
    assert ours | {"transformers_version": released["transformers_version"]} == released | {
        "expert_dtype": "fp4"
    }


def test_layer_kinds_and_hash_layers() -> None:
    config = released_config("flash")
    assert [config.layer_kind(n) for n in (0, 2, 3, 42, 43)] == [
        "sliding",
        "csa",
        "hca",
        "csa",
        "sliding",
    ]
    assert [config.is_hash_layer(n) for n in (0, 2, 3, 43)] == [True, True, False, False]


def test_a_longer_list_of_ratios_is_cut_and_marks_a_drafter() -> None:
    values = released_values("flash", dspark=True)
    assert len(values["compress_ratios"]) == 46
    config = parse(values)
    assert config.is_dspark
    assert config.compress_ratios == released_config("flash").compress_ratios


@pytest.mark.parametrize(
    "key", ["expert_dtype", "quantization_config", "attention_bias", "n_shared_experts"]
)
def test_keys_that_early_releases_lack_may_be_absent(key: str) -> None:
    assert parse(flash_without(key)).hidden_size == 4096


def test_rope_scaling_null_means_no_yarn_but_missing_is_damage() -> None:
    assert parse(flash_with(rope_scaling=None)).rope_scaling is None
    with pytest.raises(DamagedCheckpoint, match="'rope_scaling' is missing"):
        parse(flash_without("rope_scaling"))


@pytest.mark.parametrize("key", [*NUMBERS, "compress_ratios", "model_type", "bos_token_id"])
def test_a_missing_key_is_named_with_its_file(key: str) -> None:
    with pytest.raises(DamagedCheckpoint, match=rf"^config\.json: the key '{key}' is missing"):
        parse(flash_without(key))


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [True, None, "8", -1, 0, 10**30, [4], {}, 1e300])
def test_a_number_out_of_type_or_range_is_refused(key: str, value: object) -> None:
    with pytest.raises(DamagedCheckpoint, match=key):
        parse(flash_with(**{key: value}))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers"])
def test_a_float_is_no_integer(key: str) -> None:
    with pytest.raises(DamagedCheckpoint, match=f"{key} is 256.0"):
        parse(flash_with(**{key: 256.0}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"o_groups": 7}, "not a multiple of o_groups 7"),
        ({"head_dim": 64, "qk_rope_head_dim": 128}, "qk_rope_head_dim 128 is larger than head_dim"),
        ({"index_head_dim": 32}, "qk_rope_head_dim 64 is larger than index_head_dim 32"),
        ({"num_experts_per_tok": 257}, "num_experts_per_tok 257 is larger"),
        ({"num_hash_layers": 44}, "num_hash_layers 44 is larger"),
        ({"eos_token_id": 129280}, "eos_token_id 129280 lies outside"),
        ({"compress_ratios": [0, 4]}, "2 entries for 43 layers"),
        ({"compress_ratios": [0, True]}, "list of integers"),
        ({"rope_scaling": {"type": "yarn"}}, "'beta_fast' is missing"),
        ({"rope_scaling": []}, "where an object is needed"),
        ({"swiglu_limit": -1}, "swiglu_limit is -1"),
    ],
)
def test_contradictions_are_damage(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DamagedCheckpoint, match=message):
        parse(flash_with(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deepseek_v41"}, "'deepseek_v41'; localv4 runs model_type 'deepseek_v4'"),
        ({"model_type": "llama"}, "'llama'"),
        ({"hidden_act": "gelu"}, "'gelu'; localv4 runs hidden_act 'silu'"),
        ({"scoring_func": "softmax"}, "'softmax'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"attention_bias": 0}, "attention_bias 0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"num_key_value_heads": 8}, "num_key_value_heads 8"),
        ({"n_shared_experts": 2}, "n_shared_experts 2"),
        ({"norm_topk_prob": False}, "norm_topk_prob False"),
        ({"n_group": 8}, "n_group 8"),
        ({"expert_dtype": "int4"}, "'int4'; localv4 runs expert_dtype 'fp4' or 'fp8'"),
        ({"expert_dtype": ["fp4"]}, "expert_dtype"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
        ({"quantization_config": {"weight_block_size": [32, 32]}}, r"\[32, 32\]"),
        ({"rope_scaling": {"type": "linear"}}, "'linear'"),
        ({"compress_ratios": [8] * 44}, r"\[8\]; localv4 runs ratios 0, 4 and 128"),
        ({"hidden_size": 4160}, "hidden_size 4160; localv4 needs a multiple of 128"),
        ({"q_lora_rank": 1000}, "q_lora_rank 1000"),
        ({"moe_intermediate_size": 2000}, "moe_intermediate_size 2000"),
        ({"o_lora_rank": 1000}, "o_groups x o_lora_rank 8000; localv4 needs a multiple of 128"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim 63; localv4 needs an even number"),
        ({"head_dim": 500}, "436; localv4 needs a positive multiple of 64"),
        ({"head_dim": 64}, "0; localv4 needs a positive multiple of 64"),
        ({"index_head_dim": 96}, "index_head_dim 96; localv4 needs a power of two"),
    ],
)
def test_other_models_are_unsupported_with_what_was_found(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        parse(flash_with(**changes))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "null",
        "{",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 2}',
        '{"a": ' + "9" * 5000 + "}",
        "[" * 200_000,
        '{"a":' * 100_000,
        "\ufeff{}",
    ],
    ids=range(12),
)
def test_hostile_json_is_damage(text: str) -> None:
    with pytest.raises(DamagedCheckpoint, match=r"^config\.json"):
        ModelConfig.from_json(text, "config.json")


def test_nan_in_a_number_is_damage() -> None:
    text = released_text("flash").replace('"rope_theta": 10000', '"rope_theta": NaN')
    with pytest.raises(DamagedCheckpoint, match="NaN is not a JSON number"):
        ModelConfig.from_json(text, "config.json")


def test_hostile_files_are_damage(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(DamagedCheckpoint, match="not UTF-8"):
        ModelConfig.from_folder(tmp_path)
    with file.open("wb") as sparse:
        sparse.truncate(100_000_000)
    with pytest.raises(DamagedCheckpoint, match="larger than"):
        ModelConfig.from_folder(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(DamagedCheckpoint, match="not a regular file"):
        ModelConfig.from_folder(tmp_path)


def test_a_missing_file_is_model_not_found(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
            ModelConfig.from_folder(folder)
    (tmp_path / "config.json").symlink_to("nowhere")
    with pytest.raises(ModelNotFound):
        ModelConfig.from_folder(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(released_values("pro", dspark=True))), JSON_VALUES)
def test_any_value_of_any_key_is_accepted_or_refused_by_name(key: str, value: object) -> None:
    try:
        config = parse(released_values("pro", dspark=True) | {key: value})
    except LocalV4Error as error:
        assert "config.json" in str(error)  # noqa: PT017 - most values are refused, some are fine
    else:
        assert isinstance(config, ModelConfig)
