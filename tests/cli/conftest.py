"""A command line run in this process, on an engine that plays back events.

The engine's own behaviour is tested elsewhere, and the two together, in processes of their own,
by test_run_contract.py.
"""

import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import localv4
from localv4.cli.app import run_command
from localv4.events import Timings, Usage
from localv4.synthetic import synthesise
from tests.cli.played_back import FakeEngine as FakeEngine
from tests.cli.played_back import FakeSession as FakeSession
from tests.cli.played_back import done as done
from tests.cli.played_back import event as event

THOUGHT = [
    event("prefill", usage=Usage(5, 0, 0), timings=Timings(0.25, 0)),
    event("reasoning", "Hm. ", ids=(7, 8)),
    event("text", "4", ids=(9,)),
    done(),
]
TOO_LONG = 10 * "long "  # for a context of 9


def wait() -> None:
    time.sleep(20)


class Letters:
    """A tokenizer of single bytes; 300 and above are spare."""

    vocab_size = 300

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


@pytest.fixture
def engine(monkeypatch, tmp_path) -> FakeEngine:
    fake = FakeEngine()

    def load(path: Any, **rest: Any) -> FakeEngine:
        fake.loaded = {"path": path, **rest}
        return fake

    monkeypatch.setenv("LOCALV4_MODEL", str(tmp_path))
    monkeypatch.setattr(localv4, "load", load, raising=False)
    monkeypatch.setattr(localv4, "kernels_are_cached", lambda: True, raising=False)
    return fake


class Stdin(io.TextIOWrapper):
    """Standard input with given bytes, from a pipe or a terminal."""

    def __init__(self, content: bytes, terminal: bool) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys):
    """Return a function that runs one command line."""

    def run(*arguments: str, stdin: bytes = b"", terminal: bool = False) -> Result:
        monkeypatch.setattr(sys, "stdin", Stdin(stdin, terminal))
        code = run_command(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def answers(command, tmp_path):
    """Return a function that answers lines of prompts, with further arguments."""
    path = tmp_path / "prompts.jsonl"

    def answer(*lines: Any, arguments: tuple[str, ...] = ()) -> Result:
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        result: Result = command("run", "--prompts", str(path), *arguments)
        return result

    return answer


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Return a small checkpoint with random weights."""
    folder: Path = tmp_path_factory.mktemp("checkpoint") / "model"
    synthesise(folder, compress_ratios=(0, 4))
    return folder
