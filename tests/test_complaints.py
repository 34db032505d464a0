"""docs/complaints.md names what holds each row, and that is there."""

import re

import pytest

from localv4.doctor import Request, diagnose
from tests.conftest import ROOT
from tests.released import released_text

PAGE = ROOT / "docs" / "complaints.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
SCENE = re.compile(r"\]\((transcripts/[\w.-]+)\), \*([^*]+)\*")


def rows() -> list[list[str]]:
    lines = PAGE.read_text("utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]


def test_there_is_a_row_for_each():
    said = "\n".join(row[0] for row in rows())
    numbers = "llm#1224 lms#529 aichat#1241 llama.cpp#29264 ollama#14254 mlx-lm#612 mlx-lm#1653"
    numbers += " ollama#17427 ds4#639 ds4#802 ds4#810 colibri#975 colibri#1136"
    assert [number for number in numbers.split() if number not in said] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_what_holds_it_is_there(row):
    _, _, shown = row
    tests, scenes = TEST.findall(shown), SCENE.findall(shown)
    assert (
        len(tests) + len(scenes)
        == shown.count("; ") - sum(title.count("; ") for _, title in scenes) + 1
    )
    for path, name in tests:
        assert f"\ndef {name}(" in (ROOT / path).read_text("utf-8"), path
    for path, title in scenes:
        assert f"== {title} ==\n" in (PAGE.parent / path).read_text("utf-8"), title


def test_the_doctor_says_that_reading_wears_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(released_text("flash"))
    asked = Request(tmp_path, 24 * 2**30, 2, tmp_path / "cache", measures=False)
    assert "reads do not wear an SSD" in "\n".join(found.text for found in diagnose(asked).findings)
