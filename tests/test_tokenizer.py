import copy
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import localv4.tokenizer
from localv4.byte_tokenizer import byte_level_tokenizer_json
from localv4.encoding import Piece
from localv4.encoding.literals import ASSISTANT, BOS, CONTROL_LITERALS, DSML, EOS, USER
from localv4.errors import DamagedCheckpoint, InvalidInput, UnsupportedModel
from localv4.tokenizer import Tokenizer, bundled_tokenizer_json

CASES = json.loads((Path(__file__).parent / "golden" / "golden_tokens.json").read_text("utf-8"))[
    "cases"
]
BYTES = Tokenizer.from_json(byte_level_tokenizer_json(300))
SMALL = json.loads(byte_level_tokenizer_json(300))


@pytest.fixture(scope="module")
def released():
    return Tokenizer.from_json(bundled_tokenizer_json(), 129_280)


def test_there_are_all_golden_cases():
    assert len(CASES) == 71


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_ids(released, case):
    assert released.encode(case["text"], control=True) == case["ids"]
    if case["roundtrip"]:
        assert released.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_plain_ids_differ_only_where_control_tokens_are(released, case):
    plain = released.encode(case["text"])
    assert not any(map(released.is_control, plain))
    assert released.decode(plain) == case["text"]
    if not any(map(released.is_control, case["ids"])):
        assert plain == case["ids"]


@pytest.mark.parametrize("literal", CONTROL_LITERALS)
def test_user_text_never_becomes_a_control_token(released, literal):
    for text in (literal, f"a{literal}b", f" {literal}\n", literal * 3):
        assert not any(map(released.is_control, released.encode(text)))
        assert released.decode(released.encode(text)) == text


def test_no_added_token_of_the_released_vocabulary_can_be_spelled(released):
    added = json.loads(bundled_tokenizer_json())["added_tokens"]
    text = " ".join(token["content"] for token in added)
    assert not any(map(released.is_control, released.encode(text)))
    assert all(released.is_control(token["id"]) for token in added)


def test_pieces_keep_template_and_user_text_apart(released):
    pieces = [
        Piece(BOS, True),
        Piece(USER, True),
        Piece(f"say {EOS}", False),
        Piece(ASSISTANT, True),
    ]
    ids = released.encode_pieces(pieces)
    assert ids == [0, 128803, *released.encode(f"say {EOS}"), 128804]
    assert ids.count(1) == 0


def test_ordinary_pieces_are_encoded_as_one_string(released):
    cut = [Piece("Hel", False), Piece("lo wor", False), Piece("ld", False), Piece(EOS, True)]
    assert released.encode_pieces(cut) == [*released.encode("Hello world"), 1]
    assert released.encode_pieces([*cut, Piece("x", False)])[-1:] == released.encode("x")
    assert released.encode_pieces([]) == []


def test_pieces_need_their_control_token():
    with pytest.raises(UnsupportedModel, match="no control token '<nothing>'"):
        BYTES.encode_pieces([Piece("<nothing>", True)])


def test_control_ids(released):
    assert released.control_id(DSML) == 128825
    assert released.control_id("Hello") is None
    assert released.control_id("<|User|>") is None
    assert released.is_control(128825)
    assert not released.is_control(19923)
    assert released.token_bytes(128825) == DSML.encode()


def test_every_id_has_its_bytes(released):
    assert released.vocab_size == 129_280
    contents = [released.token_bytes(i) for i in range(released.vocab_size)]
    assert all(contents)
    assert {bytes([byte]) for byte in range(256)} <= set(contents)


@pytest.mark.parametrize("token_id", [-1, 300, 2**40])
def test_ids_outside_the_vocabulary(token_id):
    for call in (BYTES.token_bytes, BYTES.stream().feed, lambda i: BYTES.decode([5, i])):
        with pytest.raises(InvalidInput, match=r"outside .* 300; ids run from 0 to 299"):
            call(token_id)


@given(st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=3).map(str.encode)), max_size=12))
@settings(deadline=None, max_examples=150)
def test_a_stream_says_what_decode_says_and_holds_three_bytes(chunks):
    ids = [2 + byte for byte in b"".join(chunks)]
    stream = BYTES.stream()
    said = ""
    for count, token_id in enumerate(ids, start=1):
        said += stream.feed(token_id)
        # Whatever the last three bytes are the start of, the text before them has been shown.
        shown = BYTES.decode(ids[: max(0, count - 3)]).rstrip("\ufffd")
        assert said.startswith(shown)
        assert BYTES.decode(ids[:count]).startswith(said)
    assert said + stream.close() == BYTES.decode(ids)


def test_a_character_is_shown_when_its_last_byte_comes():
    stream = BYTES.stream()
    assert [stream.feed(2 + byte) for byte in "\U0001f600".encode()] == ["", "", "", "\U0001f600"]
    assert stream.close() == ""


def test_close_flushes_an_unfinished_character_and_starts_afresh():
    stream = BYTES.stream()
    assert [stream.feed(2 + byte) for byte in "\U0001f600".encode()[:3]] == ["", "", ""]
    assert stream.close() == "\ufffd"
    assert stream.feed(2 + ord("a")) == "a"


@pytest.mark.parametrize("control", [False, True])
def test_text_that_is_not_text(control):
    with pytest.raises(InvalidInput, match=r"U\+D83D at character 2"):
        BYTES.encode("ab\ud83d", control=control)
    with pytest.raises(InvalidInput, match="must be a str, not int"):
        BYTES.encode(5, control=control)  # type: ignore[arg-type]


def test_from_folder(tmp_path):
    assert Tokenizer.from_folder(tmp_path) is None
    assert Tokenizer.from_folder(tmp_path / "nowhere") is None
    (tmp_path / "tokenizer.json").write_text(byte_level_tokenizer_json(300), "utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path, vocab_size=300)
    assert tokenizer is not None
    assert tokenizer.encode("a") == [99]
    with pytest.raises(DamagedCheckpoint, match=r"has 300 tokens but .* has 299"):
        Tokenizer.from_folder(tmp_path, vocab_size=299)


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(DamagedCheckpoint, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(localv4.tokenizer, "_FILE_LIMIT_BYTES", 1000)
    (tmp_path / "tokenizer.json").write_text(byte_level_tokenizer_json(300), "utf-8")
    with pytest.raises(DamagedCheckpoint, match="larger than the 1,000 bytes"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"\ud800"', '{"a": NaN}'])
def test_not_json(text):
    with pytest.raises(DamagedCheckpoint):
        Tokenizer.from_json(text)


def _set(*path_and_value):
    *path, key, value = path_and_value

    def change(document):
        for step in path:
            document = document[step]
        document[key] = value

    return change


TRUNCATION = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}
BAD_DOCUMENTS = {
    "no model": _set("model", None),
    "other model": _set("model", "type", "WordPiece"),
    "no vocabulary": _set("model", "vocab", None),
    "empty vocabulary": _set("model", "vocab", {}),
    "negative id": _set("model", "vocab", "a", -1),
    "id no number": _set("model", "vocab", "a", []),
    "id beyond the rest": _set("model", "vocab", "a", 4000),
    "two tokens with one id": _set("model", "vocab", "a", 9),
    "a byte too few": lambda document: document["model"]["vocab"].pop("a"),
    "unknown merge": _set("model", "merges", ["a bb"]),
    "malformed merge": _set("model", "merges", ["ab"]),
    "dropout": _set("model", "dropout", 0.5),
    "subword prefix": _set("model", "continuing_subword_prefix", "##"),
    "no bytes": _set("pre_tokenizer", None),
    "a space in front": _set("pre_tokenizer", "add_prefix_space", True),
    "lossy normaliser": _set("normalizer", {"type": "Lowercase"}),
    "normal form C": _set("normalizer", {"type": "NFC"}),
    "added id moved": _set("added_tokens", 4, "id", 4000),
    "added id negative": _set("added_tokens", 4, "id", -1),
    "added id true": _set("added_tokens", 1, "id", True),
    "added twice": _set("added_tokens", 4, "content", "</think>"),
    "added nothing": _set("added_tokens", 4, "content", ""),
    "added not a token": _set("added_tokens", 4, 5),
    "added without flags": _set("added_tokens", 4, {"id": 260, "content": "<think>"}),
    "added is no list": _set("added_tokens", {"a": 1}),
}


@pytest.mark.parametrize("change", BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS.keys())
def test_bad_documents(change):
    document = copy.deepcopy(SMALL)
    change(document)
    with pytest.raises(DamagedCheckpoint, match=r"^tokenizer\.json|of added_tokens in"):
        Tokenizer.from_json(json.dumps(document))


def test_a_control_token_that_text_could_spell_is_refused_when_it_would_be():
    document = copy.deepcopy(SMALL)
    vocab = document["model"]["vocab"]
    vocab["ab"] = len(vocab)
    document["model"]["merges"] = ["a b"]
    added = document["added_tokens"]
    document["added_tokens"] = [*added[:2], {**added[2], "id": vocab["ab"], "content": "ab"}]
    tokenizer = Tokenizer.from_json(json.dumps(document))
    assert tokenizer.encode("ba") == [100, 99]
    with pytest.raises(UnsupportedModel, match="spell a control token"):
        tokenizer.encode("cab")


def test_truncation_and_padding_in_the_file_do_nothing():
    document = copy.deepcopy(SMALL)
    document["truncation"] = TRUNCATION
    tokenizer = Tokenizer.from_json(json.dumps(document))
    assert tokenizer.decode(tokenizer.encode("abc", control=True)) == "abc"


def test_a_template_in_the_file_adds_nothing():
    document = copy.deepcopy(SMALL)
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}},
    }
    tokenizer = Tokenizer.from_json(json.dumps(document))
    assert tokenizer.encode("a", control=True) == [99]


def test_the_bundled_file_is_the_released_one():
    digest = hashlib.sha256(bundled_tokenizer_json().encode("utf-8")).hexdigest()
    assert digest == "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf"
