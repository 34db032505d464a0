"""``--log-file``, and what else is told of a command: how talkative it is, how it ended.

The log is for a person to read later, or to send along with a report: versions, the plan, timings,
warnings, and where an error came from. It never holds a prompt, an answer or the hub's token;
names of files, models and sessions it does.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import localv4
from localv4.cli.output import SAID, for_terminal, one_line
from localv4.errors import InvalidInput

__all__ = ["Invocation", "LogFile"]

_LOGGER = logging.getLogger("localv4")
_LINE = "%(asctime)s.%(msecs)03d %(levelname)-7s [%(process)d] %(module)s: %(message)s"


class Invocation:
    """One command line, from its first word to its exit code.

    Attributes
    ----------
    verbosity
        -1 errors only, 0 as usual, 1 statistics too, 2 everything.
    log_file
        What ``--log-file`` names.
    """

    def __init__(self) -> None:
        self.verbosity = 0
        self.log_file: str | None = None
        self._handlers: list[logging.Handler] = []

    def listen(self, handler: logging.Handler) -> None:
        """Give a handler what localv4 logs, until the end."""
        self._handlers.append(handler)
        _LOGGER.setLevel(min(listener.level for listener in self._handlers))
        _LOGGER.addHandler(handler)

    def end(self, code: int, error: BaseException | None = None) -> None:
        """Tell the log how it ended, and close it."""
        for handler in self._handlers:
            if isinstance(handler, LogFile):
                handler.end(code, error)
            _LOGGER.removeHandler(handler)
            handler.close()
        self._handlers.clear()
        _LOGGER.setLevel(logging.NOTSET)


class LogFile(logging.Handler):
    """Adds records to a file, each at once and as a whole, so that commands can share one.

    Parameters
    ----------
    path
        The file; made if it is not there.
    command
        Name of the command. Not its arguments: they may hold a prompt.
    source
        Where the path was given, for the error.
    warn
        Told once if the file can't be written any more.

    Raises
    ------
    InvalidInput
        If the file can't be opened for writing.
    """

    def __init__(self, path: Path, command: str, source: str, warn: Callable[[str], None]) -> None:
        self._descriptor: int | None = _open(path, source)  # first: logging remembers handlers
        super().__init__(logging.DEBUG)
        self.setFormatter(_Formatter(_LINE, "%Y-%m-%d %H:%M:%S"))
        self._path, self._warn = path, warn
        self._begun_s = time.monotonic()
        # Imported here, as it is not for --version.
        import platform

        self._write(
            f"{command}: localv4 {localv4.__version__}, Python {platform.python_version()}, "
            f"{platform.system()} {platform.release()} {platform.machine()}, "
            f"{os.cpu_count()} CPUs"
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless an earlier one could not be."""
        if self._descriptor is None:
            return
        content = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError as error:
            self.close()
            self._warn(f"the log in {self._path} ends here: {error.strerror}; name another file")

    def end(self, code: int, error: BaseException | None) -> None:
        """Write how the command ended."""
        if error is not None and code not in (0, 130):
            self._write("the error came from here", error)
        self._write(f"exit code {code} after {time.monotonic() - self._begun_s:.3f} s")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)
        super().close()

    def _write(self, text: str, error: BaseException | None = None) -> None:
        trace = None if error is None else (type(error), error, error.__traceback__)
        self.handle(logging.LogRecord(SAID, logging.INFO, __file__, 0, text, None, trace))


class _Formatter(logging.Formatter):
    """One line a record, whatever the names in it hold, and a traceback below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        record.message = one_line(record.message.replace("\n", "; "))
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802 (logging's own name)
        return for_terminal(super().formatException(ei))  # type: ignore[arg-type]  # as given


def _open(path: Path, source: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK  # a FIFO must not wait
    try:
        descriptor = os.open(path, flags, 0o600)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(
            f"{source}: no log can be kept in {path} ({reason}); name a file that can be written"
        ) from None
    os.set_blocking(descriptor, True)
    return descriptor
