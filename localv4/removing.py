"""Checkpoints taken out of the hub's cache, a whole repo or one commit of it.

What several commits share stays while one of them does, and no link is followed: what lies outside
the cache is never touched. Says first what it would free. Knows nothing of asking.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localv4 import hub
from localv4.errors import InvalidInput
from localv4.hub_cache import CachedRepo, blob_of, files_below, shared_content, size_on_disk

__all__ = ["Removal", "plan_removal", "remove"]

_LOCKS = ".locks"


@dataclass(frozen=True)
class Removal:
    """What would be removed.

    Attributes
    ----------
    repo
        From which.
    commits
        Whose files; all of the repo's if `is_whole`.
    is_whole
        Whether nothing of the repo stays.
    blobs
        Contents that no other commit needs.
    n_bytes
        Bytes that it frees on the disk.
    """

    repo: CachedRepo
    commits: tuple[str, ...]
    is_whole: bool
    blobs: tuple[Path, ...]
    n_bytes: int


def plan_removal(repo: CachedRepo, commit: str | None = None) -> Removal:
    """Find out what it would free to remove a repo, or one commit of it.

    Parameters
    ----------
    repo
        From which.
    commit
        Whose files; None, or the only one, for all that is there.

    Raises
    ------
    InvalidInput
        A download of it is running, or a link stands where one commit could not be told apart.
    """
    _refuse_while_downloading(repo)
    if commit is None or repo.commits == (commit,):
        if repo.folder.is_symlink():
            return Removal(repo, repo.commits, True, (), 0)
        n_bytes = _freed(files_below(repo.folder), repo.folder.parent)
        return Removal(repo, repo.commits, True, tuple(_entries(repo.blobs)), n_bytes)
    parts = ("blobs", "snapshots", "refs", ".no_exist", "trees")
    for folder in (repo.folder, repo.snapshot(commit), *(repo.folder / part for part in parts)):
        if folder.is_symlink():
            raise InvalidInput(
                f"{folder} is a link, so that one commit can't be removed; remove the whole of "
                f"{repo.repo_id}, or what the link leads to by hand"
            )
    others = [other for other in repo.commits if other != commit]
    needed = {blob_of(file) for other in others for file in files_below(repo.snapshot(other))}
    own = [*files_below(repo.snapshot(commit))]
    free = {blob_of(file) for file in own} - needed - {*own}
    blobs = sorted(blob for blob in free if blob.parent == repo.blobs)
    n_bytes = _freed([*own, *blobs], repo.folder.parent)
    return Removal(repo, (commit,), False, tuple(blobs), n_bytes)


def remove(removal: Removal) -> None:
    """Remove it: names first, contents last, so that nothing is ever named that is not there.

    Raises
    ------
    OSError
        If something can't be removed; what is gone by then is gone.
    """
    repo = removal.repo
    if repo.folder.is_symlink():
        repo.folder.unlink()
        return
    blobs = removal.blobs
    for name in _names(removal):
        _remove_entry(name)
    if shared := [blob for blob in blobs if shared_content(blob) is not None]:
        hub.delete_blobs(repo.folder.parent, shared)
    for blob in blobs:
        _remove_entry(blob)
    if removal.is_whole:
        locks = _locks(repo)
        for entry in (repo.folder, locks):
            _remove_entry(entry)
        with contextlib.suppress(OSError):  # others have locks there
            locks.parent.rmdir()


def _names(removal: Removal) -> Iterator[Path]:
    """Yield what leads to the contents."""
    repo = removal.repo
    if removal.is_whole:
        yield from (repo.folder / "refs", repo.folder / "snapshots")
        return
    (commit,) = removal.commits
    yield from (repo.folder / "refs" / ref for ref, named in repo.refs.items() if named == commit)
    yield repo.snapshot(commit)
    yield repo.folder / ".no_exist" / commit
    yield repo.folder / "trees" / f"{commit}.json"


def _remove_entry(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _freed(entries: Iterable[Path], cache: Path) -> int:
    """Return the bytes of files; of links only what they alone name in the cache's shared store."""
    own = {*entries}
    shared = {content for entry in own if (content := shared_content(entry)) is not None}
    if shared:
        others = (link for link in cache.glob("*/blobs/*") if link not in own)
        shared -= {blob_of(link) for link in others}
    return size_on_disk([entry for entry in own if not entry.is_symlink()]) + size_on_disk(shared)


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds; nothing if it is a link, whose target is not ours."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(folder.iterdir())


def _locks(repo: CachedRepo) -> Path:
    folder = repo.folder.parent / _LOCKS
    # a link to other locks is nobody's but the user's
    return folder / repo.folder.name if not folder.is_symlink() else repo.folder / _LOCKS


def _refuse_while_downloading(repo: CachedRepo) -> None:
    for path in _entries(_locks(repo)):
        if path.is_symlink():
            continue
        with hub.lock(path) as is_free:
            if not is_free:
                raise InvalidInput(
                    f"a download of {repo.repo_id} is running; stop it first, or wait for its end"
                )
