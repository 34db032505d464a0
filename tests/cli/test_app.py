"""Starting up: help, version, no arguments, and what may not be imported for them."""

import errno
import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

import localv4
from localv4.cli.app import COMMANDS, run_command


def test_version(command):
    result = command("--version")
    assert (result.code, result.out) == (0, f"localv4 {localv4.__version__}\n")


def test_no_arguments_without_a_terminal_is_help_on_stderr(command):
    result = command()
    assert (result.code, result.out) == (2, "")
    assert "Commands:" in result.err


def test_help_lists_every_command(command):
    result = command("--help")
    assert (result.code, result.err) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in result.out


def test_help_of_a_command_has_two_spellings(command):
    assert command("help", "run").out == command("run", "--help").out
    assert command("help", "sessions", "rm").out == command("sessions", "rm", "--help").out
    assert command("help").out == command("--help").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "did you mean localv4 run?"),
        (["ls"], "did you mean localv4 list?"),
        (["LIST"], "did you mean localv4 list?"),
        (["zzzz"], "localv4 --help lists them"),
        (["Why is it so?"], 'localv4 run "..."'),
        (["-m", "flash"], "localv4 chat -m ..."),
        (["run", "--mdoel", "x"], "did you mean --model? see localv4 run --help"),
        (["sessions", "verfy", "x"], "; did you mean 'verify'? see localv4 sessions --help"),
        (["help", "rnu"], "did you mean localv4 run?"),
    ],
)
def test_a_mistyped_word_names_the_nearest(command, arguments, words):
    result = command(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command, name):
    result = command(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: localv4 {name}")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["config"]])
def test_nothing_heavy_is_imported(arguments):
    # the hub's constants are light, its client is not
    heavy = ["numba", "numpy", "tokenizers", "rich.console", "safetensors"]
    heavy += ["huggingface_hub.hf_api", "httpx2"]
    code = (
        "import sys; from localv4.cli.app import run_command;"
        f"run_command({arguments!r}); print([m for m in {heavy!r} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_and_version_without_a_reader_are_quiet(monkeypatch, capsys, arguments):
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # typer replaces both
    assert run_command(arguments) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", ["--help", "run --help", "--version"])
def test_a_pipe_closed_at_once(arguments):
    command = f'"$0" -m localv4 {arguments} | true; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(
        ["bash", "-c", command, sys.executable], capture_output=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(("redirection", "code"), [(">/dev/full", 4), ("-x 2>/dev/full", 2)])
def test_a_full_disk_at_exit(redirection, code):
    command = f'"$0" -m localv4 --version {redirection}'
    result = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, timeout=60, check=False
    )
    assert result.returncode == code
    assert result.stderr.count(b"\n") <= 1


def test_ctrl_c_during_the_imports_is_quiet(monkeypatch, capsys):
    def interrupt(_name):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupt)
    assert run_command(["run", "Hi"]) == 130
    assert capsys.readouterr() == ("", "")
