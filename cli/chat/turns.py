"""One turn of a chat: an answer, shown as it comes, that can be stopped."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from localv4.cli.output import Output
from localv4.cli.prefill_bar import PrefillBar
from localv4.cli.statistics import statistics_line
from localv4.cli.stopping import Stopped, stoppable
from localv4.cli.writers import Answer, TextWriter

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.events import Event
    from localv4.generate import Generation
    from localv4.session import Session

__all__ = ["Turn"]


class Turn:
    """An answer to what was said last.

    Parameters
    ----------
    engine, session
        What answers.
    output
        Where to.
    """

    def __init__(self, engine: "Engine", session: "Session", output: Output) -> None:
        self._engine = engine
        self._session = session
        self._output = output
        self._generation: Generation | None = None
        self._stops_softly = False
        self._n_prompt = 0
        self.answer = Answer()

    def stream(
        self, messages: list[dict[str, str]], thinking: str | None, max_tokens: int | None
    ) -> None:
        """Show the answer; Ctrl-C ends it after the current token, or at once while it waits.

        Raises
        ------
        LocalV4Error
            There is none, or no more of it.
        Stopped
            The process is to end.
        """
        writer = TextWriter(self._output)
        before = self._engine.stats
        try:
            with stoppable(stop_softly=self._stop_softly):
                for event in self._events(messages, thinking, max_tokens):
                    self.answer.take(event)
                    writer.event(event)
        except Stopped as error:
            if error.finish_reason != "interrupted":
                raise
            self.answer.finish_reason = error.finish_reason
        finally:
            if self._generation is not None:
                writer.end(self.answer, {})
                said = statistics_line(self._engine.stats.since(before))
                self._output.note(said, level=0 if self._output.on_terminal else 1, log=True)
        if self.answer.finish_reason == "interrupted":
            self._output.note(self._stopped_words())

    def _events(
        self, messages: list[dict[str, str]], thinking: str | None, max_tokens: int | None
    ) -> "Iterator[Event]":
        bar = PrefillBar(self._output)
        self._generation = self._engine.generate(
            messages,
            max_tokens=max_tokens,
            session=self._session,
            thinking=thinking,
            progress=bar.advance,
        )
        self._n_prompt = len(self._generation.pending_ids)
        return bar.events(self._generation)

    def _stop_softly(self) -> bool:
        """Let the answer end by itself; once, and not while the prompt is still being read."""
        if self._generation is None or self._stops_softly or not self.answer.usage:
            return False
        self._generation.interrupt()
        self._stops_softly = True
        return True

    def _stopped_words(self) -> str:
        if self.answer.usage:
            return "(stopped)"
        n_read = 0
        if self._generation is not None:
            n_read = self._n_prompt - len(self._generation.pending_ids)
        if not n_read:
            return "(stopped while reading the prompt)"
        return (
            f"(stopped while reading the prompt; {n_read:,} of its {self._n_prompt:,} tokens stay "
            "read: ask again to go on)"
        )
