import os
import signal
import time

from localv4.errors import ContextOverflow
from localv4.generate import Usage
from tests.cli.conftest import done, event


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
    assert result.err.count("localv4: too long\n") == 2
    assert contents(engine.asked[1]) == [("user", "two")]
