import os
import signal
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.screens import Screen

UP, DOWN = "\x1b[A", "\x1b[B"

PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path
from localv4.cli.chat.editor import LineEditor, Suggestion

NAMES = {"/save": "save it", "/sessions": "list them", "/system": ""}

class Stopped(BaseException):
    pass

def suggest(text):
    if text.startswith("/"):
        for name, about in NAMES.items():
            if name.startswith(text):
                yield Suggestion(f"{name} ", len(text), about)

editor = LineEditor(suggest, Path("state") / "history", "NO_COLOR" not in os.environ)
n_read = 0

def say_more():
    for number in range(3):
        editor.say(f"said {number}\\n")

def meter():
    return f"{n_read} read"

signal.signal(signal.SIGTERM, lambda *_: editor.stop(Stopped("by a signal")))
signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=say_more).start())
def fail(*_):
    raise Stopped("in a handler")
signal.signal(signal.SIGUSR2, fail)
editor.say("hello\\n")
while True:
    try:
        text = editor.read(meter)
    except BaseException as error:
        print(f"ended by {error!r}")
        sys.exit(3)
    n_read += 1
    print(f"got {text!r}" if len(text) < 100 else f"got {len(text)}")
    if text == "wait":
        time.sleep(1)
        print("waited")
"""


@pytest.fixture
def program(tmp_path):
    """Return a function that runs the editor in a terminal."""
    opened = []
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)

    def run(columns: int = 80, rows: int = 24, shell: bool = False, **variables: str) -> Screen:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        command = ["bash", "--norc", "-i"] if shell else [sys.executable, path]
        environment |= {"LOCALV4_CACHE_DIR": str(tmp_path), "PS1": "$ ", **variables}
        screen = Screen(command, environment, tmp_path, columns, rows)
        opened.append(screen)
        if shell:
            screen.type(f"{sys.executable} {path}\r")
        screen.expect("0 read >")
        return screen

    yield run
    for screen in opened:
        screen.__exit__()


def ended(screen: Screen, how: str) -> None:
    """Assert that the program ended, and that the terminal is a usual one again."""
    screen.expect("ended by")
    assert how in screen.history
    assert screen.wait() == 3
    flags = screen.modes[3]
    usual = termios.ICANON | termios.ECHO | termios.ISIG
    assert flags & usual == usual
    assert screen.raw.rfind(b"\x1b[?2004l") > screen.raw.rfind(b"\x1b[?2004h")
    assert screen.raw.rfind(b"\x1b[?25h") > screen.raw.rfind(b"\x1b[?25l")


def test_messages_stay_as_they_were_typed(program):
    screen = program()
    assert screen.history == "hello\n0 read >"
    assert screen.looks("0 read") == {"dim"}
    assert screen.looks(">") == set()
    screen.type("w\u00f6rd \u4f60\u597d\x1b\rmore\r")
    screen.expect("1 read >")
    assert screen.history.splitlines() == [
        "hello", "0 read > w\u00f6rd \u4f60\u597d", "  more",
        "got 'w\u00f6rd \u4f60\u597d\\nmore'", "1 read >",
    ]  # fmt: skip
    assert screen.looks("0 read") == {"dim"}
    screen.type("\x04")
    ended(screen, "EOFError()")
    assert b"\x1b[6n" not in screen.raw  # no question that a terminal may not answer


def test_history_is_kept_for_the_next_chat(program, tmp_path):
    for n_chat in range(2):
        screen = program()
        screen.type(f"message {n_chat}\r")
        screen.expect("1 read >")
        screen.type("\x04")
        assert screen.wait() == 3
    screen = program()
    screen.type(f"{UP}{UP}{UP}!\r")
    screen.expect("1 read >")
    assert "got 'message 0!'" in screen.history
    screen.type("\x12sage 1")
    screen.expect("message 1")
    screen.type("\r\r")
    screen.expect("2 read >")
    assert "got 'message 1'" in screen.history
    screen.type("\x03")
    ended(screen, "KeyboardInterrupt()")
    history = tmp_path / "state" / "history"
    assert history.stat().st_mode & 0o777 == 0o600


def test_a_paste_longer_than_the_screen_stays_whole_and_is_sent_once(program):
    screen = program(rows=10)
    lines = [f"line {number}" for number in range(40)]
    screen.type("\x1b[200~" + "\n".join(lines) + "\x1b[201~")
    screen.expect("line 39")
    screen.idle(0.2)
    screen.type("\r")
    screen.expect("1 read >")
    shown = screen.history.splitlines()
    begin = shown.index("0 read > line 0")
    assert shown[begin + 1 : begin + 40] == [f"  {line}" for line in lines[1:]]


def test_ten_thousand_characters_are_edited(program):
    screen = program()
    screen.type(f"\x1b[200~{'word ' * 2000}\x1b[201~")
    screen.idle(0.5)
    screen.type("and more\r")
    screen.expect("got 10008")


def test_escape_sequences_in_a_paste_do_not_act(program):
    screen = program()
    screen.type("\x1b[200~a\x1b[2J\x1b]0;title\x07b\tc\x1b[201~")
    screen.expect("0 read > a[2J]0;titleb")
    screen.type("\r")
    screen.expect(r"got 'a[2J]0;titleb\tc'")
    assert b"\x1b[2J" not in screen.raw
    assert b"\x1b]" not in screen.raw
    assert screen.history.startswith("hello\n")


def test_tab_shows_a_menu_and_the_screen_above_stays(program):
    screen = program(rows=6)
    screen.type("/s\t")
    screen.expect("list them")
    assert [line.split() for line in screen.lines if line.startswith("  ")] == [
        ["/save", "save", "it"], ["/sessions", "list", "them"], ["/system"],
    ]  # fmt: skip
    assert screen.looks("list them") == {"dim"}
    screen.type("\t\t")
    screen.expect("0 read > /sessions")
    assert screen.looks("/sessions  ".strip()) & {"reverse"}
    screen.type("\r")
    screen.until(lambda: screen.history == "hello\n0 read > /sessions")
    screen.type("now\r")
    screen.expect("got '/sessions now'")
    assert screen.history.splitlines()[:2] == ["hello", "0 read > /sessions now"]


def test_without_color_no_looks_are_sent(program):
    screen = program(NO_COLOR="1")
    screen.type("/s\t")
    screen.expect("list them")
    screen.type("\t")
    screen.expect("0 read > /save")
    screen.type("\rx\x12sa\x03\r")
    screen.expect("1 read >")
    screen.type("\x04")
    assert screen.wait() == 3
    sent = screen.raw.replace(b"\x1b[0m", b"")
    assert b"m" not in {piece.lstrip(b"0123456789;?")[:1] for piece in sent.split(b"\x1b[")[1:]}


def test_what_is_said_stands_above_the_line(program):
    screen = program()
    screen.type("half a line")
    screen.expect("half a line")
    screen.signal(signal.SIGUSR1)
    said = "hello\nsaid 0\nsaid 1\nsaid 2\n0 read > half a line"
    screen.until(lambda: screen.history == said)
    screen.type("!\r")
    screen.expect("got 'half a line!'")


def test_typing_and_saying_at_once_loses_and_shows_nothing_twice(program):
    screen = program()
    for number in range(30):
        screen.signal(signal.SIGUSR1)
        screen.type(f"message {number}\r")
        screen.expect(f"{number + 1} read >")
    screen.expect("said 2", times=30)
    screen.expect("30 read >")
    shown = screen.history.splitlines()
    for number in range(30):
        assert shown.count(f"{number} read > message {number}") == 1
    assert sum("message" in line for line in shown) == 60


def test_a_signal_stops_a_read_and_what_was_typed_stays(program):
    screen = program()
    screen.type("half a line")
    screen.expect("half a line")
    screen.signal(signal.SIGTERM)
    ended(screen, "Stopped('by a signal')")
    assert screen.history.splitlines()[1] == "0 read > half a line"


def test_a_handler_that_raises_leaves_the_terminal_as_it_was(program):
    screen = program()
    screen.type("half a line")
    screen.expect("half a line")
    screen.signal(signal.SIGUSR2)
    ended(screen, "Stopped('in a handler')")


def test_a_signal_of_interruption_is_a_ctrl_c(program):
    screen = program()
    screen.type("half")
    screen.expect("half")
    screen.signal(signal.SIGINT)
    screen.until(lambda: screen.history == "hello\n0 read >")
    screen.signal(signal.SIGINT)
    ended(screen, "KeyboardInterrupt()")


EDITOR = """#!{python}
import sys, pathlib, os, time
path = pathlib.Path(sys.argv[-1])
print("editing", path.read_text(), os.isatty(0), flush=True)
if len(sys.argv) > 2:
    sys.exit(sys.argv[1])
path.write_text(input("new: ") + "\\nsecond\\n")
"""


@pytest.fixture
def fake_editor(tmp_path) -> Path:
    path: Path = tmp_path / "fake editor"
    path.write_text(EDITOR.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_another_program_edits_the_text(program, fake_editor):
    screen = program(EDITOR="false", VISUAL=f"'{fake_editor}'")
    screen.type("old\x18\x05")
    screen.expect("editing old True")
    screen.expect("new:")
    screen.type("w\u00f6rd\r")
    screen.expect("  second")
    screen.type("!\r")
    screen.expect("got 'w\u00f6rd\\nsecond!'")
    assert screen.history.count("0 read >") == 1


def test_a_program_that_edits_is_left_alone(program, fake_editor):
    screen = program(EDITOR=f"'{fake_editor}'")
    screen.type("\x18\x05")
    screen.expect("new:")
    screen.signal(signal.SIGINT)  # its own, though it comes here too
    screen.signal(signal.SIGUSR1)
    screen.idle(0.3)
    assert "said" not in screen.history
    screen.type("word\r")
    screen.expect("0 read > word")
    screen.expect("said 2")
    screen.expect("  second")
    screen.type("\r")
    screen.expect("got 'word\\nsecond'")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "no editor is set; let VISUAL or EDITOR name one"),
        ("/nowhere/vi", "the editor /nowhere/vi failed: No such file"),
        ("'", "the editor ' failed: No closing quotation"),
        ("false", "the editor false ended with 1; the text is as before"),
    ],
)
def test_a_text_stays_where_it_cannot_be_edited(program, command, sentence):
    screen = program(EDITOR=command)
    screen.type("old\x18\x05")
    screen.expect(sentence)
    screen.type("!\r")
    screen.expect("got 'old!'")


def test_a_stop_waits_for_the_program_that_edits(program, fake_editor):
    screen = program(EDITOR=f"'{fake_editor}'")
    screen.type("old\x18\x05")
    screen.expect("new:")
    screen.signal(signal.SIGTERM)
    screen.idle(0.3)
    assert "ended by" not in screen.history
    screen.type("new\r")
    ended(screen, "Stopped('by a signal')")


def test_a_new_size_redraws_nothing_above(program):
    screen = program(columns=60, rows=12)
    screen.type("first\r")
    screen.expect("1 read >")
    screen.type("word " * 20 + "end")
    screen.expect("end")
    above = ["hello", "0 read > first", "got 'first'"]
    for columns, rows in ((100, 12), (100, 30), (40, 30), (60, 8)):
        screen.resize(columns, rows)
        screen.idle(0.3)
        screen.until(lambda: screen.history.count("end") == 1)
        assert screen.history.splitlines()[:3] == above
    screen.type("!\r")
    screen.expect("2 read >")
    assert screen.history.splitlines()[:3] == above


def test_what_is_typed_between_two_reads_is_read_by_the_next(program):
    screen = program()
    screen.type("wait\r")
    screen.expect("got 'wait'")
    screen.type("one\rtwo\rhal")
    screen.expect("3 read >")
    assert "got 'one'" in screen.history
    assert "got 'two'" in screen.history
    screen.type("f\r")
    screen.expect("got 'half'")
    screen.expect("4 read >")
    screen.type("wait\r")
    screen.expect("got 'wait'", times=2)
    screen.type("last\r\x04")
    ended(screen, "EOFError()")
    assert "got 'last'" in screen.history


def test_ctrl_c_clears_the_line_and_up_brings_it_back(program, tmp_path):
    screen = program()
    screen.type("half")
    screen.expect("half")
    screen.type("\x03")
    screen.until(lambda: screen.history == "hello\n0 read >")
    screen.type(f"other{UP}{UP}{DOWN}")
    screen.expect("> other")
    screen.type(f"{UP}!")
    screen.expect("> half!")
    assert not (tmp_path / "state").exists()
    screen.type("\r")
    screen.expect("got 'half!'")


def test_ctrl_l_clears_the_screen(program):
    screen = program()
    screen.type("half\x0c")
    screen.until(lambda: screen.lines[0] == "0 read > half")
    screen.type("!\r")
    screen.expect("got 'half!'")


def test_ctrl_z_suspends_and_fg_brings_it_back(program):
    screen = program(shell=True)
    screen.type("half")
    screen.expect("> half")
    screen.type("\x1a")
    screen.expect("Stopped")
    screen.type("echo at the shell\r")
    screen.expect("at the shell", times=2)
    screen.type("fg\r")
    screen.expect("0 read > half")
    screen.type("!\r")
    screen.expect("got 'half!'")


def test_what_looks_like_a_mouse_is_no_error(program):
    screen = program()
    screen.type("\x1b[31mred\x1b[<0;1;1M\x1b[M !!\r")
    screen.expect("1 read >")
    assert "got 'red'" in screen.history


def test_a_paste_that_is_too_long_is_refused_at_once(program):
    screen = program()
    screen.type(f"\x1b[200~{'x' * 300_000}\x1b[201~")
    screen.expect("300,000 characters are too many to paste; put them into a file")
    screen.type("short\r")
    screen.expect("1 read >")
    assert "got 'short'" in screen.history
