"""Saved conversations in a chat: commands on a played-back engine, then the real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from localv4.errors import DamagedSession, OutOfBudget
from localv4.state_file import read_head, write_state
from localv4.synthetic import synthesise
from tests.cli.chat.test_chat import contents
from tests.cli.conftest import event
from tests.conftest import ROOT

HELLO = ("assistant", "Hello")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    folder: Path = tmp_path / "sessions"
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", str(folder))
    return folder


def saved(folder: Path, name: str) -> list[tuple[str, str]]:
    conversation = read_head(folder / f"{name}.session")["conversation"]
    return [(message["role"], message["content"]) for message in conversation["messages"]]


def test_save_and_load(engine, command, folder):
    result = command(
        "chat", "--system", "S", stdin=b"one\n/save a b\n/new\ntwo\n/load a b\nthree\n"
    )
    assert result.code == 0
    assert "saved as 'a b', " in result.err
    # the played-back session has no state to load
    assert "loaded 'a b': 1 turn, from its text" in result.err
    opening = ("system", "S")
    assert contents(engine.asked[1]) == [opening, ("user", "two")]
    assert contents(engine.asked[2]) == [opening, ("user", "one"), HELLO, ("user", "three")]
    # it has a name, so it was saved at the end
    assert saved(folder, "a b") == [("user", "one"), HELLO, ("user", "three"), HELLO]


def test_what_has_no_name_is_not_saved(engine, command, type_lines, folder):
    assert "saved" not in command("chat", stdin=b"one\n").err
    result, _ = type_lines("one")
    assert result.err.endswith("(not saved: /save does that, or chat --session NAME)\n")
    assert not folder.exists()


def test_save_makes_a_name_and_keeps_it(engine, command, folder):
    command("chat", stdin=b"One, two!\n/save\nthree\n/save\n/new\nOne two\n/save\n")
    assert [len(saved(folder, name)) for name in ("one-two", "one-two-2")] == [4, 2]
    assert len(list(folder.iterdir())) == 2


def test_sessions_lists_them(engine, command, folder):
    result = command("chat", stdin=b"/sessions\none\n/save a\n/sessions\n")
    assert (result.code, result.out) == (0, "Hello\n")
    assert "nothing is saved yet\n" in result.err
    assert re.search(r"\nname .*title\na  .*  one \(.*\)\n", result.err)


def test_what_cannot_be_done_is_a_sentence_and_the_chat_goes_on(engine, command, folder):
    lines = (
        b"/save x\none\n/save ../x\n/save a\n/load aa\n/new\n/save\ntwo\n/save a\n/load .\nend\n"
    )
    result = command("chat", stdin=lines)
    assert result.code == 0
    said = [line for line in result.err.splitlines() if line.startswith("localv4: ")]
    assert [re.sub(r";.*", "", line.removeprefix("localv4: ")) for line in said] == [
        "nothing was said that could be saved",
        "the session's name '../x' holds a character that some systems allow in no file's",
        "there is no session 'aa'",
        "nothing was said that could be saved",
        "another conversation is saved as 'a'",
        "the session's name '.' begins or ends with a dot or a space, or is a device's on Windows",
    ]
    assert "did you mean 'a'?" in said[2]
    # what failed changed nothing
    assert contents(engine.asked[-1]) == [("user", "two"), HELLO, ("user", "end")]


def test_without_a_home_folder(engine, command, monkeypatch):
    monkeypatch.delenv("LOCALV4_SESSIONS_DIR")
    monkeypatch.setattr("localv4.settings._user_folder", lambda kind: None)
    monkeypatch.setenv("LOCALV4_CACHE_DIR", "/nowhere")
    result = command("chat", stdin=b"one\n/save a\ntwo\n")
    assert (result.code, len(engine.asked)) == (0, 2)
    assert "let LOCALV4_SESSIONS_DIR name one" in result.err
    assert command("chat", "--session", "a").code == 2


def test_a_session_is_begun_and_gone_on_with(engine, command, folder):
    result = command("chat", "--session", "a", stdin=b"one\n/quit\n")
    assert (result.code, saved(folder, "a")) == (0, [("user", "one"), HELLO])
    assert "saved as 'a'" in result.err
    result = command("chat", "--session", "a", stdin=b"two\n")
    assert contents(engine.asked[1]) == [("user", "one"), HELLO, ("user", "two")]
    assert "saved as 'a'" in result.err
    assert len(saved(folder, "a")) == 4


def test_a_session_in_which_nothing_was_said_is_not_written(engine, command, folder):
    assert "saved" not in command("chat", "--session", "a", stdin=b"/quit\n").err
    assert not folder.exists()
    command("chat", "--session", "a", stdin=b"one\n")
    before = (folder / "a.session").stat()
    os.utime(folder / "a.session", (0, 0))
    assert "saved" not in command("chat", "--session", "a", stdin=b"").err
    after = (folder / "a.session").stat()
    assert after.st_ino == before.st_ino
    # it was used, though
    assert after.st_mtime > 1e9


def test_new_and_load_save_the_session_they_leave(engine, command, folder):
    command("chat", "--session", "a", stdin=b"one\n/new\ntwo\n/quit\n")
    assert saved(folder, "a") == [("user", "one"), HELLO]
    command("chat", "--session", "b", stdin=b"three\n/load a\nfour\n")
    assert len(saved(folder, "a")) == 4
    assert saved(folder, "b") == [("user", "three"), HELLO]
    # one that is loaded while it is open is not taken back
    command("chat", "--session", "b", stdin=b"five\n/load b\nsix\n")
    assert len(saved(folder, "b")) == 6


def test_leaving_with_ctrl_c_saves(engine, type_lines, folder):
    leaves = KeyboardInterrupt(), KeyboardInterrupt()
    result, _ = type_lines("one", *leaves, arguments=("--session", "a"))
    assert result.code == 130
    assert "saved as 'a'" in result.err
    assert saved(folder, "a") == [("user", "one"), HELLO]


def test_ctrl_c_while_a_session_is_loaded_stays_in_the_chat(engine, command, folder, type_lines):
    command("chat", "--session", "a", stdin=b"one\n")
    engine.refusal = KeyboardInterrupt()
    result, _ = type_lines("two", "/load a", "three", "/quit")
    assert result.code == 0
    assert "(stopped)\n" in result.err
    assert contents(engine.asked[-1]) == [("user", "two"), HELLO, ("user", "three")]


def test_a_session_that_cannot_be_saved_fails_at_the_end(engine, command, folder, monkeypatch):
    monkeypatch.setenv("LOCALV4_SESSION_LIMIT", "9")
    result = command("chat", "--session", "a", stdin=b"one\n/new\ntwo\n")
    assert result.code == 4
    assert result.err.count("raise LOCALV4_SESSION_LIMIT") == 2
    # /new would have lost it
    assert contents(engine.asked[1]) == [("user", "one"), HELLO, ("user", "two")]


def test_quit_at_a_terminal_waits_for_a_session_to_be_saved(
    engine, folder, monkeypatch, type_lines
):
    monkeypatch.setenv("LOCALV4_SESSION_LIMIT", "9")
    result, _ = type_lines("one", "/quit", "two", arguments=("--session", "a"))
    assert (result.code, len(engine.asked)) == (4, 2)
    assert result.err.count("Ctrl-D leaves all the same") == 1
    assert result.err.count("raise LOCALV4_SESSION_LIMIT") == 2


@pytest.mark.parametrize("error", [DamagedSession("torn; why"), OutOfBudget("too large; why")])
def test_a_refused_state_opens_the_text(engine, command, folder, error):
    command("chat", "--session", "a", stdin=b"one\n")
    engine.refusal = error
    result = command("chat", "--session", "a", "-v", stdin=b"two\n")
    assert f"localv4: {error}\nloaded 'a': 1 turn, from its text" in result.err
    assert "> one\nHello\n" in result.err
    assert contents(engine.asked[1]) == [("user", "one"), HELLO, ("user", "two")]


def test_a_damaged_head_is_a_failure_before_the_model_is_opened(engine, command, folder):
    command("chat", "--session", "a", stdin=b"one\n")
    os.truncate(folder / "a.session", 40)
    engine.loaded.clear()
    result = command("chat", "--session", "a", stdin=b"two\n")
    assert (result.code, engine.loaded) == (3, {})
    assert "a.session is truncated or damaged" in result.err
    result = command("chat", stdin=b"two\n/load a\nthree\n")
    assert result.code == 0
    assert "a.session is truncated or damaged" in result.err
    assert contents(engine.asked[-1]) == [("user", "two"), HELLO, ("user", "three")]
    assert (folder / "a.session").stat().st_size == 40


def test_a_folder_that_may_not_be_changed_still_opens(engine, command, folder, monkeypatch):
    command("chat", "--session", "a", stdin=b"one\n")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("localv4.session_store.os.utime", refuse)
    monkeypatch.setattr("localv4.replacing.tempfile.mkstemp", refuse)
    result = command("chat", "--session", "a", stdin=b"")
    assert (result.code, result.err) == (0, "loaded 'a': 1 turn, from its text, which the next "
                                            "turn reads\n")  # fmt: skip
    result = command("chat", "--session", "a", stdin=b"two\n")
    assert result.code == 1
    assert "cannot be saved (Permission denied)" in result.err


def test_a_conversation_keeps_its_beginning_and_level(engine, command, folder):
    command("chat", "--session", "a", "--system", "S", "--think", "off", stdin=b"one\n")
    result = command("chat", "--session", "a", "--system", "T", stdin=b"two\n/new\nthree\n")
    assert "--system is left out" in result.err
    assert contents(engine.asked[1])[0] == ("system", "S")
    assert contents(engine.asked[2])[0] == ("system", "T")
    assert [asked["thinking"] for asked in engine.asked] == ["off", "off", "high"]
    command("chat", "--session", "a", "--think", "max", stdin=b"two\n")
    assert engine.asked[3]["thinking"] == "max"


def test_what_a_file_says_cannot_act_on_the_terminal(engine, command, folder):
    engine.events = [event("text", "\x1b[2Jred\r"), *engine.events[1:]]
    command("chat", "--session", "a", stdin=b"one\x07\n")
    result = command("chat", "-v", stdin=b"/load a\n/sessions\n")
    assert "> one\ufffd\n\ufffd[2Jred" in result.err
    assert "\x1b" not in result.err
    assert "\x07" not in result.err


def test_long_last_turns_are_cut(engine, command):
    engine.events = [event("text", "b" * 5000 + "end"), *engine.events[1:]]
    command("chat", "--session", "a", stdin=b"a" * 5000 + b"\n")
    shown = command("chat", "--session", "a", "-v", stdin=b"").err
    assert f"> {'a' * 300} ...\n... " in shown
    assert shown.count("b") < 1600
    assert "end\n" in shown


QUESTION = b"How much is it? " * 40


@pytest.fixture
def chat(command, checkpoint):
    """Return a function that chats with a real model, of which each answer has 5 tokens."""

    def run(*arguments: str, lines: bytes, model: Path = checkpoint):
        flags = ["--max-tokens", "5", "--seed", "1", "--think", "off", "-v", "-m", str(model)]
        return command("chat", *flags, *arguments, stdin=lines)

    return run


def prompts(err: str) -> list[int]:
    """Return how many tokens of each turn were read."""
    return [int(count.replace(",", "")) for count in re.findall(r"prompt ([\d,]+) at", err)]


def test_another_process_reads_only_what_is_new(checkpoint, chat, folder):
    arguments = [sys.executable, "-m", "localv4", "chat", "-m", str(checkpoint), "--session", "a"]
    arguments += ["--max-tokens", "5", "--seed", "1", "--think", "off", "-v"]

    def talk(line: bytes) -> str:
        done = subprocess.run(
            arguments, input=line, cwd=ROOT, capture_output=True, timeout=400, check=True
        )
        return done.stderr.decode()

    (first,) = prompts(talk(QUESTION + b"\n"))
    assert first > len(QUESTION)
    assert len(saved(folder, "a")) == 2
    err = talk(b"And now?\n")
    assert re.search(rf"loaded 'a': 1 turn, {first + 4:,} tokens from its state", err)
    (second,) = prompts(err)
    assert second < 30
    assert len(saved(folder, "a")) == 4


def test_a_torn_state_opens_the_text(chat, folder):
    (first,) = prompts(chat("--session", "a", lines=QUESTION + b"\n").err)
    path = folder / "a.session"
    os.truncate(path, path.stat().st_size - 100)
    result = chat("--session", "a", lines=b"And now?\n")
    assert result.code == 0
    assert "text is intact and opens without its state" in result.err
    assert "loaded 'a': 1 turn, from its text" in result.err
    (second,) = prompts(result.err)
    assert second > first
    # and it was saved anew, with its state
    assert "tokens from its state" in chat("--session", "a", lines=b"").err


def test_another_models_state_opens_the_text(chat, folder, tmp_path):
    chat("--session", "a", lines=QUESTION + b"\n")
    other = tmp_path / "other"
    synthesise(other, seed=5, compress_ratios=(0, 4))
    result = chat("--session", "a", lines=b"", model=other)
    assert result.code == 0
    assert "saved by another model" in result.err
    assert "from its text" in result.err


def test_a_smaller_context_opens_the_text_and_says_what_does_not_fit(chat, folder):
    chat("--session", "a", lines=QUESTION + b"\n")
    result = chat("--session", "a", "--context", "100", lines=b"And now?\n/new\nHi\n")
    assert result.code == 0
    assert "tokens, more than a context of 100; open it with a larger one" in result.err
    assert "from its text" in result.err
    assert re.search(
        r"localv4: \d+ tokens do not fit a context of 100; /new starts over", result.err
    )
    assert len(prompts(result.err)) == 1


def test_a_chat_without_a_conversation_of_its_own_file(chat, folder):
    folder.mkdir()
    write_state(folder / "a.session", {"title": "of a program"}, {})
    result = chat("--session", "a", lines=b"")
    assert result.code == 3
    assert "holds no conversation" in result.err


def test_too_long_a_prompt_is_refused_with_both_numbers(chat, command, checkpoint):
    words = r"localv4: \d{3} tokens do not fit a context of 300; shorten the input or ask for a"
    result = chat("--context", "300", lines=QUESTION + b"\n")
    assert (result.code, result.out) == (0, "")
    assert re.search(words, result.err)
    assert prompts(result.err) == []
    flags = ["--context", "300", "-m", str(checkpoint)]
    result = command("run", QUESTION.decode(), *flags)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(words + " larger context\n", result.err)
