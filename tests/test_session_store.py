"""The folder of sessions: names, lists, removal, the limit."""

import os
from pathlib import Path

import numpy as np
import pytest

from localv4.errors import InvalidInput, LocalV4Error, OutOfBudget
from localv4.session_store import SessionStore
from localv4.state_file import open_state, state_bytes, write_state


@pytest.fixture
def store(tmp_path) -> SessionStore:
    return SessionStore(tmp_path / "data" / "sessions", 100_000)


def save(store: SessionStore, name: str, n_bytes: int = 100, used_s: int = 1000) -> int:
    """Save a session as an engine would; returns the size of its file."""
    head = {"title": f"about {name}", "model": "tiny", "n_tokens": 3}
    arrays = {"x": np.ones(n_bytes, np.uint8)}
    store.prepare(name, state_bytes(head, arrays))
    size = write_state(store.path(name), head, arrays)
    os.utime(store.path(name), (0, used_s))
    return size


def names(store: SessionStore) -> list[str]:
    return [session.name for session in store.sessions()]


@pytest.mark.parametrize(
    "name", ["a", "Tag 1, früh", "a.b-c_d", "日本" * 33, "x" * 100, "console", "a.con"]
)
def test_names(store, name):
    save(store, name)
    assert names(store) == [name]
    assert store.path(name) == store.folder / f"{name}.session"


def test_a_name_composed_otherwise_is_the_same(store):
    save(store, "fru\u0308h")
    assert names(store) == ["fr\u00fch"]
    assert store.n_bytes("fru\u0308h") > 0


BAD_NAMES = ["", ".", "..", ".a", "a.", " a", "a ", "a/b", "a\\b", "../a", "/a", "C:a", "a*", "a?"]
BAD_NAMES += ["a\0", "a\nb", "a\x1b[2J", "a\u2028", "\udcff", "\u202ea", "x" * 101, "本" * 67]
BAD_NAMES += ["con", "NUL", "nul.txt", "Com1", 'a"b', "a|b", "<a>"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_are_no_file_everywhere_are_refused(store, name):
    for use in (store.path, store.has, store.delete, store.touch, store.n_bytes):
        with pytest.raises(InvalidInput, match="name"):
            use(name)
    with pytest.raises(InvalidInput, match="name"):
        store.prepare(name, 1)
    with pytest.raises(InvalidInput, match="name"):
        store.trim([name])
    assert not store.folder.exists()


def test_an_empty_store(store):
    assert store.sessions() == ()
    assert not store.folder.exists()
    assert store.trim() == ()
    store.prepare("a", 1)
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_a_list_is_by_last_use(store):
    size = save(store, "old", used_s=1000)
    save(store, "new", used_s=2000)
    first, second = store.sessions()
    assert (first.name, first.used_s, first.n_bytes) == ("new", 2000, size)
    assert (second.title, second.model, second.n_tokens) == ("about old", "tiny", 3)
    assert first.damage is second.damage is None
    store.touch("old")
    assert names(store) == ["old", "new"]


def test_damaged_and_strange_ones_are_listed(store):
    save(store, "sound", used_s=3)
    save(store, "torn", used_s=2)
    os.truncate(store.path("torn"), 50)
    os.utime(store.path("torn"), (0, 2))
    write_state(store.path("odd"), {"title": 1, "model": [], "n_tokens": True}, {})
    os.utime(store.path("odd"), (0, 1))
    sound, torn, odd = store.sessions()
    assert (sound.damage, odd.damage) == (None, None)
    assert "truncated or damaged" in (torn.damage or "")
    assert (torn.title, torn.n_tokens) == ("", None)
    assert (odd.title, odd.model, odd.n_tokens) == ("", "", None)


def test_what_is_no_session_is_not_listed(store):
    save(store, "a")
    for name in ("b.txt", ".session", ".b.session", "b.session.partial", "con.session"):
        (store.folder / name).write_text("x")
    (store.folder / "folder.session").mkdir()
    (store.folder / "fru\u0308h.session").touch()  # a name that path() never gives
    (store.folder / "link.session").symlink_to(store.path("a"))
    assert names(store) == ["a"]


def test_a_session_deleted_while_it_is_listed_is_left_out(store, monkeypatch):
    save(store, "a")
    save(store, "b")
    sound = store._by_age()
    store.delete("a")
    monkeypatch.setattr(store, "_by_age", lambda: sound)
    assert names(store) == ["b"]


def test_delete(store):
    assert not store.has("morning")
    save(store, "morning")
    assert store.has("morning")
    with pytest.raises(InvalidInput, match=r"no session 'mornin'; did you mean 'morning'\?"):
        store.delete("mornin")
    store.delete("morning")
    assert store.sessions() == ()
    with pytest.raises(InvalidInput, match="localv4 sessions lists"):
        store.delete("morning")


def test_the_oldest_are_removed(store):
    for number, name in enumerate("abcd"):
        save(store, name, 22_000, used_s=number)  # 29 KB each
    store.touch("b")
    assert store.trim() == ("a",)
    assert names(store) == ["b", "d", "c"]
    assert store.trim() == ()


def test_what_is_kept_stays(store):
    for number, name in enumerate("abcde"):
        save(store, name, 22_000, used_s=number)
    assert store.trim(["a", "none", "e"]) == ("b", "c")
    assert names(store) == ["e", "d", "a"]


def test_what_is_kept_may_exceed_the_limit(store):
    for number, name in enumerate("abc"):
        save(store, name, 60_000, used_s=number)
    assert store.trim("ab") == ("c",)
    assert names(store) == ["b", "a"]


def test_preparing_removes_no_session(store):
    for number, name in enumerate("abcd"):
        save(store, name, 22_000, used_s=number)
    store.prepare("e", 100_000)
    assert len(names(store)) == 4


def test_a_session_larger_than_the_limit_is_refused(store):
    with pytest.raises(OutOfBudget, match=r"takes 97.7 KiB, but all .* LOCALV4_SESSION_LIMIT"):
        store.prepare("b", 100_001)
    assert not store.folder.exists()


def test_preparing_removes_what_killed_writers_left(store):
    store.prepare("a", 1)
    partial = store.folder / ".a.session.x.partial"
    partial.touch()
    os.utime(partial, (0, 0))
    store.prepare("a", 1)
    assert not partial.exists()


def test_a_session_in_use_can_be_removed(store):
    save(store, "a")
    with open_state(store.path("a")) as file:
        store.delete("a")
        file.verify()


def test_a_folder_of_no_use_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "none" / "there")
    store = SessionStore(tmp_path / "file", 100)
    for use in (store.sessions, store.trim):
        with pytest.raises(LocalV4Error, match=r"cannot be read \(Not a directory\)"):
            use()
    with pytest.raises(LocalV4Error, match=r"cannot be changed \(File exists\)"):
        store.prepare("a", 1)
    with pytest.raises(LocalV4Error, match="cannot be changed"):
        SessionStore(tmp_path / "nowhere", 100).prepare("a", 1)


def test_what_cannot_be_removed_is_a_sentence(store, monkeypatch):
    save(store, "a", 60_000, used_s=1)
    save(store, "b", 60_000, used_s=2)

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(LocalV4Error, match=r"a\.session cannot be changed \(Permission denied\)"):
        store.trim()
