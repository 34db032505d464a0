import asyncio
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from localv4.cli.chat import line_session
from localv4.cli.chat.editor import LineEditor, Suggestion
from localv4.cli.chat.typed import cleaned, is_open

NAMES = {"/save": "save it", "/sessions": "list them", "/system": "", "/help": "this list"}


def suggest(text):
    if text.startswith("/"):
        return [
            Suggestion(f"{name} ", len(text), about)
            for name, about in NAMES.items()
            if name.startswith(text)
        ]
    if text.endswith("boom"):
        raise ValueError("boom")
    return [Suggestion("GARDEN", 3)] if text.endswith("gar") else []


@pytest.fixture
def keyboard(monkeypatch):
    with create_pipe_input() as pipe:
        monkeypatch.setattr(line_session, "open_terminal", lambda: (pipe, DummyOutput()))
        yield pipe


@pytest.fixture
def editor(keyboard):
    return LineEditor(suggest, None, True)


UP, LEFT = "\x1b[A", "\x1b[D"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("hello\r", "hello"),
        ("\r", ""),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\x1b\rtwo\n", "one\ntwo"),
        ("\x1b[200~one\r\ntwo\rthree\n\x1b[201~!\r", "one\ntwo\nthree\n!"),
        ("\x1b[200~a\x1b[31mred\x00\tb\x9b2J\x1b[201~\r", "a[31mred\tb2J"),
        ("a\x11\x1bb\r", "ab"),  # Ctrl-Q: the next key as it is
        ("\u4f60\u597d \U0001f468\u200d\U0001f469\r", "\u4f60\u597d \U0001f468\u200d\U0001f469"),
        ('"""one\rtwo\r"""\r', '"""one\ntwo\n"""'),
        ('"""one"""\r', '"""one"""'),
        ('""" """ x\r"""\r', '""" """ x\n"""'),
        ("one\x03two\r", "two"),
        (f"one\x1b\rtwo{UP}!\r", "one!\ntwo"),
        ("word\x04\r", "word"),
        (f"word{LEFT}\x04\r", "wor"),
        ("/h\t\r", "/help "),
        ("/s\ty\r", "/sy"),
        ("gar\t\r", "GARDEN"),
        ("boom\t!\r", "boom!"),
        ("none\t!\r", "none!"),
        ("one\x03\x12x\x03two\r", "two"),  # Ctrl-C leaves the search that Ctrl-R began
    ],
)
def test_what_is_typed_is_read(editor, keyboard, typed, message):
    keyboard.send_text(typed)
    assert editor.read(str) == message


def test_history_is_there_for_the_next_line_without_repeats(editor, keyboard):
    for typed in ("one\r", "two\r", "two\r", " \r"):
        keyboard.send_text(typed)
        editor.read(str)
    keyboard.send_text(f"{UP}{UP}\r")
    assert editor.read(str) == "one"


def test_a_text_may_stand_in_the_line(editor, keyboard):
    keyboard.send_text("!\r")
    assert editor.read(str, default="one\x1b\r\ntwo") == "one\ntwo!"


@pytest.mark.parametrize(("key", "error"), [("\x03", KeyboardInterrupt), ("\x04", EOFError)])
def test_an_empty_line_can_be_left(editor, keyboard, key, error):
    keyboard.send_text(f"one\x03{key}rest\r")
    with pytest.raises(error):
        editor.read(str)
    assert editor.read(str) == "rest"


def test_a_terminal_that_goes_away_is_an_end(editor, keyboard):
    keyboard.send_text("half")
    keyboard.close()
    with pytest.raises(EOFError):
        editor.read(str)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("typed", ["", "half", "/s\t\t", "\x12one", '"""open\r'])
def test_a_stop_ends_a_read_wherever_it_is(editor, keyboard, typed):
    shown = threading.Event()

    def meter():
        shown.set()
        return ""

    def stop():
        shown.wait()
        time.sleep(0.05)
        editor.stop(Stopped())

    keyboard.send_text(typed)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped):
        editor.read(meter)
    thread.join()
    if not typed:  # else what was typed may have come too late, and is there for the next read
        keyboard.send_text("next\r")
        assert editor.read(str) == "next"


def test_a_stop_before_a_read_ends_it_at_once(editor, keyboard):
    error = Stopped()
    editor.stop(error)
    with pytest.raises(Stopped) as raised:
        editor.read(str)
    assert raised.value is error


def test_what_fails_beside_the_line_ends_the_read(editor, keyboard):
    def fail():
        raise Stopped

    def meter():
        asyncio.get_running_loop().call_soon(fail)
        return ""

    with pytest.raises(Stopped):
        editor.read(meter)


def test_a_meter_that_fails_disturbs_nobody(editor, keyboard):
    def meter():
        raise ValueError

    keyboard.send_text("one\r")
    assert editor.read(meter) == "one"


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(st.text(max_size=40))
def test_a_paste_is_read_cleaned(editor, keyboard, text):
    keyboard.send_text(f"\x1b[200~{cleaned(text)}\x1b[201~\r")
    assert editor.read(str) == cleaned(text)


@given(st.text())
def test_a_cleaned_text_can_be_written_and_stays_as_it_is(text):
    assert cleaned(cleaned(text)) == cleaned(text)
    cleaned(text).encode("utf-8")
    assert all(
        char.isprintable() or not char.isascii()
        for char in cleaned(text).translate({9: None, 10: None})
    )


def test_marks_open_and_close():
    assert [is_open(text) for text in ('"""', ' """a', '""""', '"""""', '"""a"')] == [True] * 5
    assert [is_open(text) for text in ('""""""', '"""a""" ', "", "a", 'a """')] == [False] * 5
