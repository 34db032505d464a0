"""``--log-file``: what it holds, what it never holds, and files that can't be written."""

import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from localv4.cli.app import COMMANDS
from localv4.errors import DamagedCheckpoint
from localv4.events import ToolCall
from tests.cli.conftest import done, event

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR) +\[\d+\] \w+: "
)
PROMPT, ANSWER, THOUGHT, TOKEN = "zebra question", "yak answer", "gnu thought", "hf_lynx"


@pytest.fixture
def log(tmp_path) -> Path:
    path: Path = tmp_path / "log"
    return path


def test_a_log_says_what_ran_and_how_it_ended(command, engine, log):
    assert command("run", "Hi", "--log-file", str(log)).code == 0
    lines = log.read_text().splitlines()
    assert all(LINE.match(line) for line in lines)
    assert "localv4 run: localv4 " in lines[0]
    assert any("tier " in line and "plan: " in line and "threads 2" in line for line in lines)
    assert any("prompt 5 tokens" in line for line in lines)
    assert "exit code 0 after " in lines[-1]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_log_is_added_to(command, log):
    for _ in range(2):
        command("config", "--log-file", str(log))
    assert log.read_text().count("exit code 0") == 2


def test_an_error_is_there_with_its_traceback(command, engine, log):
    engine.events = [DamagedCheckpoint("torn\x1b[2J")]
    result = command("run", "Hi", "--log-file", str(log))
    assert result.code == 3
    assert "Traceback" not in result.err
    text = log.read_text()
    assert "ERROR" in text
    assert "Traceback" in text
    assert "torn\\x1b[2J" in text
    assert "\x1b" not in text
    assert "exit code 3" in text


@pytest.mark.parametrize("arguments", [["run", PROMPT, "-vv"], ["run", "--raw", PROMPT], ["chat"]])
def test_prompts_answers_and_tokens_are_never_there(command, engine, monkeypatch, log, arguments):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    call = event("tool_call", tool_call=ToolCall("c1", ANSWER, "{}"))
    engine.events = [event("reasoning", THOUGHT), event("text", ANSWER), call, done()]
    typed = f"{PROMPT}\n/{PROMPT}\n/sessions\n".encode() if arguments == ["chat"] else b""
    result = command(*arguments, "--log-file", str(log), "--system", PROMPT, stdin=typed)
    if "--raw" not in arguments:
        assert (result.code, ANSWER in result.out) == (0, True)
        assert ANSWER in result.err
    text = log.read_text()
    for secret in (PROMPT, ANSWER, THOUGHT, TOKEN, "zebra"):
        assert secret not in text


def test_a_loaded_conversation_is_not_there(command, engine, monkeypatch, tmp_path, log):
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", str(tmp_path / "sessions"))
    engine.events = [event("text", ANSWER), done()]
    command("chat", "--session", "s", stdin=PROMPT.encode())
    result = command("chat", "--session", "s", "-v", "--log-file", str(log), stdin=b"/sessions\n")
    assert PROMPT in result.err
    assert PROMPT not in log.read_text()
    assert ANSWER not in log.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_flag(command, name):
    assert "--log-file FILE" in command(name, "--help").out


def test_a_command_below_a_table_takes_it_too(command, monkeypatch, tmp_path, log):
    monkeypatch.setenv("LOCALV4_CONFIG", str(tmp_path / "config.toml"))
    command("config", "--log-file", str(log), "set", "threads", "1")
    command("config", "set", "threads", "2", "--log-file", str(log))
    assert log.read_text().count("localv4 config set: ") == 2


def test_settings_name_the_file_too(command, monkeypatch, tmp_path, log):
    monkeypatch.setenv("LOCALV4_LOG_FILE", str(log))
    command("config")
    assert "exit code 0" in log.read_text()
    other = tmp_path / "other"
    command("config", "--log-file", str(other))
    assert other.exists()
    assert log.read_text().count("exit code") == 1


@pytest.mark.parametrize("path", ["/no/such/folder/log", "/", "", "a\0b", "FIFO"])
def test_a_file_that_can_not_be_opened_is_a_usage_error(command, engine, tmp_path, path):
    if path == "FIFO":
        path = str(tmp_path / "fifo")
        os.mkfifo(path)
    result = command("run", "Hi", "--log-file", path)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("localv4: --log-file: ")
    assert result.err.count("\n") == 1
    assert not engine.asked


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_warning(command, engine):
    result = command("run", "Hi", "-v", "--log-file", "/dev/full")
    assert (result.code, result.out) == (0, "Hello")
    assert result.err.count("No space left") == 1


def test_vv_shows_what_the_library_logs(command, engine, log):
    def speak() -> None:
        logging.getLogger("localv4.reads").debug("a detail\nof reads")
        logging.getLogger("localv4.reads").warning("a worry")
        logging.getLogger("elsewhere").warning("not ours")

    engine.events = [speak, done()]
    assert "a detail" not in command("run", "Hi", "-v").err
    result = command("run", "Hi", "-vv", "--log-file", str(log))
    assert "localv4.reads: a detail\\nof reads\n" in result.err
    assert "localv4: a worry\n" in result.err
    assert "a detail; of reads" in log.read_text()
    assert "not ours" not in log.read_text()
    assert logging.getLogger("localv4").handlers == []


def test_nothing_is_logged_to_the_screen_before_there_is_a_log():
    result = subprocess.run(
        [sys.executable, "-m", "localv4", "nonsense"], capture_output=True, text=True, check=False
    )
    assert result.stderr.count("\n") == 1
