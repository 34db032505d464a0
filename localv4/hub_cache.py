"""What the hub's own cache holds of a repo, as it lies on disk.

::

    models--deepseek-ai--DeepSeek-V4-Flash/
        refs/main                        the commit that "main" was when it was fetched
        blobs/<checksum>                 sha256 of a large file, git's sha1 of a small one
        snapshots/<commit>/config.json   a link to its blob

A blob may itself be a link, into a store that all repos of the cache share. The layout is the
hub's, described in its guide to the cache, and other programs write it too. Only reads, and needs
no library of the hub's: names of models are looked up at every start. Knows nothing of the network.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localv4.checkpoint_index import INDEX_NAME, SINGLE_NAME, list_tensors
from localv4.config import CONFIG_NAME
from localv4.errors import LocalV4Error

__all__ = [
    "CachedRepo",
    "Contents",
    "blob_of",
    "cached_repos",
    "contents_of",
    "files_below",
    "find_repo",
    "missing_files",
    "repo_folder",
    "shared_content",
    "size_on_disk",
]

_PREFIX = "models--"
_SEPARATOR = "--"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STORE = "blobs"
_STORED = re.compile(r"[0-9a-f]{64}")
_REF_LIMIT_BYTES = 100
_LEAST_DIGITS = 7  # of a commit, as git shows it
_MANY_FILES = 100_000  # a folder of more is no repo's


@dataclass(frozen=True)
class Contents:
    """What a checkpoint's folder has of what it takes to run it; no file's content is looked at.

    Attributes
    ----------
    n_shards
        Shards that hold more than ``mtp.*``; 0 where nothing tells how many there are.
    missing
        Files that are needed and can't be reached.
    draft
        Whether ``mtp.*`` is listed, and if so whether all its files are here.
    """

    n_shards: int
    missing: tuple[str, ...]
    draft: Literal["none", "here", "absent"]

    @property
    def is_complete(self) -> bool:
        """Whether it can be run."""
        return not self.missing

    @property
    def share(self) -> str:
        """How much is here, in words: ``12 of 46 shards``."""
        if self.is_complete:
            return "complete"
        if not self.n_shards:
            return f"no {self.missing[0]}"
        return f"{self.n_shards - len(self.missing)} of {self.n_shards} shards"


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

    @property
    def blobs(self) -> Path:
        """The folder of contents, named by their checksums."""
        return self.folder / "blobs"

    def best(self, seen: Mapping[str, Contents] | None = None) -> tuple[str, Contents] | None:
        """Return the commit to use, with what is here of it: main's, else the newest complete one.

        Where none is complete, the one that a download should go on with; None without any. `seen`
        has the contents of all commits, where they are known already.
        """
        main = self.refs.get("main")
        order = dict.fromkeys([*([main] if main in self.commits else []), *self.commits])
        first = None
        for commit in order:
            contents = seen[commit] if seen else contents_of(self.snapshot(commit))
            if contents.is_complete:
                return commit, contents
            first = first or (commit, contents)
        return first

    def best_commit(self) -> str | None:
        """Return the commit of :meth:`best`."""
        best = self.best()
        return None if best is None else best[0]

    def find_commit(self, revision: str) -> str | None:
        """Return the commit of a branch, a tag, or a commit's first digits (7 or more)."""
        if revision in self.refs:
            return self.refs[revision]
        if len(revision) < _LEAST_DIGITS:
            return None
        found = [commit for commit in self.commits if commit.startswith(revision.lower())]
        return found[0] if len(found) == 1 else None

    def partial_bytes(self) -> int:
        """Return the bytes of files whose download was not finished."""
        return size_on_disk(self.blobs.glob("*.incomplete"))


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
    return contents_of(snapshot).missing


def contents_of(snapshot: Path) -> Contents:
    """Look at what a checkpoint's folder has; see :func:`missing_files`."""
    if not (snapshot / CONFIG_NAME).is_file():
        return Contents(0, (CONFIG_NAME,), "none")
    if not (snapshot / INDEX_NAME).is_file() and not (snapshot / SINGLE_NAME).is_file():
        return Contents(0, (INDEX_NAME,), "none")
    try:
        listing = list_tensors(snapshot)
    except LocalV4Error:
        # a single file is there, whatever is in it
        is_index = (snapshot / INDEX_NAME).is_file()
        return Contents(0, (INDEX_NAME,), "none") if is_index else Contents(1, (), "none")
    shards, of_draft = listing.body_shards(), listing.draft_shards()
    has_draft = all((snapshot / shard).is_file() for shard in of_draft)
    return Contents(
        len(shards),
        tuple(shard for shard in shards if not (snapshot / shard).is_file()),
        "none" if not of_draft else "here" if has_draft else "absent",
    )


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those in it, by name; links to folders are not followed.

    What can't be read is left out.
    """
    n_files = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*names, *links]):
            n_files += 1
            if n_files > _MANY_FILES:
                return
            yield Path(parent) / name


def blob_of(file: Path) -> Path:
    """Return what a snapshot's link names, without following another; else the file itself."""
    try:
        target = os.readlink(file)  # noqa: PTH115 (the next line needs the text)
    except OSError:
        return file
    return Path(os.path.normpath(file.parent / target))


def shared_content(blob: Path) -> Path | None:
    """Return the content that a blob is a link to in the store that a cache's repos share.

    None for a blob that holds its content, and for a link to anywhere else.
    """
    content, store = blob_of(blob), blob.parent.parent.parent / _STORE
    name = content.name
    if content == store / name[:2] / name and _STORED.fullmatch(name) and not content.is_symlink():
        return content
    return None


def size_on_disk(files: Iterable[Path]) -> int:
    """Return the bytes of files, each content once; what can't be reached counts as nothing."""
    sizes = {}
    for file in files:
        with contextlib.suppress(OSError):
            found = file.stat()
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


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
