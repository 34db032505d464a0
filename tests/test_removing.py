"""What is removed from the hub's cache, what stays, and what is never touched."""

import shutil
from pathlib import Path

import pytest

from localv4 import hub
from localv4.errors import InvalidInput
from localv4.hub_cache import CachedRepo, blob_of, contents_of, find_repo
from localv4.removing import plan_removal, remove
from tests.cached_models import COMMIT, FLASH, OLDER, put, share_blob
from tests.small_checkpoints import edit_config, make_small

OTHER = "some-one/model"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_small(tmp_path_factory.mktemp("made") / "model", ratios=(0, 4))


@pytest.fixture(scope="module")
def size(made) -> int:
    return sum(path.stat().st_size for path in made.iterdir())


@pytest.fixture
def cache(tmp_path) -> Path:
    return Path(tmp_path / "hub")


@pytest.fixture
def two(made, cache, tmp_path) -> CachedRepo:
    """A repo of two commits that differ in their configs."""
    changed = make_small(tmp_path / "changed", ratios=(0, 4))
    edit_config(changed, use_cache=False)
    put(cache, changed, commit=OLDER, ref="v1")
    return put(cache, made)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_all_of_a_repo_with_its_traces(made, cache, size):
    repo = put(cache, made)
    put(cache, made, OTHER)
    others = names(cache / "models--some-one--model")
    (repo.blobs / f"{'c' * 64}.incomplete").write_bytes(b"12345")
    for trace in (".no_exist/x/y", "trees/z.json"):
        (repo.folder / trace).parent.mkdir(parents=True)
        (repo.folder / trace).touch()
    lock = cache / ".locks" / repo.folder.name / f"{'c' * 64}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    removal = plan_removal(repo)
    assert (removal.is_whole, removal.commits) == (True, (COMMIT,))
    assert removal.n_bytes == size + 5 + len(COMMIT)
    remove(removal)
    assert [path.name for path in cache.iterdir()] == ["models--some-one--model"]
    assert names(cache / "models--some-one--model") == others


def test_one_commit_leaves_what_another_needs(two, made):
    for folder in (two.folder / ".no_exist" / COMMIT, two.folder / "trees"):
        folder.mkdir(parents=True)
    (two.folder / "trees" / f"{COMMIT}.json").touch()
    (two.folder / "trees" / f"{OLDER}.json").touch()
    config = blob_of(two.snapshot(COMMIT) / "config.json")
    removal = plan_removal(two, COMMIT)
    assert (removal.is_whole, removal.blobs) == (False, (config,))
    assert removal.n_bytes == (made / "config.json").stat().st_size
    remove(removal)
    left = find_repo(two.folder.parent, FLASH)
    assert left is not None
    assert (left.commits, left.refs) == ((OLDER,), {"v1": OLDER})
    assert contents_of(left.snapshot(OLDER)).is_complete
    assert not config.exists()
    assert "trees/" + OLDER + ".json" in names(two.folder)
    assert not any(COMMIT in name for name in names(two.folder))
    remove(plan_removal(left, OLDER))  # the last one takes all with it
    assert not two.folder.exists()


def test_a_part_without_any_file_in_place(cache):
    blobs = cache / "models--some-one--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'c' * 64}.incomplete").write_bytes(b"123")
    repo = find_repo(cache, OTHER)
    assert repo is not None
    removal = plan_removal(repo)
    assert removal.n_bytes == 3
    remove(removal)
    assert not repo.folder.exists()


def test_no_link_is_followed(made, cache, tmp_path, size):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"mine" * 100)
    repo = put(cache, made)
    (repo.blobs / ("e" * 64)).symlink_to(outside / "mine")
    (repo.blobs / ("f" * 64)).symlink_to(outside)
    (repo.snapshot(COMMIT) / "folder").symlink_to(outside)
    (repo.snapshot(COMMIT) / "file").symlink_to(outside / "mine")
    (repo.folder / "refs" / "up").symlink_to(outside)
    removal = plan_removal(repo)
    assert removal.n_bytes == size + len(COMMIT)
    remove(removal)
    assert not repo.folder.exists()
    assert (outside / "mine").stat().st_size == 400


def test_one_commit_with_links_outside(two, tmp_path):
    outside = tmp_path / "outside" / "blobs" / ("e" * 64)
    outside.parent.mkdir(parents=True)
    outside.write_bytes(b"mine")
    (two.snapshot(COMMIT) / "x.bin").symlink_to(outside)
    (two.snapshot(COMMIT) / "refs").symlink_to("../../refs/v1")
    remove(plan_removal(two, COMMIT))
    assert outside.read_bytes() == b"mine"
    assert (two.folder / "refs" / "v1").is_file()


@pytest.mark.parametrize("part", ["", "blobs", "snapshots", "refs"])
def test_folders_that_are_links(two, tmp_path, part):
    folder = two.folder / part if part else two.folder
    moved = tmp_path / "moved"
    folder.rename(moved)
    folder.symlink_to(moved)
    before = names(moved)
    with pytest.raises(InvalidInput, match="is a link, so that one commit can't be removed"):
        plan_removal(two, COMMIT)
    removal = plan_removal(two)
    assert part in ("snapshots", "refs") or removal.n_bytes < 1000
    remove(removal)
    assert not two.folder.is_symlink()
    assert not two.folder.exists()
    assert names(moved) == before


def test_shared_contents_go_with_their_last_link(made, cache):
    repo, other = put(cache, made), put(cache, made, OTHER)
    largest = max(repo.blobs.iterdir(), key=lambda path: path.stat().st_size)
    content = share_blob(cache, largest)
    assert share_blob(cache, other.blobs / largest.name) == content
    n_bytes = content.stat().st_size
    first = plan_removal(repo)
    remove(first)
    assert content.stat().st_size == n_bytes
    assert contents_of(other.snapshot(COMMIT)).is_complete
    last = plan_removal(other)
    assert last.n_bytes == first.n_bytes + n_bytes
    remove(last)
    assert not content.exists()


def test_not_while_it_is_downloaded(made, cache):
    repo = put(cache, made)
    with hub.lock(cache / ".locks" / repo.folder.name / "x.lock") as is_ours:
        assert is_ours
        with pytest.raises(InvalidInput, match=r"a download of .* is running"):
            plan_removal(repo)
    assert plan_removal(repo).is_whole


def test_a_link_in_place_of_a_lock_is_not_opened(made, cache, tmp_path):
    repo = put(cache, made)
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    locks = cache / ".locks" / repo.folder.name
    locks.mkdir(parents=True)
    (locks / "x.lock").symlink_to(mine)
    remove(plan_removal(repo))
    assert mine.read_bytes() == b"mine"
    assert not locks.exists()


def test_what_may_not_be_removed_is_said(made, cache, monkeypatch):
    repo = put(cache, made)

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        remove(plan_removal(repo))
