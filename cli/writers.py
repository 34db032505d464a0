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

__all__ = ["Answer", "JsonWriter", "JsonlWriter", "TextWriter", "Writer"]


@dataclass
class Answer:
    """What has come of an answer so far."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)

    def take(self, event: "Event") -> None:
        """Add one event."""
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
            so_far = self.usage.get("completion_tokens", 0)
            self.usage["completion_tokens"] = so_far + len(event.ids)


class Writer(Protocol):
    """Shows an answer as it comes."""

    def event(self, event: "Event") -> None:
        """Show one event."""

    def end(self, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Show the end of an answer, complete or stopped, and facts for programs."""


class TextWriter:
    """The answer as text on standard output; thinking on standard error."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, event: "Event") -> None:
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


class JsonWriter:
    """One JSON object at the end."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, event: "Event") -> None:
        """Show nothing yet."""

    def end(self, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Print the object."""
        report = {"text": answer.text, "reasoning": answer.reasoning, **_ending(answer), **facts}
        self._output.line(json.dumps(report, ensure_ascii=False))


class JsonlWriter:
    """One JSON object a line: each part as it comes, then the rest of what the JSON form has."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, event: "Event") -> None:
        """Print a part."""
        if event.tool_call is not None:
            self._print(event.kind, asdict(event.tool_call))
        elif event.text:
            self._print(event.kind, {"text": event.text})

    def end(self, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Print the last line."""
        self._print("done", {**_ending(answer), **facts})

    def _print(self, kind: str, rest: Mapping[str, Any]) -> None:
        self._output.line(json.dumps({"kind": kind, **rest}, ensure_ascii=False))


def _ending(answer: Answer) -> dict[str, Any]:
    calls = {"tool_calls": answer.tool_calls} if answer.tool_calls else {}
    return {**calls, "finish_reason": answer.finish_reason, "usage": answer.usage}
