"""A program in a terminal of its own, and what its screen shows: colours, scroll-back, resizing.

The program has the terminal for its own, so that Ctrl-C typed there makes a SIGINT; what it asks
the terminal, such as where the cursor is, is answered. Lines are cut where a terminal gets narrower
and are not wrapped anew. Knows nothing of localv4.
"""

import contextlib
import errno
import fcntl
import io
import itertools
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyte

__all__ = ["Screen"]

_HISTORY = 100_000  # lines
_TIMEOUT_S = 60.0
_DIM_AS_BLINKING = {2: [5], 22: [22, 25]}
# A fork of this process, which may have threads, is left to nobody but subprocess.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Screen:
    """A program in a terminal; a context manager, at whose end the program is no more.

    Parameters
    ----------
    command
        Program and arguments.
    environment, folder
        To run it in; ``TERM`` is that of a usual terminal where none is given.
    columns, rows
        Size of the terminal.
    most_bytes
        That are taken in at a time: few make a slow line.

    Attributes
    ----------
    raw
        All bytes that were shown.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        columns: int = 80,
        rows: int = 24,
        most_bytes: int = 2**16,
    ) -> None:
        self.raw = b""
        self._most_bytes = most_bytes
        self._keyboard, terminal = pty.openpty()
        self._terminal = _Terminal(columns, rows, self._keyboard)
        self._stream = pyte.ByteStream(self._terminal)
        _set_size(terminal, columns, rows)
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _TAKE_TERMINAL, *command],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={"TERM": "xterm-256color", **environment},
            cwd=folder,
            start_new_session=True,
        )
        os.close(terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._keyboard)

    @property
    def lines(self) -> list[str]:
        """What is visible now, without spaces at the ends of lines."""
        return [_text(self._terminal.buffer[row]) for row in range(self._terminal.lines)]

    @property
    def history(self) -> str:
        """Everything that scrolled out and what is visible, as lines."""
        scrolled = [_text(line) for line in self._terminal.history.top]
        return "\n".join([*scrolled, *self.lines]).rstrip("\n")

    @property
    def cursor(self) -> tuple[int, int]:
        """Row and column of the cursor, from zero."""
        return self._terminal.cursor.y, self._terminal.cursor.x

    @property
    def modes(self) -> list[Any]:
        """How the terminal treats what is typed: what ``termios.tcgetattr`` says."""
        return termios.tcgetattr(self._keyboard)

    def looks(self, text: str) -> set[str]:
        """Return how the last text like this looks: ``dim``, ``bold``, ``reverse``, colours ...

        Spaces in it say nothing.
        """
        for line in reversed([*self._terminal.history.top, *self._visible()]):
            place = _text(line).rfind(text)
            if place >= 0:
                columns = [column for column in _columns(line) if line[column].data]
                shown = [line[columns[place + offset]] for offset in range(len(text))]
                return {look for char in shown if char.data != " " for look in _looks(char)}
        raise AssertionError(f"{text!r} is not shown\n{self._described()}")

    def expect(self, text: str, times: int = 1, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until a text was shown this many times, and still can be seen or scrolled to."""
        self.until(lambda: self.history.count(text) >= times, f"{text!r} was not shown", timeout_s)

    def until(
        self, is_right: Callable[[], bool], else_say: str = "", timeout_s: float = _TIMEOUT_S
    ) -> None:
        """Wait until what is shown is right."""
        until = time.monotonic() + timeout_s
        while not is_right():
            left = until - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{else_say}\n{self._described()}")

    def idle(self, seconds: float, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until nothing was shown for this long, or the program has ended."""
        until = time.monotonic() + timeout_s
        while self._read(seconds):
            assert time.monotonic() < until, f"it never came to rest\n{self._described()}"

    def type(self, text: str) -> None:
        """Type a text; ``\\r`` is the Enter key."""
        os.write(self._keyboard, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal larger or smaller, and tell the program."""
        self._terminal.resize(rows, columns)
        _set_size(self._keyboard, columns, rows)

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = _TIMEOUT_S) -> int:
        """Wait for the program's end and return its exit code."""
        until = time.monotonic() + timeout_s
        while self._process.poll() is None:
            assert time.monotonic() < until, f"it does not end\n{self._described()}"
            if not self._read(0.1):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.02)
        self.idle(0)
        return self._process.returncode

    def picture(self, path: Path, light: bool = False, whole: bool = False) -> None:
        """Draw what is visible, or all that was ever shown, as an SVG."""
        from rich.console import Console
        from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI
        from rich.text import Text

        console = Console(
            record=True, width=self._terminal.columns, file=io.StringIO(), force_terminal=True
        )
        for line in [*(self._terminal.history.top if whole else ()), *self._visible()]:
            chars = [line[column] for column in _columns(line)]
            drawn = Text()
            for looks, run in itertools.groupby(chars, lambda char: " ".join(sorted(_looks(char)))):
                drawn.append("".join(char.data for char in run), looks)
            console.print(drawn, no_wrap=True, overflow="crop")
        theme = DEFAULT_TERMINAL_THEME if light else MONOKAI
        path.write_text(console.export_svg(title="", theme=theme, unique_id="screen"), "utf-8")

    def _visible(self) -> Iterator[Any]:
        return (self._terminal.buffer[row] for row in range(self._terminal.lines))

    def _described(self) -> str:
        shown = "\n".join(f"  |{line}" for line in self.history.splitlines()[-100:])
        return f"exit code {self._process.poll()}, the screen:\n{shown}\nlast {self.raw[-300:]!r}"

    def _read(self, seconds: float) -> bool:
        """Take in what is shown next; return whether there was anything in this time."""
        if not select.select([self._keyboard], [], [], max(0.0, seconds))[0]:
            return False
        try:
            shown = os.read(self._keyboard, self._most_bytes)
        except OSError as error:
            if error.errno == errno.EIO:  # nobody has the terminal open any more
                return False
            raise
        self.raw += shown
        self._stream.feed(shown)
        return bool(shown)


class _Terminal(pyte.HistoryScreen):
    """A screen that knows dim text, keeps it as blinking, and answers what it is asked."""

    def __init__(self, columns: int, rows: int, keyboard: int) -> None:
        super().__init__(columns, rows, history=_HISTORY)
        self._keyboard = keyboard

    def write_process_input(self, data: str) -> None:
        os.write(self._keyboard, data.encode())

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        if private:  # the keyboard's, not the text's
            return
        told = list(attributes)
        known: list[int] = []
        while told:
            # a colour's numbers are none of dim and plain
            n_taken = {5: 3, 2: 5}.get(told[1], 1) if told[0] in (38, 48) and told[1:] else 1
            taken, told = told[:n_taken], told[n_taken:]
            known += _DIM_AS_BLINKING.get(taken[0], taken)
        super().select_graphic_rendition(*known)

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        """Change the size; where the cursor would be below the screen, the top scrolls out."""
        lines = lines or self.lines
        for _ in range(self.cursor.y + 1 - lines):
            self.history.top.append(self.buffer[0])
            for row in range(1, self.lines):
                self.buffer[row - 1] = self.buffer[row]
            self.buffer.pop(self.lines - 1)
            self.cursor.y -= 1
        for row in range(lines, self.lines):
            self.buffer.pop(row, None)
        self.lines = lines
        super().resize(lines, columns)
        self.set_margins()
        self.cursor.x = min(self.cursor.x, self.columns - 1)


def _set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _columns(line: Any) -> range:
    return range(max(line, default=-1) + 1)


def _text(line: Any) -> str:
    # the second column of a wide character holds nothing
    return "".join(line[column].data for column in _columns(line)).rstrip()


def _looks(char: Any) -> set[str]:
    """Return the words that rich has for how a character looks."""
    flags = {"bold": char.bold, "dim": char.blink, "italic": char.italics}
    flags |= {"underline": char.underscore, "strike": char.strikethrough, "reverse": char.reverse}
    looks = {name for name, is_set in flags.items() if is_set}
    if char.fg != "default":
        looks.add(_color(char.fg))
    if char.bg != "default":
        looks.add(f"on {_color(char.bg)}")
    return looks


def _color(name: str) -> str:
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    return name.replace("brown", "yellow").replace("bright", "bright_")
