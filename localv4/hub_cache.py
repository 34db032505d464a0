"""What the hub's own cache holds of a repo, as it lies on disk.

::

    models--deepseek-ai--DeepSeek-V4-Flash/
        refs/main                        the commit that "main" was when it was fetched
        blobs/<checksum>                 sha256 of a large file, git's sha1 of a small one
        snapshots/<commit>/config.json   a link to its blob

The layout is the hub's, described in its guide to the cache, and other programs write it too. Only
reads, and needs no library of the hub's: names of models are looked up at every start. Knows
nothing of the network.
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localv4.checkpoint_index import INDEX_NAME, SINGLE_NAME, list_tensors
from localv4.errors import LocalV4Error

__all__ = ["CachedRepo", "cached_repos", "find_repo", "missing_files", "repo_folder"]

_PREFIX = "models--"
_SEPARATOR = "--"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REF_LIMIT_BYTES = 100
_FIRST_NEEDED = "config.json"


@dataclass(frozen=True)
class CachedRepo:
    """A repo of which something is in the cache.

    Attributes
    ----------
    repo_id
        ``owner/name``.
    folder
        Its folder in the cache.
    refs
        Branch or tag to the commit it was when it was fetched.
    commits
        Commits with a snapshot, the one changed last first.
    """

    repo_id: str
    folder: Path
    refs: Mapping[str, str]
    commits: tuple[str, ...]

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit's files; not necessarily there."""
        return self.folder / "snapshots" / commit

    def best_commit(self) -> str | None:
        """Return the commit to use: that of main if complete, else the newest complete one.

        Where none is complete, the one that a download should go on with; None without any.
        """
        main = self.refs.get("main")
        order = [*([main] if main in self.commits else []), *self.commits]
        complete = (commit for commit in order if not missing_files(self.snapshot(commit)))
        return next(complete, None) or next(iter(order), None)


def repo_folder(cache: Path, repo_id: str) -> Path:
    """Return a repo's folder in a cache."""
    return cache / f"{_PREFIX}{repo_id.replace('/', _SEPARATOR)}"


def cached_repos(cache: Path) -> tuple[CachedRepo, ...]:
    """Return the repos in a cache, by name; none where the folder can't be read."""
    found = []
    with contextlib.suppress(OSError):
        for folder in sorted(cache.iterdir()):
            if folder.name.startswith(_PREFIX):
                found.append(_read(folder))
    return tuple(found)


def find_repo(cache: Path, repo_id: str) -> CachedRepo | None:
    """Return a repo's part of a cache, or None if it has none."""
    folder = repo_folder(cache, repo_id)
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in the name
        if folder.is_dir():
            return _read(folder)
    return None


def missing_files(snapshot: Path) -> tuple[str, ...]:
    """Return the files that a checkpoint's folder lacks to be run, shards of ``mtp.*`` apart.

    A file counts as there if it can be reached; its content is not looked at. Where the index is
    damaged, it counts as missing.
    """
    if not (snapshot / _FIRST_NEEDED).is_file():
        return (_FIRST_NEEDED,)
    if not (snapshot / INDEX_NAME).is_file():
        return () if (snapshot / SINGLE_NAME).is_file() else (INDEX_NAME,)
    try:
        shards = list_tensors(snapshot).shards(draft=False)
    except LocalV4Error:
        return (INDEX_NAME,)
    return tuple(shard for shard in shards if not (snapshot / shard).is_file())


def _read(folder: Path) -> CachedRepo:
    """Read what is in a repo's folder; what can't be read counts as not there."""
    repo_id = folder.name.removeprefix(_PREFIX).replace(_SEPARATOR, "/", 1)
    return CachedRepo(repo_id, folder, _refs(folder / "refs"), _commits(folder / "snapshots"))


def _refs(folder: Path) -> dict[str, str]:
    refs = {}
    with contextlib.suppress(OSError):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.stat().st_size <= _REF_LIMIT_BYTES:
                commit = file.read_bytes().decode("ascii", "replace").strip()
                if _COMMIT.fullmatch(commit):
                    refs[file.relative_to(folder).as_posix()] = commit
    return refs


def _commits(folder: Path) -> tuple[str, ...]:
    times = {}
    with contextlib.suppress(OSError):
        for snapshot in folder.iterdir():
            if _COMMIT.fullmatch(snapshot.name) and snapshot.is_dir():
                times[snapshot.name] = snapshot.stat().st_mtime_ns
    return tuple(sorted(times, key=lambda commit: (-times[commit], commit)))
