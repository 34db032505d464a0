import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.byte_tokenizer import byte_level_tokenizer_json
from localv4.errors import InvalidInput
from localv4.reader import CompletionReader, StopStrings
from localv4.tokenizer import Tokenizer

BYTES = Tokenizer.from_json(byte_level_tokenizer_json(300))


def cut_by_the_book(text, stops):
    """Return the text before the first stop string to be complete, character by character."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


def fed(pieces, stops):
    matcher = StopStrings(stops)
    said = ""
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        said += text
        if stopped:
            return said, True
    return said + matcher.release(), False


@given(
    st.lists(st.text("ab\u00e9", max_size=4), max_size=10),
    st.lists(st.text("ab\u00e9", min_size=1, max_size=4), max_size=3),
)
@settings(deadline=None, max_examples=400)
def test_stop_strings_do_not_depend_on_the_cut(pieces, stops):
    assert fed(pieces, stops) == cut_by_the_book("".join(pieces), stops)


@given(
    st.lists(st.text("ab", max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
@settings(deadline=None, max_examples=200)
def test_only_what_may_become_a_stop_string_is_held_back(pieces, stops):
    matcher = StopStrings(stops)
    said, whole = "", ""
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        if stopped:
            return
        said, whole = said + text, whole + piece
        held = whole[len(said) :]
        assert said + held == whole
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize("strings", [[""], ["a", ""], [None], [5]])
def test_stop_strings_must_be_text(strings):
    with pytest.raises(InvalidInput, match="stop string is"):
        StopStrings(strings)


def test_a_token_beyond_the_vocabulary_says_nothing():
    reader = CompletionReader(BYTES)
    assert reader.read(300) == []
    assert [event.text for event in reader.read(2 + ord("x"))] == ["x"]


def test_text_options_need_a_tokenizer():
    for options in ({"thinking_mode": "chat"}, {"stop": ["x"]}):
        with pytest.raises(InvalidInput, match="without a tokenizer"):
            CompletionReader(None, **options)
    with pytest.raises(InvalidInput, match="thinking_mode is 'high'"):
        CompletionReader(BYTES, "high")  # type: ignore[arg-type]
