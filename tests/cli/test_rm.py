"""What localv4 rm asks, removes, and refuses."""

import json
import shutil
from pathlib import Path

import pytest

from localv4.hub_cache import CachedRepo
from localv4.models import builtin_folder, resolve
from localv4.sizes import format_bytes
from tests.cached_models import COMMIT, FLASH, OLDER, put


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "own"))
    return Path(tmp_path / "hub")


@pytest.fixture
def repo(checkpoint, cache) -> CachedRepo:
    return put(cache, checkpoint)


@pytest.fixture
def size(checkpoint) -> str:
    return format_bytes(sum(path.stat().st_size for path in checkpoint.iterdir()) + len(COMMIT))


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1), (b"", 1)])
def test_it_asks(command, repo, size, answer, code):
    result = command("rm", "flash", stdin=answer, terminal=True)
    assert (result.code, result.out) == (code, "")
    assert f"remove flash, and free {size}? [y/N]" in result.err
    assert repo.folder.exists() == (code == 1)
    assert ("nothing was removed" in result.err) == (code == 1)


def test_without_a_terminal_it_needs_a_yes(command, repo, size):
    result = command("rm", "flash")
    assert result.code == 2
    assert "give -y" in result.err
    assert repo.folder.exists()
    result = command("rm", "flash", FLASH, "-y")
    assert (result.code, result.err) == (0, f"removed flash; freed {size}\n")
    assert not repo.folder.exists()


def test_all_or_none(command, repo):
    assert command("rm", "flash", "pro", "-y").code == 3
    assert command("rm", "-y").code == 2
    assert repo.folder.exists()


@pytest.mark.parametrize("arguments", [("flash@bbbbbbb",), ("flash", "--revision", "v1")])
def test_one_commit(command, repo, checkpoint, cache, arguments):
    put(cache, checkpoint, commit=OLDER, ref="v1")
    result = command("rm", *arguments, "-y", "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert report["removed"][0]["commits"] == [OLDER]
    assert report["freed_bytes"] == 0  # all of it is the other's too
    assert resolve("flash") == repo.snapshot(COMMIT)
    assert not repo.snapshot(OLDER).exists()


def test_two_commits_are_told(command, repo, checkpoint, cache):
    put(cache, checkpoint, commit=OLDER, ref="v1")
    result = command("rm", "flash", stdin=b"n\n", terminal=True)
    assert "remove flash (2 commits), and free" in result.err
    # the whole has the part in it
    both = command("rm", "flash@bbbbbbb", "flash", stdin=b"n\n", terminal=True)
    assert both.err == result.err


def test_a_part(command, cache):
    blobs = cache / "models--deepseek-ai--DeepSeek-V4-Pro" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'c' * 64}.incomplete").write_bytes(b"123")
    result = command("rm", "pro", "-y")
    assert (result.code, result.err) == (0, "removed pro; freed 3 B\n")
    assert list(cache.iterdir()) == []


def test_the_built_in_model(command):
    assert command("rm", "built-in", "-y").code == 3
    resolve(None)
    result = command("rm", "built-in", "-y")
    assert (result.code, result.err[:40]) == (0, "removed the built-in model; freed 8.62 MiB"[:40])
    assert not builtin_folder().exists()


def test_what_is_not_ours_is_refused(command, checkpoint, cache, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(checkpoint, folder)
    result = command("rm", str(folder), "-y")
    assert result.code == 2
    assert "is a folder of yours" in result.err
    other = cache / "models--some-one--else" / "snapshots" / COMMIT
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "llama"}')
    result = command("rm", "some-one/else", "-y")
    assert result.code == 2
    assert "is not a DeepSeek-V4" in result.err
    assert (other / "config.json").exists()
    assert (folder / "config.json").exists()


@pytest.mark.parametrize("name", ["flash", "flash@v9", "flsh", "/nowhere", ""])
def test_what_is_not_here(command, name):
    assert command("rm", name, "-y").code == 3
