"""The keyboard while nobody reads from it: what is typed then waits, and is not shown.

Else it would land in the middle of an answer, and the next prompt would not know of it. Ctrl-C
stays Ctrl-C, without its ``^C``.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["no_echo"]


@contextlib.contextmanager
def no_echo() -> Iterator[None]:
    """Show nothing of what is typed while the block runs; where there is no terminal, nothing."""
    try:
        import termios

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        yield
        return

    def hide(_number: int = 0, _frame: FrameType | None = None) -> None:
        quiet: list[Any] = [*before]
        quiet[3] &= ~termios.ECHO
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)

    hide()
    # A shell that brings a stopped program back has set the terminal for itself meanwhile.
    handler = signal.signal(signal.SIGCONT, hide)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, handler)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
