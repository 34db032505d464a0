import errno
import tomllib
from pathlib import Path

import pytest

from localv4.config_file import change_config, read_config
from localv4.errors import InvalidInput


@pytest.fixture
def file(tmp_path) -> Path:
    path: Path = tmp_path / "config.toml"
    return path


@pytest.mark.parametrize(
    ("before", "name", "value", "after"),
    [
        ("", "memory", "24GiB", 'memory = "24GiB"\n'),
        ("# mine", "threads", "4", "# mine\nthreads = 4\n"),
        ("threads = 2 # few\n", "threads", "4", "threads = 4 # few\n"),
        ('\tmodel="a # b"\t# mine\n', "model", "x'\"\\é", '\tmodel="x\'\\"\\\\é"\t# mine\n'),
        ("model = 'a'\nthink = 'off'", "think", "low", "model = 'a'\nthink = \"low\""),
        ("memory = 1_000\r\nthreads = 2\r\n", "threads", None, "memory = 1_000\r\n"),
        ("memory = 1\n# end\n", "memory", None, "# end\n"),
        ("# end\n", "memory", None, "# end\n"),
        ('session_limit = "1GiB"\n', "memory", "2GiB", 'session_limit = "1GiB"\nmemory = "2GiB"\n'),
    ],
)
def test_one_line_changes_and_the_others_stay(file, before, name, value, after):
    file.write_bytes(before.encode())
    assert change_config(file, name, value) == (before != after)
    assert file.read_bytes() == after.encode()


def test_a_file_and_its_folder_are_made(tmp_path):
    file = tmp_path / "some" / "folder" / "config.toml"
    assert not change_config(file, "think", None)
    assert not file.parent.exists()
    assert change_config(file, "think", "off")
    assert read_config(file) == {"think": "off"}
    assert not change_config(file, "think", "off")


@pytest.mark.parametrize(
    "before",
    [
        '"threads" = 2\n',
        "[model]\n",
        'model = """\nthreads = 7\n"""\nthreads = 2\n',
        'model = """\nthreads = 7\n"""\n',
    ],
)
def test_a_line_that_is_not_understood_stays(file, before):
    file.write_text(before)
    with pytest.raises(InvalidInput):
        change_config(file, "threads", "4")
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("thread", "4", "did you mean threads"),
        ("thread", None, "did you mean threads"),
        ("threads", "many", "whole number"),
        ("model", "", "empty"),
        ("model", "\udcff", "by hand"),
        ("model", "\x7f", "by hand"),
    ],
)
def test_a_setting_that_can_not_be_is_refused(file, name, value, words):
    file.write_text("# mine\n")
    with pytest.raises(InvalidInput, match=words):
        change_config(file, name, value)
    assert file.read_text() == "# mine\n"


def test_a_link_stays_a_link(file, tmp_path):
    kept = tmp_path / "repository.toml"
    kept.write_text("threads = 1\n")
    file.symlink_to(kept)
    change_config(file, "threads", "4")
    assert file.is_symlink()
    assert tomllib.loads(kept.read_text()) == {"threads": 4}


def test_a_folder_that_can_not_be_written_is_named(file, monkeypatch):
    def refuse(_suffix: str, _prefix: str, _folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "a partial file")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError) as error:
        change_config(file, "threads", "4")
    assert error.value.filename == str(file)
