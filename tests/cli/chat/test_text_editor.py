import os
import sys
from pathlib import Path

import pytest

from localv4.cli.chat.text_editor import edited
from localv4.errors import InvalidInput

EDIT = """
import sys
from pathlib import Path
path = Path(sys.argv[1])
path.write_bytes(eval({wanted!r}, {{"content": path.read_bytes()}}))
"""


@pytest.fixture
def edit(monkeypatch, tmp_path):
    """Return a function that edits a text by an expression of its bytes."""

    def run(text: str, wanted: str) -> str:
        program = tmp_path / "edit.py"
        program.write_text(EDIT.format(wanted=wanted))
        monkeypatch.setenv("VISUAL", f"{sys.executable} {program}")
        with Path(os.devnull).open("r+") as nowhere:
            return edited(text, nowhere.fileno(), nowhere.fileno())

    return run


@pytest.mark.parametrize(
    ("text", "wanted", "left"),
    [
        ("w\u00f6rd\nmore", "content", "w\u00f6rd\nmore"),
        ("one", "content + b'\\n'", "one"),
        ("one", "content + b'\\n\\n'", "one\n"),
        ("one", "b'\\xef\\xbb\\xbftwo\\r\\n'", "two"),
        ("one", "b''", ""),
    ],
)
def test_the_text_is_what_the_editor_leaves(edit, text, wanted, left):
    assert edit(text, wanted) == left


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [("b'\\xff'", "left no UTF-8"), ("path.unlink()", "ended with 1"), ("exit(7)", "ended with 7")],
)
def test_what_is_no_text_is_refused(edit, wanted, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        edit("one", wanted)


def test_an_editor_that_takes_the_file_away_has_failed(monkeypatch):
    monkeypatch.setenv("VISUAL", "rm")
    with pytest.raises(InvalidInput, match="No such file"):
        edited("one", 0, 1)
