"""JSON from strangers: what the quick way takes is what the careful one takes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.errors import DamagedCheckpoint
from localv4.untrusted import _no_constant, _unique, parse_object

KEYS = st.sampled_from(["a", "b", "a:", "x"])
SCALARS = st.integers(-2, 2) | KEYS | st.none()
# an object as its members, so that a key may come twice
MEMBERS = st.recursive(
    SCALARS,
    lambda inner: st.lists(st.tuples(KEYS, inner), max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)


def written(value: Any, escapes: bool) -> str:
    """Return JSON in which lists of pairs are objects, colons of strings escaped or not."""
    if isinstance(value, list):
        if value and all(isinstance(member, tuple) for member in value):
            pairs = (f"{written(k, escapes)}: {written(v, escapes)}" for k, v in value)
            return "{" + ", ".join(pairs) + "}"
        return "[" + ", ".join(written(member, escapes) for member in value) + "]"
    text = json.dumps(value)
    return text.replace(":", "\\u003a") if escapes else text


def carefully(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except ValueError:
        return None


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(KEYS, MEMBERS), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_no_key_is_lost(members: Any, escapes: bool, is_sparse: bool) -> None:
    text = written(members, escapes)
    text += " " * (2000 * text.count("{") if is_sparse else 0)
    expected = carefully(text)
    if expected is None:
        with pytest.raises(DamagedCheckpoint, match="appears twice"):
            parse_object(text, "it")
    else:
        assert parse_object(text, "it") == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a\\u003a": 1, "b": 2, "b": 2}',
        '{"a\\u003a": {"b\\u003a\\u003a": 1, "c": 2, "c": 2}}',
        '{"a": [{"b": 1, "b": 2}]}',
    ],
)
def test_a_key_that_comes_twice_is_refused_however_it_is_hidden(text: str) -> None:
    with pytest.raises(DamagedCheckpoint, match="appears twice"):
        parse_object(text, "it")


def test_colons_in_strings_are_no_keys() -> None:
    assert parse_object('{"a:": ":", "b": {"c": "::"}}', "it") == {"a:": ":", "b": {"c": "::"}}
