"""What the commands of a chat do, and what may stand behind them."""

import contextlib
import os
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from localv4.cli.chat import answers, saving
from localv4.cli.chat.knobs import Knobs
from localv4.cli.chat.view import THOUGHTS
from localv4.cli.input_files import read_file
from localv4.cli.output import for_terminal, one_line
from localv4.cli.sessions import session_rows, session_store
from localv4.cli.statistics import statistics_line
from localv4.errors import InvalidInput, LocalV4Error
from localv4.sizes import format_bytes

if TYPE_CHECKING:
    from localv4.cli.chat.talk import Talk

__all__ = [
    "edit",
    "file_values",
    "knob_values",
    "leave",
    "load",
    "more",
    "new",
    "read",
    "retry",
    "save",
    "session_values",
    "sessions",
    "set_knob",
    "stats",
    "system",
    "think",
    "think_values",
    "thoughts",
    "thoughts_values",
    "undo",
]

Values = Sequence[tuple[str, str]]
_MOST_FILE_BYTES = 16 * 2**20  # of text: as much as a context takes


def new(talk: "Talk", _: str | None) -> None:
    """Start over."""
    talk.begin()
    talk.output.note("(a new conversation)")


def system(talk: "Talk", text: str | None) -> None:
    """Show or change the system message."""
    conversation = talk.conversation
    if text is None:
        shown = "none" if conversation.system is None else for_terminal(conversation.system)
        talk.output.tell(f"system message: {shown}")
        return
    talk.system = conversation.system = None if text == "none" else text
    conversation.unsaved = conversation.unsaved or bool(conversation.messages)
    again = "; the next message reads the conversation again" if conversation.messages else ""
    talk.output.note(f"(system message {'removed' if text == 'none' else 'set'}{again})")


def think(talk: "Talk", level: str | None) -> None:
    """Say or change how much the model thinks."""
    from localv4.encoding import thinking_levels

    levels = thinking_levels(talk.engine.profile)
    if level is None:
        talk.output.tell(f"thinking: {talk.think} ({', '.join(levels)})")
        return
    if level not in levels:
        raise InvalidInput(f"/think has no level {level!r} here; give {', '.join(levels)}")
    talk.level = talk.conversation.think = level
    talk.output.note(f"(thinking: {level})")
    talk.warn_of_context(talk.engine, talk.session)


def think_values(talk: "Talk", _typed: str) -> Values:
    """Return the levels."""
    from localv4.encoding import thinking_levels

    engine = talk.engine_if_open
    return [(level, "") for level in thinking_levels(engine.profile if engine else "official")]


def thoughts(talk: "Talk", how: str | None) -> None:
    """Say or change what becomes of the thinking."""
    if how is None:
        talk.output.tell(f"thoughts: {talk.thoughts} ({', '.join(THOUGHTS)})")
        return
    chosen = next((known for known in THOUGHTS if known == how), None)
    if chosen is None:
        raise InvalidInput(f"/thoughts cannot be {how!r}; give {', '.join(THOUGHTS)}")
    talk.thoughts = chosen
    talk.output.note(f"(thoughts: {how})")
    messages = talk.conversation.messages
    if how == "show" and messages and (text := messages[-1].get("reasoning_content")):
        talk.output.note(for_terminal(text.strip()))


def thoughts_values(talk: "Talk", _typed: str) -> Values:
    """Return what they can be."""
    about = {"show": "as they come", "fold": "to one line", "hide": "not at all"}
    return [(how, about[how]) for how in THOUGHTS]


def retry(talk: "Talk", _: str | None) -> None:
    """Ask the last question again."""
    answers.retry(talk)


def undo(talk: "Talk", count: str | None) -> None:
    """Take back turns."""
    there = talk.conversation.n_turns
    try:
        n_turns = 1 if count is None else int(count)
    except ValueError:
        raise InvalidInput(f"/undo takes a number of turns, not {count!r}; try /undo 2") from None
    if not 1 <= n_turns <= there:
        hint = f"give 1 to {there}" if there else "say something first"
        raise InvalidInput(
            f"/undo cannot take back {n_turns}: the conversation has {there}; {hint}"
        )
    talk.conversation.take_back(n_turns)
    turns = f"{n_turns} turn{'' if n_turns == 1 else 's'}"
    talk.output.note(f"(took back {turns}; {there - n_turns} left)")


def more(talk: "Talk", _: str | None) -> None:
    """Go on with an answer."""
    answers.more(talk)


def edit(talk: "Talk", text: str | None) -> None:
    """Change the last question."""
    messages = talk.conversation.messages
    if not messages:
        raise InvalidInput("nothing was asked that could be changed; say something first")
    before = messages[-2]["content"]
    text = text or talk.read_text(before)
    if text:
        answers.retry(talk, text)
    else:
        talk.output.note("(left as it was)")


def read(talk: "Talk", name: str | None) -> None:
    """Attach a file to the next message."""
    assert name is not None
    if name == "none":
        talk.attached.clear()
        talk.output.note("(no file goes with the next message)")
        return
    path = _file(name)
    text = read_file(path, "the name", _MOST_FILE_BYTES)
    if not text.strip():
        raise InvalidInput(f"{one_line(name)} is empty; name a file with text in it")
    talk.attached.append((path.name, text))
    tokenizer = talk.engine.tokenizer
    n_tokens = 0 if tokenizer is None else len(tokenizer.encode(text))
    count = f", {n_tokens:,} token{'' if n_tokens == 1 else 's'}" if tokenizer is not None else ""
    size = format_bytes(len(text.encode()))
    talk.output.note(f"({one_line(path.name)}: {size}{count}; goes with your next message)")


def file_values(_talk: "Talk", typed: str) -> Values:
    """Return the files and folders whose names go on as typed."""
    folder, _, begin = typed.rpartition("/")
    there = Path(_expanded(f"{folder}/" if "/" in typed else "."))
    try:
        entries = sorted(os.scandir(there), key=lambda entry: entry.name)
    except OSError:
        return []
    before = f"{folder}/" if "/" in typed else ""
    return [
        (f"{before}{entry.name}{'/' if entry.is_dir() else ''}", "")
        for entry in entries
        if entry.name.startswith(begin) and (begin or not entry.name.startswith("."))
    ]


def save(talk: "Talk", name: str | None) -> None:
    """Save the conversation."""
    saving.save(talk, name)


def load(talk: "Talk", name: str | None) -> None:
    """Go on with a saved conversation."""
    assert name is not None
    saving.load(talk, name)


def sessions(talk: "Talk", _: str | None) -> None:
    """List what is saved."""
    found = session_store(talk.settings).sessions()
    columns = talk.output.note_columns - 1
    rows = [_shortened(row, columns) for row in session_rows(found)] if found else []
    talk.output.tell("\n".join(rows) or "nothing is saved yet")


def session_values(talk: "Talk", _typed: str) -> Values:
    """Return the names of what is saved."""
    return [(row.name, row.title) for row in session_store(talk.settings).sessions()]


def set_knob(talk: "Talk", choice: str | None) -> None:
    """Show the knobs, or change one."""
    if choice is None:
        talk.output.tell("\n".join(talk.knobs.rows()))
        return
    name, *value = choice.replace("=", " ").split()
    if len(value) != 1:
        raise InvalidInput(f"/set takes a name and a value; try /set {name} {_example(name)}")
    talk.knobs = talk.knobs.changed(name, value[0])
    talk.output.note(f"({name}: {value[0]})")


def knob_values(_talk: "Talk", _typed: str) -> Values:
    """Return the names of the knobs."""
    return [(f"{field.name} ", "") for field in fields(Knobs)]


def stats(talk: "Talk", _: str | None) -> None:
    """Say what was done so far."""
    session, conversation = talk.session, talk.conversation
    turns = f"{conversation.n_turns} turn{'' if conversation.n_turns == 1 else 's'}"
    name = "not saved" if conversation.name is None else f"saved as {conversation.name!r}"
    held = f"{session.position:,} of {session.context:,} tokens"
    lines = [f"{turns}, {name}; context: {held}, {format_bytes(session.kv_bytes)}"]
    lines += textwrap.wrap(statistics_line(talk.engine.stats), talk.output.note_columns - 1)
    talk.output.tell("\n".join(lines))


def leave(talk: "Talk", _: str | None) -> None:
    """Leave; at a terminal, not before what is to be saved is."""
    if talk.interactive:
        try:
            saving.save_if_wanted(talk)
        except LocalV4Error as error:
            talk.output.failure(str(error))
            talk.output.note("Ctrl-D leaves all the same")
            return
    talk.leaving = True


def _file(name: str) -> Path:
    """Return the file of a name, which may be quoted as for a shell."""
    path = Path(_expanded(name))
    if not path.exists():
        with contextlib.suppress(ValueError):
            (name,) = shlex.split(name)
            path = Path(_expanded(name))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InvalidInput(f"{one_line(name)} is no file that ends; name one with text in it")
    return path


def _expanded(name: str) -> str:
    # Not Path.expanduser: of an unknown user it makes a RuntimeError.
    return os.path.expanduser(name)  # noqa: PTH111


def _shortened(row: str, columns: int) -> str:
    return row if len(row) <= columns else f"{row[: max(0, columns - 3)]}..."


def _example(name: str) -> str:
    return {"max_tokens": "500", "seed": "7", "top_k": "40"}.get(name, "0.7")
