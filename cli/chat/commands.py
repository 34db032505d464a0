"""The table of what a line that begins with / can ask for.

It makes the help, completes what is typed and finds what a line means.
"""

import difflib
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localv4.cli.chat import acts
from localv4.cli.chat.editor import Suggestion
from localv4.errors import InvalidInput

if TYPE_CHECKING:
    from localv4.cli.chat.talk import Talk

__all__ = ["COMMANDS", "Command", "obey", "suggestions"]

_LEAST_TEXT = 30  # columns beside the names; below that it goes under them
_KEYS = (
    ("Alt-Enter", 'a new line; between """ and """ Enter is one, too'),
    ("Ctrl-C", "stops an answer and keeps it; clears the line; twice: leaves"),
    ("Ctrl-X Ctrl-E", "opens your editor"),
    ("Tab, Ctrl-R", "complete; search what was typed before"),
    ("//", "begins a message with a slash"),
)


@dataclass(frozen=True)
class Command:
    """What a line that begins with / can ask for.

    Attributes
    ----------
    names
        What it is called: the usual name first.
    takes
        What stands behind it: nothing, NAME, or [NAME] if it may be missing.
    help
        What it does, in a few words.
    more
        The rest of what there is to know.
    act
        Does it; given what stands behind the name, or None.
    values
        Returns what may stand there, for what is typed of it.
    """

    names: tuple[str, ...]
    takes: str
    help: str
    more: str
    act: Callable[["Talk", str | None], None]
    values: Callable[["Talk", str], Sequence[tuple[str, str]]] = lambda talk, typed: ()

    @property
    def usage(self) -> str:
        """How it is typed."""
        return f"{self.names[0]} {self.takes}".rstrip()


def _help(talk: "Talk", name: str | None) -> None:
    columns = talk.output.note_columns - 1
    if name is None:
        rows = [(command.usage, command.help) for command in COMMANDS]
        rows += [("", ""), *_KEYS, ("", ""), ("/help COMMAND", "says more about one")]
        talk.output.tell("\n".join(_listed(rows, columns)))
        return
    command = _found(name if name.startswith("/") else f"/{name}")
    also = f" Also {', '.join(command.names[1:])}." if command.names[1:] else ""
    text = f"{command.help[:1].upper()}{command.help[1:]}. {command.more}".rstrip() + also
    talk.output.tell("\n".join([command.usage, *textwrap.wrap(text, columns)]))


def _listed(rows: Sequence[tuple[str, str]], columns: int) -> list[str]:
    width = max(len(usage) for usage, _ in rows)
    between = "  " if columns - width > _LEAST_TEXT else "\n    "
    return [f"{usage:<{width}}{between}{about}".rstrip() for usage, about in rows]


def _names(talk: "Talk", typed: str) -> list[tuple[str, str]]:
    return [(command.names[0], command.help) for command in COMMANDS]


COMMANDS = (
    Command(
        ("/help", "/?"),
        "[COMMAND]",
        "this list, or more about a command",
        "",
        _help,
        _names,
    ),
    Command(
        ("/new", "/clear"),
        "",
        "start over",
        "The system message and the thinking level stay; a conversation with a name is saved.",
        acts.new,
    ),
    Command(
        ("/system",),
        "[TEXT]",
        "show or change the system message",
        "It stands before the conversation, so all of that is read again at the next message. "
        "/system none removes it.",
        acts.system,
    ),
    Command(
        ("/think",),
        "[LEVEL]",
        "how much the model thinks: off, high, max",
        "Some checkpoints also have low. Without a level it says which one is in force.",
        acts.think,
        acts.think_values,
    ),
    Command(
        ("/thoughts",),
        "[HOW]",
        "show, fold or hide the thinking",
        "fold keeps it to one line. show also shows the thinking of the last answer.",
        acts.thoughts,
        acts.thoughts_values,
    ),
    Command(
        ("/retry",),
        "",
        "ask the last question again",
        "The new answer takes the old one's place; if none comes, the old one stays.",
        acts.retry,
    ),
    Command(
        ("/undo",),
        "[N]",
        "take back the last N turns, else one",
        "A turn is a question and its answer.",
        acts.undo,
    ),
    Command(
        ("/more",),
        "",
        "go on with an answer that ended early",
        "It goes on as if it had never been stopped or cut.",
        acts.more,
    ),
    Command(
        ("/edit",),
        "[TEXT]",
        "change the last question and ask it again",
        "The question stands in the line, to be changed there; Ctrl-C leaves everything as it was. "
        "With a text, that is asked in its place.",
        acts.edit,
    ),
    Command(
        ("/read",),
        "FILE",
        "send a file's text with the next message",
        "Any number of files. /read none forgets them.",
        acts.read,
        acts.file_values,
    ),
    Command(
        ("/save",),
        "[NAME]",
        "save the conversation, to go on with later",
        "With its state: going on costs a read, not the time that reading its text takes.",
        acts.save,
        acts.session_values,
    ),
    Command(
        ("/load",),
        "NAME",
        "go on with a saved conversation",
        "/sessions lists them.",
        acts.load,
        acts.session_values,
    ),
    Command(
        ("/sessions",),
        "",
        "list the saved conversations",
        "localv4 sessions rm NAME removes one.",
        acts.sessions,
    ),
    Command(
        ("/set",),
        "[NAME VALUE]",
        "temperature, top_p, top_k, min_p, seed, max_tokens",
        "Without a name it shows them; the value none sets the usual one.",
        acts.set_knob,
        acts.knob_values,
    ),
    Command(
        ("/stats",),
        "",
        "speed, memory and context so far",
        "",
        acts.stats,
    ),
    Command(
        ("/quit", "/exit", "/bye"),
        "",
        "leave (so does Ctrl-D)",
        "A conversation with a name is saved first.",
        acts.leave,
    ),
)
_BY_NAME = {name: command for command in COMMANDS for name in command.names}


def obey(talk: "Talk", line: str) -> None:
    """Do what a line asks for.

    Raises
    ------
    InvalidInput
        There is no such command, or it takes something else.
    LocalV4Error
        It failed.
    """
    name, *rest = line.split(maxsplit=1)
    command = _found(name)
    if rest and not command.takes:
        raise InvalidInput(f"{name} takes nothing behind it; type {name} alone")
    if not rest and command.takes and not command.takes.startswith("["):
        raise InvalidInput(f"{name} needs {_with_article(command)}; type {command.usage}")
    try:
        command.act(talk, rest[0] if rest else None)
    except KeyboardInterrupt:
        if not talk.interactive:
            raise
        talk.output.note("(stopped)")


def suggestions(talk: "Talk", typed: str) -> Iterator[Suggestion]:
    """Return what may follow what was typed: commands, and what stands behind them."""
    if not typed.startswith("/") or typed.startswith("//") or "\n" in typed:
        return
    name, blank, rest = typed.partition(" ")
    if not blank:
        for command in COMMANDS:
            for known in command.names:
                if known.startswith(name):
                    end = " " if command.takes else ""
                    yield Suggestion(known + end, len(name), command.help)
        return
    if name in _BY_NAME:
        for value, about in _BY_NAME[name].values(talk, rest):
            if value.lower().startswith(rest.lower()):
                yield Suggestion(value, len(rest), about)


def _found(name: str) -> Command:
    command = _BY_NAME.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), _BY_NAME, 1)
        hint = f"did you mean {near[0]}?" if near else "/help lists them"
        raise InvalidInput(f"there is no command {name}; {hint} (// begins a text with a /)")
    return command


def _with_article(command: Command) -> str:
    word = re.sub(r"\W", "", command.takes).lower()
    return f"a {word}"
