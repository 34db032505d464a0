import builtins
import os
import signal
import sys
import time

import pytest

from localv4.cli.app import run_command
from localv4.errors import ContextOverflow
from localv4.generate import Usage
from tests.cli.conftest import Stdin, done, event


def contents(asked) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in asked["prompt"]]


def test_a_conversation_keeps_its_turns(engine, command):
    result = command("chat", "--system", "S", stdin=b"one\n\ntwo\n/quit\nnever\n")
    assert (result.code, result.out) == (0, "HelloHello")
    assert contents(engine.asked[1]) == [
        ("system", "S"),
        ("user", "one"),
        ("assistant", "Hello"),
        ("user", "two"),
    ]
    assert len(engine.asked) == 2


def test_thinking_is_kept_apart(engine, command):
    engine.events = [event("reasoning", "Hm"), event("text", "4"), done()]
    result = command("chat", stdin=b"one\ntwo\n")
    assert result.out == "44"
    assert "Hm" in result.err
    assert engine.asked[1]["prompt"][1] == {
        "role": "assistant",
        "content": "4",
        "reasoning_content": "Hm",
    }


def test_commands(engine, command):
    result = command("chat", stdin=b"one\n/new\n/help\n/frob x\n//slash\n")
    assert contents(engine.asked[1]) == [("user", "/slash")]
    assert "/quit" in result.err
    assert "there is no command /frob" in result.err


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_the_answer_and_keeps_it(engine, command):
    engine.events = [event("prefill", usage=Usage(5, 0, 0)), event("text", "par"), interrupt]
    result = command("chat", stdin=b"one\ntwo\n")
    assert (result.code, result.out) == (0, "parpar")
    assert "(stopped)" in result.err
    assert contents(engine.asked[1]) == [("user", "one"), ("assistant", "par"), ("user", "two")]
    # Stopped between two tokens: the session stays as it is.
    assert engine.asked[0]["session"].resets == 0


def test_ctrl_c_while_the_prompt_is_read_takes_the_turn_back(engine, command):
    engine.events = [interrupt, lambda: time.sleep(20)]
    assert command("chat", stdin=b"one\ntwo\n").code == 0
    assert contents(engine.asked[1]) == [("user", "two")]
    assert engine.asked[0]["session"].resets == 2


def test_a_second_ctrl_c_stops_at_once(engine, command):
    def twice() -> None:
        interrupt()
        interrupt()
        time.sleep(20)

    engine.events = [event("prefill", usage=Usage(5, 0, 0)), event("text", "par"), twice]
    assert command("chat", stdin=b"one\n").out == "par"
    assert engine.asked[0]["session"].resets == 1


def test_sigterm_ends_the_chat(engine, command):
    engine.events = [event("text", "par"), lambda: os.kill(os.getpid(), signal.SIGTERM)]
    result = command("chat", stdin=b"one\ntwo\n")
    assert (result.code, result.out) == (143, "par")
    assert len(engine.asked) == 1
    assert engine.closed


def test_all_turns_share_one_session(engine, command):
    command("chat", "--context", "50", stdin=b"one\ntwo\n")
    assert engine.contexts == [50]
    assert engine.asked[0]["session"] is engine.asked[1]["session"]


def test_a_failed_turn_is_taken_back(engine, command):
    engine.events = [ContextOverflow("too long")]
    result = command("chat", stdin=b"one\ntwo\n")
    assert result.code == 0
    assert result.err.count("localv4: too long; /new starts over") == 2
    assert contents(engine.asked[1]) == [("user", "two")]


def test_a_full_context_is_said(engine, command):
    engine.events = [event("text", "par"), done("length")]
    assert "/new starts over" in command("chat", stdin=b"one\n").err
    # Two tokens: --max-tokens ended it, not the context.
    assert "/new" not in command("chat", "--max-tokens", "2", stdin=b"one\n").err
    assert "/new starts over" in command("chat", "--max-tokens", "3", stdin=b"one\n").err


def test_a_line_that_is_not_utf8_is_refused_and_the_next_one_read(engine, command):
    result = command("chat", stdin=b"caf\xe9\ncaf\xc3\xa9\r\n")
    assert "the line is not UTF-8 text: byte 0xe9 at 3" in result.err
    assert [contents(asked) for asked in engine.asked] == [[("user", "café")]]


@pytest.fixture
def type_lines(monkeypatch, command):
    """Return a function that runs a chat at a terminal; an exception is raised at its prompt."""

    def run(*lines):
        steps = iter(lines)

        def read(_prompt):
            line = next(steps)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", read)
        return command("chat", terminal=True)

    return run


class Editor:
    """Stands in for readline, which holds a half-typed line."""

    line = ""

    def get_line_buffer(self) -> str:
        return self.line


def test_what_the_locale_could_not_decode_is_read_as_utf8(engine, type_lines):
    type_lines("caf\udcc3\udca9", EOFError())
    assert contents(engine.asked[0]) == [("user", "café")]


def test_ctrl_c_clears_a_line_and_at_an_empty_one_leaves(engine, type_lines, monkeypatch):
    editor = Editor()
    monkeypatch.setitem(sys.modules, "readline", editor)
    result = type_lines("one", KeyboardInterrupt(), "never")
    assert (result.code, result.out) == (130, "Hello\n")
    editor.line = "half a line"
    result = type_lines("one", KeyboardInterrupt(), "two", EOFError())
    assert (result.code, result.out) == (0, "Hello\nHello\n")
    assert len(engine.asked[-1]["prompt"]) == 3


def test_closed_standard_streams_end_a_chat(engine, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert run_command(["chat"]) == 0
    monkeypatch.setattr(sys, "stdin", Stdin(b"one\n", terminal=True))
    monkeypatch.setattr(sys, "stdout", None)
    assert run_command(["chat"]) == 0
    assert "error" not in capsys.readouterr().err


def test_a_checkpoint_without_a_tokenizer_is_refused_alike(engine, command, tmp_path):
    engine.tokenizer = None
    said = set()
    for arguments in (["chat"], ["run", "Hi"], ["run", "--raw", "Hi"], ["tokenize", "Hi"]):
        result = command(*arguments, stdin=b"one\n")
        assert (result.code, result.out) == (3, "")
        said.add(result.err)
    assert said == {f"localv4: {tmp_path} has no tokenizer.json; put the release's file there\n"}
