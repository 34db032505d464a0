"""What localv4 sessions lists, removes and verifies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from localv4.sizes import format_bytes
from localv4.state_file import write_state


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    folder: Path = tmp_path / "sessions"
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", str(folder))
    monkeypatch.setenv("LOCALV4_SESSION_LIMIT", "1GiB")
    return folder


@pytest.fixture
def saved(folder: Path) -> Path:
    """Two sessions, "new" used after "old"."""
    folder.mkdir()
    for number, name in enumerate(("old", "new")):
        head = {"title": f"about\n{name} \x1b[2J", "model": "tiny", "n_tokens": 1234}
        write_state(folder / f"{name}.session", head, {"x": np.ones(3)})
        os.utime(folder / f"{name}.session", (0, 1e9 + number))
    return folder


def damage(folder: Path, name: str, at: int) -> None:
    with (folder / f"{name}.session").open("r+b") as file:
        file.seek(at)
        file.write(b"\7")


def test_none(command, folder):
    result = command("sessions")
    assert (result.code, result.out) == (0, "")
    assert f"0 sessions, 0 B of at most 1.00 GiB, in {folder}" in result.err
    assert not folder.exists()


def test_a_table(command, saved):
    result = command("sessions")
    assert result.code == 0
    head, first, second = result.out.splitlines()
    assert head.split() == ["name", "used", "size", "tokens", "title"]
    assert first.split()[0] == "new"
    assert second.endswith(r"1,234  about\nold \x1b[2J (tiny)")
    assert result.err.startswith("2 sessions, ")


def test_json(command, saved):
    report = json.loads(command("sessions", "--json", "-q").out)
    assert (report["folder"], report["limit_bytes"]) == (str(saved), 2**30)
    assert [session["name"] for session in report["sessions"]] == ["new", "old"]
    assert report["sessions"][0]["n_tokens"] == 1234
    assert report["n_bytes"] == sum(path.stat().st_size for path in saved.iterdir())


def test_a_damaged_one_is_listed(command, saved):
    damage(saved, "old", 30)
    result = command("sessions")
    assert result.code == 0
    assert "DAMAGED" in result.out
    assert "old.session is truncated or damaged" in result.err
    sessions = json.loads(command("sessions", "--json").out)["sessions"]
    assert [session["name"] for session in sessions if session["damage"]] == ["old"]


def test_rm(command, saved):
    size = (saved / "old.session").stat().st_size
    result = command("sessions", "rm", "old", "old", "-y")
    assert (result.code, result.out) == (0, "")
    assert f"removed 'old', {format_bytes(size)}\n" in result.err
    assert [path.name for path in saved.iterdir()] == ["new.session"]


def test_rm_removes_all_or_none(command, saved):
    result = command("sessions", "rm", "new", "olt", "-y")
    assert result.code == 2
    assert "did you mean 'old'?" in result.err
    assert len(list(saved.iterdir())) == 2
    assert command("sessions", "rm", "../x", "-y").code == 2
    assert command("sessions", "rm", "-y").code == 2


# the last is the end of the input
@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, 1), (b"n\n", 1, 2), (b"", 1, 2)])
def test_rm_asks(command, saved, answer, code, left):
    result = command("sessions", "rm", "old", stdin=answer, terminal=True)
    assert (result.code, result.out) == (code, "")
    assert "remove 'old', " in result.err
    assert len(list(saved.iterdir())) == left


def test_rm_without_a_terminal_needs_a_yes(command, saved):
    result = command("sessions", "rm", "old", stdin=b"y\n")
    assert (result.code, result.out) == (2, "")
    assert "give -y" in result.err
    assert len(list(saved.iterdir())) == 2


def test_a_damaged_one_can_be_removed(command, saved):
    damage(saved, "old", 0)
    assert command("sessions", "rm", "old", "-y").code == 0


def test_verify(command, saved):
    result = command("sessions", "verify", "new")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("new: ")
    damage(saved, "new", 4096)
    result = command("sessions", "verify", "new")
    assert (result.code, result.out) == (3, "")
    assert "is damaged in 'x'" in result.err
    assert "text is intact" in result.err
    assert command("sessions", "verify", "none").code == 2


def test_help_names_both_commands(command):
    result = command("sessions", "--help")
    assert "verify" in result.out
    assert "rm" in result.out
    for name in ("rm", "verify"):
        assert command("sessions", name, "--help").out.startswith(f"Usage: localv4 sessions {name}")


def test_a_list_does_not_import_what_takes_long(saved):
    code = (
        "import sys; from localv4.cli.app import run_command; run_command(['sessions']);"
        "print([name for name in ('numpy', 'numba') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "about" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
