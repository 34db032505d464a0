"""Blocks whose lines are shown as they come: code and formulas.

Knows nothing of containers.
"""

import re

from localv4.cli.markdown.highlight import Highlighter
from localv4.cli.markdown.looks import DIM, painted
from localv4.cli.markdown.page import Page
from localv4.cli.markdown.structure import FENCE

__all__ = ["Block", "Fenced", "Formula", "Indented"]


class Block:
    """Lines that are shown as they are.

    Attributes
    ----------
    is_done
        Whether the last line of it was taken.
    ends_empty
        Whether that was an empty one, which is not shown.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self.is_done = False
        self.ends_empty = False

    def take(self, line: str) -> None:
        """Take the next line."""
        raise NotImplementedError


class Fenced(Block):
    """Code between fences, its language shown dim in front."""

    def __init__(self, page: Page, opening: str) -> None:
        super().__init__(page)
        match = FENCE.match(opening)
        assert match is not None
        fence, info = match[1] or match[3], (match[2] or match[4] or "").strip()
        self._indent = len(opening) - len(opening.lstrip(" "))
        self._closing = re.compile(rf"[ \t]*{fence[0]}{{{len(fence)},}}[ \t]*\Z")
        language = info.split(maxsplit=1)[0] if info else ""
        self._code = Highlighter(language.strip("{}.").lower())
        if info:
            page.line(painted(info, DIM))

    def take(self, line: str) -> None:
        """Show a line of code; end at the closing fence."""
        if self._closing.match(line):
            self.is_done = True
            return
        n_spaces = len(line) - len(line.lstrip(" "))
        self._page.line(self._code.line(line[min(n_spaces, self._indent) :]))


class Indented(Block):
    """Code that is only indented; empty lines at its end are none of it."""

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self._n_empty = 0

    def take(self, line: str) -> None:
        """Show a line of code."""
        if not line.strip(" \t"):
            self._n_empty += 1
            self.ends_empty = True
            return
        for _ in range(self._n_empty):
            self._page.line("")
        self._n_empty, self.ends_empty = 0, False
        self._page.line(line[4:] if line.startswith("    ") else line.lstrip("\t"))


class Formula(Block):
    """A formula, up to its end or an empty line, which no formula has."""

    def __init__(self, page: Page, opening: str) -> None:
        super().__init__(page)
        opening = opening.strip(" \t")
        self._closing = "$$" if opening.startswith("$$") else "\\]"
        self.is_done = self._closing in opening[2:]
        self._page.line(opening)

    def take(self, line: str) -> None:
        """Show a line of the formula."""
        self.ends_empty = not line.strip(" \t")
        self.is_done = self.ends_empty or self._closing in line
        if not self.ends_empty:
            self._page.line(line)
