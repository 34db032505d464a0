import os
import signal
import sys
import termios
from pathlib import Path

import pytest

from tests.screens import Screen


@pytest.fixture
def program(tmp_path):
    """Return a function that runs Python in a terminal."""
    opened = []

    def run(code: str, columns: int = 40, rows: int = 6) -> Screen:
        path = tmp_path / "program.py"
        path.write_text(code)
        environment = {"PATH": os.environ["PATH"]}
        screen = Screen([sys.executable, "-u", path], environment, tmp_path, columns, rows)
        opened.append(screen.__enter__())
        return screen

    yield run
    for screen in opened:
        screen.__exit__()


def test_what_is_shown_typed_and_scrolled_out(program):
    screen = program("for n in range(20): print('line', n)\nprint('got', input('? '))")
    screen.expect("? ".strip())
    assert screen.lines[:2] == ["line 15", "line 16"]
    assert screen.history.splitlines()[:2] == ["line 0", "line 1"]
    screen.type("w\u00f6rd \u4f60\u597d\r")
    screen.expect("got w\u00f6rd \u4f60\u597d")
    assert screen.wait() == 0
    assert b"got w\xc3\xb6rd" in screen.raw


def test_what_never_comes_is_said_with_the_screen(program):
    screen = program("print('here')")
    with pytest.raises(AssertionError, match=r"(?s)'there' was not shown.*\|here"):
        screen.expect("there", timeout_s=30)
    with pytest.raises(AssertionError, match=r"'here' was not shown"):
        screen.expect("here", times=2, timeout_s=0.1)


def test_the_terminal_is_the_programs_own(program):
    screen = program("import time\nprint('up')\ntime.sleep(60)")
    screen.expect("up")
    screen.type("\x03")
    screen.expect("KeyboardInterrupt")
    assert screen.wait() == -signal.SIGINT


def test_a_signal_ends_it(program):
    screen = program("import time\nprint('up')\ntime.sleep(60)")
    screen.expect("up")
    screen.signal(signal.SIGTERM)
    assert screen.wait() == -signal.SIGTERM


def test_looks_tell_dim_bold_and_colours(program, tmp_path):
    screen = program(
        "print('\\x1b[2mfaint\\x1b[22m plain \\x1b[1;31mred\\x1b[0m \\x1b[38;5;2mgreen\\x1b[0m'"
        "' \\x1b[2;38;2;1;2;3mexact\\x1b[m \\x1b[93;44mlight\\x1b[m')"
    )
    assert screen.wait() == 0
    assert screen.looks("faint") == {"dim"}
    assert screen.looks("plain") == set()
    assert screen.looks("red") == {"bold", "red"}
    assert screen.looks("green") == {"#00cd00"}
    assert screen.looks("exact") == {"dim", "#010203"}
    assert screen.looks("light") == {"bright_yellow", "on blue"}
    assert screen.looks("faint plain") == {"dim"}
    with pytest.raises(AssertionError, match="'pale' is not shown"):
        screen.looks("pale")
    screen.picture(tmp_path / "dark.svg")
    screen.picture(tmp_path / "light.svg", light=True)
    dark, light = (Path(tmp_path / name).read_text() for name in ("dark.svg", "light.svg"))
    assert "faint" in dark
    assert "#010203" not in light  # dim: mixed with the background
    assert dark != light


def test_a_new_size_reaches_the_program_and_scrolls(program):
    screen = program(
        "import os, signal\n"
        "signal.signal(signal.SIGWINCH, lambda *_: print(*os.get_terminal_size()))\n"
        "os.write(1, b'line 0\\nline 1\\nline 2\\nline 3\\nline 4\\n')\n"
        "while True: signal.pause()"
    )
    screen.expect("line 4")
    screen.resize(30, 3)
    screen.expect("30 3")
    # an unbuffered program writes its line's end apart
    screen.until(lambda: screen.lines == ["line 4", "30 3", ""])
    assert screen.history.splitlines()[:4] == [f"line {n}" for n in range(4)]
    screen.resize(50, 9)
    screen.expect("50 9")
    assert screen.lines[:3] == ["line 4", "30 3", "50 9"]


def test_the_cursor_is_reported_and_modes_are_seen(program):
    screen = program(
        "import sys, termios, tty\n"
        "tty.setcbreak(0)\n"
        "print('abc\\x1b[6n', end='')\n"
        "print(repr(sys.stdin.read(6)))\n"
        "sys.stdin.read(1)"
    )
    screen.expect(r"'\x1b[1;4R'")
    assert not screen.modes[3] & termios.ICANON
    screen.until(lambda: screen.cursor == (1, 0), "the line did not end")
    screen.type("x")
    assert screen.wait() == 0
