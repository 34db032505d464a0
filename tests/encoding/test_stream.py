"""The tolerant parser: broken completions, and the same result however the text is cut."""

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.encoding import ParseEvent, StreamParser, encode, parse, parse_tolerant
from localv4.encoding.literals import CONTROL_LITERALS, DSML, ENDTHINK, EOS, TASKS, THINK, USER
from localv4.errors import FormatError
from tests.encoding.cases import (
    ENCODE_CASES,
    PARSE_CASES,
    TOOLS,
    case_id,
    run,
    tagged_pieces,
)


def param(key: str, value: str, attribute: str = ' string="true"') -> str:
    return f'<{DSML}parameter name="{key}"{attribute}>{value}</{DSML}parameter>\n'


def invoke(name: str, *parameters: str) -> str:
    return f'<{DSML}invoke name="{name}">\n{"".join(parameters)}</{DSML}invoke>\n'


def block(*invokes: str, wrapper: str = "tool_calls") -> str:
    return f"\n\n<{DSML}{wrapper}>\n{''.join(invokes)}</{DSML}{wrapper}>"


TITLE = TASKS["title"]
FALSE = ' string="false"'
ONE = invoke("f", param("a", "1"))
CALL_F = ("f", {"a": "1"})

# name -> (thinking mode, completion, content, calls, dropped a call)
WILD: dict[str, tuple[str, str, str, list[tuple[str, dict[str, Any]]], bool]] = {
    "as documented": ("chat", "ok" + block(ONE) + EOS, "ok", [CALL_F], False),
    "toolcalls": ("chat", "ok" + block(ONE, wrapper="toolcalls") + EOS, "ok", [CALL_F], False),
    "V3.2's wrapper": ("chat", block(ONE, wrapper="function_calls") + EOS, "", [CALL_F], False),
    "no wrapper": ("chat", "ok\n\n" + ONE + EOS, "ok", [CALL_F], False),
    "no wrapper, two calls": ("chat", f"ok\n\n{ONE}{ONE}{EOS}", "ok", [CALL_F] * 2, False),
    "no wrapper, then text": ("chat", f"ok\n{ONE}done{EOS}", "ok\ndone", [CALL_F], False),
    "one newline": ("chat", "ok" + block(ONE)[1:] + EOS, "ok", [CALL_F], False),
    "no newline": ("chat", "ok" + block(ONE)[2:] + EOS, "ok", [CALL_F], False),
    "three newlines": ("chat", "ok\n" + block(ONE) + EOS, "ok\n", [CALL_F], False),
    "at the very start": ("chat", block(ONE)[2:] + EOS, "", [CALL_F], False),
    "newline behind": ("chat", "ok" + block(ONE) + "\n" + EOS, "ok", [CALL_F], False),
    "two blocks": ("chat", block(ONE) + block(ONE) + EOS, "", [CALL_F] * 2, False),
    "text behind": ("chat", "a" + block(ONE) + "\n\nb" + EOS, "a\n\nb", [CALL_F], False),
    "text between calls": ("chat", block(ONE, "and then ", ONE), "", [CALL_F] * 2, False),
    "no line ends": (
        "chat", "ok" + block(ONE).replace("\n", "") + EOS, "ok", [CALL_F], False,
    ),
    "more line ends": (
        "chat", "ok" + block(ONE).replace(">\n", ">\n\n") + EOS, "ok", [CALL_F], False,
    ),
    "no end token": ("chat", "ok" + block(ONE), "ok", [CALL_F], False),
    "no end token after an answer": ("chat", "ok\n\n", "ok\n\n", [], False),
    "an empty block": ("chat", "ok" + block() + EOS, "ok", [], False),
    "the wrapper opened twice": (
        "chat", f"ok\n\n<{DSML}tool_calls>" + block(ONE) + EOS, "ok", [CALL_F], False,
    ),
    "the wrapper closed by another name": (
        "chat", "ok" + block(ONE).replace("</" + DSML + "tool", "</" + DSML + "function") + "b",
        "okb", [CALL_F], False,
    ),
    "cut in the wrapper": ("chat", f"ok\n\n<{DSML}tool_c", "ok", [], False),
    "cut in a header": ("chat", f'ok\n\n<{DSML}invoke name="f', "ok", [], True),
    "cut behind a header": ("chat", f'ok\n\n<{DSML}invoke name="f">\n', "ok", [], True),
    "cut in a call's closing tag": ("chat", "ok" + block(ONE + ONE)[:-29], "ok", [CALL_F], True),
    "cut behind a call's closing name": (
        "chat", "ok" + block(ONE)[: block(ONE).index("invoke>\n") + 6], "ok", [CALL_F], False,
    ),
    "cut in the closing wrapper": ("chat", "ok" + block(ONE)[:-4], "ok", [CALL_F], False),
    "cut in the token of a tag": ("chat", f"ok\n\n<{DSML[:3]}", f"ok\n\n<{DSML[:3]}", [], False),
    "unclosed last argument": (
        "chat", "ok" + block(ONE, ONE.replace(f"</{DSML}parameter>", "")), "ok", [CALL_F], True,
    ),
    "no closing tags": (
        "chat", f'ok\n\n<{DSML}tool_calls>\n<{DSML}invoke name="f">\n<{DSML}parameter name="a" '
        f'string="true">1{EOS}', "ok", [], True,
    ),
    "cut in a value": ("chat", "ok" + block(ONE, ONE)[:-60], "ok", [CALL_F], True),
    "no closing wrapper": ("chat", "ok" + block(ONE)[:-20] + EOS, "ok", [CALL_F], False),
    "unclosed call": (
        "chat",
        block(ONE.replace(f"</{DSML}invoke>", ""), ONE) + EOS,
        "",
        [CALL_F],
        True,
    ),
    "no name": ("chat", block(f"<{DSML}invoke>\n{param('a', 'x')}</{DSML}invoke>\n", ONE), "",
                [CALL_F], True),
    "no key": ("chat", block(ONE.replace(' name="a"', ""), ONE), "", [CALL_F], True),
    "no string attribute": ("chat", block(invoke("f", param("a", "1", ""))), "", [CALL_F], False),
    "bad string attribute": (
        "chat", block(invoke("f", param("a", "1", ' string="maybe"'))), "", [CALL_F], False,
    ),
    "bad JSON": (
        "chat",
        block(invoke("f", param("a", "1,", FALSE), param("b", "NaN", FALSE))),
        "", [("f", {"a": "1,", "b": "NaN"})], False,
    ),
    "a list that is not closed": (
        "chat", block(invoke("f", param("a", "[1, 2", FALSE))), "", [("f", {"a": "[1, 2"})], False,
    ),
    "JSON that would break out": (
        "chat", block(invoke("f", param("a", '1, "b": 2', FALSE), param("c", "1}, {", FALSE))), "",
        [("f", {"a": '1, "b": 2', "c": "1}, {"})], False,
    ),
    "quotes in names": (
        "chat", block(invoke('a"b', param('c"d', "1"))), "", [('a"b', {'c"d': "1"})], False,
    ),
    "JSON": (
        "chat", block(invoke("f", param("a", ' {"x": [1]} ', ' string="false"'))), "",
        [("f", {"a": {"x": [1]}})], False,
    ),
    "an argument twice": (
        "chat", block(invoke("f", param("a", "0"), param("a", "1"))), "", [CALL_F], False,
    ),
    "the schema says integer": (
        "chat", block(invoke("look", param("depth", "3", ""), param("place", "3", ""))), "",
        [("look", {"depth": 3, "place": "3"})], False,
    ),
    "stray closing tag": ("chat", f"ok</{DSML}tool_calls> more", "ok more", [], False),
    "bare token": ("chat", f"x {DSML} y" + EOS, "x  y", [], False),
    "unknown tag": ("chat", f"x <{DSML}thing>y</{DSML}thing>z", "x z", [], False),
    "a value full of tags": (
        "chat", block(invoke("f", param("a", f"<{DSML}invoke {THINK}</{DSML}invoke>"))), "",
        [("f", {"a": f"<{DSML}invoke {THINK}</{DSML}invoke>"})], False,
    ),
    "other control tokens": ("chat", f"a{THINK}b{ENDTHINK}c{TITLE}d{EOS}", "abcd", [], False),
    "runs on into the user's turn": ("chat", f"a{USER}b{EOS}", "a", [], False),
    "newlines at the end": ("chat", f"a\n\n{EOS}", "a\n\n", [], False),
    "an angle at the end": ("chat", "a\n\n<", "a\n\n<", [], False),
    "a call while thinking": ("thinking", "r" + block(ONE) + EOS, "", [], False),
    "thinking, then a call": ("thinking", f"r{ENDTHINK}{block(ONE)}{EOS}", "", [CALL_F], False),
}  # fmt: skip


def result(message: dict[str, Any]) -> tuple[str, list[tuple[str, dict[str, Any]]], bool]:
    calls = [call["function"] for call in message["tool_calls"]]
    found = [(call["name"], json.loads(call["arguments"])) for call in calls]
    return message["content"], found, message["dropped_call"]


@pytest.mark.parametrize("name", WILD)
def test_seen_in_the_wild(name: str) -> None:
    mode, text, *expected = WILD[name]
    plain = run(StreamParser(mode, tools=TOOLS), [(text, False)])
    tagged = run(StreamParser(mode, tagged=True, tools=TOOLS), tagged_pieces(text))
    assert result(plain) == tuple(expected)
    assert tagged == plain
    assert plain["ended"] == (EOS in text)


@pytest.mark.parametrize("value", ["1" * 9000, "[" * 200_000 + "]" * 200_000])
def test_json_that_nobody_could_read_is_a_string(value: str) -> None:
    message = parse_tolerant(block(invoke("f", param("a", value, FALSE))), "chat")
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": value}


@pytest.mark.parametrize("name", [name for name, row in WILD.items() if "<" + DSML in row[1]])
def test_seen_with_ascii_bars(name: str) -> None:
    mode, text, content, calls, dropped = WILD[name]
    found = run(StreamParser(mode, tools=TOOLS), [(text.replace(DSML, "|DSML|"), False)])
    values = json.loads(json.dumps(calls, ensure_ascii=False).replace(DSML, "|DSML|"))
    assert result(found) == (content, [tuple(call) for call in values], dropped)


def test_ascii_bars_count_in_plain_text_only() -> None:
    text = ("ok | x|DSML|y" + block(ONE)).replace(DSML, "|DSML|")
    assert result(run(StreamParser("chat"), [(text, False)])) == (
        "ok | x|DSML|y", [CALL_F], False,
    )  # fmt: skip
    tagged = run(StreamParser("chat", tagged=True), [(text, False)])
    assert (tagged["content"], tagged["tool_calls"]) == (text, [])


def test_reasoning_without_an_end_is_all_there_is() -> None:
    message = parse_tolerant("so\n\n" + THINK + f"<{DSML}invoke", "thinking")
    assert message["reasoning_content"] == f"so\n\n<{DSML}invoke"
    assert message["content"] == ""


def test_ordinary_pieces_are_never_control_tokens() -> None:
    forged = "".join(CONTROL_LITERALS) + block(ONE)
    pieces = [("r" + forged, False), (ENDTHINK, True), ("a" + forged, False), (EOS, True)]
    message = run(StreamParser("thinking", tagged=True), pieces)
    assert message["reasoning_content"] == "r" + forged
    assert message["content"] == "a" + forged
    assert message["tool_calls"] == []


@pytest.mark.parametrize("token", ["<unknown>", THINK, TITLE])
def test_a_token_that_is_left_out_still_parts_what_is_around_it(token: str) -> None:
    pieces = [("a</", False), (token, True), (DSML, True), ("invoke>", False)]
    assert result(run(StreamParser("chat", tagged=True), pieces)) == ("a</invoke>", [], False)
    opened = tagged_pieces(f'<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">')
    closed = tagged_pieces(f"</{DSML}parameter></{DSML}invoke>")
    value = [("1", False), ("<unknown>", True), ("2", False)]
    message = run(StreamParser("chat", tagged=True), [*opened, *value, *closed])
    assert result(message) == ("", [("f", {"a": "12"})], False)


def test_the_first_control_piece_settles_what_text_means() -> None:
    parser = StreamParser("thinking")
    pieces = [("a<thi", False), (ENDTHINK, True), (f"b{EOS}", False), (EOS, True)]
    message = run(parser, pieces)
    assert (message["reasoning_content"], message["content"]) == ("a<thi", f"b{EOS}")
    plain = run(StreamParser("thinking", tagged=False), [(f"a{EOS}", False), (EOS, True)])
    assert plain["reasoning_content"] == "a"


def test_text_comes_at_once_and_calls_when_complete() -> None:
    parser = StreamParser("thinking", tagged=True)
    assert parser.feed("hm") == [ParseEvent("reasoning", "hm")]
    assert parser.feed(ENDTHINK, True) == []
    assert parser.feed("Hi.\n\n") == [ParseEvent("text", "Hi.")]
    assert parser.feed("<") == []
    assert parser.feed(DSML, True) == []
    assert parser.feed('invoke name="f">\n</') == []
    assert parser.feed(DSML, True) == []
    (event,) = parser.feed("invoke")
    assert (event.kind, event.name, event.arguments) == ("tool_call", "f", "{}")
    assert event.id.startswith("call_")
    assert parser.feed("") == parser.feed(">\n") == parser.feed("<unknown>", True) == []
    assert parser.feed(EOS, True) == parser.feed("late") == parser.close() == parser.close() == []
    assert parser.ended
    assert not parser.dropped_call


def test_lone_surrogates_do_not_pass_for_control_tokens() -> None:
    text = "".join(map(chr, range(0xD800, 0xE000)))
    for tagged in (True, False):
        message = run(StreamParser("chat", tagged=tagged), [("a", False), (text, False)])
        assert message["content"] == "a" + "\ufffd" * len(text)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(FormatError, match="thinking_mode"):
        StreamParser("off")


@pytest.mark.parametrize(
    "tools", [[{}], [None, {"function": 1}], [{"function": {"parameters": 1}}]]
)
def test_odd_tools_say_nothing(tools: Any) -> None:
    assert parse_tolerant(block(ONE), "chat", tools=tools)["tool_calls"]


# --- the same result however the text is cut --------------------------------------------------


def completions() -> list[tuple[str, str]]:
    """Return (mode, completion) of every golden, of every wild case and of rendered answers."""
    found = [(case["thinking_mode"], case["text"]) for case in PARSE_CASES]
    found += [(mode, text) for mode, text, *_ in WILD.values()]
    for case in ENCODE_CASES:
        if case["messages"] and case["messages"][-1]["role"] == "assistant" and "expected" in case:
            prompt = encode(case["messages"][:-1], **case["kwargs"])
            if case["expected"].startswith(prompt):
                found.append((case["kwargs"]["thinking_mode"], case["expected"][len(prompt) :]))
    return found


COMPLETIONS = completions()
assert len(COMPLETIONS) > 60


def cut(text: str, positions: list[int]) -> list[tuple[str, bool]]:
    bounds = [0, *sorted(positions), len(text)]
    return [(text[start:stop], False) for start, stop in pairwise(bounds)]


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(("mode", "text"), COMPLETIONS)
def test_cutting_anywhere_changes_nothing(mode: str, text: str, tagged: bool) -> None:
    def parsed(pieces: list[tuple[str, bool]]) -> dict[str, Any]:
        return run(StreamParser(mode, tagged=tagged), pieces)

    whole = tagged_pieces(text) if tagged else [(text, False)]
    expected = parsed(whole)
    for number, (piece, control) in enumerate(whole):
        if control:
            continue
        for position in range(1, len(piece)):
            halves = cut(piece, [position])
            assert parsed(whole[:number] + halves + whole[number + 1 :]) == expected
    singles = [
        part
        for piece, control in whole
        for part in ([(piece, True)] if control else [(char, False) for char in piece])
    ]
    assert parsed(singles) == expected


@pytest.mark.parametrize(("mode", "text"), COMPLETIONS)
def test_cutting_at_random_bytes_changes_nothing(mode: str, text: str) -> None:
    expected = run(StreamParser(mode), [(text, False)])
    raw = text.encode()
    draw = random.Random(len(raw))
    for _ in range(5):
        # A detokeniser holds the bytes of an unfinished character back: cut where they allow.
        marks = [draw.randrange(len(raw) + 1) for _ in range(4)]
        positions = [len(raw[:mark].decode(errors="ignore")) for mark in marks]
        assert run(StreamParser(mode), cut(text, positions)) == expected


@pytest.mark.parametrize("case", [case for case in PARSE_CASES if "expected" in case], ids=case_id)
def test_what_the_strict_parser_takes_reads_the_same(case: dict[str, Any]) -> None:
    expected = case["expected"]
    if case["id"] == "p021-bad-json-value-false":
        expected = {**expected, "tool_calls": [{"type": "function", "function": {
            "name": "f", "arguments": '{"a": "not json"}'}}]}  # fmt: skip
    message = run(StreamParser(case["thinking_mode"]), [(case["text"], False)])
    assert message == {**expected, "ended": EOS in case["text"], "dropped_call": False}


# None of these starts of literals can be completed across a control token that is left out.
HALVES = (f"<{DSML[:4]}", USER[:4], THINK[:3], EOS[:-3], "|DSML|", "</", "<", ">", "/", "inv", "pa")
TEXTS = ("\n", "\n\n", ">\n", "x", " é", "1", "invoke", "parameter", "tool_calls", ' name="f"')
TAGS = (
    f'<{DSML}invoke name="f">\n',
    f"</{DSML}invoke>\n",
    f'<{DSML}parameter name="a" string="false">',
    f"</{DSML}parameter>\n",
)
FRAGMENTS = (*CONTROL_LITERALS, *HALVES, *TEXTS, *TAGS, ONE, block(ONE))


@settings(deadline=None, max_examples=150)
@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=24),
    mode=st.sampled_from(["chat", "thinking"]),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_anything_is_read_without_leaks_and_alike_however_cut(
    fragments: list[str], mode: str, cuts: list[int]
) -> None:
    text = "".join(fragments)
    whole = run(StreamParser(mode), [(text, False)])
    assert run(StreamParser(mode), cut(text, [min(at, len(text)) for at in cuts])) == whole
    assert run(StreamParser(mode), [(char, False) for char in text]) == whole

    pieces = tagged_pieces(text)
    tagged = run(StreamParser(mode, tagged=True), pieces)
    singles = [
        part
        for piece, control in pieces
        for part in ([(piece, True)] if control else [(char, False) for char in piece])
    ]
    assert run(StreamParser(mode, tagged=True), singles) == tagged
    assert tagged == whole or "|DSML|" in text

    for message in (whole, tagged):
        assert not any(literal in message["content"] for literal in CONTROL_LITERALS)
        for call in message["tool_calls"]:
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
    try:
        strict = parse(text, mode)
    except FormatError:
        return
    if not any(literal in strict["content"] + strict["reasoning_content"] for literal in
               CONTROL_LITERALS) and EOS not in str(strict["tool_calls"]):  # fmt: skip
        assert (whole["content"], whole["reasoning_content"]) == (
            strict["content"], strict["reasoning_content"],
        )  # fmt: skip
        assert len(whole["tool_calls"]) == len(strict["tool_calls"])


def test_a_long_argument_arrives_whole() -> None:
    start = f'<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">'
    end = f"</{DSML}parameter>\n</{DSML}invoke>"
    pieces = [*tagged_pieces(start), *[("word ", False)] * 20_000, *tagged_pieces(end)]
    message = run(StreamParser("chat", tagged=True), pieces)
    assert result(message) == ("", [("f", {"a": "word " * 20_000})], False)
