"""From the name of a model to its folder.

A name is a folder, or nothing: then it is the built-in model, random weights in the real format,
made on first use in the cache folder. Downloads are not known here yet.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from localv4.errors import InvalidInput, ModelNotFound, OutOfBudget
from localv4.settings import cache_folder

__all__ = ["builtin_folder", "resolve"]

# Part of the folder's name: raised when the recipe below changes, so that nobody keeps an old one.
_BUILTIN_RECIPE = 1


def resolve(name: str | None, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of a model.

    Parameters
    ----------
    name
        A folder, or None for the built-in model.
    say
        Told in one sentence when the built-in model must be made first.

    Raises
    ------
    ModelNotFound
        If there is no such folder, or it can't be read.
    InvalidInput, OutOfBudget
        If the built-in model can't be written to the cache folder.
    """
    if name is None:
        return _builtin(say)
    if not name:
        raise ModelNotFound("the name of the model is empty; name a checkpoint's folder")
    # Not Path.expanduser: of an unknown user it makes a RuntimeError.
    path = Path(os.path.expanduser(name))  # noqa: PTH111
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        found = None
    except OSError as error:
        raise ModelNotFound(
            f"{name} cannot be opened ({error.strerror}); check the path and who may read it"
        ) from None
    if found is not None:
        if stat.S_ISDIR(found.st_mode):
            return path
        raise ModelNotFound(f"{name} is a file; name the checkpoint's folder, {path.parent}")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelNotFound(
            f"there is no folder {name}; check the path, or make a checkpoint to try with: "
            "localv4 synth DIR"
        )
    raise ModelNotFound(
        f"there is no folder {name}, and localv4 cannot download models by name yet; "
        "download the checkpoint yourself and name its folder"
    )


def builtin_folder() -> Path:
    """Return where the built-in model is, or will be."""
    return cache_folder() / "models" / f"builtin-{_BUILTIN_RECIPE}"


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
    return os.path.isfile(folder / "config.json")  # noqa: PTH113 (false where it can't be read)
