import json
import shutil

import pytest

from tests.cached_models import COMMIT, FLASH, put
from tests.small_checkpoints import make_small, shard_of

pytestmark = pytest.mark.usefixtures("cache")


def test_a_folder(command, checkpoint):
    result = command("show", str(checkpoint))
    assert (result.code, result.err) == (0, "")
    assert "fp4 experts, F8_E8M0 scales, an MTP block" in result.out
    assert "2 (1 sliding, 1 csa)" in result.out


def test_json_counts_what_is_on_disk(command, checkpoint):
    report = json.loads(command("show", "-m", str(checkpoint), "--json", "--tensors").out)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    assert report["total"]["n_tensors"] == len(index["weight_map"])
    assert report["total"]["nbytes"] == index["metadata"]["total_size"]
    assert {tensor["name"]: tensor["shard"] for tensor in report["tensors"]} == index["weight_map"]
    assert report["config"]["compress_ratios"] == [0, 4]


def test_config_json_alone_says_the_same(command, checkpoint, tmp_path):
    shutil.copy(checkpoint / "config.json", tmp_path)
    full = json.loads(command("show", str(checkpoint), "--json", "--tensors").out)
    for path in (tmp_path, tmp_path / "config.json"):
        alone = json.loads(command("show", str(path), "--json", "--tensors").out)
        assert alone["parts"] == full["parts"]
        assert {tensor["name"] for tensor in alone["tensors"]} == {
            tensor["name"] for tensor in full["tensors"]
        }


def test_tensors_are_listed_on_request(command, checkpoint):
    assert "embed.weight" not in command("show", str(checkpoint)).out
    assert "\nembed.weight BF16 [384, 256] " in command("show", str(checkpoint), "--tensors").out


@pytest.mark.parametrize(
    ("name", "tensors", "n_bytes"),
    [("flash", 69_187, 159_609_485_896), ("pro", 145_116, 864_704_792_696)],
)
def test_released_configs_give_the_published_sizes(command, shared, name, tensors, n_bytes):
    path = shared / "spec" / "configs" / f"{name}.json"
    total = json.loads(command("show", str(path), "--json").out)["total"]
    assert (total["n_tensors"], total["nbytes"]) == (tensors, n_bytes)


def test_refusals(command, checkpoint, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert command("show", str(empty)).code == 3
    (empty / "config.json").write_bytes(b"\xff{}")
    assert command("show", str(empty / "config.json")).code == 3
    assert command("show", str(tmp_path / "nothing" / "here.json")).code == 3
    assert command("show", str(checkpoint), "-m", "x").code == 2
    shard = next(checkpoint.glob("*.safetensors"))
    assert "name a checkpoint's folder, " in command("show", str(shard)).err


def rows_of(out: str) -> dict[str, str]:
    """The lines before the table, by their first words."""
    lines = out.split("\n\n")[0].splitlines()
    return {line[:12].strip(): line[13:] for line in lines}


def test_a_download_with_its_commit(command, checkpoint, cache):
    repo = put(cache, checkpoint)
    result = command("show", "flash")
    assert (result.code, result.err) == (0, "")
    rows = rows_of(result.out)
    assert (rows["model"], rows["folder"]) == ("flash", str(repo.snapshot(COMMIT)))
    assert rows["repo"] == FLASH
    assert rows["commit"] == f"{COMMIT} (main)"
    assert rows["files"] == "complete, 4 shards"
    assert rows["chat format"] == "preview"
    report = json.loads(command("show", FLASH, "--json").out)
    assert (report["name"], report["commit"], report["complete"]) == ("flash", COMMIT, True)
    assert report["disk_bytes"] == sum(path.stat().st_size for path in checkpoint.iterdir())


def test_a_part_of_a_download(command, checkpoint, cache):
    missing = shard_of(checkpoint, "layers.1.attn.wq_a.weight").name
    repo = put(cache, checkpoint, without={missing}, ref=None)
    (repo.blobs / f"{'c' * 64}.incomplete").write_bytes(b"123")
    result = command("show", "flash")
    assert (result.code, result.err) == (0, "")
    rows = rows_of(result.out)
    assert rows["files"] == "3 of 4 shards; finish with: localv4 pull flash"
    assert rows["on disk"].endswith(", and 3 B of unfinished files")
    report = json.loads(command("show", "flash", "--json").out)
    assert (report["complete"], report["missing"]) == (False, [missing])


def test_a_release_that_is_not_downloaded(command, cache):
    result = command("show", "flash")
    assert result.code == 0
    rows = rows_of(result.out)
    assert rows["model"] == "flash, not downloaded: from the released config"
    assert rows["files"] == "none; get them with: localv4 pull flash"
    report = json.loads(command("show", "pro-base", "--json").out)
    assert (report["path"], report["complete"], report["is_base"]) == (None, False, True)
    assert report["total"]["nbytes"] == 1_602_325_824_632
    # one of which only its first file has come, and not even that
    (cache / "models--deepseek-ai--DeepSeek-V4-Flash" / "snapshots" / COMMIT).mkdir(parents=True)
    assert "not downloaded" in command("show", "flash").out
    result = command("show", "flash-0731")
    assert (result.code, result.out) == (3, "")
    assert "localv4 pull flash-0731 (--dry-run only asks the hub" in result.err


def test_a_draft_that_was_left_out(command, checkpoint, cache):
    put(cache, checkpoint, without={shard_of(checkpoint, "mtp.0.norm.weight").name})
    rows = rows_of(command("show", "flash").out)
    assert rows["formats"].endswith("the MTP block not here")
    assert rows["left unread"].endswith("localv4 pull flash --include-draft gets them")
    report = json.loads(command("show", "flash", "--json").out)
    assert (report["lacks_mtp"], report["has_mtp"], report["complete"]) == (True, False, True)


def test_a_base_and_a_drafter(command, tmp_path):
    base = make_small(tmp_path / "base", "flash-base", ratios=(4,))
    assert rows_of(command("show", str(base)).out)["chat format"].startswith("none: a Base")
    dspark = make_small(tmp_path / "dspark", dspark=True, ratios=(4,))
    rows = rows_of(command("show", str(dspark)).out)
    assert (rows["chat format"], rows["left unread"]) == ("official", "10 tensors of a drafter")
