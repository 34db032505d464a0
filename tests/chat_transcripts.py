"""What a chat shows in a terminal, scene by scene, kept in docs/transcripts.

``python -m tests.chat_transcripts`` writes them again; tests/cli/chat/test_transcripts.py sees that
they are true. A scene is a function of tests/chat_scenes.py that types into a `Stage`. What differs
from run to run (seconds, dates) is replaced.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.screens import Screen
from tests.scripted_chat import GO, HELD, Answer, write_script

__all__ = ["FOLDER", "FORMS", "Form", "Page", "Stage", "play", "record"]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "transcripts"
_PLACE = "/tmp/chats-"  # and eight characters
_KEYS = {
    "\r": "Enter", "\x03": "Ctrl-C", "\x04": "Ctrl-D", "\t": "Tab", "\x1b[A": "Up",
    "\x1b\r": "Alt-Enter", "\x18\x05": "Ctrl-X Ctrl-E", "\x1b[200~": "paste:", "\x1b[201~": "end",
    "\x0a": "Ctrl-J", "\x7f": "Backspace", "\x15": "Ctrl-U", "\x12": "Ctrl-R",
}  # fmt: skip
_KEY = re.compile("|".join(re.escape(key) for key in sorted(_KEYS, key=len, reverse=True)))
_PROMPT = re.compile(r"(?:\S+ of \S+|edit)(?: \+\S+)* >")
_VOLATILE = (
    (re.compile(re.escape(_PLACE) + r"\w{8}"), f"{_PLACE}00000000"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d"), "2026-01-31 12:00"),
    (re.compile(r"\b\d+\.\d s\b"), "1.0 s"),
    (re.compile(r"\d+ tok/s +[\d:]+ left"), "48 tok/s  0:02 left"),
)
_PLAYERS = 3  # scenes at a time
_MOST_S = 60.0


@dataclass(frozen=True)
class Form:
    """A terminal and the environment of its chats."""

    columns: int
    variables: dict[str, str] = field(default_factory=dict)
    scenes: tuple[str, ...] = ()  # all, if none is named


_LATIN_1 = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
_LATIN_1 |= {"PYTHONIOENCODING": "latin-1"}
FORMS = {
    "chat-80": Form(80),
    "chat-200": Form(200, scenes=("start", "markdown", "thinking", "reading", "completion")),
    "chat-no-color": Form(80, {"NO_COLOR": "1"}, ("markdown", "thinking", "reading")),
    "chat-dumb": Form(80, {"TERM": "dumb"}, ("markdown", "thinking", "stopped", "leaving")),
    "chat-latin-1": Form(80, _LATIN_1, ("markdown",)),
}


@dataclass(frozen=True)
class Page:
    """What a scene showed.

    Attributes
    ----------
    name, title
        Of the scene.
    text
        All that was typed and shown, as docs/transcripts has it.
    screens
        The terminals, one for each chat.
    """

    name: str
    title: str
    text: str
    screens: tuple[Screen, ...]

    @property
    def whole(self) -> str:
        """The page with its title."""
        return f"== {self.title} ==\n\n{self.text}"


class Stage:
    """A home folder, and one chat after the other in a terminal there."""

    def __init__(self, home: Path, form: Form) -> None:
        self.home, self._form = home, form
        self.screens: list[Screen] = []
        self._parts: list[str] = []
        self._typed = ""
        (home / "flash").mkdir()
        (home / "flash" / "config.json").write_text("{}")

    @property
    def screen(self) -> Screen:
        """The terminal of the chat that began last."""
        return self.screens[-1]

    @property
    def is_dumb(self) -> bool:
        """Whether the terminal edits lines itself."""
        return self._form.variables.get("TERM") == "dumb"

    @property
    def columns(self) -> int:
        """Of the terminal."""
        return self._form.columns

    def back_to(self, number: int) -> None:
        """Go back to a chat that began before, and is still open."""
        self.screens.append(self.screens.pop(number))
        self._parts.append("(back in the other chat)\n")

    @property
    def text(self) -> str:
        """All that was typed and shown, in order."""
        return "\n".join(self._parts)

    def chat(
        self, *arguments: str, answers: Sequence[Answer], waits: bool = True, **variables: str
    ) -> None:
        """Begin a chat, and wait until its model is open."""
        script = self.home / f"script-{len(self.screens)}.json"
        write_script(script, answers)
        line = ["chat", "-m", "flash", *arguments]
        command: list[str | Path] = [sys.executable, "-m", "tests.scripted_chat", script, *line]
        environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(self.home),
            "LANG": "C.UTF-8", "LOCALV4_CACHE_DIR": str(self.home / "cache"),
            **self._form.variables, **variables,
        }  # fmt: skip
        self.screens.append(Screen(command, environment, self.home, self._form.columns, rows=40))
        self._script = script
        self._say_typed("\n")
        self._parts.append(f"$ localv4 {' '.join(line)}\n")
        if waits:
            self.until_prompt()

    def type(self, text: str) -> None:
        """Type something, and do not wait."""
        self._typed += text
        self.screen.type(text)

    def ask(self, line: str, held: bool = False) -> None:
        """Type a line and Enter; wait for the next prompt, unless the answer is held."""
        self.type(line)
        last = line.rstrip().rpartition("\n")[2][-20:]
        self.screen.until(lambda: self._last.endswith(last), f"{last!r} was not shown")
        self.type("\r")
        if not held:
            self.until_prompt()

    def until_prompt(self) -> None:
        """Wait until a line can be typed."""
        self.screen.until(lambda: _PROMPT.fullmatch(self._last) is not None, "there is no prompt")

    def expect(self, text: str, times: int = 1) -> None:
        """Wait until something is shown."""
        self.screen.expect(text, times)

    def go_on(self) -> None:
        """Let a held answer go on."""
        self._script.with_suffix(GO).touch()

    def until_held(self) -> None:
        """Wait until the answer is held, and all before that is shown."""
        held = self._script.with_suffix(HELD)
        until = time.monotonic() + _MOST_S
        while not held.exists():
            self.screen.idle(0.02)
            assert time.monotonic() < until, "the answer is not held"
        self.screen.idle(0.2)

    def look(self, when: str, n_lines: int) -> None:
        """Keep what the last lines of the screen show at this moment."""
        lines = [line for line in self.screen.history.splitlines() if line][-n_lines:]
        self._keep(when, "\n".join(lines))

    def end(self, how: str = "/quit") -> None:
        """Leave the chat, and keep all that it showed; empty for a chat that ends by itself."""
        if how == "/quit":
            self.type("/quit\r")
        elif how:
            self.type(how)
        code = self.screen.wait()
        self._keep(f"at the end, exit code {code}", self.screen.history)

    def _keep(self, when: str, shown: str) -> None:
        self._say_typed()
        for pattern, replacement in _VOLATILE:
            shown = pattern.sub(replacement, shown)
        self._parts.append(f"-- {when} --\n{shown}\n")

    def _say_typed(self, end: str = "") -> None:
        typed = _KEY.sub(lambda key: f"[{_KEYS[key[0]]}]", self._typed)
        typed = typed.replace("[Enter]", "[Enter]\n       ").strip()
        self._typed = ""
        if typed:
            self._parts.append(f"typed: {typed}{end}")

    @property
    def _last(self) -> str:
        return next((line for line in reversed(self.screen.lines) if line), "")


def play(name: str, form: Form, act: Callable[[Stage], None]) -> Page:
    """Play one scene in a home folder of its own."""
    home = Path(tempfile.mkdtemp(prefix=Path(_PLACE).name, dir=Path(_PLACE).parent))
    stage = Stage(home, form)
    try:
        act(stage)
    finally:
        for screen in stage.screens:
            screen.__exit__()
        shutil.rmtree(home)
    title = " ".join((act.__doc__ or name).split()).rstrip(".")
    return Page(name, title, stage.text, tuple(stage.screens))


def record(form: Form) -> dict[str, Page]:
    """Play all scenes of a form, several at a time."""
    from tests.chat_scenes import SCENES

    names = form.scenes or tuple(SCENES)
    with ThreadPoolExecutor(_PLAYERS) as players:
        pages = players.map(lambda name: play(name, form, SCENES[name]), names)
        return {page.name: page for page in pages}


def main() -> None:
    """Write the transcripts: of all forms, or of those that are named."""
    for name in sys.argv[1:] or FORMS:
        pages = record(FORMS[name]).values()
        (FOLDER / f"{name}.txt").write_text("\n".join(page.whole for page in pages))
        print(FOLDER / f"{name}.txt")


if __name__ == "__main__":
    main()
