"""`localv4 pull`: the plan, the question, where words go, and how it ends."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from localv4 import hub as hub_client
from localv4.cli.file_bar import FileBar
from localv4.cli.output import Output
from localv4.files_state import FilesState
from localv4.synthetic import synthesise
from tests.conftest import ROOT
from tests.loopback_hub import Fault, LoopbackHub
from tests.small_checkpoints import edit_config

REPO = "deepseek-ai/DeepSeek-V4-Flash"
SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "model"
    synthesise(folder, compress_ratios=(0,))
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path, model):
    monkeypatch.setattr(hub_client, "_WAITS_S", (0.0,))
    with LoopbackHub() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        hub.add(REPO, model)
        yield hub


@pytest.fixture
def own(model, tmp_path) -> Path:
    """Return a copy of the checkpoint to change."""
    folder: Path = tmp_path / "own"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def shards_sent(hub) -> list[str]:
    return [request.file for request in hub.requests if request.at_store]


def test_the_plan_alone(hub, cache, command):
    result = command("pull", "flash", "--dry-run")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{REPO}, main (")
    assert [line.split()[0] for line in lines[1:5]] == ["size", "config,", "weights,", "all"]
    assert "weights, 3 shards" in result.out
    assert "left out: 1 shard for drafting, " in result.out
    assert str(cache) in lines[-1]
    assert not cache.exists()
    assert shards_sent(hub) == []
    with_files = command("pull", "flash", "--dry-run", "-v")
    assert SHARD in with_files.out


def test_the_plan_as_json(hub, cache, command, model):
    result = command("pull", "DeepSeek-V4-Flash".lower(), "--dry-run", "--json")
    report = json.loads(result.out)
    assert (report["repo_id"], report["revision"], report["complete"]) == (REPO, "main", False)
    sizes = {file["path"]: file["n_bytes"] for file in report["files"]}
    assert sizes[SHARD] == (model / SHARD).stat().st_size
    assert report["fetch_bytes"] == report["n_bytes"] == sum(sizes.values())
    assert result.err == ""


def test_fetches_and_prints_the_folder(hub, cache, command, model):
    result = command("pull", "flash", "-y")
    assert result.code == 0
    folder = Path(result.out.removesuffix("\n"))
    assert folder.parent == cache / "models--deepseek-ai--DeepSeek-V4-Flash/snapshots"
    assert (folder / SHARD).read_bytes() == (model / SHARD).read_bytes()
    assert result.err.endswith("next: localv4 chat -m flash\n")
    n_sent = len(shards_sent(hub))
    again = command("pull", REPO)
    assert (again.code, again.out) == (0, result.out)
    assert "is here, 1.57 MiB" in again.err
    assert len(shards_sent(hub)) == n_sent == 3


def test_quiet_and_json(hub, cache, command):
    result = command("pull", "flash", "-y", "-q", "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert report["complete"]
    assert (report["fetch_bytes"], report["fetched_bytes"]) == (0, report["n_bytes"])
    assert (Path(report["folder"]) / SHARD).exists()


def test_the_draft_and_a_revision(hub, cache, command, own):
    (own / "generation_config.json").write_text("{}")
    hub.add(REPO, own, ref="v2")
    result = command("pull", "flash", "--revision", "v2", "--include-draft", "-y")
    assert result.code == 0
    assert len(list(Path(result.out.strip()).glob("*.safetensors"))) == 4
    assert "next: localv4 chat -m flash@v2" in result.err
    assert (cache / "models--deepseek-ai--DeepSeek-V4-Flash/refs/v2").is_file()


@pytest.mark.parametrize(("answer", "code"), [(b"\n", 0), (b"y\n", 0), (b"n\n", 1), (b"", 1)])
def test_asks_in_a_terminal(hub, cache, command, answer, code):
    result = command("pull", "flash", stdin=answer, terminal=True)
    assert result.code == code
    assert "? [Y/n]" in result.err
    assert bool(shards_sent(hub)) is not bool(code)
    assert bool(result.out) is not bool(code)


def test_does_not_ask_without_a_terminal(hub, cache, command):
    result = command("pull", "flash")
    assert (result.code, result.out) == (2, "")
    assert "-y" in result.err
    assert shards_sent(hub) == []


def refused(result, code: int, *words: str) -> None:
    assert (result.code, result.out) == (code, "")
    last = result.err.splitlines()[-1]
    assert last.startswith("localv4: ")
    for word in words:
        assert word in last


def test_a_disk_too_small(hub, cache, command, model):
    (shard,) = [file for file in hub.repos[REPO].commits.popitem()[1] if file == SHARD]
    hub.add(REPO, model, holes={shard: 2**50})
    refused(command("pull", "flash", "-y"), 4, "1024 TiB", "1.00 GiB is kept free", "HF_HOME")
    assert shards_sent(hub) == []
    assert not cache.exists()


def test_a_disk_that_fills_up(hub, cache, command, monkeypatch):
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    result = command("pull", "flash", "--dry-run")
    assert (result.code, "10 B free" in result.out) == (4, True)


def test_what_cannot_be_written(hub, cache, command):
    cache.write_text("no folder")
    refused(command("pull", "flash", "-y"), 1, "can't be written", "HF_HOME")


def test_repos_that_are_no_v4(hub, cache, command, own):
    edit_config(own, model_type="deepseek_v41")
    hub.add("someone/v41", own)
    refused(command("pull", "someone/v41", "-y"), 3, "deepseek_v41")
    gguf = own / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    hub.add("someone/gguf", gguf)
    refused(command("pull", "someone/gguf", "-y"), 3, "1 .gguf", "localv4 pull flash")
    assert shards_sent(hub) == []
    assert not cache.exists()


def test_doors_that_are_closed(hub, cache, command, model, monkeypatch):
    hub.add("someone/gated", model, gated=True, token="hf_good")
    refused(command("pull", "someone/gated", "-y"), 1, "accept its terms", "hf auth login")
    refused(command("pull", "someone/nothing", "-y"), 3, "check the name")
    refused(command("pull", "flash", "--revision", "v9"), 3, "no revision 'v9'")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = command("pull", "flash", "-y", "-vv")
    refused_line = [line for line in result.err.splitlines() if line.startswith("localv4: ")]
    assert "does not know the token" in refused_line[0]
    assert "hf_secret" not in result.err
    refused(command("pull", "flash", "-y"), 1, "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_s\u00e9cret")
    refused(command("pull", "flash", "-y"), 1, "not ASCII")


def test_names_that_are_none(hub, command, model):
    refused(command("pull", str(model)), 2, "is a folder here")
    refused(command("pull", "built-in"), 2, "nothing to fetch")
    refused(command("pull", "flesh"), 3, "did you mean flash?")


def test_offline(hub, cache, command, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(command("pull", "flash", "-y"), 3, "HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = command("pull", "flash", "-y").out
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    n_requests = len(hub.requests)
    result = command("pull", "flash")
    assert (result.code, result.out) == (0, folder)
    assert "is here" in result.err
    assert json.loads(command("pull", "flash", "--json").out)["complete"]
    assert len(hub.requests) == n_requests
    refused(command("pull", "flash", "--include-draft"), 3, "HF_HUB_OFFLINE")


def test_no_network(hub, cache, command, monkeypatch):
    hub.faults["api"] = Fault(status=503)
    refused(command("pull", "flash", "-y"), 1, "HTTP 503")
    hub.faults.clear()
    folder = command("pull", "flash", "-y").out
    hub.faults["api"] = Fault(status=503)
    result = command("pull", "flash")
    assert (result.code, result.out) == (0, folder)
    assert "but all of" in result.err


def start(hub, home: Path, *arguments: str, **streams) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "localv4", "pull", "flash", *arguments],
        env=hub.environment(home),
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


def partial_sizes(home: Path) -> list[int]:
    sizes = []
    for file in home.rglob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return sizes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_soon_and_keeps_all(hub, tmp_path, number, model):
    home = tmp_path / "other"
    hub.faults[SHARD] = Fault(stall_after=50_000)
    process = start(hub, home, "-y")
    while 50_000 not in partial_sizes(home):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert "Traceback" not in err
    assert re.search(r"stopped; .+ of .+ are kept: the same command goes on there\n$", err)
    assert 50_000 in partial_sizes(home)
    hub.faults.clear()
    again = start(hub, home, "-y", "-q")
    folder = again.communicate()[0].strip()
    assert (Path(folder) / SHARD).read_bytes() == (model / SHARD).read_bytes()
    assert [request.start for request in hub.contents(SHARD)] == [0, 50_000]


def test_two_at_once(hub, tmp_path, model):
    hub.piece_pause_s = 0.01
    both = [start(hub, tmp_path / "other", "-y") for _ in range(2)]
    results = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert results[0][0] == results[1][0] != ""
    for file in Path(results[0][0].strip()).iterdir():
        assert file.read_bytes() == (model / file.name).read_bytes()
    sent = sum(request.n_bytes for request in hub.contents() if request.at_store)
    assert sent == sum((model / name).stat().st_size for name in set(shards_sent(hub)))


def test_nobody_reads_and_a_full_disk(hub, tmp_path):
    home = tmp_path / "other"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = start(hub, home, "-y", stdout=full)
        assert "No space left" in process.communicate()[1]
        assert process.returncode == 4
    reader, writer = os.pipe()
    os.close(reader)
    process = start(hub, home, "-y", stdout=writer)
    os.close(writer)
    process.communicate()
    assert process.returncode == 0


class Terminal(Output):
    """Keeps what is shown, as a terminal of so many columns or as none."""

    def __init__(self, columns: int = 0) -> None:
        super().__init__()
        self.columns = columns
        self.shown: list[str] = []

    @property
    def redraws(self) -> bool:
        return self.columns > 0

    @property
    def progress_columns(self) -> int:
        return self.columns

    def progress(self, text: str) -> None:
        self.shown.append(text)

    def note(self, text: str, level: int = 0, log: bool = True) -> None:
        self.shown.append(text)


def shown(monkeypatch, columns: int, *states: FilesState, step_s: float = 1.0) -> list[str]:
    """Return the lines of states that come one after the other."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    output = Terminal(columns)
    bar = FileBar(output)
    for state in states:
        now[0] += step_s
        bar.advance(state)
    return output.shown


def states(n: int) -> list[FilesState]:
    n_bytes = 10 * 2**20
    return [FilesState(k, 53, k * n_bytes, 145 * 2**30, k * n_bytes, 0, 0) for k in range(1, n + 1)]


@pytest.mark.parametrize("columns", [5, 20, 40, 60, 77, 200])
def test_the_bar_fits_its_line(monkeypatch, columns):
    last = shown(monkeypatch, columns, *states(12))[-1]
    assert len(last) <= max(columns, len("120 MiB of 145 GiB"))
    assert "120 MiB of 145 GiB" in last
    assert ("10.0 MiB/s" in last, "left" in last) == (columns >= 60, columns >= 40)
    assert ("12 of 53 files" in last) is (columns >= 77)


def test_plain_lines_are_rare(monkeypatch):
    lines = shown(monkeypatch, 0, *states(90))
    assert len(lines) == 3
    assert lines[-1].startswith("90 of 53 files, 900 MiB of 145 GiB, 10.0 MiB/s, 4:")


def test_others_are_told_of_once(monkeypatch):
    state = FilesState(3, 4, 100, 200, 0, 0, 1)
    assert shown(monkeypatch, 0, state, state) == [
        "waiting: another process fetches 1 of the files; if it ends, this one goes on"
    ]
