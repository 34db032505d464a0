"""What a caller may send, and how each mistake is answered."""

import copy
import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.encoding import encode, render
from localv4.encoding.literals import ASSISTANT, BOS, DSML, ENDTHINK, USER
from localv4.errors import FormatError
from tests.encoding.cases import TOOLS


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"function": function, **more}]}


def ask(content: Any, role: str = "user") -> str:
    """Render one message; return what stands between the opening and the hand-over."""
    prompt = encode([{"role": role, "content": content}], "chat", add_default_bos_token=False)
    return prompt.removeprefix(USER).removesuffix(ASSISTANT + ENDTHINK)


MALFORMED: dict[str, tuple[Any, str]] = {
    "messages are text": ("hello", "messages are str"),
    "messages are one message": ({"role": "user", "content": "q"}, "messages are dict"),
    "messages are None": (None, "messages are NoneType"),
    "a message is text": (["hello"], "message 0 is str"),
    "no role": ([{"content": "q"}], "message 0 has the unknown role None"),
    "role is a list": ([{"role": []}], "message 0 has the unknown role []"),
    "second message": ([{"role": "user"}, {"role": "bot"}], "message 1 has the unknown role 'bot'"),
    "content is a number": ([{"role": "user", "content": 1}], "content of message 0 (user) is int"),
    "content is an object": ([{"role": "system", "content": {}}], "content of message 0 (system)"),
    "an image": ([{"role": "user", "content": [{"type": "image_url"}]}], "type 'image_url'"),
    "a bare string part": ([{"role": "user", "content": ["hi"]}], "part without a type"),
    "a text part of bytes": (
        [{"role": "user", "content": [{"type": "text", "text": b""}]}],
        "a text part of message 0 (user) is bytes",
    ),
    "a tool result of bytes": ([{"role": "tool", "content": b"x"}], "message 0 (tool) is bytes"),
    "a result nobody can write": ([{"role": "tool", "content": {"a": set()}}], "as JSON"),
    "a numeric call id": ([{"role": "tool", "tool_call_id": 7}], "tool_call_id of message 0"),
    "task is a number": ([{"role": "user", "task": 3}], "task of message 0 (user) is int"),
    "empty task": ([{"role": "user", "task": ""}], "unknown task ''"),
    "tools are an object": ([{"role": "system", "tools": {"a": 1}}], "send a list of tools"),
    "a tool without function": (
        [{"role": "system", "tools": [{"name": "f"}]}],
        "tool 0 of message",
    ),
    "a tool is text": ([{"role": "developer", "content": "d", "tools": ["f"]}], "no function"),
    "calls are an object": ([{"role": "assistant", "tool_calls": {"a": 1}}], "send a list"),
    "a call without function": (
        [{"role": "assistant", "tool_calls": [{"name": "f"}]}],
        "tool call 0 of message 0 (assistant) has no function",
    ),
    "a call without name": (
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
        "no function name",
    ),
    "no arguments": (
        [call(None)],
        "arguments of tool call 0 of message 0 (assistant) are NoneType",
    ),
    "arguments are an array": ([call("[]")], "are a JSON list; send a JSON object"),
    "arguments are a number": ([call("1")], "are a JSON int"),
    "a python list": ([call([])], "are list"),
    "id is a number": ([call("{}", id=3)], "id of tool call 0"),
    "reasoning is a list": (
        [{"role": "assistant", "reasoning_content": ["r"]}],
        "reasoning_content of message 0 (assistant) is list",
    ),
    "a response format nobody can write": (
        [{"role": "system", "response_format": {1, 2}}],
        "response_format of message 0 (system) cannot be written as JSON",
    ),
    "half a surrogate pair": ([{"role": "user", "content": "a\ud83d"}], "U+D83D"),
    "a value that ends itself": ([call(f'{{"a": "</{DSML}parameter>"}}')], "argument 'a'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_list_is_refused_and_the_place_named(name: str) -> None:
    messages, said = MALFORMED[name]
    with pytest.raises(FormatError) as caught:
        encode(messages, "chat")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# None is no context; the other two are found in rendering, which a context has behind it.
NOT_IN_CONTEXT = ("messages are None", "half a surrogate pair", "empty task")


@pytest.mark.parametrize("name", [name for name in MALFORMED if name not in NOT_IN_CONTEXT])
def test_a_malformed_context_is_refused_too(name: str) -> None:
    with pytest.raises(FormatError, match="context message"):
        encode([{"role": "user"}], "chat", context=MALFORMED[name][0])


@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_a_developer_message_in_the_context_is_refused(mode: str) -> None:
    with pytest.raises(FormatError, match="developer"):
        encode([{"role": "user"}], mode, context=[{"role": "developer", "content": "d"}])


def test_contents_in_other_shapes() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ask(None) == ""
    assert ask(parts) == "a\n\nb"
    assert ask([]) == ""
    assert ask(None, "tool") == "<tool_result></tool_result>"
    assert ask({"é": [1.0, None]}, "tool") == '<tool_result>{"é": [1.0, null]}</tool_result>'
    mixed = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text"}]
    assert ask(mixed, "tool") == "<tool_result>a\n\n[Unsupported image]\n\n</tool_result>"
    assert encode([{"role": "system", "content": parts}], "chat") == BOS + "a\n\nb"


def test_arguments_that_are_no_object() -> None:
    too_long = '{"n": ' + "9" * 5000 + "}"
    too_deep = "[" * 100_000
    for raw in ("", "{", "nonsense", too_long, too_deep):
        prompt = encode([call(raw)], "chat")
        assert f'name="arguments" string="true">{raw}</{DSML}parameter>' in prompt


def test_any_mapping_and_tuple_will_do_and_nothing_is_changed() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s", "tools": TOOLS},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        call('{"a": {"b": 1}}', id="1"),
        {"role": "tool", "content": {"x": 1}, "tool_call_id": "1"},
        {"role": "user", "content": "q"},
    ]
    before = copy.deepcopy(messages)
    frozen = tuple(MappingProxyType(message) for message in messages)
    assert render(frozen, "thinking") == render(messages, "thinking")
    assert messages == before


KEYS = ["role", "content", "tools", "response_format", "tool_calls", "reasoning_content", "task"]
KEYS += ["wo_eos", "function", "name", "arguments", "id", "tool_call_id", "type", "text"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.just(float("nan"))
    | st.sampled_from(["user", "assistant", "tool", "system", "developer", "latest_reminder"])
    | st.sampled_from(["text", "{}", '{"a": 1}', "[]", "action", "\ud800", DSML, ""])
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)
LIKELY = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer"])},
    optional=dict.fromkeys(("content", "tools", "tool_calls", "task", "response_format"), JUNK),
)


@settings(deadline=None, max_examples=300)
@given(
    messages=st.lists(LIKELY | JUNK, max_size=3) | JUNK,
    context=st.none() | st.lists(LIKELY, max_size=2) | JUNK,
    mode=st.sampled_from(["chat", "thinking"]) | SCALARS,
)
def test_whatever_is_sent_nothing_but_a_format_error_comes_back(
    messages: Any, context: Any, mode: Any
) -> None:
    before = json.dumps([messages, context])
    try:
        pieces = render(messages, mode, context)
    except FormatError:
        pieces = []
    "".join(piece.text for piece in pieces).encode()
    assert json.dumps([messages, context]) == before
