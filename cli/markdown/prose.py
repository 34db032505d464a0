"""Running text: held back while its markup is not decided, and no longer.

Knows nothing of blocks.
"""

from localv4.cli.markdown.inline import pieces_of
from localv4.cli.markdown.page import Page

__all__ = ["Prose"]

_LONGEST_HELD = 200  # characters; markup that is not closed by then is none
_MARKS = frozenset("`*_~])$\\")  # one of these closes whatever is open


class Prose:
    """The text of one paragraph, heading or list item.

    Parameters
    ----------
    page
        Where it is written.
    look
        The codes of all of it.
    """

    def __init__(self, page: Page, look: str = "") -> None:
        self._page = page
        self._look = look
        self._held = ""
        self._is_open = False
        self._before = " "  # the character in front of what is held
        self._line_tail = ""

    def take(self, text: str) -> None:
        """Add text that ends where a word may end; a line end is a part of it."""
        self._held += text
        self._line_tail = (self._line_tail + text)[-3:]
        if self._line_tail == "  \n":
            self._held = self._held.rstrip(" \n") + "\\\n"
        if self._is_open and _MARKS.isdisjoint(text) and len(self._held) < _LONGEST_HELD:
            return
        self._release(len(self._held) >= _LONGEST_HELD)

    def end(self) -> None:
        """Write what is held, and end the line."""
        self._held = self._held.removesuffix("\\\n").rstrip(" \n")
        self._release(True)
        self._page.end()

    def _release(self, whatever: bool) -> None:
        if not self._held:
            return
        pieces, self._is_open = pieces_of(self._held, self._before, self._look)
        if self._is_open and not whatever:
            return
        for text, codes in pieces:
            self._page.put(text, codes)
        self._before = self._held[-1]
        self._held, self._is_open = "", False
