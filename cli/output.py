"""Where words go: the answer to standard output, everything else to standard error.

A standard error that is closed or full is ignored; a closed standard output raises `OutputClosed`,
which ends the program quietly. Warnings, errors and some notes go to the log as well, for
``--log-file``; an answer, thinking, and what a user typed never do. Knows nothing of commands.
"""

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Protocol, TextIO

__all__ = [
    "SAID",
    "Aside",
    "Output",
    "OutputClosed",
    "flush",
    "for_terminal",
    "one_line",
    "silence",
    "use_utf8",
]

_DIM, _PLAIN, _CLEAR_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
# A model may write any character; on a terminal the control ones could act.
_CONTROLS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}
# A sentence is one line, whatever the names in it hold.
_ESCAPES = {
    code: repr(chr(code))[1:-1]
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0xD800, 0xE000))
}
_LONGEST = 1000  # characters of a sentence
_COLUMNS = 80  # of a terminal that does not say

# What is said here is on the screen already: handlers that show the log there leave it out.
SAID = "localv4.said"
_log = logging.getLogger(SAID)
_log.addHandler(logging.NullHandler())  # else logging itself would show what nobody listens to


class OutputClosed(BaseException):
    """Nobody reads standard output any more.

    Not a `BrokenPipeError`: that could be another pipe's, and typer makes a failure of it.
    """


class Aside(Protocol):
    """Holds the terminal for a while, as a line editor does, and shows what is said meanwhile."""

    def say(self, text: str) -> None:
        """Show whole lines; called from any thread."""

    def status(self, text: str) -> None:
        """Show how far something is, empty for nothing any more; called from any thread."""


def for_terminal(text: str) -> str:
    """Replace control characters other than line end and tab."""
    return text.translate(_CONTROLS)


def use_utf8() -> None:
    """Make pipes and files UTF-8 in every locale; a terminal keeps its own encoding."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue  # closed, or a stand-in
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")


def one_line(text: str) -> str:
    """Escape what would break a line or act on a terminal, and leave out the middle of a flood."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return text.translate(_ESCAPES)


def silence(stream: TextIO | None) -> None:
    """Let the interpreter's own flush at exit go nowhere, after a standard stream failed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()  # type: ignore[union-attr]  # suppressed for None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def flush() -> None:
    """Send on what the standard streams hold: here a failure can be met, at exit it cannot.

    Raises
    ------
    OutputClosed
        If nobody reads standard output any more.
    OSError
        If standard output cannot be written.
    """
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        silence(sys.stderr)
    with _writing():
        if sys.stdout is not None:
            sys.stdout.flush()


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Turn what ends a write to standard output into errors that say so."""
    try:
        yield
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        error.filename = "standard output"
        raise


class Output:
    """Writes for one command.

    Parameters
    ----------
    verbosity
        -1 errors only, 0 as usual, 1 statistics too, 2 everything.
    color
        Whether escape codes are welcome where a terminal is.
    """

    def __init__(self, verbosity: int = 0, color: bool = True) -> None:
        self.verbosity = verbosity
        self.on_terminal = _is_terminal(sys.stderr)
        self._color = color and self.on_terminal
        self._answer_to_terminal = _is_terminal(sys.stdout)
        self._answer_line_open = False
        self._error_line_open = False
        self._progress_shown = False
        self._aside: Aside | None = None
        # Reentrant: a handler of a signal may write while its own thread does.
        self._writing = threading.RLock()

    @contextlib.contextmanager
    def beside(self, aside: Aside) -> Iterator[None]:
        """Hand what goes to standard error to `aside` while the block runs."""
        self._break_lines()
        self._aside = aside
        try:
            yield
        finally:
            self._aside = None

    def answer(self, text: str) -> None:
        """Write a part of the answer at once."""
        self._answer(for_terminal(text) if self._answer_to_terminal else text)

    def styled_answer(self, text: str) -> None:
        """Write a part of the answer that was made for a terminal, with its escape codes."""
        self._answer(text)

    def _answer(self, text: str) -> None:
        if not text:
            return
        if sys.stdout is None:
            raise OutputClosed
        with self._writing:
            self._end_error_line()
            with _writing():
                sys.stdout.write(text)
                sys.stdout.flush()
            self._answer_line_open = not text.endswith("\n")

    def line(self, text: str) -> None:
        """Write a whole line of the answer."""
        self.answer(f"{text}\n")

    def row(self, name: str, value: str, width: int = 12) -> None:
        """Write a name and its value as a line; where a terminal is narrow, as several.

        Words, and so paths, stay whole: they may be copied.
        """
        import textwrap

        text = one_line(value)
        columns = self.answer_columns
        lines = [text]
        if columns is not None:
            room = max(1, columns - width - 1)
            lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
        for number, line in enumerate(lines):
            self.line(f"{'' if number else name:<{width}} {line}")

    def end_answer(self, always: bool = False) -> None:
        """End an open line on a terminal; elsewhere the answer stays as it is, byte for byte.

        With `always` its line ends there, too: another answer may follow.
        """
        if self._answer_line_open and (always or self._answer_to_terminal):
            self.answer("\n")

    def thinking(self, text: str) -> None:
        """Write a part of the thinking, dim on a terminal."""
        if self.verbosity < 0 or not text:
            return
        self.clear_progress()
        shown = for_terminal(text) if self.on_terminal else text
        self._error(f"{_DIM}{shown}{_PLAIN}" if self._color else shown)
        self._error_line_open = not text.endswith("\n")

    def note(self, text: str, level: int = 0, log: bool = False) -> None:
        """Write a line about the work, unless quieter than `level`.

        With `log` the log has it too; nothing of prompts and answers belongs there.
        """
        if log:
            _log.info(text, stacklevel=2)
        if self.verbosity < level:
            return
        text = self._wrapped(text)
        self._error_line(f"{_DIM}{text}{_PLAIN}" if self._color else text)

    def tell(self, text: str) -> None:
        """Write what was asked for at a prompt: lines about the work, but not dim."""
        if self.verbosity >= 0:
            self._error_line(text)

    def ask(self, question: str) -> str:
        """Write a question, however quiet, and return the line that answers it; empty for none."""
        self._break_lines()
        self._error(f"{question} ")
        answer = sys.stdin.readline() if sys.stdin is not None else ""
        if not answer.endswith("\n"):  # the terminal has shown no end of line
            self._error("\n")
        return answer

    def gap(self) -> None:
        """Leave a line empty on a terminal."""
        if self.on_terminal and self.verbosity >= 0:
            self._error_line("")

    def prompt(self, text: str) -> None:
        """Write what stands before a line that is typed."""
        self._break_lines()
        self._error(text)

    def warning(self, text: str, log: bool = True) -> None:
        """Write a warning, unless quiet; without `log` where it holds a part of an answer."""
        if log:
            _log.warning(text, stacklevel=2)
        self.note(f"localv4: {one_line(text)}")

    @property
    def decorates(self) -> bool:
        """Whether the answer goes to a terminal where escape codes are welcome."""
        return self._color and self._answer_to_terminal

    @property
    def unicode(self) -> bool:
        """Whether standard output takes any character."""
        encoding = getattr(sys.stdout, "encoding", None) or ""
        return encoding.lower().replace("-", "").startswith("utf")

    @property
    def redraws(self) -> bool:
        """Whether a line of progress can be replaced by the next one, and is wanted."""
        return self._color and self.verbosity >= 0

    @property
    def progress_columns(self) -> int:
        """Characters that a line of progress may have.

        One that wraps could not be taken away again, and a Ctrl-C adds its echo.
        """
        return max(1, _columns_of(sys.stderr) - len("^C") - 1)

    @property
    def note_columns(self) -> int:
        """Characters that fit in a line of standard error."""
        return _columns_of(sys.stderr)

    @property
    def answer_columns(self) -> int | None:
        """Characters that fit in a line of the answer; None where no terminal limits them."""
        return _columns_of(sys.stdout) if self._answer_to_terminal else None

    def progress(self, text: str) -> None:
        """Show a line that the next one replaces; where there is no terminal, a note with -v.

        It is gone before anything else is written.
        """
        aside = self._aside
        if aside is not None:
            aside.status(text)
            return
        if not self._color:
            self.note(text, level=1)
            return
        if not self.redraws:
            return
        with self._writing:
            self._end_error_line()
            self._error(f"{_CLEAR_LINE}{_DIM}{text[: self.progress_columns]}{_PLAIN}")
            self._progress_shown = True

    def clear_progress(self) -> None:
        """Take away the line of progress, if there is one."""
        aside = self._aside
        if aside is not None:
            aside.status("")
            return
        with self._writing:
            if self._progress_shown:
                self._error(_CLEAR_LINE)
                self._progress_shown = False

    def failure(self, text: str, log: bool = True) -> None:
        """Write the one sentence of an error, however quiet."""
        if log:
            _log.error(text, stacklevel=2)
        self._error_line(self._wrapped(f"localv4: {one_line(text)}"))

    def _error_line(self, text: str) -> None:
        with self._writing:
            self._break_lines()
            self._error(f"{text}\n")

    def _wrapped(self, text: str) -> str:
        """Break lines that are too long for the terminal between words; paths stay whole."""
        columns = self.note_columns
        if not self.on_terminal or all(len(line) <= columns for line in text.split("\n")):
            return text
        import textwrap

        wrapper = textwrap.TextWrapper(columns, break_long_words=False, break_on_hyphens=False)
        lines = [line if len(line) <= columns else wrapper.fill(line) for line in text.split("\n")]
        return "\n".join(lines)

    def _break_lines(self) -> None:
        self._end_error_line()
        # On a terminal both streams share the screen.
        with contextlib.suppress(OSError, OutputClosed):
            self.end_answer()

    def _end_error_line(self) -> None:
        self.clear_progress()
        if self._error_line_open:
            self._error("\n")
            self._error_line_open = False

    def _error(self, text: str) -> None:
        aside = self._aside  # which another thread may take away
        if aside is not None:
            aside.say(text)
            return
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            silence(sys.stderr)
        except (ValueError, AttributeError):
            pass  # closed, or not there


def _columns_of(terminal: TextIO) -> int:
    columns = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        columns = os.get_terminal_size(terminal.fileno()).columns
    return columns or _COLUMNS


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
