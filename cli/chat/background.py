"""The model, opened by a thread of its own while the first message is typed.

Whoever needs it waits for it; what goes wrong is raised there, and told at once to whoever reads
the keyboard meanwhile.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localv4.engine import Engine

__all__ = ["Opening"]

_POLL_S = 0.1  # Ctrl-C is met between waits
_PATIENCE_S = 2.0  # for a thread that is to end


class Opening:
    """An engine that is being opened, or is open.

    Parameters
    ----------
    opens
        Opens the engine and closes it; given what is to be called now and then meanwhile.
    opened
        Called by the thread with the engine, before anybody else has it.
    failed
        Called by the thread with what went wrong, if it did.
    """

    def __init__(
        self,
        opens: Callable[[Callable[[], None]], AbstractContextManager["Engine"]],
        opened: Callable[["Engine"], None] = lambda engine: None,
        failed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._opens = opens
        self._opened = opened
        self._failed = failed
        self._stack = contextlib.ExitStack()
        self._engine: Engine | None = None
        self._error: BaseException | None = None
        self._leaving = False
        # A daemon: one that is still importing must not keep a user who leaves.
        self._thread = threading.Thread(target=self._open, name="opening", daemon=True)

    def start(self) -> None:
        """Begin, once."""
        if self._thread.ident is None:
            self._thread.start()

    @property
    def engine(self) -> "Engine | None":
        """The engine, if it is open."""
        return self._engine

    @property
    def has_failed(self) -> bool:
        """Whether it could not be opened."""
        return self._error is not None

    def wait(self) -> "Engine":
        """Return the engine, as soon as it is open.

        Raises
        ------
        LocalV4Error, OSError
            It cannot be opened.
        """
        while self._thread.is_alive():
            self._thread.join(_POLL_S)
        if self._error is not None:
            raise self._error
        assert self._engine is not None
        return self._engine

    def close(self) -> None:
        """Close the engine, or end its opening."""
        self._leaving = True
        self._thread.join(_PATIENCE_S)
        if not self._thread.is_alive():
            self._stack.close()

    def _check(self) -> None:
        if self._leaving:
            raise SystemExit

    def _open(self) -> None:
        try:
            engine = self._stack.enter_context(self._opens(self._check))
            self._opened(engine)
            self._engine = engine
        except BaseException as error:
            self._error = error
            if not self._leaving:
                self._failed(error)
