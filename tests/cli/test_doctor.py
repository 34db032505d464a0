"""The shape of what doctor prints, and its exit codes."""

import json
import shutil

import pytest

from localv4 import doctor as library
from localv4.findings import ok
from localv4.machine_rates import CpuRates
from tests.cached_models import put
from tests.small_checkpoints import shard_of

RATES = CpuRates(20e9, 17e9, 16e9, 18e9, 2e11)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "check_rates", lambda _: (ok("speed", "given"), RATES))
    monkeypatch.setattr(library, "_DISK_S", 0.01)


def test_the_whole_picture(command, checkpoint, measured):
    result = command("doctor", "-m", str(checkpoint), "--threads", "1")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == f"model {checkpoint}"
    for topic in ("memory", "cpu", "threads", "cache folder", "checkpoint", "budget", "disk"):
        assert any(line[:8].strip() in ("ok", "note") and line[8:].startswith(topic)
                   for line in lines), topic  # fmt: skip
    for row in ("floor", "likely", "warm"):
        assert any(line.startswith(row) for line in lines)
    assert "what would help most" in lines
    paths = str(checkpoint), str(checkpoint.parent)
    wide = [line for line in lines[1:] if len(line) > 80 and not any(p in line for p in paths)]
    assert [line for line in wide if " " in line[22:]] == []


def test_json(command, checkpoint, measured):
    result = command("doctor", "-m", str(checkpoint), "--json", "--routing", "uniform")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert set(report) == {"version", "model", "repo_id", "has_problem", "findings", "outlook"}
    assert (report["model"], report["has_problem"]) == (str(checkpoint), False)
    for finding in report["findings"]:
        assert set(finding) == {"severity", "topic", "text", "figures"}
    outlook = report["outlook"]
    assert outlook["routing"] == "uniform"
    for row in ("floor", "likely", "warm"):
        assert outlook[row]["token_s"] * outlook[row]["tokens_s"] == pytest.approx(1)
    assert {gain["what"] for gain in outlook["gains"]} == {"memory", "disk", "cpu"}


def test_quick_measures_nothing(command, checkpoint, monkeypatch):
    monkeypatch.setattr(library, "check_rates", pytest.fail)
    monkeypatch.setattr(library, "check_disk", pytest.fail)
    result = command("doctor", "-m", str(checkpoint), "--quick", "--json")
    assert result.code == 0
    assert json.loads(result.out)["outlook"] is None


def test_a_config_alone(command, checkpoint, tmp_path, measured):
    shutil.copy(checkpoint / "config.json", tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        result = command("doctor", "-m", str(path), "--disk-gb-s", "3.5", "--json")
        assert result.code == 0
        report = json.loads(result.out)
        disk = [each for each in report["findings"] if each["topic"] == "disk"]
        assert disk[0]["figures"]["bytes_per_s"] == 3.5e9


def test_problems_are_exit_code_1(command, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    next(broken.glob("*.safetensors")).unlink()
    result = command("doctor", "-m", str(broken), "--quick")
    assert (result.code, result.err) == (1, "")
    assert "\nPROBLEM checkpoint" in result.out
    result = command("doctor", "-m", str(broken), "--quick", "--json")
    assert result.code == 1
    assert json.loads(result.out)["has_problem"] is True
    result = command("doctor", "-m", str(checkpoint), "--quick", "--memory", "1MiB")
    assert result.code == 1
    assert "PROBLEM budget" in result.out
    assert "give it" in result.out


def test_a_cache_folder_that_is_a_file(command, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "file"))
    result = command("doctor", "-m", str(checkpoint), "--quick")
    assert result.code == 1
    assert "\nPROBLEM cache folder" in result.out
    # the built-in model can't be made there either
    result = command("doctor", "--quick")
    assert result.code == 1
    assert result.out.startswith("model unknown\n")
    assert "\nPROBLEM built-in model" in result.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("-m /nowhere/at/all", 3, "/nowhere"),
        ("--routing odd", 2, "skewed or uniform"),
        ("--disk-gb-s 0", 2, "--disk-gb-s"),
        ("--disk-gb-s nan", 2, "--disk-gb-s"),
        ("--memory much", 2, "24GiB"),
        ("--threads 0", 2, "threads"),
        ("--threads 99999 --quick", 2, "threads"),
    ],
)
def test_refusals(command, arguments, code, words):
    result = command("doctor", *arguments.split())
    assert (result.code, result.out) == (code, "")
    assert words in result.err


def test_a_folder_without_a_config(command, tmp_path):
    assert command("doctor", "-m", str(tmp_path), "--quick").code == 3


def finding(out: str, topic: str) -> str:
    """What a report says of a topic, on one line."""
    _, _, rest = " ".join(out.split()).partition(f" {topic} ")
    return rest.partition(" ok ")[0]


def test_a_release_before_its_download(command, measured):
    result = command("doctor", "-m", "flash", "--memory", "32GiB")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("model flash, not downloaded: from the released config\n")
    assert finding(result.out, "checkpoint").startswith(
        "not downloaded; it would take 145 GiB, and the hub's cache is on a disk with "
    )
    assert any(line.startswith("likely") for line in result.out.splitlines())
    report = json.loads(command("doctor", "-m", "pro", "--quick", "--json").out)
    assert (report["model"], report["repo_id"]) == (None, "deepseek-ai/DeepSeek-V4-Pro")


def test_a_later_release_before_its_download(command):
    result = command("doctor", "-m", "pro-0813", "--quick")
    assert (result.code, result.out) == (3, "")
    assert "get it with: localv4 pull pro-0813 (--dry-run only asks the hub" in result.err


def test_a_part_of_a_download(command, checkpoint, cache):
    missing = shard_of(checkpoint, "layers.1.attn.wq_a.weight").name
    put(cache, checkpoint, without={missing}, ref=None)
    result = command("doctor", "-m", "flash", "--quick")
    assert result.code == 1
    assert f"1 of 4 shards are missing ({missing}): get them with localv4 pull flash" in (
        " ".join(result.out.split())
    )


def test_a_download_without_the_draft(command, checkpoint, cache):
    put(cache, checkpoint, without={shard_of(checkpoint, "mtp.0.norm.weight").name})
    result = command("doctor", "-m", "flash", "--quick")
    assert result.code == 0
    assert result.out.startswith("model flash\n")
    assert "left out of the download; it is for drafting alone" in " ".join(result.out.split())
