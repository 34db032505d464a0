"""Markup within running text: from source to pieces with looks, as far as it is decided.

markdown-it parses; rules of ours say whether something is still open at the end, leave formulas,
addresses and products like 2*3*4 alone, and let emphasis stand beside Chinese punctuation. Knows
nothing of lines.
"""

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

from localv4.cli.markdown.looks import BOLD, CODE, DIM, ITALIC, STRUCK, UNDERLINED
from localv4.cli.markdown.page import is_cjk
from localv4.cli.output import for_terminal

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

__all__ = ["Pieces", "pieces_of"]

Pieces = list[tuple[str, str]]

_MARKUP = re.compile(r"[\\`*_~\[<&$]|://")
_LOOKS = {"strong": BOLD, "em": ITALIC, "s": STRUCK, "link": UNDERLINED}
_ADDRESS = re.compile(r"://[^\s<>`\]]+")
_NOT_OF_ADDRESS = "*_~.,;:!?)]}'\"|\\"  # at its end
_FORMULA = re.compile(r"\$(?=[^\s$])[^`$]*(?<![\s\\])\$(?!\w)")
_HALF_FORMULA = re.compile(r"\$[^\s$`][^`$]*\Z")
_PRICE = re.compile(r"\$\d[\d.,]*[kKmMbB]?(?=[\s.,;:!?)]|\Z)")
_FORMULA_ENDS = {"$$": "$$", "\\(": "\\)", "\\[": "\\]"}


def pieces_of(source: str, before: str = " ", look: str = "") -> tuple[Pieces, bool]:
    """Take running text apart.

    Parameters
    ----------
    source
        Markdown without blocks; a hard line end is a backslash and a line end.
    before
        The character in front of it.
    look
        What all of it looks like, apart from its markup.

    Returns
    -------
    tuple
        Texts and their codes, a hard line end as a text of its own; and whether there is markup
        in it that more text could close.
    """
    if not _MARKUP.search(source):
        return [(for_terminal(source.replace("\n", " ")), look)], False
    env: dict[str, Any] = {"before": before, "open": False}
    [block] = _parser().parseInline(source, env)
    return list(_flattened(block.children or [], look)), env["open"]


def _flattened(tokens: "list[Token]", look: str) -> Pieces:
    """Return the pieces of parsed tokens."""
    pieces: Pieces = []
    looks = [look] if look else []
    links: list[tuple[Token, int]] = []
    for token in tokens:
        kind = token.type
        codes = ";".join(dict.fromkeys(looks))
        if kind in ("softbreak", "hardbreak"):
            pieces.append((" " if kind == "softbreak" else "\n", codes))
        elif kind == "code_inline":
            pieces.append((for_terminal(token.content), ";".join(dict.fromkeys([*looks, CODE]))))
        elif kind == "image":
            text = _flattened(token.children or [], ";".join([*looks, UNDERLINED]))
            pieces += [*text, *_destination(token, "".join(shown for shown, _ in text))]
        elif token.nesting > 0:
            looks.append(_LOOKS[kind.removesuffix("_open")])
            if kind == "link_open":
                links.append((token, len(pieces)))
        elif token.nesting < 0:
            looks.pop()
            if kind == "link_close":
                link, start = links.pop()
                pieces += _destination(link, "".join(shown for shown, _ in pieces[start:]))
        else:
            pieces.append((for_terminal(token.content.replace("\n", " ")), codes))
    return pieces


def _destination(link: "Token", text: str) -> Pieces:
    """Return where a link leads, unless its text says it."""
    address = str(link.attrs.get("href") or link.attrs.get("src") or "")
    title = str(link.attrs.get("title") or "")
    is_said = link.markup == "autolink" or address in (text, f"mailto:{text}")
    shown = "" if is_said else address
    if title:
        shown = f'{shown} "{title}"'.strip()
    if not shown:
        return []
    return [(" " if text else "", ""), (for_terminal(f"({shown})".replace("\n", " ")), DIM)]


@cache
def _parser() -> "MarkdownIt":
    # Imported here: plain words need no parser.
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough")
    # Addresses are shown, not followed: as they were written, and all of them.
    vars(parser).update(
        normalizeLink=_as_written, normalizeLinkText=_as_written, validateLink=lambda _: True
    )
    rules = parser.inline.ruler
    rules.before("escape", "formula", _formula)
    rules.before("escape", "address", _address)
    rules.before("backticks", "half_code", _half_code)
    rules.before("link", "half_link", _half_link)
    rules.at("emphasis", _emphasis)
    parser.inline.ruler2.after("balance_pairs", "half_emphasis", _half_emphasis)
    return parser


def _as_written(address: str) -> str:
    return address


def _formula(state: "StateInline", silent: bool) -> bool:
    r"""Leave $..$, $$..$$, \(..\) and \[..\] as they are."""
    source, start = state.src, state.pos
    if source[start] not in "$\\":
        return False
    closing = _FORMULA_ENDS.get(source[start : start + 2])
    if closing is not None:
        end = source.find(closing, start + 2)
        state.env["open"] |= end < 0
        end = end + 2 if end >= 0 else -1
    else:
        if source[start] == "\\" or _PRICE.match(source, start):
            return False
        match = _FORMULA.match(source, start)
        state.env["open"] |= match is None and _HALF_FORMULA.match(source, start) is not None
        end = -1 if match is None else match.end()
    if end < 0:
        return False
    return _verbatim(state, end, silent)


def _address(state: "StateInline", silent: bool) -> bool:
    """Leave the underscores of a bare address alone."""
    match = _ADDRESS.match(state.src, state.pos)
    if match is None or not state.src[: state.pos].endswith(("http", "https")):
        return False
    return _verbatim(state, state.pos + len(match[0].rstrip(_NOT_OF_ADDRESS)), silent)


def _verbatim(state: "StateInline", end: int, silent: bool) -> bool:
    if end <= state.pos:
        return False
    if not silent:
        state.append_pending(state.src[state.pos : end])
    state.pos = end
    return True


def _half_code(state: "StateInline", silent: bool) -> bool:
    """Note a code span that is not closed; the rule behind this one does the rest."""
    if state.src[state.pos] == "`":
        run = re.compile("`+").match(state.src, state.pos)
        assert run is not None
        closing = re.compile(f"(?<!`){run[0]}(?!`)")
        state.env["open"] |= closing.search(state.src, run.end()) is None
    return False


def _half_link(state: "StateInline", silent: bool) -> bool:
    """Note a link whose text or address is not closed."""
    if state.src[state.pos] == "[":
        end = state.md.helpers.parseLinkLabel(state, state.pos)
        target = state.src[end + 1 :] if end >= 0 else ""
        state.env["open"] |= end < 0 or (target.startswith("(") and ")" not in target)
    return False


def _emphasis(state: "StateInline", silent: bool) -> bool:
    """Mark what can begin and end emphasis."""
    from markdown_it.rules_inline.state_inline import Delimiter

    source, start, marker = state.src, state.pos, state.src[state.pos]
    if silent or marker not in "*_":
        return False
    end = start
    while end < len(source) and source[end] == marker:
        end += 1
    before = source[start - 1] if start else state.env["before"]
    after = source[end] if end < len(source) else " "
    opens, closes = _flanks(marker, end - start, before, after)
    for _ in range(start, end):
        token = state.push("text", "", 0)
        token.content = marker
        state.delimiters.append(
            Delimiter(ord(marker), end - start, len(state.tokens) - 1, -1, opens, closes)
        )
    state.pos = end
    return True


def _flanks(marker: str, n_marks: int, before: str, after: str) -> tuple[bool, bool]:
    """Return whether marks between two characters can begin and can end emphasis."""
    is_product = _is_operand(before, ")]") and _is_operand(after, "([")
    if marker == "*" and n_marks == 1 and is_product:
        return False, False
    space_before, space_after = before.isspace(), after.isspace()
    mark_before, mark_after = _is_mark(before), _is_mark(after)
    # Punctuation beside a script without spaces says nothing.
    loose_before = space_before or mark_before or (marker == "*" and is_cjk(before))
    loose_after = space_after or mark_after or (marker == "*" and is_cjk(after))
    left = not space_after and (not mark_after or loose_before)
    right = not space_before and (not mark_before or loose_after)
    if marker == "*":
        return left, right
    return left and (not right or mark_before), right and (not left or mark_after)


def _is_operand(character: str, brackets: str) -> bool:
    return (character.isascii() and character.isalnum()) or character in brackets


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _half_emphasis(state: "StateInline") -> None:
    """Note emphasis that is not closed."""
    n = 0
    while n < len(state.delimiters):
        delimiter = state.delimiters[n]
        if delimiter.end >= 0:
            n = delimiter.end
        elif delimiter.open:
            state.env["open"] = True
        n += 1
