"""Names that the shell's Tab key completes: of models, and of saved sessions.

What can't be read has no names: a completion says nothing but names.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from localv4.aliases import ALIASES
from localv4.hub import cache_folder
from localv4.hub_cache import cached_repos
from localv4.settings import load_settings

__all__ = ["complete_model", "complete_repo", "complete_session", "complete_setting"]

_MOST_FOLDERS = 1000
# Shells evaluate what a completion says; a folder's name is whatever its maker chose.
_HARMLESS = re.compile(r"[\w.,@+~/-]+")


def complete_model(incomplete: str) -> list[str]:
    """Return short names, repos in the hub's cache, and checkpoints' folders."""
    return [*complete_repo(incomplete), *_folders(incomplete)]


def complete_repo(incomplete: str) -> list[str]:
    """Return short names, and repos in the hub's cache."""
    names = [*ALIASES, *(repo.repo_id for repo in cached_repos(cache_folder()))]
    return [name for name in names if name.startswith(incomplete)]


def complete_session(incomplete: str) -> list[str]:
    """Return names of saved sessions."""
    from localv4.session_store import SessionStore

    settings = load_settings()
    if settings.sessions_dir is None:
        return []
    found = SessionStore(settings.sessions_dir, settings.session_limit).sessions()
    return [session.name for session in found if session.name.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Return names of settings."""
    from localv4.setting_values import SETTING_NAMES

    return [name for name in SETTING_NAMES if name.startswith(incomplete)]


def _folders(incomplete: str) -> Iterator[str]:
    """Yield folders with a config.json that a beginning of a path may mean."""
    before, slash, _ = incomplete.rpartition("/")
    start = Path(os.path.expanduser(before + slash) or ".")  # noqa: PTH111 (never fails)
    with contextlib.suppress(OSError):
        for folder in islice(start.iterdir(), _MOST_FOLDERS):
            name = f"{before}{slash}{folder.name}"
            if not (name.startswith(incomplete) and _HARMLESS.fullmatch(name)):
                continue
            if os.path.isfile(folder / "config.json"):  # noqa: PTH113
                yield name
