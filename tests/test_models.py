import subprocess
import sys
from pathlib import Path

import pytest

from localv4 import synthetic
from localv4.errors import InvalidInput, ModelNotFound, OutOfBudget
from localv4.models import builtin_folder, resolve


def test_a_folder_is_itself(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nothing", "check the path"),
        ("/no/such/folder", "check the path"),
        ("~/no-such-folder-of-localv4", "check the path"),
        ("deepseek-ai/DeepSeek-V4-Flash", "download"),
        ("flash", "download"),
        (__file__, "is a file"),
        ("~nobody-of-this-name/x", "check the path"),
        ("x" * 300, "File name too long.*check the path"),
        ("nul\0", "no folder"),
        ("", "name of the model is empty"),
    ],
)
def test_what_is_not_there(name, words):
    with pytest.raises(ModelNotFound, match=words):
        resolve(name)


def test_the_built_in_model_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path))
    said: list[str] = []
    folder = resolve(None, said.append)
    assert folder == builtin_folder()
    assert len(said) == 1
    before = (folder / "config.json").stat().st_mtime_ns
    assert resolve(None, said.append) == folder
    assert len(said) == 1
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_a_folder_that_may_not_be_read(monkeypatch):
    def refuse(_path, **_rest):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ModelNotFound, match=r"Permission denied.*who may read it"):
        resolve("/root/model")


def test_an_empty_folder_in_place_of_the_built_in_model_is_filled(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path))
    builtin_folder().mkdir(parents=True)
    assert (resolve(None) / "config.json").is_file()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match=r"can't be written.*; let LOCALV4_CACHE_DIR"):
        resolve(None)

    def fill(folder):
        raise OutOfBudget(f"the disk is too full for {folder}; free some")

    monkeypatch.setattr(synthetic, "synthesise", fill)
    with pytest.raises(OutOfBudget, match=r"too full.*LOCALV4_CACHE_DIR"):
        resolve(None)


def test_two_processes_make_the_built_in_model_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path))
    code = "from localv4.models import resolve; print(resolve(None))"
    command = [sys.executable, "-W", "error", "-c", code]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert folders == {str(builtin_folder())}
    # Nothing half made is left.
    assert [path.name for path in Path(builtin_folder()).parent.iterdir()] == [
        builtin_folder().name
    ]
