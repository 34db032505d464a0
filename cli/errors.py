"""What ends a command early: exit codes, one sentence each, and the signals that stop an answer.

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

import contextlib
import errno
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import typer

from localv4.cli.output import OutputClosed
from localv4.errors import LocalV4Error

__all__ = ["Stopped", "describe", "stoppable"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)


class Stopped(BaseException):
    """The answer was stopped from outside: a signal, or the time limit.

    Not an `Exception`, so that nothing on the way mistakes it for a failure.

    Attributes
    ----------
    exit_code
        What the command exits with.
    finish_reason
        What the JSON formats report.
    sentence
        What standard error says; empty for nothing.
    """

    def __init__(self, exit_code: int, finish_reason: str, sentence: str = "") -> None:
        super().__init__(finish_reason)
        self.exit_code = exit_code
        self.finish_reason = finish_reason
        self.sentence = sentence


@contextlib.contextmanager
def stoppable(
    timeout_s: float | None = None, stop_softly: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and the end of the time limit into `Stopped` while the block runs.

    Once stopped, a second SIGINT or SIGTERM kills the process: tidying up may be what hangs.

    Parameters
    ----------
    timeout_s
        None for no limit.
    stop_softly
        Asked at each SIGINT whether it saw to it that the block ends by itself.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop_softly():
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        for caught in (signal.SIGINT, signal.SIGTERM):
            signal.signal(caught, signal.SIG_DFL)
        if number == signal.SIGINT:
            raise Stopped(130, "interrupted")
        if number == signal.SIGTERM:
            raise Stopped(143, "terminated")
        raise Stopped(124, "timeout", f"stopped after {timeout_s:g} s (--timeout)")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, stop) for number in numbers}
    signal.setitimer(signal.ITIMER_REAL, timeout_s or 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the sentence, empty for none, of what ended a command."""
    match error:
        case Stopped():
            return error.exit_code, error.sentence
        case KeyboardInterrupt() | typer.Abort():
            return 130, ""
        case OutputClosed() | BrokenPipeError():
            return 0, ""
        case LocalV4Error():
            return error.exit_code, str(error)
        case typer.TyperException():
            return 2, _usage_sentence(error)
        case MemoryError():
            return 4, "out of memory; give a smaller --memory or --context, or close other programs"
        case OSError() if error.errno in _NO_ROOM:
            return 4, f"{_about(error)}; free some space and try again"
        case OSError():
            return 1, _about(error)
    return 1, f"internal error, please report it: {type(error).__name__}: {error} (-vv shows where)"


def _about(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _usage_sentence(error: typer.TyperException) -> str:
    words = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    words = words[:1].lower() + words[1:]
    context = getattr(error, "ctx", None)
    return f"{words}; see {context.command_path if context else 'localv4'} --help"
