"""What a download takes: which files, what is here, and what is refused before the first shard."""

import json
import shutil
from pathlib import Path

import pytest

from localv4 import hub as hub_client
from localv4 import pull_plan
from localv4.errors import (
    DamagedCheckpoint,
    DownloadFailed,
    InvalidInput,
    LocalV4Error,
    ModelNotFound,
    OutOfBudget,
    UnsupportedModel,
)
from localv4.hub import HubBusy, RemoteFile, RemoteRepo, describe
from localv4.pull_plan import make_plan
from localv4.synthetic import synthesise
from tests.loopback_hub import Fault, LoopbackHub
from tests.small_checkpoints import edit_config, edit_index

REPO = "someone/model"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("made") / "model"
    synthesise(folder, compress_ratios=(0, 4))
    return folder


@pytest.fixture
def model(made, tmp_path) -> Path:
    """Return a checkpoint's folder to change: its files are links to those of all tests."""
    folder: Path = tmp_path / "model"
    for file in [file for file in made.rglob("*") if file.is_file()]:
        copy = folder / file.relative_to(made)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            copy.symlink_to(file)
        else:
            copy.write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(hub_client, "_WAITS_S", (0.0, 0.0))
    with LoopbackHub() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        yield hub


def plan_of(hub, cache, folder, draft=False, **rest):
    hub.add(REPO, folder, **rest)
    return make_plan(describe(REPO), cache, draft)


def names(files) -> list[str]:
    return [file.remote.path for file in files]


def shards_asked_for(hub) -> list[str]:
    return [r.file for r in hub.requests if r.file and r.file.endswith(".safetensors")]


def test_takes_what_is_needed_and_nothing_else(hub, cache, model):
    (model / "encoding").mkdir()
    (model / "encoding/encoding_dsv4.py").write_text("EOS = 1")
    for name in ("modeling.py", "pytorch_model.bin", "figure.png", "model.gguf", "LICENSE"):
        (model / name).write_bytes(b"something")
    (model / "README.md").write_bytes(bytes(2**20 + 1))
    plan = plan_of(hub, cache, model, holes={"inference/model.safetensors": 10**12})
    shards = names(file for file in plan.files if file.is_shard)
    assert names(plan.files)[: -len(shards)] == [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors.index.json", "encoding/encoding_dsv4.py", "LICENSE",
    ]  # fmt: skip
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    assert shards == sorted({file for name, file in index.items() if not name.startswith("mtp.")})
    assert {file.path for file in plan.left_out} == set(index.values()) - set(shards)
    assert plan.left_out
    assert shards_asked_for(hub) == []
    assert not cache.exists()


def test_the_draft_is_taken_if_asked_for(hub, cache, model):
    plain, with_draft = (plan_of(hub, cache, model, draft) for draft in (False, True))
    assert with_draft.left_out == ()
    assert with_draft.n_bytes == plain.n_bytes + sum(file.n_bytes for file in plain.left_out)


def test_a_shard_with_body_and_draft_is_kept(hub, cache, model):
    def mix(index):
        weights = index["weight_map"]
        last = sorted(set(weights.values()))[0]
        for name in weights:
            if name.startswith("mtp."):
                weights[name] = last

    edit_index(model, mix)
    plan = plan_of(hub, cache, model)
    assert plan.left_out == ()


def test_a_single_file_needs_no_index(hub, cache, model, made):
    (model / "model.safetensors.index.json").unlink()
    (model / "model.safetensors").symlink_to(sorted(made.glob("*.safetensors"))[0])
    plan = plan_of(hub, cache, model)
    assert names(file for file in plan.files if file.is_shard) == ["model.safetensors"]


def refusal(hub, cache, model, **rest) -> LocalV4Error:
    with pytest.raises(LocalV4Error) as caught:
        plan_of(hub, cache, model, **rest)
    assert shards_asked_for(hub) == []
    assert not cache.exists()
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_v41_is_refused_by_its_config(hub, cache, model):
    edit_config(model, model_type="deepseek_v41")
    error = refusal(hub, cache, model)
    assert isinstance(error, UnsupportedModel)
    assert "deepseek_v41" in str(error)
    assert [request.file for request in hub.contents()] == ["config.json"]


def test_other_tensor_names_are_refused(hub, cache, model):
    def rename(index):
        weights = index["weight_map"]
        index["weight_map"] = {f"model.{name}": file for name, file in weights.items()}

    edit_index(model, rename)
    error = refusal(hub, cache, model)
    assert isinstance(error, UnsupportedModel)
    assert "DeepSeek's own tensor names" in str(error)


def test_a_repo_without_index_is_refused_with_what_it_has(hub, cache, model):
    for file in (model / "model.safetensors.index.json", *model.glob("*.safetensors")):
        file.unlink()
    (model / "model-q4.gguf").write_bytes(b"GGUF")
    error = refusal(hub, cache, model)
    assert isinstance(error, UnsupportedModel)
    assert "1 .gguf" in str(error)
    assert "localv4 pull flash" in str(error)


def test_an_index_that_lists_more_than_the_repo_has(hub, cache, model):
    shards = sorted(model.glob("*.safetensors"))
    shards[-1].unlink()
    shards[0].unlink()
    error = refusal(hub, cache, model)
    assert isinstance(error, DamagedCheckpoint)
    assert f"2 of {len(shards)} shards missing" in str(error)


def test_a_shard_too_small_for_its_tensors(hub, cache, model):
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.unlink()
    shard.write_text("version https://git-lfs.github.com/spec/v1\n".ljust(135))
    assert "can't hold them" in str(refusal(hub, cache, model))


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_damaged_small_files(hub, cache, model, name, content):
    (model / name).write_bytes(content)
    assert isinstance(refusal(hub, cache, model), DamagedCheckpoint | UnsupportedModel)


def test_a_huge_config_is_not_read(hub, cache, model):
    (model / "config.json").unlink()
    error = refusal(hub, cache, model, holes={"config.json": 10**12})
    assert "1,000,000,000,000 bytes" in str(error)
    assert hub.content_bytes == 0


def test_small_files_are_checked(hub, cache, model):
    content = (model / "config.json").read_bytes()
    hub.faults["config.json"] = Fault(content=content.replace(b"1", b"2"))
    assert "checksum" in str(refusal(hub, cache, model))
    hub.faults["config.json"] = Fault(content=content + b" " * 10**6)
    assert "checksum" in str(refusal(hub, cache, model))


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json", "a/../../evil", "a\\..\\b"])
def test_a_name_that_leads_out_of_the_folder(hub, cache, model, path):
    assert "don't trust" in str(refusal(hub, cache, model, holes={path: 10}))


def test_a_revision_that_leads_out_of_its_folder(cache):
    file = RemoteFile("config.json", 1, "0" * 40)
    with pytest.raises(InvalidInput):
        make_plan(RemoteRepo(REPO, "../../main", "0" * 40, (file,)), cache)


def test_what_is_here_is_counted(hub, cache, model):
    plan = plan_of(hub, cache, model)
    assert (plan.here_bytes, plan.is_complete) == (0, False)
    first, second, third = [file.remote for file in plan.files if file.is_shard][:3]
    blobs = plan.folder / "blobs"
    blobs.mkdir(parents=True)
    (blobs / first.checksum).write_bytes(bytes(first.n_bytes))
    (blobs / f"{second.checksum}.incomplete").write_bytes(bytes(1000))
    (blobs / f"{third.checksum}.incomplete").write_bytes(bytes(third.n_bytes + 1))
    plan = make_plan(describe(REPO), cache)
    states = {file.remote.path: (file.state, file.here_bytes) for file in plan.files}
    assert states[first.path] == ("present", first.n_bytes)
    assert states[second.path] == ("partial", 1000)
    assert states[third.path] == ("missing", 0)
    assert plan.fetch_bytes == plan.n_bytes - first.n_bytes - 1000


def test_a_disk_too_small_is_refused(hub, cache, model, monkeypatch):
    plan = plan_of(hub, cache, model, holes={"other": 1})
    plan.refuse_small_disk()
    free = plan.fetch_bytes + pull_plan.ROOM_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Free(free))
    make_plan(describe(REPO), cache).refuse_small_disk()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Free(free - 1))
    with pytest.raises(OutOfBudget, match="HF_HOME") as caught:
        make_plan(describe(REPO), cache).refuse_small_disk()
    assert str(caught.value).count("iB") == 3


class Free:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_busy_hub_is_asked_again(hub, cache, model):
    hub.add(REPO, model)
    hub.faults["api"] = Fault(times=1, status=503)
    hub.faults["config.json"] = Fault(times=2, status=500)
    make_plan(describe(REPO), cache)
    hub.faults["config.json"] = Fault(status=429, headers={"Retry-After": "0"})
    with pytest.raises(HubBusy, match="limits our requests"):
        make_plan(describe(REPO), cache)


def test_refusals_of_the_hub(hub, cache, model, monkeypatch):
    hub.add(REPO, model)
    hub.add("someone/gated", model, gated=True, token="hf_good")
    hub.add("someone/private", model, token="hf_own")

    def said(kind: type[LocalV4Error], repo_id: str, revision: str = "main") -> str:
        with pytest.raises(kind) as caught:
            make_plan(describe(repo_id, revision), cache)
        assert type(caught.value) is kind
        assert "hf_" not in str(caught.value).replace("hf_hub", "")
        return str(caught.value)

    assert "check the name" in said(ModelNotFound, "someone/nothing")
    assert "HF_TOKEN" in said(ModelNotFound, "someone/private")
    assert "no revision 'v9'" in said(ModelNotFound, REPO, "v9")
    assert "owner/name" in said(InvalidInput, "a/b/c")
    assert "accept its terms" in said(DownloadFailed, "someone/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_own")
    assert "has no access" in said(DownloadFailed, "someone/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know the token" in said(DownloadFailed, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    make_plan(describe("someone/gated"), cache)


def test_no_hub_at_all(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_client, "_WAITS_S", (0.0, 0.0))
    with LoopbackHub() as hub:
        hub.use(monkeypatch, tmp_path / "home")
    with pytest.raises(HubBusy, match="check the network"):
        describe(REPO)


def test_no_hub_at_the_address(hub, model, monkeypatch):
    hub.add(REPO, model)
    hub.faults["api"] = Fault(status=200, headers={"Content-Type": "text/html"})
    with pytest.raises(DownloadFailed, match="HF_ENDPOINT"):
        describe(REPO)
