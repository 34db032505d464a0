"""Bad inputs get one sentence with a next step, a documented code, and are what the page says."""

import re

import pytest

from tests import bad_inputs
from tests.bad_cases import CHATS, GROUPS, Case, Chat, Group
from tests.bad_inputs import PAGE, Place, Said

CODES = {1, 2, 3, 4}
NEXT_STEP = re.compile(r"(; |\? )\S")
ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="module")
def place():
    with bad_inputs.place() as made:
        yield made


def section(title: str) -> str:
    """Return what the page has under a title, without the fences."""
    parts = re.split(r"^## (.+)\n\n```text\n", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return parts[parts.index(title) + 1].rstrip().removesuffix("```")


def check(sentence: str) -> None:
    assert sentence.startswith("localv4: ")
    assert NEXT_STEP.search(sentence), "it should say what to do next"
    assert not ACTS.search(sentence)
    assert "internal error" not in sentence
    assert "Errno" not in sentence


@pytest.mark.parametrize("entry", GROUPS, ids=lambda entry: entry.title)
def test_a_shell(entry: Group, place: Place) -> None:
    if not bad_inputs.is_possible(entry):
        pytest.skip("root can open everything here, and there is no setpriv to change that")
    said = bad_inputs.say_all(entry, place)
    assert bad_inputs.group_text(entry, said) == section(entry.title), "python -m tests.bad_inputs"
    for case, answer in zip(entry.cases, said, strict=True):
        check_answer(case, answer)


def check_answer(case: Case, answer: Said) -> None:
    assert len(answer.lines) == 1 + case.n_before
    for line in answer.lines[:-1]:
        assert line.startswith("localv4: ")
    check(answer.lines[-1])
    assert bool(answer.out) is case.has_answer
    assert answer.code in ({0} if case.goes_on else CODES)


@pytest.mark.parametrize("entry", CHATS, ids=lambda entry: entry.title)
def test_a_chat(entry: Chat, place: Place) -> None:
    said, code, raw = bad_inputs.talk(entry, place)
    text = bad_inputs.chat_text(entry, said, code)
    assert text == section(entry.title), "python -m tests.bad_inputs"
    is_bad = [line.is_bad for line in entry.lines] or [True]
    for wrong, answer in zip(is_bad, said, strict=True):
        assert bool(answer.lines) is wrong
        for sentence in answer.lines:
            check(sentence)
    assert b"\x1b[2J" not in raw
    assert b"Traceback" not in raw
    assert code == entry.code


def test_the_page_has_nothing_else():
    titles = re.findall(r"^## (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert titles == [entry.title for entry in (*GROUPS, *CHATS)]


def test_what_is_typed_differs():
    lines = [case.line for group in GROUPS for case in group.cases]
    lines += [f"{chat.line}: {line.text}" for chat in CHATS for line in chat.lines]
    assert len({*lines}) == len(lines)
