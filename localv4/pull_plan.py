"""What a download takes: which files of a repo are needed, what of them is here, and the room.

Shards with nothing but the MTP block or a drafter are left out unless they are asked for, and so is
everything that localv4 never reads. Knows nothing of how files are fetched.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from localv4.checkpoint_index import INDEX_NAME
from localv4.config import CONFIG_NAME
from localv4.errors import InvalidInput, OutOfBudget
from localv4.hub import RemoteFile, RemoteRepo
from localv4.hub_cache import repo_folder
from localv4.remote_checkpoint import is_whole, places, read_checkpoint
from localv4.sizes import format_bytes

__all__ = ["PlannedFile", "PullPlan", "make_plan", "partial_of"]

ROOM_BYTES = 2**30  # kept free: a full disk stops more than a download

_WANTED = (
    CONFIG_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    INDEX_NAME,
    "encoding/encoding_dsv4.py",  # read as text, for the chat format
)
_PAPERS = ("LICENSE", "LICENSE.md", "LICENSE.txt", "README.md")
_PAPER_LIMIT_BYTES = 2**20


@dataclass(frozen=True)
class PlannedFile:
    """A file that is needed.

    Attributes
    ----------
    remote
        What the hub lists.
    here_bytes
        How much of it is in the cache.
    is_whole
        Whether it is there under its checksum; else all of it may be here, but is still to check.
    is_shard
        Whether it holds weights.
    """

    remote: RemoteFile
    here_bytes: int
    is_whole: bool
    is_shard: bool

    @property
    def fetch_bytes(self) -> int:
        """Bytes that are not here."""
        return self.remote.n_bytes - self.here_bytes

    @property
    def state(self) -> Literal["present", "partial", "missing"]:
        """In a word, how much of it is here."""
        if self.is_whole:
            return "present"
        return "partial" if self.here_bytes else "missing"


@dataclass(frozen=True)
class PullPlan:
    """What a download takes.

    Attributes
    ----------
    repo
        The commit, and all of its files.
    cache
        The hub's folder for downloads.
    files
        Those needed, small ones first, then shards by name.
    left_out
        Shards with nothing but ``mtp.*``, which weren't asked for.
    contents
        Small files that had to be read for the plan, whole and checked, by path.
    free_bytes
        Room on the cache's disk.
    """

    repo: RemoteRepo
    cache: Path
    files: tuple[PlannedFile, ...]
    left_out: tuple[RemoteFile, ...]
    contents: Mapping[str, bytes]
    free_bytes: int

    @property
    def folder(self) -> Path:
        """The repo's folder in the cache."""
        return repo_folder(self.cache, self.repo.repo_id)

    @property
    def snapshot(self) -> Path:
        """The folder of the checkpoint, once all is here."""
        return self.folder / "snapshots" / self.repo.commit

    @property
    def n_bytes(self) -> int:
        """Bytes of all needed files."""
        return sum(file.remote.n_bytes for file in self.files)

    @property
    def here_bytes(self) -> int:
        """Bytes of them that are here."""
        return sum(file.here_bytes for file in self.files)

    @property
    def fetch_bytes(self) -> int:
        """Bytes of them that are to fetch."""
        return self.n_bytes - self.here_bytes

    @property
    def is_complete(self) -> bool:
        """Whether all needed files are here."""
        return all(file.is_whole for file in self.files)

    def refuse_small_disk(self) -> None:
        """Refuse a download that would fill the disk.

        Raises
        ------
        OutOfBudget
            If the disk has less than what is to fetch and a little room.
        """
        if not self.fetch_bytes or self.fetch_bytes + ROOM_BYTES <= self.free_bytes:
            return
        raise OutOfBudget(
            f"{self.repo.repo_id} takes {format_bytes(self.fetch_bytes)} more and "
            f"{format_bytes(ROOM_BYTES)} is kept free, but the disk of {self.cache} has "
            f"{format_bytes(self.free_bytes)}; free some space, or let HF_HOME name a folder on "
            "another disk"
        )


def make_plan(repo: RemoteRepo, cache: Path, draft: bool = False) -> PullPlan:
    """Plan a download; asks the hub for the small files that tell what it is.

    Parameters
    ----------
    repo
        From :func:`localv4.hub.describe`.
    cache
        The hub's folder for downloads, not necessarily there yet.
    draft
        Whether to have the shards of the MTP block or drafter, too.

    Raises
    ------
    UnsupportedModel
        If it is nothing that localv4 runs.
    DamagedCheckpoint
        If its files contradict each other.
    DownloadFailed
        If the hub can't be asked.
    InvalidInput
        If the revision's name leads out of its folder.
    """
    if ".." in PurePosixPath(repo.revision).parts:
        raise InvalidInput(f"{repo.revision!r} is no branch, tag or commit")
    files = {file.path: file for file in repo.files}
    folder = repo_folder(cache, repo.repo_id)
    checkpoint = read_checkpoint(repo, folder)
    shards, left_out = checkpoint.shards, checkpoint.draft_shards
    if draft:
        shards, left_out = tuple(sorted([*shards, *left_out])), ()
    papers = [name for name in _PAPERS if name in files and _is_small(files[name])]
    names = [*(name for name in _WANTED if name in files), *papers, *shards]
    return PullPlan(
        repo=repo,
        cache=cache,
        files=tuple(_planned(files[name], folder, repo, name in shards) for name in names),
        left_out=tuple(files[name] for name in left_out),
        contents=checkpoint.contents,
        free_bytes=_free_bytes(cache),
    )


def partial_of(blob: Path) -> Path:
    """Return where a blob's content is until it is whole; the hub's library leaves it alone."""
    return blob.with_name(f"{blob.name}.incomplete")


def _is_small(file: RemoteFile) -> bool:
    return file.n_bytes <= _PAPER_LIMIT_BYTES


def _planned(file: RemoteFile, folder: Path, repo: RemoteRepo, is_shard: bool) -> PlannedFile:
    link, blob = places(repo, file, folder)
    if is_whole(link, file) or is_whole(blob, file):
        return PlannedFile(file, file.n_bytes, True, is_shard)
    partial = partial_of(blob)
    here_bytes = partial.stat().st_size if partial.is_file() else 0
    # one that is too long is begun anew
    return PlannedFile(file, here_bytes if here_bytes <= file.n_bytes else 0, False, is_shard)


def _free_bytes(folder: Path) -> int:
    """Return the room on a folder's disk, even where the folder isn't there yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
