"""Conversations kept on disk: saved, loaded, and saved by themselves where they have a name."""

import contextlib
from typing import TYPE_CHECKING

from localv4.cli.chat import conversations
from localv4.cli.chat.conversations import Conversation
from localv4.cli.chat.view import show_answer
from localv4.cli.output import for_terminal, one_line
from localv4.cli.sessions import session_store
from localv4.errors import LocalV4Error

if TYPE_CHECKING:
    from localv4.cli.chat.talk import Talk
    from localv4.session import Session

__all__ = ["load", "load_state", "save", "save_at_the_end", "save_if_wanted", "show_end"]

_SHOWN_QUESTION, _SHOWN_ANSWER = 300, 1500  # characters of the last turn of a loaded conversation


def save(talk: "Talk", name: str | None = None) -> None:
    """Save the conversation, under a name of its own if none is given."""
    store = session_store(talk.settings)
    conversation = talk.conversation
    name = name or conversation.name or conversations.new_name(conversation, store)
    model = conversations.model_name(talk.settings.model)
    said = conversations.save(conversation, name, talk.session, store, model)
    talk.output.note(one_line(said))


def save_if_wanted(talk: "Talk") -> None:
    """Save what was said to a conversation that has a name, before it is left."""
    conversation = talk.conversation
    if conversation.name is None or not conversation.unsaved or not conversation.messages:
        return
    try:
        save(talk)
    except conversations.ChangedMeanwhile:
        taken = conversation.name
        name = conversations.new_name(conversation, session_store(talk.settings))
        talk.output.warning(f"another chat has saved {taken!r} meanwhile; this one is {name!r}")
        conversation.name = None
        save(talk, name)


def save_at_the_end(talk: "Talk") -> None:
    """Save what has a name; say of what has none how it could have been kept."""
    save_if_wanted(talk)
    conversation = talk.conversation
    if talk.interactive and conversation.name is None and conversation.unsaved:
        talk.output.note("(not saved: /save does that, or chat --session NAME)")


def load(talk: "Talk", name: str) -> None:
    """Go on with a saved conversation."""
    save_if_wanted(talk)  # first: it may be the same one
    store = session_store(talk.settings)
    saved, session = conversations.read(name, store), talk.session
    before = talk.think
    saved.think = talk.settings.think or saved.think
    load_state(talk, saved, session)
    talk.conversation = saved
    talk.attached.clear()
    show_end(talk)
    if talk.think != before:
        talk.warn_of_context(talk.engine, session)


def load_state(talk: "Talk", saved: Conversation, session: "Session") -> None:
    """Read the state of a conversation, if that is of use; else the next turn reads its text."""
    assert saved.name is not None
    store = session_store(talk.settings)
    refused = conversations.load_state(saved.name, session, store)
    with contextlib.suppress(LocalV4Error):  # the folder may be read-only
        store.touch(saved.name)
    if refused:
        talk.output.warning(refused)
    what = "from its text, which the next turn reads"
    if session.position:
        what = f"{session.position:,} tokens from its state"
    turns = f"{saved.n_turns} turn{'' if saved.n_turns == 1 else 's'}"
    talk.output.note(f"loaded {saved.name!r}: {turns}, {what}")


def show_end(talk: "Talk") -> None:
    """Show the last turn of a conversation."""
    if talk.output.verbosity < (0 if talk.output.on_terminal else 1):
        return
    messages = talk.conversation.messages
    question, answer = (message["content"].strip() for message in messages[-2:])
    if len(question) > _SHOWN_QUESTION:
        question = f"{question[:_SHOWN_QUESTION]} ..."
    if len(answer) > _SHOWN_ANSWER:
        answer = f"... {answer[-_SHOWN_ANSWER:]}"
    earlier = talk.conversation.n_turns - 1
    if earlier:
        talk.output.note(f"({earlier} earlier turn{'' if earlier == 1 else 's'})")
    talk.output.note(for_terminal(f"> {question}"))
    if answer:
        show_answer(talk.output, answer)
    if talk.conversation.unfinished is not None:
        talk.output.note("(this answer ended early; /more goes on)")
    talk.output.gap()
