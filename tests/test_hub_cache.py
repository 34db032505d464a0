"""What the hub's cache holds: sound, partial, odd and hostile layouts."""

import os
from pathlib import Path

import pytest

from localv4.hub_cache import (
    blob_of,
    cached_repos,
    contents_of,
    files_below,
    find_repo,
    missing_files,
    repo_folder,
    shared_content,
    size_on_disk,
)
from tests.cached_models import COMMIT, FLASH, OLDER, put, share_blob
from tests.small_checkpoints import make_small, shard_of

BODY = "layers.1.attn.wq_a.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_small(tmp_path_factory.mktemp("made") / "model")


def test_a_repo_is_found_with_its_refs_and_commits(made, tmp_path):
    repo = put(tmp_path, made, ref="refs/pr/1")
    (repo.folder / "refs" / "main").write_text(f"{COMMIT}\n")
    repo = put(tmp_path, made, commit=OLDER, ref=None)
    assert (repo.repo_id, repo.folder) == (FLASH, repo_folder(tmp_path, FLASH))
    assert repo.refs == {"main": COMMIT, "refs/pr/1": COMMIT}
    assert {*repo.commits} == {COMMIT, OLDER}
    assert cached_repos(tmp_path) == (repo,)
    assert contents_of(repo.snapshot(COMMIT)).is_complete


def test_main_is_chosen_if_it_is_complete_else_the_newest_that_is(made, tmp_path):
    shard = shard_of(made, BODY).name
    repo = put(tmp_path, made, commit=OLDER, ref=None)
    os.utime(repo.snapshot(OLDER), (1, 1))
    repo = put(tmp_path, made, without={shard})
    assert repo.best_commit() == OLDER
    assert missing_files(repo.snapshot(COMMIT)) == (shard,)
    (repo.snapshot(COMMIT) / shard).symlink_to(made / shard)
    assert repo.best_commit() == COMMIT
    for commit in (COMMIT, OLDER):
        (repo.snapshot(commit) / shard).unlink()
    assert repo.best_commit() == COMMIT
    assert find_repo(tmp_path, "nobody/nothing") is None


@pytest.mark.parametrize(
    ("revision", "commit"),
    [("main", COMMIT), ("aaaaaaa", COMMIT), ("A" * 40, COMMIT), ("aaaaaa", None), ("v1", None)],
)
def test_a_revision_is_a_ref_or_the_beginning_of_a_commit(made, tmp_path, revision, commit):
    assert put(tmp_path, made).find_commit(revision) == commit


def test_a_beginning_of_two_commits_is_none(made, tmp_path):
    put(tmp_path, made)
    repo = put(tmp_path, made, commit=f"{'a' * 39}b")
    assert repo.find_commit("aaaaaaaa") is None


def test_what_is_missing_is_told_in_shards(made, tmp_path):
    shards = contents_of(made).n_shards
    assert contents_of(made).share == "complete"
    repo = put(tmp_path, made, without={shard_of(made, BODY).name})
    contents = contents_of(repo.snapshot(COMMIT))
    assert (contents.share, contents.draft) == (f"{shards - 1} of {shards} shards", "here")
    (repo.snapshot(COMMIT) / INDEX).unlink()
    assert contents_of(repo.snapshot(COMMIT)).share == f"no {INDEX}"
    (repo.snapshot(COMMIT) / "config.json").unlink()
    assert contents_of(repo.snapshot(COMMIT)).missing == ("config.json",)


def test_the_draft_may_be_absent(made, tmp_path):
    repo = put(tmp_path, made, without={shard_of(made, "mtp.0.norm.weight").name})
    contents = contents_of(repo.snapshot(COMMIT))
    assert (contents.is_complete, contents.draft) == (True, "absent")


def test_one_file_is_enough_and_a_broken_index_is_not(tmp_path):
    single = make_small(tmp_path / "single", layout="single")
    assert contents_of(single).is_complete
    (single / "model.safetensors").write_bytes(b"not a shard")
    assert contents_of(single).is_complete  # no file's content is looked at
    (single / INDEX).write_text('{"weight_map": {"x": "../../y.safetensors"}}')
    assert contents_of(single).missing == (INDEX,)


def test_a_folder_or_a_dangling_link_is_no_shard(made, tmp_path):
    name = shard_of(made, BODY).name
    repo = put(tmp_path, made)
    blob_of(repo.snapshot(COMMIT) / name).unlink()
    assert missing_files(repo.snapshot(COMMIT)) == (name,)
    blob_of(repo.snapshot(COMMIT) / name).mkdir()
    assert missing_files(repo.snapshot(COMMIT)) == (name,)


def test_odd_layouts_are_read_without_harm(made, tmp_path):
    repo = put(tmp_path, made)
    for junk in ("refs/long", "refs/short", "refs/latin"):
        (repo.folder / junk).write_bytes(
            {"g": b"x" * 1000, "t": b"123"}.get(junk[-1], b"\xe9" * 40)
        )
    (repo.folder / "snapshots" / "not-a-commit").mkdir()
    (repo.folder / "snapshots" / ("c" * 40)).write_text("a file")
    (tmp_path / "models--file").write_text("no folder")
    (tmp_path / "models--a\x1b[2J--b").mkdir()
    (tmp_path / "datasets--a--b").mkdir()
    found = {repo.repo_id: repo for repo in cached_repos(tmp_path)}
    assert found[FLASH].commits == (COMMIT,)
    assert found[FLASH].refs == {"main": COMMIT}
    assert found["a\x1b[2J/b"].best_commit() is None
    assert "datasets--a/b" not in found
    assert find_repo(tmp_path, "nul/\0") is None
    assert cached_repos(tmp_path / "nowhere") == ()


def test_a_content_counts_once_and_links_to_folders_are_not_followed(made, tmp_path):
    repo = put(tmp_path, made)
    files = [*files_below(repo.snapshot(COMMIT))]
    expected = sum(path.stat().st_size for path in made.iterdir())
    assert size_on_disk([*files, *files_below(repo.folder)]) == expected + 40
    (repo.snapshot(COMMIT) / "up").symlink_to(tmp_path)
    assert {*files_below(repo.snapshot(COMMIT))} - {*files} == {repo.snapshot(COMMIT) / "up"}
    assert size_on_disk([tmp_path / "nothing"]) == 0


def test_unfinished_files_are_counted_apart(made, tmp_path):
    repo = put(tmp_path, made)
    assert repo.partial_bytes() == 0
    (repo.blobs / f"{'c' * 64}.incomplete").write_bytes(b"123")
    assert repo.partial_bytes() == 3


def test_a_shared_content_is_known_by_its_place_alone(made, tmp_path):
    repo = put(tmp_path, made)
    blob, other, third = sorted(repo.blobs.iterdir())[:3]
    content = share_blob(tmp_path, blob)
    assert shared_content(blob) == content
    assert contents_of(repo.snapshot(COMMIT)).is_complete
    assert shared_content(other) is None
    other.unlink()
    other.symlink_to(tmp_path / "elsewhere")
    assert shared_content(other) is None
    third.unlink()
    third.symlink_to(f"../../blobs/00/{'1' * 64}")  # not in the folder of its first digits
    assert shared_content(third) is None
