"""Many prompts answered one after the other, by one session, as JSON lines.

What two prompts in a row share at their beginning is read once. A prompt that fails has a line that
says why, and does not stop the others.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from localv4.cli.answering import Outcome, Request, answer
from localv4.cli.opening import open_engine, refuse_base, warn_of_short_context
from localv4.cli.output import Output, one_line
from localv4.cli.prompts_file import Entry
from localv4.cli.results_file import ResultsFile
from localv4.cli.shared_beginning import read_shared
from localv4.cli.stopping import Stopped, stoppable
from localv4.cli.writers import Answer, Entries, report
from localv4.encoding import thinking_arguments
from localv4.errors import ContextOverflow, FormatError, InvalidInput, LocalV4Error, OutOfBudget
from localv4.settings import Settings

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.events import Event
    from localv4.session import Session

__all__ = ["answer_all"]

_OF_ONE_PROMPT = (ContextOverflow, FormatError, InvalidInput, OutOfBudget)


def answer_all(
    settings: Settings,
    output: Output,
    entries: Sequence[Entry],
    results: ResultsFile | None,
    timeout_s: float | None,
) -> None:
    """Answer all prompts that have no answer yet.

    Parameters
    ----------
    settings, output
        Of the command.
    entries
        The prompts.
    results
        Where the lines go; None is standard output.
    timeout_s
        For all of it; None for no limit.

    Raises
    ------
    LocalV4Error
        Some prompts failed, or nothing works at all.
    Stopped
        Not all could be tried.
    """
    many = _Many(settings, output, entries, results)
    try:
        with stoppable(timeout_s):
            many.answer()
    except Stopped as error:
        sentence = f"{error.sentence or 'stopped'}: {many.standing()}"
        raise Stopped(error.exit_code, error.finish_reason, sentence) from None
    many.raise_if_failed()


class _Many:
    """The prompts of one start, and how many of them are done."""

    def __init__(
        self,
        settings: Settings,
        output: Output,
        entries: Sequence[Entry],
        results: ResultsFile | None,
    ) -> None:
        self._settings = settings
        self._output = output
        self._entries = entries
        self._results = results
        self._level = 0 if output.on_terminal else 1
        self._n_printed = 0
        self._n_failed = 0
        self._load_s = 0.0

    def answer(self) -> None:
        """Answer what has no answer; without a model if there is nothing to do."""
        results = self._results
        todo = [
            place
            for place in range(len(self._entries))
            if results is None or not results.is_done(place)
        ]
        if not todo:
            self._output.note(f"{self.standing()}: nothing is left to do", self._level)
            return
        self._output.progress(f"{self.standing()}; opening the model ...")
        begun_s = time.monotonic()
        with open_engine(self._settings, self._output) as engine:
            self._load_s = round(time.monotonic() - begun_s, 6)
            session = self._session(engine, [self._entries[place].request for place in todo])
            for place, following in zip(todo, [*todo[1:], None], strict=True):
                next_request = None if following is None else self._entries[following].request
                self._one(engine, session, place, next_request)

    def standing(self) -> str:
        """Say how many are done, and how to go on if that is not all."""
        n_done = self._n_printed if self._results is None else self._results.n_done
        said = f"{n_done:,} of {len(self._entries):,} prompts are done"
        if n_done == len(self._entries):
            return said
        if self._results is None:
            return f"{said}; with --output FILE a later start could go on"
        return f"{said}; the same command goes on from there"

    def raise_if_failed(self) -> None:
        """Count the prompts that failed, if there are any.

        Raises
        ------
        LocalV4Error
            There are.
        """
        if self._n_failed:
            again = "" if self._results is None else "; the same command tries them again"
            raise LocalV4Error(
                f"{self._n_failed:,} of {len(self._entries):,} prompts failed; their lines say "
                f'why, as "error"{again}'
            )

    def _session(self, engine: "Engine", requests: list[Request]) -> "Session":
        if not all(isinstance(request.prompt, str) for request in requests):
            refuse_base(engine)
            if self._settings.think is not None:
                thinking_arguments(self._settings.think, engine.profile)  # else all would fail
        session = engine.session(context=self._settings.context)
        if any(request.level(engine) == "max" for request in requests):
            warn_of_short_context("max", session, engine, self._output)
        return session

    def _one(
        self, engine: "Engine", session: "Session", place: int, following: Request | None
    ) -> None:
        """Answer one prompt and write its line."""
        entry = self._entries[place]
        outcome = Outcome(before=engine.stats, seed=entry.request.parameters.chosen_seed())
        outcome.timings["load_s"] = self._load_s
        try:
            ids = read_shared(engine, session, entry.request, following, self._output)
            request = entry.request
            if isinstance(request.prompt, str):
                # Without a template nothing else goes back to what is shared.
                request = replace(request, prompt=ids[session.position :])
            counter = _Counter(self._output, f"{place + 1:,} of {len(self._entries):,}")
            answer(engine, session, request, self._output, outcome, counter)
        except _OF_ONE_PROMPT as error:
            self._n_failed += 1
            self._put(place, {"error": str(error)}, one_line(str(error)))
            return
        said = outcome.answer
        # As if it had been asked alone: what was read before counts.
        said.usage["prompt_tokens"] = len(ids)
        facts = outcome.facts(self._settings)
        n_tokens = said.usage["completion_tokens"]
        total_s = facts["timings"]["total_s"]
        self._put(place, report(said, facts), f"{n_tokens:,} tokens in {total_s:.1f} s")

    def _put(self, place: int, rest: dict[str, Any], said: str) -> None:
        line = f"{self._entries[place].head}, {json.dumps(rest, ensure_ascii=False)[1:]}"
        if self._results is None:
            # First: a stop may come at any moment, and what is begun is flushed in the end.
            self._n_printed += "error" not in rest
            self._output.line(line)
        else:
            self._results.put(place, line)
        self._output.note(f"{place + 1:,} of {len(self._entries):,}: {said}", self._level)


class _Counter:
    """Shows how many tokens an answer has, on a line that is replaced."""

    def __init__(self, output: Output, which: str) -> None:
        self._output = output
        self._which = which
        self._n_tokens = 0

    def event(self, event: "Event", logprobs: Entries = None) -> None:
        """Count one event."""
        self._n_tokens += len(event.ids)
        if self._output.redraws:
            self._output.progress(f"{self._which}: {self._n_tokens:,} tokens")

    def end(self, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Do nothing: the prompt's own line follows."""
