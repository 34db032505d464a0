"""Strictness of the strict parser, beyond the goldens."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.encoding import parse
from localv4.encoding.literals import BOS, CONTROL_LITERALS, DSML, ENDTHINK, EOS, THINK
from localv4.errors import FormatError

OPEN, CLOSE = f"\n\n<{DSML}tool_calls>\n", f"</{DSML}tool_calls>"


def invoke(header: str, *parameters: str) -> str:
    body = "".join(f"<{DSML}parameter{parameter}</{DSML}parameter>\n" for parameter in parameters)
    return f"{OPEN}<{DSML}invoke{header}{body}</{DSML}invoke>\n{CLOSE}{EOS}"


def only_call(text: str) -> dict[str, Any]:
    (call,) = parse(text, "chat")["tool_calls"]
    return dict(call["function"])


def test_values_names_and_keys_hold_what_does_not_end_them() -> None:
    value = f'<b> "x">\n</{DSML}invoke>\n{EOS}<'
    text = invoke(' name="a"b>c">\n', f' name="k" q" string="true">{value}')
    assert only_call(text)["name"] == 'a"b>c'
    assert '"k\\" q"' in only_call(text)["arguments"]
    assert f'\\n</{DSML}invoke>\\n{EOS}<"' in only_call(text)["arguments"]


def test_empty_block_and_missing_eos_behind_a_block() -> None:
    assert parse(OPEN + CLOSE + EOS, "chat")["tool_calls"] == []
    assert parse(OPEN + CLOSE, "chat")["tool_calls"] == []


@pytest.mark.parametrize(
    "text",
    [
        invoke(">\n"),
        invoke(' name="f">'),
        invoke(' name="f">\n\n\n'),
        invoke(' name="f">\nx'),
        invoke(' name="f">\n', '  name="a" string="true">1'),
        invoke(' name="f">\n', ' name="a">1'),
        invoke(' name="f">\n', *[' name="a" string="true">1'] * 2),
        invoke(' name="f">\n').replace("</", "\n</"),
        invoke(' name="f">\n', ' name="a" string="true">1').replace(f"1</{DSML}", f"1/{DSML}"),
        invoke(' name="f">\n') + "x",
        OPEN + EOS,
        OPEN,
        f"\n<{DSML}tool_calls>\n{CLOSE}{EOS}",
        *(f"a{literal}b{EOS}" for literal in (BOS, EOS, THINK, ENDTHINK, DSML)),
    ],
)
def test_departures_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse(text, "chat")


def test_a_call_inside_the_reasoning_means_the_end_token_is_missing() -> None:
    with pytest.raises(FormatError, match="missing </think>"):
        parse("r" + invoke(' name="f">\n') + ENDTHINK + EOS, "thinking")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(FormatError, match="thinking_mode"):
        parse("x", "off")
    with pytest.raises(FormatError, match="bytes"):
        parse(b"x", "chat")  # type: ignore[arg-type]


TAGS = (OPEN, CLOSE, f"<{DSML}invoke", f"</{DSML}invoke", f"<{DSML}parameter", f"/{DSML}parameter")
FRAGMENTS = (*CONTROL_LITERALS, *TAGS, ' name="', '">\n', '" string="true">', "<", ">\n", "x")


@settings(deadline=None, max_examples=200)
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join))
def test_nothing_but_a_format_error_comes_out(text: str) -> None:
    for mode in ("chat", "thinking"):
        try:
            message = parse(text, mode)
        except FormatError:
            continue
        assert text.startswith(message["reasoning_content"])
        assert message["content"] in text
