"""The Hugging Face hub: the only file that knows its library.

Imports it where needed: a model's name is looked up at every start, and the library's whole would
take half a second.
"""

from pathlib import Path

__all__ = ["cache_folder", "is_offline"]


def cache_folder() -> Path:
    """Return the hub's folder for downloads, as ``HF_HOME`` and its like say."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids asking the hub."""
    from huggingface_hub import constants

    return constants.is_offline_mode()
