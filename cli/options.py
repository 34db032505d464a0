"""Flags that several commands share, and how they become settings and an output."""

import functools
import logging
from typing import Annotated

import typer

from localv4.cli.log_file import Invocation, LogFile
from localv4.cli.names import complete_model
from localv4.cli.output import SAID, Output, one_line
from localv4.errors import InvalidInput
from localv4.settings import Numerics, Profile, Settings, Think, load_settings

__all__ = [
    "Context",
    "JsonFlag",
    "MaxTokens",
    "Memory",
    "MinP",
    "Model",
    "NumericsFlag",
    "ProfileFlag",
    "Quiet",
    "Seed",
    "System",
    "Temperature",
    "ThinkFlag",
    "Threads",
    "TopK",
    "TopP",
    "Verbose",
    "start",
]

Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="Name, repo or folder; else the built-in one.",
        autocompletion=complete_model,
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
Temperature = Annotated[
    float,
    typer.Option(
        metavar="X", show_default=False, help="0 always takes the likeliest token; else 1."
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="X", show_default=False, help="Keep tokens up to this probability; else 1."
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        metavar="N", show_default=False, help="Keep this many tokens; 0, the default: all."
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        metavar="X", show_default=False, help="Keep tokens this likely beside the likeliest."
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Repeats an answer; else drawn.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")]
NumericsFlag = Annotated[
    Numerics | None,
    typer.Option("--numerics", help="trained: rounded as in training. float32: to verify."),
]
ThinkFlag = Annotated[
    Think | None, typer.Option("--think", help="Thinking effort; else as the model says.")
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
        help="Statistics too; -vv: all, with tracebacks.",
    ),
]  # fmt: skip


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
        raise InvalidInput("-q and -v contradict each other; give one of them")
    verbosity = -1 if quiet else verbose
    invocation = context.ensure_object(Invocation)
    invocation.verbosity = verbosity
    settings = load_settings({**flags, "log_file": invocation.log_file})
    output = Output(verbosity, settings.color)
    invocation.listen(_Shown(output))
    if settings.log_file is not None:
        source, warn = settings.sources["log_file"], functools.partial(output.warning, log=False)
        invocation.listen(LogFile(settings.log_file, context.command_path, source, warn))
    for warning in settings.warnings:
        output.warning(warning)
    return settings, output


class _Shown(logging.Handler):
    """Shows the library's warnings as those of the command, and with -vv all that it logs."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.DEBUG if output.verbosity >= 2 else logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, unless it was said on the screen in the first place."""
        if record.name == SAID:
            return
        name = "localv4" if record.levelno >= logging.WARNING else record.name
        self._output.note(f"{name}: {one_line(record.getMessage())}")
