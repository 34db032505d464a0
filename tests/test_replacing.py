"""Partial files that killed writers left behind, and those of writers at work."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from localv4 import replacing
from localv4.replacing import remove_abandoned


def made(folder: Path, age_s: float, name: str = ".a.session.x1.partial") -> Path:
    partial = folder / name
    partial.touch()
    os.utime(partial, (0, time.time() - age_s))
    return partial


@pytest.mark.parametrize(("age_s", "is_there"), [(10, True), (3600, False)])
def test_a_partial_without_a_writer_goes_once_it_is_no_longer_new(tmp_path, age_s, is_there):
    partial = made(tmp_path, age_s)
    remove_abandoned(tmp_path)
    assert partial.exists() == is_there


def test_a_living_writer_keeps_its_partial(tmp_path):
    path = tmp_path / "a.session"
    with replacing.replacing(path) as file:
        os.write(file, b"new")
        (partial,) = tmp_path.iterdir()
        os.utime(partial, (0, 0))
        remove_abandoned(tmp_path)
        assert partial.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("age_s", "is_there"), [(3600, True), (100_000, False)])
def test_where_files_cannot_be_locked_only_a_day_tells(tmp_path, monkeypatch, age_s, is_there):
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(fcntl, "flock", refuse)
    partial = made(tmp_path, age_s)
    remove_abandoned(tmp_path)
    assert partial.exists() == is_there


def test_nothing_else_is_removed(tmp_path):
    names = ["a.session", "a.partial", ".a.session", ".partial.x"]
    others = [made(tmp_path, 1e6, name) for name in names]
    made(tmp_path, 1e6, "elsewhere")
    (tmp_path / ".link.partial").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".folder.partial").mkdir()
    remove_abandoned(tmp_path)
    assert all(other.exists() for other in [*others, tmp_path / "elsewhere"])
    assert (tmp_path / ".link.partial").exists()
    remove_abandoned(tmp_path / "none")


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(22, "Invalid argument")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing.replacing(tmp_path / "a") as file:
        os.write(file, b"new")
    assert len(calls) == 2
    assert (tmp_path / "a").read_bytes() == b"new"
