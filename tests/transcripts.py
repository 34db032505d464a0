"""What the commands about models show, on terminals of two widths and through a pipe.

``python -m tests.transcripts`` writes docs/transcripts again; tests/cli/test_transcripts.py sees
that they are true. A hub on loopback serves tiny checkpoints under the released names. What differs
from run to run or from machine to machine (dates, rates, free space) is replaced.
"""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import struct
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from localv4.cli.app import run_command
from localv4.hub_cache import find_repo
from localv4.synthetic import synthesise
from tests.loopback_hub import LoopbackHub

__all__ = ["FOLDER", "FORMS", "PLACE", "STEPS", "Record", "Step", "record", "transcript"]

FOLDER = Path(__file__).parents[1] / "docs" / "transcripts"
FORMS: dict[str, int | None] = {"80": 80, "200": 200, "pipe": None}

_REPO = "deepseek-ai/DeepSeek-V4-Flash"
PLACE = "/tmp/transcripts-"  # and eight characters: paths of one length lay tables out alike
_ROWS = 50
_DIM = re.compile(r"\x1b\[[0-9;]*m")
_QUESTION = re.compile(rb"\? \[(y/N|Y/n)\]")
_CLEAR = "\r\x1b[K"
_VOLATILE = (
    (re.compile(re.escape(PLACE) + r"\w{8}"), f"{PLACE}00000000"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "2026-01-31"),
    (re.compile(r"\b\d\d:\d\d\b"), "12:00"),
    (re.compile(r"[\d.]+ [KMGT]iB free"), "100 GiB free"),
    (re.compile(r"[\d.,]+ ([kMG]?B/s|GiB/s|MiB/s)"), r"1 \1"),
    (re.compile(r"\d+\.\d+ s\b"), "1.0 s"),
)


@dataclass(frozen=True)
class Step:
    """A command line, and what is typed when it asks.

    Attributes
    ----------
    line
        As typed.
    answer
        Typed at the question; with a pipe, ``-y`` stands for a yes.
    before
        Done first: "damage" flips a byte of what was fetched.
    is_stable
        Whether every machine shows the same.
    """

    line: str
    answer: str = ""
    before: str = ""
    is_stable: bool = True


@dataclass(frozen=True)
class Record:
    """What a step showed."""

    step: Step
    line: str
    code: int
    text: str

    @property
    def page(self) -> str:
        ended = "" if self.code == 0 else f"[exit code {self.code}]\n"
        return f"$ {self.line}\n{self.text}{ended}"


STEPS = (
    Step("localv4 list"),
    Step("localv4 show flash"),
    Step("localv4 pull flash --dry-run"),
    Step("localv4 pull flash", answer="y"),
    Step("localv4 pull flash"),
    Step("localv4 pull flash-base -y -q"),
    Step("localv4 list"),
    Step("localv4 show flash"),
    Step("localv4 verify flash"),
    Step("localv4 verify flash", before="damage"),
    Step("localv4 doctor -m flash --quick", is_stable=False),
    Step("localv4 rm flash-base", answer="n"),
    Step("localv4 rm flash flash-base", answer="y"),
    Step("localv4 verify flash"),
    Step("localv4 config set memory 24GiB"),
    Step("localv4 config"),
    Step("localv4 config --path"),
    Step("localv4 lst"),
)


def transcript(records: list[Record]) -> str:
    """Return records as a page of text."""
    return "\n".join(record.page for record in records)


def record(columns: int | None) -> list[Record]:
    """Run all steps in a home folder of their own; None is a pipe."""
    with pytest.MonkeyPatch.context() as monkeypatch, _place() as home, LoopbackHub() as hub:
        synthesise(home / "flash")
        synthesise(home / "base", "flash-base", compress_ratios=(0,))
        hub.add(_REPO, home / "flash")
        hub.add(f"{_REPO}-Base", home / "base")
        hub.use(monkeypatch, home / "hf")
        for name in [name for name in os.environ if name.startswith(("LOCALV4_", "XDG_", "HF_"))]:
            monkeypatch.delenv(name)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.delenv("COLUMNS", raising=False)
        for name, value in {"HOME": home, "HF_HOME": home / "hf", "TERM": "xterm"}.items():
            monkeypatch.setenv(name, str(value))
        (home / "here").mkdir()
        monkeypatch.chdir(home / "here")  # not beside a folder called flash
        return [_run(step, home, columns) for step in STEPS]


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=Path(PLACE).name, dir=Path(PLACE).parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _run(step: Step, home: Path, columns: int | None) -> Record:
    if step.before == "damage":
        _damage(home / "hf" / "hub")
    line = step.line
    if step.answer == "y" and columns is None:
        line += " -y"
    with _screen(columns, step.answer) as shown:
        code = run_command(shlex.split(line)[1:])
    text = b"".join(shown).decode()
    for pattern, replacement in _VOLATILE:
        text = pattern.sub(replacement, text)
    return Record(step, line, code, text if columns is None else _as_seen(text))


def _damage(cache: Path) -> None:
    repo = find_repo(cache, _REPO)
    assert repo is not None
    shard = min(repo.snapshot(repo.commits[0]).glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.resolve().write_bytes(content)


def _as_seen(text: str) -> str:
    """Return what is left on a terminal: lines of progress are gone, and colours too."""
    lines = [line.rpartition(_CLEAR)[2] for line in text.replace("\r\n", "\n").split("\n")]
    return _DIM.sub("", "\n".join(lines))


@contextlib.contextmanager
def _screen(columns: int | None, answer: str) -> Iterator[list[bytes]]:
    """Put a terminal, or a pipe, in the place of the standard streams; give what comes."""
    shown: list[bytes] = []
    if columns is None:
        far, near = os.pipe()
        keyboard = os.open(os.devnull, os.O_RDONLY)
    else:
        far, near = pty.openpty()
        fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
        keyboard = os.dup(near)
    reader = threading.Thread(target=_read, args=(far, shown, answer))
    reader.start()
    try:
        with _streams(keyboard, near):
            yield shown
    finally:
        os.close(near)
        os.close(keyboard)
        reader.join()
        os.close(far)


@contextlib.contextmanager
def _streams(keyboard: int, screen: int) -> Iterator[None]:
    kept, streams = [os.dup(number) for number in range(3)], (sys.stdin, sys.stdout, sys.stderr)
    for stream in streams[1:]:
        stream.flush()
    for number, descriptor in enumerate((keyboard, screen, screen)):
        os.dup2(descriptor, number)
    try:
        with (
            open(0, closefd=False, encoding="utf-8") as sys.stdin,
            open(1, "w", closefd=False, encoding="utf-8") as sys.stdout,
            open(2, "w", closefd=False, encoding="utf-8") as sys.stderr,
        ):
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _read(far: int, shown: list[bytes], answer: str) -> None:
    """Read until nobody writes any more; type the answer when there is a question."""
    while True:
        try:
            piece = os.read(far, 2**16)
        except OSError:  # a terminal's way to say so
            return
        if not piece:
            return
        shown.append(piece)
        if answer and _QUESTION.search(b"".join(shown)):
            os.write(far, f"{answer}\n".encode())
            answer = ""


def main() -> None:
    """Write the transcripts."""
    FOLDER.mkdir(exist_ok=True)
    for name, columns in FORMS.items():
        (FOLDER / f"{name}.txt").write_text(transcript(record(columns)))
        print(FOLDER / f"{name}.txt")


if __name__ == "__main__":
    main()
