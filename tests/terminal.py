"""A command in a terminal of its own: what it shows there, and what is typed into it."""

import contextlib
import errno
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["in_terminal"]


def in_terminal(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    columns: int = 80,
    typed: str = "",
    after: str = "",
    timeout_s: float = 120,
) -> tuple[int, str]:
    """Run a command in a terminal and return its exit code and everything it showed.

    Parameters
    ----------
    command
        Program and arguments.
    environment, folder
        To run it in.
    columns
        Width of the terminal.
    typed
        What to type once `after` was shown.
    timeout_s
        After which it is killed.
    """
    keyboard, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    shown = b""
    until = time.monotonic() + timeout_s
    with (
        _closing(keyboard),
        subprocess.Popen(
            command,
            stdin=screen,
            stdout=screen,
            stderr=screen,
            env=environment,
            cwd=folder,
            start_new_session=True,
        ) as process,
    ):
        os.close(screen)
        while piece := _read(keyboard, until - time.monotonic()):
            shown += piece
            if typed and after.encode() in shown:
                os.write(keyboard, typed.encode())
                typed = ""
        if time.monotonic() > until:
            process.kill()
    return process.returncode, shown.decode("utf-8", "replace")


@contextlib.contextmanager
def _closing(descriptor: int):
    try:
        yield
    finally:
        os.close(descriptor)


def _read(keyboard: int, seconds: float) -> bytes:
    """Return what is shown next; nothing if that takes longer, or the program has ended."""
    if not select.select([keyboard], [], [], max(0.0, seconds))[0]:
        return b""
    try:
        return os.read(keyboard, 2**16)
    except OSError as error:
        if error.errno == errno.EIO:  # nobody has the screen open any more
            return b""
        raise
