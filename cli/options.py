"""Flags that several commands share, and how they become settings and an output."""

import logging
from typing import Annotated

import typer

from localv4.cli.output import Invocation, Output
from localv4.settings import Numerics, Profile, Settings, Think, load_settings

__all__ = [
    "Context",
    "JsonFlag",
    "MaxTokens",
    "Memory",
    "Model",
    "NumericsFlag",
    "ProfileFlag",
    "Quiet",
    "System",
    "ThinkFlag",
    "Threads",
    "Verbose",
    "new_table",
    "start",
]

Model = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", metavar="DIR", help="Checkpoint folder; the built-in model if none is set."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Hard budget for all memory, such as 24GiB; else what is available."
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Compute threads; else chosen for this CPU.")
]
Context = Annotated[
    int | None, typer.Option("--context", metavar="N", help="Most tokens the session may hold.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", min=1, help="Most tokens of thinking and answer."),
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")]
NumericsFlag = Annotated[
    Numerics | None,
    typer.Option("--numerics", help="trained: rounded as in training. float32: to verify."),
]
ThinkFlag = Annotated[
    Think | None, typer.Option("--think", help="Thinking effort; else the checkpoint's default.")
]
ProfileFlag = Annotated[
    Profile | None, typer.Option("--profile", help="Chat format; else detected.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Nothing on stderr but errors.")]
Verbose = Annotated[
    int,
    typer.Option(
        "-v", "--verbose", count=True, show_default=False, metavar="",
        help="Statistics too; -vv: everything, with tracebacks.",
    ),
]  # fmt: skip


def new_table() -> typer.Typer:
    """Return an empty table of commands."""
    # Without rich: its help would cost another 0.1 s.
    return typer.Typer(
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def start(
    context: typer.Context, flags: dict[str, object], quiet: bool = False, verbose: int = 0
) -> tuple[Settings, Output]:
    """Return the settings and the output of one command, after printing the settings' warnings.

    Raises
    ------
    InvalidInput
        If a setting is of no use, or both -q and -v are given.
    """
    if quiet and verbose:
        raise typer.BadParameter("-q and -v contradict each other; give one of them", context)
    verbosity = -1 if quiet else verbose
    context.ensure_object(Invocation).verbosity = verbosity
    settings = load_settings(flags)
    output = Output(verbosity, settings.color)
    for warning in settings.warnings:
        output.warning(warning)
    _show_log(context, output)
    return settings, output


def _show_log(context: typer.Context, output: Output) -> None:
    """Show what the library logs as warnings of the command, until it ends."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            output.warning(record.getMessage())

    logger, handler = logging.getLogger("localv4"), Handler(logging.WARNING)
    logger.addHandler(handler)
    context.call_on_close(lambda: logger.removeHandler(handler))
