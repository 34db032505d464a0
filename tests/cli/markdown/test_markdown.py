"""What is seen of a construct, and what may never happen whatever comes."""

import itertools
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localv4.cli.markdown import MarkdownStream
from localv4.cli.output import for_terminal

_CODES = re.compile(r"\x1b\[[0-9;]*m")


def written(*pieces: str, columns: Callable[[], int] | int = 40, unicode: bool = True) -> str:
    """Return all that is written of an answer in these pieces."""
    out: list[str] = []
    width = columns if callable(columns) else lambda: columns
    stream = MarkdownStream(out.append, width, unicode)
    for piece in pieces:
        stream.feed(piece)
    stream.close()
    return "".join(out)


def shown(source: str, columns: int = 40, unicode: bool = True) -> list[str]:
    """Return the lines that are seen of an answer."""
    text = _CODES.sub("", written(source, columns=columns, unicode=unicode))
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


class Watched:
    """A stream, and what it has written since it was last asked."""

    def __init__(self, columns: int = 40) -> None:
        self.columns = columns
        self._out: list[str] = []
        self._stream = MarkdownStream(self._out.append, lambda: self.columns)

    def feed(self, text: str) -> str:
        self._stream.feed(text)
        return self._new()

    def close(self) -> str:
        self._stream.close()
        return self._new()

    def _new(self) -> str:
        text = _CODES.sub("", "".join(self._out))
        self._out.clear()
        return text


_LONG = "one two three four five six seven eight nine ten eleven twelve"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("", []),
        ("\n\n", []),
        (_LONG, ["one two three four five six seven eight", "nine ten eleven twelve"]),
        ("soft\nline  end", ["soft line end"]),
        ("hard  \nend\\\nhere", ["hard", "end", "here"]),
        ("one\n\n\n\ntwo", ["one", "", "two"]),
        ("text\n# Head *line* #\nmore", ["text", "", "Head line", "more"]),
        ("Head\n---\ntext", ["Head", "\u2500" * 40, "text"]),
        ("Head\n===\n", ["Head", "\u2550" * 40]),
        ("a\n\n***\n\nb", ["a", "", "\u2500" * 40, "", "b"]),
        ("***all*** ~~gone~~ `a  b` **b**c", ["all gone a  b bc"]),
        (r"\*no\* &amp; &lt;b> <b>x</b> &#13;.", ["*no* & <b> <b>x</b> \ufffd."]),
        ("[text](http://a.b/c_d_e)", ["text (http://a.b/c_d_e)"]),
        ("[http://a.b](http://a.b)", ["http://a.b"]),
        ('[t](u "the title") ![im *g*](p.png)', ['t (u "the title") im g (p.png)']),
        ("<http://a.b> http://a.b/_c_ **http://a.b**", ["http://a.b http://a.b/_c_ http://a.b"]),
        ("[x] y", ["[x] y"]),
        ("a snake_case_word 2*3*4 5 * 6 * 7", ["a snake_case_word 2*3*4 5 * 6 * 7"]),
        ("$x_1 * y_2*$ and $5, $6 *so*", ["$x_1 * y_2*$ and $5, $6 so"]),
        (r"\(a_b*c*\), $$a_b_c$$, \[_d_\].", [r"\(a_b*c*\), $$a_b_c$$, \[_d_\]."]),
        ("$$\na_1 * b_\n$$\nend", ["$$", "a_1 * b_", "$$", "end"]),
        ("\\[ x_a_ \\]\n\\[\ny\n\nz", ["\\[ x_a_ \\]", "\\[", "y", "", "z"]),
        ("open **bold", ["open **bold"]),
        ("open `code", ["open `code"]),
        ("open [link](to", ["open [link](to"]),
        ("\u4f60\u597d" * 12 + "\uff0c", ["\u4f60\u597d" * 10, "\u4f60\u597d" * 2 + "\uff0c"]),
        ("\u4e2d" * 20 + "\u3002", ["\u4e2d" * 19, "\u4e2d\u3002"]),
        ("**\u6ce8\u610f\uff1a**\u8bf7", ["\u6ce8\u610f\uff1a\u8bf7"]),
        ("e\u0301" * 40 + " x", ["e\u0301" * 40, "x"]),
        ("a " + "x" * 50 + " b", ["a", "x" * 50 + " b"]),
    ],
)
def test_running_text(source, lines):
    assert shown(source) == lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("- a\n- b\n  - c\n    - d", ["\u2022 a", "\u2022 b", "  \u25e6 c", "    \u25aa d"]),
        ("- a\n\n- b", ["\u2022 a", "", "\u2022 b"]),
        ("* " + _LONG[:44], ["\u2022 one two three four five six seven", "  eight nine"]),
        ("text\n- a\nlazy", ["text", "\u2022 a lazy"]),
        ("1. a\n2. b\n10) c", ["1. a", "2. b", "10) c"]),
        ("1. a\n\n   more\n\nend", ["1. a", "", "   more", "", "end"]),
        ("1. a\n  - b\n    ```\n    c\n    ```", ["1. a", "   \u2022 b", "     c"]),
        ("in\n1986. It", ["in 1986. It"]),
        ("- [ ] a\n- [x] b\n1. [X] c", ["\u2610 a", "\u2611 b", "1. \u2611 c"]),
        ("- a\n-\n- b", ["\u2022 a", "\u2022", "\u2022 b"]),
        ("- - a", ["\u2022 \u25e6 a"]),
        ("1.\n   a", ["1. a"]),
        ("- a\n  ```\n  x\n   y\n\n  z\n  ```\n  b",
         ["\u2022 a", "  x", "   y", "", "  z", "  b"]),
        ("- a:\n  ```\nx\n```\n- b", ["\u2022 a:", "  x", "\u2022 b"]),
        ("> a\nlazy\n>\n> b\n\nc", ["\u2502 a lazy", "\u2502", "\u2502 b", "", "c"]),
        ("> > a\n>\n> - b", ["\u2502 \u2502 a", "\u2502", "\u2502 \u2022 b"]),
        ("> ```\n> x\ny", ["\u2502 x", "y"]),
        ("> " * 12 + "a", ["\u2502 " * 8 + "> > > > a"]),
        ("- # b", ["\u2022 b"]),
    ],
)  # fmt: skip
def test_lists_and_quotes(source, lines):
    assert shown(source) == lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("```\n*a*\n```\nb", ["*a*", "b"]),
        ("```py title\nx = 1\n", ["py title", "x = 1"]),
        ("~~~~\n~~~\n```\n~~~~~\nb", ["~~~", "```", "b"]),
        ("```\n" + "x" * 60, ["x" * 60]),
        ("```make\nall:\n\tgo\n```", ["make", "all:", "\tgo"]),
        ("```nolanguage\nx\n```", ["nolanguage", "x"]),
        ("a\n\n    b\n\n      c\n\nd", ["a", "", "b", "", "  c", "", "d"]),
        ("a\n    b", ["a b"]),
        ("```x``` y", ["x y"]),
    ],
)
def test_code(source, lines):
    assert shown(source) == lines


_TABLE = "| Name | n | c |\n|:-----|--:|:-:|\n| `a` | 1 | x\\|y |\n| **b** | 22 | z | more |\nend"


def test_a_table_is_shown_when_it_ends():
    assert shown(_TABLE) == [
        "\u256d\u2500\u2500\u2500\u2500\u2500\u2500\u252c\u2500\u2500\u2500\u2500\u252c"
        + "\u2500" * 10 + "\u256e",
        "\u2502 Name \u2502  n \u2502    c     \u2502",
        "\u251c\u2500\u2500\u2500\u2500\u2500\u2500\u253c\u2500\u2500\u2500\u2500\u253c"
        + "\u2500" * 10 + "\u2524",
        "\u2502 a    \u2502  1 \u2502   x|y    \u2502",
        "\u2502 b    \u2502 22 \u2502 z | more \u2502",
        "\u2570\u2500\u2500\u2500\u2500\u2500\u2500\u2534\u2500\u2500\u2500\u2500\u2534"
        + "\u2500" * 10 + "\u256f",
        "end",
    ]  # fmt: skip


def test_a_table_fits_the_terminal_or_is_left_as_it_is():
    wide = f"| a | b |\n|---|---|\n| {_LONG} | x<br>y |\n"
    for columns in (40, 80):
        lines = shown(wide, columns)
        assert max(map(len, lines)) <= columns
        seen = " ".join(lines)
        assert all(word in seen for word in _LONG.split())
        assert "br" not in seen
    assert shown(wide, 12) == wide.strip().split("\n")


def test_rows_without_a_table():
    assert shown("| a | b |\n| c | d |\n\nx") == ["| a | b |", "| c | d |", "", "x"]
    headless = shown("a | b\n--|--\n1 | 2", unicode=False)
    assert headless[0] == "a | b"
    assert "| 1 | 2 |" in headless


def test_a_terminal_without_unicode_gets_ascii():
    source = f"- a\n  - [x] b\n\n> q\n\n---\n\n{_TABLE}"
    assert "\n".join(shown(source, unicode=False)).isascii()
    assert not "\n".join(shown(source)).isascii()


@pytest.mark.parametrize(
    ("source", "piece"),
    [
        ("**a**", "\x1b[1ma\x1b[0m"),
        ("*a b*", "\x1b[3ma\x1b[0m\x1b[3m b\x1b[0m"),
        ("***a***", "\x1b[3;1ma\x1b[0m"),
        ("~~a~~", "\x1b[9ma\x1b[0m"),
        ("`a`", "\x1b[35ma\x1b[0m"),
        ("# a", "\x1b[1;4ma\x1b[0m"),
        ("## a *b*", "\x1b[1ma\x1b[0m\x1b[1m \x1b[0m\x1b[1;3mb\x1b[0m"),
        ("[a](b)", "\x1b[4ma\x1b[0m \x1b[2m(b)\x1b[0m"),
        ("> a", "\x1b[2m\u2502\x1b[0m a"),
        ("---", "\x1b[2m" + "\u2500" * 40 + "\x1b[0m"),
        ("```py\nif x: # y", "\x1b[2mpy\x1b[0m\n\x1b[35mif\x1b[0m x: \x1b[2;3m# y\x1b[0m\n"),
        ("| a |\n|---|\n| **b** |", "\x1b[1mb\x1b[0m"),
        ("| a |\n|---|\n| b |", "\x1b[1ma\x1b[0m"),
    ],
)
def test_looks(source, piece):
    assert piece in written(source)


def test_words_do_not_wait_for_the_end_of_the_line():
    stream = Watched()
    assert stream.feed("The ") == "The"
    assert stream.feed("qui") == ""
    assert stream.feed("ck **bro") == " quick"
    assert stream.feed("wn**") == ""  # a full stop could follow
    assert stream.feed(" [fox") == " brown"
    assert stream.feed(" ran](") == ""
    assert stream.feed("u) a") == " fox ran (u)"
    assert stream.close() == " a\n"


def test_lines_of_code_do_not_wait_for_the_end_of_the_block():
    stream = Watched()
    stream.feed("```c\n")
    assert stream.feed("int a;") == ""
    assert stream.feed("\nint") == "int a;\n"
    assert stream.close() == "int\n"


@pytest.mark.parametrize("start", ["**", "`", "[", "[a](", "$x", "_", "~~", "\\("])
def test_what_is_never_closed_is_let_go(start):
    stream = Watched()
    text = f"{start}begin " + "word " * 35
    assert stream.feed(text) == ""
    assert "begin" in stream.feed("word " * 10)


def test_the_terminal_may_change_its_width():
    stream = Watched(40)
    text = stream.feed("one two three four five six seven eight nine ")
    stream.columns = 10
    text += stream.feed("ten eleven twelve one two three four") + stream.close()
    assert text.split("\n") == [
        "one two three four five six seven eight",
        "nine ten eleven twelve one two three",  # begun when there was room
        "four",
        "",
    ]
    stream = Watched(40)
    text = stream.feed("a b c\n\n")
    stream.columns = 5
    text += stream.feed("one two three") + stream.close()
    assert text == "a b c\n\none\ntwo\nthree\n"


_MARKS = st.sampled_from(
    ["*", "**", "_", "`", "```", "~~", "~~~", "[", "]", "(", ")", "](", "<", ">", "$", "$$", "\\",
     "\\(", "\\[", "\\]", "|", "| a | b |\n", "|---|---|\n", "- ", "1. ", "10) ", "> ", "# ", "\n",
     "\n\n", " ", "  ", "    ", "\t", "foo", "bar1", "\u4e2d", "\uff0c",
     "\U0001f469\u200d\U0001f467", "http://a_b.c/d", "!", "[ ] ", "[x] ", "---", "===", "\\\n",
     "  \n", "a_b", "2*3", "python\n", "w" * 60]
)  # fmt: skip
_MARKDOWN = st.lists(_MARKS, max_size=60).map("".join)
_COLUMNS = st.sampled_from([1, 5, 12, 40, 80])


@settings(max_examples=300, deadline=None)
@given(st.one_of(_MARKDOWN, st.text()), st.lists(st.integers(0, 200)), _COLUMNS)
@example("a\r\x00\x1b[2J&#27;\ud800", [3], 40)
def test_the_pieces_change_nothing(source, cuts, columns):
    whole = written(source, columns=columns)
    assert written(*source, columns=columns) == whole
    edges = [0, *sorted(cuts), len(source)]
    pieces = [source[start:end] for start, end in itertools.pairwise(edges)]
    assert written(*pieces, columns=columns) == whole
    assert not whole or (whole.endswith("\n") and whole.strip("\n"))


def _said(text: str) -> list[str]:
    # a ticked box is an x; tables and titles change the order
    return sorted(re.sub(r"[\W_xX]", "", text))


@settings(max_examples=300, deadline=None)
@given(_MARKDOWN, _COLUMNS)
@example("http://a/b  \nc", 40)
@example("<http://a/b  \n>", 40)
@example("1. 2) a\n\n", 5)
@example("10. [x] a", 40)
@example("- *" + "a " * 200, 40)
def test_no_word_is_lost(source, columns):
    text = written(source, columns=columns)
    assert _said(_CODES.sub("", text)) == _said(source)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_nothing_but_colours_acts_on_the_terminal(source):
    text = _CODES.sub("", written(for_terminal(f"&#13;&#27;{source}")))
    assert text == for_terminal(text)


@settings(max_examples=100, deadline=None)
@given(_MARKDOWN)
def test_each_write_ends_with_colours_off(source):
    out: list[str] = []
    stream = MarkdownStream(out.append, lambda: 40)
    for character in source:
        stream.feed(character)
    stream.close()
    for text in out:
        codes = _CODES.findall(text)
        assert not codes or codes[-1] == "\x1b[0m"
