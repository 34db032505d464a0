"""``localv4 chat``: a conversation in the terminal.

Each turn gives the engine all messages so far and the same session: what it has read already
costs nothing, unless the chat format changes earlier turns.
"""

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import typer

from localv4.cli import options
from localv4.cli.opening import open_engine, reading_words, refuse_base
from localv4.cli.output import Output
from localv4.cli.prompt import read_line
from localv4.cli.statistics import statistics_line
from localv4.cli.stopping import Stopped, stoppable
from localv4.cli.writers import Answer, TextWriter
from localv4.errors import ContextOverflow, InvalidInput, LocalV4Error
from localv4.settings import Settings

if TYPE_CHECKING:
    from localv4.engine import Engine

__all__ = ["chat"]

_HELP = """/new   start over
/help  this list
/quit  leave (so does Ctrl-D)
Ctrl-C stops an answer and keeps what there is of it, clears a line, and at an empty one leaves."""
_FULL = "/new starts over, or start again with a larger --context"


def chat(
    ctx: typer.Context,
    model: options.Model = None,
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
    """Talk to the model. /help lists what else can be typed."""
    flags: dict[str, object] = {"model": model, "memory": memory, "threads": threads}
    flags |= {"context": context, "numerics": numerics, "think": think, "profile": profile}
    settings, output = options.start(ctx, flags, quiet, verbose)
    with open_engine(settings, output) as engine:
        refuse_base(engine)
        _Conversation(engine, settings, output, system, max_tokens).loop()


class _Conversation:
    """Messages so far, and the loop that adds to them."""

    def __init__(
        self,
        engine: "Engine",
        settings: Settings,
        output: Output,
        system: str | None,
        max_tokens: int | None,
    ) -> None:
        self._engine = engine
        self._session = engine.session(context=settings.context)
        self._settings = settings
        self._output = output
        self._opening: list[dict[str, Any]] = []
        if system is not None:
            self._opening.append({"role": "system", "content": system})
        self._messages = list(self._opening)
        self._max_tokens = max_tokens

    def loop(self) -> None:
        """Read and answer until the user leaves."""
        interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None
        if interactive:
            # Line editing and history for input(), where this Python has it.
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401

            self._output.note("/help lists the commands")
        while True:
            try:
                line = self._read(interactive)
            except InvalidInput as error:
                self._output.failure(str(error))
                continue
            if line is None or line == "/quit":
                return
            if line == "/new":
                self._messages = list(self._opening)
            elif line == "/help":
                self._output.note(_HELP)
            elif line.startswith("/") and not line.startswith("//"):
                self._output.warning(f"there is no command {line}; /help lists them")
            elif line:
                self._turn(line.removeprefix("/") if line.startswith("//") else line)

    def _read(self, interactive: bool) -> str | None:
        """Return the next line, stripped; None to leave."""
        try:
            line = read_line("> " if interactive else None)
        except KeyboardInterrupt:
            if not interactive:
                raise
            self._output.line("")
            if not _half_a_line():
                raise
            return ""
        if line is None and interactive:
            self._output.line("")
        return None if line is None else line.strip()

    def _turn(self, text: str) -> None:
        """Answer one message; a failed turn is taken back, a stopped one is kept."""
        self._messages.append({"role": "user", "content": text})
        answer = Answer()
        try:
            self._stream(answer)
        except LocalV4Error as error:
            sentence = str(error)
            if isinstance(error, ContextOverflow):
                sentence = f"{sentence.partition(';')[0].rstrip('.')}; {_FULL}"
            self._output.failure(sentence)
            del self._messages[-1]
            return
        if answer.finish_reason == "interrupted":
            self._output.note("(stopped)")
        elif answer.finish_reason == "length" and not self._reached_max_tokens(answer):
            self._output.warning(f"the context is full; {_FULL}")
        if not answer.text and not answer.reasoning:
            del self._messages[-1]
            return
        turn = {"role": "assistant", "content": answer.text}
        if answer.reasoning:
            turn["reasoning_content"] = answer.reasoning
        self._messages.append(turn)

    def _reached_max_tokens(self, answer: Answer) -> bool:
        n_tokens = answer.usage.get("completion_tokens", 0)
        return self._max_tokens is not None and n_tokens >= self._max_tokens

    def _stream(self, answer: Answer) -> None:
        """Show one answer; Ctrl-C ends it after the current token, or at once while it waits."""
        writer = TextWriter(self._output)
        generation = self._engine.generate(
            self._messages,
            max_tokens=self._max_tokens,
            session=self._session,
            thinking=self._settings.think or self._engine.default_thinking,
        )
        self._output.progress(reading_words(generation))
        before = self._engine.stats
        asked = False

        def stop_softly() -> bool:
            nonlocal asked
            if asked or not answer.usage:  # not yet: the prompt is still being read
                return False
            generation.interrupt()
            asked = True
            return True

        try:
            with stoppable(stop_softly=stop_softly):
                for event in generation:
                    answer.take(event)
                    writer.event(event)
        except Stopped as error:
            if error.finish_reason != "interrupted":
                raise
            answer.finish_reason = error.finish_reason
            # Stopped inside a step: the session may hold half of it.
            self._session.reset()
        finally:
            writer.end(answer, {})
            said = statistics_line(self._engine.stats.since(before))
            self._output.note(said, level=0 if self._output.on_terminal else 1)


def _half_a_line() -> bool:
    """Return whether something was typed when Ctrl-C ended the reading of a line."""
    editor = sys.modules.get("readline")
    return editor is not None and bool(editor.get_line_buffer())
