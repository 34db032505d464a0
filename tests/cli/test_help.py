"""Every ``--help``: it fits a terminal, and its examples run as they are written."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from localv4.cli.app import COMMANDS, command_table, run_command
from localv4.synthetic import synthesise
from tests.cli.conftest import Stdin
from tests.conftest import ROOT
from tests.loopback_hub import LoopbackHub

WIDTH = 80
HEADING = "\nExamples:\n"

# Only parsed: the words an example begins with, and why.
NOT_RUN = {
    "localv4 bench": "takes minutes of a machine at rest; tests/cli/test_bench*.py run them small",
    "localv4 doctor\n": "measures for some seconds, as in tests/cli/test_doctor.py",
    "localv4 doctor -m flash": "the same",
    "localv4 synth wide": "writes 17 GB",
    "localv4 sessions rm garden\n": "asks in a terminal",
    "localv4 rm flash-base\n": "asks in a terminal",
    "localv4 rm pro": "removes a commit that nobody else has",
}
# Tells by its exit code what is wrong with this machine.
MAY_FAIL = "localv4 doctor"
IN_A_SHELL = re.compile(r"[|<>$]")
# Examples build on each other: what is fetched is used, and removed in the end.
FIRST, LAST = ("localv4 pull", "localv4 synth"), ("localv4 rm", "localv4 sessions rm")


@dataclass(frozen=True)
class Place:
    """Where examples run: a home folder of their own, and an environment for shells."""

    folder: Path
    environment: dict[str, str]


def _commands() -> Iterator[tuple[str, Any]]:
    """Yield every command line that --help can follow, with its command."""
    for name, command in get_command(command_table()).commands.items():  # type: ignore[attr-defined]
        yield f"localv4 {name}", command
        for below, part in getattr(command, "commands", {}).items():
            yield f"localv4 {name} {below}", part


TABLE = dict(_commands())
EXAMPLES = [example for command in TABLE.values() for example in command.examples.splitlines()]


def _order(example: str) -> int:
    return 1 + example.startswith(LAST) - example.startswith(FIRST)


RUN = sorted((line for line in EXAMPLES if not f"{line}\n".startswith(tuple(NOT_RUN))), key=_order)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    """Make a home folder, a hub with two tiny models, and what the examples name."""
    home: Path = tmp_path_factory.mktemp("home")
    folder = home / "here"
    folder.mkdir()
    (folder / "letter.txt").write_text("Dear localv4")
    (home / ".config/fish/completions").mkdir(parents=True)
    program = home / "bin" / "localv4"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m localv4 "$@"\n')
    program.chmod(0o755)
    synthesise(home / "flash", compress_ratios=(0,))
    synthesise(home / "base", "flash-base", compress_ratios=(0,))
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        hub.use(monkeypatch, home / "hf")
        hub.add("deepseek-ai/DeepSeek-V4-Flash", home / "flash")
        hub.add("deepseek-ai/DeepSeek-V4-Flash-Base", home / "base")
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("LOCALV4_CONFIG", str(home / "config.toml"))
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "stdin", Stdin(b"Hello\n", False))
        chat = ["chat", "-m", str(home / "flash"), "--session", "garden", "--max-tokens", "4"]
        assert run_command(chat) == 0
        path = f"{program.parent}:{os.environ['PATH']}"
        yield Place(folder, hub.environment(home / "hf", HOME=str(home), PATH=path))


@pytest.mark.parametrize("line", RUN)
def test_an_example_runs(place, monkeypatch, capfd, line):
    words = shlex.split(line)
    if IN_A_SHELL.search(line) or words[0] != "localv4":
        code = subprocess.run(
            ["bash", "-c", line], stdin=subprocess.DEVNULL, env=place.environment,
            cwd=place.folder, timeout=120, check=False,
        ).returncode  # fmt: skip
    else:
        monkeypatch.chdir(place.folder)
        monkeypatch.setattr(sys, "stdin", Stdin(b"", False))
        code = run_command(words[1:])
    shown = capfd.readouterr()
    assert code in ((0, 1) if line.startswith(MAY_FAIL) else (0,)), shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("line", sorted(set(EXAMPLES) - set(RUN)))
def test_an_example_that_is_not_run_can_be_parsed(line):
    words = shlex.split(line)
    name = max((name for name in TABLE if f"{line} ".startswith(f"{name} ")), key=len)
    arguments = words[len(name.split()) :]
    if getattr(TABLE[name], "commands", None):
        assert arguments == []
    TABLE[name].make_context(name, arguments)


def test_what_is_not_run_is_an_example():
    for words in NOT_RUN:
        assert any(f"{line}\n".startswith(words) for line in EXAMPLES)


@pytest.mark.parametrize("name", TABLE)
def test_help_fits_a_terminal_and_ends_with_examples(command, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    result = command(*name.split()[1:], "--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= WIDTH
    text, _, examples = result.out.partition(HEADING)
    assert 1 <= len(examples.splitlines()) <= 4
    assert all(name in line for line in examples.splitlines())
    for noise in ("{", "[[", "......", "<str>", "<list", "\b", "--------"):
        assert noise not in text


def test_the_list_of_commands_fits_too(command):
    assert max(map(len, command("--help").out.splitlines())) <= WIDTH
    assert set(COMMANDS) == {name.split()[1] for name in TABLE}
