"""``localv4 chat``: a conversation in the terminal.

Each turn gives the engine all messages so far and the same session: what it has read already
costs nothing, unless the chat format changes earlier turns.
"""

import contextlib
import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from localv4.cli import options
from localv4.cli.chat import conversations
from localv4.cli.chat.conversations import Conversation
from localv4.cli.names import complete_session
from localv4.cli.opening import open_engine, refuse_base, warn_of_short_context
from localv4.cli.output import Output, for_terminal, one_line
from localv4.cli.prompt import read_line
from localv4.cli.sessions import session_rows, session_store
from localv4.cli.chat.turns import Turn
from localv4.errors import ContextOverflow, InvalidInput, LocalV4Error
from localv4.settings import Settings

if TYPE_CHECKING:
    from localv4.engine import Engine

__all__ = ["chat"]

_KEYS = (
    "Ctrl-C stops an answer and keeps what there is of it, clears a line, and at an empty one "
    "leaves."
)
_SHOWN_QUESTION, _SHOWN_ANSWER = 300, 1500  # characters of the last turn of a loaded conversation


def chat(
    ctx: typer.Context,
    model: options.Model = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Go on with this session, or begin it; saved when the chat ends.",
            autocompletion=complete_session,
        ),
    ] = None,
    system: options.System = None,
    max_tokens: options.MaxTokens = None,
    think: options.ThinkFlag = None,
    profile: options.ProfileFlag = None,
    numerics: options.NumericsFlag = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    context: options.Context = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Talk to the model.

    /help lists what else can be typed. Ctrl-C stops an answer and keeps what there is of it.

    Examples
    --------
    localv4 chat
    localv4 chat -m flash --think high
    localv4 chat -m flash --session garden --memory 24GiB
    """
    flags: dict[str, object] = {"model": model, "memory": memory, "threads": threads}
    flags |= {"context": context, "numerics": numerics, "think": think, "profile": profile}
    settings, output = options.start(ctx, flags, quiet, verbose)
    saved = None
    if session is not None:
        # Before the model, which may take long to open.
        store = session_store(settings)
        saved = conversations.read(session, store) if store.has(session) else None
    with open_engine(settings, output) as engine:
        refuse_base(engine)
        _Chat(engine, settings, output, system, max_tokens, session).run(saved)


class _Chat:
    """The conversation that is open, and what can be done with it."""

    def __init__(
        self,
        engine: "Engine",
        settings: Settings,
        output: Output,
        system: str | None,
        max_tokens: int | None,
        name: str | None,
    ) -> None:
        self._engine = engine
        self._session = engine.session(context=settings.context)
        self._settings = settings
        self._output = output
        self._system = system
        self._max_tokens = max_tokens
        self._saves = name is not None
        self._conversation = self._begun()
        self._conversation.name = name
        self._leaving = False
        self._interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None

    def run(self, saved: Conversation | None) -> None:
        """Read and answer until the user leaves; begin with what was saved."""
        self._warn_of_context()
        if saved is not None:
            if self._system not in (None, saved.system):
                self._output.warning("--system is left out: the session has its own beginning")
            self._go_on_with(saved)
        try:
            self._loop()
        except KeyboardInterrupt:
            self._save_if_wanted()
            raise
        self._save_if_wanted()

    def _loop(self) -> None:
        if self._interactive:
            # Line editing and history for input(), where this Python has it.
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401

            self._output.note("/help lists the commands")
        while not self._leaving:
            try:
                line = self._read()
                if line is None:
                    return
                if line.startswith("/") and not line.startswith("//"):
                    self._command(line)
                elif line:
                    self._turn(line.removeprefix("/") if line.startswith("//") else line)
            except LocalV4Error as error:
                # What is wrong with a line that was typed may say how it began.
                self._output.failure(str(error), log=not isinstance(error, InvalidInput))

    def _read(self) -> str | None:
        """Return the next line, stripped; None to leave."""
        try:
            line = read_line("> " if self._interactive else None)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self._output.line("")
            if not _half_a_line():
                raise
            return ""
        if line is None and self._interactive:
            self._output.line("")
        return None if line is None else line.strip()

    def _command(self, line: str) -> None:
        """Do what a line that begins with / asks for."""
        name, *rest = line.split(maxsplit=1)
        command = _COMMANDS.get(name)
        if command is None:
            near = difflib.get_close_matches(name, _COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            raise InvalidInput(f"there is no command {name}; {hint} (// begins a text with a /)")
        if rest and not command.takes:
            raise InvalidInput(f"{name} takes nothing behind it; type {name} alone")
        if not rest and command.takes and not command.takes.startswith("["):
            raise InvalidInput(f"{name} needs a name; /sessions lists those there are")
        try:
            command.act(self, *rest)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self._output.note("(stopped)")

    def help(self) -> None:
        """Say what can be typed."""
        rows = [(f"{name} {row.takes}".rstrip(), row.help) for name, row in _COMMANDS.items()]
        width = max(len(usage) for usage, _ in rows)
        listed = "\n".join(f"{usage:<{width}}  {sentence}" for usage, sentence in rows)
        self._output.note(f"{listed}\n{_KEYS}")

    def quit(self) -> None:
        """Leave; at a terminal, not before what is to be saved is."""
        if self._interactive:
            try:
                self._save_if_wanted()
            except LocalV4Error as error:
                self._output.failure(str(error))
                self._output.note("Ctrl-D leaves all the same")
                return
        self._leaving = True

    def new(self) -> None:
        """Start over, without a name."""
        self._save_if_wanted()
        self._conversation = self._begun()

    def save(self, name: str | None = None) -> None:
        """Save the conversation, under a name of its own if none is given."""
        store = session_store(self._settings)
        name = name or self._conversation.name or conversations.new_name(self._conversation, store)
        model = conversations.model_name(self._settings.model)
        said = conversations.save(self._conversation, name, self._session, store, model)
        self._output.note(one_line(said))

    def load(self, name: str) -> None:
        """Go on with a saved conversation."""
        self._save_if_wanted()  # first: it may be the same one
        self._go_on_with(conversations.read(name, session_store(self._settings)))

    def sessions(self) -> None:
        """List the sessions on disk."""
        found = session_store(self._settings).sessions()
        self._output.note("\n".join(session_rows(found)) if found else "nothing is saved yet")

    def _begun(self) -> Conversation:
        think = self._settings.think or self._engine.default_thinking
        return Conversation(self._system, think=think)

    def _warn_of_context(self) -> None:
        level = self._conversation.think or ""
        warn_of_short_context(level, self._session, self._engine, self._output)

    def _save_if_wanted(self) -> None:
        """Save what was said to the session of --session, before it is left."""
        if self._saves and self._conversation.name is not None and self._conversation.unsaved:
            self.save()

    def _go_on_with(self, saved: Conversation) -> None:
        """Make a saved conversation the open one, with its state if that is of use."""
        assert saved.name is not None
        store = session_store(self._settings)
        refused = conversations.load_state(saved.name, self._session, store)
        with contextlib.suppress(LocalV4Error):  # the folder may be read-only
            store.touch(saved.name)
        before = self._conversation.think
        saved.think = self._settings.think or saved.think or self._engine.default_thinking
        self._conversation = saved
        if saved.think != before:
            self._warn_of_context()
        if refused:
            self._output.warning(refused)
        what = "from its text, which the next turn reads"
        if self._session.position:
            what = f"{self._session.position:,} tokens from its state"
        self._output.note(f"loaded {saved.name!r}: {len(saved.messages)} messages, {what}")
        question, answer = (message["content"].strip() for message in saved.messages[-2:])
        if len(question) > _SHOWN_QUESTION:
            question = f"{question[:_SHOWN_QUESTION]} ..."
        if len(answer) > _SHOWN_ANSWER:
            answer = f"... {answer[-_SHOWN_ANSWER:]}"
        level = 0 if self._output.on_terminal else 1
        self._output.note(for_terminal(f"> {question}\n{answer}"), level)

    def _turn(self, text: str) -> None:
        """Answer one message; a failed turn is taken back, a stopped one is kept."""
        conversation, said = self._conversation, {"role": "user", "content": text}
        turn = Turn(self._engine, self._session, self._output)
        try:
            turn.stream([*conversation.prompt, said], conversation.think, self._max_tokens)
        except ContextOverflow as error:
            if not conversation.messages:
                raise
            raise ContextOverflow(
                f"{str(error).partition(';')[0]}; {self._full_advice()}"
            ) from None
        answer = turn.answer
        if answer.finish_reason == "length" and not self._reached_max_tokens(turn):
            self._output.warning(f"the context is full; {self._full_advice()}")
        if not answer.text and not answer.reasoning:
            return
        reply = {"role": "assistant", "content": answer.text}
        if answer.reasoning:
            reply["reasoning_content"] = answer.reasoning
        conversation.add(said, reply)

    def _reached_max_tokens(self, turn: Turn) -> bool:
        n_tokens = turn.answer.usage.get("completion_tokens", 0)
        return self._max_tokens is not None and n_tokens >= self._max_tokens

    def _full_advice(self) -> str:
        most = self._engine.config.max_position_embeddings
        larger = ", or start again with a larger --context" if self._session.context < most else ""
        return f"/new starts over{larger}"


@dataclass(frozen=True)
class _Command:
    """What a line that begins with / can ask for.

    Attributes
    ----------
    act
        What it does.
    help
        What it does, for the user.
    takes
        What stands behind it: nothing, NAME, or [NAME] if it may be missing.
    """

    act: Callable[..., None]
    help: str
    takes: str = ""


_COMMANDS = {
    "/new": _Command(_Chat.new, "start over"),
    "/save": _Command(_Chat.save, "save the conversation, to go on with later", "[NAME]"),
    "/load": _Command(_Chat.load, "go on with a saved one", "NAME"),
    "/sessions": _Command(_Chat.sessions, "list the saved ones"),
    "/help": _Command(_Chat.help, "this list"),
    "/quit": _Command(_Chat.quit, "leave (so does Ctrl-D)"),
}


def _half_a_line() -> bool:
    """Return whether something was typed when Ctrl-C ended the reading of a line."""
    editor = sys.modules.get("readline")
    return editor is not None and bool(editor.get_line_buffer())
