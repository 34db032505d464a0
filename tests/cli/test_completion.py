"""What the Tab key finds: asked as shells ask, and in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localv4.aliases import ALIASES
from localv4.cli.app import COMMANDS, run_command
from localv4.setting_values import SETTING_NAMES


@pytest.fixture
def complete(monkeypatch, capsys):
    """Return a function that completes the last of some words as bash does."""

    def run(*words: str) -> list[str]:
        monkeypatch.setenv("_LOCALV4_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["localv4", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        run_command([])
        captured = capsys.readouterr()
        assert captured.err == ""
        found: list[str] = captured.out.split()
        return found

    return run


def test_commands(complete):
    assert complete("") == list(COMMANDS)
    assert complete("sy") == ["synth"]
    assert complete("sessions", "") == ["rm", "verify"]
    assert complete("bench", "pre") == ["prefill"]


def test_flags_and_their_values(complete):
    assert complete("run", "--th") == ["--think", "--threads"]
    assert complete("run", "Hi", "--think", "") == ["off", "low", "high", "max"]
    assert complete("run", "--numerics", "f") == ["float32"]
    assert complete("synth", "x", "--preset", "pro") == ["pro", "pro-base"]
    assert complete("completion", "") == ["bash", "zsh", "fish"]
    assert complete("config", "set", "") == list(SETTING_NAMES)
    assert "--log-file" in complete("config", "--")


@pytest.mark.parametrize("words", [["run", "-m"], ["chat", "--model"], ["bench", "decode", "-m"]])
def test_names_of_models(complete, monkeypatch, tmp_path, words):
    monkeypatch.setattr("localv4.cli.names.cache_folder", lambda: tmp_path / "hub")
    (tmp_path / "hub" / "models--some--repo" / "snapshots").mkdir(parents=True)
    for name in ("model", "my $(model)", "no-model"):
        (tmp_path / name).mkdir()
    for name in ("model", "my $(model)"):
        (tmp_path / name / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    assert complete(*words, "") == [*ALIASES, "some/repo", "model"]
    assert complete(*words, "some/") == ["some/repo"]
    assert complete(*words, f"{tmp_path}/m") == [f"{tmp_path}/model"]
    assert complete(*words, "/no/such/folder/") == []


def test_names_of_sessions(complete, monkeypatch, tmp_path, command, engine):
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", str(tmp_path))
    command("chat", "--session", "mine", stdin=b"Hi\n")
    assert complete("chat", "--session", "m") == ["mine"]
    assert complete("sessions", "rm", "") == ["mine"]


def test_whatever_goes_wrong_is_quiet(complete, monkeypatch, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("no toml")
    monkeypatch.setenv("LOCALV4_CONFIG", str(config))
    assert complete("sessions", "rm", "") == []
    monkeypatch.setenv("COMP_CWORD", "no number")
    monkeypatch.setenv("_LOCALV4_COMPLETE", "complete_nushell")
    assert run_command([]) == 1


@pytest.mark.parametrize(
    ("shell", "variables", "words"),
    [
        ("zsh", {"_TYPER_COMPLETE_ARGS": "localv4 run --think h"}, '(("high"))'),
        ("fish", {"_TYPER_COMPLETE_ARGS": "localv4 sh", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
         "show\t"),
    ],
)  # fmt: skip
def test_other_shells_are_answered(monkeypatch, capsys, shell, variables, words):
    for name, value in {**variables, "_LOCALV4_COMPLETE": f"complete_{shell}"}.items():
        monkeypatch.setenv(name, value)
    assert run_command([]) == 0
    captured = capsys.readouterr()
    assert words in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_accepts_its_script(command, shell):
    result = command("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"complete_{shell}" in result.out
    if shutil.which(shell):  # bash always is, where these tests run
        check = [shell, "-n"] if shell != "fish" else [shell, "--no-execute"]
        subprocess.run(check, input=result.out, text=True, check=True, timeout=60)


def test_a_real_bash_completes(command, tmp_path):
    script = tmp_path / "script"
    script.write_text(command("completion", "bash").out)
    program = tmp_path / "localv4"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m localv4 "$@"\n')
    program.chmod(0o755)
    ask = f"""
        PATH={tmp_path}:$PATH; source {script}
        COMP_WORDS=(localv4 run --think ""); COMP_CWORD=3
        _localv4_completion localv4; echo "${{COMPREPLY[*]}}"
        rm {program}; hash -r
        _localv4_completion localv4; echo "${{#COMPREPLY[@]}}"
        complete -p localv4
    """
    result = subprocess.run(
        ["bash", "--norc", "-c", ask],
        capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PATH": "/usr/bin:/bin"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.stdout.splitlines()[:2] == ["off low high max", "0"]
    assert "-F _localv4_completion" in result.stdout
    assert result.stderr == ""


def test_nothing_heavy_is_imported():
    heavy = [
        "numba",
        "numpy",
        "tokenizers",
        "huggingface_hub.hf_api",
        "httpx2",
        "rich.console",
        "pydantic",
    ]
    code = (
        "import sys; from localv4.cli.app import run_command; run_command([]);"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    variables = {"COMP_WORDS": "localv4 run -m f", "COMP_CWORD": "3"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, **variables, "_LOCALV4_COMPLETE": "complete_bash"},
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "[]"
