import json
import shutil
from types import SimpleNamespace

import pytest


def test_makes_a_checkpoint_and_says_how_to_try_it(command, tmp_path):
    folder = tmp_path / "new" / "model"
    flags = "--preset pro-base --seed 3 --compress-ratios 0,128 --size n_routed_experts=4"
    result = command("synth", str(folder), *flags.split(), "--layout", "single")
    assert (result.code, result.out) == (0, "")
    assert f"localv4 run -m {folder} --raw" in result.err
    report = json.loads(command("show", str(folder), "--json").out)
    assert report["expert_format"] == "fp8"
    assert report["config"]["compress_ratios"] == [0, 128]
    assert report["config"]["n_routed_experts"] == 4
    assert (folder / "model.safetensors").is_file()


def test_a_drafter_is_left_unread(command, tmp_path):
    folder = str(tmp_path / "model")
    assert command("synth", folder, "--dspark", "--compress-ratios", "0", "-q").err == ""
    assert "tensors of a drafter" in command("show", folder).out


def test_the_seed_decides_the_bytes(command, tmp_path):
    written = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        folder = tmp_path / name
        command("synth", str(folder), "--seed", seed, "--compress-ratios", "0")
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_skewed_routing_is_noted_in_the_checkpoint(command, tmp_path):
    noted = []
    for name, flags in (("plain", []), ("random", ["random"]), ("skewed", ["skewed"])):
        folder = tmp_path / name
        routing = ["--routing", *flags] if flags else []
        assert command("synth", str(folder), "--compress-ratios", "0", *routing).code == 0
        noted.append((folder / "generation_config.json").read_text())
    assert noted[0] == noted[1]
    assert json.loads(noted[2]) == json.loads(noted[0]) | {"localv4_routing": "skewed"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--size", "hidden=3"], "did you mean hidden_size"),
        (["--size", "zzz=3"], "known are vocab_size"),
        (["--size", "hidden_size"], "write hidden_size=256"),
        (["--size", "hidden_size=-1"], "write hidden_size=256"),
        (["--size", "hidden_size=100"], "multiple of 128"),
        (["--size", "hidden_size=65536"], "2.00 GiB"),
        (["--compress-ratios", "a"], "0,4,128"),
        (["--compress-ratios", "3"], "3"),
        (["--compress-ratios", ""], "0,4,128"),
        (["--seed", "-1"], "seed"),
        (["--layers", "0"], "from 1 to 512"),
        (["--layers", "many"], "--layers"),
        (["--full-width", "--layers", "44"], "from 1 to 43"),
        (["--layers", "2", "--compress-ratios", "0"], "both given"),
        (["--dspark", "--mtp"], "ask for one"),
        (["--preset", "huge"], "'flash', 'pro'"),
        (["--routing", "even"], "'random', 'uniform', 'skewed'"),
    ],
)
def test_refusals(command, tmp_path, flags, words):
    folder = tmp_path / "model"
    result = command("synth", str(folder), *flags)
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert not folder.exists()


def test_an_occupied_folder_is_left_alone(command, tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert command("synth", str(tmp_path)).code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_hint_can_be_typed_as_it_is(command, tmp_path):
    folder = tmp_path / "two words"
    result = command("synth", str(folder), "--compress-ratios", "0")
    assert f"localv4 run -m '{folder}' Hello" in result.err


def test_a_sparse_full_width_checkpoint_is_shown_like_the_real_one(command, tmp_path):
    folder = str(tmp_path / "model")
    made = command(
        "synth", folder, "--preset", "flash", "--full-width", "--sparse", "--layers", "1"
    )
    assert (made.code, made.out) == (0, "")
    assert made.err.count("\n") == 1
    assert f"MiB on disk; try: localv4 show {folder}" in made.err
    report = json.loads(command("show", folder, "--json").out)
    assert report["config"]["hidden_size"] == 4096
    assert report["config"]["num_nextn_predict_layers"] == 1


def test_a_size_changes_the_full_width(command, tmp_path):
    folder = str(tmp_path / "model")
    flags = "--full-width --sparse --no-mtp --layers 1 --size n_routed_experts=8"
    assert command("synth", folder, *flags.split(), "-q").err == ""
    config = json.loads(command("show", folder, "--json").out)["config"]
    assert (config["n_routed_experts"], config["moe_intermediate_size"]) == (8, 2048)
    assert config["num_nextn_predict_layers"] == 0


def test_a_full_disk_is_refused_with_both_numbers(command, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    result = command("synth", str(tmp_path / "model"), "--full-width", "--layers", "3")
    assert (result.code, result.out) == (4, "")
    assert "needs 12.0 GiB and 1.00 GiB are free" in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
