"""The command ``localv4``: finds the subcommand, and turns whatever ends it into an exit code.

No subcommand's module imports numpy or numba before it runs, and neither ``--version`` nor the
list of commands imports typer, whose own would take twice as long: both answer at once.
"""

import contextlib
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

from localv4.cli.output import Invocation, Output, OutputClosed, flush, silence, use_utf8

if TYPE_CHECKING:
    import typer

__all__ = ["COMMANDS", "command_table", "main", "run_command"]

# Each is a function of that name, or a table of further commands, in the module of that name.
COMMANDS = {
    "chat": "talk to the model",
    "run": "print one answer, for a person or a script",
    "bench": "measure kernels, decode and prefill against this machine's limits",
    "doctor": "tell what this machine can do with a model: fit, speed, problems",
    "show": "show what a checkpoint is: its config, tensors and sizes",
    "synth": "make a tiny checkpoint with random weights",
    "sessions": "list, verify and remove the sessions on disk",
    "tokenize": "print the token ids of a text",
    "config": "print every setting with its source",
}

_HELP = """Run DeepSeek-V4 on this machine's CPU.

Usage: localv4 COMMAND [OPTIONS] ...

  localv4                             chat, in a terminal
  localv4 run "Why is the sky blue?"  one answer
  git diff | localv4 run "Review this"

Commands:
{commands}

localv4 COMMAND --help lists every flag of a command, localv4 --version tells the version.
Settings come from flags, then LOCALV4_* variables, then config.toml (see localv4 config).
"""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    invocation = Invocation()
    try:
        use_utf8()
        code = _dispatch(list(arguments), invocation)
        flush()
    except BaseException as error:
        code = _fail(error, invocation)
    return code


def _fail(error: BaseException, invocation: Invocation) -> int:
    """Say what ended a command, and return the exit code."""
    from localv4.cli.errors import describe

    code, sentence = describe(error)
    if sentence:
        Output().failure(sentence)
    if invocation.verbosity >= 2:
        import traceback

        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
    try:
        flush()
    except (OSError, ValueError, OutputClosed):
        silence(sys.stdout)
    return code


def _version() -> int:
    import localv4

    print(f"localv4 {localv4.__version__}")
    return 0


def _dispatch(arguments: list[str], invocation: Invocation) -> int:
    if arguments in (["--version"], ["-V"]):
        return _version()
    if arguments in (["--help"], ["-h"]):
        Output().answer(_help())
        return 0
    if arguments:
        return _call(arguments, invocation)
    if _is_terminal(sys.stdin) and _is_terminal(sys.stdout):
        return _call(["chat"], invocation)
    Output().note(_help().rstrip())
    return 2


def _help() -> str:
    rows = (f"  {name:<9} {sentence}" for name, sentence in COMMANDS.items())
    return _HELP.format(commands="\n".join(rows))


def _call(arguments: list[str], invocation: Invocation) -> int:
    """Run one command by itself: the table of all would import 0.2 s more for its own flags."""
    only = arguments[0] if arguments[0] in COMMANDS else None
    table = command_table(only)
    name = f"localv4 {arguments.pop(0)}" if only else "localv4"
    result = table(arguments, prog_name=name, standalone_mode=False, obj=invocation)
    return result if isinstance(result, int) else 0


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def command_table(only: str | None = None) -> "typer.Typer":
    """Build the table of subcommands, or one subcommand by itself."""
    import typer

    from localv4.cli.options import new_table

    table = new_table()
    if only is None:
        table.callback()(_top)
    for name in COMMANDS if only is None else [only]:
        entry = getattr(importlib.import_module(f"localv4.cli.{name}"), name)
        if not isinstance(entry, typer.Typer):
            table.command(name)(entry)
        elif only is None:
            table.add_typer(entry, name=name)
        else:
            return entry
    return table


def _top() -> None:
    """Take what stands before the subcommand."""
