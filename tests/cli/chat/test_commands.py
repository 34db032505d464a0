"""Every command of the table, on a played-back engine, with somebody at a terminal."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from localv4.cli.chat import commands
from localv4.cli.chat.commands import COMMANDS
from localv4.errors import ContextOverflow
from localv4.events import Event, EventKind, Usage
from localv4.state_file import read_head, write_state
from tests.cli.chat.test_chat import contents, interrupt
from tests.cli.conftest import done, event

HELLO = ("assistant", "Hello")


@pytest.fixture
def bytes_(engine):
    engine.tokenizer = SimpleNamespace(encode=str.encode)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    folder: Path = tmp_path / "sessions"
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", str(folder))
    return folder


def piece(text: str, *ids: int, kind: EventKind = "text") -> Event:
    return Event(kind, text, ids)


def cut(n_tokens: int) -> Event:
    return Event("done", finish_reason="length", usage=Usage(5, n_tokens, 0))


def test_the_table_is_whole():
    names = {name for command in COMMANDS for name in command.names}
    asked = "/help /new /clear /system /think /thoughts /retry /undo /more /edit /read /save /load"
    assert set(asked.split()) | {"/sessions", "/set", "/stats", "/quit"} <= names
    assert all(command.help for command in COMMANDS)
    widest = max(len(command.usage) for command in COMMANDS)
    assert max(widest + 2 + len(command.help) for command in COMMANDS) < 80


def test_help_fits_80_columns_and_says_more_of_one(engine, type_lines):
    result, _ = type_lines("/help", "/help undo", "/help /clear")
    # the card may come before or behind it
    listed = result.err[result.err.index("/help [COMMAND]") : result.err.index("/help COMMAND ")]
    assert max(map(len, listed.splitlines())) < 80
    assert "/undo [N]\nTake back the last N turns, else one." in result.err
    assert "/new\nStart over." in result.err
    assert "Also /clear." in result.err


def test_system_is_shown_changed_and_removed(engine, type_lines):
    result, _ = type_lines("/system", "/system Be brief.", "one", "/system", "/new", "two")
    assert "system message: none\n" in result.err
    assert "system message: Be brief.\n" in result.err
    opening = ("system", "Be brief.")
    assert contents(engine.asked[0]) == [opening, ("user", "one")]
    assert contents(engine.asked[1]) == [opening, ("user", "two")]
    result, _ = type_lines("one", "/system x", "two", "/system none", "three")
    assert "the next message reads the conversation again" in result.err
    assert contents(engine.asked[-1])[0] == ("user", "one")


def test_think_changes_the_level_of_what_follows(engine, type_lines):
    result, _ = type_lines("/think", "one", "/think max", "two", "/new", "three", "/think low")
    assert "thinking: high (off, high, max)" in result.err
    assert [asked["thinking"] for asked in engine.asked] == ["high", "max", "max"]
    assert "/think has no level 'low' here; give off, high, max" in result.err
    assert "localv4: thinking max wants" not in result.err
    result, _ = type_lines("/think max", arguments=("--context", "100"))
    assert "thinking max wants a context" in result.err


def test_thoughts_can_be_shown_afterwards(engine, type_lines):
    engine.events = [piece("Hm, so", 1, kind="reasoning"), event("text", "4"), done()]
    result, _ = type_lines("/thoughts", "/thoughts hide", "one", "/thoughts show", "/thoughts x")
    assert "thoughts: fold (show, fold, hide)\n" in result.err
    assert result.err.count("Hm, so") == 1
    assert result.err.index("Hm, so") > result.err.index("(thoughts: show)")
    assert "/thoughts cannot be 'x'; give show, fold, hide" in result.err


def test_retry_replaces_the_last_answer(engine, type_lines):
    engine.later = [[event("text", "A"), done()], [event("text", "B"), done()]]
    result, _ = type_lines("/retry", "one", "/retry", "two")
    assert "nothing was asked that could be asked again" in result.err
    assert contents(engine.asked[1]) == [("user", "one")]
    assert contents(engine.asked[2])[:2] == [("user", "one"), ("assistant", "B")]
    seeds = [asked["sampling"].seed for asked in engine.asked]
    assert len(set(seeds)) == 3


def test_retry_keeps_the_old_answer_if_there_is_no_other(engine, type_lines):
    engine.later = [[event("text", "A"), done()], [ContextOverflow("no room; go")]]
    result, lines = type_lines("one", "/retry", "two")
    assert contents(engine.asked[2]) == [("user", "one"), ("assistant", "A"), ("user", "two")]
    assert "no room; /new starts over" in result.err or "no room; go" in result.err
    assert lines.defaults[2] == ""


def test_retry_says_that_the_same_answer_would_come(engine, type_lines):
    result, _ = type_lines("one", "/retry", "/set seed none", "/retry", arguments=("--seed", "7"))
    assert "the same answer would come again; /set seed none" in result.err
    assert len(engine.asked) == 2


def test_undo_takes_back_turns(engine, type_lines):
    result, _ = type_lines("one", "two", "three", "/undo", "/undo 3", "/undo x", "/undo 2", "four")
    assert "(took back 1 turn; 2 left)" in result.err
    assert "/undo cannot take back 3: the conversation has 2" in result.err
    assert "/undo takes a number of turns, not 'x'" in result.err
    assert contents(engine.asked[-1]) == [("user", "four")]


def test_more_goes_on_with_what_was_cut(engine, type_lines):
    engine.later = [[piece("par", 5, 6), cut(2)], [piece("tial", 7), done()]]
    arguments = ("--max-tokens", "2", "--think", "high")
    result, _ = type_lines("/more", "one", "/think off", "/more", "two", arguments=arguments)
    assert "there is no answer that ended early" in result.err
    assert "(cut after 2 tokens, as max_tokens says; /more goes on)" in result.err
    more = engine.asked[1]
    assert contents(more) == [("user", "one")]
    assert (more["begun"], more["thinking"]) == ((5, 6), "high")
    assert more["sampling"].seed == engine.asked[0]["sampling"].seed
    assert contents(engine.asked[2])[1] == ("assistant", "partial")
    assert result.out.startswith("par\ntial\n")


def test_more_several_times_and_after_a_character_cut_in_two(engine, type_lines):
    engine.later = [
        [piece("a\ufffd", 5), cut(1)],
        [piece("\u00e9b", 6), cut(1)],
        [piece("c", 7), done()],
    ]
    type_lines("one", "/more", "/more", "/more", "two", arguments=("--max-tokens", "1"))
    assert [asked.get("begun") for asked in engine.asked] == [(), (5,), (5, 6), ()]
    assert contents(engine.asked[3])[1] == ("assistant", "a\u00e9bc")


def test_no_answer_yet(engine, type_lines):
    engine.events = [piece("Hm", 1, 2, 3, kind="reasoning"), cut(3)]
    result, _ = type_lines("one", arguments=("--max-tokens", "3"))
    assert "no answer yet: all 3 tokens went into thinking; /more continues\n" in result.err


def test_more_survives_saving(engine, type_lines, folder):
    engine.later = [[piece("par", 5, 6), cut(2)]]
    type_lines("one", arguments=("--session", "a", "--max-tokens", "2"))
    saved = read_head(folder / "a.session")["conversation"]["unfinished"]
    assert saved == {"ids": [5, 6], "seed": engine.asked[0]["sampling"].seed, "think": "high"}
    engine.later = [[piece("tial", 7), done()]]
    type_lines("/more", arguments=("--session", "a"))
    assert engine.asked[1]["begun"] == (5, 6)
    head = read_head(folder / "a.session")["conversation"]
    assert head["messages"][1]["content"] == "partial"
    assert "unfinished" not in head


def test_edit_asks_another_question_in_place_of_the_last(engine, type_lines):
    result, lines = type_lines("one", "/edit", "won", "two", "/edit too")
    assert lines.defaults[2] == "one"
    assert contents(engine.asked[1]) == [("user", "won")]
    assert contents(engine.asked[3])[2] == ("user", "too")
    result, _ = type_lines("/edit", "one", "/edit", KeyboardInterrupt(), "two")
    assert "nothing was asked that could be changed" in result.err
    assert "(left as it was)" in result.err
    assert contents(engine.asked[-1])[:2] == [("user", "one"), HELLO]


@pytest.mark.usefixtures("bytes_")
def test_read_sends_files_with_the_next_message(engine, type_lines, tmp_path):
    (tmp_path / "a.txt").write_text("Dear John,\n")
    (tmp_path / "b.txt").write_text("More.")
    read = [f"/read {tmp_path / name}.txt" for name in "ab"]
    result, lines = type_lines(*read, "Summarise", "next")
    message = "a.txt:\n\nDear John,\n\n\nb.txt:\n\nMore.\n\nSummarise"
    assert contents(engine.asked[0]) == [("user", message)]
    assert contents(engine.asked[1])[-1] == ("user", "next")
    assert "(a.txt: 11 B, 11 tokens; goes with your next message)" in result.err
    assert lines.meters[2].endswith("+a.txt +b.txt")
    assert lines.meters[3].endswith("1M")


@pytest.mark.usefixtures("bytes_")
def test_read_keeps_the_files_of_a_turn_that_failed(engine, type_lines, tmp_path):
    (tmp_path / "a.txt").write_text("A")
    engine.later = [[ContextOverflow("no room; go")]]
    _, lines = type_lines(f"/read {tmp_path}/a.txt", "one", "two", "/read none", "three")
    assert contents(engine.asked[1]) == [("user", "a.txt:\n\nA\n\ntwo")]
    assert lines.defaults[2] == "one"
    result, _ = type_lines("/read nowhere.txt", f"/read {tmp_path}")
    assert "nowhere.txt cannot be read: No such file" in result.err
    assert "Is a directory" in result.err


def test_set(engine, type_lines):
    result, _ = type_lines("/set top_k 5", "/set seed=9", "one", "/set top_k none", "/set", "two")
    first, second = (asked["sampling"] for asked in engine.asked)
    assert (first.top_k, first.seed, second.top_k, second.seed) == (5, 9, 0, 9)
    assert "temperature  1\n" in result.err
    assert "seed         9\n" in result.err
    assert "max_tokens   none\n" in result.err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("/set x 1", "/set knows no x; it knows temperature, top_p, top_k, min_p, seed, max_t"),
        ("/set seed", "/set takes a name and a value; try /set seed 7"),
        ("/set temperature 1 2", "/set takes a name and a value; try /set temperature 0.7"),
        ("/set top_p high", "top_p is 'high'; give a number, or none"),
        ("/set top_k 1.5", "top_k is '1.5'; give a whole number, or none"),
        ("/set top_p 3", "top_p is 3.0; it must be above 0 and at most 1"),
        ("/set temperature nan", "temperature is nan; it must be"),
        ("/set max_tokens 0", "max_tokens is 0; give at least 1, or none"),
    ],
)
def test_set_refuses_what_makes_no_sense(engine, type_lines, typed, said):
    result, _ = type_lines(typed, "one")
    assert f"localv4: {said}" in result.err
    assert engine.asked[0]["sampling"].temperature == 1


def test_flags_are_the_first_knobs(engine, type_lines):
    flags = "--temperature 0.5 --top-p 0.9 --top-k 4 --min-p 0.1 --seed 3 --max-tokens 9"
    type_lines("one", arguments=tuple(flags.split()))
    sampling = engine.asked[0]["sampling"]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 4)
    assert (sampling.min_p, sampling.seed, engine.asked[0]["max_tokens"]) == (0.1, 3, 9)
    result, _ = type_lines("one", arguments=("--top-p", "2"))
    assert result.code == 2


def test_stats(engine, type_lines):
    result, _ = type_lines("one", "/stats")
    assert "1 turn, not saved; context: 0 of 1,048,576 tokens" in result.err


def test_names_are_case_blind_and_quit_has_several(engine, type_lines):
    result, _ = type_lines("one", "/BYE", "two")
    assert (result.code, len(engine.asked)) == (0, 1)


def test_an_empty_answer_is_said(engine, type_lines):
    engine.events = [done()]
    result, _ = type_lines("one")
    assert "(the answer is empty; /retry asks again)" in result.err


def test_a_turn_that_was_stopped_before_it_began_can_be_typed_again(engine, type_lines):
    engine.later = [[interrupt]]
    _, lines = type_lines("one", "two")
    assert lines.defaults[1] == "one"


def test_several_lines(engine, type_lines):
    type_lines('"""\none\n\ntwo\n"""', "//etc", "  three  ")
    assert [contents(asked)[-1][1] for asked in engine.asked] == ["one\n\ntwo", "/etc", "three"]


def test_two_chats_on_one_name_lose_nothing(engine, type_lines, folder):
    def other_chat() -> str:
        path = folder / "a.session"
        head = read_head(path)
        head["conversation"]["messages"][0]["content"] = "theirs"
        write_state(path, {**head, "conversation_version": "another"}, {})
        return "mine"

    type_lines("first", arguments=("--session", "a"))
    result, _ = type_lines(other_chat, arguments=("--session", "a"))
    assert "another chat has saved 'a' meanwhile; this one is 'first'" in result.err
    last = {path.stem: _questions(path)[-1] for path in folder.iterdir()}
    assert last == {"a": "theirs", "first": "mine"}


def _questions(path: Path) -> list[str]:
    messages = read_head(path)["conversation"]["messages"]
    return [message["content"] for message in messages if message["role"] == "user"]


class Asked:
    """Stands in for a conversation at work where only completion asks."""

    engine_if_open = None


def suggested(typed: str) -> list[str]:
    talk: Any = Asked()
    rows = commands.suggestions(talk, typed)
    return [typed[: len(typed) - row.behind] + row.text for row in rows]


def test_suggestions(tmp_path, monkeypatch):
    assert suggested("/th") == ["/think ", "/thoughts "]
    assert suggested("/think m") == ["/think max"]
    assert suggested("/thoughts ") == ["/thoughts show", "/thoughts fold", "/thoughts hide"]
    assert suggested("/set t") == ["/set temperature ", "/set top_p ", "/set top_k "]
    assert suggested("/help /un") == ["/help /undo"]
    assert suggested("hello") == suggested("//th") == suggested("/none x") == []
    (tmp_path / "letter.txt").touch()
    (tmp_path / "letters").mkdir()
    monkeypatch.chdir(tmp_path)
    assert suggested("/read let") == ["/read letter.txt", "/read letters/"]
    assert suggested(f"/read {tmp_path}/letter.") == [f"/read {tmp_path}/letter.txt"]
    assert suggested("/read nowhere/x") == []


def test_a_tool_call_that_nobody_asked_for_is_shown(engine, type_lines):
    from localv4.events import ToolCall

    engine.events = [Event("tool_call", tool_call=ToolCall("c1", "look", "{}")), done()]
    result, _ = type_lines("one")
    call = json.dumps({"id": "c1", "name": "look", "arguments": "{}"})
    assert f"localv4: the model calls a tool: {call}" in result.err
