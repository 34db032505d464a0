import json
import os
from pathlib import Path

import pytest

from localv4.cli.output import Output


@pytest.fixture
def file(monkeypatch, tmp_path) -> Path:
    path: Path = tmp_path / "config.toml"
    monkeypatch.setenv("LOCALV4_CONFIG", str(path))
    return path


def test_values_have_their_sources(command, monkeypatch, file):
    file.write_text("threads = 2\n")
    monkeypatch.setenv("LOCALV4_MEMORY", "1GiB")
    report = json.loads(command("config", "--json").out)
    assert report["config_file"] == str(file)
    assert report["settings"]["threads"] == {"value": 2, "source": str(file)}
    assert report["settings"]["memory"] == {"value": 2**30, "source": "LOCALV4_MEMORY"}
    assert report["settings"]["think"] == {"value": None, "source": "default"}
    cache_dir = {"value": os.environ["LOCALV4_CACHE_DIR"], "source": "LOCALV4_CACHE_DIR"}
    assert report["settings"]["cache_dir"] == cache_dir
    assert report["settings"]["session_limit"] == {"value": 20 * 2**30, "source": "default"}
    assert report["tier"] == {"value": None, "source": "default"}
    lines = command("config").out.splitlines()
    assert any(line.startswith("threads") and line.endswith(str(file)) for line in lines)
    assert any(line.split() == ["memory", "1.00", "GiB", "LOCALV4_MEMORY"] for line in lines)


def test_the_hubs_own_variables_are_shown_but_never_the_token(command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = command("config", "--json")
    hub = json.loads(result.out)["hub"]
    assert hub["token"] == {"value": True, "source": "HF_TOKEN"}
    assert hub["offline"] == {"value": True, "source": "HF_HUB_OFFLINE"}
    assert hub["cache"]["value"]
    assert "hf_secret" not in result.out + command("config", "-vv").out
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("localv4.cli.config.token_file", lambda: Path("/home/me/token"))
    assert json.loads(command("config", "--json").out)["hub"]["token"] == {
        "value": True,
        "source": "/home/me/token",
    }


@pytest.mark.parametrize("columns", [80, 200, None])
def test_every_value_is_whole_and_lines_fit_where_they_can(command, monkeypatch, file, columns):
    monkeypatch.setattr(Output, "answer_columns", columns)
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", f"/{'x' * 60}")
    file.write_text('memory = "1GiB"\n')
    lines = command("config").out.splitlines()
    (number,) = (row for row, line in enumerate(lines) if line.startswith("sessions_dir"))
    if columns == 80:
        assert lines[number].split() == ["sessions_dir", f"/{'x' * 60}"]
        assert lines[number + 1].split() == ["LOCALV4_SESSIONS_DIR"]
    else:
        assert lines[number].split() == ["sessions_dir", f"/{'x' * 60}", "LOCALV4_SESSIONS_DIR"]


def test_the_path_alone_is_for_scripts(command, file):
    assert command("config", "--path").out == f"{file}\n"


def test_a_model_that_is_nowhere_is_warned_of(command, file):
    result = command("config", "set", "model", "flahs")
    assert result.code == 0
    assert "there is no model flahs here; localv4 list has those there are" in result.err
    assert "there is no model" not in command("config", "set", "model", "flash").err


def test_set_and_unset_change_the_file(command, monkeypatch, file):
    result = command("config", "set", "memory", "24GiB")
    assert (result.code, result.out) == (0, "")
    assert result.err == f"memory is 24GiB in {file}\n"
    assert file.read_text() == 'memory = "24GiB"\n'
    monkeypatch.setenv("LOCALV4_MEMORY", "1GiB")
    assert "LOCALV4_MEMORY is set too" in command("config", "set", "memory", "2GiB").err
    assert command("config", "unset", "memory").code == 0
    assert file.read_text() == ""
    assert "as before" in command("config", "unset", "memory").err


@pytest.mark.parametrize("words", [["set", "memroy", "1"], ["unset", "memroy"]])
def test_a_misspelt_setting_names_the_nearest(command, file, words):
    result = command("config", *words)
    assert (result.code, result.out) == (2, "")
    assert "did you mean memory?" in result.err
    assert not file.exists()


def test_a_bad_file_is_one_sentence(command, file):
    file.write_text("thread = 2\n")
    result = command("config")
    assert (result.code, result.out) == (2, "")
    assert "did you mean threads?" in result.err


def test_a_misspelt_variable_is_a_warning(command, monkeypatch):
    monkeypatch.setenv("LOCALV4_MEMROY", "1GiB")
    result = command("config")
    assert result.code == 0
    assert "LOCALV4_MEMORY" in result.err


def test_without_a_home_folder_there_is_no_file(command, monkeypatch):
    monkeypatch.setattr("localv4.cli.config.config_file", lambda: None)
    assert "file: none" in command("config").out
    assert json.loads(command("config", "--json").out)["config_file"] is None
    for words in (["--path"], ["set", "threads", "1"]):
        result = command("config", *words)
        assert (result.code, result.out) == (2, "")
        assert "LOCALV4_CONFIG" in result.err
