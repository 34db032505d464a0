"""Completion text with its control tokens marked, so that one plain-text parser can read it.

A control token becomes one *mark*: a lone surrogate, which no decoded UTF-8 contains. Ordinary
text therefore cannot imitate a control token, whatever it spells, and a mark is never split.
Source: section 7 of the chat encoding specification.
"""

import re
from typing import Final

from localv4.encoding.literals import CONTROL_LITERALS, DSML, ENDTHINK, EOS, USER

_FIRST_MARK: Final = 0xD800
_MARKS: Final = {literal: chr(_FIRST_MARK + i) for i, literal in enumerate(CONTROL_LITERALS)}
_ASCII_DSML: Final = "|DSML|"
_ASCII_DSML_MARK: Final = chr(_FIRST_MARK + len(CONTROL_LITERALS))
_UNKNOWN_MARK: Final = chr(_FIRST_MARK + len(CONTROL_LITERALS) + 1)

ENDTHINK_MARK: Final = _MARKS[ENDTHINK]
END_MARKS: Final = _MARKS[EOS] + _MARKS[USER]
"""A completion ends at EOS; a model that opens the user's turn itself has run on."""
DSML_MARKS: Final = _MARKS[DSML] + _ASCII_DSML_MARK
"""The second one stands for the same tag spelled with ASCII bars, seen in plain text only."""

_PLAIN_MARKS: Final = {**_MARKS, _ASCII_DSML: _ASCII_DSML_MARK}
_LITERAL: Final = re.compile("|".join(map(re.escape, _PLAIN_MARKS)))
_LITERAL_STARTS: Final = frozenset(
    literal[:length] for literal in _PLAIN_MARKS for length in range(1, len(literal))
)
_LONGEST_START: Final = max(map(len, _LITERAL_STARTS))
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_AS_VALUE: Final[dict[int, str | None]] = {
    **{ord(mark): literal for literal, mark in _PLAIN_MARKS.items()},
    ord(_UNKNOWN_MARK): None,
}
_AS_CONTENT: Final[dict[int, str | None]] = {
    **dict.fromkeys(_AS_VALUE),
    ord(_ASCII_DSML_MARK): _ASCII_DSML,
}
_AS_REASONING: Final = {**_AS_CONTENT, ord(_MARKS[DSML]): DSML}


def as_value(marked: str) -> str:
    """Return a tool call's text: control tokens as their literals."""
    return marked.translate(_AS_VALUE)


def as_content(marked: str) -> str:
    """Return answer text: control tokens are left out."""
    return marked.translate(_AS_CONTENT)


def as_reasoning(marked: str) -> str:
    """Return reasoning text: a model may quote DSML there, other control tokens are left out."""
    return marked.translate(_AS_REASONING)


class Marker:
    """Turns fed pieces into marked text.

    Parameters
    ----------
    tagged
        True: only pieces fed with ``control=True`` are control tokens. False: fed text is plain,
        and literals in it are. None: False until the first control piece, True from then on.
    """

    def __init__(self, tagged: bool | None) -> None:
        self._tagged = bool(tagged)
        self._may_switch = tagged is None
        self._held = ""  # plain text only: the start of what may become a literal

    def mark(self, text: str, control: bool) -> str:
        """Return the marked text that this piece completes."""
        if control and self._may_switch:
            self._tagged = True
        if self._tagged:
            before, self._held = self._held, ""
            return before + (
                _MARKS.get(text, _UNKNOWN_MARK) if control else _SURROGATE.sub("\ufffd", text)
            )
        marked = _LITERAL.sub(
            lambda match: _PLAIN_MARKS[match.group()], self._held + _SURROGATE.sub("\ufffd", text)
        )
        tail = marked[-_LONGEST_START:]
        start = next((i for i in range(len(tail)) if tail[i:] in _LITERAL_STARTS), len(tail))
        self._held = tail[start:]
        return marked[: len(marked) - len(self._held)]

    def close(self) -> str:
        """Return what was held back: the text ended before it became a literal."""
        held, self._held = self._held, ""
        return held
