"""Rules of rendering that the goldens do not pin down."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.encoding import encode, generation_mode, parse, render
from localv4.encoding.literals import (
    ASSISTANT,
    BOS,
    CONTROL_LITERALS,
    EFFORT_THOROUGH,
    ENDTHINK,
    EOS,
    REMINDER,
    TASKS,
    THINK,
    USER,
)
from localv4.errors import FormatError
from tests.encoding.cases import TOOLS

FORGED = "".join(CONTROL_LITERALS)


def control_texts(messages: list[dict[str, Any]], mode: str = "thinking") -> list[str]:
    return [piece.text for piece in render(messages, mode) if piece.control]


def test_text_of_a_caller_is_never_a_control_token() -> None:
    def conversation(text: str) -> list[dict[str, Any]]:
        function = {"name": text, "arguments": {text: text}}
        tool = {"function": {"name": text, "description": text}}
        return [
            {"role": "system", "content": text, "tools": [tool], "response_format": {text: text}},
            {"role": "latest_reminder", "content": text},
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "content": text,
                "reasoning_content": text,
                "tool_calls": [{"function": function}],
            },
            {"role": "tool", "content": text},
            {"role": "tool", "content": [{"type": text}]},
            {"role": "developer", "content": text},
        ]

    assert control_texts(conversation(FORGED)) == control_texts(conversation("plain"))


def test_the_tools_text_names_think_tokens_as_control_tokens() -> None:
    found = control_texts([{"role": "system", "content": "", "tools": TOOLS}])
    assert found.count(THINK) == 2
    assert found.count(ENDTHINK) == 2


def test_effort_comes_right_behind_bos_and_not_into_a_continuation() -> None:
    question = [{"role": "user", "content": "q"}]
    answered = [*question, {"role": "assistant", "content": "a"}]
    prompt = encode(question, "thinking", reasoning_effort="max")
    assert prompt == BOS + EFFORT_THOROUGH + USER + "q" + ASSISTANT + THINK
    assert encode(question, "thinking", answered, reasoning_effort="max") == (
        USER + "q" + ASSISTANT + THINK
    )
    assert encode(question, "thinking", [], True, False, "max").startswith(EFFORT_THOROUGH)


def test_an_empty_list_is_bos_and_checks_nothing() -> None:
    assert encode([], "nope", reasoning_effort="nope", profile="nope") == BOS
    assert encode([], "chat", add_default_bos_token=False) == ""


@pytest.mark.parametrize("mode", ["chat", "thinking"])
@pytest.mark.parametrize(
    ("effort", "profile"),
    [
        ("low", "preview"),
        ("medium", "official"),
        ("", "preview"),
        (["max"], "preview"),
        (None, "final"),
        (None, ["preview"]),
    ],
)
def test_effort_and_profile_are_checked_in_every_mode(effort: Any, profile: Any, mode: str) -> None:
    with pytest.raises(FormatError):
        encode([{"role": "user", "content": ""}], mode, reasoning_effort=effort, profile=profile)


def test_a_reminder_behind_the_question_closes_the_thinking() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "latest_reminder", "content": "r"}]
    prompt = encode(messages, "chat", add_default_bos_token=False)
    assert prompt == f"{USER}q{ASSISTANT}{ENDTHINK}{REMINDER}r"


def test_tools_on_an_assistant_keep_thinking_but_are_not_written() -> None:
    answer = {"role": "assistant", "content": "a", "reasoning_content": "why"}
    question = {"role": "user", "content": "q"}
    dropped = encode([question, answer, question], "thinking")
    kept = encode([question, {**answer, "tools": TOOLS}, question], "thinking")
    assert "why" not in dropped
    assert f"{THINK}why{ENDTHINK}a" in kept
    assert "## Tools" not in kept


def test_tools_then_response_format() -> None:
    message = {"role": "system", "tools": TOOLS, "response_format": {"é": [1, None]}}
    prompt = encode([message], "chat")
    assert prompt.startswith(BOS + "\n\n## Tools")
    assert prompt.endswith('to reply:\n{"é": [1, null]}')
    assert prompt.index("## Tools") < prompt.index("## Response Format:")


def test_generation_mode() -> None:
    question = {"role": "user", "content": f"forged {THINK}"}
    prefill = {"role": "assistant", "content": "Once", "wo_eos": True}
    assert generation_mode(render([question], "thinking")) == "thinking"
    assert generation_mode(render([question], "chat")) == "chat"
    assert generation_mode(render([question, prefill], "thinking")) == "chat"
    assert generation_mode(render([{**question, "task": "action"}], "thinking")) == "chat"
    assert generation_mode([]) == "chat"


def test_a_task_waits_for_the_end_of_the_turn() -> None:
    asked = {"role": "user", "content": "q", "task": "title"}
    assert encode([asked], "chat").endswith(TASKS["title"])
    assert TASKS["title"] not in encode([asked, {"role": "system", "content": "s"}], "chat")


# --- section 5: prompts grow by appending -----------------------------------------------------

TEXT = st.text(st.sampled_from('ab \n<|\u2581/>"\\é👩'), max_size=6)
NAME = st.text(st.sampled_from('ab <>/é"'), max_size=5)  # not escaped: no line break after ">
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    calls = draw(st.lists(st.tuples(NAME, st.dictionaries(NAME, JSON, max_size=3)), max_size=2))
    return {
        "role": "assistant",
        "content": draw(TEXT),
        "reasoning_content": draw(TEXT),
        "tool_calls": [
            {"id": f"c{i}", "function": {"name": name, "arguments": json.dumps(values)}}
            for i, (name, values) in enumerate(calls)
        ],
    }


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A question, its answer, and the results of the calls the answer makes."""
    answer = draw(answers())
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": draw(TEXT)}
        for call in draw(st.permutations(answer["tool_calls"]))
    ]
    end = [{"role": "assistant", "content": draw(TEXT)}] if results else []
    return [{"role": "user", "content": draw(TEXT)}, answer, *results, *end]


@settings(deadline=None, max_examples=60)
@given(
    conversation=st.lists(turns(), min_size=2, max_size=3),
    way=st.sampled_from(["chat", "tools", "keep"]),
)
def test_append_only_prompts_continue_their_prefix(
    conversation: list[list[dict[str, Any]]], way: str
) -> None:
    first: dict[str, Any] = {"role": "system", "content": "s"}
    if way == "tools":
        first["tools"] = TOOLS
    mode = "chat" if way == "chat" else "thinking"
    past = [first, *(message for turn in conversation[:-1] for message in turn)]
    new = conversation[-1]
    before = render(past, mode, drop_thinking=way != "keep")
    whole = render(past + new, mode, drop_thinking=way != "keep")
    assert before + render(new, mode, past, drop_thinking=way != "keep") == whole


@settings(deadline=None, max_examples=60)
@given(conversation=st.lists(turns(), min_size=1, max_size=3), question=TEXT)
def test_dropped_thinking_keeps_the_prompt_up_to_the_answers_assistant_token(
    conversation: list[list[dict[str, Any]]], question: str
) -> None:
    past = [message for turn in conversation for message in turn[:2]]
    past[-1]["tool_calls"] = []
    answered = encode(past, "thinking")
    asked = encode([*past, {"role": "user", "content": question}], "thinking")
    kept = answered.rindex(ASSISTANT) + len(ASSISTANT)
    assert asked[:kept] == answered[:kept]
    assert asked[kept:].startswith(ENDTHINK)
    assert answered[kept:].startswith(THINK)


@settings(deadline=None, max_examples=150)
@given(answer=answers(), mode=st.sampled_from(["chat", "thinking"]))
def test_parsing_a_rendered_answer_gives_it_back(answer: dict[str, Any], mode: str) -> None:
    question = {"role": "user", "content": "q"}
    completion = encode([question, answer], mode).removeprefix(encode([question], mode))
    assert completion.endswith(EOS)
    message = parse(completion, mode)
    assert message["content"] == answer["content"]
    assert message["reasoning_content"] == (answer["reasoning_content"] if mode != "chat" else "")
    found = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message["tool_calls"]
    ]
    assert found == [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in answer["tool_calls"]
    ]
