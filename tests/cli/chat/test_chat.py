import os
import re
import signal
import sys
import time

import pytest

from localv4.cli.app import run_command
from localv4.errors import ContextOverflow, LocalV4Error
from localv4.events import Usage
from tests.cli.conftest import Stdin, done, event


def contents(asked) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in asked["prompt"]]


def test_a_conversation_keeps_its_turns(engine, command):
    result = command("chat", "--system", "S", stdin=b"one\n\ntwo\n/quit\nnever\n")
    assert (result.code, result.out) == (0, "Hello\nHello\n")
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
    assert result.out == "4\n4\n"
    assert "Hm" in result.err
    assert engine.asked[1]["prompt"][1] == {
        "role": "assistant",
        "content": "4",
        "reasoning_content": "Hm",
    }


def test_commands(engine, command):
    result = command("chat", stdin=b"one\n/new\n/help\n/frob x\n/lod x\n//slash\n")
    assert contents(engine.asked[1]) == [("user", "/slash")]
    assert "there is no command /frob; /help lists them (// begins" in result.err
    assert "there is no command /lod; did you mean /load?" in result.err


def test_help_lists_every_command(engine, command):
    listed = command("chat", stdin=b"/help\n").err
    for usage in ("/new ", "/save [NAME] ", "/load NAME ", "/sessions ", "/help ", "/quit "):
        assert f"\n{usage}" in f"\n{listed}"


def test_commands_take_what_help_says(engine, command):
    result = command("chat", stdin=b"/new x\n/load\n/quit now\n/help\n")
    assert "/new takes nothing behind it" in result.err
    assert "/load needs a name; type /load NAME" in result.err
    assert "/quit takes nothing" in result.err
    assert re.search(r"\nCtrl-C +stops an answer", result.err)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_the_answer_and_keeps_it(engine, command):
    engine.events = [event("prefill", usage=Usage(5, 0, 0)), event("text", "par"), interrupt]
    result = command("chat", stdin=b"one\ntwo\n")
    assert (result.code, result.out) == (0, "par\npar\n")
    assert "(stopped)" in result.err
    assert contents(engine.asked[1]) == [("user", "one"), ("assistant", "par"), ("user", "two")]


def test_ctrl_c_while_the_prompt_is_read_takes_the_turn_back(engine, command):
    engine.events = [3, interrupt, lambda: time.sleep(20)]
    result = command("chat", stdin=b"one\ntwo\n")
    assert result.code == 0
    words = "(stopped while reading the prompt; 3 of its 5 tokens stay read: ask again to go on)"
    assert result.err.count(words) == 2
    assert contents(engine.asked[1]) == [("user", "two")]


def test_ctrl_c_before_any_of_the_prompt_is_read(engine, command):
    engine.events = [interrupt, lambda: time.sleep(20)]
    assert "(stopped while reading the prompt)\n" in command("chat", stdin=b"one\n").err


def test_ctrl_c_before_the_reading_begins_stays_in_the_chat(engine, command, monkeypatch):
    asked = []

    def generate(prompt, **_):
        asked.append(prompt)
        interrupt()
        time.sleep(20)

    monkeypatch.setattr(engine, "generate", generate)
    result = command("chat", stdin=b"one\ntwo\n")
    assert (result.code, len(asked)) == (0, 2)
    assert result.err == "(stopped while reading the prompt)\n" * 2


def test_a_second_ctrl_c_stops_at_once(engine, command):
    def twice() -> None:
        interrupt()
        interrupt()
        time.sleep(20)

    engine.events = [event("prefill", usage=Usage(5, 0, 0)), event("text", "par"), twice]
    result = command("chat", stdin=b"one\ntwo\n")
    assert result.out == "par\npar\n"
    assert contents(engine.asked[1]) == [("user", "one"), ("assistant", "par"), ("user", "two")]


def test_sigterm_ends_the_chat(engine, command):
    engine.events = [event("text", "par"), lambda: os.kill(os.getpid(), signal.SIGTERM)]
    result = command("chat", stdin=b"one\ntwo\n")
    assert (result.code, result.out) == (143, "par\n")
    assert len(engine.asked) == 1
    assert engine.closed


def test_all_turns_share_one_session(engine, command):
    command("chat", "--context", "50", stdin=b"one\ntwo\n")
    assert engine.contexts == [50]
    assert engine.asked[0]["session"] is engine.asked[1]["session"]


def test_a_failed_turn_is_taken_back(engine, command):
    engine.events = [LocalV4Error("it failed; do this")]
    result = command("chat", stdin=b"one\ntwo\n")
    assert result.code == 0
    assert result.err.count("localv4: it failed; do this\n") == 2
    assert contents(engine.asked[1]) == [("user", "two")]


def test_the_advice_for_too_long_a_conversation(engine, command):
    def overflow() -> None:
        if len(engine.asked) != 2:
            raise ContextOverflow("9 tokens do not fit a context of 8; shorten the input")

    engine.events = [overflow, event("text", "Hello"), done()]
    result = command("chat", "--context", "8", stdin=b"one\ntwo\nthree\n")
    first, second = result.err.splitlines()
    assert first == "localv4: 9 tokens do not fit a context of 8; shorten the input"
    advice = "/new starts over, or start again with a larger --context"
    assert second == f"localv4: 9 tokens do not fit a context of 8; {advice}"
    engine.asked.clear()
    # the context is the model's largest already
    assert "--context" not in command("chat", stdin=b"one\ntwo\nthree\n").err


def test_a_full_context_is_said(engine, command):
    engine.events = [event("text", "par"), done("length")]
    assert "/new starts over" in command("chat", stdin=b"one\n").err
    # Two tokens: --max-tokens ended it, not the context.
    assert "/new" not in command("chat", "--max-tokens", "2", stdin=b"one\n").err
    assert "/new starts over" in command("chat", "--max-tokens", "3", stdin=b"one\n").err


@pytest.mark.parametrize("arguments", [["chat"], ["run", "x"]], ids=" ".join)
def test_thinking_max_wants_a_large_context(engine, command, arguments):
    def said(*flags: str) -> str:
        err: str = command(*arguments, *flags, stdin=b"one\n").err
        return err

    words = "thinking max wants a context of 393,216 tokens or more, and this one has"
    advice = "raise --context, or use --think high"
    assert said("--think", "max") == ""
    assert said("--think", "max", "--context", "393216") == ""
    assert said("--think", "high", "--context", "9") == ""
    assert f"{words} 9; {advice}\n" in said("--think", "max", "--context", "9")
    assert said("--think", "max", "--context", "9", "-q") == ""
    engine.config.max_position_embeddings = 65536
    only = "the model has at most 65,536, so use --think high"
    assert f"{words} 65,536; {only}\n" in said("--think", "max")
    engine.default_thinking = "max"
    assert words in said()


def test_a_line_that_is_not_utf8_is_refused_and_the_next_one_read(engine, command):
    result = command("chat", stdin=b"caf\xe9\ncaf\xc3\xa9\r\n")
    assert "the line is not UTF-8 text: byte 0xe9 at 3" in result.err
    assert [contents(asked) for asked in engine.asked] == [[("user", "café")]]


def test_ctrl_c_twice_leaves(engine, type_lines):
    result, _ = type_lines("one", KeyboardInterrupt(), "two", KeyboardInterrupt(), "three")
    assert (result.code, result.out) == (0, "Hello\nHello\nHello\n")
    assert result.err.count("(Ctrl-C once more leaves, and so does Ctrl-D)") == 2
    result, _ = type_lines("one", KeyboardInterrupt(), KeyboardInterrupt(), "never")
    assert (result.code, result.out) == (130, "Hello\n")


def test_ctrl_c_behind_a_stopped_answer_leaves_unless_it_belongs_to_that(
    engine, type_lines, monkeypatch
):
    engine.events = [event("prefill", usage=Usage(5, 0, 0)), event("text", "par"), interrupt]
    result, _ = type_lines("one", KeyboardInterrupt(), "two")
    assert (result.code, len(engine.asked)) == (0, 2)
    monkeypatch.setattr("localv4.cli.chat.talk._DOUBLE_S", 0)
    engine.asked.clear()
    result, _ = type_lines("one", KeyboardInterrupt(), "two")
    assert (result.code, len(engine.asked)) == (130, 1)


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
