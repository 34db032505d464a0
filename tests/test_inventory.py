from collections.abc import Callable
from pathlib import Path

import pytest

from localv4.checkpoint import Checkpoint
from localv4.inventory import Part, kv_bytes_per_token, take_inventory
from localv4.kv_sizes import entry_bytes
from localv4.synthetic_config import Preset
from tests.released import released_config
from tests.small_checkpoints import make_small


@pytest.mark.parametrize(
    ("preset", "total", "body", "kv_bytes"),
    [
        (
            "flash",
            Part("total", 69_187, 159_609_485_896),
            Part("body", 67_612, 156_015_698_140),
            3514.25,
        ),
        (
            "pro",
            Part("total", 145_116, 864_704_792_696),
            Part("body", 142_773, 850_748_205_004),
            5031.4375,
        ),
    ],
)
def test_released_models_from_their_config_alone(
    preset: Preset, total: Part, body: Part, kv_bytes: float
) -> None:
    inventory = take_inventory(released_config(preset))
    assert (inventory.total, inventory.body) == (total, body)
    assert inventory.has_mtp
    assert (inventory.n_unread, inventory.unread_bytes) == (0, 0)
    assert inventory.kv_bytes_per_token == kv_bytes
    assert sum(part.nbytes for part in inventory.parts) == total.nbytes


def test_flash_by_part() -> None:
    inventory = take_inventory(released_config("flash"))
    parts = {part.name: part for part in inventory.parts}
    assert list(parts) == ["embedding", "attention", "ffn", "routed experts", "head", "mtp"]
    assert parts["embedding"] == Part("embedding", 1, 129280 * 4096 * 2)
    assert parts["routed experts"] == Part("routed experts", 11_008 * 6, 11_008 * 13_369_344)
    assert inventory.expert_bytes == 13_369_344
    assert inventory.layer_kinds.count("csa") == 21
    assert inventory.layer_kinds.count("hca") == 20
    assert (inventory.expert_format, inventory.scale_dtype) == ("fp4", "F8_E8M0")


def test_base_is_counted_with_float_scales() -> None:
    inventory = take_inventory(released_config("flash-base"))
    assert (inventory.expert_format, inventory.scale_dtype) == ("fp8", "F32")
    assert inventory.total.nbytes == 292_555_345_480


def test_a_drafter_is_not_counted() -> None:
    inventory = take_inventory(released_config("flash", dspark=True))
    assert not inventory.has_mtp
    assert inventory.total.n_tensors == inventory.body.n_tensors == 67_612
    assert (inventory.n_unread, inventory.unread_bytes) == (None, None)


def test_kv_sizes() -> None:
    config = released_config("flash")
    assert entry_bytes(config, trained=True) == 448 + 128 + 8
    assert kv_bytes_per_token(config) == 21 * (584 + 68) / 4 + 20 * 584 / 128
    assert take_inventory(config).window_bytes == 43 * 128 * 584


@pytest.mark.parametrize("preset", ["flash", "pro-base"])
def test_a_checkpoint_and_its_config_give_the_same_figures(tmp_path: Path, preset: Preset) -> None:
    folder = make_small(tmp_path / "model", preset)
    with Checkpoint.open(folder) as checkpoint:
        inventory = take_inventory(checkpoint)
        assert inventory == take_inventory(checkpoint.config)
        tensors = checkpoint.tensors.values()
    of_name: dict[str, Callable[[str], bool]] = {
        "total": lambda _: True,
        "embedding": lambda name: name == "embed.weight",
        "head": lambda name: name.startswith(("head", "norm", "hc_head")),
        "routed experts": lambda name: name.startswith("layers.") and ".ffn.experts." in name,
        "mtp": lambda name: name.startswith("mtp."),
    }
    for part in (inventory.total, *inventory.parts):
        if part.name in of_name:
            held = [tensor.nbytes for tensor in tensors if of_name[part.name](tensor.name)]
            assert (part.n_tensors, part.nbytes) == (len(held), sum(held)), part.name
    assert sum(part.nbytes for part in inventory.parts) == inventory.total.nbytes


def test_an_open_drafter_checkpoint_says_what_is_left_unread(tmp_path: Path) -> None:
    folder = make_small(tmp_path / "model", dspark=True, ratios=(0,))
    with Checkpoint.open(folder) as checkpoint:
        inventory = take_inventory(checkpoint)
    assert inventory.n_unread == 10
    assert inventory.unread_bytes == 2 * (256 * 256 + 256 + 384 * 16 + 256) + 3 * (256 * 2 + 8 * 4)
    assert inventory.total.nbytes == inventory.body.nbytes
