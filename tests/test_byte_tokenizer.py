import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.byte_tokenizer import MIN_VOCAB_SIZE, byte_alphabet, byte_level_tokenizer_json
from localv4.encoding.literals import BOS, CONTROL_LITERALS, EOS
from localv4.errors import InvalidInput
from localv4.tokenizer import Tokenizer, bundled_tokenizer_json

BYTES = Tokenizer.from_json(byte_level_tokenizer_json(MIN_VOCAB_SIZE))


@pytest.mark.parametrize("vocab_size", [MIN_VOCAB_SIZE, MIN_VOCAB_SIZE + 1, 1000])
def test_ids_fill_the_vocabulary_exactly(vocab_size):
    tokenizer = Tokenizer.from_json(byte_level_tokenizer_json(vocab_size), vocab_size)
    assert tokenizer.vocab_size == vocab_size
    contents = [tokenizer.token_bytes(i) for i in range(vocab_size)]
    assert len(set(contents)) == vocab_size
    assert all(contents)


def test_bos_eos_and_bytes_have_the_documented_ids():
    assert BYTES.control_id(BOS) == 0
    assert BYTES.control_id(EOS) == 1
    assert [BYTES.token_bytes(2 + b) for b in range(256)] == [bytes([b]) for b in range(256)]


def test_every_control_token_of_the_chat_format_is_one_token():
    for literal in CONTROL_LITERALS:
        assert BYTES.encode(literal, control=True) == [BYTES.control_id(literal)]


def test_flags_are_those_of_the_released_tokenizer():
    def flags(text):
        return {token.pop("content"): token for token in json.loads(text)["added_tokens"]}

    released, ours = flags(bundled_tokenizer_json()), flags(byte_level_tokenizer_json(300))
    for literal in CONTROL_LITERALS:
        del released[literal]["id"], ours[literal]["id"]
        assert ours[literal] == released[literal]


@given(st.text())
@settings(deadline=None, max_examples=50)
def test_a_text_is_its_utf8_bytes(text):
    ids = BYTES.encode(text)
    assert ids == [2 + byte for byte in text.encode("utf-8")]
    assert BYTES.decode(ids) == text


def test_alphabet_is_the_one_of_byte_level_vocabularies():
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert alphabet[ord("a")] == "a"
    assert alphabet[ord(" ")] == "\u0120"
    assert alphabet[ord("\n")] == "\u010a"
    assert alphabet[0xAD] == "\u0143"


@pytest.mark.parametrize("vocab_size", [-1, 0, 256, MIN_VOCAB_SIZE - 1])
def test_too_small_names_the_size_needed(vocab_size):
    with pytest.raises(InvalidInput, match=f"{vocab_size} .* need {MIN_VOCAB_SIZE}"):
        byte_level_tokenizer_json(vocab_size)
