"""``run --prompts`` with the engine: the answers are those of prompts that are asked alone."""

import json

import pytest

PREAMBLE = "Sort these words, and say which comes first in the alphabet. " * 4
FLAGS = ["--max-tokens", "6", "--seed", "5"]
QUESTIONS = [
    f"{PREAMBLE}pear apple",
    f"{PREAMBLE}plum fig",
    "Hi",
    f"{PREAMBLE}plum quince",
    f"{PREAMBLE}plum quince",
]


@pytest.fixture
def ask(command, checkpoint):
    """Return a function that runs `run` on the small checkpoint and returns its lines."""

    def run(*arguments, stdin=b""):
        result = command("run", "-m", str(checkpoint), *FLAGS, *arguments, stdin=stdin)
        assert (result.code, result.err) == (0, "")
        return [json.loads(line) for line in result.out.splitlines()]

    return run


def without_times(line):
    return {name: value for name, value in line.items() if name not in ("timings", "index", "id")}


@pytest.mark.parametrize("flags", [["--think", "off"], ["--think", "high"], ["--raw"]])
def test_answers_are_those_of_single_runs(ask, flags):
    together = ask(
        "--prompts",
        "-",
        *flags,
        "--logprobs",
        "1",
        stdin="\n".join(map(json.dumps, QUESTIONS)).encode(),
    )
    for question, line in zip(QUESTIONS, together, strict=True):
        line.pop("key")
        (alone,) = ask(question, *flags, "--format", "json", "--logprobs", "1")
        assert without_times(line) == without_times(alone)


@pytest.mark.parametrize("flags", [["--think", "off"], ["--raw"]])
def test_a_shared_beginning_is_read_once(ask, flags):
    lines = ask("--prompts", "-", *flags, stdin="\n".join(map(json.dumps, QUESTIONS[:2])).encode())
    first, second = lines
    prompt_tokens = first["usage"]["prompt_tokens"]
    assert first["timings"]["prefill_tokens"] == prompt_tokens > 200
    assert second["timings"]["prefill_tokens"] < 80


def test_conversations_with_a_system_message_share_it(ask):
    messages = [
        {"role": "system", "content": PREAMBLE},
        {"role": "user", "content": "pear"},
        {"role": "assistant", "content": "pear"},
    ]
    lines = [
        {"messages": [*messages, {"role": "user", "content": "fig"}], "system": None},
        {"messages": [*messages, {"role": "user", "content": "plum"}], "seed": 5, "think": "off"},
    ]
    one, two = ask("--prompts", "-", stdin="\n".join(map(json.dumps, lines)).encode())
    reversed_lines = "\n".join(map(json.dumps, reversed(lines))).encode()
    two_again, one_again = ask("--prompts", "-", stdin=reversed_lines)
    assert without_times(one) == without_times(one_again)
    assert without_times(two) == without_times(two_again)
