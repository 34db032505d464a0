"""Measuring a disk, and what is kept of it."""

import dataclasses
import datetime
import errno
import json
import logging
import os
from types import SimpleNamespace
from typing import cast

import pytest

from localv4.checkpoint import Checkpoint
from localv4.disk import (
    DiskProfile,
    DiskTry,
    best_try,
    keep_disk_in_use,
    load_disk_profile,
    measure_disk,
    save_disk_profile,
)
from localv4.errors import DamagedCheckpoint
from localv4.reads import Readers
from tests.small_checkpoints import make_small, shard_of

PROFILE = DiskProfile(True, 2, 2.5e9, datetime.date(2026, 1, 31))


@pytest.fixture
def checkpoint(tmp_path):
    with Checkpoint.open(make_small(tmp_path / "small")) as opened:
        yield opened


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(folder))
    return folder


def test_every_way_is_tried(checkpoint):
    tries = measure_disk(checkpoint, seconds=0.01)
    ways = [(tried.direct, tried.readers) for tried in tries]
    assert len(set(ways)) == len(ways) >= 3
    assert (False, 4) in ways
    assert all(tried.bytes_per_s > 0 for tried in tries)


def test_scattered_experts(tmp_path):
    folder = make_small(tmp_path / "scattered", layout="scattered")
    with Checkpoint.open(folder) as checkpoint:
        assert measure_disk(checkpoint, seconds=0.01)


def test_a_shard_cut_short_while_it_is_read(checkpoint):
    os.truncate(shard_of(checkpoint.path, "layers.1.ffn.experts.0.w1.weight"), 4096)
    with pytest.raises(DamagedCheckpoint, match="cut short"):
        measure_disk(checkpoint, seconds=0.05)


@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        ({(True, 1): 2.0, (True, 2): 2.02, (True, 4): 1.9}, (True, 4)),
        ({(True, 1): 2.0, (True, 2): 2.2, (True, 4): 1.9}, (True, 2)),
        ({(True, 1): 2.0, (False, 2): 2.1}, (True, 1)),
        ({(True, 1): 2.0, (False, 2): 2.1, (False, 4): 2.5}, (False, 4)),
        ({(False, 1): 1.3, (False, 2): 1.2}, (False, 1)),
    ],
)
def test_costlier_ways_must_pay(speeds, best):
    profile = best_try([DiskTry(direct, n, speed) for (direct, n), speed in speeds.items()])
    assert (profile.direct, profile.readers) == best
    assert profile.bytes_per_s == speeds[best]


def test_a_profile_is_kept_for_the_device(cache, tmp_path):
    shard = tmp_path / "shard"
    shard.touch()
    assert load_disk_profile(shard) is None
    save_disk_profile(PROFILE, shard)
    assert load_disk_profile(shard) == PROFILE
    (file,) = cache.iterdir()
    device = shard.stat().st_dev
    assert file.name == f"disk-{os.major(device)}-{os.minor(device)}.json"
    assert load_disk_profile(tmp_path / "nothing") is None
    save_disk_profile(PROFILE, tmp_path / "nothing")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"direct": 1, "readers": 2, "bytes_per_s": 1e9, "measured": "2026-01-31"}',
        '{"direct": true, "readers": 0, "bytes_per_s": 1e9, "measured": "2026-01-31"}',
        '{"direct": true, "readers": 2, "bytes_per_s": -1, "measured": "2026-01-31"}',
        '{"direct": true, "readers": 2, "bytes_per_s": "9", "measured": "2026-01-31"}',
        '{"direct": true, "readers": 2, "bytes_per_s": 1e9, "measured": "last week"}',
        '{"direct": true, "readers": 2, "bytes_per_s": 1e999, "measured": "2026-01-31"}',
        '{"direct": true, "readers": 2, "bytes_per_s": 1, "measured": "2026-01-31", "in_use": 0}',
    ],
)
def test_a_damaged_profile_is_ignored_with_a_warning(cache, tmp_path, caplog, text):
    shard = tmp_path / "shard"
    shard.touch()
    save_disk_profile(PROFILE, shard)
    (file,) = cache.iterdir()
    file.write_text(text)
    with caplog.at_level(logging.WARNING, "localv4"):
        assert load_disk_profile(shard) is None
    assert "is damaged and not used" in caplog.text


def readers(direct: bool = True) -> Readers:
    """What is asked of readers."""
    return cast(Readers, SimpleNamespace(files=SimpleNamespace(direct=direct), n_threads=3))


def test_what_a_disk_gives_in_use_is_kept(cache, tmp_path):
    shard = tmp_path / "shard"
    shard.touch()
    keep_disk_in_use(readers(), 10**9, 1.0, shard)  # too little to tell
    keep_disk_in_use(readers(direct=False), 10**11, 50.0, shard)
    assert load_disk_profile(shard) is None
    keep_disk_in_use(readers(), 10**11, 50.0, shard)
    found = load_disk_profile(shard)
    assert found is not None
    assert (found.direct, found.readers, found.bytes_per_s, found.lasting) == (True, 3, 2e9, 2e9)
    save_disk_profile(PROFILE, shard)
    keep_disk_in_use(readers(), 10**11, 40.0, shard)
    assert load_disk_profile(shard) == dataclasses.replace(PROFILE, in_use=2.5e9)
    keep_disk_in_use(readers(), 10**10, 10.0, shard)
    found = load_disk_profile(shard)
    assert found == dataclasses.replace(PROFILE, in_use=1e9)
    assert (PROFILE.lasting, found.lasting) == (PROFILE.bytes_per_s, 1e9)


def test_a_full_disk_keeps_no_hint(cache, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shard = tmp_path / "shard"
    shard.touch()
    monkeypatch.setattr("localv4.disk.save_disk_profile", refuse)
    keep_disk_in_use(readers(), 10**11, 50.0, shard)
    assert load_disk_profile(shard) is None


def test_more_than_is_known_is_ignored(cache, tmp_path):
    shard = tmp_path / "shard"
    shard.touch()
    save_disk_profile(PROFILE, shard)
    (file,) = cache.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"later": 1}))
    assert load_disk_profile(shard) == PROFILE
