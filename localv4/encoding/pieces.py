"""A prompt as pieces: which of its characters are control tokens, and which are ordinary text.

Knows the control literals and nothing of messages. Source: section 5 of the chat encoding
specification (tokenise template parts and message parts apart).
"""

import re
from typing import Final, NamedTuple

from localv4.encoding.literals import CONTROL_LITERALS
from localv4.errors import FormatError

_CONTROL: Final = re.compile("(" + "|".join(map(re.escape, CONTROL_LITERALS)) + ")")


class Piece(NamedTuple):
    """A stretch of a prompt.

    ``control`` True: exactly one control token's literal. False: ordinary text, never to be
    matched against control tokens.
    """

    text: str
    control: bool


class PieceWriter:
    """Collects pieces, merging ordinary text."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._ordinary: list[str] = []

    def text(self, text: str) -> None:
        """Write a caller's text."""
        self._ordinary.append(text)

    def template(self, text: str) -> None:
        """Write the format's own text; the control literals in it are control tokens."""
        for index, part in enumerate(_CONTROL.split(text)):
            if index % 2:
                self._flush()
                self._pieces.append(Piece(part, True))
            else:
                self._ordinary.append(part)

    def pieces(self) -> list[Piece]:
        """Return all pieces written.

        Raises
        ------
        FormatError
            Here or earlier, if a text holds a lone surrogate.
        """
        self._flush()
        return self._pieces

    def _flush(self) -> None:
        text = "".join(self._ordinary)
        self._ordinary = []
        if not text:
            return
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise FormatError(
                f"the text holds the lone surrogate U+{ord(text[error.start]):04X}, which is no "
                "character; remove it"
            ) from None
        self._pieces.append(Piece(text, False))
