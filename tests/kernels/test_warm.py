"""What warming up says of the processes that compile; stand-ins take their place."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localv4.kernels import _jit, warm

Fake = Callable[[str], list["subprocess.Popen[bytes]"]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """Let `warm_up` start processes that run a line of Python; return them."""

    def install(code: str) -> list["subprocess.Popen[bytes]"]:
        started: list[subprocess.Popen[bytes]] = []

        def start(claims: str) -> "subprocess.Popen[bytes]":
            started.append(subprocess.Popen([sys.executable, "-c", code]))
            return started[-1]

        monkeypatch.setattr(_jit, "cache_dir", tmp_path)
        monkeypatch.setattr(warm, "_shares", list)
        monkeypatch.setattr(warm, "_start", start)
        return started

    return install


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_processes_that_end_early_are_reported_once(
    fake: Fake, caplog: pytest.LogCaptureFixture, code: str
):
    started = fake(code)
    warm.warm_up(lambda begun, count: None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    message = caplog.records[0].getMessage()
    assert f"{len(started)} of {len(started)} processes" in message
    assert "first used" in message
    assert not _jit.kernels_are_cached()


def test_processes_that_end_well_are_not_reported(fake: Fake, caplog: pytest.LogCaptureFixture):
    fake("pass")
    assert not _jit.kernels_are_cached()
    warm.warm_up(lambda begun, count: None)
    assert not caplog.records
    assert _jit.kernels_are_cached()


def test_processes_stopped_by_an_interruption_are_not_reported(
    fake: Fake, caplog: pytest.LogCaptureFixture
):
    def interrupt(begun: int, count: int) -> None:
        raise KeyboardInterrupt

    started = fake("import time; time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        warm.warm_up(interrupt)
    assert started
    assert all(process.returncode for process in started)
    assert not caplog.records
    assert not _jit.kernels_are_cached()


def test_kernels_that_something_else_compiled_are_not_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(_jit, "cache_dir", tmp_path)
    (tmp_path / "read.nbc").touch()  # as `localv4 doctor` leaves it
    assert not _jit.kernels_are_cached()
