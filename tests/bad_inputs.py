"""What is said of bad inputs: typed in a shell, or in a terminal's chat.

``python -m tests.bad_inputs`` writes docs/bad-inputs.md again; tests/cli/test_bad_inputs.py sees
that it is true. What is typed is in bad_cases.py, what lies in the folder in bad_places.py. Lines
that need no shell, and no home, run in this process: they are many. What differs from machine to
machine is replaced.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from localv4.cli.app import run_command
from tests.bad_cases import CHATS, GROUPS, UNPRIVILEGED, Case, Chat, Group
from tests.bad_places import furnish
from tests.conftest import ROOT
from tests.screens import Screen

__all__ = [
    "PAGE",
    "Place",
    "Said",
    "chat_text",
    "group_text",
    "is_possible",
    "place",
    "say_all",
    "talk",
]

PAGE = ROOT / "docs" / "bad-inputs.md"

_BEGINNING = """\
# Bad inputs

What is said when something is wrong: typed after `$`, said on standard error, and the exit code. A
sentence is one line, begins with the program's name and ends with what to do next; standard output
stays empty, or keeps what came of the answer. In a chat the same is said of a line, and the chat
goes on. Written by `python -m tests.bad_inputs`, and held by a test that types all of it again.
"""
_NEEDS_SHELL = re.compile(r"[<>|;$=]")
_COLUMNS, _ROWS = 300, 60
_QUIET_S = 0.15
_TIMEOUT_S = 100
_VOLATILE = (
    (re.compile(r"(?<=threads is 100000; give a whole number from 1 to )\d+"), "8"),
    (re.compile(r"(?<=needs at least )\d+ MiB"), "240 MiB"),
)


@dataclass(frozen=True)
class Said:
    """What came of a line.

    Attributes
    ----------
    lines
        Of standard error; in a chat, those that begin with the program's name.
    out
        Of standard output.
    code
        With what it ended; None for a line of a chat, which goes on.
    """

    lines: tuple[str, ...]
    out: bytes
    code: int | None


@dataclass(frozen=True)
class Place:
    """A folder full of what can be wrong, and the variables of whoever types there."""

    root: Path

    @property
    def here(self) -> Path:
        return self.root / "here"

    @property
    def variables(self) -> dict[str, str]:
        return {
            "PATH": f"{self.root / 'bin'}:{os.defpath}",
            "HOME": str(self.root / "home"),
            "PYTHONPATH": str(ROOT),
            # Where files are limited, older Pythons leave half a compiled module behind.
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
            "LOCALV4_CACHE_DIR": os.environ["LOCALV4_CACHE_DIR"],
        }

    def stable(self, text: str) -> str:
        """Replace what differs from run to run and from machine to machine."""
        text = text.replace(str(self.here), "/here").replace(str(self.root / "home"), "/home/me")
        for pattern, replacement in _VOLATILE:
            text = pattern.sub(replacement, text)
        return text


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Make the folder, with all kernels compiled that answers there need."""
    root = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
    try:
        furnish(root)
        made = Place(root)
        answered = _say(Case("localv4 run -m ./model --max-tokens 2 Hi"), made, 400)
        assert answered.code == 0, answered
        yield made
    finally:
        shutil.rmtree(root)


def is_possible(group: Group) -> bool:
    """Return whether this user can be kept from files, where a group wants that."""
    return (
        not group.is_unprivileged or os.geteuid() != 0 or shutil.which(UNPRIVILEGED[0]) is not None
    )


def say_all(group: Group, where: Place) -> list[Said]:
    """Type all lines of a group, several at a time."""
    before = UNPRIVILEGED if group.is_unprivileged and os.geteuid() == 0 else ()

    def say(case: Case) -> Said:
        return _say(case, where, _TIMEOUT_S, before)

    is_quick = [group.is_quick and not _NEEDS_SHELL.search(case.line) for case in group.cases]
    typed = [*zip(group.cases, is_quick, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        slow = pool.map(say, [case for case, quick in typed if not quick])
        quick_ones = iter([_call(case, where) for case, quick in typed if quick])
        return [next(quick_ones if quick else slow) for _, quick in typed]


def _call(case: Case, where: Place) -> Said:
    """Run a line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(where.here),
        Path(os.devnull).open(encoding="utf-8") as nothing,
        mock.patch("sys.stdin", nothing),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run_command(shlex.split(case.line)[1:])
    return Said(tuple(where.stable(err.getvalue()).splitlines()), out.getvalue().encode(), code)


def _say(case: Case, where: Place, timeout_s: float, before: Sequence[str] = ()) -> Said:
    done = subprocess.run(
        [*before, "bash", "-c", case.line],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=where.variables,
        cwd=where.here,
        timeout=timeout_s,
        check=False,
    )
    lines = where.stable(done.stderr.decode()).splitlines()
    return Said(tuple(lines), done.stdout, done.returncode)


def talk(chat: Chat, where: Place) -> tuple[list[Said], int, bytes]:
    """Type all lines of a chat; return what was said of each, the exit code, and all it showed."""
    command = ["bash", "-c", chat.line]
    with Screen(command, where.variables, where.here, _COLUMNS, _ROWS) as screen:
        found = []
        if chat.lines:
            screen.expect(">")
        for line in chat.lines:
            n_before, n_seen = len(_sentences(screen)), screen.history.count(line.expects)
            screen.type(line.text)
            screen.expect(line.expects, n_seen + 1)
            screen.idle(_QUIET_S)
            found.append(Said(tuple(map(where.stable, _sentences(screen)[n_before:])), b"", None))
        if chat.leaves:
            screen.type("\x04")
        code = screen.wait()
        if not chat.lines:
            found.append(Said(tuple(map(where.stable, _sentences(screen))), b"", None))
        return found, code, screen.raw


def _sentences(screen: Screen) -> list[str]:
    return [line for line in screen.history.splitlines() if line.startswith("localv4: ")]


def page(shells: list[list[Said]], chats: list[tuple[list[Said], int, bytes]]) -> str:
    """Return the page, of what was said to all groups and all chats in their order."""
    texts = {
        group.title: group_text(group, said) for group, said in zip(GROUPS, shells, strict=True)
    }
    for chat, (said, code, _) in zip(CHATS, chats, strict=True):
        texts[chat.title] = chat_text(chat, said, code)
    sections = (f"## {title}\n\n```text\n{text}```\n" for title, text in texts.items())
    return "\n".join([_BEGINNING, *sections])


def group_text(group: Group, said: Sequence[Said]) -> str:
    """Return what the page has of a group."""
    blocks = []
    for case, answer in zip(group.cases, said, strict=True):
        about = f"# {case.about}\n" if case.about else ""
        blocks.append(f"{about}$ {case.line}\n{_lines(answer)}[exit code {answer.code}]\n")
    return "\n".join(blocks)


def chat_text(chat: Chat, said: Sequence[Said], code: int) -> str:
    """Return what the page has of a chat."""
    typed = [f"> {line.shown}\n" for line in chat.lines] or [""]
    lines = "".join(itertools.chain(*zip(typed, map(_lines, said), strict=True)))
    return f"$ {chat.line}\n{lines}[exit code {code}]\n"


def _lines(answer: Said) -> str:
    return "".join(f"{line}\n" for line in answer.lines)


def main() -> None:
    """Write the page."""
    with place() as where:
        shells = [say_all(group, where) for group in GROUPS]
        chats = [talk(chat, where) for chat in CHATS]
    PAGE.write_text(page(shells, chats), "utf-8")
    n_typed = sum(map(len, shells)) + sum(len(said) for said, _, _ in chats)
    print(f"{PAGE}: {n_typed} bad inputs")


if __name__ == "__main__":
    main()
