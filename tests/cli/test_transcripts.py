"""What is shown fits terminals, is plain text in pipes, and is what docs/transcripts holds."""

import re

import pytest

from tests import transcripts
from tests.transcripts import FOLDER, FORMS, Record

COLUMNS = re.compile(r"\S {2,}\S")


@pytest.fixture(scope="module", params=FORMS)
def form(request) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def records(form) -> list[Record]:
    return transcripts.record(FORMS[form])


def test_the_committed_transcripts_are_true(form, records):
    pages = re.split(r"\n(?=\$ )", (FOLDER / f"{form}.txt").read_text())
    assert len(pages) == len(records), "write them again: python -m tests.transcripts"
    for page, record in zip(pages, records, strict=True):
        if record.step.is_stable:
            assert page.rstrip("\n") == record.page.rstrip("\n"), "python -m tests.transcripts"
        else:
            assert page.startswith(f"$ {record.line}\n")


def test_columns_fit_the_terminal(form, records):
    width = FORMS[form]
    for record in records:
        for line in record.text.splitlines():
            # A terminal wraps sentences and paths, which stay whole to be copied.
            if width is not None and COLUMNS.search(line) and transcripts.PLACE not in line:
                assert len(line) <= width, line


def test_nothing_but_text_is_shown_in_the_end(records):
    for record in records:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", record.text)
        assert "Traceback" not in record.text
