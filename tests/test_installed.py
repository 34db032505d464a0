"""Which checkpoints are on this machine."""

import json
import os
from pathlib import Path

import pytest

from localv4.hub_cache import find_repo
from localv4.installed import Installed, find_installed, is_v4, kind_of
from localv4.models import builtin_folder, resolve
from tests.cached_models import COMMIT, FLASH, OLDER, put
from tests.small_checkpoints import make_small, shard_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The hub's cache; nothing of localv4's own is made."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "own"))
    return Path(tmp_path / "hub")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_small(tmp_path_factory.mktemp("made") / "model", ratios=(0, 4))


def found() -> dict[str, Installed]:
    return {model.name: model for model in find_installed().models}


def add_other(cache: Path, values: object) -> None:
    folder = cache / "models--some-one--else" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))


def test_nothing_but_the_built_in_model(cache):
    inhabitants = find_installed()
    (builtin,) = inhabitants.models
    assert (builtin.name, builtin.contents, builtin.is_complete) == ("built-in", None, False)
    assert (builtin.n_bytes, builtin.modified_s, builtin.folder) == (0, None, builtin_folder())
    assert (inhabitants.cache, inhabitants.n_others, inhabitants.n_bytes) == (cache, 0, 0)
    resolve(None)
    (builtin,) = find_installed().models
    assert builtin.is_complete
    assert builtin.n_bytes == sum(path.stat().st_size for path in builtin_folder().rglob("*"))


def test_each_commit_has_a_row_and_shared_contents_count_once(made, cache):
    repo = put(cache, made, commit=OLDER, ref="v1")
    os.utime(repo.snapshot(OLDER), (1, 1))
    put(cache, made)
    rows = found()
    assert [*rows] == ["flash", "flash@bbbbbbb", "built-in"]
    size = sum(path.stat().st_size for path in made.iterdir())
    assert (rows["flash"].n_bytes, rows["flash@bbbbbbb"].n_bytes) == (size, size)
    assert find_installed().n_bytes == size
    assert (rows["flash"].refs, rows["flash@bbbbbbb"].refs) == (("main",), ("v1",))
    assert rows["flash@bbbbbbb"].modified_s == 1
    assert (rows["flash"].kind, rows["flash"].draft) == ("FP4 instruct", "here")


def test_a_part_has_its_unfinished_files(made, cache):
    missing = shard_of(made, "layers.1.attn.wq_a.weight").name
    repo = put(cache, made, "some-one/model", without={missing}, ref=None)
    (repo.blobs / f"{'c' * 64}.incomplete").write_bytes(b"12345")
    row = found()["some-one/model"]
    assert (row.is_complete, row.partial_bytes) == (False, 5)
    assert row.contents is not None
    assert row.contents.missing == (missing,)
    assert find_installed().n_bytes == row.n_bytes + 5
    put(cache, made, "some-one/model", OLDER)  # which is used, but is not what is unfinished
    rows = found()
    assert rows["some-one/model"].commit == OLDER
    assert rows["some-one/model"].partial_bytes == 0
    assert rows["some-one/model@aaaaaaa"].partial_bytes == 5


def test_a_download_that_has_no_file_in_place_yet(cache):
    for name in ("deepseek-ai--DeepSeek-V4-Pro", "some-one--model"):
        blobs = cache / f"models--{name}" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{'c' * 40}.incomplete").write_bytes(b"12")
    rows = found()
    assert [*rows] == ["pro", "built-in"]
    assert (rows["pro"].commit, rows["pro"].partial_bytes) == (None, 2)
    assert find_installed().n_others == 1


def test_others_are_counted_only(made, cache):
    add_other(cache, {"model_type": "deepseek_v41"})
    put(cache, made)
    assert [*found()] == ["flash", "built-in"]
    assert find_installed().n_others == 1


@pytest.mark.parametrize("values", [[1], {"model_type": ["deepseek_v4"]}, {}, "x"])
def test_odd_configs_are_of_others(cache, values):
    add_other(cache, values)
    assert find_installed().n_others == 1
    repo = find_repo(cache, "some-one/else")
    assert repo is not None
    assert not is_v4(repo)


@pytest.mark.parametrize(
    ("values", "repo_id", "kind"),
    [
        (None, None, ""),
        ({"expert_dtype": "fp8"}, None, "FP8 base"),
        ({"expert_dtype": "fp4"}, f"{FLASH}-Base", "FP4 instruct"),
        ({}, f"{FLASH}-Base", "FP8 base"),
        ({}, FLASH, "FP4 instruct"),
        ({"dspark_block_size": 4}, None, "FP4 DSpark"),
    ],
)
def test_kinds(values, repo_id, kind):
    assert kind_of(values, repo_id) == kind


def test_drafts(made, cache, tmp_path):
    absent = shard_of(made, "mtp.0.norm.weight").name
    put(cache, made, without={absent})
    dspark = make_small(tmp_path / "dspark", dspark=True, ratios=(0, 4))
    put(cache, dspark, f"{FLASH}-0731")
    rows = found()
    assert (rows["flash"].draft, rows["flash"].is_complete) == ("left out", True)
    assert (rows["flash-0731"].draft, rows["flash-0731"].kind) == ("unread", "FP4 DSpark")
