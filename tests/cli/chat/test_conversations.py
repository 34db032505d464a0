"""What is saved of a conversation, and what is believed of a file."""

import os
from pathlib import Path
from typing import Any

import pytest

import localv4
from localv4.cli.chat.conversations import (
    Conversation,
    load_state,
    model_name,
    new_name,
    read,
    save,
)
from localv4.errors import DamagedSession, InvalidInput, LocalV4Error, OutOfBudget
from localv4.session_store import SessionStore
from localv4.state_file import read_head, write_state
from tests.cli.conftest import FakeSession

QUESTION = {"role": "user", "content": "Why is\nthe sky blue?"}
ANSWER = {"role": "assistant", "content": "It is not.", "reasoning_content": "Hm"}
SOUND = {"system": None, "think": "high", "messages": [QUESTION, ANSWER]}


@pytest.fixture
def store(tmp_path) -> SessionStore:
    return SessionStore(tmp_path / "sessions", 100_000)


@pytest.fixture
def session() -> Any:
    return FakeSession(ids=[7, 8, 9])


def talk(first: str = "Why is\nthe sky blue?") -> Conversation:
    return Conversation("Be brief.", [{**QUESTION, "content": first}, ANSWER], "high", unsaved=True)


def write(store: SessionStore, name: str, head: dict[str, Any]) -> Path:
    store.prepare(name, 0)
    write_state(store.path(name), head, {})
    return store.path(name)


def test_what_is_saved_comes_back(store, session):
    conversation = talk()
    said = save(conversation, "sky", session, store, "tiny")
    assert said.startswith("saved as 'sky', ")
    assert (conversation.name, conversation.unsaved) == ("sky", False)
    assert read("sky", store) == conversation
    (row,) = store.sessions()
    assert (row.title, row.model, row.n_tokens) == ("Why is the sky blue?", "tiny", 3)
    assert store.path("sky").stat().st_mode & 0o777 == 0o600


def test_half_a_step_is_taken_back_before_saving(store, session):
    save(talk(), "sky", session, store, "tiny")
    assert session.n_mended == 1


def test_a_torn_state_is_saved_up_to_what_was_kept(store, checkpoint, monkeypatch):
    ids = list(range(2, 60))

    def stop(*_):
        raise KeyboardInterrupt

    with localv4.load(checkpoint) as engine:
        session = engine.session()
        session.prefill(ids)
        session.keep()
        with monkeypatch.context() as patch:
            patch.setattr(session._model, "forward", stop)
            with pytest.raises(KeyboardInterrupt):
                session.decode(5)
        with pytest.raises(LocalV4Error, match="not whole"):
            session.saved_bytes()
        store.limit_bytes = 2**30
        save(talk(), "sky", session, store, "tiny")
        assert engine.load_session(store.path("sky")).ids == ids


def test_an_empty_conversation_is_not_saved(store, session):
    with pytest.raises(InvalidInput, match="nothing was said"):
        save(Conversation("Be brief."), "sky", session, store, "tiny")
    assert not store.folder.exists()


def test_another_conversation_is_not_replaced(store, session):
    conversation = talk()
    save(conversation, "sky", session, store, "tiny")
    save(conversation, "sky", session, store, "tiny")
    other = talk("Something else")
    with pytest.raises(InvalidInput, match="another conversation is saved as 'sky'"):
        save(other, "sky", session, store, "tiny")
    save(other, "else", session, store, "tiny")
    with pytest.raises(InvalidInput, match="another conversation is saved as 'sky'"):
        save(other, "sky", session, store, "tiny")
    assert read("sky", store) == conversation
    assert other.name == "else"


@pytest.mark.parametrize("name", ["", "../sky", "a/b", "a\nb", ".a", "con", "x" * 101])
def test_a_bad_name_is_refused(store, session, name):
    with pytest.raises(InvalidInput, match="name"):
        save(talk(), name, session, store, "tiny")
    with pytest.raises(InvalidInput, match="name"):
        read(name, store)
    assert not store.folder.exists()


def test_older_ones_make_room_once_it_is_saved(store, session):
    for number, name in enumerate(("old", "older")):
        write(store, name, {"x": "y" * 60_000})
        os.utime(store.path(name), (0, 9 - number))
    said = save(talk("z" * 60_000), "sky", session, store, "tiny")
    assert said.endswith("; removed 'older', 'old' to stay within 97.7 KiB")
    assert [row.name for row in store.sessions()] == ["sky"]


def test_a_failed_save_costs_nobody_anything(store, session, monkeypatch):
    write(store, "old", {"x": "y" * 90_000})
    conversation = talk("z" * 60_000)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(OutOfBudget, match=r"no room \(No space left on device\)"):
            save(conversation, "sky", session, store, "tiny")
    assert [row.name for row in store.sessions()] == ["old"]
    assert (conversation.name, conversation.unsaved) == (None, True)
    with pytest.raises(OutOfBudget, match="LOCALV4_SESSION_LIMIT"):
        save(talk("z" * 100_000), "sky", session, store, "tiny")
    assert [row.name for row in store.sessions()] == ["old"]


def test_what_cannot_make_room_is_said_beside_the_saving(store, session, monkeypatch):
    conversation = talk()

    def refuse(_):
        raise LocalV4Error("old.session cannot be changed (why)")

    monkeypatch.setattr(store, "trim", refuse)
    said = save(conversation, "sky", session, store, "tiny")
    assert said.endswith("; older ones should make room, but old.session cannot be changed (why)")
    assert not conversation.unsaved


def test_a_folder_that_may_not_be_written_is_a_sentence(store, session, monkeypatch):
    store.prepare("sky", 0)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("localv4.replacing.tempfile.mkstemp", refuse)
    with pytest.raises(LocalV4Error, match=r"cannot be saved \(Permission denied\)"):
        save(talk(), "sky", session, store, "tiny")


def test_a_missing_one_is_named(store, session):
    save(talk(), "sky", session, store, "tiny")
    with pytest.raises(InvalidInput, match=r"no session 'skye'; did you mean 'sky'\?"):
        read("skye", store)


def changed(**changes: Any) -> dict[str, Any]:
    return {"conversation": {**SOUND, **changes}}


BAD_HEADS = {
    "none": {},
    "no object": {"conversation": [1]},
    "system": changed(system=["x"]),
    "half a character": changed(system="\udcff"),
    "level": changed(think="lots"),
    "level's type": changed(think=["high"]),
    "no messages": changed(messages=[]),
    "messages' type": changed(messages={"0": QUESTION}),
    "half a turn": changed(messages=[QUESTION]),
    "order": changed(messages=[ANSWER, QUESTION]),
    "role": changed(messages=[{**QUESTION, "role": "system"}, ANSWER]),
    "content's type": changed(messages=[{**QUESTION, "content": [{"type": "text"}]}, ANSWER]),
    "half a character said": changed(messages=[QUESTION, {**ANSWER, "content": "\ud800"}]),
    "no content": changed(messages=[QUESTION, {"role": "assistant"}]),
    "unknown key": changed(messages=[QUESTION, {**ANSWER, "tool_calls": []}]),
    "thoughts of a user": changed(messages=[{**QUESTION, "reasoning_content": "x"}, ANSWER]),
    "message's type": changed(messages=[QUESTION, "x"]),
}


@pytest.mark.parametrize("head", BAD_HEADS.values(), ids=BAD_HEADS)
def test_a_head_is_not_believed(store, head):
    path = write(store, "sky", head)
    with pytest.raises(DamagedSession, match=r"sky\.session holds .*; remove it"):
        read("sky", store)
    assert read_head(path) == head


def test_a_sound_head_is_read(store):
    write(store, "sky", changed())
    assert read("sky", store) == Conversation(None, [QUESTION, ANSWER], "high", "sky")
    write(store, "sky", changed(think=None, system="S"))
    assert read("sky", store).prompt[0] == {"role": "system", "content": "S"}


@pytest.mark.parametrize("error", [DamagedSession, InvalidInput, OutOfBudget])
def test_a_refused_state_leaves_an_empty_session(store, session, error):
    session.refusal = error("the reason")
    assert load_state("sky", session, store) == "the reason"
    assert session.position == 0


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ("Why is\nthe sky blue today, and not green?", "why-is-the-sky-blue-today"),
        ("Größe: 3 m²", "größe-3-m²"),
        ("../../etc/passwd", "etc-passwd"),
        ("x" * 500, "x" * 40),
        ("?!", "session"),
        ("con", "session-con"),
        ("\x1b[2J", "2j"),
        ("日本" * 50, "日本" * 20),
    ],
    ids=ascii,
)
def test_names_are_made_of_the_first_words(store, session, first, name):
    for number in range(1, 4):
        conversation = talk(first)
        made = new_name(conversation, store)
        assert made == (name if number == 1 else f"{name}-{number}")
        save(conversation, made, session, store, "tiny")


def test_models_have_short_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert model_name(None) == "built-in"
    assert model_name("/models/Flash/") == "Flash"
    assert model_name(".") == tmp_path.name
    assert model_name("~nobody-like-this/Flash") == "Flash"
