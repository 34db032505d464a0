"""What ends a command early: exit codes, and one sentence each.

============================  =====  =============================================
what                          code   said
============================  =====  =============================================
done, or nobody reads on      0      nothing
anything else that failed     1      the sentence
a flag, a value, no prompt    2      the sentence
model missing or damaged      3      the sentence
not enough memory or disk     4      the sentence
``--timeout`` is over         124    how long it was; partial text stays on stdout
Ctrl-C                        130    nothing; partial text stays on stdout
SIGTERM                       143    nothing; partial text stays on stdout
============================  =====  =============================================
"""

import difflib
import errno

import typer

from localv4.cli.output import OutputClosed
from localv4.cli.stopping import Stopped
from localv4.errors import LocalV4Error

__all__ = ["describe"]

# Of the library that checks values.
_WORDS = {
    "Value error, ": "",
    "Input should be a valid number, unable to parse string as a number": "give a number",
    "Input should be a valid integer, unable to parse string as an integer": "give a whole number",
    "Input should be greater than or equal to": "give at least",
    "Input should be less than or equal to": "give at most",
    "Input should be greater than": "give more than",
    "Input should be less than": "give less than",
    ". Did you mean": "; did you mean",
    ". Choose from:": "; choose from",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)


def describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the sentence, empty for none, of what ended a command."""
    match error:
        case Stopped():
            return error.exit_code, error.sentence
        case KeyboardInterrupt() | typer.Abort():
            return 130, ""
        case OutputClosed() | BrokenPipeError():
            return 0, ""
        case SystemExit() if isinstance(error.__context__, BrokenPipeError):
            return 0, ""  # typer's way to say so, when its help finds no reader
        case LocalV4Error():
            return error.exit_code, str(error)
        case typer.TyperException():
            return 2, _usage_sentence(error)
        case MemoryError():
            return 4, "out of memory; give a smaller --memory or --context, or close other programs"
        case OSError() if error.errno in _NO_ROOM:
            return 4, f"{_about(error)}; free some space and try again"
        case OSError() if error.errno == errno.EFBIG:
            return 4, f"{_about(error)}; raise the limit on files (ulimit -f), or use another disk"
        case OSError() if "temporary directory" in str(error):  # tempfile's, which tried them all
            return 4, f"{_about(error)}; free some space, or let TMPDIR name another folder"
        case OSError():
            hint = "check that path and its permissions" if error.filename else "-vv shows where"
            return 1, f"{_about(error)}; {hint}"
    return 1, f"internal error, please report it: {type(error).__name__}: {error} (-vv shows where)"


def _about(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _usage_sentence(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    hint = f"see {context.command_path if context else 'localv4'} --help"
    message = error.format_message()
    flag = getattr(error, "option_name", None)
    if flag is not None and (known := getattr(error, "possibilities", None)):
        message = f"no such option: {flag}"
        hint = f"did you mean {difflib.get_close_matches(flag, known, 1, 0)[0]}? {hint}"
    elif flag is not None and context is None:
        hint = f"write {flag} and what it takes behind it"
    if message.startswith("Got unexpected extra argument") and hint.startswith("see localv4 run"):
        hint = "put the prompt in quotes"
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    words = " ".join(message.split()).rstrip(".")
    return f"{words[:1].lower()}{words[1:]}{'' if words.endswith('?') else ';'} {hint}"
