import subprocess
import sys
from pathlib import Path

import pytest

from localv4.errors import ModelNotFound
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
