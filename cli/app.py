"""The command ``localv4``: finds the subcommand, and turns whatever ends it into an exit code.

No subcommand's module imports numpy or numba before it runs, and ``--version`` not even typer:
both answer in a fraction of a second.
"""

import contextlib
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    import typer

    from localv4.cli.options import Invocation

__all__ = ["command_table", "main", "run_command"]

# Each is a function of that name in the module of that name.
_COMMANDS = ("chat", "run", "show", "synth", "tokenize", "config")

_HELP = """Run DeepSeek-V4 on this machine's CPU.

\b
localv4 chat                     talk to the model
localv4 run "Why is the sky blue?"  one answer, for a person or a script
git diff | localv4 run "Review this"
localv4 COMMAND --help           every flag of a command

Settings come from flags, then LOCALV4_* variables, then config.toml (see `localv4 config`).
"""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    if list(arguments) in (["--version"], ["-V"]):
        return _print_version()
    from localv4.cli.errors import describe
    from localv4.cli.options import Invocation
    from localv4.cli.output import Output, OutputClosed, silence_stdout, use_utf8

    use_utf8()
    invocation = Invocation()
    try:
        code = _dispatch(list(arguments), invocation)
        # Here a closed pipe can still be met quietly; at interpreter exit it cannot.
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException as error:
        code, sentence = describe(error)
        if sentence:
            Output().failure(sentence)
        if invocation.verbosity >= 2:
            import traceback

            traceback.print_exception(error)
        if isinstance(error, OSError | OutputClosed):
            silence_stdout()
    return code


def _print_version() -> int:
    import localv4

    print(f"localv4 {localv4.__version__}")
    return 0


def _dispatch(arguments: list[str], invocation: "Invocation") -> int:
    if arguments:
        return _call(arguments, invocation)
    if _is_terminal(sys.stdin) and _is_terminal(sys.stdout):
        return _call(["chat"], invocation)
    with contextlib.redirect_stdout(sys.stderr):
        _call(["--help"], invocation)
    return 2


def _call(arguments: list[str], invocation: "Invocation") -> int:
    """Run one command by itself: the table of all would import 0.2 s more for its own flags."""
    only = arguments[0] if arguments[0] in _COMMANDS else None
    table = command_table(only)
    name = f"localv4 {arguments.pop(0)}" if only else "localv4"
    result = table(arguments, prog_name=name, standalone_mode=False, obj=invocation)
    return result if isinstance(result, int) else 0


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def command_table(only: str | None = None) -> "typer.Typer":
    """Build the table of subcommands, or one subcommand by itself."""
    import typer

    # Without rich: its help would cost another 0.1 s.
    table = typer.Typer(
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    if only is None:
        table.callback(help=_HELP)(_top)
    for name in _COMMANDS if only is None else [only]:
        module = importlib.import_module(f"localv4.cli.{name}")
        table.command(name)(getattr(module, name))
    return table


def _top() -> None:
    """Take what stands before the subcommand."""
