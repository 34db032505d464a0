"""A damaged model of the hub's: what is said is how to get only what is damaged."""

import os

from tests.cached_models import put
from tests.small_checkpoints import shard_of


def test_a_shard_that_is_cut_short(command, cache, checkpoint):
    repo = put(cache, checkpoint)
    shard = repo.snapshot("a" * 40) / shard_of(checkpoint, "layers.1.attn.wq_a.weight").name
    os.truncate(shard, shard.stat().st_size - 1)
    result = command("run", "-m", "flash", "Hi")
    assert result.code == 3
    assert shard.name in result.err
    assert "localv4 pull flash fetches what is missing or cut short" in result.err
    assert "download it again" not in result.err


def test_a_folder_of_the_user_has_no_such_advice(command, checkpoint, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    shard = folder / shard_of(checkpoint, "layers.1.attn.wq_a.weight").name
    os.truncate(shard, shard.stat().st_size - 1)
    result = command("run", "-m", str(folder), "Hi")
    assert result.code == 3
    assert "download it again" in result.err
    assert "pull" not in result.err
