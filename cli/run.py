"""``localv4 run``: one answer for a script, or many."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from localv4.cli import options
from localv4.cli.answering import Outcome, Parameters, Request, answer
from localv4.cli.opening import open_engine, refuse_base, warn_of_short_context
from localv4.cli.output import Output
from localv4.cli.prompt import read_prompt
from localv4.cli.statistics import statistics_line
from localv4.cli.stopping import Stopped, check_timeout, stoppable
from localv4.cli.writers import JsonlWriter, JsonWriter, TextWriter, Writer
from localv4.errors import InvalidInput
from localv4.settings import Settings

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.session import Session

__all__ = ["run"]

_WRITERS: dict[str, Callable[[Output], Writer]] = {
    "text": TextWriter,
    "json": JsonWriter,
    "jsonl": JsonlWriter,
}


def run(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text; - is standard input."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the prompt from a file.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Answer many: JSON lines in, JSON lines out; - is stdin."
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="With --prompts: add lines here; goes on if stopped."
        ),
    ] = None,
    system: options.System = None,
    tools: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Offer these tools: a JSON list.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text: no template.")] = False,
    output_format: Annotated[
        Literal["text", "json", "jsonl"] | None,
        typer.Option("--format", help="What stdout carries; else text."),
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=20, help="In JSON: each token's logprob, and N others."
        ),
    ] = None,
    model: options.Model = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take: tokens, memory, time.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Print one answer, or with --prompts many.

    Standard output carries the answer and nothing else; thinking, progress and warnings go to
    standard error. Piped standard input is joined to the prompt by a blank line; one line end at
    the end of it is dropped.

    The answer ends when the model ends it, at --stop, after --max-tokens, or when the context is
    full: without a limit that can be long.

    A line of --prompts is a JSON text, or an object with "prompt" or "messages", and perhaps "id"
    and parameters of its own, such as "max_tokens". Each answer is a line of JSON.

    Exit codes: 0 done, 1 failed, 2 usage, 3 model missing or damaged, 4 not enough memory or disk,
    124 timeout, 130 interrupted, 143 terminated. What was written before stays on standard output.

    Examples
    --------
    localv4 run -m flash "Why is the sky blue?" --max-tokens 40
    git diff | localv4 run -m flash "Review this" --max-tokens 40
    echo '"Why?"' | localv4 run -m flash --prompts - --max-tokens 40
    localv4 run -m flash-base --raw "Once upon a time" --max-tokens 40 --seed 7
    """
    flags: dict[str, object] = {"model": model, "memory": memory, "threads": threads}
    flags |= {"context": context, "numerics": numerics, "think": think, "profile": profile}
    settings, output = options.start(ctx, flags, quiet, verbose)
    if raw and any(given is not None for given in (system, think, profile, tools)):
        raise InvalidInput("--raw has no template; leave out --system, --think, --profile, --tools")
    if logprobs is not None and prompts is None and output_format in (None, "text"):
        raise InvalidInput("--logprobs has no place in text; add --format json or --format jsonl")
    if "" in (stop or ()):
        raise InvalidInput("--stop is empty; give at least one character, or leave it out")
    check_timeout(timeout)
    sampled = (temperature, top_p, top_k, min_p, seed)
    thinking = "off" if raw else settings.think
    parameters = Parameters(system, max_tokens, *sampled, tuple(stop or ()), thinking)
    parameters.sampling(seed)
    offered = None if tools is None else _tools(tools)
    request = Request("", parameters, offered, logprobs)
    if dry_run and (prompts is not None or logprobs is not None):
        raise InvalidInput("--dry-run is about one prompt; leave out --prompts and --logprobs")
    if prompts is not None:
        if prompt is not None or prompt_file is not None:
            raise InvalidInput("--prompts has all prompts; leave out PROMPT and --prompt-file")
        if output_format not in (None, "jsonl"):
            raise InvalidInput(
                f"--prompts prints JSON lines, one an answer; leave out --format {output_format}"
            )
        _run_many(settings, output, prompts, request, raw, results, timeout)
        return
    if results is not None:
        raise InvalidInput("--output belongs to --prompts; write > FILE for one answer")
    text = read_prompt(prompt, prompt_file, 'localv4 run "Why is the sky blue?"')
    request = replace(request, prompt=text if raw else _messages(text, system))
    if dry_run:
        _say(settings, output, request, output_format or "text")
        return
    _run(settings, output, request, _WRITERS[output_format or "text"](output), timeout)


def _tools(path: Path) -> list[dict[str, Any]]:
    from localv4.cli.tools_file import read_tools

    return read_tools(path)


def _messages(prompt: str, system: str | None) -> list[dict[str, Any]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": prompt}]


def _run_many(
    settings: Settings,
    output: Output,
    prompts: Path,
    base: Request,
    raw: bool,
    results: Path | None,
    timeout_s: float | None,
) -> None:
    """Answer all prompts of a file; it is checked, and so are the results there are, first."""
    from localv4.cli.many import answer_all
    from localv4.cli.prompts_file import read_prompts
    from localv4.cli.results_file import ResultsFile

    entries = read_prompts(prompts, base, raw, settings)
    if results is None:
        answer_all(settings, output, entries, None, timeout_s)
        return
    with ResultsFile(results, entries) as file:
        answer_all(settings, output, entries, file, timeout_s)


def _run(
    settings: Settings, output: Output, request: Request, writer: Writer, timeout_s: float | None
) -> None:
    """Answer; if that is stopped, show what there is before saying so."""
    outcome = Outcome(seed=request.parameters.chosen_seed())
    stopped: Stopped | None = None
    try:
        with stoppable(timeout_s):
            _answer(settings, output, request, writer, outcome)
    except Stopped as error:
        stopped = error
        outcome.answer.finish_reason = error.finish_reason
    facts = outcome.facts(settings)
    writer.end(outcome.answer, facts)
    total_s = outcome.timings["total_s"]
    said = f"{total_s:.1f} s in all"
    if outcome.done is not None:
        said = statistics_line(outcome.done, total_s)
    output.note(said, level=0 if output.on_terminal else 1, log=True)
    if stopped:
        raise stopped


def _say(settings: Settings, output: Output, request: Request, output_format: str) -> None:
    """Say what an answer would take."""
    from localv4.cli.dry_run import measure_machine, show_dry_run

    measure_machine(settings, output)
    with _opened(settings, output, request) as (engine, session):
        level = request.level(engine)
        ids, _ = engine.prompt_format.ids(request.prompt, level, request.tools)
        max_tokens = request.parameters.max_tokens
        show_dry_run(output, settings, engine, session, len(ids), max_tokens, output_format)


@contextlib.contextmanager
def _opened(
    settings: Settings, output: Output, request: Request
) -> "Iterator[tuple[Engine, Session]]":
    """Open the engine, and a session for a request."""
    with open_engine(settings, output) as engine:
        if not isinstance(request.prompt, str):
            refuse_base(engine)
        session = engine.session(context=settings.context)
        warn_of_short_context(request.level(engine), session, engine, output)
        yield engine, session


def _answer(
    settings: Settings, output: Output, request: Request, writer: Writer, outcome: Outcome
) -> None:
    begun_s = time.monotonic()
    with _opened(settings, output, request) as (engine, session):
        outcome.timings["load_s"] = round(time.monotonic() - begun_s, 6)
        answer(engine, session, request, output, outcome, writer)
