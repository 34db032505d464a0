"""The fake hub, as the real client sees it."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from tests.loopback_hub import Fault, LoopbackHub

REPO = "someone/model"


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def files(tmp_path):
    """Return a folder with small files, a large one, and one in a folder."""
    folder = tmp_path / "files"
    (folder / "encoding").mkdir(parents=True)
    contents = {f"small-{number}.json": f"[{number}]".encode() for number in range(6)}
    contents |= {"model.safetensors": bytes(range(256)) * 1000, "encoding/a.py": b"pass"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


@pytest.fixture
def commit(hub, tmp_path, files, monkeypatch):
    hub.use(monkeypatch, tmp_path / "home")
    return hub.add(REPO, tmp_path / "files")


def test_the_real_client_downloads_a_snapshot(hub, commit, files, tmp_path):
    snapshot = snapshot_download(REPO)
    assert snapshot == str(tmp_path / "home/hub/models--someone--model/snapshots" / commit)
    for name, content in files.items():
        assert (tmp_path / snapshot / name).read_bytes() == content
    assert hub.content_bytes == sum(map(len, files.values()))
    # folders count as entries: nine in pages of five
    assert sum("/tree/" in request.path for request in hub.requests) == 2
    assert all(request.at_store == (request.file == "model.safetensors") for request in
               hub.contents())  # fmt: skip


def test_the_client_resumes_where_the_connection_broke(hub, commit, files, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)
    hub.faults["model.safetensors"] = Fault(times=1, break_after=100_000)
    path = hf_hub_download(REPO, "model.safetensors")
    assert Path(path).read_bytes() == files["model.safetensors"]
    first, second = hub.contents("model.safetensors")
    assert (first.n_bytes, second.status, second.start + second.n_bytes) == (100_000, 206, 256_000)


def test_refusals_are_what_the_client_knows(hub, commit, tmp_path):
    hub.add("someone/gated", tmp_path / "files", gated=True, token="good")
    hub.add("someone/private", tmp_path / "files", token="own")
    api = HfApi()
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("someone/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision="nothing")
    with pytest.raises(GatedRepoError):
        hf_hub_download("someone/gated", "small-1.json")
    with pytest.raises(GatedRepoError):
        hf_hub_download("someone/gated", "small-1.json", token="own")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("someone/private", revision="main")
    hf_hub_download("someone/gated", "small-1.json", token="good")
    assert api.repo_info("someone/private", revision="main", token="own").sha == commit


def test_main_may_move(hub, commit, tmp_path):
    (tmp_path / "files/later.json").write_text("[]")
    later = hub.add(REPO, tmp_path / "files")
    assert HfApi().repo_info(REPO, revision="main").sha == later != commit


def test_holes_are_listed_by_their_sizes(hub, commit, tmp_path):
    hub.add(REPO, tmp_path / "files", holes={"model-1.safetensors": 3 * 2**40})
    sizes = {entry.path: getattr(entry, "size", 0) for entry in
             HfApi().list_repo_tree(REPO, recursive=True)}  # fmt: skip
    assert sizes["model-1.safetensors"] == 3 * 2**40
