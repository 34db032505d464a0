"""A stream of Markdown: from pieces of any size to a terminal.

Text is taken apart where words may end, whatever pieces it comes in, so that the pieces change
nothing. A line's structure is decided as early as it can be: words of a paragraph flow at once,
all else waits for the end of the line, a table for the end of the table.
"""

import re
from collections.abc import Callable
from typing import ClassVar

from localv4.cli.markdown.blocks import Block, Fenced, Formula, Indented
from localv4.cli.markdown.frames import Frames
from localv4.cli.markdown.looks import DIM, HEADINGS, glyphs, painted
from localv4.cli.markdown.page import CJK, Page
from localv4.cli.markdown.prose import Prose
from localv4.cli.markdown.structure import Kind, Place, Quote, descend, place
from localv4.cli.markdown.tables import Table, cells_of

__all__ = ["MarkdownStream"]

# Up to where a word may end, or has become too long to wait for.
_LONGEST = 512
_WORD_END = re.compile(rf"[ \t\n{CJK}]")
_LONGEST_UNDECIDED = 100  # characters in front of the text of a line
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]*(.*?)(?:[ \t]+#+)?[ \t]*\Z")


class MarkdownStream:
    """An answer, written as rendered Markdown while it comes; nothing is ever redrawn.

    Parameters
    ----------
    write
        Takes text with colour codes for the terminal, and sends it on. Each call ends with all
        colours off.
    columns
        The terminal's width; asked at each line.
    unicode
        Else bullets, rules and borders are ASCII.
    """

    def __init__(
        self, write: Callable[[str], None], columns: Callable[[], int], unicode: bool = True
    ) -> None:
        self._glyphs = glyphs(unicode)
        self._frames = Frames(self._glyphs)
        self._page = Page(write, columns, self._frames.prefix)
        self._rest = ""  # of the text, up to where a word may end
        self._head: list[str] = []  # of a line whose structure is not decided
        self._waits = False  # for the end of that line
        self._flows = False  # the line is text, which goes on
        self._prose: Prose | None = None
        self._block: Block | None = None
        self._table: Table | None = None
        self._row: str | None = None  # perhaps a table's header
        self._gap = False  # an empty line is due

    def feed(self, text: str) -> None:
        """Take the next piece of the answer.

        What is decided is written before this returns, at once if it is several words.
        """
        text, start = self._rest + text, 0
        while True:
            match = _WORD_END.search(text, start, start + _LONGEST)
            end = start + _LONGEST if match is None else match.end()
            if end > len(text):
                break
            self._unit(text[start:end])
            start = end
        self._rest = text[start:]
        self._page.flush()

    def close(self) -> None:
        """Write what is held back, and end the line."""
        if self._rest:
            self._unit(self._rest)
            self._rest = ""
        if self._head:
            self._line("".join(self._head))
            self._head.clear()
        self._end_leaf()
        self._cut(0)
        self._flows = self._waits = False
        self._page.flush()

    def _unit(self, unit: str) -> None:
        """Take a word, or what stands for one, with what follows it."""
        ends = unit.endswith("\n")
        if self._flows:
            assert self._prose is not None
            self._prose.take(unit)
            self._flows = not ends
            return
        self._head.append(unit)
        if ends:
            line = "".join(self._head)[:-1]
            self._head.clear()
            self._waits = False
            self._line(line)
        elif not (self._waits or self._waits_for_lines()):
            head = "".join(self._head)
            found = place(head, self._frames.containers, self._prose is not None, False)
            self._waits = found is None and len(head) > _LONGEST_UNDECIDED
            if found is not None:
                self._head.clear()
                self._text(found, found.rest)
                self._flows = True

    def _waits_for_lines(self) -> bool:
        """Return whether what is open takes nothing but whole lines."""
        in_block = self._block is not None and not isinstance(self._block, Indented)
        return in_block or self._table is not None or self._row is not None

    def _line(self, line: str) -> None:
        """Take a whole line."""
        if self._block is not None and self._in_block(line):
            return
        after_text = self._prose is not None or self._row is not None
        found = place(line, self._frames.containers, after_text, True)
        assert found is not None
        if self._goes_on_in_table(found):
            return
        self._starts[found.kind](self, found)

    def _in_block(self, line: str) -> bool:
        """Give a line to the open block, if it is in it."""
        assert self._block is not None
        containers = self._frames.containers
        n_matched, rest, _ = descend(line, containers)
        is_in = n_matched == len(containers)
        if isinstance(self._block, Indented):
            is_in = is_in and (rest.startswith(("    ", "\t")) or not rest.strip(" \t"))
        elif not is_in:  # models forget the indentation of code in an item
            is_in = not isinstance(containers[n_matched], Quote)
        if is_in:
            self._block.take(rest)
        if not is_in or self._block.is_done:
            self._end_leaf()
        return is_in

    def _goes_on_in_table(self, found: Place) -> bool:
        """Take a line as a row, or as what makes a table of the row before it."""
        inside = found.n_matched == len(self._frames.containers) and not found.opened
        if self._table is not None and inside and "|" in found.rest:
            self._table.add(found.rest)
            return True
        if self._row is None:
            return False
        row, self._row = self._row, None
        if inside and found.kind == "delimiter" and _same_width(row, found.rest):
            self._table = Table(row, found.rest)
            return True
        self._prose = Prose(self._page)
        self._prose.take(f"{row.strip()}\n")
        return False

    def _text(self, found: Place, text: str) -> None:
        """Begin or continue a paragraph."""
        if self._prose is None or found.opened:
            self._begin(found)
            self._prose = Prose(self._page)
        self._prose.take(text.lstrip(" \t"))

    def _text_line(self, found: Place) -> None:
        self._text(found, f"{found.rest}\n")

    def _blank(self, found: Place) -> None:
        if found.opened:  # an empty item, or an empty line in a quote
            self._begin(found)
            return
        self._end_leaf()
        if any(isinstance(kind, Quote) for kind in self._frames.containers[found.n_matched :]):
            self._cut(found.n_matched)
        self._gap = True

    def _heading(self, found: Place) -> None:
        self._begin(found, apart=True)
        match = _HEADING.match(found.rest)
        assert match is not None
        heading = Prose(self._page, HEADINGS[len(match[1]) - 1])
        heading.take(match[2])
        heading.end()

    def _fence(self, found: Place) -> None:
        self._begin(found)
        self._block = Fenced(self._page, found.rest)

    def _code(self, found: Place) -> None:
        self._begin(found)
        self._block = Indented(self._page)
        self._block.take(found.rest)

    def _formula(self, found: Place) -> None:
        self._begin(found)
        formula = Formula(self._page, found.rest)
        self._block = None if formula.is_done else formula

    def _rule(self, found: Place) -> None:
        self._begin(found)
        self._draw(self._glyphs.rule)

    def _underline(self, found: Place) -> None:
        """Draw the line that makes a heading of the text above it, which is written already."""
        self._end_leaf()
        self._draw(self._glyphs.double_rule if "=" in found.rest else self._glyphs.rule)

    def _draw(self, glyph: str) -> None:
        self._page.line(painted(glyph * self._room, DIM))

    def _header(self, found: Place) -> None:
        self._begin(found)
        self._row = found.rest

    def _delimiter(self, found: Place) -> None:
        """Begin a table whose header is written as text already."""
        self._end_leaf()
        self._table = Table("", found.rest)

    _starts: ClassVar[dict[Kind, Callable[["MarkdownStream", Place], None]]] = {
        "blank": _blank,
        "text": _text_line,
        "heading": _heading,
        "fence": _fence,
        "code": _code,
        "math": _formula,
        "rule": _rule,
        "underline": _underline,
        "row": _header,
        "delimiter": _delimiter,
    }

    def _begin(self, found: Place, apart: bool = False) -> None:
        """End what was open, and make room for a block."""
        self._end_leaf()
        self._cut(found.n_matched)
        if (self._gap or apart) and self._page.begun:
            self._page.bare_line(self._frames.bars())
        self._gap = False
        for container in found.opened:
            self._frames.open(container)

    def _cut(self, n_open: int) -> None:
        """Close containers; one that is still empty is shown before."""
        if self._frames.has_unshown(n_open):
            self._page.line("")
        self._frames.cut(n_open)

    def _end_leaf(self) -> None:
        """End the open paragraph, block or table."""
        if self._row is not None:
            row, self._row = self._row, None
            self._prose = Prose(self._page)
            self._prose.take(row.strip())
        if self._prose is not None:
            self._prose.end()
            self._prose = None
        if self._table is not None:
            table, self._table = self._table, None
            for line in table.lines(self._room, self._glyphs):
                self._page.line(line)
        if self._block is not None:
            self._gap = self._block.ends_empty
            self._block = None

    @property
    def _room(self) -> int:
        """Columns behind the prefix."""
        columns = self._page.columns
        return columns - self._frames.width(columns)


def _same_width(row: str, delimiter: str) -> bool:
    return len(cells_of(row)) == len(cells_of(delimiter))
