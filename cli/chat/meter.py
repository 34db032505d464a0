"""How full the context is, as it stands before the prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localv4.session import Session

__all__ = ["meter", "short_count"]

_UNITS = ((10**6, 2**20, "M"), (10**3, 2**10, "k"))


def meter(
    session: "Session | None", attached: Sequence[tuple[str, str]], is_begun: bool = True
) -> str:
    """Return tokens held and tokens that fit, and the files that wait for the next message.

    Of a conversation that has not begun nothing is held; the session may still hold another one.
    """
    parts = []
    if session is not None:
        position = session.position if is_begun else 0
        parts.append(f"{short_count(position)} of {short_count(session.context)}")
    parts += [f"+{name}" for name, _ in attached]
    return " ".join(parts)


def short_count(count: int) -> str:
    """Return a number of tokens in a few characters: 950, 4.1k, 128k, 1M."""
    for decimal, binary, letter in _UNITS:
        if count >= decimal:
            if count % binary == 0:
                return f"{count // binary}{letter}"
            value = count / decimal
            return f"{value:.1f}{letter}" if value < 100 else f"{value:.0f}{letter}"
    return str(count)
