"""Files of tools, from strangers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localv4.cli.tools_file import read_tools
from localv4.encoding import render
from localv4.errors import InvalidInput

FUNCTION = {"name": "f", "description": "d", "parameters": {"properties": {}}, "strict": True}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tools.json"


def test_both_forms_are_one(path):
    path.write_text(
        '[{"type": "function", "function": {"name": "f", "strict": true}}, {"name": "g.h-1"},'
        ' {"type": "function", "name": "i", "parameters": {"properties": {"x": {}}}}]'
    )
    assert read_tools(path) == [
        {"type": "function", "function": {"name": "f", "strict": True}},
        {"type": "function", "function": {"name": "g.h-1"}},
        {"type": "function", "function": {"name": "i", "parameters": {"properties": {"x": {}}}}},
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON: Expecting value at column 1"),
        ("[\n{,}]", "is not JSON: Expecting property name enclosed in double quotes at line 2 col"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"name": "f"}', "holds an object; write a JSON list"),
        ("[]", "holds no tools"),
        ("[7]", "[0] is a number; a tool is an object"),
        ('["f"]', "[0] is a text"),
        ("[null]", "[0] is null"),
        ("[{}]", "[0].name is missing"),
        ('[{"type": "retrieval"}]', "[0].type is 'retrieval'; only"),
        ('[{"type": "function", "function": true}]', "[0].function is a truth value"),
        ('[{"type": "function", "function": {}}]', "[0].function.name is missing"),
        ('[{"function": {"name": "f"}, "strict": true}]', "[0] has 'strict' beside function"),
        ('[{"name": 5}]', "[0].name is 5"),
        ('[{"name": "a b"}]', "[0].name is 'a b'"),
        ('[{"name": "f\\n"}]', "[0].name is 'f\\n'"),
        (f'[{{"name": "{"f" * 65}"}}]', "give 1 to 64 letters"),
        ('[{"name": "f", "description": 5}]', "[0].description is a number; write a text"),
        ('[{"name": "f", "parameters": []}]', "[0].parameters is a list; write an object"),
        ('[{"name": "f", "parameters": {"properties": 1}}]', ".parameters.properties is no object"),
        ('[{"name": "f"}, {"name": "g"}, {"name": "f"}]', "[2] has the name 'f' of [0]"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_place(path, content, words):
    path.write_text(content)
    with pytest.raises(InvalidInput) as refused:
        read_tools(path)
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(path))


def test_a_large_file_is_not_read(path):
    path.write_bytes(b" " * (4 * 2**20 + 1))
    with pytest.raises(InvalidInput, match=r"is larger than 4\.00 MiB"):
        read_tools(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", *FUNCTION, "function"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(entries=st.lists(st.just(FUNCTION) | JSON, max_size=3))
def test_whatever_is_accepted_can_be_offered(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("tools") / "tools.json"
    path.write_text(json.dumps(entries))
    try:
        tools = read_tools(path)
    except InvalidInput:
        return
    render([{"role": "system", "tools": tools}, {"role": "user", "content": "x"}], "chat")
