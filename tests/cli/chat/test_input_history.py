import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.cli.chat import input_history
from localv4.cli.chat.input_history import InputHistory


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "localv4" / "history"


def silent(sentence):
    raise AssertionError(sentence)


def read(path):
    return InputHistory(path, silent).entries


def test_entries_are_there_for_the_next_chat(path):
    history = InputHistory(path, silent)
    assert not path.parent.exists()
    for text in ("one", "two\n\n+ lines\n# more", "\u4f60\u597d \\", "one"):
        history.add(text)
    assert (
        read(path) == history.entries == ["one", "two\n\n+ lines\n# more", "\u4f60\u597d \\", "one"]
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)))
def test_any_text_is_read_as_it_was(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("any") / "history"
    history = InputHistory(path, silent)
    for text in texts:
        history.add(text)
    assert read(path) == history.entries
    without_repeats = [text for n, text in enumerate(texts) if n == 0 or texts[n - 1] != text]
    assert history.entries == without_repeats


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_harmless(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "history"
    path.write_bytes(content)
    history = InputHistory(path, silent)
    history.add("after")
    assert read(path)[-1] == "after"


def test_repeats_blanks_and_floods_are_not_kept(path):
    history = InputHistory(path, silent)
    flood = "x" * 100_001
    for text in ("again", "again", "", " \n", flood, "again"):
        history.add(text)
    assert history.entries == ["again", flood, "again"]
    assert read(path) == ["again", "again"]


def test_the_form_is_prompt_toolkits(path):
    from prompt_toolkit.history import FileHistory

    path.parent.mkdir(parents=True)
    FileHistory(path).store_string("theirs\nof two lines")
    InputHistory(path, silent).add("ours\nof two lines")
    assert read(path) == ["theirs\nof two lines", "ours\nof two lines"]
    assert [*FileHistory(path).load_history_strings()][::-1] == read(path)


def test_an_entry_that_was_cut_off_is_left_out(path):
    history = InputHistory(path, silent)
    history.add("whole")
    history.add("torn")
    path.write_bytes(path.read_bytes()[:-2])
    InputHistory(path, silent).add("next")
    # it has the line end of what was written after it
    assert read(path) == ["whole", "tor", "next"]


def test_many_entries_are_trimmed_to_the_last(path, monkeypatch):
    history = InputHistory(path, silent)
    for number in range(2001):
        history.add(f"entry {number}\nof two lines")
    assert read(path) == history.entries[-2000:]
    assert read(path) == history.entries[-1000:]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [*path.parent.iterdir()] == [path]


def test_many_bytes_are_trimmed_to_the_last(path, monkeypatch):
    monkeypatch.setattr(input_history, "_MOST_BYTES", 10_000)
    history = InputHistory(path, silent)
    for number in range(100):
        history.add(f"{number} {'x' * 200}")
    read(path)
    assert read(path) == history.entries[-len(read(path)) :]
    assert 0 < path.stat().st_size <= 5000
    assert len(read(path)) > 10


def test_a_file_that_cannot_be_trimmed_is_read_all_the_same(path, monkeypatch):
    history = InputHistory(path, silent)
    for number in range(2001):
        history.add(f"entry {number}")

    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(input_history, "replacing", refuse)
    assert read(path) == history.entries[1:]
    assert read(path) == history.entries[1:]


ADD = """
import sys
from pathlib import Path
from localv4.cli.chat import input_history
input_history._MOST_ENTRIES = 200
for number in range(60):
    history = input_history.InputHistory(Path(sys.argv[1]), print)
    history.add(f"{sys.argv[2]} {number}\\n{'x' * 3000}")
"""


def test_chats_add_at_once_and_trim_without_damage(path):
    chats = [subprocess.Popen([sys.executable, "-c", ADD, path, name]) for name in "abcd"]
    assert [chat.wait() for chat in chats] == [0] * 4
    entries = read(path)
    assert len(entries) >= 100
    assert all(text.endswith("\n" + "x" * 3000) for text in entries)
    firsts = [text.partition("\n")[0] for text in entries]
    assert len(set(firsts)) == len(firsts)
    for name in "abcd":
        numbers = [int(first[2:]) for first in firsts if first.startswith(name)]
        # trimmed at the beginning, and nothing lost after that
        assert numbers == [*range(60 - len(numbers), 60)]


@pytest.mark.parametrize("kind", ["folder", "pipe", "file for a folder", "full", "unreadable"])
def test_what_is_wrong_with_the_file_is_said_once(path, monkeypatch, kind):
    path.parent.mkdir(parents=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "file for a folder":
        path = path / "history"
        path.parent.touch()
    elif kind == "full":
        monkeypatch.setattr(os, "write", lambda *_: 3)
    else:
        path.symlink_to(path)
    said: list[str] = []
    history = InputHistory(path, said.append)
    for text in ("one", "two"):
        history.add(text)
    assert history.entries == ["one", "two"]
    (sentence,) = said
    assert str(path) in sentence


def test_without_a_file_nothing_is_kept():
    history = InputHistory(None, silent)
    history.add("one")
    assert history.entries == ["one"]
