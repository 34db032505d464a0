"""Short names of the released checkpoints, and the thinking that some of them imply.

``deepseek-chat`` and ``deepseek-reasoner`` are the names under which DeepSeek's API serves the
non-thinking and the thinking mode of Flash. Knows nothing of what is on this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["ALIASES", "Alias", "alias_of", "find_alias"]


@dataclass(frozen=True)
class Alias:
    """What a short name stands for.

    Attributes
    ----------
    repo_id
        The hub's name, ``owner/name``.
    think
        Thinking effort that the name implies; None for the checkpoint's own default.
    """

    repo_id: str
    think: Literal["off", "high"] | None = None


_OWNER = "deepseek-ai"
_FLASH, _PRO = f"{_OWNER}/DeepSeek-V4-Flash", f"{_OWNER}/DeepSeek-V4-Pro"

# The first name of a repo is the one that listings show.
ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "flash": Alias(_FLASH),
        "pro": Alias(_PRO),
        "flash-base": Alias(f"{_FLASH}-Base"),
        "pro-base": Alias(f"{_PRO}-Base"),
        "flash-0731": Alias(f"{_FLASH}-0731"),
        "pro-0813": Alias(f"{_PRO}-0813"),
        "deepseek-v4-flash": Alias(_FLASH),
        "deepseek-v4-pro": Alias(_PRO),
        "deepseek-chat": Alias(_FLASH, think="off"),
        "deepseek-reasoner": Alias(_FLASH, think="high"),
    }
)


def find_alias(name: str) -> Alias | None:
    """Return what a short name stands for, in any case of letters; None if it is none."""
    return ALIASES.get(name.lower())


def alias_of(repo_id: str) -> str | None:
    """Return the first short name of a repo, or None."""
    return next((name for name, alias in ALIASES.items() if alias.repo_id == repo_id), None)
