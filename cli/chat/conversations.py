"""A conversation, and what is saved of it: its words in the head of a session's file.

Behind the head is the engine's state, which saves reading the words again and may be lost. What
comes out of a file is checked as what it is: a text that anybody may have written. Knows nothing of
terminals.
"""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import localv4
from localv4.errors import DamagedSession, InvalidInput, LocalV4Error, OutOfBudget
from localv4.session_store import SessionStore
from localv4.settings import Think
from localv4.sizes import format_bytes
from localv4.state_reading import read_head

if TYPE_CHECKING:
    from localv4.session import Session

__all__ = [
    "ChangedMeanwhile",
    "Conversation",
    "Unfinished",
    "load_state",
    "model_name",
    "new_name",
    "read",
    "save",
]

_LONGEST_TITLE = 60
_WORDS_OF_A_NAME, _LONGEST_NAME = 6, 40


class ChangedMeanwhile(InvalidInput):
    """Another chat has saved the same conversation."""


@dataclass(frozen=True)
class Unfinished:
    """A last answer that ended early, as it was sampled.

    Attributes
    ----------
    ids
        All its tokens.
    seed
        Of the random sequence that chose them.
    think
        Thinking level that it was asked with.
    """

    ids: tuple[int, ...]
    seed: int
    think: str


@dataclass
class Conversation:
    """What was said so far.

    Attributes
    ----------
    system
        System message; None for none.
    messages
        What the user and the assistant said, in turns: role, content, reasoning_content.
    think
        Thinking level; None for the checkpoint's.
    name
        What it is saved as; None if it is not.
    unsaved
        Whether anything was said since it was saved or read.
    unfinished
        What the last answer can go on behind; None if it is complete.
    version
        What the file was called by whoever wrote it last, as far as is known here.
    """

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    think: str | None = None
    name: str | None = None
    unsaved: bool = False
    unfinished: Unfinished | None = None
    version: str = ""

    @property
    def prompt(self) -> list[dict[str, str]]:
        """All messages for the engine."""
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*opening, *self.messages]

    @property
    def n_turns(self) -> int:
        """Questions that were answered."""
        return len(self.messages) // 2

    def add(self, *messages: dict[str, str], unfinished: Unfinished | None = None) -> None:
        """Add what was said."""
        self.messages.extend(messages)
        self.unfinished = unfinished
        self.unsaved = True

    def take_back(self, n_turns: int) -> None:
        """Forget the last turns."""
        if n_turns:
            del self.messages[-2 * n_turns :]
            self.unfinished = None
            self.unsaved = True


def save(
    conversation: Conversation, name: str, session: "Session", store: SessionStore, model: str
) -> str:
    """Save a conversation under a name, which it then has; return what to say of it.

    Raises
    ------
    InvalidInput
        Nothing was said yet, the name is impossible, or it is another conversation's.
    OutOfBudget
        The limit on sessions, or the disk, is too small; what was there is untouched.
    LocalV4Error
        It cannot be written.
    """
    path = store.path(name)
    if not conversation.messages:
        raise InvalidInput("nothing was said that could be saved; say something first")
    is_its_own = conversation.name is not None and store.path(conversation.name) == path
    if store.has(name) and not is_its_own:
        raise InvalidInput(
            f"another conversation is saved as {name!r}; give another name, or remove that one "
            "first (localv4 sessions rm)"
        )
    if is_its_own and _has_changed(conversation, path):
        raise ChangedMeanwhile(
            f"another chat has saved {name!r} meanwhile; /save NAME gives this one another name"
        )
    session.mend()
    version = secrets.token_hex(8)
    facts = _facts(conversation, model, version)
    store.prepare(name, session.saved_bytes(facts))
    said = f"saved as {name!r}, {format_bytes(session.save(path, facts))}"
    conversation.name, conversation.unsaved, conversation.version = name, False, version
    try:
        removed = store.trim({name})
    except LocalV4Error as error:
        return f"{said}; older ones should make room, but {error}"
    if removed:
        limit = format_bytes(store.limit_bytes)
        said += f"; removed {', '.join(map(repr, removed))} to stay within {limit}"
    return said


def read(name: str, store: SessionStore) -> Conversation:
    """Return a saved conversation; of the file, only its head is looked at.

    Raises
    ------
    InvalidInput
        There is no such session.
    DamagedSession
        Its head is damaged or holds no conversation.
    """
    store.n_bytes(name)  # says which name is like it, where there is none
    path = store.path(name)
    head = read_head(path)
    saved = head.get("conversation")
    if not isinstance(saved, dict):
        raise _refusal(path, "no conversation")
    system, think = saved.get("system"), saved.get("think")
    if think not in (None, *get_args(Think)):
        raise _refusal(path, "an unknown thinking level")
    if system is not None and not _is_text(system):
        raise _refusal(path, "a system message that is no text")
    messages = saved.get("messages")
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise _refusal(path, "no whole turns")
    for number, message in enumerate(messages):
        if not _is_message(message, "user" if number % 2 == 0 else "assistant"):
            raise _refusal(path, f"a message that is not understood (number {number + 1})")
    version = head.get("conversation_version")
    return Conversation(
        system,
        messages,
        think,
        name,
        unfinished=_unfinished(saved.get("unfinished"), path),
        version=version if isinstance(version, str) else "",
    )


def load_state(name: str, session: "Session", store: SessionStore) -> str:
    """Read a conversation's state into a session; return why that is not possible, if so.

    The session is empty then.
    """
    try:
        session.load(store.path(name))
    except (DamagedSession, InvalidInput, OutOfBudget) as error:
        session.reset()
        return str(error)
    return ""


def new_name(conversation: Conversation, store: SessionStore) -> str:
    """Return a name that no session has, made of a conversation's first words."""
    first = conversation.messages[0]["content"] if conversation.messages else ""
    words = re.findall(r"\w+", first.lower())[:_WORDS_OF_A_NAME]
    base = "-".join(words)[:_LONGEST_NAME].strip("-")
    try:
        taken = store.has(base)
    except InvalidInput:  # no words, or a device's name
        base = f"session-{base}".strip("-")
        taken = store.has(base)
    name, number = base, 1
    while taken:
        number += 1
        name = f"{base}-{number}"
        taken = store.has(name)
    return name


def model_name(model: str | None) -> str:
    """Return what lists call a model."""
    # Not Path.expanduser: of an unknown user it makes a RuntimeError.
    return "built-in" if model is None else Path(os.path.expanduser(model)).absolute().name  # noqa: PTH111


def _has_changed(conversation: Conversation, path: Path) -> bool:
    """Return whether somebody else has saved a conversation since it was read or saved."""
    try:
        return bool(read_head(path).get("conversation_version", "") != conversation.version)
    except LocalV4Error:  # gone, or damaged: nothing that could be lost
        return False


def _unfinished(saved: object, path: Path) -> Unfinished | None:
    match saved:
        case None:
            return None
        case {"ids": [*ids], "seed": int(seed), "think": str(think)} if (
            ids and all(isinstance(token, int) and token >= 0 for token in ids) and seed >= 0
        ):
            return Unfinished(tuple(ids), seed, think)
    raise _refusal(path, "an unfinished answer that is not understood")


def _facts(conversation: Conversation, model: str, version: str) -> Mapping[str, Any]:
    unfinished = conversation.unfinished
    title = " ".join(conversation.messages[0]["content"].split())[:_LONGEST_TITLE]
    return {
        "title": title,
        "model": model,
        "version": localv4.__version__,
        "conversation_version": version,
        "conversation": {
            "system": conversation.system,
            "think": conversation.think,
            "messages": conversation.messages,
            **({"unfinished": asdict(unfinished)} if unfinished is not None else {}),
        },
    }


def _refusal(path: Path, what: str) -> DamagedSession:
    return DamagedSession(
        f"{path} holds {what}, so a chat cannot go on with it; remove it, or give another name"
    )


def _is_message(message: object, role: str) -> bool:
    if not isinstance(message, dict) or message.get("role") != role or "content" not in message:
        return False
    known = {"role", "content"} | ({"reasoning_content"} if role == "assistant" else set())
    return message.keys() <= known and all(map(_is_text, message.values()))


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may hold halves of characters
        return False
    return True
