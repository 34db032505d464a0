"""An answer as it comes from the engine, and the forms in which it is shown.

Knows nothing of flags or of the engine beyond its events.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from localv4.cli.output import Output

if TYPE_CHECKING:
    from localv4.events import Event

__all__ = ["Answer", "Entries", "JsonWriter", "JsonlWriter", "TextWriter", "Writer", "report"]

Entries = list[dict[str, Any]] | None
"""The log-probabilities of an event's tokens; None if they were not asked for."""


@dataclass
class Answer:
    """What has come of an answer so far."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    logprobs: Entries = None
    dropped_call: bool = False

    def take(self, event: "Event", logprobs: Entries = None) -> None:
        """Add one event."""
        if logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += logprobs
        self.dropped_call |= event.dropped_call
        if event.kind == "text":
            self.text += event.text
        elif event.kind == "reasoning":
            self.reasoning += event.text
        elif event.tool_call is not None:
            self.tool_calls.append(asdict(event.tool_call))
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
        if event.usage is not None:
            self.usage = asdict(event.usage)
        else:
            # Kept up to date for an answer that is stopped and never gets its last event.
            self._count("completion_tokens", len(event.ids))
            if event.kind == "reasoning":
                self._count("reasoning_tokens", len(event.ids))

    def _count(self, what: str, n_tokens: int) -> None:
        self.usage[what] = self.usage.get(what, 0) + n_tokens


class Writer(Protocol):
    """Shows an answer as it comes."""

    def event(self, event: "Event", logprobs: Entries = None) -> None:
        """Show one event."""

    def end(self, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Show the end of an answer, complete or stopped, and facts for programs."""


class TextWriter:
    """The answer as text on standard output; thinking on standard error."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, event: "Event", logprobs: Entries = None) -> None:
        """Show one event."""
        if event.kind == "text":
            self._output.answer(event.text)
        elif event.kind == "reasoning":
            self._output.thinking(event.text)
        elif event.tool_call is not None:
            call = json.dumps(asdict(event.tool_call))
            self._output.warning(f"the model calls a tool: {call}", log=False)

    def end(self, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Close the answer's line, and say why there is no answer where there is none."""
        self._output.end_answer()
        if answer.finish_reason == "length" and answer.reasoning and not answer.text:
            n_tokens = answer.usage.get("completion_tokens", 0)
            self._output.warning(
                f"no answer yet: all {n_tokens:,} tokens went into thinking; raise --max-tokens, "
                "or try --think off"
            )
        if answer.dropped_call:
            self._output.warning(
                "a tool call was left out, because it was cut off or malformed; raise "
                "--max-tokens, or try again",
                log=False,
            )


class JsonWriter:
    """One JSON object at the end."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, event: "Event", logprobs: Entries = None) -> None:
        """Show nothing yet."""

    def end(self, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Print the object."""
        self._output.line(json.dumps(report(answer, facts), ensure_ascii=False))


class JsonlWriter:
    """One JSON object a line: each part as it comes, then the rest of what the JSON form has."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last: dict[str, Any] = {"ids": []}

    def event(self, event: "Event", logprobs: Entries = None) -> None:
        """Print a part."""
        tokens: dict[str, Any] = {"ids": event.ids}
        if logprobs is not None:
            tokens["logprobs"] = logprobs
        if event.kind == "done":
            self._last = tokens
        elif event.kind == "prefill":
            counts = {} if event.usage is None else asdict(event.usage)
            timings = {} if event.timings is None else asdict(event.timings)
            rounded = {name: round(seconds, 6) for name, seconds in timings.items()}
            self._print(event.kind, {"usage": counts, "timings": rounded})
        elif event.tool_call is not None:
            self._print(event.kind, {**asdict(event.tool_call), **tokens})
        elif event.text:
            self._print(event.kind, {"text": event.text, **tokens})

    def end(self, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Print the last line."""
        self._print("done", {**self._last, **_ending(answer), **facts})

    def _print(self, kind: str, rest: Mapping[str, Any]) -> None:
        self._output.line(json.dumps({"kind": kind, **rest}, ensure_ascii=False))


def report(answer: Answer, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole answer, with facts for programs, as the JSON form has it."""
    logprobs = {} if answer.logprobs is None else {"logprobs": answer.logprobs}
    said = {"text": answer.text, "reasoning": answer.reasoning}
    return {**said, **_ending(answer), **logprobs, **facts}


def _ending(answer: Answer) -> dict[str, Any]:
    calls: dict[str, Any] = {"tool_calls": answer.tool_calls} if answer.tool_calls else {}
    if answer.dropped_call:
        calls["dropped_call"] = True
    return {**calls, "finish_reason": answer.finish_reason, "usage": answer.usage}
