import gc
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.checkpoint import Checkpoint
from localv4.engine import load
from localv4.errors import DamagedCheckpoint, LocalV4Error, ModelNotFound, UnsupportedModel
from localv4.tensors import expected_tensors
from tests.golden_models import GoldenModel, every_golden_model
from tests.small_checkpoints import (
    edit_config,
    edit_header,
    edit_index,
    join_shard,
    make_small,
    make_sparse_flash,
    overwrite,
    shard_of,
    split_shard,
)

WQ_A = "layers.0.attn.wq_a.weight"
EXPERT = "layers.1.ffn.experts.2.w1.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture(scope="module")
def sound_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("base") / "model", "flash-base", ratios=(4,))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


@every_golden_model()
def test_golden_models_open_and_their_scales_are_finite(model: GoldenModel) -> None:
    with Checkpoint.open(model.checkpoint) as checkpoint:
        base = model.name == "tiny-base"
        assert checkpoint.expert_format == ("fp8" if base else "fp4")
        assert checkpoint.scale_dtype == ("F32" if base else "F8_E8M0")
        assert checkpoint.has_mtp
        assert (checkpoint.unread, checkpoint.unread_bytes) == ((), 0)
        for name in checkpoint.tensors:
            if name.endswith(".scale"):
                checkpoint.check_finite(name)


def test_every_tensor_of_the_contract_has_a_view(sound: Path) -> None:
    stored = {"BF16": "u2", "F32": "f4", "I64": "i8"}
    with Checkpoint.open(sound) as checkpoint:
        specs = list(expected_tensors(checkpoint.config, "fp4", "F8_E8M0", mtp=True))
        assert list(checkpoint.tensors) == [spec.name for spec in specs]
        for spec in specs:
            view = checkpoint.view(spec.name)
            assert view.shape == spec.shape
            assert view.dtype.str[1:] == stored.get(spec.dtypes[0], "u1")


def test_views_are_read_only_and_nothing_is_copied(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        view = checkpoint.view(EXPERT)
        with pytest.raises(ValueError, match="read-only"):
            view[0, 0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        assert not view.flags.owndata
        again = checkpoint.view(EXPERT)
        assert view.__array_interface__["data"][0] == again.__array_interface__["data"][0]
        # What is written into the file afterwards shows through the map.
        shard, before = shard_of(folder, EXPERT), int(view[0, 0])
        with shard.open("r+b") as file:
            file.seek(checkpoint.tensors[EXPERT].offset)
            file.write(bytes([before ^ 0xFF]))
        assert view[0, 0] == before ^ 0xFF


@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_garbage_collector_is_left_as_it_was(folder: Path, is_damaged: bool) -> None:
    if is_damaged:
        shard_of(folder, EXPERT).unlink()
    for is_enabled in (True, False):
        (gc.enable if is_enabled else gc.disable)()
        try:
            Checkpoint.open(folder).close()
        except DamagedCheckpoint:
            assert is_damaged
        found = gc.isenabled()
        gc.enable()
        assert found is is_enabled


def test_views_outlive_the_checkpoint(sound: Path) -> None:
    checkpoint = Checkpoint.open(sound)
    view = checkpoint.view(WQ_A)
    first = int(view[0, 0])
    checkpoint.close()
    checkpoint.close()
    del checkpoint
    gc.collect()
    assert view[0, 0] == first


def test_every_layout_holds_the_same_weights(sound: Path, tmp_path: Path) -> None:
    scattered = make_small(tmp_path / "scattered", layout="scattered")
    single = make_small(tmp_path / "single", layout="single")
    assert not (single / "model.safetensors.index.json").exists()
    with (
        Checkpoint.open(sound) as one,
        Checkpoint.open(scattered) as other,
        Checkpoint.open(single) as third,
    ):
        expert = [other.tensors[f"layers.1.ffn.experts.2.w1.{x}"] for x in ("weight", "scale")]
        assert expert[0].shard != expert[1].shard
        assert not other.view("layers.0.hc_attn_fn").flags.aligned
        assert {info.shard for info in third.tensors.values()} == {"model.safetensors"}
        for name in one.tensors:
            for checkpoint in (other, third):
                np.testing.assert_array_equal(one.view(name), checkpoint.view(name))


def test_shards_may_be_links_as_in_the_hubs_cache(folder: Path) -> None:
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..", "blobs", str(number)))
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.view(WQ_A).any()


def test_fewer_experts_are_fine(tmp_path: Path) -> None:
    pruned = make_small(tmp_path / "pruned", layout="scattered", ratios=(0,), n_routed_experts=5)
    with Checkpoint.open(pruned) as checkpoint:
        assert "layers.0.ffn.experts.4.w3.scale" in checkpoint.tensors
        assert checkpoint.view("layers.0.ffn.gate.tid2eid").max() == 4


@pytest.mark.parametrize("layout", ["release", "scattered", "single"])
def test_a_drafter_is_left_unread(tmp_path: Path, layout: Any) -> None:
    folder = make_small(tmp_path / "model", layout=layout, dspark=True, ratios=(0, 4))
    with Checkpoint.open(folder) as checkpoint:
        assert not checkpoint.has_mtp
        assert checkpoint.config.compress_ratios == (0, 4)
        assert "mtp.2.markov_head.weight" in checkpoint.unread
        assert all(name.startswith("mtp.") for name in checkpoint.unread)
        assert not any(name.startswith("mtp.") for name in checkpoint.tensors)
        assert checkpoint.unread_bytes is not None
        assert checkpoint.unread_bytes > 256 * 256 * 2


def test_shards_of_only_unread_tensors_may_be_absent_or_broken(tmp_path: Path) -> None:
    folder = make_small(tmp_path / "model", dspark=True, ratios=(0,))
    shard_of(folder, "mtp.0.main_norm.weight").write_bytes(b"")
    shard_of(folder, "mtp.1.attn_norm.weight").unlink()
    with Checkpoint.open(folder) as checkpoint:
        assert len(checkpoint.unread) == 10


def mtp_shards(folder: Path) -> list[Path]:
    """The shards of ``mtp.*`` in a scattered layout, those with nothing else first."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    mixed = {file for name, file in index.items() if not name.startswith("mtp.")}
    files = {file for name, file in index.items() if name.startswith("mtp.")}
    return [folder / file for file in (*sorted(files - mixed), *sorted(files & mixed))]


def test_a_download_without_its_mtp_shard_opens_without_the_block(folder: Path) -> None:
    (shard,) = mtp_shards(folder)
    with Checkpoint.open(folder) as checkpoint:
        assert (checkpoint.has_mtp, checkpoint.lacks_mtp) == (True, False)
        mtp = {name for name in checkpoint.tensors if name.startswith("mtp.")}
        sizes = sum(checkpoint.tensors[name].nbytes for name in mtp)
    shard.unlink()
    with Checkpoint.open(folder) as checkpoint:
        assert (checkpoint.has_mtp, checkpoint.lacks_mtp) == (False, True)
        assert {*checkpoint.unread} == mtp
        assert checkpoint.unread_bytes == sizes
        assert not any(name.startswith("mtp.") for name in checkpoint.tensors)
    with pytest.raises(ModelNotFound, match=r"left out of the download.*--include-draft"):
        load(folder, draft="mtp")


def split_mtp(folder: Path) -> tuple[Path, Path]:
    """Move half of the MTP block to a shard of its own; return both."""
    (shard,) = mtp_shards(folder)
    header, body = split_shard(shard.read_bytes())
    second = shard.with_name("model-mtp.safetensors")
    names = [name for name in header if name != "__metadata__"][::2]
    second.write_bytes(join_shard({name: header[name] for name in names}, body))
    edit_header(shard, lambda header: [header.pop(name) for name in names])
    edit_index(folder, lambda i: i["weight_map"].update(dict.fromkeys(names, second.name)))
    return shard, second


@pytest.mark.parametrize("absent", [0, 1])
def test_half_of_the_mtp_shards_is_none(folder: Path, absent: int) -> None:
    shards = split_mtp(folder)
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.has_mtp
    shards[absent].unlink()
    with Checkpoint.open(folder) as checkpoint:
        assert (checkpoint.has_mtp, checkpoint.lacks_mtp) == (False, True)


def test_a_shard_that_the_body_needs_too_is_missed(tmp_path: Path) -> None:
    folder = make_small(tmp_path / "scattered", layout="scattered")
    mixed = mtp_shards(folder)[-1]
    mixed.unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{mixed.name} is missing, with"):
        Checkpoint.open(folder)


def test_stored_copies_of_the_shared_embedding_are_left_unread(folder: Path) -> None:
    extra = ["mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"]

    def add(header: dict[str, Any]) -> None:
        empty = {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}
        header.update(dict.fromkeys(extra, empty))

    shard = shard_of(folder, "mtp.0.norm.weight")
    edit_header(shard, add)
    edit_index(folder, lambda index: index["weight_map"].update(dict.fromkeys(extra, shard.name)))
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.has_mtp
        assert checkpoint.unread == tuple(sorted(extra))


def test_no_mtp_block_at_all_is_fine(folder: Path) -> None:
    drop_mtp(folder, lambda name: True)
    with Checkpoint.open(folder) as checkpoint:
        assert not checkpoint.has_mtp


def drop_mtp(folder: Path, dropped: Callable[[str], bool]) -> None:
    def drop(index: dict[str, Any]) -> None:
        index["weight_map"] = {
            name: shard
            for name, shard in index["weight_map"].items()
            if not (name.startswith("mtp.") and dropped(name))
        }

    edit_index(folder, drop)


def rename(folder: Path, old: str, new: str) -> None:
    """Rename a tensor in its shard and in the index."""
    edit_header(shard_of(folder, old), lambda header: header.update({new: header.pop(old)}))
    edit_index(
        folder, lambda index: index["weight_map"].update({new: index["weight_map"].pop(old)})
    )


def truncate(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])


def point_to(folder: Path, tensor: str, shard: str) -> None:
    edit_index(folder, lambda index: index["weight_map"].update({tensor: shard}))


def reshape(folder: Path, tensor: str, shape: list[int]) -> None:
    edit_header(shard_of(folder, tensor), lambda header: header[tensor].update(shape=shape))


def retype(folder: Path, ending: str, dtype: str) -> None:
    def edit(header: dict[str, Any]) -> None:
        for name, entry in header.items():
            if name.endswith(ending):
                entry["dtype"] = dtype

    for shard in folder.glob("*.safetensors"):
        edit_header(shard, edit)


def duplicate(folder: Path) -> None:
    """Put a tensor's header entry into a second shard as well."""
    edit_header(
        shard_of(folder, "embed.weight"),
        lambda header: header.update(
            {WQ_A: {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}
        ),
    )


DAMAGED: list[tuple[str, Callable[[Path], object], str]] = [
    ("no weight_map", lambda f: edit_index(f, lambda i: i.pop("weight_map")), "no weight_map"),
    ("a list", lambda f: edit_index(f, lambda i: i.update(weight_map=[])), "no weight_map"),
    ("no name", lambda f: point_to(f, WQ_A, 7), "maps a tensor to no file name"),  # type: ignore[arg-type]
    ("traversal", lambda f: point_to(f, WQ_A, "../x.safetensors"), "own folder; don't trust"),
    ("absolute", lambda f: point_to(f, WQ_A, "/etc/x.safetensors"), "own folder"),
    ("backslash", lambda f: point_to(f, WQ_A, "..\\x.safetensors"), "own folder"),
    ("drive", lambda f: point_to(f, WQ_A, "C:x.safetensors"), "own folder"),
    ("pickle", lambda f: point_to(f, WQ_A, "pytorch_model.bin"), "no .safetensors file"),
    ("newline", lambda f: point_to(f, WQ_A, "a\n.safetensors"), "own folder"),
    ("long", lambda f: point_to(f, WQ_A, "x" * 300 + ".safetensors"), "own folder"),
    ("other", lambda f: point_to(f, WQ_A, shard_of(f, "embed.weight").name), "but it does not"),
    ("absent", lambda f: point_to(f, WQ_A, "x.safetensors"), "x.safetensors is missing, with 1 n"),
    ("unlisted", lambda f: edit_index(f, lambda i: i["weight_map"].pop(EXPERT)), "doesn't list"),
    ("shard", lambda f: shard_of(f, WQ_A).unlink(), "is missing, with 47 n"),
    ("cut", lambda f: truncate(shard_of(f, WQ_A), 100_000), "truncated, download it again"),
    ("cut by one", lambda f: truncate(shard_of(f, WQ_A), -1), "truncated"),
    ("cut header", lambda f: truncate(shard_of(f, WQ_A), 90), "claims a header"),
    ("empty", lambda f: truncate(shard_of(f, WQ_A), 0), "has 0 bytes"),
    ("twice", duplicate, "wq_a.weight' twice"),
    ("shape", lambda f: reshape(f, WQ_A, [256, 128]), r"shape \(256, 128\) where config.json"),
    ("rank", lambda f: reshape(f, WQ_A, [128 * 256]), "has shape"),
    ("dtype", lambda f: retype(f, "wq_a.weight", "I8"), "has dtype 'I8' where the rest"),
    ("mixed", lambda f: retype(f, "experts.2.w1.weight", "F8_E4M3"), "has dtype 'F8_E4M3'"),
    ("experts", lambda f: edit_config(f, n_routed_experts=4), "doesn't list layers.0.ffn.exp"),
    ("mtp part", lambda f: drop_mtp(f, lambda n: "norm" in n), "MTP block without mtp.0.attn_n"),
    ("vocabulary", lambda f: edit_config(f, vocab_size=400), "embed.weight has shape"),
    ("index", lambda f: (f / "model.safetensors.index.json").write_text("{"), "not valid JSON"),
    (
        "expert id",
        lambda f: overwrite(f, "layers.0.ffn.gate.tid2eid", 3 * 24, struct.pack("<q", 3)),
        "sends token 3 to expert 3 of 3",
    ),
    (
        "negative expert id",
        lambda f: overwrite(f, "layers.0.ffn.gate.tid2eid", 8, struct.pack("<q", -1)),
        "sends token 0 to expert -1",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED]
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(DamagedCheckpoint, match=message) as caught:
        Checkpoint.open(folder)
    assert str(folder) in str(caught.value)


UNSUPPORTED: list[tuple[str, Callable[[Path], object], str]] = [
    ("architecture", lambda f: edit_config(f, model_type="deepseek_v41"), "'deepseek_v41'"),
    ("unknown", lambda f: rename(f, "mtp.0.norm.weight", "engram.table"), "engram.table"),
    ("converted", lambda f: edit_index(f, lambda i: converted(i)), "not converted ones"),
    ("expert dtype", lambda f: retype(f, ".w1.weight", "U8"), "experts of dtype 'U8'"),
    ("scale dtype", lambda f: retype(f, ".w1.scale", "I8"), "scales of dtype 'I8'"),
    ("more layers", lambda f: edit_config(f, num_hidden_layers=2), "lists 'layers.2."),
]


def converted(index: dict[str, Any]) -> None:
    index["weight_map"] = {f"model.{name}": file for name, file in index["weight_map"].items()}


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in UNSUPPORTED], ids=[case[0] for case in UNSUPPORTED]
)
def test_other_models_are_refused(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    if message == "engram.table":  # the MTP block must go as a whole, or it is damaged
        drop_mtp(folder, lambda name: name != "mtp.0.norm.weight")
    change(folder)
    with pytest.raises(UnsupportedModel, match=message):
        Checkpoint.open(folder)


def test_nothing_to_open_is_model_not_found(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="is not a folder"):
        Checkpoint.open(tmp_path / "absent")
    with pytest.raises(ModelNotFound, match="is not a folder"):
        Checkpoint.open(folder / "config.json")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelNotFound, match="safetensors checkpoints only"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("byte", [254, 255])
def test_a_nan_scale_byte_is_refused_when_asked(folder: Path, byte: int) -> None:
    name = "layers.1.ffn.experts.2.w1.scale"
    overwrite(folder, name, 5 * 8 + 3, bytes([byte]))  # 8 scales a row
    with Checkpoint.open(folder) as checkpoint:
        if byte == 254:
            checkpoint.check_finite(name)
            return
        with pytest.raises(DamagedCheckpoint, match=f"row 5 of {name} holds NaN"):
            checkpoint.check_finite(name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_float_scale_that_is_not_finite_is_refused(
    sound_base: Path, tmp_path: Path, value: float
) -> None:
    folder = Path(shutil.copytree(sound_base, tmp_path / "model"))
    name = "layers.0.attn.wo_b.scale"
    overwrite(folder, name, 4 * 4, struct.pack("<f", value))  # 4 scales a row
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.check_finite("layers.0.attn.wo_a.scale")
        with pytest.raises(DamagedCheckpoint, match=f"row 1 of {name}"):
            checkpoint.check_finite(name)


def test_fp4_experts_with_float_scales_are_refused(sound_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound_base, tmp_path / "model"))
    retype(folder, ".w1.weight", "I8")
    with pytest.raises(UnsupportedModel, match="'I8' with scales of dtype 'F32'"):
        Checkpoint.open(folder)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_file_with_flipped_header_bytes_opens_or_is_refused(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    for file in sound.iterdir():
        (folder / file.name).symlink_to(file)
    victim = folder / data.draw(
        st.sampled_from(
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00001-of-00006.safetensors",
                "model-00003-of-00006.safetensors",
            ]
        )
    )
    content = bytearray(victim.read_bytes())
    end = len(content) if victim.suffix == ".json" else 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    victim.unlink()
    victim.write_bytes(content)
    try:
        Checkpoint.open(folder).close()
    except LocalV4Error as error:
        assert "\n" not in str(error)  # noqa: PT017 - some flips do no harm


@pytest.mark.slow
def test_a_hundred_and_sixty_gigabytes_open_quickly(tmp_path: Path) -> None:
    make_sparse_flash(tmp_path)
    start = perf_counter()
    with Checkpoint.open(tmp_path) as checkpoint:
        # One to two seconds; the margin is for a busy machine.
        assert perf_counter() - start < 10
        assert len(checkpoint.tensors) == 69_187
        assert checkpoint.view("mtp.0.ffn.experts.255.w3.scale")[2047, 127] == 0
