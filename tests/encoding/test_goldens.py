"""Every golden case, in both directions, for both profiles."""

import copy
from itertools import pairwise
from typing import Any

import pytest

from localv4.encoding import encode, parse, render
from localv4.encoding.literals import (
    BOS,
    CONTROL_LITERALS,
    EFFORT_RELENTLESS,
    EFFORT_THOROUGH,
)
from localv4.errors import FormatError
from tests.encoding.cases import ENCODE_CASES, PARSE_CASES, case_id

RENDERED = [case for case in ENCODE_CASES if "expected" in case]
THINKING = [case for case in RENDERED if case["kwargs"]["thinking_mode"] == "thinking"]


def test_all_cases_are_there() -> None:
    assert (len(ENCODE_CASES), len(PARSE_CASES)) == (72, 22)
    assert len(RENDERED) == 67


@pytest.mark.parametrize("case", ENCODE_CASES, ids=case_id)
def test_encode(case: dict[str, Any]) -> None:
    before = copy.deepcopy(case)
    if "error" in case:
        with pytest.raises(FormatError):
            encode(case["messages"], **case["kwargs"])
    else:
        assert encode(case["messages"], **case["kwargs"]) == case["expected"]
    assert case == before, "the input was changed"


@pytest.mark.parametrize("case", PARSE_CASES, ids=case_id)
def test_parse(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(FormatError):
            parse(case["text"], case["thinking_mode"])
    else:
        assert parse(case["text"], case["thinking_mode"]) == case["expected"]


@pytest.mark.parametrize(
    ("effort", "prefix"),
    [(None, ""), ("low", ""), ("high", EFFORT_THOROUGH), ("max", EFFORT_RELENTLESS)],
)
@pytest.mark.parametrize("case", THINKING, ids=case_id)
def test_official_profile_differs_in_the_effort_prefix_alone(
    case: dict[str, Any], effort: str | None, prefix: str
) -> None:
    kwargs = {**case["kwargs"], "reasoning_effort": effort, "profile": "official"}
    bare = case["expected"].replace(BOS + EFFORT_THOROUGH, BOS)
    # Without BOS the prompt is a continuation, or the golden with add_default_bos_token=False.
    expected = bare.replace(BOS, BOS + prefix) if case["messages"] else bare
    assert expected.startswith(BOS) or "context" in kwargs
    assert encode(case["messages"], **kwargs) == expected


@pytest.mark.parametrize("case", RENDERED, ids=case_id)
def test_pieces_are_single_control_tokens_and_merged_text(case: dict[str, Any]) -> None:
    pieces = render(case["messages"], **case["kwargs"])
    assert "".join(piece.text for piece in pieces) == case["expected"]
    assert all(piece.text for piece in pieces)
    assert all(piece.text in CONTROL_LITERALS for piece in pieces if piece.control)
    neighbours = pairwise(pieces)
    assert all(left.control or right.control for left, right in neighbours)
