"""``localv4 run``: one answer for a script."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import localv4
from localv4.cli import options
from localv4.cli.opening import open_engine, refuse_base, warn_of_short_context
from localv4.cli.output import Output
from localv4.cli.prefill_bar import PrefillBar
from localv4.cli.prompt import read_prompt
from localv4.cli.statistics import statistics_line, stream_timings
from localv4.cli.stopping import Stopped, check_timeout, stoppable
from localv4.cli.writers import Answer, JsonlWriter, JsonWriter, TextWriter, Writer
from localv4.errors import InvalidInput
from localv4.settings import Settings

if TYPE_CHECKING:
    from localv4.sampling import SamplingParams
    from localv4.stats import Stats

__all__ = ["run"]

_WRITERS: dict[str, Callable[[Output], Writer]] = {
    "text": TextWriter,
    "json": JsonWriter,
    "jsonl": JsonlWriter,
}


@dataclass(frozen=True)
class _Request:
    """What is asked, apart from the settings."""

    prompt: str | list[dict[str, Any]]
    sampling: "SamplingParams"
    max_tokens: int | None
    stop: list[str]

    @property
    def is_raw(self) -> bool:
        return isinstance(self.prompt, str)


@dataclass
class _Outcome:
    """What has come of it so far; kept up to date, because it may be stopped at any moment."""

    answer: Answer = field(default_factory=Answer)
    timings: dict[str, float] = field(default_factory=dict)
    done: "Stats | None" = None


def run(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text; - is standard input."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the prompt from a file.")
    ] = None,
    system: options.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text: no template.")] = False,
    output_format: Annotated[
        Literal["text", "json", "jsonl"], typer.Option("--format", help="What stdout carries.")
    ] = "text",
    model: options.Model = None,
    max_tokens: options.MaxTokens = None,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="X", show_default=False, help="0 always takes the likeliest token; else 1."
        ),
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(
            metavar="X", show_default=False, help="Keep tokens up to this probability; else 1."
        ),
    ] = 1.0,
    top_k: Annotated[
        int,
        typer.Option(
            metavar="N", show_default=False, help="Keep this many tokens; 0, the default: all."
        ),
    ] = 0,
    min_p: Annotated[
        float,
        typer.Option(
            metavar="X",
            show_default=False,
            help="Keep tokens this likely beside the likeliest.",
        ),
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Repeats an answer; else drawn.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")
    ] = None,
    think: options.ThinkFlag = None,
    profile: options.ProfileFlag = None,
    numerics: options.NumericsFlag = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    context: options.Context = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Stop after this many seconds, exit code 124.")
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Print one answer.

    Standard output carries the answer and nothing else; thinking, progress and warnings go to
    standard error. Piped standard input is joined to the prompt by a blank line; one line end at
    the end of it is dropped.

    The answer ends when the model ends it, at --stop, after --max-tokens, or when the context is
    full: without a limit that can be long.

    Exit codes: 0 done, 1 failed, 2 usage, 3 model missing or damaged, 4 not enough memory or disk,
    124 timeout, 130 interrupted, 143 terminated. What was written before stays on standard output.

    Examples
    --------
    localv4 run -m flash "Why is the sky blue?" --max-tokens 40
    git diff | localv4 run -m flash "Review this" --max-tokens 40
    localv4 run -m flash --prompt-file letter.txt --format json --max-tokens 40
    localv4 run -m flash-base --raw "Once upon a time" --max-tokens 40 --seed 7
    """
    flags: dict[str, object] = {"model": model, "memory": memory, "threads": threads}
    flags |= {"context": context, "numerics": numerics, "think": think, "profile": profile}
    settings, output = options.start(ctx, flags, quiet, verbose)
    if raw and (system is not None or think is not None or profile is not None):
        raise InvalidInput("--raw has no template; leave out --system, --think and --profile")
    check_timeout(timeout)
    text = read_prompt(prompt, prompt_file, 'localv4 run "Why is the sky blue?"')

    # Imported here, as they are not for --help.
    import secrets

    from localv4.sampling import SamplingParams

    if seed is None:
        seed = secrets.randbits(32)
    sampling = SamplingParams(temperature, top_p, top_k, min_p, seed)
    request = _Request(text if raw else _messages(text, system), sampling, max_tokens, stop or [])
    _run(settings, output, request, _WRITERS[output_format](output), timeout)


def _messages(prompt: str, system: str | None) -> list[dict[str, Any]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": prompt}]


def _run(
    settings: Settings, output: Output, request: _Request, writer: Writer, timeout_s: float | None
) -> None:
    """Answer; if that is stopped, show what there is before saying so."""
    outcome = _Outcome()
    stopped: Stopped | None = None
    begun_s = time.monotonic()
    try:
        with stoppable(timeout_s):
            _answer(settings, output, request, writer, outcome)
    except Stopped as error:
        stopped = error
        outcome.answer.finish_reason = error.finish_reason
    outcome.timings["total_s"] = round(time.monotonic() - begun_s, 6)
    facts = {
        "timings": outcome.timings,
        "seed": request.sampling.seed,
        "model": settings.model or "built-in",
        "version": localv4.__version__,
    }
    writer.end(outcome.answer, facts)
    total_s = outcome.timings["total_s"]
    said = f"{total_s:.1f} s in all"
    if outcome.done is not None:
        said = statistics_line(outcome.done, total_s)
    output.note(said, level=0 if output.on_terminal else 1, log=True)
    if stopped:
        raise stopped


def _answer(
    settings: Settings, output: Output, request: _Request, writer: Writer, outcome: _Outcome
) -> None:
    begun_s = time.monotonic()
    with open_engine(settings, output) as engine:
        outcome.timings["load_s"] = round(time.monotonic() - begun_s, 6)
        if not request.is_raw:
            refuse_base(engine)
        session = engine.session(context=settings.context)
        level = "off" if request.is_raw else settings.think or engine.default_thinking
        warn_of_short_context(level, session, engine, output)
        bar = PrefillBar(output)
        generation = engine.generate(
            request.prompt,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            stop=request.stop,
            session=session,
            thinking=level,
            progress=bar.advance,
        )
        try:
            for event in bar.events(generation):
                outcome.answer.take(event)
                writer.event(event)
        finally:
            done = outcome.done = engine.stats
            outcome.timings |= {
                "prefill_s": round(done.prefill_s, 6),
                "prefill_tokens": done.prefill_tokens,
                "decode_s": round(done.decode_s, 6),
                "decode_tokens": done.decode_tokens,
                **stream_timings(done),
            }
