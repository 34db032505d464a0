"""Files held against their checksums: damage of every sort is found, and removed alone."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from localv4 import verifying
from localv4.hub_cache import CachedRepo, blob_of, contents_of
from localv4.verifying import Damage, remove_damaged, stored_files, verify_files
from tests.cached_models import COMMIT, OLDER, put, share_blob, write_metadata
from tests.small_checkpoints import make_small, shard_of


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_small(tmp_path_factory.mktemp("made") / "model", ratios=(0, 4))


@pytest.fixture
def cache(tmp_path) -> Path:
    return Path(tmp_path / "hub")


@pytest.fixture
def repo(made, cache) -> CachedRepo:
    return put(cache, made)


@pytest.fixture
def shard(made) -> str:
    return shard_of(made, "layers.1.attn.wq_a.weight").name


def check(repo: CachedRepo, commit: str = COMMIT) -> tuple[Damage, ...]:
    return verify_files(stored_files(repo.snapshot(commit)), 2)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_a_sound_one_is_read_to_its_last_byte(repo):
    files = stored_files(repo.snapshot(COMMIT))
    assert all(file.expected == blob_of(file.path).name for file in files)
    told: list[tuple[int, int]] = []
    assert verify_files(files, 2, lambda *done: told.append(done)) == ()
    assert told[-1] == (len(files), sum(file.n_bytes for file in files))


def test_a_flipped_byte(repo, shard):
    flip(repo.snapshot(COMMIT) / shard)
    (damage,) = check(repo)
    assert (damage.file.name, damage.file.expected) == (
        shard,
        blob_of(repo.snapshot(COMMIT) / shard).name,
    )
    assert damage.found is not None
    assert damage.file.expected is not None
    assert damage.found != damage.file.expected
    assert (
        damage.reason
        == f"its checksum is {damage.found[:12]}..., not {damage.file.expected[:12]}..."
    )


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def replace_by_folder(path: Path) -> None:
    blob_of(path).unlink()
    blob_of(path).mkdir()
    (blob_of(path) / "file").touch()


def replace_by_pipe(path: Path) -> None:
    blob_of(path).unlink()
    os.mkfifo(blob_of(path))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, "its checksum is"),
        (lambda path: blob_of(path).unlink(), "its content is not there"),
        (replace_by_folder, "not a regular file"),
        (replace_by_pipe, "not a regular file"),
    ],
)
def test_every_sort_of_damage_is_found_and_removed_alone(repo, shard, harm, words):
    before = {path.name for path in repo.blobs.iterdir()}
    harm(repo.snapshot(COMMIT) / shard)
    (damage,) = check(repo)
    assert words in damage.reason
    remove_damaged(repo, [damage])
    assert contents_of(repo.snapshot(COMMIT)).missing == (shard,)
    assert not (repo.snapshot(COMMIT) / shard).is_symlink()
    assert before - {path.name for path in repo.blobs.iterdir()} == {damage.file.expected}
    assert check(repo) == ()


def test_a_file_that_cannot_be_read(repo, shard, monkeypatch):
    def refuse(*_: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verifying, "checksum", refuse)
    damages = check(repo)
    assert {damage.reason for damage in damages} == {"it cannot be read (Input/output error)"}
    assert len(damages) == len(stored_files(repo.snapshot(COMMIT)))


def test_a_plain_folder_with_the_notes_of_the_hubs_client(made, tmp_path, shard):
    folder = make_small(tmp_path / "model", ratios=(0, 4))
    assert all(file.expected is None for file in stored_files(folder))
    assert verify_files(stored_files(folder), 2) == ()
    write_metadata(folder)
    files = stored_files(folder)
    assert {file.name for file in files} == {path.name for path in made.iterdir()}
    assert all(file.expected for file in files)
    assert verify_files(files, 2) == ()
    flip(folder / shard)
    assert [damage.file.name for damage in verify_files(files, 2)] == [shard]
    notes = folder / ".cache" / "huggingface" / "download"
    (notes / f"{shard}.metadata").write_bytes(b"\xff\xfe no checksum")
    (notes / "config.json.metadata").unlink()
    unknown = {file.name for file in stored_files(folder) if file.expected is None}
    assert unknown == {shard, "config.json"}


def test_a_content_with_several_names_is_read_once(repo, cache, made):
    put(cache, made, commit=OLDER)
    files = [*stored_files(repo.snapshot(COMMIT)), *stored_files(repo.snapshot(OLDER))]
    told: list[tuple[int, int]] = []
    verify_files(files, 1, lambda *done: told.append(done))
    assert told[-1][1] == sum(path.stat().st_size for path in made.iterdir())


@pytest.mark.parametrize("is_blob", [True, False])
def test_what_lies_outside_the_cache_is_not_removed(repo, shard, tmp_path, is_blob):
    link = repo.snapshot(COMMIT) / shard
    outside = tmp_path / "blobs" / ("d" * 64)
    outside.parent.mkdir()
    outside.write_bytes(b"mine")
    harmed = blob_of(link) if is_blob else link
    harmed.unlink()
    harmed.symlink_to(outside)
    (damage,) = check(repo)
    assert remove_damaged(repo, [damage]) == 0
    assert not link.is_symlink()
    assert not harmed.is_symlink()
    assert outside.read_bytes() == b"mine"


def test_a_damaged_content_of_the_shared_store_goes_too(repo, cache, shard):
    blob = blob_of(repo.snapshot(COMMIT) / shard)
    content = share_blob(cache, blob)
    assert check(repo) == ()
    flip(content)
    damages = check(repo)
    assert [damage.file.name for damage in damages] == [shard]
    size = content.stat().st_size
    assert remove_damaged(repo, damages) == size
    assert not content.exists()
    assert not blob.is_symlink()


def test_reading_ends_at_once_when_nobody_waits(repo, monkeypatch):
    ended: list[str] = []

    def read_long(_file: object, expected: str, _n: int, progress: Callable[[int], None]) -> str:
        for _ in range(5_000):
            progress(1)
            time.sleep(0.001)
        ended.append(expected)
        return expected

    def stop(_done: int, n_read: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verifying, "checksum", read_long)
    with pytest.raises(KeyboardInterrupt):
        verify_files(stored_files(repo.snapshot(COMMIT)), 2, stop)
    assert ended == []
    assert not any(thread.name.startswith("verify") for thread in threading.enumerate())
