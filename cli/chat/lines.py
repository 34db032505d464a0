"""Where a chat's messages come from: a line editor, a plain terminal, or a pipe."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from localv4.cli.chat.typed import is_open
from localv4.cli.output import Output
from localv4.cli.prompt import read_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from localv4.cli.chat.editor import Suggestion

__all__ = ["EditedLines", "Lines", "PlainLines"]


class Lines(Protocol):
    """Gives one message after the other."""

    def read(self, meter: Callable[[], str], default: str = "") -> str | None:
        """Return what was typed; None at the end of input.

        Parameters
        ----------
        meter
            What stands before the prompt.
        default
            What is there to be edited.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C, where nothing was typed.
        """

    def stop(self, error: BaseException) -> None:
        """Let `read` raise an error: the one that runs, or the next."""

    def refresh(self) -> None:
        """Ask the meter again."""


class EditedLines:
    """Messages from a line editor.

    Parameters
    ----------
    suggest, history, color
        See `localv4.cli.chat.editor.LineEditor`.
    output
        Is handed to the editor while it reads.
    """

    def __init__(
        self,
        suggest: "Callable[[str], Iterable[Suggestion]]",
        history: Path | None,
        color: bool,
        output: Output,
    ) -> None:
        from localv4.cli.chat.editor import LineEditor

        self._editor = LineEditor(suggest, history, color)
        self._output = output
        self._status = ""

    def say(self, text: str) -> None:
        """Show lines above the prompt."""
        self._editor.say(text)

    def status(self, text: str) -> None:
        """Show something in the place of the meter."""
        if text != self._status:
            self._status = text
            self._editor.refresh()

    def read(self, meter: Callable[[], str], default: str = "") -> str | None:
        """Return what was typed; see `Lines`."""
        self._status = ""  # of what has gone on meanwhile
        with self._output.beside(self):
            try:
                return self._editor.read(lambda: self._status or meter(), default)
            except EOFError:
                return None

    def stop(self, error: BaseException) -> None:
        """End the reading."""
        self._editor.stop(error)

    def refresh(self) -> None:
        """Ask the meter again."""
        self._editor.refresh()


class PlainLines:
    """Messages from a terminal that can do nothing but lines, or from a pipe.

    Parameters
    ----------
    output
        Shows the prompt, where somebody sits at a terminal; None where nobody does.
    """

    def __init__(self, output: Output | None) -> None:
        self._output = output

    def read(self, meter: Callable[[], str], default: str = "") -> str | None:
        """Return the next message; see `Lines`. What is there to be edited is typed anew."""
        text = self._line(_prompt(meter()))
        while text is not None and is_open(text):
            line = self._line("  ")
            if line is None:
                break
            text = f"{text}\n{line}"
        return text

    def _line(self, prompt: str) -> str | None:
        if self._output is not None:
            self._output.prompt(prompt)
        try:
            line = read_line(None)
        except BaseException:
            self._end_line()
            raise
        if line is None:
            self._end_line()
        return line

    def _end_line(self) -> None:
        """End the line that the prompt has begun: nobody typed Enter there."""
        if self._output is not None:
            self._output.prompt("\n")

    def stop(self, error: BaseException) -> None:
        """End the reading: from a signal handler, which interrupts it."""
        raise error

    def refresh(self) -> None:
        """Do nothing: the prompt stands."""


def _prompt(meter: str) -> str:
    return f"{meter} > " if meter else "> "
