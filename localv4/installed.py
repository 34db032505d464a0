"""The DeepSeek-V4 checkpoints on this machine: those in the hub's cache, and the built-in model.

Reads names, configs and the shards' listings, never a shard, and asks no network. Knows nothing of
how they are shown.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localv4.aliases import alias_of
from localv4.config import CONFIG_LIMIT_BYTES, CONFIG_NAME
from localv4.errors import LocalV4Error
from localv4.hub import cache_folder as hub_folder
from localv4.hub_cache import (
    CachedRepo,
    Contents,
    cached_repos,
    contents_of,
    files_below,
    size_on_disk,
)
from localv4.models import BUILTIN, builtin_folder
from localv4.untrusted import read_object

__all__ = ["Inhabitants", "Installed", "find_installed", "is_v4", "kind_of"]

_MODEL_TYPE = "deepseek_v4"


@dataclass(frozen=True)
class Installed:
    """One commit of a repo, or the built-in model.

    Attributes
    ----------
    name
        The shortest name that finds it.
    repo_id, commit, refs
        Of the hub's, with the branches and tags that are this commit; None and () for the built-in
        model. The commit is None where a download ended before it had any file in place.
    folder
        Its files.
    kind
        See :func:`kind_of`; empty where no config.json tells.
    draft
        "here", "left out" of the download, "unread" (a drafter that localv4 can't run) or "none".
    contents
        What is there; None for the built-in model while it is not made.
    n_bytes
        Size of its files on disk, what it shares with other commits included.
    partial_bytes
        Of files whose download was not finished; told with one commit of a repo alone.
    modified_s
        When its folder last changed, in seconds since 1970; None where it is not there.
    """

    name: str
    repo_id: str | None
    commit: str | None
    refs: tuple[str, ...]
    folder: Path
    kind: str
    draft: str
    contents: Contents | None
    n_bytes: int
    partial_bytes: int
    modified_s: float | None

    @property
    def is_complete(self) -> bool:
        """Whether it can be run, as far as names of files tell."""
        return self.contents is not None and self.contents.is_complete


@dataclass(frozen=True)
class Inhabitants:
    """What is on this machine.

    Attributes
    ----------
    cache
        The hub's cache, not necessarily there.
    models
        The checkpoints, by repo, the newest commit first; the built-in model last.
    n_bytes
        Bytes of those in the cache, what commits share once, unfinished files included.
    n_others
        Repos of other models in the hub's cache.
    """

    cache: Path
    models: tuple[Installed, ...]
    n_bytes: int
    n_others: int


def find_installed() -> Inhabitants:
    """Look at the hub's cache and at the built-in model."""
    cache, n_others = hub_folder(), 0
    found: list[Installed] = []
    for repo in cached_repos(cache):
        rows = list(_commits(repo)) if is_v4(repo) else []
        found += rows
        n_others += not rows
    files = (file for model in found for file in files_below(model.folder))
    n_bytes = size_on_disk(files) + sum(model.partial_bytes for model in found)
    return Inhabitants(cache, (*found, _builtin()), n_bytes, n_others)


def is_v4(repo: CachedRepo) -> bool:
    """Whether a repo is a DeepSeek-V4: by a config.json, or, while it has none, by its name."""
    types = [_model_type(repo.snapshot(commit)) for commit in repo.commits]
    if _MODEL_TYPE in types:
        return True
    return alias_of(repo.repo_id) is not None and set(types) <= {None}


def kind_of(values: dict[str, Any] | None, repo_id: str | None = None) -> str:
    """Say in two words what a config.json claims to be; empty for none.

    Where it does not name a format, the release of that name does, and else it is the usual FP4.
    """
    if values is None:
        return ""
    is_base = (alias_of(repo_id or "") or "").endswith("-base")
    if values.get("expert_dtype", "fp8" if is_base else None) == "fp8":
        return "FP8 base"
    return "FP4 DSpark" if _is_dspark(values) else "FP4 instruct"


def _commits(repo: CachedRepo) -> Iterator[Installed]:
    """Describe each commit; unfinished files belong to the first that is not complete."""
    partial_bytes = repo.partial_bytes()
    name = alias_of(repo.repo_id) or repo.repo_id
    seen = {commit: contents_of(repo.snapshot(commit)) for commit in repo.commits}
    if not seen:
        absent = Contents(0, (CONFIG_NAME,), "none")
        when = _modified_s(repo.folder)
        yield Installed(
            name, repo.repo_id, None, (), repo.folder, "", "none", absent, 0, partial_bytes, when
        )
        return
    unfinished = [commit for commit in seen if not seen[commit].is_complete]
    owner = [*unfinished, *seen][0]
    best, _ = repo.best(seen) or (None, None)
    for commit, contents in seen.items():
        folder, values = repo.snapshot(commit), _config(repo.snapshot(commit))
        yield Installed(
            name if commit == best else f"{name}@{commit[:7]}",
            repo.repo_id,
            commit,
            tuple(ref for ref in repo.refs if repo.refs[ref] == commit),
            folder,
            kind_of(values, repo.repo_id),
            _draft(values, contents),
            contents,
            size_on_disk(files_below(folder)),
            partial_bytes if commit == owner else 0,
            _modified_s(folder),
        )


def _builtin() -> Installed:
    folder = builtin_folder()
    values = _config(folder)
    contents = None if values is None else contents_of(folder)
    draft = "none" if contents is None else _draft(values, contents)
    n_bytes = size_on_disk(files_below(folder))
    return Installed(
        BUILTIN, None, None, (), folder, "FP4 random", draft, contents, n_bytes, 0,
        _modified_s(folder),
    )  # fmt: skip


def _draft(values: dict[str, Any] | None, contents: Contents) -> str:
    if contents.draft == "here":
        return "unread" if _is_dspark(values or {}) else "here"
    return "left out" if contents.draft == "absent" else "none"


def _is_dspark(values: dict[str, Any]) -> bool:
    return any(key.startswith("dspark_") for key in values)


def _model_type(folder: Path) -> object:
    return (_config(folder) or {}).get("model_type")


def _config(folder: Path) -> dict[str, Any] | None:
    """Return a folder's config.json; what is damaged counts as not there."""
    with contextlib.suppress(LocalV4Error):
        return read_object(folder / CONFIG_NAME, CONFIG_LIMIT_BYTES)
    return None


def _modified_s(folder: Path) -> float | None:
    try:
        return folder.stat().st_mtime
    except OSError:
        return None
