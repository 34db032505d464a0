import json
import os


def test_values_have_their_sources(command, monkeypatch, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("threads = 2\n")
    monkeypatch.setenv("LOCALV4_CONFIG", str(path))
    monkeypatch.setenv("LOCALV4_MEMORY", "1GiB")
    report = json.loads(command("config", "--json").out)
    assert report["config_file"] == str(path)
    assert report["settings"]["threads"] == {"value": 2, "source": str(path)}
    assert report["settings"]["memory"] == {"value": 2**30, "source": "LOCALV4_MEMORY"}
    assert report["settings"]["think"] == {"value": None, "source": "default"}
    cache_dir = {"value": os.environ["LOCALV4_CACHE_DIR"], "source": "LOCALV4_CACHE_DIR"}
    assert report["settings"]["cache_dir"] == cache_dir
    assert report["settings"]["session_limit"] == {"value": 20 * 2**30, "source": "default"}
    lines = command("config").out.splitlines()
    assert any(line.startswith("threads") and line.endswith(str(path)) for line in lines)


def test_a_bad_file_is_one_sentence(command, monkeypatch, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("thread = 2\n")
    monkeypatch.setenv("LOCALV4_CONFIG", str(path))
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
