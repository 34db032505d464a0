"""A conversation at work: lines are read and answered until the user leaves.

Each turn gives the engine all messages so far and the same session: what it has read already
costs nothing, unless the chat format changes earlier turns. What a line that begins with / does is
in commands.py.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from localv4.cli.chat import saving
from localv4.cli.chat.answers import ask
from localv4.cli.chat.background import Opening
from localv4.cli.chat.card import show_card
from localv4.cli.chat.conversations import Conversation
from localv4.cli.chat.knobs import Knobs
from localv4.cli.chat.lines import Lines
from localv4.cli.chat.meter import meter
from localv4.cli.chat.typed import unquoted
from localv4.cli.chat.view import Thoughts
from localv4.cli.opening import refuse_base, warn_of_short_context
from localv4.cli.output import Output
from localv4.cli.stopping import Stopped
from localv4.errors import InvalidInput, LocalV4Error
from localv4.settings import Settings

if TYPE_CHECKING:
    from localv4.cli.chat.editor import Suggestion
    from localv4.engine import Engine
    from localv4.session import Session

__all__ = ["Talk", "Wishes"]

_DOUBLE_S = 0.5  # a second Ctrl-C within this belongs to the first


@dataclass(frozen=True)
class Wishes:
    """What the flags of a chat ask for.

    Attributes
    ----------
    system
        System message of a new conversation.
    knobs, thoughts
        Of the answers.
    name
        Session to go on with and to save; None for none.
    """

    system: str | None
    knobs: Knobs
    thoughts: Thoughts
    name: str | None


class Talk:
    """The conversation that is open.

    Parameters
    ----------
    settings, output, wishes
        Of the command.
    folder
        The model's.
    interactive
        Whether somebody sits at a terminal.

    Attributes
    ----------
    conversation
        What was said.
    knobs, thoughts
        How the next answer is chosen and shown.
    system, level
        System message and thinking level of the conversations to come; None for none, and for
        the model's.
    attached
        Files that go with the next message: name and text.
    draft
        What the next line begins with: a question that failed.
    answered_with
        Knobs and thinking level of the last answer.
    is_warned
        Whether it was said that the context is nearly full.
    leaving
        Set to end the chat.
    """

    def __init__(
        self, settings: Settings, output: Output, wishes: Wishes, folder: Path, interactive: bool
    ) -> None:
        self.settings = settings
        self.output = output
        self.interactive = interactive
        self.knobs = wishes.knobs
        self.thoughts = wishes.thoughts
        self.system = wishes.system
        self.level: str | None = None
        self.attached: list[tuple[str, str]] = []
        self.leaving = False
        self.conversation = Conversation(wishes.system, name=wishes.name)
        self._wishes = wishes
        self._folder = folder
        self._opening: Opening | None = None
        self._session: Session | None = None
        self._lines: Lines | None = None
        self.draft = ""
        self.answered_with: tuple[Knobs, str] | None = None
        self._last_press_s = float("-inf")
        self._pressed = False
        self.is_warned = False
        self._waits = False  # for the engine

    def run(
        self, lines: Lines, opening: Opening, saved: Conversation | None, at_once: bool = False
    ) -> None:
        """Read and answer until the user leaves.

        Parameters
        ----------
        lines
            What is typed.
        opening
            The engine, which is opened while the first line is typed.
        saved
            What to begin with.
        at_once
            Open the engine before that.
        """
        self._lines, self._opening = lines, opening
        if saved is not None:
            if self._wishes.system not in (None, saved.system):
                self.output.warning("--system is left out: the session has its own beginning")
            saved.think = self.settings.think or saved.think
            self.conversation = saved
        try:
            with self._ended_by_signals():
                opening.start()
                if at_once:
                    opening.wait()
                while not self.leaving:
                    try:
                        self._take(self._read())
                    except LocalV4Error as error:
                        if opening.has_failed:
                            raise
                        # What is wrong with a line that was typed may say how it began.
                        self.output.failure(str(error), log=not isinstance(error, InvalidInput))
        finally:
            try:
                saving.save_at_the_end(self)
            finally:
                opening.close()

    def opened(self, engine: "Engine") -> None:
        """Take an engine that has just been opened, and say what it is; from its thread."""
        refuse_base(engine)
        session = engine.session(context=self.settings.context)
        if self.interactive:
            show_card(self.output, self.settings, self._folder, engine, session)
        if self.conversation.messages:
            saving.show_end(self)
            saving.load_state(self, self.conversation, session)
        self.warn_of_context(engine, session)
        self._session = session
        if self._lines is not None:
            self._lines.refresh()

    @property
    def engine(self) -> "Engine":
        """The engine; waits until it is open."""
        assert self._opening is not None
        if self._opening.engine is None:
            self.output.progress("opening the model ...")
            self._waits = True
            try:
                self._opening.wait()
            except KeyboardInterrupt:
                self.press()
                raise InvalidInput(
                    "the model is still being opened; what you typed stands in the line again"
                ) from None
            finally:
                self._waits = False
                self.output.clear_progress()
        return self._opening.wait()

    @property
    def session(self) -> "Session":
        """The session of all turns; waits until the engine is open."""
        assert self.engine is not None
        assert self._session is not None
        return self._session

    @property
    def engine_if_open(self) -> "Engine | None":
        """The engine, or None as long as it is not open."""
        return None if self._opening is None else self._opening.engine

    @property
    def think(self) -> str:
        """The thinking level in force."""
        level = self.conversation.think or self.settings.think
        return level or self.engine.default_thinking

    def warn_of_context(self, engine: "Engine", session: "Session") -> None:
        """Warn where the thinking level wants more context than there is."""
        level = self.conversation.think or self.settings.think or engine.default_thinking
        warn_of_short_context(level, session, engine, self.output)

    def begin(self) -> None:
        """Start over, without a name."""
        saving.save_if_wanted(self)
        self.conversation = Conversation(self.system, think=self.level)
        self.attached.clear()
        self.answered_with = None

    def read_text(self, default: str) -> str | None:
        """Return a text that is edited, without quotes around it; None if that is given up."""
        assert self._lines is not None
        try:
            text = self._lines.read(lambda: "edit", default)
        except KeyboardInterrupt:
            return None
        return None if text is None else unquoted(text)

    def press(self) -> None:
        """Take a Ctrl-C that has stopped an answer."""
        self._pressed, self._last_press_s = True, time.monotonic()

    def suggestions(self, typed: str) -> "Iterator[Suggestion]":
        """Return what may follow what was typed."""
        from localv4.cli.chat.commands import suggestions

        return suggestions(self, typed)

    def _read(self) -> str | None:
        """Return the next line, stripped; None to leave."""
        assert self._lines is not None
        draft, self.draft = self.draft, ""
        try:
            line = self._lines.read(self._meter, draft)
        except KeyboardInterrupt:
            self._leave_or_stay()
            return ""
        self._pressed = False
        return None if line is None else line.strip()

    def _meter(self) -> str:
        return meter(self._session, self.attached, bool(self.conversation.messages))

    def _take(self, line: str | None) -> None:
        """Do what a line asks for."""
        from localv4.cli.chat.commands import obey

        if line is None:
            self.leaving = True
        elif line.startswith("/") and not line.startswith("//"):
            obey(self, line)
        elif text := unquoted(line.removeprefix("/") if line.startswith("//") else line):
            ask(self, text)

    def _leave_or_stay(self) -> None:
        """Take a Ctrl-C while nothing runs: a second one leaves."""
        is_apart = time.monotonic() - self._last_press_s > _DOUBLE_S
        if not self.interactive or (self._pressed and is_apart):
            raise KeyboardInterrupt
        if not self._pressed:
            self.output.note("(Ctrl-C once more leaves, and so does Ctrl-D)")
            self._pressed = True

    @contextlib.contextmanager
    def _ended_by_signals(self) -> Iterator[None]:
        """Have SIGTERM, and the end of the terminal, end the chat as its user would."""

        def end(_number: int, _frame: FrameType | None) -> None:
            assert self._lines is not None
            error = Stopped(143, "terminated")
            if self._waits:
                raise error
            self._lines.stop(error)

        def pass_on(_number: int, _frame: FrameType | None) -> None:
            signal.raise_signal(signal.SIGTERM)  # for whoever handles that now

        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, pass_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
