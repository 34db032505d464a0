"""What a line is: which quotes and list items it is in, and what begins in it.

CommonMark's rules, and a few that are kinder to what models write: two columns of indentation are
enough to belong to a list item, code in an item may lie anywhere, and formulas have blocks of
their own. A line that is not complete yet is text, or not decided. Knows nothing of what lines
look like.
"""

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["FENCE", "Item", "Kind", "Place", "Quote", "descend", "place"]

_DEEPEST = 8  # quotes and items in each other; more is text
_TAB = 4
_CODE_INDENT = 4

Kind = Literal[
    "blank",
    "text",
    "heading",
    "fence",
    "rule",
    "underline",
    "delimiter",
    "row",
    "math",
    "code",
]


@dataclass(frozen=True)
class Quote:
    """A block quote."""


@dataclass(frozen=True)
class Item:
    """A list item.

    Attributes
    ----------
    marker
        As it stands in the source.
    indent, content
        The columns of the marker and of what follows it, in what surrounds the item.
    ticked
        Of a task; None for other items.
    """

    marker: str
    indent: int
    content: int
    ticked: bool | None = None


Container = Quote | Item


@dataclass(frozen=True)
class Place:
    """A line, taken apart.

    Attributes
    ----------
    n_matched
        How many of the open containers it is in.
    opened
        Containers that begin in it.
    rest
        What is left.
    kind
        What that is.
    """

    n_matched: int
    opened: tuple[Container, ...]
    rest: str
    kind: Kind


_QUOTE = re.compile(r" {0,3}>[ \t]?")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])(?:([ \t]+)|\Z)")
_TASK = re.compile(r"\[([ xX])\][ \t]+(?=\S)")
FENCE = re.compile(r"[ \t]*(?:(`{3,})([^`]*)|(~{3,})(.*))\Z")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|\Z)")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}\Z")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*\Z")
_DELIMITER = re.compile(r"[ \t]*(?=.*\|)\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*\Z")
_MATH = re.compile(
    r"[ \t]*(?:\$\$(?:(?!\$\$).)*(?:\$\$[ \t]*)?|\\\[(?:(?!\\\]).)*(?:\\\][ \t]*)?)\Z"
)
# Beginnings that no block but a paragraph has.
_SURELY_TEXT = re.compile(
    r"""[ \t]*(?:
    [^\s#`~|$\\>\-*+_=:\d\[]
    | \d{1,9}(?:[^\d.)]|[.)][^ \t]) | \d{10}
    | \#{1,6}[^#\s] | \#{7}
    | `{1,2}[^`] | ~{1,2}[^~]
    | \$[^$] | \\[^\[]
    | [-*+_=:]+[^-*+_=:|\s]
    | \[(?:[^ xX] | [ xX](?:[^\]] | \][^ \t]))
    )""",
    re.VERBOSE,
)


def descend(line: str, containers: list[Container]) -> tuple[int, str, int]:
    """Return how many of the containers a line is in, the rest of it, and what it lacks.

    The last is how many columns it is indented less than CommonMark wants.
    """
    lacks = 0
    for n, container in enumerate(containers):
        if isinstance(container, Quote):
            marker = _QUOTE.match(line)
            if marker is None:
                return n, line, lacks
            line, lacks = line[marker.end() :], 0
        elif line.strip(" \t"):
            indent = _indent(line)
            if indent - lacks < min(container.content, container.indent + 2):
                return n, line, lacks
            lacks = max(0, container.content + lacks - indent)
            line = _dedent(line, container.content)
    return len(containers), line, lacks


def place(line: str, containers: list[Container], after_text: bool, complete: bool) -> Place | None:
    """Take a line apart.

    Parameters
    ----------
    line
        Without its end.
    containers
        What is open, outermost first.
    after_text
        Whether a paragraph is open, which the line could continue.
    complete
        Else there is more of it to come.

    Returns
    -------
    Place
        None if that depends on what is to come.
    """
    n_matched, rest, lacks = descend(line, containers)
    inside = list(containers[:n_matched])
    goes_on = after_text and n_matched == len(containers)
    while len(inside) < _DEEPEST:
        opened = _opened(rest, inside, goes_on, lacks)
        if opened is None:
            break
        container, rest = opened
        lacks = 0
        inside.append(container)
        goes_on = after_text = False
    in_item = any(isinstance(container, Item) for container in inside)
    kind: Kind | None
    if complete:
        kind = _kind(rest, after_text, goes_on, in_item)
    else:
        is_code = _indent(rest) >= _CODE_INDENT and not after_text
        kind = "text" if _SURELY_TEXT.match(rest) and not is_code else None
    return None if kind is None else Place(n_matched, tuple(inside[n_matched:]), rest, kind)


def _opened(
    rest: str, inside: list[Container], goes_on: bool, lacks: int
) -> tuple[Container, str] | None:
    """Return the container that begins here, and what it holds."""
    quote = _QUOTE.match(rest)
    if quote is not None:
        return Quote(), rest[quote.end() :]
    item = _ITEM.match(rest)
    if item is None or _RULE.match(rest):
        return None
    indent, marker, spaces = _indent(rest), item[2], item[3]
    in_item = bool(inside) and isinstance(inside[-1], Item)
    if indent >= _CODE_INDENT and not (in_item and goes_on):
        return None
    held = rest[item.end() :]
    if goes_on and (not held or (marker[0].isdigit() and marker[:-1] != "1")):
        return None
    width = _indent(spaces or " ")
    if width > _CODE_INDENT:  # code begins behind one space
        held, width = " " * (width - 1) + held, 1
    task = _TASK.match(held)
    ticked = None if task is None else task[1] != " "
    if task is not None:
        held = held[task.end() :]
    indent -= lacks
    return Item(marker, indent, indent + len(marker) + width, ticked), held


def _kind(rest: str, after_text: bool, goes_on: bool, in_item: bool) -> Kind:
    """Return what a complete line is, behind its containers."""
    if not rest.strip(" \t"):
        return "blank"
    is_deep = _indent(rest) >= _CODE_INDENT
    if FENCE.match(rest) and (in_item or not is_deep):
        return "fence"
    if is_deep:
        return "text" if after_text else "code"
    if _HEADING.match(rest):
        return "heading"
    if goes_on and _UNDERLINE.match(rest):
        return "underline"
    if _RULE.match(rest):
        return "rule"
    if goes_on and _DELIMITER.match(rest):
        return "delimiter"
    if rest.lstrip(" ").startswith("|"):
        return "row"
    return "math" if _MATH.match(rest) else "text"


def _indent(line: str) -> int:
    """Return the columns of the white space in front."""
    width = 0
    for character in line:
        if character == " ":
            width += 1
        elif character == "\t":
            width += _TAB - width % _TAB
        else:
            break
    return width


def _dedent(line: str, columns: int) -> str:
    """Return a line without so many columns of its white space, or all that there are."""
    width = 0
    for n, character in enumerate(line):
        if width >= columns or character not in " \t":
            return " " * (width - columns) + line[n:]
        width += 1 if character == " " else _TAB - width % _TAB
    return " " * (width - columns)
