"""``localv4 bench trace`` and ``policies``: which experts to keep, and which to read early."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import localv4
from localv4.cli import options
from localv4.cli.output import Output
from localv4.cli.prompt import read_prompt
from localv4.cli.stopping import stoppable
from localv4.errors import InvalidInput
from localv4.models import resolve

if TYPE_CHECKING:
    from localv4.bench.lookahead import Machine

__all__ = ["policies", "trace"]


def trace(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The trace, an .npz; replaced.")],
    model: options.Model = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000, help="Tokens to decode.")
    ] = 500,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The prompt; else a text of ours.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the sampling.")] = 0,
    memory: options.Memory = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Record which experts a model chooses for a prompt and its answer.

    Beside the choices it keeps what the next layer's gate says one layer ahead, asked with three
    states of the layer before. The answer is sampled at temperature 1 and never ends early. Replay
    the file with: localv4 bench policies FILE.

    Examples
    --------
    localv4 bench trace choices.npz -m flash --tokens 100
    """
    flags: dict[str, object] = {"model": model, "memory": memory, "threads": threads}
    settings, output = options.start(ctx, flags, quiet, verbose)
    text = None if prompt_file is None else read_prompt(None, prompt_file, "--prompt-file FILE")
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise InvalidInput(f"{file} cannot be written; name a file in a folder that is there")
    folder = resolve(settings.model, say=output.warning)

    # Imported here, as NumPy is not for --help.
    from localv4.bench.traces import save_trace
    from localv4.bench.traces_recorded import record_trace

    with stoppable():
        recorded = record_trace(
            folder, tokens, text, settings.threads, settings.memory, seed, output.progress
        )
    save_trace(recorded, file)
    output.note(f"{file}: {recorded.n_tokens:,} tokens; replay them: localv4 bench policies {file}")


def policies(
    ctx: typer.Context,
    traces: Annotated[
        list[Path] | None,
        typer.Argument(metavar="TRACE", help="Recorded traces; else made ones of Flash."),
    ] = None,
    share: Annotated[
        str, typer.Option(metavar="PERCENT,...", help="Sizes of the cache, of all experts.")
    ] = "7,16,33,68",
    tokens: Annotated[
        int, typer.Option(metavar="N", min=2, max=100_000, help="Tokens of a made trace.")
    ] = 400,
    times: Annotated[
        list[str] | None,
        typer.Option(
            metavar="D,E,R",
            help="Milliseconds of a layer's dense part, an expert, and reading one; repeatable. "
            "Else those of 2 and of 16 cores with Flash.",
        ),
    ] = None,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Replay cache policies on routing traces, and simulate reading experts ahead.

    Hit rates are those of decoded tokens in the second half of a trace. Times are of one computing
    thread and one disk; "recall" is the share of what was not resident whose read had begun before
    the gate, "waste" the useless reads per useful one. Without a file it takes some minutes.

    Examples
    --------
    localv4 bench policies choices.npz
    localv4 bench policies --tokens 200 --share 16,33
    """
    _, output = options.start(ctx, {}, quiet, verbose)
    shares = [_number("--share", part, most=100) for part in share.split(",")]

    # Imported here, as NumPy is not for --help.
    from localv4.bench.lookahead import MACHINES
    from localv4.bench.policies_study import default_traces, study
    from localv4.bench.traces import load_trace

    machines = [_machine(text) for text in times] if times else MACHINES
    percent = [int(value) for value in shares]
    with stoppable():
        named = ((str(path), load_trace(path)) for path in traces or [])
        results = [
            study(name, trace, percent, machines, output.progress)
            for name, trace in (named if traces else default_traces(tokens))
        ]
    if as_json:
        report = {"version": localv4.__version__, "traces": results}
        output.line(json.dumps(report, indent=2))
        return
    for result in results:
        _print(result, output)


def _number(flag: str, text: str, most: float = 1e6) -> float:
    """Return a number above zero; a whole one where there is a most of 100."""
    try:
        value = float(int(text)) if most == 100 else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        kind = "whole numbers from 1 to 100" if most == 100 else "milliseconds above 0"
        raise InvalidInput(f"{flag} has {text!r}; give {kind} with commas between")
    return value


def _machine(text: str) -> "Machine":
    from localv4.bench.lookahead import Machine

    parts = text.split(",")
    if len(parts) != 3:
        raise InvalidInput(f"--times is {text!r}; give dense part, expert, read: 8.7,0.75,8")
    return Machine(f"{text} ms", *(_number("--times", part) for part in parts))


def _print(result: dict[str, Any], output: Output) -> None:
    gigabytes = result["bytes"] / 1e9
    output.line(
        f"\n{result['trace']}: {result['tokens']:,} tokens, {result['decoded']:,} decoded; "
        f"{result['layers']} layers of {result['experts']} experts, {gigabytes:.3g} GB, "
        f"{result['hash_layers']} hash layers"
    )
    sizes = [f"{share}%, {gigabytes * share / 100:.3g} GB" for share in result["shares"]]
    _row("hit rate", sizes, output)
    for row in result["policies"]:
        _row(row["policy"], [f"{rate:.1%}" for rate in row["hit_rates"]], output)
    for row in result["policies"]:
        if "reads_a_sweep" in row:
            reads = [f"{count:,.0f}" for count in row["reads_a_sweep"]]
            _row(f"reads: {row['policy']}", reads, output)
    for machine in dict.fromkeys(row["machine"] for row in result["look_ahead"]):
        output.line("")
        _row(f"{machine}, ahead", ["ms recall waste"] * len(sizes), output)
        for row in result["look_ahead"]:
            if row["machine"] == machine:
                cells = zip(row["token_ms"], row["recall"], row["waste"], strict=True)
                _row(row["ahead"], [f"{ms:.0f} {r:.2f} {w:.2f}" for ms, r, w in cells], output)


def _row(name: str, cells: list[str], output: Output) -> None:
    output.line(f"{name:<36}" + "".join(f" {cell:>17}" for cell in cells))
