"""One turn of a chat: an answer, shown as it comes, that can be stopped."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localv4.cli.chat.keyboard import no_echo
from localv4.cli.chat.view import AnswerView, Thoughts
from localv4.cli.output import Output
from localv4.cli.prefill_bar import PrefillBar
from localv4.cli.statistics import answer_line
from localv4.cli.stopping import Stopped, stoppable
from localv4.cli.writers import Answer

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.events import Event
    from localv4.generate import Generation
    from localv4.sampling import SamplingParams
    from localv4.session import Session

__all__ = ["Request", "Turn"]


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes
    ----------
    messages
        All that was said, up to the question.
    thinking
        Level of thinking.
    sampling, max_tokens
        How the answer's tokens are chosen, and the most there may be.
    begun
        Tokens of the answer that are there already.
    """

    messages: Sequence[dict[str, str]]
    thinking: str
    sampling: "SamplingParams"
    max_tokens: int | None
    begun: tuple[int, ...] = ()


class Turn:
    """An answer to what was said last, or the rest of one.

    Parameters
    ----------
    engine, session
        What answers.
    output, thoughts
        Where to, and what becomes of thinking.
    answer
        What has come of the answer before.

    Attributes
    ----------
    answer
        What has come of it so far.
    """

    def __init__(
        self,
        engine: "Engine",
        session: "Session",
        output: Output,
        thoughts: Thoughts,
        answer: Answer,
    ) -> None:
        self.answer = answer
        self._engine = engine
        self._session = session
        self._output = output
        self._view = AnswerView(output, thoughts)
        self._generation: Generation | None = None
        self._begun: tuple[int, ...] = ()
        self._stops_softly = False
        self._n_prompt = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens of the answer."""
        return self._begun + (() if self._generation is None else self._generation.ids)

    @property
    def n_new(self) -> int:
        """Tokens of the answer that this turn has added."""
        return len(self.ids) - len(self._begun)

    def stream(self, request: Request) -> None:
        """Show the answer; Ctrl-C ends it after the current token, or at once while it waits.

        Raises
        ------
        LocalV4Error
            There is none, or no more of it.
        Stopped
            The process is to end.
        """
        self._begun = request.begun
        before, begun_s = self._engine.stats, time.monotonic()
        try:
            with no_echo(), stoppable(stop_softly=self._stop_softly):
                for event in self._events(request):
                    self.answer.take(event)
                    self._view.event(event)
        except Stopped as error:
            self.answer.finish_reason = error.finish_reason
            self._catch_up(request.thinking)
            if error.finish_reason != "interrupted":
                raise
        finally:
            if self._generation is not None:
                self._view.end()
                done = self._engine.stats.since(before)
                total_s, columns = time.monotonic() - begun_s, self._output.note_columns
                said = answer_line(done, self.n_new, total_s, columns)
                self._output.note(said, level=0 if self._output.on_terminal else 1, log=True)
        if self.answer.finish_reason == "interrupted":
            self._output.note(self._stopped_words())

    def _events(self, request: Request) -> "Iterator[Event]":
        bar = PrefillBar(self._output)
        self._generation = self._engine.generate(
            request.messages,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            session=self._session,
            thinking=request.thinking,
            progress=bar.advance,
            begun=request.begun,
        )
        self._n_prompt = len(self._generation.pending_ids)
        return bar.events(self._generation)

    def _catch_up(self, thinking: str) -> None:
        """Show what was held back of an answer that was torn off, so that it can go on."""
        answer = self.answer
        reasoning, text = self._engine.prompt_format.answer(self.ids, thinking)
        if text.startswith(answer.text) and reasoning.startswith(answer.reasoning):
            self._view.write(text[len(answer.text) :])
            answer.reasoning, answer.text = reasoning, text

    def _stop_softly(self) -> bool:
        """Let the answer end by itself; once, and not while the prompt is still being read."""
        if self._generation is None or self._stops_softly or not self.answer.usage:
            return False
        self._generation.interrupt()
        self._stops_softly = True
        return True

    def _stopped_words(self) -> str:
        if self.answer.usage:
            return "(stopped; /more goes on)" if self.ids else "(stopped)"
        n_read = 0
        if self._generation is not None:
            n_read = self._n_prompt - len(self._generation.pending_ids)
        if not n_read:
            return "(stopped while reading the prompt)"
        return (
            f"(stopped while reading the prompt; {n_read:,} of its {self._n_prompt:,} tokens stay "
            "read: ask again to go on)"
        )
