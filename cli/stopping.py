"""The signals and the time limit that stop an answer before its end.

A handler runs wherever Python happens to be, and an exception that it raises inside a callback
from C is printed and dropped. So a stop that is due is raised again and again until it arrives. It
is not raised inside the compiler behind the kernels, whose callbacks must give what they are asked
for: without it the process would write to no address.
"""

import contextlib
import math
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from localv4.errors import InvalidInput

__all__ = ["Stopped", "check_timeout", "stoppable"]

_MOST_S = 1e9  # 30 years; the system's timers take ten times as much
_AGAIN_S = 0.1
_COMPILER = "llvmlite"


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


def check_timeout(timeout_s: float | None) -> None:
    """Refuse a time limit that no timer takes.

    Raises
    ------
    InvalidInput
        If it is not above zero, or more than a billion seconds.
    """
    if timeout_s is None or 0 < timeout_s <= _MOST_S:
        return
    hint = "leave it out for no limit" if timeout_s > _MOST_S else "give seconds above zero"
    raise InvalidInput(f"--timeout is {timeout_s:g}; {hint}")


@contextlib.contextmanager
def stoppable(
    timeout_s: float | None = None, stop_softly: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and the end of the time limit into `Stopped` while the block runs.

    Whatever else ends the block once a stop is due is a consequence of the stop, and is replaced
    by it. Once stopped, a second SIGINT or SIGTERM kills the process: tidying up may be what hangs.

    Parameters
    ----------
    timeout_s
        None for no limit.
    stop_softly
        Asked at each SIGINT whether it saw to it that the block ends by itself.
    """
    watch = _Watch(timeout_s, stop_softly)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    hook = sys.unraisablehook
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, watch.stop)
        sys.unraisablehook = lambda lost: None if lost.exc_value is watch.due else hook(lost)
        signal.setitimer(signal.ITIMER_REAL, timeout_s or 0)
        yield
        if watch.due is not None:
            raise watch.due
    except BaseException as error:
        if watch.due is None or error is watch.due:
            raise
        raise watch.due from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


class _Watch:
    """The handler of one `stoppable` block; `due` is what stops it, once something does."""

    def __init__(self, timeout_s: float | None, stop_softly: Callable[[], bool]) -> None:
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._stop_softly = stop_softly
        self.due: Stopped | None = None

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Raise the stop, unless it is on its way up already or has to wait."""
        if self.due is None:
            if number == signal.SIGINT and self._stop_softly():
                return
            self.due = self._reason(number)
            for caught in (signal.SIGINT, signal.SIGTERM):
                signal.signal(caught, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        elif _is_handled(self.due):
            return
        if not _is_compiling(frame):
            raise self.due

    def _reason(self, number: int) -> Stopped:
        if number == signal.SIGINT:
            return Stopped(130, "interrupted")
        if number == signal.SIGTERM:
            return Stopped(143, "terminated")
        return Stopped(124, "timeout", f"stopped after {self._timeout_s:g} s (--timeout)")


def _is_handled(due: Stopped) -> bool:
    """Return whether this code runs in a ``finally`` or ``with`` that `due` is passing through."""
    error = sys.exception()
    while error is not None and error is not due:
        error = error.__context__
    return error is not None


def _is_compiling(frame: FrameType | None) -> bool:
    """Return whether a frame is the compiler's or was called by it."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == _COMPILER:
            return True
        frame = frame.f_back
    return False
