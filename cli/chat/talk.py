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
from localv4.cli.chat.background import Opening
from localv4.cli.chat.card import show_card
from localv4.cli.chat.conversations import Conversation, Unfinished
from localv4.cli.chat.knobs import Knobs
from localv4.cli.chat.lines import Lines
from localv4.cli.chat.meter import meter
from localv4.cli.chat.turns import Request, Turn
from localv4.cli.chat.typed import unquoted
from localv4.cli.chat.view import Thoughts
from localv4.cli.opening import refuse_base, warn_of_short_context
from localv4.cli.output import Output
from localv4.cli.stopping import Stopped
from localv4.cli.writers import Answer
from localv4.errors import ContextOverflow, InvalidInput, LocalV4Error
from localv4.settings import Settings

if TYPE_CHECKING:
    from localv4.cli.chat.editor import Suggestion
    from localv4.engine import Engine
    from localv4.session import Session

__all__ = ["Talk", "Wishes"]

_DOUBLE_S = 0.5  # a second Ctrl-C within this belongs to the first
_FULL = 0.9  # of the context, from which on it is said


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
        self._draft = ""  # of the next message
        self._answered_with: tuple[Knobs, str] | None = None
        self._last_press_s = float("-inf")
        self._pressed = False
        self._is_warned = False
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
            saving.show_end(self)
        try:
            with self._ended_by_signals():
                opening.start()
                if at_once:
                    self.session  # noqa: B018 (waits)
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
        self._session = engine.session(context=self.settings.context)
        if self.interactive:
            show_card(self.output, self.settings, self._folder, engine, self._session)
        if self.conversation.messages:
            saving.load_state(self, self.conversation, self._session)
        self.warn_of_context(engine, self._session)

    @property
    def engine(self) -> "Engine":
        """The engine; waits until it is open."""
        assert self._opening is not None
        if self._opening.engine is None:
            self.output.progress("opening the model ...")
            self._waits = True
            try:
                self._opening.wait()
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
        self._answered_with = None

    def read_text(self, default: str) -> str | None:
        """Return a text that is edited, without quotes around it; None if that is given up."""
        assert self._lines is not None
        try:
            text = self._lines.read(lambda: "edit", default)
        except KeyboardInterrupt:
            return None
        return None if text is None else unquoted(text)

    def ask(self, text: str) -> bool:
        """Answer one message; return whether there is an answer now.

        A failed turn is taken back, a stopped one is kept.
        """
        files = [f"{name}:\n\n{content}" for name, content in self.attached]
        said = {"role": "user", "content": "\n\n".join([*files, text])}
        self._draft = text
        engine, session, think = self.engine, self.session, self.think
        self.conversation.think = think
        seed = self._seed()
        messages = [*self.conversation.prompt, said]
        request = Request(messages, think, self.knobs.sampling(seed), self.knobs.max_tokens)
        turn = Turn(engine, session, self.output, self.thoughts, Answer())
        is_answered = False
        try:
            self._stream(turn, request)
        finally:
            answer = turn.answer
            if answer.text or answer.reasoning or answer.finish_reason == "stop":
                is_answered = True
                unfinished = self._unfinished(turn, seed, think)
                self.conversation.add(said, _reply(answer), unfinished=unfinished)
                self.attached.clear()
                self._draft = ""
                self._answered_with = self.knobs, think
        if is_answered:
            self._say_how_it_ended(turn)
        return is_answered

    def more(self) -> None:
        """Go on with an answer that ended early."""
        before = self.conversation.unfinished
        if before is None:
            raise InvalidInput("there is no answer that ended early; /retry asks again")
        messages = self.conversation.messages
        text, reasoning = messages[-1]["content"], messages[-1].get("reasoning_content", "")
        # A character that was cut in two comes whole now.
        answer = Answer(text.removesuffix("\ufffd"), reasoning.removesuffix("\ufffd"))
        sampling = self.knobs.sampling(before.seed)
        prompt = self.conversation.prompt[:-1]
        request = Request(prompt, before.think, sampling, self.knobs.max_tokens, before.ids)
        turn = Turn(self.engine, self.session, self.output, self.thoughts, answer)
        try:
            self._stream(turn, request)
        finally:
            if turn.n_new:
                messages[-1] = _reply(answer)
                unfinished = self._unfinished(turn, before.seed, before.think)
                self.conversation.unfinished = unfinished
                self.conversation.unsaved = True
        self._say_how_it_ended(turn)

    def retry(self, text: str | None = None) -> None:
        """Ask the last question again, or another one in its place; keep what can't be bettered."""
        conversation = self.conversation
        if not conversation.messages:
            raise InvalidInput("nothing was asked that could be asked again")
        if text is None and self.knobs.is_fixed and self._answered_with == (self.knobs, self.think):
            raise InvalidInput(
                "the same answer would come again; /set seed none, or /set temperature 1"
            )
        before = [*conversation.messages], conversation.unfinished, conversation.unsaved
        question = conversation.messages[-2]["content"]
        conversation.take_back(1)
        is_answered = False
        try:
            is_answered = self.ask(question if text is None else text)
        finally:
            if not is_answered and len(conversation.messages) < len(before[0]):
                conversation.messages, conversation.unfinished, conversation.unsaved = before
                self._draft = "" if text is None else text

    def suggestions(self, typed: str) -> "Iterator[Suggestion]":
        """Return what may follow what was typed."""
        from localv4.cli.chat.commands import suggestions

        return suggestions(self, typed)

    def _read(self) -> str | None:
        """Return the next line, stripped; None to leave."""
        assert self._lines is not None
        draft, self._draft = self._draft, ""
        try:
            line = self._lines.read(lambda: meter(self._session, self.attached), draft)
        except KeyboardInterrupt:
            self._press()
            return ""
        self._pressed = False
        return None if line is None else line.strip()

    def _take(self, line: str | None) -> None:
        """Do what a line asks for."""
        from localv4.cli.chat.commands import obey

        if line is None:
            self.leaving = True
        elif line.startswith("/") and not line.startswith("//"):
            obey(self, line)
        elif text := unquoted(line.removeprefix("/") if line.startswith("//") else line):
            self.ask(text)

    def _press(self) -> None:
        """Take a Ctrl-C while nothing runs: a second one leaves."""
        since_s = time.monotonic() - self._last_press_s
        if not self.interactive or (self._pressed and since_s > _DOUBLE_S):
            raise KeyboardInterrupt
        if not self._pressed:
            self.output.note("(Ctrl-C once more leaves, and so does Ctrl-D)")
        self._pressed = True

    def _stream(self, turn: Turn, request: Request) -> None:
        try:
            turn.stream(request)
        except ContextOverflow as error:
            if not self.conversation.messages:
                raise
            words = str(error).partition(";")[0]
            raise ContextOverflow(f"{words}; {self._full_advice()}") from None
        finally:
            if turn.answer.finish_reason == "interrupted":
                self._pressed, self._last_press_s = True, time.monotonic()

    def _seed(self) -> int:
        import secrets

        return secrets.randbits(53) if self.knobs.seed is None else self.knobs.seed

    def _unfinished(self, turn: Turn, seed: int, think: str) -> Unfinished | None:
        if turn.answer.finish_reason == "stop" or not turn.ids:
            return None
        return Unfinished(turn.ids, seed, think)

    def _say_how_it_ended(self, turn: Turn) -> None:
        """Say why there is no more of an answer, if the model did not end it."""
        answer, say = turn.answer, self.output.note
        session = self.session
        if answer.finish_reason == "stop" and not answer.text:
            say("(the answer is empty; /retry asks again)")
        if answer.finish_reason == "length":
            limit, n_new = self.knobs.max_tokens, answer.usage["completion_tokens"]
            if limit is None or n_new < limit:
                self.output.warning(f"the context is full; {self._full_advice()}")
            elif answer.text:
                say(f"(cut after {n_new:,} tokens, as max_tokens says; /more goes on)")
            else:
                n_tokens = f"all {len(turn.ids):,} tokens went into thinking"
                say(f"no answer yet: {n_tokens}; /more continues")
        share = session.position / session.context
        if share >= _FULL and not self._is_warned and answer.finish_reason != "length":
            self._is_warned = True
            self.output.warning(f"{share:.0%} of the context is in use; {self._full_advice()}")
        self.output.gap()

    def _full_advice(self) -> str:
        most = self.engine.config.max_position_embeddings
        larger = ", or start again with a larger --context" if self.session.context < most else ""
        return f"/new starts over{larger}"

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


def _reply(answer: Answer) -> dict[str, str]:
    reply = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        reply["reasoning_content"] = answer.reasoning
    return reply
