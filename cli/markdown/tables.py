"""Tables: rows are gathered, and shown together when the last one is there.

rich lays them out. Where there are too few columns for that, the rows are shown as they were
written. Knows nothing of what surrounds a table.
"""

import re
from typing import TYPE_CHECKING, Literal

from localv4.cli.markdown.inline import pieces_of
from localv4.cli.markdown.looks import BOLD, Glyphs, painted

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Table", "cells_of"]

_CELL_END = re.compile(r"(?<!\\)((?:\\\\)*)\|")
_LINE_END = re.compile(r"<br\s*/?>", re.IGNORECASE)
_LEAST = 8  # columns that a cell is squeezed to

Align = Literal["left", "center", "right"]


def cells_of(row: str) -> list[str]:
    """Return the cells of a row."""
    row = row.strip(" \t").removeprefix("|")
    *cells, last = _CELL_END.sub("\\1\0", row).split("\0")
    if last.strip(" \t"):
        cells.append(last)
    return [cell.strip(" \t").replace("\\|", "|") for cell in cells]


class Table:
    """The rows of one table.

    Parameters
    ----------
    header
        Its first row; empty where that was shown as text already.
    delimiter
        The row that says how columns are aligned.
    """

    def __init__(self, header: str, delimiter: str) -> None:
        self._sources = [header, delimiter] if header else [delimiter]
        self._header = cells_of(header)
        self._aligns = [_align(cell) for cell in cells_of(delimiter)]
        self._rows: list[list[str]] = []

    def add(self, row: str) -> None:
        """Add a row; cells that have no column go into the last one."""
        self._sources.append(row)
        cells, n_columns = cells_of(row), len(self._aligns)
        if len(cells) > n_columns:
            cells[n_columns - 1 :] = [" | ".join(cells[n_columns - 1 :])]
        self._rows.append(cells + [""] * (n_columns - len(cells)))

    def lines(self, columns: int, glyphs: Glyphs) -> list[str]:
        """Return the lines of the table, with codes, for so many columns."""
        rows = [[_text(cell, "") for cell in row] for row in self._rows]
        header = [_text(cell, BOLD) for cell in self._header]
        widths = [
            max(_width(row[n]) for row in [header or [_text("", "")] * len(self._aligns), *rows])
            for n in range(len(self._aligns))
        ]
        frame = 3 * len(widths) + 1
        if frame + sum(min(width, _LEAST) for width in widths) > columns:
            return [source.strip(" \t") for source in self._sources]
        return self._drawn(header, rows, columns, frame + sum(widths) > columns, glyphs)

    def _drawn(
        self,
        header: "list[Text]",
        rows: "list[list[Text]]",
        columns: int,
        wraps: bool,
        glyphs: Glyphs,
    ) -> list[str]:
        from io import StringIO

        from rich import box, table
        from rich.console import Console

        drawn = table.Table(
            box=getattr(box, glyphs.box),
            show_header=bool(header),
            show_lines=wraps,
            header_style="",
            border_style="dim",
        )
        for n, align in enumerate(self._aligns):
            drawn.add_column(header[n] if header else "", justify=align, overflow="fold")
        for row in rows:
            drawn.add_row(*row)
        console = Console(
            file=StringIO(),
            force_terminal=True,
            color_system="standard",
            no_color=False,
            legacy_windows=False,
            width=columns,
        )
        with console.capture() as captured:
            console.print(drawn)
        return captured.get().rstrip("\n").split("\n")


def _align(delimiter: str) -> Align:
    if delimiter.endswith(":"):
        return "center" if delimiter.startswith(":") else "right"
    return "left"


def _text(cell: str, look: str) -> "Text":
    """Return a cell for rich, which reads codes as we write them."""
    from rich.text import Text

    lines = []
    for source in _LINE_END.split(cell):
        pieces, _ = pieces_of(source, look=look)
        lines.append("".join(painted(text.replace("\n", " "), codes) for text, codes in pieces))
    return Text("\n").join(Text.from_ansi(line) for line in lines)


def _width(text: "Text") -> int:
    from rich.cells import cell_len

    return max(cell_len(line) for line in text.plain.split("\n"))
