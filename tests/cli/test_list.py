"""What localv4 list prints: on terminals of any width, in pipes, as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localv4.hub_cache import CachedRepo
from localv4.settings import environment_with
from tests.cached_models import COMMIT, OLDER, put
from tests.conftest import ROOT
from tests.small_checkpoints import shard_of
from tests.terminal import in_terminal

LONG = "some-one/DeepSeek-V4-Flash-with-half-of-the-experts-and-a-long-name"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "own"))
    return Path(tmp_path / "home" / "hub")


@pytest.fixture
def three(checkpoint, cache) -> CachedRepo:
    """A whole one, an older part of it, and one with a long name."""
    put(cache, checkpoint, LONG)
    missing = shard_of(checkpoint, "layers.1.attn.wq_a.weight").name
    repo = put(cache, checkpoint, commit=OLDER, ref="v1", without={missing})
    os.utime(repo.snapshot(OLDER), (1e9, 1e9))
    return put(cache, checkpoint)


def test_nothing_is_downloaded(command, cache):
    result = command("list")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["name", "built-in"]
    assert "no DeepSeek-V4 is downloaded; get one with: localv4 pull flash" in (result.err)


def test_in_a_pipe_nothing_is_left_out(command, three, cache):
    result = command("list")
    head, *rows = result.out.splitlines()
    assert head.split() == ["name", "kind", "draft", "size", "commit", "state", "changed", "path"]
    assert [row.split()[0] for row in rows] == ["flash", "flash@bbbbbbb", LONG, "built-in"]
    assert rows[0].endswith(str(three.snapshot(COMMIT)))
    assert "3 of 4 shards" in rows[1]
    assert "2001-09-" in rows[1]
    assert "not made yet" in rows[3]
    assert "\x1b" not in result.out
    assert result.err.startswith("3 downloads, ")
    assert command("list", "-q").err == ""


def test_json_tells_all(command, three, cache):
    report = json.loads(command("list", "--json").out)
    assert set(report) == {"cache", "n_bytes", "n_others", "models"}
    assert (report["cache"], report["n_others"]) == (str(cache), 0)
    whole, part, _, builtin = report["models"]
    assert (whole["path"], whole["complete"]) == (str(three.snapshot(COMMIT)), True)
    assert (part["commit"], part["refs"], len(part["missing"])) == (OLDER, ["v1"], 1)
    assert (builtin["name"], builtin["complete"], builtin["missing"]) == ("built-in", False, None)


def run_in(columns: int, cache: Path) -> list[str]:
    """Return the lines that the command shows in a terminal."""
    environment = environment_with({"HF_HOME": str(cache.parent), "TERM": "dumb", "COLUMNS": ""})
    command = [sys.executable, "-m", "localv4", "list"]
    code, shown = in_terminal(command, environment, ROOT, columns=columns)
    assert code == 0
    return shown.splitlines()


def test_a_narrow_terminal_and_a_wide_one(three, cache):
    narrow = run_in(80, cache)
    assert max(map(len, narrow[:-1])) <= 80
    assert narrow[0].split() == ["name", "kind", "size", "state"]
    assert narrow[3].startswith("some-one/")
    assert "..." in narrow[3]
    wide = run_in(400, cache)
    assert wide[3].split()[0] == LONG
    assert wide[1].endswith(str(three.snapshot(COMMIT)))


def test_names_of_strangers_do_not_act_on_the_terminal(command, checkpoint, cache):
    repo = put(cache, checkpoint)
    repo.folder.rename(cache / "models--a\x1b[2J--b\n")
    result = command("list")
    assert r"a\x1b[2J/b\n" in result.out
    assert "\x1b" not in result.out + result.err


def test_it_imports_nothing_that_takes_long(three):
    code = (
        "import sys; from localv4.cli.app import run_command; run_command(['list', '-q']);"
        "names = ('numpy', 'numba', 'rich', 'httpx2', 'localv4.checkpoint');"
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.startswith("name")
    assert result.stdout.splitlines()[-1] == "[]"
