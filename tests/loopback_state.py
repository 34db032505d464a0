"""What the fake hub holds: repos, faults, and the requests it has answered. No HTTP."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

PIECE_BYTES = 16 * 1024


@dataclass(frozen=True)
class HubFile:
    """A file of a commit; without a path it is listed, but not there: for plans of large files."""

    path: Path | None
    n_bytes: int
    is_large: bool

    @cached_property
    def git_id(self) -> str:
        return self._digest(hashlib.sha1(b"blob %d\0" % self.n_bytes))

    @cached_property
    def checksum(self) -> str:
        """The name of its blob in the cache."""
        return self._digest(hashlib.sha256()) if self.is_large else self.git_id

    def _digest(self, digest: Any) -> str:
        if self.path is None:
            digest.update(b"a hole of %d bytes" % self.n_bytes)
        else:
            digest.update(self.path.read_bytes())
        return str(digest.hexdigest())

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(start)
            while start < end and (piece := file.read(min(PIECE_BYTES, end - start))):
                start += len(piece)
                yield piece


@dataclass(frozen=True)
class HubRepo:
    """A repo; `token` alone may see it, or, where it is gated, read its files."""

    commits: dict[str, dict[str, HubFile]]
    refs: dict[str, str]
    gated: bool
    token: str | None


@dataclass
class Fault:
    """What goes wrong with the content of a file, `times` times, or always where that is None.

    Attributes
    ----------
    status
        Answered instead of the content, with `headers`.
    break_after
        The connection is closed after so many bytes.
    stall_after
        Nothing more is sent after so many bytes, until the hub closes.
    content
        Sent in place of the file's.
    ignores_range
        The whole file is sent, with status 200.
    begins_at
        A range begins here, whatever was asked for.
    before
        Called at each request.
    """

    times: int | None = None
    status: int | None = None
    headers: Mapping[str, str] | None = None
    break_after: int | None = None
    stall_after: int | None = None
    content: bytes | None = None
    ignores_range: bool = False
    begins_at: int | None = None
    before: Callable[[], None] | None = None

    def applies(self) -> bool:
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


@dataclass
class Request:
    """A request as it was answered.

    `file` is that of a repo; where its content was asked for, `start` is the first byte sent, and
    `n_bytes` how many were.
    """

    method: str
    path: str
    token: str | None
    at_store: bool
    file: str | None = None
    start: int = 0
    n_bytes: int = 0
    status: int = 0


@dataclass
class HubState:
    """What the servers know, shared by their threads.

    Attributes
    ----------
    requests
        All of them, in the order they came.
    faults
        By the file's path in its repo. ``"api"`` stands for what is no file.
    page
        Most entries of a page of a tree.
    piece_pause_s
        Pause after each piece of 16 KiB, for downloads that take their time.
    """

    repos: dict[str, HubRepo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    page: int = 5
    piece_pause_s: float = 0.0
    url: str = ""
    store_url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def fault(self, name: str) -> Fault | None:
        """Return the fault to show now, counted."""
        with self.lock:
            fault = self.faults.get(name)
            return fault if fault is not None and fault.applies() else None
