"""A folder of saved sessions: their names, what they say of themselves, and a limit on their size.

A session is the file ``NAME.session``; its time of modification is when it was last used: saved or
opened. What a list shows are keys of the file's head: ``title`` and ``model`` (text), ``n_tokens``.
Knows nothing of what a session's state is.
"""

import contextlib
import difflib
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localv4.errors import DamagedSession, InvalidInput, LocalV4Error, OutOfBudget
from localv4.replacing import remove_abandoned
from localv4.sizes import format_bytes
from localv4.state_reading import read_head

__all__ = ["SessionStore", "StoredSession"]

_SUFFIX = ".session"
_MAX_NAME = 100
_MAX_NAME_BYTES = 200  # file systems allow 255, or 143, and a partial file adds to it
_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class StoredSession:
    """A saved session as a list shows it.

    Attributes
    ----------
    name
        What it was saved as.
    n_bytes
        Size of its file.
    used_s
        When it was last saved or opened, seconds since 1970.
    title, model
        What its head says; empty if nothing. Text from a file: it may hold any character.
    n_tokens
        Tokens held; None if the head does not say.
    damage
        Why its head is of no use; None if it is sound. The state is not looked at.
    """

    name: str
    n_bytes: int
    used_s: float
    title: str = ""
    model: str = ""
    n_tokens: int | None = None
    damage: str | None = None


class SessionStore:
    """The sessions of one folder, which need not be there before the first is saved.

    Parameters
    ----------
    folder
        `localv4.settings.session_folder`, as a rule.
    limit_bytes
        Most bytes that all of them may take.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def path(self, name: str) -> Path:
        """Return the file of a session, which need not be there.

        Raises
        ------
        InvalidInput
            The name would not be a file's on every system.
        """
        return self.folder / f"{_checked(name)}{_SUFFIX}"

    def has(self, name: str) -> bool:
        """Return whether something is saved under a name.

        Raises
        ------
        InvalidInput
            The name is impossible.
        """
        return os.path.lexists(self.path(name))

    def sessions(self) -> tuple[StoredSession, ...]:
        """Return all sessions, the one used last first; damaged ones are among them.

        Raises
        ------
        LocalV4Error
            The folder cannot be read.
        """
        found = reversed(self._by_age().items())
        rows = (_described(self.path(name), name, status) for name, status in found)
        return tuple(row for row in rows if row is not None)

    def n_bytes(self, name: str) -> int:
        """Return the size of a session's file.

        Raises
        ------
        InvalidInput
            There is no such session.
        """
        with self._existing(name) as path:
            return path.lstat().st_size

    def touch(self, name: str) -> None:
        """Let a session count as used now.

        Raises
        ------
        InvalidInput
            There is no such session.
        LocalV4Error
            It is somebody else's.
        """
        with self._existing(name) as path:
            os.utime(path)

    def delete(self, name: str) -> None:
        """Delete a session.

        Raises
        ------
        InvalidInput
            There is no such session.
        LocalV4Error
            It cannot be deleted.
        """
        with self._existing(name) as path:
            path.unlink()

    def prepare(self, name: str, n_bytes: int) -> None:
        """Make the folder for a session that is about to be saved, if need be.

        Files that killed writers left behind are removed; no session is.

        Parameters
        ----------
        name, n_bytes
            The session's; its size is `localv4.session.Session.saved_bytes`.

        Raises
        ------
        OutOfBudget
            It alone takes more than the limit.
        InvalidInput
            The name is impossible.
        LocalV4Error
            The folder cannot be made.
        """
        _checked(name)
        if n_bytes > self.limit_bytes:
            raise OutOfBudget(
                f"the session {name!r} takes {format_bytes(n_bytes)}, but all sessions may take "
                f"{format_bytes(self.limit_bytes)}; raise LOCALV4_SESSION_LIMIT"
            )
        with _changing(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_abandoned(self.folder)

    def trim(self, keep: Collection[str] = ()) -> tuple[str, ...]:
        """Remove the sessions not used for the longest time, until the others fit the limit.

        To be called once a session is saved: had that failed, others must not have paid for it.

        Parameters
        ----------
        keep
            Names of sessions that stay in any case.

        Returns
        -------
        tuple of str
            Names of the sessions that were removed, for the user to know.

        Raises
        ------
        InvalidInput
            A name is impossible.
        LocalV4Error
            A session cannot be removed; those before it are.
        """
        found = self._by_age()
        kept = {_checked(name) for name in keep}
        total = sum(status.st_size for status in found.values())
        removed: list[str] = []
        for name, status in found.items():
            if total <= self.limit_bytes:
                break
            if name not in kept:
                path = self.path(name)
                with _changing(path):
                    path.unlink(missing_ok=True)
                total -= status.st_size
                removed.append(name)
        return tuple(removed)

    def _by_age(self) -> dict[str, os.stat_result]:
        """Return the names and files of all sessions, the one not used for longest first."""
        found = {}
        try:
            # not Path.glob, to which a folder that may not be read is an empty one
            files = [file.name for file in self.folder.iterdir()]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LocalV4Error(
                f"{self.folder} cannot be read ({error.strerror}); check the path and its "
                "permissions"
            ) from None
        for file in files:
            if file.endswith(_SUFFIX):
                with contextlib.suppress(InvalidInput, FileNotFoundError):
                    name = _checked(file.removesuffix(_SUFFIX))
                    status = self.path(name).lstat()
                    if stat.S_ISREG(status.st_mode):
                        found[name] = status
        return dict(sorted(found.items(), key=lambda item: (item[1].st_mtime_ns, item[0])))

    @contextlib.contextmanager
    def _existing(self, name: str) -> Iterator[Path]:
        """Give the file of a session that should be there."""
        path = self.path(name)
        with _changing(path):
            try:
                yield path
            except FileNotFoundError:
                near = difflib.get_close_matches(name, self._by_age(), 1)
                hint = "localv4 sessions lists those there are"
                if near:
                    hint = f"did you mean {near[0]!r}?"
                raise InvalidInput(f"there is no session {name!r}; {hint}") from None


def _checked(name: str) -> str:
    """Return a name as file systems keep it.

    Raises
    ------
    InvalidInput
        It would not be a file's on every system, or hidden.
    """
    name = unicodedata.normalize("NFC", name)
    if not name:
        raise InvalidInput("the name of the session is empty; give it one")
    size = len(name.encode("utf-8", "surrogatepass"))
    if len(name) > _MAX_NAME or size > _MAX_NAME_BYTES:
        raise InvalidInput(
            f"the session's name has {len(name):,} characters in {size:,} bytes; give one of at "
            f"most {_MAX_NAME} in {_MAX_NAME_BYTES}"
        )
    if not name.isprintable() or _FORBIDDEN.search(name):
        raise InvalidInput(
            f"the session's name {name!r} holds a character that some systems allow in no file's; "
            "use letters, digits, spaces, . _ and -"
        )
    if name != name.strip() or name[0] == "." or name[-1] == "." or _DEVICES.fullmatch(name):
        raise InvalidInput(
            f"the session's name {name!r} begins or ends with a dot or a space, or is a device's "
            "on Windows; give another"
        )
    return name


def _described(path: Path, name: str, status: os.stat_result) -> StoredSession | None:
    """Return what there is to say of a session; None if it was deleted meanwhile."""
    head: dict[str, Any] = {}
    damage = None
    try:
        head = read_head(path)
    except DamagedSession as error:
        damage = str(error)
    except InvalidInput:
        return None
    title, model, n_tokens = (head.get(key) for key in ("title", "model", "n_tokens"))
    return StoredSession(
        name,
        status.st_size,
        status.st_mtime,
        title if isinstance(title, str) else "",
        model if isinstance(model, str) else "",
        n_tokens if type(n_tokens) is int and n_tokens >= 0 else None,
        damage,
    )


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Turn what the system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise LocalV4Error(
            f"{path} cannot be changed ({error.strerror}); check the path and its permissions"
        ) from None
