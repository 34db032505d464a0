import dataclasses
import functools

import pytest

from localv4.synthetic_config import Preset
from localv4.tensors import TensorSpec, block_prefix, expected_tensors, expert_tensors
from tests.released import released_config


@functools.cache
def contract(preset: Preset, mtp: bool = True) -> dict[str, TensorSpec]:
    base = preset.endswith("base")
    specs = list(
        expected_tensors(
            released_config(preset), "fp8" if base else "fp4", "F32" if base else "F8_E8M0", mtp
        )
    )
    by_name = {spec.name: spec for spec in specs}
    assert len(by_name) == len(specs)
    return by_name


# Flash and Pro agree with published dumps; the -Base sums are computed (spec, revisions).
@pytest.mark.parametrize(
    ("preset", "mtp", "n_tensors", "nbytes"),
    [
        ("flash", True, 69_187, 159_609_485_896),
        ("flash", False, 67_612, 156_015_698_140),
        ("pro", True, 145_116, 864_704_792_696),
        ("pro", False, 142_773, 850_748_205_004),
        ("flash-base", True, 69_187, 292_555_345_480),
        ("pro-base", True, 145_116, 1_602_325_824_632),
    ],
)
def test_sums_of_the_released_models(
    preset: Preset, mtp: bool, n_tensors: int, nbytes: int
) -> None:
    specs = contract(preset, mtp)
    assert len(specs) == n_tensors
    assert sum(spec.nbytes for spec in specs.values()) == nbytes


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("layers.0.attn.wo_a.weight", "F8_E4M3", (16384, 4096)),
        ("layers.0.attn.wo_a.scale", "F8_E8M0", (128, 32)),
        ("layers.2.attn.compressor.ape", "F32", (4, 1024)),
        ("layers.3.attn.compressor.ape", "F32", (128, 512)),
        ("layers.3.attn.compressor.wkv.weight", "BF16", (512, 7168)),
        ("layers.2.attn.indexer.compressor.wgate.weight", "BF16", (256, 7168)),
        ("layers.2.attn.indexer.wq_b.scale", "F8_E8M0", (64, 12)),
        ("layers.0.ffn.gate.tid2eid", "I64", (129280, 6)),
        ("layers.3.ffn.gate.bias", "F32", (384,)),
        ("layers.9.ffn.experts.383.w1.weight", "I8", (3072, 3584)),
        ("layers.9.ffn.experts.383.w2.scale", "F8_E8M0", (7168, 96)),
        ("layers.9.hc_ffn_fn", "F32", (24, 28672)),
        ("mtp.0.h_proj.scale", "F8_E8M0", (56, 56)),
        ("mtp.0.hc_head_scale", "F32", (1,)),
    ],
)
def test_shapes_of_pro(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    assert contract("pro")[name] == TensorSpec(name, shape, (dtype,))


def test_what_a_layer_does_not_have() -> None:
    names = contract("flash").keys()
    assert "layers.0.ffn.gate.bias" not in names
    assert "layers.3.ffn.gate.tid2eid" not in names
    assert "layers.0.attn.compressor.ape" not in names
    assert "layers.3.attn.indexer.wq_b.weight" not in names
    assert "mtp.0.attn.compressor.ape" not in names
    assert "mtp.0.ffn.gate.tid2eid" not in names
    assert not any(name.startswith("mtp.") for name in contract("flash", mtp=False))


def test_base_experts_have_blocks_with_float_scales() -> None:
    specs = contract("flash-base")
    assert specs["layers.5.ffn.experts.7.w2.weight"].shape == (4096, 2048)
    assert specs["layers.5.ffn.experts.7.w2.scale"] == TensorSpec(
        "layers.5.ffn.experts.7.w2.scale", (32, 16), ("F32",)
    )


def test_partial_blocks_have_a_scale_of_their_own() -> None:
    config = dataclasses.replace(released_config("flash"), head_dim=192)
    specs = {spec.name: spec for spec in expected_tensors(config, "fp4", "F8_E8M0", False)}
    assert specs["layers.0.attn.wkv.scale"].shape == (2, 32)


def test_one_expert_has_the_published_bytes() -> None:
    expert = list(expert_tensors(released_config("flash"), 3, 9, "fp4", "F8_E8M0"))
    assert sum(spec.nbytes for spec in expert) == 13_369_344
    assert {spec.name for spec in expert} == {
        f"layers.3.ffn.experts.9.{matrix}.{part}"
        for matrix in ("w1", "w2", "w3")
        for part in ("weight", "scale")
    }


def test_the_layer_after_the_body_is_the_mtp_block() -> None:
    config = released_config("flash")
    assert [block_prefix(config, layer) for layer in (0, 42, 43)] == [
        "layers.0.",
        "layers.42.",
        "mtp.0.",
    ]
