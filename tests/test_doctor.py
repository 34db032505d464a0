"""What the doctor finds in sound, damaged and absent models; never how fast anything is."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from localv4 import doctor, doctor_machine
from localv4.disk import load_disk_profile, save_disk_profile
from localv4.doctor import ASSUMED_DISK_BYTES_S, Diagnosis, Request, diagnose
from localv4.doctor_machine import check_memory
from localv4.doctor_rates import check_rates
from localv4.errors import DamagedCheckpoint, InvalidInput, ModelNotFound, UnsupportedModel
from localv4.findings import Finding, note, ok
from localv4.kernels.threads import usable_cpus
from localv4.limits import GroupLimit
from localv4.machine_rates import CpuRates, kept_rates
from localv4.mounts import Mount, mount_of, read_mounts
from tests.kernels.compare import needs_compiler
from tests.released import released_text
from tests.small_checkpoints import (
    edit_config,
    edit_header,
    make_small,
    make_sparse_flash,
    shard_of,
)

EXPERT = "layers.1.ffn.experts.0.w1.weight"
RATES = CpuRates(20e9, 17e9, 16e9, 18e9, 2e11)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_small(tmp_path_factory.mktemp("doctor") / "small")


@pytest.fixture
def model(made, tmp_path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    """Return a function that makes a request which measures nothing."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(cache))

    def make(path: Path | None, **changes: object) -> Request:
        request = Request(path, None, 2, cache, measures=False)
        return dataclasses.replace(request, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def measured(monkeypatch):
    """Let CPU rates be given and the disk be measured in no time."""
    monkeypatch.setattr(doctor, "check_rates", lambda _: (ok("speed", "given"), RATES))
    monkeypatch.setattr(doctor, "_DISK_S", 0.01)


def topics(diagnosis: Diagnosis) -> dict[str, Finding]:
    """The first finding of each topic."""
    return {finding.topic: finding for finding in reversed(diagnosis.findings)}


def problems(diagnosis: Diagnosis) -> list[str]:
    return [each.text for each in diagnosis.findings if each.severity == "problem"]


def test_a_cpu_that_is_left_to_reads_is_named(monkeypatch, made, request_for, tmp_path):
    (tmp_path / "config.json").write_text(released_text("flash"))
    monkeypatch.setattr("localv4.kernels.threads.usable_cpus", lambda: 16)
    for folder, memory, expected in ((tmp_path, 16 * 2**30, [16, 15]), (made, None, [16])):
        request = request_for(folder, threads=None, memory=memory)
        threads = [each for each in diagnose(request).findings if each.topic == "threads"]
        assert [each.figures["threads"] for each in threads] == expected


def test_a_sound_checkpoint(made, request_for):
    diagnosis = diagnose(request_for(made))
    assert not diagnosis.has_problem
    assert diagnosis.outlook is None
    found = topics(diagnosis)
    assert {"memory", "cpu", "threads", "cache folder", "checkpoint", "budget"} <= set(found)
    index = json.loads((made / "model.safetensors.index.json").read_text())
    figures = found["checkpoint"].figures
    assert figures["tensors"] == len(index["weight_map"])
    assert figures["total_bytes"] == index["metadata"]["total_size"]
    assert figures["complete"]
    assert found["cpu"].figures["tier"]
    assert found["threads"].figures["cpus"] == usable_cpus()
    assert found["memory"].figures["available_bytes"] <= found["memory"].figures["total_bytes"]
    json.dumps([dataclasses.asdict(finding) for finding in diagnosis.findings])


def test_missing_shards_are_counted_and_named(model, request_for):
    shards = sorted({shard_of(model, EXPERT), shard_of(model, "head.weight")})
    for shard in shards:
        shard.unlink()
    diagnosis = diagnose(request_for(model))
    (text,) = problems(diagnosis)
    count = len(list(model.glob("*.safetensors"))) + 2 - 1  # the MTP block's is not needed
    assert text.startswith(f"2 of {count} shards are missing")
    assert all(shard.name in text for shard in shards)
    figures = topics(diagnosis)["checkpoint"].figures
    assert figures["missing"] == [shard.name for shard in shards]
    # what does not need the shards is looked at all the same
    assert topics(diagnosis)["budget"].severity == "ok"


def test_a_truncated_shard(model, request_for):
    shard = shard_of(model, EXPERT)
    os.truncate(shard, shard.stat().st_size - 100)
    (text,) = problems(diagnose(request_for(model)))
    assert shard.name in text
    assert "truncated" in text


def test_a_damaged_header(model, request_for):
    edit_header(shard_of(model, EXPERT), lambda header: header[EXPERT].update(shape=[1, 1]))
    (text,) = problems(diagnose(request_for(model)))
    assert EXPERT in text


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_config_alone(made, tmp_path, request_for, measured, name):
    shutil.copy(made / "config.json", tmp_path)
    diagnosis = diagnose(request_for(tmp_path / name, measures=True))
    assert not diagnosis.has_problem
    found = topics(diagnosis)
    assert found["checkpoint"].severity == "note"
    assert not found["checkpoint"].figures["complete"]
    assert found["disk"].figures == {"bytes_per_s": ASSUMED_DISK_BYTES_S, "measured": False}
    assert diagnosis.outlook is not None
    assert diagnosis.outlook.routing == "skewed"


def test_the_released_flash_before_it_is_downloaded(tmp_path, request_for, measured):
    (tmp_path / "config.json").write_text(released_text("flash"))
    few = diagnose(request_for(tmp_path, measures=True, memory=16 * 2**30, disk_bytes_s=3e9))
    found, outlook = topics(few), few.outlook
    assert found["disk"].figures == {"bytes_per_s": 3e9, "measured": False}
    assert found["budget"].figures["streams"]
    assert 0.03 < found["budget"].figures["slots"] / 11_008 < 0.08
    assert outlook is not None
    assert outlook.floor.hit_rate == 0 < outlook.likely.hit_rate < outlook.warm.hit_rate == 1
    assert outlook.floor.token_s > outlook.likely.token_s > outlook.warm.token_s
    assert 0 < outlook.disk_share < 1


def test_routing_and_budget_count(tmp_path, request_for, measured):
    (tmp_path / "config.json").write_text(released_text("flash"))
    whole = diagnose(request_for(tmp_path, measures=True, memory=2**38, routing="uniform"))
    figures = topics(whole)["budget"].figures
    assert figures["slots"] == figures["experts"]
    assert whole.outlook is not None
    assert whole.outlook.likely == whole.outlook.warm
    assert whole.outlook.routing == "uniform"


@pytest.mark.slow
def test_an_estimated_budget_is_about_the_planned_one(tmp_path, request_for, monkeypatch):
    # what this process holds grows from one look to the next
    monkeypatch.setattr("localv4.memory.process_bytes", lambda: 2**28)
    folder = tmp_path / "flash"
    folder.mkdir()
    make_sparse_flash(folder)
    planned = topics(diagnose(request_for(folder, memory=20 * 2**30)))["budget"].figures
    estimated = topics(diagnose(request_for(folder / "config.json", memory=20 * 2**30)))
    for name, value in estimated["budget"].figures.items():
        assert planned[name] == pytest.approx(value, rel=0.03), name


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_budget_too_small(made, request_for, name):
    diagnosis = diagnose(request_for(made / name, memory=2**20))
    (text,) = problems(diagnosis)
    assert "1.00 MiB" in text
    assert "give it that much" in text


def test_a_cache_folder_that_is_a_file(made, tmp_path, request_for):
    (tmp_path / "file").touch()
    diagnosis = diagnose(request_for(made, cache_folder=tmp_path / "file"))
    (text,) = problems(diagnosis)
    assert str(tmp_path / "file") in text
    assert "LOCALV4_CACHE_DIR" in text


def test_the_machine_alone(request_for):
    found = topics(diagnose(request_for(None)))
    assert "memory" in found
    assert "checkpoint" not in found


def test_no_config(tmp_path, request_for):
    with pytest.raises(ModelNotFound):
        diagnose(request_for(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DamagedCheckpoint):
        diagnose(request_for(tmp_path))


def test_another_model(model, request_for):
    edit_config(model, model_type="llama")
    with pytest.raises(UnsupportedModel):
        diagnose(request_for(model))


def test_too_many_threads(made, request_for):
    with pytest.raises(InvalidInput):
        diagnose(request_for(made, threads=100_000))


@pytest.mark.parametrize(("named", "expected"), [("uniform", "uniform"), (None, "skewed")])
def test_routing_comes_from_the_checkpoint(model, request_for, measured, named, expected):
    values = {} if named is None else {"localv4_routing": named}
    (model / "generation_config.json").write_text(json.dumps(values))
    outlook = diagnose(request_for(model, measures=True)).outlook
    assert outlook is not None
    assert outlook.routing == expected


def test_a_routing_that_means_nothing(model, request_for):
    (model / "generation_config.json").write_text('{"localv4_routing": "odd"}')
    (text,) = problems(diagnose(request_for(model)))
    assert "odd" in text
    assert not diagnose(request_for(model, routing="uniform")).has_problem


def test_the_disk_is_measured_and_kept(made, tmp_path, request_for, measured):
    diagnosis = diagnose(request_for(made, measures=True))
    disk = topics(diagnosis)["disk"].figures
    assert disk["bytes_per_s"] in [tried["bytes_per_s"] for tried in disk["tries"]]
    (kept,) = (tmp_path / "cache").glob("disk-*.json")
    assert json.loads(kept.read_text())["bytes_per_s"] == disk["bytes_per_s"]
    assert diagnosis.outlook is not None


def test_what_the_disk_gave_in_use_is_what_counts(made, request_for, measured):
    first = diagnose(request_for(made, measures=True))
    disk, shard = topics(first)["disk"], min(made.glob("*.safetensors"))
    assert disk.figures["in_use_bytes_per_s"] is None
    known = load_disk_profile(shard)
    assert known is not None
    save_disk_profile(dataclasses.replace(known, in_use=1e3), shard)
    second = diagnose(request_for(made, measures=True))
    disk = topics(second)["disk"]
    assert disk.figures["in_use_bytes_per_s"] == 1e3 < disk.figures["bytes_per_s"]
    assert "; 1e-06 when a model was last streamed, which is what counts" in disk.text
    assert first.outlook is not None
    assert second.outlook is not None
    assert second.outlook.floor.token_s > first.outlook.floor.token_s
    kept = load_disk_profile(shard)
    assert kept is not None
    assert kept.in_use == 1e3


def test_a_model_without_a_tokenizer(model, request_for):
    (model / "tokenizer.json").unlink()
    assert topics(diagnose(request_for(model)))["tokenizer"].severity == "note"


def test_a_control_group_that_limits(monkeypatch):
    limits = [GroupLimit(Path("/a"), 2**31, 2**20), GroupLimit(Path("/b"), 2**30, 2**20)]
    monkeypatch.setattr(doctor_machine, "group_limits", lambda: limits)
    (found,) = (each for each in check_memory() if each.topic == "memory limit")
    assert found.figures == {"path": "/b", "limit_bytes": 2**30, "used_bytes": 2**20}


def test_less_cpu_time_than_threads(monkeypatch):
    monkeypatch.setattr(doctor_machine, "cpu_quota", lambda: 1.5)
    found = doctor_machine.check_threads(2)
    assert (found.severity, found.figures["quota"]) == ("note", 1.5)
    assert found.text.endswith("give --threads 1")
    assert doctor_machine.check_threads(1).severity == "ok"


def test_mounts(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "23 22 0:40 / /my\\040models rw shared:5 - nfs4 server:/x rw,vers=4\n"
        "24 22 0:41 /sub /my\\040models rw - fuse.sshfs me@host rw\n"
        "no mount at all\n"
    )
    mounts = read_mounts(tmp_path)
    assert [mount.kind for mount in mounts] == ["ext4", "nfs4", "fuse.sshfs"]
    assert mount_of(Path("/my models/a"), mounts) == Mount(
        "0:41", "/sub", "/my models", "fuse.sshfs", ("rw",)
    )
    assert mount_of(Path("/elsewhere"), mounts) == mounts[0]
    assert mount_of(Path("/x"), []) is None


@pytest.mark.parametrize(
    ("kind", "severity"),
    [("ext4", "ok"), ("nfs4", "note"), ("fuse.sshfs", "note"), ("virtiofs", "note")],
)
def test_network_and_fuse_are_noted(made, request_for, monkeypatch, kind, severity):
    mounts = [Mount("0:1", "/", "/", kind, ())]
    monkeypatch.setattr("localv4.doctor_model.read_mounts", lambda: mounts)
    found = topics(diagnose(request_for(made)))["file system"]
    assert (found.severity, found.figures["kind"]) == (severity, kind)


def test_a_note_is_no_problem():
    assert not Diagnosis((ok("a", "b"), note("c", "d")), None).has_problem


@needs_compiler
@pytest.mark.slow
def test_rates_are_measured_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "cache"))
    finding, rates = check_rates(1, arena_bytes=2**22)
    assert kept_rates(1) == rates
    monkeypatch.setenv("LOCALV4_CACHE_DIR", "/dev/null")  # cannot be written
    finding, rates = check_rates(1, arena_bytes=2**22)
    assert all(value > 0 for value in dataclasses.astuple(rates))
    assert finding.figures["fp8_bytes_per_s"] == rates.fp8
