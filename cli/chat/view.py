"""How an answer looks in a chat: Markdown as it comes, thinking folded to a line.

Nothing that was shown is drawn again, but for one line that says how the thinking goes. Where
escape codes are not welcome the text is shown as it is.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, get_args

from localv4.cli.output import Output, for_terminal, one_line

if TYPE_CHECKING:
    from localv4.cli.markdown.stream import MarkdownStream
    from localv4.events import Event

__all__ = ["THOUGHTS", "AnswerView", "Thoughts", "show_answer"]

Thoughts = Literal["show", "fold", "hide"]
THOUGHTS: tuple[Thoughts, ...] = get_args(Thoughts)
_REDRAW_S = 0.1
_COLUMNS = 80


class AnswerView:
    """Shows one answer.

    Parameters
    ----------
    output
        Where to.
    thoughts
        What becomes of thinking on a terminal: shown, folded to one line, or hidden. Elsewhere
        all of it goes to standard error, unless it is hidden.
    """

    def __init__(self, output: Output, thoughts: Thoughts) -> None:
        self._output = output
        self._thinking = _Thinking(output, thoughts)
        self._markdown = _markdown(output, output.styled_answer) if output.decorates else None
        self._has_begun = False

    def event(self, event: "Event") -> None:
        """Show one event."""
        if event.kind == "reasoning":
            self._thinking.take(event)
        elif event.kind == "text":
            self._thinking.end()
            self.write(event.text)
        elif event.tool_call is not None:
            self._thinking.end()
            call = json.dumps(asdict(event.tool_call), ensure_ascii=False)
            self._output.warning(f"the model calls a tool: {call}", log=False)

    def end(self) -> None:
        """End an answer, complete or stopped."""
        self._thinking.end()
        if self._markdown is not None:
            self._markdown.close()
        self._output.end_answer(always=True)

    def write(self, text: str) -> None:
        """Show a piece of the answer's text."""
        if text and not self._has_begun:
            self._has_begun = True
            self._output.gap()
        if self._markdown is not None:
            self._markdown.feed(for_terminal(text))
        else:
            self._output.answer(text)


class _Thinking:
    """Shows the thinking before an answer."""

    def __init__(self, output: Output, thoughts: Thoughts) -> None:
        self._output = output
        self._thoughts = thoughts
        if thoughts == "fold" and not output.on_terminal:
            self._thoughts = "show"
        self._begun_s: float | None = None
        self._next_s = 0.0
        self._n_tokens = 0
        self._tail = ""

    def take(self, event: "Event") -> None:
        """Take a piece of it."""
        now = time.monotonic()
        if self._begun_s is None:
            self._begun_s = now
            if self._thoughts == "fold" and not self._output.redraws:
                self._output.note("thinking ...")
        self._n_tokens += len(event.ids)
        if self._thoughts == "show":
            self._output.thinking(event.text)
        elif self._output.redraws:
            self._tail = f"{self._tail}{event.text}"[-4 * self._output.progress_columns :]
            if now >= self._next_s:
                self._next_s = now + _REDRAW_S
                self._output.progress(self._line())

    def end(self) -> None:
        """Say how long it was, once."""
        if self._begun_s is None:
            return
        seconds = time.monotonic() - self._begun_s
        self._begun_s = None
        self._output.clear_progress()
        if self._thoughts == "fold":
            self._output.note(f"thought for {seconds:.1f} s, {self._n_tokens:,} tokens")

    def _line(self) -> str:
        said = f"thinking: {self._n_tokens:,} tokens"
        if self._thoughts == "hide":
            return said
        words = one_line(" ".join(for_terminal(self._tail).split()))
        room = self._output.progress_columns - len(said) - 2
        return f"{said}  {words[-room:]}" if room > 0 and words else said


def show_answer(output: Output, text: str) -> None:
    """Show an answer that was given before: on standard error, as it is not a new one."""
    shown = [for_terminal(text)]
    if output.decorates:
        shown = []
        stream = _markdown(output, shown.append)
        stream.feed(for_terminal(text))
        stream.close()
    output.tell("".join(shown).removesuffix("\n"))


def _markdown(output: Output, write: Callable[[str], None]) -> "MarkdownStream":
    # Imported here: a chat in a pipe has no use for it.
    from localv4.cli.markdown.stream import MarkdownStream

    return MarkdownStream(write, lambda: output.answer_columns or _COLUMNS, output.unicode)
