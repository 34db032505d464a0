"""``run --prompts``: JSON lines in, JSON lines out, in one process."""

import json

import pytest

from localv4.errors import ContextOverflow, DamagedCheckpoint, FormatError
from tests.cli.conftest import TOO_LONG, done, event, parsed


def test_a_line_for_each_prompt_with_all_that_json_has(engine, command, answers):
    alone = json.loads(command("run", "One", "--format", "json").out)
    result = answers("One", {"prompt": "Two", "id": "b"}, {"prompt": "Three", "id": 3})
    lines = parsed(result.out)
    assert (result.code, result.err) == (0, "")
    assert [(line["index"], line["id"], line["text"]) for line in lines] == [
        (0, None, "Hello"),
        (1, "b", "Hello"),
        (2, 3, "Hello"),
    ]
    assert list(lines[0]) == ["index", "id", "key", *alone]
    assert len({line["key"] for line in lines}) == 3
    assert [asked["prompt"][0]["content"] for asked in engine.asked[1:]] == ["One", "Two", "Three"]
    assert len({id(asked["session"]) for asked in engine.asked[1:]}) == 1


def test_prompts_come_from_stdin_too(engine, command):
    content = '\ufeff"One"\r\n\n  \n{"prompt": "a\u2028b"}'.encode()
    result = command("run", "--prompts", "-", "--format", "jsonl", stdin=content)
    assert [line["index"] for line in parsed(result.out)] == [0, 3]
    assert engine.asked[1]["prompt"][0]["content"] == "a\u2028b"
    assert command("run", "--prompts", "-").err.startswith("localv4: standard input holds no")


def test_a_line_wins_over_the_flags(engine, answers):
    flags = "--temperature 0.5 --top-p 0.9 --top-k 4 --min-p 0.1 --seed 11 --stop A --max-tokens 7"
    own = {"temperature": 1, "top_p": 0.8, "top_k": 2, "min_p": 0.2, "seed": 5, "stop": ["B", "C"]}
    own |= {"max_tokens": 3, "system": "mine", "think": "max", "prompt": "Two", "id": None}
    arguments = (*flags.split(), "--system", "theirs", "--think", "off")
    result = answers("One", own, {"prompt": "Three", "top_k": None}, arguments=arguments)
    assert [line["seed"] for line in parsed(result.out)] == [11, 5, 11]
    one, two, three = engine.asked
    assert one["sampling"] == three["sampling"]
    assert one["prompt"][0]["content"] == "theirs"
    assert (one["stop"], one["max_tokens"], one["thinking"]) == (["A"], 7, "off")
    sampling = two["sampling"]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1, 0.8, 2)
    assert (sampling.min_p, sampling.seed) == (0.2, 5)
    assert two["prompt"][0]["content"] == "mine"
    assert (two["stop"], two["max_tokens"], two["thinking"]) == (["B", "C"], 3, "max")
    assert "thinking max wants a context" in answers(own, arguments=("--context", "99")).err


def test_a_level_that_the_model_lacks_is_refused_at_once(engine, answers):
    result = answers("a", arguments=("--think", "low"))
    assert (result.code, result.out) == (2, "")
    assert "has no thinking level 'low'" in result.err


def test_a_model_may_lie_anywhere(engine, answers, tmp_path):
    folder = tmp_path / "mod\udcffel"
    folder.mkdir()
    results = tmp_path / "results.jsonl"
    assert answers("a", arguments=("-m", str(folder), "--output", str(results))).code == 0
    assert parsed(results.read_text())[0]["model"].endswith("mod?el")


def test_without_a_seed_each_prompt_draws_one(engine, answers):
    assert len({line["seed"] for line in parsed(answers("One", "One", "One").out)}) == 3


def test_messages_go_to_the_model_as_they_are(engine, answers, tmp_path):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Call f"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    system = {"role": "system", "content": "own"}
    lines = ({"messages": messages}, {"messages": [system, *messages]})
    assert answers(*lines, arguments=("--system", "flag")).code == 0
    first, second = (asked["prompt"] for asked in engine.asked)
    assert first == [{"role": "system", "content": "flag"}, *messages]
    assert second == [system, *messages]


def test_raw_texts_are_continued(engine, answers):
    engine.is_base = True
    result = answers("Once", {"prompt": "Twice"}, arguments=("--raw",))
    assert result.code == 0
    assert [asked["prompt"] for asked in engine.asked] == [[*b"Once"], [*b"Twice"]]
    assert {asked["thinking"] for asked in engine.asked} == {"off"}
    for name in ("system", "think"):
        refused = answers({"prompt": "x", name: "off"}, arguments=("--raw",))
        assert (refused.code, f"{name!r}" in refused.err) == (2, True)


def test_a_base_checkpoint_has_no_chats(engine, answers):
    engine.is_base = True
    result = answers("One")
    assert (result.code, result.out) == (2, "")
    assert "run --raw" in result.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "is not JSON: Expecting property name"),
        (b"\xff", "not UTF-8 text: byte 0xff at 5"),
        (b"\x00", "is not JSON"),
        (b"[1]", "is [1]; write"),
        (b"7", "is 7; write"),
        (b"null", "is None; write"),
        (b'"\\ud800"', "half a character"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' appears twice"),
        (b'{"prompt": "a", "id": 1e999}', "too large a number"),
        (b'{"prompt": "a", "id": NaN}', "NaN is no number"),
        (b'{"prompt": "a", "id": []}', "has the id []; give a text or a number"),
        (b'{"prompt": "a", "id": true}', "has the id True"),
        (b'{"prompt": "a", "temprature": 1}', "unknown member 'temprature'; known are prompt"),
        (b"{}", "needs either a prompt or messages"),
        (b'{"prompt": "a", "messages": []}', "needs either a prompt or messages"),
        (b'""', "the prompt is ''"),
        (b'{"prompt": ["a"]}', "the prompt is ['a']"),
        (b'{"messages": []}', "messages are []"),
        (b'{"messages": "x"}', "messages are 'x'"),
        (b'{"messages": ["x"]}', "message 0 is 'x'"),
        (b'{"messages": [{"role": "robot"}]}', "unknown role 'robot'"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "send a string"),
        (b'{"messages": [{"role": "system", "content": "a"}], "system": "b"}', "two system"),
        (b'{"prompt": "a", "system": 5}', "system is 5"),
        (b'{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
        (b'{"prompt": "a", "max_tokens": true}', "max_tokens is True"),
        (b'{"prompt": "a", "temperature": -1}', "temperature is -1"),
        (b'{"prompt": "a", "temperature": "hot"}', "temperature is 'hot'"),
        (b'{"prompt": "a", "top_p": 0}', "top_p is 0"),
        (b'{"prompt": "a", "top_k": 1.5}', "top_k is 1.5"),
        (b'{"prompt": "a", "min_p": 2}', "min_p is 2"),
        (b'{"prompt": "a", "seed": -1}', "seed is -1"),
        (b'{"prompt": "a", "stop": ""}', "stop is ''"),
        (b'{"prompt": "a", "stop": [5]}', "stop is [5]"),
        (b'{"prompt": "a", "think": "hard"}', "think is 'hard'"),
        (b'{"prompt": "a", "think": []}', "think is []"),
    ],
)
def test_a_bad_line_is_one_sentence_before_the_model_is_opened(engine, command, line, words):
    result = command("run", "--prompts", "-", stdin=b'"a"\n\n' + line)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "standard input line 3" in result.err or b"\xff" in line
    assert result.err.count("\n") == 1
    assert not engine.loaded


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "leave out PROMPT and --prompt-file"),
        (["--prompt-file", "x"], "leave out PROMPT and --prompt-file"),
        (["--format", "json"], "leave out --format json"),
        (["--format", "text"], "leave out --format text"),
        (["--temperature", "-1"], "temperature is -1"),
    ],
)
def test_flags_that_contradict(engine, command, arguments, words):
    result = command("run", "--prompts", "-", *arguments, stdin=b'"a"')
    assert (result.code, words in result.err, result.err.count("\n")) == (2, True, 1)
    assert not engine.loaded


def test_a_file_that_is_not_there(engine, command, tmp_path):
    for name in ("no/such", str(tmp_path)):
        result = command("run", "--prompts", name)
        assert (result.code, "check --prompts" in result.err) == (2, True)


def test_tools_are_for_all_and_none_of_a_line(engine, answers, tmp_path):
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "f"}]')
    arguments = ("--tools", str(tools))
    assert answers("One", arguments=arguments).code == 0
    assert engine.asked[0]["tools"][0]["function"]["name"] == "f"
    own = {"role": "system", "tools": [{"type": "function", "function": {"name": "g"}}]}
    result = answers({"messages": [own]}, arguments=arguments)
    assert (result.code, "line 1: a message has tools of its own" in result.err) == (2, True)


def test_a_prompt_that_fails_has_a_line_and_stops_nobody(engine, answers):
    engine.later = [[done()], [event("text", "part"), FormatError("no format")], [done()]]
    result = answers("a", {"prompt": TOO_LONG, "id": "x"}, "b", "c", arguments=("--context", "9"))
    lines = parsed(result.out)
    assert result.code == 1
    assert [line["index"] for line in lines] == [0, 1, 2, 3]
    key = lines[1].pop("key")
    said = "50 tokens do not fit a context of 9"
    assert (lines[1], len(key)) == ({"index": 1, "id": "x", "error": said}, 16)
    assert lines[2]["error"] == "no format"
    assert result.err == 'localv4: 2 of 4 prompts failed; their lines say why, as "error"\n'


def test_what_is_wrong_with_the_model_ends_it(engine, answers):
    engine.later = [[done()], [DamagedCheckpoint("not finite")]]
    result = answers("a", "b", "c")
    assert (result.code, len(parsed(result.out)), len(engine.asked)) == (3, 1, 2)


def test_progress_is_said_with_v_only(engine, answers):
    assert answers("a", "b").err == ""
    engine.later = [[done()], [ContextOverflow("too long")]]
    said = answers("a", "b", arguments=("-v",)).err
    assert "1 of 2: 2 tokens in 0.0 s\n" in said
    assert "2 of 2: too long\n" in said
