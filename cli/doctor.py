"""``localv4 doctor``: what this machine can do with a model: fit, speed, problems."""

import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

import localv4
from localv4.cli import options
from localv4.cli.dry_run import about
from localv4.cli.names import complete_model
from localv4.cli.output import Output, one_line
from localv4.cli.stopping import stoppable
from localv4.cli.subject import Subject, find_subject
from localv4.errors import InvalidInput, OutOfBudget
from localv4.settings import Settings

if TYPE_CHECKING:
    from localv4.doctor import Diagnosis, Outlook
    from localv4.findings import Finding
    from localv4.speed import Estimate, Gain, Routing

__all__ = ["doctor"]

_WIDTH = 80
_INDENT = 22
_SEVERITIES = {"ok": "ok", "note": "note", "problem": "PROBLEM"}
_GAINS = {
    "memory": "16 GiB more memory",
    "disk": "a disk twice as fast",
    "cpu": "CPU and memory twice as fast",
}
_WORTH_SAYING = 1.02  # of a gain
_MOST_GB_S = 1000.0


def doctor(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="MODEL",
            help="Name, repo, folder or config.json; else the built-in one.",
            autocompletion=complete_model,
        ),
    ] = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure nothing, and so estimate no speed.")
    ] = False,
    routing: Annotated[
        str | None,
        typer.Option(
            metavar="skewed|uniform",
            help="How choices spread over experts; else as the checkpoint says.",
        ),
    ] = None,
    disk_gb_s: Annotated[
        float | None,
        typer.Option("--disk-gb-s", metavar="N", help="The disk's speed, instead of measuring it."),
    ] = None,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int:
    """Look at this machine and a model: does it fit, how fast would it be, what is wrong.

    Works from a config.json alone, before anything is downloaded. Speeds are estimates from what is
    measured here in a few seconds; likely means after some hundred tokens of one kind. Exit code 1
    if something does not work.

    Examples
    --------
    localv4 doctor
    localv4 doctor -m flash --memory 28GiB
    localv4 doctor -m pro --quick
    """
    flags: dict[str, object] = {"model": model, "memory": memory, "threads": threads}
    settings, output = options.start(ctx, flags, quiet, verbose)
    chosen = _routing(routing)
    if disk_gb_s is not None and not 0 < disk_gb_s <= _MOST_GB_S:
        raise InvalidInput(f"--disk-gb-s is {disk_gb_s:g}; give GB/s above zero, such as 3.5")
    subject, complaint = _find(settings, output)

    # Imported here, as NumPy is not for --help.
    from localv4.doctor import Request, diagnose

    request = Request(
        subject.path,
        settings.memory,
        settings.threads,
        settings.cache_dir,
        not quick,
        chosen,
        None if disk_gb_s is None else disk_gb_s * 1e9,
        subject.config,
        _remedy(subject),
    )
    with stoppable():
        diagnosis = diagnose(request, output.progress)
    if complaint is not None:
        diagnosis = _with_problem(diagnosis, complaint)
    if as_json:
        output.line(json.dumps(_report(subject, diagnosis), indent=2))
    else:
        _print(subject, diagnosis, output)
    return 1 if diagnosis.has_problem else 0


def _routing(name: str | None) -> "Routing | None":
    match name:
        case None | "skewed" | "uniform":
            return name
    raise InvalidInput(f"--routing is {name!r}; give skewed or uniform")


def _find(settings: Settings, output: Output) -> tuple[Subject, str | None]:
    """Return what to look at; nothing, with a sentence, if the built-in model can't be made.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    try:
        return find_subject(settings.model, output.warning), None
    except (InvalidInput, OutOfBudget) as error:
        return Subject(None), str(error)


def _remedy(subject: Subject) -> str:
    if subject.located is None or subject.located.repo_id is None:
        return "download them"
    return f"get them with {subject.located.next_step}"


def _with_problem(diagnosis: "Diagnosis", complaint: str) -> "Diagnosis":
    from dataclasses import replace

    from localv4.findings import problem

    return replace(diagnosis, findings=(*diagnosis.findings, problem("built-in model", complaint)))


def _report(subject: Subject, diagnosis: "Diagnosis") -> dict[str, Any]:
    """Return the diagnosis for JSON."""
    outlook = diagnosis.outlook
    return {
        "version": localv4.__version__,
        "model": None if subject.path is None else str(subject.path),
        "repo_id": None if subject.located is None else subject.located.repo_id,
        "has_problem": diagnosis.has_problem,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "outlook": None if outlook is None else _outlook_report(outlook),
    }


def _outlook_report(outlook: "Outlook") -> dict[str, Any]:
    rows = {"floor": outlook.floor, "likely": outlook.likely, "warm": outlook.warm}
    return {
        **asdict(outlook),
        **{name: {**asdict(row), "tokens_s": row.tokens_s} for name, row in rows.items()},
    }


def _print(subject: Subject, diagnosis: "Diagnosis", output: Output) -> None:
    is_known = subject.path is not None or subject.config is not None
    output.line(f"model {one_line(subject.title) if is_known else 'unknown'}")
    for finding in diagnosis.findings:
        _print_finding(finding, output)
    outlook = diagnosis.outlook
    if outlook is None:
        return
    output.line(f"\n{'':<9}{'tok/s':>8}{'s a token':>11}{'hits':>7}")
    _print_row("floor", outlook.floor, "no expert in memory, as at the start", output)
    _print_row("likely", outlook.likely, f"routing {outlook.routing}", output)
    _print_row("warm", outlook.warm, "all experts in memory", output)
    output.line(f"a prompt of 1,000 tokens takes about {about(outlook.prompt_s)}")
    if outlook.disk_share >= 0.01:
        output.line(f"{outlook.disk_share:.0%} of a likely token is waiting for the disk")
    _print_gains(outlook, output)


def _print_finding(finding: "Finding", output: Output) -> None:
    head = f"{_SEVERITIES[finding.severity]:<8}{finding.topic:<{_INDENT - 8}}"
    output.line(
        textwrap.fill(
            finding.text,
            _WIDTH,
            initial_indent=head,
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _print_row(name: str, row: "Estimate", about: str, output: Output) -> None:
    output.line(f"{name:<9}{row.tokens_s:>8.3g}{row.token_s:>11.3g}{row.hit_rate:>7.0%}   {about}")


def _print_gains(outlook: "Outlook", output: Output) -> None:
    now = outlook.likely.tokens_s
    worth: list[Gain] = [gain for gain in outlook.gains if gain.tokens_s > _WORTH_SAYING * now]
    if not worth:
        return
    output.line("\nwhat would help most")
    for gain in worth:
        output.line(f"  {_GAINS[gain.what]:<30}{now:.3g} -> {gain.tokens_s:.3g} tok/s")
