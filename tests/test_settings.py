import os
import pwd
import tempfile
from pathlib import Path

import numpy as np
import pytest

from localv4.errors import InvalidInput
from localv4.settings import (
    cache_folder,
    config_file,
    first_variable,
    history_file,
    load_settings,
    session_folder,
    text_editor,
    words_to_complete,
)
from localv4.sizes import format_bytes, parse_bytes


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    path: Path = tmp_path / "config.toml"
    monkeypatch.setenv("LOCALV4_CONFIG", str(path))
    return path


def test_defaults_leave_choices_to_the_engine(config):
    settings = load_settings()
    assert (settings.model, settings.memory, settings.threads, settings.context) == (None,) * 4
    assert (settings.numerics, settings.think, settings.profile) == ("trained", None, None)
    assert settings.sources["numerics"] == "default"


def test_flags_beat_environment_beats_file(config, monkeypatch):
    config.write_text('memory = "1GiB"\nthreads = 2\nthink = "low"\n')
    monkeypatch.setenv("LOCALV4_MEMORY", "2GiB")
    monkeypatch.setenv("LOCALV4_THREADS", "3")
    settings = load_settings({"memory": "3GiB", "threads": None})
    assert settings.memory == 3 * 2**30
    assert settings.threads == 3
    assert settings.think == "low"
    assert settings.sources["memory"] == "--memory"
    assert settings.sources["threads"] == "LOCALV4_THREADS"
    assert settings.sources["think"] == str(config)


def test_an_empty_variable_counts_as_unset(config, monkeypatch):
    monkeypatch.setenv("LOCALV4_THREADS", "")
    assert load_settings().threads is None


def test_file_may_give_bytes_as_a_number(config):
    config.write_text("memory = 1073741824")
    assert load_settings().memory == 2**30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory = ", "not valid TOML"),
        ("memmory = 1", "did you mean memory"),
        ("zzz = 1", "known are model, memory"),
        ('memory = "lots"', "not a size"),
        ("memory = 0", "above zero"),
        ("memory = 24", "24 is 24 bytes; for 24 GiB say 24GiB"),
        ("memory = true", "not a size"),
        ('session_limit = "0"', "above zero"),
        ("memory = [1]", "not a size"),
        ("threads = 1.5", "whole number"),
        ("threads = true", "whole number"),
        ("context = -1", "whole number"),
        ('think = "hard"', "off, low, high, max"),
        ("history = 1", "give on or off"),
        ('history = "yes"', "give on or off"),
        ("think = 3", "off, low, high, max"),
        ("model = 7", "not a text"),
        ('model = ""', "the name of the model is empty"),
        (f"memory = {'9' * 5000}", "number too long"),
        (f"memory = 0x{'f' * 5000}", "a huge number is more than any machine has"),
        (f"memory = {'[' * 5000}", "nested too deeply"),
        ('cache_dir = "~nobody-of-this-name/x"', "no home folder ~nobody-of-this-name"),
    ],
)
def test_bad_files_are_refused_with_their_path(config, text, words):
    config.write_text(text)
    with pytest.raises(InvalidInput, match=words) as error:
        load_settings()
    assert str(config) in str(error.value)


def test_a_file_that_is_not_utf8_is_refused(config):
    config.write_bytes(b'model = "\xff"')
    with pytest.raises(InvalidInput, match="not UTF-8 text: byte 0xff at 9; correct"):
        load_settings()


def test_a_folder_in_place_of_the_file_is_refused(config):
    config.mkdir()
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_settings()


def test_a_bad_variable_is_named(config, monkeypatch):
    monkeypatch.setenv("LOCALV4_THREADS", "many")
    with pytest.raises(InvalidInput, match="LOCALV4_THREADS"):
        load_settings()


def test_a_misspelt_variable_is_a_warning(config, monkeypatch):
    monkeypatch.setenv("LOCALV4_MEMROY", "1GiB")
    (warning,) = load_settings().warnings
    assert "LOCALV4_MEMROY" in warning
    assert "LOCALV4_MEMORY" in warning


def test_color_follows_no_color_and_term(config, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert load_settings().color
    monkeypatch.setenv("TERM", "dumb")
    assert not load_settings().color
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not load_settings().color


def test_cache_folder_and_config_file_follow_the_environment(config, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    assert config_file() == config
    monkeypatch.delenv("LOCALV4_CONFIG")
    found = config_file()
    assert found is not None
    assert found.name == "config.toml"


def test_sessions_have_a_folder_and_a_limit(config, monkeypatch, tmp_path):
    assert load_settings().session_limit == 20 * 2**30
    assert session_folder().parts[-2:] == ("localv4", "sessions")
    config.write_text('session_limit = "1GiB"\nsessions_dir = "/elsewhere"\n')
    settings = load_settings()
    assert (settings.session_limit, settings.sessions_dir) == (2**30, Path("/elsewhere"))
    monkeypatch.setenv("LOCALV4_SESSION_LIMIT", "2GiB")
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", str(tmp_path / "sessions"))
    assert load_settings().session_limit == 2**31
    assert session_folder() == tmp_path / "sessions"
    assert not session_folder().exists()


def test_history_is_kept_unless_it_is_switched_off(config, monkeypatch):
    assert load_settings().history
    config.write_text("history = false\n")
    assert not load_settings().history
    monkeypatch.setenv("LOCALV4_HISTORY", "on")
    assert load_settings().history
    settings = load_settings({"history": False})
    assert not settings.history
    assert settings.sources["history"] == "--no-history"
    config.write_text('history = "off"\n')
    monkeypatch.delenv("LOCALV4_HISTORY")
    assert not load_settings({"history": None}).history


def test_history_has_a_file_of_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    found = history_file()
    assert found is not None
    assert found.name == "history"
    assert not found.parent.exists()


def test_the_users_editor_is_the_visual_one_first(monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "")
    assert text_editor() is None
    monkeypatch.setenv("EDITOR", "ed")
    assert text_editor() == "ed"
    monkeypatch.setenv("VISUAL", "vi -e")
    assert text_editor() == "vi -e"


def test_a_config_file_of_nobody_is_refused(monkeypatch):
    monkeypatch.setenv("LOCALV4_CONFIG", "~nobody-of-this-name/x")
    with pytest.raises(InvalidInput, match=r"LOCALV4_CONFIG: there is no home folder"):
        config_file()


@pytest.fixture
def homeless(monkeypatch, tmp_path) -> Path:
    """A user without a home folder; returns where the cache should be."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LOCALV4_CACHE_DIR", raising=False)
    monkeypatch.delenv("LOCALV4_CONFIG", raising=False)

    def nobody(_uid):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder: Path = tmp_path / f"localv4-{os.getuid()}"
    return folder


def test_without_a_home_folder_the_cache_is_a_temporary_one(homeless):
    settings = load_settings()
    assert settings.cache_dir == homeless
    assert homeless.stat().st_mode & 0o777 == 0o700
    (warning,) = settings.warnings
    assert "LOCALV4_CACHE_DIR" in warning
    assert config_file() is None
    assert history_file() is None


def test_without_a_home_folder_sessions_need_a_named_one(homeless, monkeypatch, tmp_path):
    assert load_settings().sessions_dir is None
    with pytest.raises(InvalidInput, match="LOCALV4_SESSIONS_DIR"):
        session_folder()
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", str(tmp_path))
    assert session_folder() == tmp_path


def test_a_temporary_cache_of_somebody_else_is_refused(homeless, tmp_path):
    homeless.mkdir()
    homeless.chmod(0o777)
    with pytest.raises(InvalidInput, match=r"others may write.*LOCALV4_CACHE_DIR"):
        load_settings()
    homeless.rmdir()
    homeless.symlink_to(tmp_path)
    with pytest.raises(InvalidInput, match=r"LOCALV4_CACHE_DIR"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("24GiB", 24 * 2**30),
        ("24 gib", 24 * 2**30),
        ("1.5G", 1_500_000_000),
        ("500MB", 500_000_000),
        ("4Ki", 4096),
        ("7", 7),
        (7, 7),
        (np.int64(7), 7),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_parse_bytes(text, n_bytes):
    assert parse_bytes(text) == n_bytes


NO_SIZES = ["", "GiB", "1XB", "-1GiB", "1e9", "0", "0.1", 0, -1, "1..2", "٣", 1.5, True, None]
NO_SIZES += ["9" * 5000, "9" * 400 + ".5GiB", 10**5000, "8388608TiB", np.float32(1)]


@pytest.mark.parametrize("size", NO_SIZES, ids=lambda size: str(type(size)))
def test_parse_bytes_refuses(size):
    with pytest.raises(InvalidInput) as error:
        parse_bytes(size)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (149 * 2**30, "149 GiB"),
        (1602325824632, "1.46 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_format_bytes(n_bytes, text):
    assert format_bytes(n_bytes) == text


CHAT, REASONER = "deepseek-chat", "DeepSeek-Reasoner"


@pytest.mark.parametrize(
    ("flags", "variables", "file", "think", "source"),
    [
        ({"model": CHAT}, {}, {}, "off", f"model {CHAT} (--model)"),
        ({"model": REASONER}, {}, {}, "high", f"model {REASONER} (--model)"),
        ({}, {"model": CHAT}, {}, "off", f"model {CHAT} (LOCALV4_MODEL)"),
        ({}, {}, {"model": CHAT}, "off", f"model {CHAT} (FILE)"),
        # the same layer, or one above, says it itself
        ({"model": CHAT, "think": "max"}, {}, {}, "max", "--think"),
        ({}, {"model": CHAT, "think": "low"}, {}, "low", "LOCALV4_THINK"),
        ({}, {}, {"model": CHAT, "think": "low"}, "low", "FILE"),
        ({"think": "max"}, {"model": CHAT}, {}, "max", "--think"),
        ({}, {"think": "low"}, {"model": CHAT}, "low", "LOCALV4_THINK"),
        # a layer below says it
        ({"model": CHAT}, {"think": "max"}, {}, "off", f"model {CHAT} (--model)"),
        ({"model": CHAT}, {}, {"think": "max"}, "off", f"model {CHAT} (--model)"),
        ({}, {"model": CHAT}, {"think": "max"}, "off", f"model {CHAT} (LOCALV4_MODEL)"),
        # another model above
        ({"model": "flash"}, {}, {"model": CHAT}, None, "default"),
        ({"model": "/a/folder"}, {"model": CHAT}, {"think": "low"}, "low", "FILE"),
        ({"model": REASONER}, {"model": CHAT}, {}, "high", f"model {REASONER} (--model)"),
    ],
)
def test_a_models_name_may_imply_thinking(
    config, monkeypatch, flags, variables, file, think, source
):
    for name, value in variables.items():
        monkeypatch.setenv(f"LOCALV4_{name.upper()}", value)
    config.write_text("".join(f'{name} = "{value}"\n' for name, value in file.items()))
    settings = load_settings(flags)
    assert settings.think == think
    assert settings.sources["think"] == source.replace("FILE", str(config))


def test_a_folder_goes_before_the_alias_and_its_thinking(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / CHAT).mkdir()
    assert load_settings({"model": CHAT}).think == "off"
    (tmp_path / CHAT / "config.json").touch()
    assert load_settings({"model": CHAT}).think is None


def test_words_to_complete_are_those_of_the_shell(monkeypatch):
    monkeypatch.setenv("COMP_WORDS", "localv4 run")
    assert words_to_complete() is None
    monkeypatch.setenv("_LOCALV4_COMPLETE", "complete_bash")
    assert words_to_complete() == ["localv4", "run"]


def test_the_first_variable_that_is_set_is_found(monkeypatch):
    monkeypatch.setenv("SECOND", "2")
    monkeypatch.setenv("FIRST", "")
    assert first_variable("FIRST", "SECOND") == "SECOND"
    monkeypatch.setenv("FIRST", "1")
    assert first_variable("FIRST", "SECOND") == "FIRST"
    assert first_variable("NONE_OF_THESE") is None
