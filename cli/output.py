"""Where words go: the answer to standard output, everything else to standard error.

A closed standard error is ignored; a closed standard output raises `OutputClosed`, which ends the
program quietly. Knows nothing of commands.
"""

import contextlib
import io
import os
import sys
from typing import TextIO

__all__ = ["Output", "OutputClosed", "for_terminal", "silence_stdout", "use_utf8"]

_DIM, _PLAIN, _CLEAR_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
# A model may write any character; on a terminal the control ones could act.
_CONTROLS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


class OutputClosed(BaseException):
    """Nobody reads standard output any more.

    Not a `BrokenPipeError`: that could be another pipe's, and typer makes a failure of it.
    """


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


def silence_stdout() -> None:
    """Let the interpreter's own flush at exit go nowhere, after standard output failed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


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

    def answer(self, text: str) -> None:
        """Write a part of the answer at once."""
        if not text:
            return
        if sys.stdout is None:
            raise OutputClosed
        self._end_error_line()
        try:
            sys.stdout.write(for_terminal(text) if self._answer_to_terminal else text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise OutputClosed from None
        self._answer_line_open = not text.endswith("\n")

    def line(self, text: str) -> None:
        """Write a whole line of the answer."""
        self.answer(f"{text}\n")

    def end_answer(self) -> None:
        """End an open line on a terminal; elsewhere the answer stays as it is, byte for byte."""
        if self._answer_to_terminal and self._answer_line_open:
            self.answer("\n")

    def thinking(self, text: str) -> None:
        """Write a part of the thinking, dim on a terminal."""
        if self.verbosity < 0 or not text:
            return
        self._clear_progress()
        shown = for_terminal(text) if self.on_terminal else text
        self._error(f"{_DIM}{shown}{_PLAIN}" if self._color else shown)
        self._error_line_open = not text.endswith("\n")

    def note(self, text: str, level: int = 0) -> None:
        """Write a line about the work, unless quieter than `level`."""
        if self.verbosity < level:
            return
        self._break_lines()
        self._error(f"{_DIM}{text}{_PLAIN}\n" if self._color else f"{text}\n")

    def warning(self, text: str) -> None:
        """Write a warning, unless quiet."""
        self.note(f"localv4: {text}")

    def progress(self, text: str) -> None:
        """Show a line that the next one replaces; only on a terminal."""
        if self.verbosity < 0 or not self._color:
            return
        self._end_error_line()
        self._error(f"{_CLEAR_LINE}{_DIM}{text}{_PLAIN}")
        self._progress_shown = True

    def failure(self, text: str) -> None:
        """Write the one sentence of an error, however quiet."""
        self._break_lines()
        self._error(f"localv4: {text}\n")

    def _break_lines(self) -> None:
        self._end_error_line()
        # On a terminal both streams share the screen.
        with contextlib.suppress(OSError, OutputClosed):
            self.end_answer()

    def _end_error_line(self) -> None:
        self._clear_progress()
        if self._error_line_open:
            self._error("\n")
            self._error_line_open = False

    def _clear_progress(self) -> None:
        if self._progress_shown:
            self._error(_CLEAR_LINE)
            self._progress_shown = False

    def _error(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
