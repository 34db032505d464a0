"""From the name of a model to its folder.

A name is, in this order: a folder with a config.json; a short name such as ``flash``; a repo of the
hub's, ``owner/name``, that is in its cache; any other folder. Behind a short name or a repo may
stand ``@`` and a revision: a branch, a tag, or a commit's first seven digits or more. No name at
all, or ``built-in``, is the built-in model: random weights in the real format, made on first use in
the cache folder. Asks no network.
"""

import difflib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localv4.aliases import ALIASES, alias_of, find_alias
from localv4.config import CONFIG_NAME
from localv4.errors import InvalidInput, ModelNotFound, OutOfBudget
from localv4.hub import cache_folder as hub_folder
from localv4.hub_cache import CachedRepo, Contents, contents_of, find_repo
from localv4.settings import cache_folder

__all__ = ["BUILTIN", "Located", "builtin_folder", "locate", "resolve"]

BUILTIN = "built-in"
"""The name of the built-in model."""

# Part of the folder's name: raised when the recipe below changes, so that nobody keeps an old one.
_BUILTIN_RECIPE = 2
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"{_PART}/{_PART}")
_PAGE = re.compile(rf"https?://[^/]+/({_PART}/{_PART})/?")


@dataclass(frozen=True)
class Located:
    """Where a model is, as far as it is here.

    Attributes
    ----------
    name
        The shortest name that finds it.
    folder
        Its files, not necessarily all of them; None where there are none.
    repo_id
        Of the hub's; None for a folder of the user's and for the built-in model.
    repo, commit
        What the hub's cache has of it, and the commit whose files are in `folder`.
    contents
        What is in `folder`; None where that was not looked at.
    note
        What the user should know of the choice; empty for nothing.
    is_builtin
        Whether this is the built-in model.
    """

    name: str
    folder: Path | None
    repo_id: str | None = None
    repo: CachedRepo | None = None
    commit: str | None = None
    contents: Contents | None = None
    note: str = ""
    is_builtin: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether it can be run, as far as names of files tell."""
        return self.folder is not None and (self.contents is None or self.contents.is_complete)

    @property
    def next_step(self) -> str:
        """The command that gets what is missing."""
        revision = self.name.partition("@")[2]
        name = self.name.partition("@")[0]
        return f"localv4 pull {name}{f' --revision {revision}' if revision else ''}"

    @property
    def absence(self) -> str:
        """What to say of a model that is not here, or not all of it."""
        if self.folder is None or self.contents is None:
            return f"{self._title} is not on this machine; get it with: {self.next_step}"
        return (
            f"{self._title} is here in part, {self.contents.share}; finish it with: "
            f"{self.next_step}"
        )

    @property
    def _title(self) -> str:
        revision = self.name.partition("@")[2]
        return f"{self.repo_id}{f' at {revision}' if revision else ''}"


def resolve(name: str | None, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of a model.

    Parameters
    ----------
    name
        A folder, a short name, or a repo; None for the built-in model.
    say
        Told in one sentence when the built-in model must be made first, or when an older commit is
        used as the one of main is not all here.

    Raises
    ------
    ModelNotFound
        If there is no such model on this machine, or not all of it.
    InvalidInput, OutOfBudget
        If the built-in model can't be written to the cache folder.
    """
    located = locate(name)
    if located.is_builtin:
        return _builtin(say)
    if located.folder is None or not located.is_complete:
        raise ModelNotFound(located.absence)
    if located.note:
        say(located.note)
    return located.folder


def builtin_folder() -> Path:
    """Return where the built-in model is, or will be."""
    return cache_folder() / "models" / f"builtin-{_BUILTIN_RECIPE}"


def locate(name: str | None) -> Located:
    """Return where a model is, also of one that is not here, or not all of it.

    Parameters
    ----------
    name
        As for :func:`resolve`.

    Raises
    ------
    ModelNotFound
        If the name is of no folder that can be read, and could not be one of the hub's.
    """
    if name is None:
        return _located_builtin()
    if not name:
        raise ModelNotFound("the name of the model is empty; name a checkpoint's folder")
    # Not Path.expanduser: of an unknown user it makes a RuntimeError.
    path = Path(os.path.expanduser(name))  # noqa: PTH111
    if os.path.isfile(path / CONFIG_NAME):  # noqa: PTH113 (false where it can't be read)
        return Located(name, path)
    if name == BUILTIN:
        return _located_builtin()
    base, _, revision = name.partition("@")
    alias = find_alias(base)
    if alias is not None:
        return _in_cache(alias.repo_id, revision)
    if _REPO_ID.fullmatch(base) and "--" not in base and ".." not in base:
        located = _in_cache(base, revision)
        if located.folder is not None or not os.path.exists(path):  # noqa: PTH110 (never fails)
            return located
    return _user_folder(name, path)


def _located_builtin() -> Located:
    folder = builtin_folder()
    return Located(BUILTIN, folder if _is_made(folder) else None, is_builtin=True)


def _in_cache(repo_id: str, revision: str) -> Located:
    """Look a repo up in the hub's cache."""
    name = f"{alias_of(repo_id) or repo_id}{f'@{revision}' if revision else ''}"
    repo = find_repo(hub_folder(), repo_id)
    if repo is None:
        return Located(name, None, repo_id)
    if revision:
        commit = repo.find_commit(revision)
        best = None if commit is None else (commit, contents_of(repo.snapshot(commit)))
    else:
        best = repo.best()
    if best is None or best[0] not in repo.commits:
        return Located(name, None, repo_id, repo)
    commit, contents = best
    note, main = "", repo.refs.get("main")
    if not revision and contents.is_complete and main not in (None, commit):
        note = (
            f"{repo_id}: the files of main ({str(main)[:7]}) are not all here, so the older "
            f"{commit[:7]} is used; to get them: localv4 pull {name}"
        )
    return Located(name, repo.snapshot(commit), repo_id, repo, commit, contents, note)


def _user_folder(name: str, path: Path) -> Located:
    """Return a folder without a config.json, which whoever opens it refuses better."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise _no_such(name, path) from None
    except OSError as error:
        raise ModelNotFound(
            f"{name} cannot be opened ({error.strerror}); check the path and who may read it"
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        holds = os.path.isfile(path.parent / CONFIG_NAME)  # noqa: PTH113 (false where it can't be read)
        such = f", {path.parent}" if holds else ""
        raise ModelNotFound(f"{name} is a file; name a checkpoint's folder{such}")
    return Located(name, path)


def _no_such(name: str, path: Path) -> ModelNotFound:
    if page := _PAGE.fullmatch(name):
        return ModelNotFound(f"{name} is a page; name the repo, {page[1]}")
    if path.is_absolute() or "/" in name or name.startswith((".", "~")):
        return ModelNotFound(
            f"there is no folder {name}; check the path, or make a checkpoint to try with: "
            "localv4 synth DIR"
        )
    near = difflib.get_close_matches(name.lower(), [*ALIASES, BUILTIN], 1)
    hint = f"did you mean {near[0]}?" if near else f"give a folder, or one of {', '.join(ALIASES)}"
    return ModelNotFound(f"there is no folder {name}, and no model of that name; {hint}")


def _builtin(say: Callable[[str], None]) -> Path:
    folder = builtin_folder()
    if _is_made(folder):
        return folder
    say("making the built-in model, tiny and with random weights: it shows speed, not sense")
    # Imported where needed: NumPy is not for the path of a name.
    from localv4.synthetic import synthesise

    hint = "let LOCALV4_CACHE_DIR, or cache_dir in config.toml, name another folder"
    try:
        synthesise(folder)
    except OutOfBudget as error:
        raise OutOfBudget(f"{str(error).partition(';')[0]}; free some space, or {hint}") from None
    except InvalidInput as error:
        # Another process may have been first; its model is the same.
        if not _is_made(folder):
            raise InvalidInput(f"{str(error).partition(';')[0]}; {hint}") from None
    return folder


def _is_made(folder: Path) -> bool:
    # A model appears whole or not at all; an empty folder in its place is filled.
    return os.path.isfile(folder / CONFIG_NAME)  # noqa: PTH113 (false where it can't be read)
