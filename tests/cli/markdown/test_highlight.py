import re

import pytest

from localv4.cli.markdown.highlight import Highlighter

_CODES = re.compile(r"\x1b\[[0-9;]*m")
_PYTHON = '''\
def f{n}(x):
    """Say
    if and else.
    """
    return [x, "a", {n}]  # for

'''


def lines_of(language: str, code: str) -> list[str]:
    highlighter = Highlighter(language)
    return [highlighter.line(line) for line in code.split("\n")]


def test_strings_and_comments_go_over_lines():
    lines = lines_of("python", 'x = """if\nfor\n"""\nif x: pass')
    assert "\x1b[32mfor\x1b[0m" in lines[1]
    assert lines[3].startswith("\x1b[35mif\x1b[0m")
    lines = lines_of("c", "/* int\nint\n*/ int x;")
    assert lines[1] == "\x1b[2;3mint\x1b[0m"
    assert "\x1b[36mint\x1b[0m" in lines[2]


def test_reading_from_a_later_line_changes_no_colour():
    code = "".join(_PYTHON.replace("{n}", str(n)) for n in range(60))
    part = _PYTHON.replace("{n}", "0").split("\n")[:-1]
    lines, first = lines_of("python", code), lines_of("python", "\n".join(part))
    assert [_CODES.sub("", line) for line in lines] == code.split("\n")
    for n, line in enumerate(lines[:-1]):
        assert re.sub(r"f\d+", "f0", line) == first[n % len(part)] or n % len(part) in (0, 4)


def test_what_is_read_again_stays_short():
    highlighter = Highlighter("python")
    longest = 0
    for n in range(300):
        for line in _PYTHON.replace("{n}", str(n)).split("\n"):
            highlighter.line(line)
            longest = max(longest, sum(map(len, highlighter._lines)))
    assert longest < 2_000
    for _ in range(2_000):  # one string without an end
        highlighter.line('"""' if not _ else "words of a text")
        longest = max(longest, sum(map(len, highlighter._lines)))
    assert longest < 20_000


@pytest.mark.parametrize("language", ["", "nolanguage", "py\u4e2d"])
def test_unknown_languages_stay_plain(language):
    assert lines_of(language, "if x:\n\ty") == ["if x:", "\ty"]


def test_a_lexer_that_fails_leaves_code_plain():
    highlighter = Highlighter("python")

    class Broken:
        def get_tokens(self, source: str) -> None:
            raise ValueError(source)

    highlighter._lexer = Broken()
    assert highlighter.line("if x") == "if x"
    assert highlighter.line("if y") == "if y"


def test_very_long_lines_are_not_read():
    assert lines_of("python", "if " * 1_000)[0] == "if " * 1_000
