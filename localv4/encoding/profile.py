"""The two prompt profiles: how a checkpoint asks for reasoning effort.

The April 2026 releases (``preview``) and the later ones (``official``) share every rule of the
chat format but this one. Source: section 0 of the chat encoding specification.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from localv4.encoding.literals import EFFORT_RELENTLESS, EFFORT_THOROUGH
from localv4.errors import FormatError, InvalidInput

if TYPE_CHECKING:
    from localv4.config import ModelConfig

Profile = Literal["preview", "official"]
ThinkingMode = Literal["chat", "thinking"]

_EFFORT_PREFIXES: Final[dict[str, dict[str | None, str]]] = {
    "preview": {None: "", "high": "", "max": EFFORT_THOROUGH},
    "official": {None: "", "low": "", "high": EFFORT_THOROUGH, "max": EFFORT_RELENTLESS},
}

_ENCODER_FILE: Final = Path("encoding", "encoding_dsv4.py")
_ENCODER_MAX_BYTES: Final = 1 << 20
_OFFICIAL_PROMPTS: Final = re.compile(r"^REASONING_EFFORT_PROMPTS\b", re.MULTILINE)
_OFFICIAL_DEFAULT: Final = re.compile(
    r"""^DEFAULT_REASONING_EFFORT\b[^=\n]*=\s*["']low["']""", re.MULTILINE
)
_PREVIEW_PROMPT: Final = re.compile(r"^REASONING_EFFORT_MAX\b", re.MULTILINE)


def effort_prefix(reasoning_effort: str | None, profile: str) -> str:
    """Return the text that asks for an effort in thinking mode, ``""`` where there is none.

    Raises
    ------
    FormatError
        If the profile is unknown, or has no such effort.
    """
    if profile not in list(_EFFORT_PREFIXES):
        raise FormatError(f"unknown profile {profile!r}; use 'preview' or 'official'")
    prefixes = _EFFORT_PREFIXES[profile]
    if reasoning_effort not in list(prefixes):
        known = ", ".join(repr(effort) for effort in prefixes)
        raise FormatError(
            f"the {profile} profile has no reasoning_effort {reasoning_effort!r}; "
            f"use one of {known}"
        )
    return prefixes[reasoning_effort]


def thinking_levels(profile: Profile) -> tuple[str, ...]:
    """Return the thinking levels a user can choose with a profile, weakest first."""
    efforts = (effort for effort in _EFFORT_PREFIXES[profile] if effort is not None)
    return ("off", *efforts)


def thinking_arguments(level: str, profile: Profile) -> tuple[ThinkingMode, str | None]:
    """Turn a user's thinking level into ``(thinking_mode, reasoning_effort)`` for the encoder.

    Raises
    ------
    InvalidInput
        If the profile has no such level.
    """
    levels = thinking_levels(profile)
    if level not in levels:
        raise InvalidInput(
            f"this checkpoint's {profile} profile has no thinking level {level!r}; "
            f"use one of {', '.join(levels)}"
        )
    return ("chat", None) if level == "off" else ("thinking", level)


def detect_profile(folder: Path, config: "ModelConfig") -> Profile:
    """Tell a checkpoint's profile from the encoder it ships, else from its config.

    The shipped encoder is read as text, at most 1 MiB of it, and never run. Parsing it as Python
    would gain nothing: a hostile file can crash the parser, and three names decide.

    Parameters
    ----------
    folder
        The checkpoint's folder; ``encoding/encoding_dsv4.py`` in it may be missing.
    config
        Its configuration; a DSpark config without a telling encoder means ``official``.
    """
    source = _shipped_encoder(folder)
    if _OFFICIAL_PROMPTS.search(source) and _OFFICIAL_DEFAULT.search(source):
        return "official"
    if _PREVIEW_PROMPT.search(source):
        return "preview"
    return "official" if config.is_dspark else "preview"


def _shipped_encoder(folder: Path) -> str:
    path = folder / _ENCODER_FILE
    try:
        if not path.is_file():  # also keeps us from blocking on a pipe or a device
            return ""
        with path.open("rb") as stream:
            return stream.read(_ENCODER_MAX_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):  # an unreadable hint is no hint
        return ""
