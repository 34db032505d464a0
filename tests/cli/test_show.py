import json
import shutil

import pytest


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
    assert "name the checkpoint's folder" in command("show", str(shard)).err
