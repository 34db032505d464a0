"""One prompt answered by an open engine, with a record of what has come of it.

Knows nothing of flags, of where prompts come from or where answers go.
"""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import localv4
from localv4.cli.logprobs import token_entries
from localv4.cli.output import Output
from localv4.cli.prefill_bar import PrefillBar
from localv4.cli.statistics import stream_timings
from localv4.cli.writers import Answer, Writer
from localv4.settings import Settings
from localv4.stats import Stats

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.sampling import SamplingParams
    from localv4.session import Session

__all__ = ["Outcome", "Parameters", "Request", "answer"]


@dataclass(frozen=True)
class Parameters:
    """How a prompt is to be answered; the names are those of the flags, without dashes."""

    system: str | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    think: str | None = None

    def chosen_seed(self) -> int:
        """Return the seed, drawn if none is given."""
        return secrets.randbits(32) if self.seed is None else self.seed

    def sampling(self, seed: int | None) -> "SamplingParams":
        """Return what the sampler wants.

        Raises
        ------
        InvalidInput
            If a value is out of its range.
        """
        # Imported here, as it is not for --help.
        from localv4.sampling import SamplingParams

        return SamplingParams(self.temperature, self.top_p, self.top_k, self.min_p, seed)


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes
    ----------
    prompt
        A conversation; or text, or its ids, to be continued without a template.
    parameters
        How it is to be answered.
    tools
        Offered with a conversation; None for none.
    logprobs
        How many of the likeliest tokens to give beside each sampled one; None for no such list.
    """

    prompt: str | list[int] | list[dict[str, Any]]
    parameters: Parameters
    tools: list[dict[str, Any]] | None = None
    logprobs: int | None = None

    def level(self, engine: "Engine") -> str:
        """Return the thinking level in force."""
        return self.parameters.think or engine.default_thinking


@dataclass
class Outcome:
    """What has come of a request so far; true at any moment, because it may be stopped at any.

    Attributes
    ----------
    answer, timings, seed
        For programs.
    before, done
        The engine's counters before it began, and what it did since.
    """

    answer: Answer = field(default_factory=Answer)
    timings: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    before: Stats = field(default_factory=Stats)
    done: Stats | None = None
    begun_s: float = field(default_factory=time.monotonic)

    def facts(self, settings: Settings) -> Mapping[str, Any]:
        """Return what the JSON forms say of an answer beside its text."""
        self.timings["total_s"] = round(time.monotonic() - self.begun_s, 6)
        return {
            "timings": self.timings,
            "seed": self.seed,
            "model": settings.model or "built-in",
            "version": localv4.__version__,
        }


def answer(
    engine: "Engine",
    session: "Session",
    request: Request,
    output: Output,
    outcome: Outcome,
    writer: Writer | None = None,
) -> None:
    """Answer a request.

    Parameters
    ----------
    engine, session
        What answers.
    request
        What is asked.
    output
        Shows how far the reading of the prompt is.
    outcome
        Kept up to date; its seed and counters are set before.
    writer
        Shows the answer as it comes; None for nobody.
    """
    parameters = request.parameters
    bar = PrefillBar(output)
    generation = engine.generate(
        request.prompt,
        sampling=parameters.sampling(outcome.seed),
        max_tokens=parameters.max_tokens,
        stop=[*parameters.stop],
        session=session,
        thinking=request.level(engine),
        tools=request.tools,
        logprobs=request.logprobs,
        progress=bar.advance,
    )
    assert engine.tokenizer is not None
    try:
        for event in bar.events(generation):
            entries = token_entries(event.logprobs, engine.tokenizer)
            outcome.answer.take(event, entries)
            if writer is not None:
                writer.event(event, entries)
    finally:
        _count(engine, outcome)
    said = outcome.answer
    if request.tools and said.tool_calls and said.finish_reason == "stop":
        said.finish_reason = "tool_calls"


def _count(engine: "Engine", outcome: Outcome) -> None:
    done = outcome.done = engine.stats.since(outcome.before)
    outcome.timings |= {
        "prefill_s": round(done.prefill_s, 6),
        "prefill_tokens": done.prefill_tokens,
        "decode_s": round(done.decode_s, 6),
        "decode_tokens": done.decode_tokens,
        **stream_timings(done),
    }
