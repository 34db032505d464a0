"""What localv4 verify says of sound, damaged, partial and unknown files, and its exit codes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localv4.hub_cache import CachedRepo, blob_of
from localv4.settings import environment_with
from tests.cached_models import COMMIT, put, write_metadata
from tests.small_checkpoints import shard_of

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def repo(checkpoint, cache) -> CachedRepo:
    return put(cache, checkpoint)


@pytest.fixture
def shard(checkpoint) -> str:
    return shard_of(checkpoint, "layers.1.attn.wq_a.weight").name


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_sound_one(command, repo, checkpoint):
    n_files = len(list(checkpoint.iterdir()))
    result = command("verify", "flash")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("flash: sound, ")
    assert f"every byte of {n_files} files as their checksums say" in result.out
    report = json.loads(command("verify", "flash", "--json").out)
    assert (report["sound"], report["n_checked"], report["damaged"]) == (True, n_files, [])
    assert (report["commit"], report["path"]) == (COMMIT, str(repo.snapshot(COMMIT)))


def test_progress_is_told_on_standard_error(command, repo, checkpoint, monkeypatch):
    monkeypatch.setattr("localv4.cli.file_bar._PLAIN_S", 0)
    n_files = len(list(checkpoint.iterdir()))
    result = command("verify", "flash")
    assert f"{n_files} of {n_files} files, 4.50 MiB of 4.50 MiB" in result.err
    assert "files," not in result.out


def test_a_flipped_byte_is_found_and_removed(command, repo, shard):
    link = repo.snapshot(COMMIT) / shard
    expected = blob_of(link).name
    flip_last_byte(link)
    result = command("verify", "flash")
    assert result.code == 3
    assert result.out.startswith(f"DAMAGED {shard}: its checksum is ")
    assert f"not {expected[:12]}..." in result.out
    assert "remove them with: localv4 verify flash --remove-damaged; then localv4 pull" in (
        result.err
    )
    assert command("verify", "flash", "--quick").code == 0  # headers alone can't tell
    report = json.loads(command("verify", "flash", "--json").out)
    assert [damage["expected"] for damage in report["damaged"]] == [expected]
    assert link.exists()
    result = command("verify", "flash", "--remove-damaged")
    assert result.code == 3
    assert "removed 1 damaged, freed" in result.err
    assert "get what is missing with: localv4 pull flash" in result.err
    assert not link.is_symlink()
    result = command("verify", "flash")
    assert (result.code, result.out) == (3, f"MISSING {shard}\n")
    assert "1 file missing" in result.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"{}", "DAMAGED tokenizer.json: its checksum is"),
        ("config.json", b"{}", "DAMAGED config.json: its checksum is"),
        ("model.safetensors.index.json", b"\xff", "DAMAGED model.safetensors.index.json"),
    ],
)
def test_every_file_counts(command, repo, name, content, words):
    blob_of(repo.snapshot(COMMIT) / name).write_bytes(content)
    result = command("verify", "flash")
    assert result.code == 3
    assert words in result.out


def test_a_truncated_shard_is_found_by_its_header(command, repo, shard):
    blob = blob_of(repo.snapshot(COMMIT) / shard)
    blob.write_bytes(blob.read_bytes()[:-1])
    result = command("verify", "flash", "--quick")
    assert result.code == 3
    assert "truncated" in result.out


def test_a_folder_with_and_without_checksums(command, checkpoint, tmp_path, shard):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    result = command("verify", str(folder))
    assert result.code == 0
    assert "sound as far as headers and sizes tell" in result.out
    assert "this folder carries no checksums" in result.err
    write_metadata(folder)
    assert "every byte of" in command("verify", str(folder)).out
    flip_last_byte(folder / shard)
    result = command("verify", str(folder))
    assert result.code == 3
    assert "get the files again from where they came" in result.err
    result = command("verify", str(folder), "--remove-damaged")
    assert result.code == 2
    assert (folder / shard).exists()


def test_the_built_in_model(command, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "own"))
    assert command("verify").out.startswith("built-in: sound as far as headers")


@pytest.mark.parametrize("name", ["flash", "flash-0731", "/nowhere", "flsh"])
def test_what_is_not_here(command, name):
    result = command("verify", name)
    assert (result.code, result.out) == (3, "")


def test_another_model_is_refused(command, repo):
    blob_of(repo.snapshot(COMMIT) / "config.json").write_text('{"model_type": "deepseek_v41"}')
    result = command("verify", "flash")
    assert result.code == 3
    assert "deepseek_v41" in result.err


def test_ctrl_c_ends_it(repo, cache, shard):
    blob = blob_of(repo.snapshot(COMMIT) / shard)
    with blob.open("r+b") as file:
        file.truncate(200_000 * 2**20)  # a hole that takes minutes to read
    process = subprocess.Popen(
        [sys.executable, "-m", "localv4", "verify", "flash"],
        env=environment_with({"HF_HOME": str(cache.parent)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        while process.poll() is None and bytes_read(process.pid) < 2**30:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, b"", b"")


def bytes_read(pid: int) -> int:
    """Return what a process read so far."""
    counters = Path(f"/proc/{pid}/io").read_text().split()
    return int(counters[counters.index("rchar:") + 1])
