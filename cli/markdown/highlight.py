"""Lines of code in colour, one after the other.

A lexer reads whole texts, so each line is read behind those before it; not from the begin of the
block, which would take longer and longer, but from a line where reading anew is known to give the
same. Knows nothing of Markdown.
"""

from typing import TYPE_CHECKING

from localv4.cli.markdown.looks import code_look, painted

if TYPE_CHECKING:
    from pygments.lexer import Lexer

__all__ = ["Highlighter"]

_LONGEST_LINE = 2_000  # characters; longer ones are no code to read
_ENOUGH = 700  # characters read again with each line before a later begin is looked for
_MOST = 10_000  # ... before the begin is moved even where it changes colours
_TRIES = 3  # lines that it is tried to be moved to

_Token = tuple[str, str]


class Highlighter:
    """The code of one block.

    Parameters
    ----------
    language
        As it stands behind the fence; code in unknown ones stays plain.
    """

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language)
        self._lines: list[str] = []  # that a line is read behind
        self._n_read = 0  # characters of them
        self._look_at = _ENOUGH

    def line(self, line: str) -> str:
        """Return the next line, with codes."""
        if self._lexer is None or len(line) > _LONGEST_LINE:
            return line
        self._lines.append(f"{line}\n")
        self._n_read += len(line) + 1
        read = self._read(self._lines)
        if read is None:
            self._lexer = None
            return line
        if self._n_read > self._look_at:
            self._begin_later(read)
        return "".join(painted(text, look) for text, look in _last_line(read))

    def _read(self, lines: list[str]) -> list[_Token] | None:
        """Return texts and looks; None if the lexer does not give back what it was given."""
        assert self._lexer is not None
        source = "".join(lines)
        try:
            read = [
                (text, code_look(str(kind)[6:])) for kind, text in self._lexer.get_tokens(source)
            ]
        except Exception:  # a lexer's own bug: plain code is better than no answer
            return None
        return read if "".join(text for text, _ in read) == source else None

    def _begin_later(self, read: list[_Token]) -> None:
        """Leave out the first half of the lines, if the others look the same without it."""
        lines, middle = self._lines, len(self._lines) // 2
        # Functions mostly begin behind an empty line.
        likely = [n for n in range(middle, len(lines)) if not lines[n - 1].strip()]
        for begin in [*[n for n in likely if lines[n].strip()][: _TRIES - 1], middle]:
            later = lines[begin:]
            n_later = sum(map(len, later))
            if self._n_read > _MOST or _looks(self._read(later)) == _looks(read)[-n_later:]:
                self._lines, self._n_read = later, n_later
                break
        self._look_at = max(_ENOUGH, self._n_read + self._n_read // 4)


def _looks(read: list[_Token] | None) -> list[str]:
    """Return the look of each character."""
    return [look for text, look in read or () for _ in text]


def _last_line(read: list[_Token]) -> list[_Token]:
    """Return the tokens of the last line, without its end."""
    line: list[_Token] = []
    for n in range(len(read) - 1, -1, -1):
        text, look = read[n]
        if not line:
            text = text.removesuffix("\n")
        _, end, text = text.rpartition("\n")
        line.append((text, look))
        if end:
            break
    return line[::-1]


def _lexer(language: str) -> "Lexer | None":
    if not language:
        return None
    # Imported here: most answers hold no code.
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, tabsize=0)
    except ClassNotFound:
        return None
