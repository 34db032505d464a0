"""The page: lines and words, put on a terminal one after the other.

A word is written when the next one begins, or the line ends: then it is known where it fits. One
that is longer than a line begins a line and is left to the terminal, which wraps it without
breaking it for those who copy it. The terminal's width is asked for at each line. Every piece
switches its own look off again, so that what comes in between, or ends it all, is plain. Knows
nothing of Markdown.
"""

import re
from collections.abc import Callable

from localv4.cli.markdown.looks import CODE, painted

__all__ = ["CJK", "Page", "is_cjk"]

# Scripts without spaces: a line may end between any two of these characters.
CJK = (
    "\u2e80-\u303e\u3041-\u3130\u3190-\u4dbf\u4e00-\ua4cf\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff60"
    "\uffe0-\uffe6\U00020000-\U0003fffd"
)
# ... but not before the first of these sets, nor behind the second.
_CLOSING = frozenset(
    ".,;:!?)]}%\u2019\u201d\u2026\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff1f\uff01\uff09\uff3d"
    "\uff5d\u300d\u300f\u3011\u300b\u3009\u3015\u30fc\u301c\uff05"
)
_OPENING = frozenset("([{\u2018\u201c\uff08\uff3b\uff5b\u300c\u300e\u3010\u300a\u3008\u3014")
_ATOM = re.compile(rf"([ \t]+|\n|[{CJK}])")

Prefix = Callable[[int], tuple[str, int]]


def is_cjk(character: str) -> bool:
    """Return whether a character belongs to a script without spaces."""
    return character >= CJK[0] and _ATOM.match(character) is not None


class Page:
    """What is written so far, as far as the next word needs to know.

    Parameters
    ----------
    write
        Takes text with codes, for the terminal.
    columns
        The terminal's width now.
    prefix
        What the next line begins with, and its width, on so many columns.
    """

    def __init__(
        self, write: Callable[[str], None], columns: Callable[[], int], prefix: Prefix
    ) -> None:
        self._write = write
        self._ask_columns = columns
        self._prefix = prefix
        self.begun = False
        self._out: list[str] = []
        self._columns = 1
        self._column: int | None = None  # None between lines
        self._left = 0
        self._gap = ("", "")  # before the word: spaces, or a line end
        self._word: list[tuple[str, str]] = []
        self._word_width = 0
        self._overlong = False

    @property
    def columns(self) -> int:
        """The terminal's width now."""
        return max(1, self._ask_columns())

    def put(self, text: str, codes: str = "") -> None:
        """Add running text; a line end in it ends the line."""
        from rich.cells import cell_len

        for atom in filter(None, _ATOM.split(text)):
            if atom[0] in " \t\n":
                self._end_word()
                if atom == "\n":
                    self._gap = ("\n", "")
                elif not self._gap[0]:
                    self._gap = (atom if CODE in codes.split(";") else " ", codes)
                continue
            if self._word and self._may_part(self._word[-1][0][-1], atom[0]):
                self._end_word()
            self._word.append((atom, codes))
            self._word_width += cell_len(atom)
            if self._word_width > self._columns and self._column is not None:
                self._place_word()
                self._overlong = True

    def end(self) -> None:
        """End the running text and its line."""
        self._end_word()
        self._gap = ("", "")
        self._end_line()

    def line(self, text: str) -> None:
        """Write a line as it is, behind the prefix."""
        self.end()
        self._begin_line()
        if text:
            self._out.append(text)
        else:
            self._out[-1] = self._out[-1].rstrip(" ")
        self._end_line()

    def bare_line(self, text: str) -> None:
        """Write a line without the prefix."""
        self.end()
        self._out.append(f"{text}\n")
        self.begun = True

    def flush(self) -> None:
        """Send on what is complete."""
        if self._out:
            text = "".join(self._out)
            self._out.clear()
            self._write(text)

    @staticmethod
    def _may_part(before: str, after: str) -> bool:
        if not (is_cjk(before) or is_cjk(after)):
            return False
        from rich.cells import cell_len

        return after not in _CLOSING and before not in _OPENING and cell_len(after) > 0

    def _end_word(self) -> None:
        if self._word:
            self._place_word()
        self._overlong = False

    def _place_word(self) -> None:
        """Write the word where it fits; behind its own beginning if that is written already."""
        gap, codes = self._gap
        if self._column is None:
            gap = ""
            self._begin_line()
        elif not self._overlong:
            start = self._column + len(gap)
            if gap == "\n" or (
                start + self._word_width > self._columns and self._column > self._left
            ):
                gap = ""
                self._end_line()
                self._begin_line()
        pieces = [(gap, codes), *self._word]
        self._write_pieces(pieces)
        assert self._column is not None
        self._column += len(gap) + self._word_width
        if self._column > self._columns:  # the terminal has wrapped it
            self._column = (self._column - 1) % self._columns + 1
        self._gap, self._word_width = ("", ""), 0
        self._word.clear()

    def _write_pieces(self, pieces: list[tuple[str, str]]) -> None:
        """Write neighbours that look the same as one."""
        joined, look = "", ""
        for text, codes in pieces:
            if codes != look:
                self._out.append(painted(joined, look))
                joined, look = "", codes
            joined += text
        self._out.append(painted(joined, look))

    def _begin_line(self) -> None:
        self._columns = self.columns
        prefix, self._left = self._prefix(self._columns)
        self._out.append(prefix)
        self._column = self._left
        self.begun = True

    def _end_line(self) -> None:
        if self._column is not None:
            self._out.append("\n")
            self._column = None
