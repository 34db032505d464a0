"""What happens while an answer is made, as the caller of `Engine.generate` sees it.

Knows nothing of how it comes about.
"""

from dataclasses import dataclass
from typing import Literal

from localv4.sampling import TokenLogprob

__all__ = ["Event", "EventKind", "FinishReason", "Timings", "ToolCall", "Usage"]

EventKind = Literal["prefill", "reasoning", "text", "tool_call", "done"]
FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer.

    Attributes
    ----------
    prompt_tokens
        Tokens given to `generate`; not what the session held before.
    completion_tokens
        Tokens sampled, the one that ended the answer included.
    reasoning_tokens
        Those of them that were reasoning, its end token included.
    """

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds spent in prefill, and in decoding and sampling; never in the caller's own code."""

    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class ToolCall:
    """A complete tool call: an id made for it, the tool's name and the arguments as JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Event:
    """Something that happened while an answer was made.

    Attributes
    ----------
    kind
        ``"prefill"`` once, after the prompt, if that was not interrupted; any number of
        ``"reasoning"``, ``"text"`` and ``"tool_call"``; ``"done"`` once, at the end.
    text
        New reasoning or answer text. The texts of all ``"text"`` events make the answer.
    ids
        Tokens sampled since the event before. Text may be held back, so they are not always
        the tokens that spell `text`; every sampled token is in exactly one event.
    logprobs
        One entry for each of `ids`; None on ``"prefill"`` and if they were not asked for.
    tool_call
        On ``"tool_call"``: the call.
    finish_reason
        On ``"done"``: ``"stop"`` (end token, stop id or stop string), ``"length"``
        (`max_tokens`, or the session is full) or ``"interrupted"``.
    dropped_call
        On ``"done"``: whether a tool call was left out because it was cut off or malformed.
    usage, timings
        On ``"prefill"`` and ``"done"``: the counts and seconds so far.
    """

    kind: EventKind
    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_call: ToolCall | None = None
    finish_reason: FinishReason | None = None
    dropped_call: bool = False
    usage: Usage | None = None
    timings: Timings | None = None
