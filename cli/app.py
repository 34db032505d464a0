"""The command ``localv4``: finds the subcommand, and turns whatever ends it into an exit code.

No subcommand's module imports numpy or numba before it runs, and neither ``--version`` nor the
list of commands imports typer, whose own would take twice as long: both answer at once. A shell's
completion comes here too, without arguments and with a variable of its own.
"""

import contextlib
import difflib
import importlib
import io
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from localv4.cli.log_file import Invocation
from localv4.cli.output import Output, OutputClosed, flush, silence, use_utf8
from localv4.errors import InvalidInput
from localv4.settings import words_to_complete
from localv4.sizes import shown

if TYPE_CHECKING:
    import typer

__all__ = ["COMMANDS", "command_table", "main", "run_command"]

# Each is a function of that name, or a table of further commands, in the module of that name.
COMMANDS = {
    "chat": "talk to the model",
    "run": "print one answer, for a person or a script",
    "pull": "download a model, or go on with a download",
    "list": "list the models on this machine",
    "show": "show what a model is: its config, tensors and sizes",
    "verify": "check that a checkpoint is here and sound, byte for byte",
    "rm": "remove checkpoints from this machine",
    "sessions": "list, verify and remove saved conversations",
    "doctor": "tell what this machine can do with a model: fit, speed, problems",
    "bench": "measure this machine's speed, against its limits",
    "synth": "make a checkpoint with random weights, to try and to test",
    "tokenize": "print the token ids of a text",
    "config": "print or change settings",
    "completion": "print a shell's completion script",
}

# What other programs call them.
_OTHER_NAMES = {
    "ls": "list",
    "download": "pull",
    "remove": "rm",
    "delete": "rm",
    "info": "show",
    "check": "verify",
    "generate": "run",
    "settings": "config",
    "tokenise": "tokenize",
}

_HELP = """Run DeepSeek-V4 on this machine's CPU.

Usage: localv4 COMMAND [OPTIONS] ...

Commands:
{commands}

Examples:
  localv4                                  chat, in a terminal
  localv4 run "Why is the sky blue?"       one answer
  git diff | localv4 run "Review this"     text from a pipe
  localv4 doctor -m flash                  does it fit, how fast would it be

localv4 COMMAND --help explains a command with its flags and shows examples.
Settings come from flags, then LOCALV4_* variables, then config.toml: see
localv4 config. localv4 --version tells the version.
"""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # a library's are for programmers, as numba's of /dev/shm
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    invocation = Invocation()
    failure: BaseException | None = None
    try:
        use_utf8()
        code = _dispatch(list(arguments), invocation)
        flush()
    except BaseException as error:
        failure = error
        code = _fail(error, invocation)
    invocation.end(code, failure)
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
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if arguments in (["--help"], ["-h"]):
        Output().answer(_help())
        return 0
    if arguments:
        return _call(arguments, invocation)
    if (words := words_to_complete()) is not None:
        return _complete(words)
    if _is_terminal(sys.stdin) and _is_terminal(sys.stdout):
        return _call(["chat"], invocation)
    Output().note(_help().rstrip())
    return 2


def _help() -> str:
    rows = (f"  {name:<10}  {sentence}" for name, sentence in COMMANDS.items())
    return _HELP.format(commands="\n".join(rows))


def _call(arguments: list[str], invocation: Invocation) -> int:
    """Run one command by itself: the table of all would import 0.2 s more for its own flags."""
    name, *rest = arguments
    if name not in COMMANDS:
        raise InvalidInput(_about_unknown(name))
    import typer

    from localv4.cli.tables import Table

    entry = _load(name)
    if not isinstance(entry, typer.Typer):
        table = Table()
        table.command(name)(entry)
        entry = table
    result = entry(rest, prog_name=f"localv4 {name}", standalone_mode=False, obj=invocation)
    return result if isinstance(result, int) else 0


def _about_unknown(name: str) -> str:
    """Return a sentence on a word that is no command."""
    if name.startswith("-"):
        if near := difflib.get_close_matches(name.lower(), ("--version", "--help"), 1):
            return f"no such option: {name}; did you mean localv4 {near[0]}?"
        return (
            f"no such option: {name} before a command; write localv4 chat {name} ..., for example"
        )
    if len(name.split()) > 1:
        return 'no such command: the first word must be one; to ask: localv4 run "..."'
    near = difflib.get_close_matches(name.lower(), COMMANDS, 1)
    match = _OTHER_NAMES.get(name.lower()) or next(iter(near), None)
    hint = f"did you mean localv4 {match}?" if match else "localv4 --help lists them"
    return f"no such command: {shown(name)}; {hint}"


def _complete(words: list[str]) -> int:
    """Answer a shell's completion; nothing that goes wrong may disturb the person who types."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            from typer.completion import get_completion_inspect_parameters

            get_completion_inspect_parameters()  # typer then knows the shells
            table = command_table(words[1:2])
            table([], prog_name="localv4", standalone_mode=False)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        except Exception:
            return 1
    return 0


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def command_table(loaded: Collection[str] | None = None) -> "typer.Typer":
    """Build the table of all commands.

    Parameters
    ----------
    loaded
        The commands that are needed whole: of the others there is the name and a sentence; None
        for all.
    """
    import typer

    from localv4.cli.tables import Table

    table = Table()
    table.callback()(_nothing)
    for name, sentence in COMMANDS.items():
        if loaded is not None and name not in loaded:
            table.command(name, help=sentence)(_nothing)
        elif isinstance(entry := _load(name), typer.Typer):
            table.add_typer(entry, name=name)
        else:
            table.command(name)(entry)
    return table


def _load(name: str) -> Any:  # noqa: ANN401 (a function of any signature, or a table)
    return getattr(importlib.import_module(f"localv4.cli.{name}"), name)


def _nothing() -> None:
    """Stand for what is not called."""
