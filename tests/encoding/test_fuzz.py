"""A little of what ``python -m tests.fuzz_parser`` does for minutes."""

import sys

import pytest

from localv4.encoding import stream
from localv4.encoding.literals import DSML, ENDTHINK
from tests import fuzz_parser
from tests.encoding.completions import Completion, draw
from tests.fuzz_parser import MisreadError, check, main, search, shortened

SEEDS = range(120)


def test_made_up_completions_are_read() -> None:
    assert search(SEEDS, seconds=60.0) == len(SEEDS)


def test_every_kind_of_completion_is_drawn() -> None:
    drawn = [draw(seed) for seed in SEEDS]
    assert drawn == [draw(seed) for seed in SEEDS]
    known = [each.expected for each in drawn if each.expected is not None]
    assert {mode for each in drawn for mode in [each.mode]} == {"chat", "thinking"}
    assert any(each.is_forged for each in drawn)
    assert any(calls and not dropped for *_, calls, dropped in known)
    assert any(dropped for *_, dropped in known)
    assert any(reasoning and content for reasoning, content, *_ in known)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((("a", False), (ENDTHINK, True)), ("a", "", [], True)),
        ((("a", False), (ENDTHINK, True)), ("", "a", [], False)),
    ],
)
def test_what_is_known_is_compared(parts, expected) -> None:
    with pytest.raises(MisreadError, match="is not"):
        check(Completion("thinking", parts, expected), 0)


def test_a_misreading_is_found_shortened_and_told(monkeypatch, capsys) -> None:
    monkeypatch.setattr(stream, "_TAG_LEADS", ("\n<", "</", "<"))
    monkeypatch.setattr(sys, "argv", ["fuzz_parser", "60", "5"])
    assert main() == 1
    assert "seed " in capsys.readouterr().out
    parts = (("a\n\n<", False), (DSML, True), ("tool_calls>", False), *((("b", False),) * 20))
    assert shortened(Completion("chat", parts), 0).parts == parts[:2]


def test_the_time_is_kept(monkeypatch, capsys) -> None:
    monkeypatch.setattr(fuzz_parser, "_SAID_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["fuzz_parser", "0.05"])
    assert main() == 0
    assert "a second: all read" in capsys.readouterr().out
