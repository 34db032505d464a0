"""What a command looks at that needs no weights: a folder, a config.json, or a release's config."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localv4.errors import ModelNotFound
from localv4.models import Located, locate, resolve

if TYPE_CHECKING:
    from localv4.config import ModelConfig

__all__ = ["Subject", "find_subject"]


@dataclass(frozen=True)
class Subject:
    """What to look at.

    Attributes
    ----------
    path
        A folder with a config.json, or a config.json; None for a model that is not here.
    located
        Where it is; None for a config.json.
    config
        Of a model that is not here.
    """

    path: Path | None
    located: Located | None = None
    config: "ModelConfig | None" = None

    @property
    def title(self) -> str:
        """What to call it."""
        if self.path is None:
            name = None if self.located is None else self.located.name
            return f"{name}, not downloaded: from the released config"
        if self.located is None or (self.located.repo_id is None and not self.located.is_builtin):
            return str(self.path)
        return self.located.name


def find_subject(name: str | None, say: Callable[[str], None]) -> Subject:
    """Find what to look at; the built-in model is made if need be.

    Raises
    ------
    ModelNotFound
        There is no such model, or nothing is known of it before it is downloaded.
    InvalidInput, OutOfBudget
        The built-in model can't be made.
    """
    file = Path(os.path.expanduser(name or ""))  # noqa: PTH111 (never fails)
    if file.suffix == ".json" and os.path.isfile(file):  # noqa: PTH113 (never fails)
        return Subject(file)
    located = locate(name)
    if located.is_builtin:
        folder = resolve(None, say)
        return Subject(folder, replace(located, folder=folder))
    if located.note:
        say(located.note)
    if located.folder is not None and (located.repo_id is None or _has_config(located.folder)):
        return Subject(located.folder, located)
    # Imported here: most models are there.
    from localv4.releases import released_config

    config = released_config(located.repo_id or "")
    if config is None:
        raise ModelNotFound(f"{located.absence} (--dry-run only asks the hub for its sizes)")
    return Subject(None, located, config)


def _has_config(folder: Path) -> bool:
    return os.path.isfile(folder / "config.json")  # noqa: PTH113 (false where it can't be read)
