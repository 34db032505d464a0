"""From the name of a model to its folder.

A name is a folder, or nothing: then it is the built-in model, random weights in the real format,
made on first use in the cache folder. Downloads are not known here yet.
"""

from collections.abc import Callable
from pathlib import Path

from localv4.errors import InvalidInput, ModelNotFound
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
        If there is no such folder.
    """
    if name is None:
        return _builtin(say)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
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
    if folder.is_dir():
        return folder
    say("making the built-in model, tiny and with random weights: it shows speed, not sense")
    # Imported where needed: NumPy is not for the path of a name.
    from localv4.synthetic import synthesise

    try:
        synthesise(folder)
    except InvalidInput:
        # Another process was first; its model is the same.
        if not folder.is_dir():
            raise
    return folder
