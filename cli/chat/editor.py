"""The line editor of the chat: one message after the other, typed at a terminal.

What prompt_toolkit is told of a line is in line_session.py, imported when an editor is made: it is
slow to import. Knows nothing of commands and conversations.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localv4.cli.chat.input_history import InputHistory
from localv4.cli.chat.typed import cleaned
from localv4.cli.output import for_terminal, one_line

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import StyleAndTextTuples

__all__ = ["LineEditor", "Suggestion"]

_PROMPT = "> "
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class Suggestion:
    """What the Tab key may put at the cursor.

    Attributes
    ----------
    text
        What is inserted.
    behind
        How many characters before the cursor it replaces.
    about
        What it is, shown beside it.
    """

    text: str
    behind: int
    about: str = ""


class LineEditor:
    """Reads messages at the terminal of standard input and standard error.

    Enter sends; Alt-Enter and a paste put line ends into a message, and so does Enter in
    one that begins with three quotation marks, until it ends with three. Ctrl-X Ctrl-E opens the
    user's editor, Ctrl-R searches the history, Ctrl-Z suspends.

    Parameters
    ----------
    suggest
        Returns what may stand at the cursor, for the text before it. What it raises is dropped.
    history
        File for what is typed; None to keep nothing.
    color
        False for no looks at all: neither colours nor dim text.
    warn
        Told in a sentence if the history cannot be kept; else it is said at the terminal.
    """

    def __init__(
        self,
        suggest: Callable[[str], Iterable[Suggestion]],
        history: Path | None,
        color: bool,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        from localv4.cli.chat import line_session

        self._terminal = line_session
        self._input, self._output = line_session.open_terminal()
        self._color = color
        self._meter: Callable[[], str] = str
        self._stop: BaseException | None = None
        self._line: PromptSession[str] | None = None
        # Reentrant: a handler of a signal may say something while this thread does.
        self._saying = threading.RLock()
        self._said: list[str] = []
        self._history = InputHistory(history, warn or self._say_warning)
        self._session = line_session.LineSession(
            self._prompt, suggest, self._keep_cleared, self.say, color, self._input, self._output
        )

    def read(self, meter: Callable[[], str], default: str = "") -> str:
        """Return one message: tabs and line ends are kept, other control characters dropped.

        Three quotation marks around it stay. What was typed stays on the screen, however it ends,
        and the terminal is left as it was.

        Parameters
        ----------
        meter
            Asked for what stands before the prompt, dim, each time that it is drawn.
        default
            What stands in the line to begin with.

        Raises
        ------
        EOFError
            Ctrl-D at an empty line, or the terminal is gone.
        KeyboardInterrupt
            Ctrl-C at an empty line.
        """
        self._meter = meter
        line = self._session.begin(self._history.entries)
        # Raw first: an Enter that came in between would be a line end, and be shown.
        with self._input.raw_mode(), self._drawn(line):
            self._terminal.take_typed_ahead(self._input)
            typed = line.prompt(
                default=cleaned(default), pre_run=self._begun, set_exception_handler=False
            )
            if self._stop is not None:
                error, self._stop = self._stop, None
                raise error
        text = cleaned(typed)
        self._history.add(text)
        return text

    def say(self, text: str) -> None:
        """Write a text as it is, with its line ends, above the prompt or where the cursor is."""
        with self._saying:
            self._said.append(text)
            if self._line is None:
                self._write_said()
            else:
                self._call(self._line, self._say_above)

    def stop(self, error: BaseException) -> None:
        """End the read that runs by raising this, or the next one at once.

        Takes no lock, so that a handler of a signal may call it. A program that edits the text at
        the time is waited for.
        """
        self._stop = error
        if (line := self._line) is not None:
            self._call(line, self._deliver_stop)

    def refresh(self) -> None:
        """Draw the prompt anew: the meter has changed."""
        if (line := self._line) is not None:
            self._call(line, line.app.invalidate)

    @contextlib.contextmanager
    def _drawn(self, line: "PromptSession[str]") -> Iterator[None]:
        """Have a line at the terminal for the block; what was typed in it stays there."""
        with self._saying:
            self._line = line
        try:
            yield
        finally:
            with self._saying:
                self._line = None
                # The line itself was taken away: it may have been longer than the screen.
                if text := line.default_buffer.text:
                    self._write(self._shown(text))
                self._write_said()

    def _begun(self) -> None:
        """Catch up on what came before the line could be called; called in its loop."""
        import asyncio

        asyncio.get_running_loop().set_exception_handler(self._failed)
        self._deliver_stop()
        self._say_above()

    def _failed(self, loop: "AbstractEventLoop", context: dict[str, Any]) -> None:
        """Raise from the read what would else be shown by the loop, such as a handler's error."""
        if "exception" in context:
            self.stop(context["exception"])
        else:
            loop.default_exception_handler(context)

    def _call(self, line: "PromptSession[str]", act: Callable[[], object]) -> None:
        """Have a line do something in its own thread, unless it has not begun, or has ended."""
        if (loop := line.app.loop) is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(act)

    def _deliver_stop(self) -> None:
        if self._stop is not None and (line := self._editable()) is not None:
            line.app.exit(result="")

    def _editable(self) -> "PromptSession[str] | None":
        """Return the line if it still can be told anything."""
        line = self._line
        if line is None or not line.app.is_running or line.app.is_done:
            return None
        return line

    def _say_above(self) -> None:
        """Write what was said where the line is, and the line anew below it.

        Not by prompt_toolkit's own means, which would let the terminal take an Enter that is typed
        at this moment for a line end.
        """
        line = self._editable()
        if self._said and line is not None and not self._session.is_away:
            line.app.renderer.erase()
            self._write_said()
            line.app.invalidate()

    def _write_said(self) -> None:
        with self._saying:
            text = "".join(self._said)
            self._said.clear()
            self._write(text)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._output.write_raw(text)
            self._output.flush()

    def _prompt(self) -> "StyleAndTextTuples":
        meter = self._meter_text()
        return [("class:meter", meter), ("", f" {_PROMPT}" if meter else _PROMPT)]

    def _meter_text(self) -> str:
        try:
            return one_line(self._meter())
        except Exception:  # nobody could type any more
            return ""

    def _shown(self, text: str) -> str:
        """Return a message as it stays on the screen, which may wrap its lines as it likes."""
        meter = self._meter_text()
        if meter:
            meter = f"{_DIM}{meter}{_PLAIN} " if self._color else f"{meter} "
        lines = for_terminal(text).replace("\n", f"\n{self._terminal.CONTINUED}")
        return f"{meter}{_PROMPT}{lines}\n"

    def _keep_cleared(self, text: str) -> None:
        self._history.add(text, keep=False)

    def _say_warning(self, text: str) -> None:
        self.say(f"localv4: {one_line(text)}\n")
