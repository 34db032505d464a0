"""The Hugging Face hub: the only file that knows its library.

What a repo holds, its files as ranges of bytes over plain HTTPS, and the library's errors in words
of our own. Where addresses, tokens, proxies and folders come from (``HF_HOME``, ``HF_TOKEN``,
``HF_ENDPOINT``, ...) is the library's business. Its own downloads are not used: they begin a file
anew when one breaks off. Nor are those of its Xet store: they can start inside a file, but they
retry and wait where no signal reaches them, and plain ranges need nothing but the hub.

Imports the library where needed: a model's name is looked up at every start, and all of it would
take half a second. Knows nothing of checkpoints, nor of where files are kept.
"""

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from localv4.checksums import is_checksum
from localv4.errors import (
    DamagedCheckpoint,
    DownloadFailed,
    InvalidInput,
    LocalV4Error,
    ModelNotFound,
)

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

__all__ = [
    "HubBusy",
    "RemoteFile",
    "RemoteRepo",
    "Stream",
    "cache_folder",
    "delete_blobs",
    "describe",
    "is_offline",
    "lock",
    "open_stream",
    "patiently",
    "token_file",
]

T = TypeVar("T")

_WAITS_S = (0.5, 2.0)  # before the hub is asked again
_LONGEST_WAIT_S = 10.0
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RANGE = re.compile(r"bytes (\d+)-")
_LOCK_PATIENCE_S = 0.05  # the least with which the library tries at all


class HubBusy(DownloadFailed):
    """The hub can't be reached, is busy, or broke off: another try may succeed.

    Attributes
    ----------
    wait_s
        How long the hub asks to wait; None where it says nothing.
    """

    def __init__(self, sentence: str, wait_s: float | None = None) -> None:
        super().__init__(sentence)
        self.wait_s = wait_s


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit.

    Attributes
    ----------
    path
        Within the repo, with ``/``; never leads out of it.
    n_bytes
        Its length.
    checksum
        SHA-256 of a large file, git's SHA-1 of a small one; the name of its blob in the cache.
    """

    path: str
    n_bytes: int
    checksum: str


@dataclass(frozen=True)
class RemoteRepo:
    """A commit of a repo: what `revision` was when the hub was asked."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Stream:
    """Content of a file from byte `start` on, as it arrives, in pieces of any size."""

    start: int
    pieces: Iterator[bytes]


def cache_folder() -> Path:
    """Return the hub's folder for downloads, as ``HF_HOME`` and its like say."""
    return Path(_constants().HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids asking the hub."""
    return bool(_constants().is_offline_mode())


def token_file() -> Path | None:
    """Return the file in which ``hf auth login`` left a token, or None."""
    path = Path(_constants().HF_TOKEN_PATH)
    return path if path.is_file() else None


def describe(repo_id: str, revision: str = "main") -> RemoteRepo:
    """Ask the hub what a revision of a repo holds.

    Raises
    ------
    HubBusy
        If it can't be reached, or is busy, more than once.
    ModelNotFound
        If it knows no such repo or revision, or must not be asked.
    DownloadFailed, DamagedCheckpoint, InvalidInput
        If it refuses, gives an answer that no hub gives, or the name is none.
    """
    _constants()
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(library_name="localv4")
    commit = patiently(lambda: _commit_of(api, repo_id, revision))
    with _api_errors(repo_id, revision):
        tree = api.list_repo_tree(repo_id, revision=commit, recursive=True)
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    return RemoteRepo(repo_id, revision, commit, tuple(map(_remote_file, entries)))


def patiently(ask: Callable[[], T]) -> T:
    """Ask the hub something small, and again while it is busy: the library does so for trees only.

    Raises
    ------
    HubBusy
        If it is busy for too long.
    """
    for wait_s in _WAITS_S:
        try:
            return ask()
        except HubBusy as error:
            time.sleep(wait_s if error.wait_s is None else min(error.wait_s, _LONGEST_WAIT_S))
    return ask()


@contextlib.contextmanager
def open_stream(repo: RemoteRepo, file: RemoteFile, start: int = 0) -> Iterator[Stream]:
    """Open a file's content from byte `start` on, or from its beginning if the hub prefers so.

    What fails within the block is translated too. A connection that says nothing for as long as
    ``HF_HUB_DOWNLOAD_TIMEOUT`` counts as broken.

    Raises
    ------
    HubBusy
        If another try may succeed.
    DownloadFailed, DamagedCheckpoint
        If the hub refuses, or has less of the file than it lists.
    """
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # see lock

    with _our_errors(repo.repo_id, repo.revision, file.path):
        url = hf_hub_url(repo.repo_id, file.path, revision=repo.commit, endpoint=_host())
        headers = build_hf_headers(library_name="localv4") | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        timeout_s = _constants().HF_HUB_DOWNLOAD_TIMEOUT
        # A redirect to another host, the store of large files, leaves the token behind.
        with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
            if response.status_code == 416:
                raise DamagedCheckpoint(
                    f"{repo.repo_id}/{file.path} ends before the {file.n_bytes:,} bytes that the "
                    "hub lists; try again later"
                )
            hf_raise_for_status(response)
            yield Stream(_start_of(response, start), response.iter_raw())


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Hold the hub's lock on a blob, if nobody else has it; gives whether it is ours."""
    # the library exports it without saying so to type checkers
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=_LOCK_PATIENCE_S))
        except TimeoutError:
            yield False
        else:
            yield True


def delete_blobs(cache: Path, blobs: Collection[Path]) -> None:
    """Delete blobs that are links into the cache's shared store, and there what nobody needs then.

    Raises
    ------
    OSError
        If one can't be deleted.
    """
    from huggingface_hub import DeleteCacheStrategy

    none: frozenset[Path] = frozenset()
    DeleteCacheStrategy(
        expected_freed_size=0,
        blobs=frozenset(blobs),
        refs=none,
        repos=none,
        snapshots=none,
        cache_dir=cache,
    ).execute()


def _constants() -> ModuleType:
    """Return what the library made of the environment, at its first import."""
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise InvalidInput(
            f"the hub's library can't use a variable of the environment ({error}); correct the "
            "one that begins with HF_"
        ) from None
    return constants


def _commit_of(api: "HfApi", repo_id: str, revision: str) -> str:
    with _api_errors(repo_id, revision):
        timeout_s = _constants().HF_HUB_ETAG_TIMEOUT
        commit = api.repo_info(repo_id, revision=revision, timeout=timeout_s).sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        _refuse_answer("no commit")
    return commit


def _remote_file(entry: object) -> RemoteFile:
    """Return a tree's entry, whose name and checksum will be names of files here."""
    path, n_bytes, lfs = (getattr(entry, name) for name in ("path", "size", "lfs"))
    checksum = getattr(entry, "blob_id") if lfs is None else lfs.sha256  # noqa: B009
    if not isinstance(path, str) or type(n_bytes) is not int or n_bytes < 0:
        _refuse_answer("a file without name or size")
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in path or "\\" in path:
        raise DamagedCheckpoint(
            f"the repo holds a file {path[:200]!r}, which leads out of its folder; don't trust it"
        )
    if not isinstance(checksum, str) or not is_checksum(checksum):
        _refuse_answer("a file without checksum")
    return RemoteFile(path, n_bytes, checksum)


def _start_of(response: "httpx2.Response", asked: int) -> int:
    if response.status_code != 206:
        return 0
    found = _RANGE.match(response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != asked:
        raise HubBusy("the hub answered with other bytes than asked for; try again later")
    return asked


@contextlib.contextmanager
def _our_errors(repo_id: str, revision: str, path: str | None = None) -> Iterator[None]:
    """Turn what the library raises into errors of our own; none of them shows a token."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(error, repo_id, revision, path) from None
    except OfflineModeIsEnabled:
        raise ModelNotFound(
            f"{repo_id} is not whole on this machine, and HF_HUB_OFFLINE forbids asking the hub; "
            "unset it to download"
        ) from None
    except HFValidationError:
        raise InvalidInput(f"{repo_id!r} is no name of a model; write it as owner/name") from None
    except UnicodeEncodeError:
        raise DownloadFailed("the token is none: it is not ASCII; correct HF_TOKEN") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _no_connection(error) from None


@contextlib.contextmanager
def _api_errors(repo_id: str, revision: str) -> Iterator[None]:
    """Translate also what the library stumbles over in an answer that is no hub's."""
    try:
        with _our_errors(repo_id, revision):
            yield
    except LocalV4Error:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _refuse_answer(type(error).__name__)


def _no_connection(error: Exception) -> DownloadFailed:
    import httpx2

    reason = str(error) or type(error).__name__
    if isinstance(error, httpx2.ProxyError):
        return DownloadFailed(f"the proxy refuses ({reason}); check HTTPS_PROXY and NO_PROXY")
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return DownloadFailed(f"{_host()} is no address of a hub; check HF_ENDPOINT")
    return HubBusy(
        f"the connection to {_host()} failed ({reason}); check the network and try again"
    )


def _refusal(
    error: "HfHubHTTPError", repo_id: str, revision: str, path: str | None
) -> LocalV4Error:
    """Return what an answer with an error means."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    name = repo_id if path is None else f"{repo_id}/{path}"
    if isinstance(error, GatedRepoError):  # of the same kind as the next but one
        return _gated(status, repo_id)
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(
            f"{repo_id} has no revision {revision!r}; give a branch, a tag or a commit of it"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(
            f"the hub shows no {repo_id}; check the name, and where it is private set HF_TOKEN or "
            "run: hf auth login"
        )
    if status in _BUSY:
        return _busy(error, name)
    if status == 401:
        return DownloadFailed(
            "the hub does not know the token; renew it with hf auth login, or correct HF_TOKEN"
        )
    if status == 403:
        return DownloadFailed(f"the token may not read {name}; give one that may in HF_TOKEN")
    return DownloadFailed(f"the hub refuses {name} (HTTP {status}); check its page on {_host()}")


def _gated(status: int, repo_id: str) -> DownloadFailed:
    page = f"{_host()}/{repo_id}"
    if status == 403:
        return DownloadFailed(
            f"{repo_id} is gated, and the account of the token has no access; ask for it on {page}"
        )
    return DownloadFailed(
        f"{repo_id} is gated; accept its terms on {page}, then set HF_TOKEN or run: hf auth login"
    )


def _busy(error: "HfHubHTTPError", name: str) -> HubBusy:
    status = error.response.status_code
    wait = error.response.headers.get("Retry-After", "")
    why = "limits our requests" if status == 429 else "is out of order"
    return HubBusy(
        f"the hub {why} (HTTP {status} for {name}); try again later",
        float(wait) if wait.isdecimal() and len(wait) < 6 else None,
    )


def _refuse_answer(what: str) -> NoReturn:
    raise DownloadFailed(f"{_host()} does not answer as a hub does ({what}); check HF_ENDPOINT")


def _host() -> str:
    return str(_constants().ENDPOINT)
