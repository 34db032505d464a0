"""What the forms of an answer carry: JSON, lines of it, tool calls, log-probabilities."""

import json
from pathlib import Path

import pytest

from localv4.events import ToolCall, Usage
from localv4.sampling import TokenLogprob
from tests.cli.conftest import THOUGHT, Letters, done, event


def test_json(engine, command):
    engine.events = THOUGHT
    result = command("run", "2+2?", "--format", "json")
    report = json.loads(result.out)
    assert result.err == ""
    assert list(report) == [
        "text",
        "reasoning",
        "finish_reason",
        "usage",
        "timings",
        "seed",
        "model",
        "version",
    ]
    assert (report["text"], report["reasoning"], report["finish_reason"]) == ("4", "Hm. ", "stop")
    assert report["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "reasoning_tokens": 1,
    }
    assert report["timings"]["decode_tokens"] == 2
    assert report["seed"] == engine.asked[0]["sampling"].seed


def test_jsonl_has_a_line_for_each_part(engine, command):
    engine.events = THOUGHT
    result = command("run", "2+2?", "--format", "jsonl", "--seed", "3")
    prefill, reasoning, text, last = [json.loads(line) for line in result.out.splitlines()]
    assert prefill == {
        "kind": "prefill",
        "usage": {"prompt_tokens": 5, "completion_tokens": 0, "reasoning_tokens": 0},
        "timings": {"prefill_s": 0.25, "decode_s": 0},
    }
    assert reasoning == {"kind": "reasoning", "text": "Hm. ", "ids": [7, 8]}
    assert text == {"kind": "text", "text": "4", "ids": [9]}
    assert (last["kind"], last["seed"], last["ids"]) == ("done", 3, [1])


def test_jsonl_comes_as_it_is_made(engine, command, capsys):
    seen: list[str] = []

    def look() -> None:
        captured = capsys.readouterr()
        seen.append(captured.out)

    prefill, *rest = THOUGHT
    engine.events = [prefill, look, *rest]
    command("run", "2+2?", "--format", "jsonl")
    assert json.loads(seen[0])["kind"] == "prefill"


def test_a_tool_call_is_never_lost(engine, command):
    call = {"id": "call_1", "name": "f", "arguments": "{}"}
    engine.events = [event("tool_call", tool_call=ToolCall(**call)), done()]
    assert '"name": "f"' in command("run", "x").err
    assert json.loads(command("run", "x", "--format", "json").out)["tool_calls"] == [call]
    lines = command("run", "x", "--format", "jsonl").out.splitlines()
    assert json.loads(lines[0]) == {"kind": "tool_call", **call, "ids": []}


def test_a_call_that_was_left_out_is_said(engine, command):
    engine.events = [event("done", finish_reason="length", dropped_call=True)]
    assert "a tool call was left out" in command("run", "x").err
    assert json.loads(command("run", "x", "--format", "json").out)["dropped_call"] is True


@pytest.fixture
def tools(tmp_path) -> Path:
    path: Path = tmp_path / "tools.json"
    path.write_text('[{"name": "f", "parameters": {"type": "object"}}]')
    return path


def test_tools_are_offered(engine, command, tools):
    function = {"name": "f", "parameters": {"type": "object"}}
    assert command("run", "x", "--tools", str(tools)).code == 0
    assert engine.asked[0]["tools"] == [{"type": "function", "function": function}]


@pytest.mark.parametrize(("reason", "said"), [("stop", "tool_calls"), ("length", "length")])
def test_an_answer_that_ends_with_calls_says_so_where_tools_were_offered(
    engine, command, tools, reason, said
):
    call = event("tool_call", tool_call=ToolCall("call_1", "f", "{}"))
    engine.events = [event("text", "I call. "), call, done(reason)]
    offered = command("run", "x", "--tools", str(tools), "--format", "json")
    assert json.loads(offered.out)["finish_reason"] == said
    alone = command("run", "x", "--format", "json")
    assert json.loads(alone.out)["finish_reason"] == reason
    text = command("run", "x", "--tools", str(tools))
    assert (text.out, '"name": "f"' in text.err) == ("I call. ", True)


def test_tools_need_a_chat_format(engine, command, tools):
    assert "--tools" in command("run", "--raw", "x", "--tools", str(tools)).err
    assert not engine.loaded
    engine.is_base = True
    assert command("run", "x", "--tools", str(tools)).code == 2


def test_logprobs_are_given_for_every_sampled_token(engine, command):
    engine.tokenizer = Letters()
    first = TokenLogprob(ord("a"), -0.5, ((ord("a"), -0.5), (0xE9, -2.0)))
    last = TokenLogprob(301, -1.0, ())
    engine.events = [
        event("text", "a", ids=(97,), logprobs=(first,)),
        event("done", ids=(301,), logprobs=(last,), finish_reason="stop", usage=Usage(5, 2, 0)),
    ]
    expected = [
        {
            "id": 97,
            "token": "a",
            "logprob": -0.5,
            "top": [
                {"id": 97, "token": "a", "logprob": -0.5},
                {"id": 0xE9, "token": "\ufffd", "bytes": [0xE9], "logprob": -2.0},
            ],
        },
        {"id": 301, "token": "", "logprob": -1.0, "top": []},
    ]
    report = json.loads(command("run", "x", "--format", "json", "--logprobs", "2").out)
    assert engine.asked[0]["logprobs"] == 2
    assert report["logprobs"] == expected
    lines = command("run", "x", "--format", "jsonl", "--logprobs", "2").out.splitlines()
    parts = [json.loads(line) for line in lines]
    assert [part["logprobs"] for part in parts] == [expected[:1], expected[1:]]
