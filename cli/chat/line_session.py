"""One line being edited: its keys, its completion, its looks, as prompt_toolkit wants them told.

Costs a tenth of a second to import. Knows nothing of what lines are for.
"""

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_completions, has_focus
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import DEFAULT_ATTRS, Attrs, Style, StyleTransformation

from localv4.cli.chat.text_editor import edited
from localv4.cli.chat.typed import cleaned, is_open
from localv4.errors import InvalidInput

if TYPE_CHECKING:
    from localv4.cli.chat.editor import Suggestion

__all__ = ["CONTINUED", "LineSession", "open_terminal", "take_typed_ahead"]

CONTINUED = "  "  # before the second line of a message, and the next ones
_MENU_ROWS = 8
_MOST_PASTED = 2**18  # characters: all are drawn anew at each key
_AS_RAW = bytes.maketrans(b"\n\0", b"\r\x04")
# No colours: there are light terminals and dark ones.
_STYLE = Style.from_dict(
    {
        "meter": "dim",
        "completion-menu": "fg:default bg:default dim",
        "completion-menu.completion.current": "fg:default bg:default nodim reverse",
        "completion-menu.meta.completion": "fg:default bg:default dim",
        "completion-menu.meta.completion.current": "fg:default bg:default nodim",
        "scrollbar.background": "bg:default",
        "scrollbar.button": "bg:default",
        "control-character": "reverse",
        "nbsp": "fg:default nounderline",
    }
)


@dataclass
class LineSession:
    """Makes lines to be edited, one after the other.

    Attributes
    ----------
    prompt
        What stands before the line.
    suggest
        What may stand at the cursor, for the text before it.
    cleared
        Told of a text that Ctrl-C took away.
    say
        Writes above the line.
    color
        Whether there may be more than plain text.
    input, output
        The terminal.
    is_away
        Whether another program has the terminal now.
    """

    prompt: Callable[[], StyleAndTextTuples]
    suggest: "Callable[[str], Iterable[Suggestion]]"
    cleared: Callable[[str], None]
    say: Callable[[str], None]
    color: bool
    input: Input
    output: Output
    is_away: bool = field(default=False, init=False)

    def begin(self, entries: list[str]) -> PromptSession[str]:
        """Return a line to be edited, with the history that it has, oldest first."""
        session: PromptSession[str] = PromptSession(
            self.prompt,
            completer=_Completer(self.suggest),
            complete_while_typing=False,
            reserve_space_for_menu=max(0, min(_MENU_ROWS, self.output.get_size().rows - 1)),
            prompt_continuation=lambda _width, _line, n_wraps: "" if n_wraps else CONTINUED,
            input_processors=[TabsProcessor(char1=" ", char2=" ")],
            history=InMemoryHistory(entries),
            key_bindings=self._keys(),
            enable_suspend=True,
            erase_when_done=True,
            style=_STYLE,
            style_transformation=None if self.color else _Plain(),
            include_default_pygments_style=False,
            color_depth=None if self.color else ColorDepth.DEPTH_1_BIT,
            input=self.input,
            output=self.output,
        )
        session.app.terminal_size_polling_interval = None  # the signal of a new size is enough
        return session

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        on_line = has_focus(DEFAULT_BUFFER)
        for sequence, act in (
            (["enter"], _enter),
            (["escape", "enter"], _line_end),
            (["c-j"], _enter),  # programs that type send it for Enter
            (["tab"], _complete),
            ([Keys.BracketedPaste], self._paste),
            (["c-c"], self._clear),
            (["c-x", "c-e"], self._open_editor),
        ):
            keys.add(*sequence, filter=on_line)(act)
        keys.add("<sigint>")(self._clear)
        keys.add(Keys.Vt100MouseEvent)(_drop)
        keys.add("escape", filter=on_line & has_completions)(_close_menu)
        return keys

    def _clear(self, event: KeyPressEvent) -> None:
        if self.is_away:  # the Ctrl-C was the editor's
            return
        buffer = event.app.layout.get_buffer_by_name(DEFAULT_BUFFER)
        assert buffer is not None
        if not buffer.text:
            event.app.exit(exception=KeyboardInterrupt())
            return
        event.app.layout.focus(DEFAULT_BUFFER)
        self.cleared(buffer.text)
        buffer.append_to_history()
        buffer.reset()

    def _paste(self, event: KeyPressEvent) -> None:
        text = cleaned(event.data)
        if len(text) > _MOST_PASTED:
            self.say(
                f"localv4: {len(text):,} characters are too many to paste; put them into a file "
                "and /read that\n"
            )
            return
        event.current_buffer.insert_text(text)

    def _open_editor(self, event: KeyPressEvent) -> None:
        event.app.create_background_task(self._edit(event))

    async def _edit(self, event: KeyPressEvent) -> None:
        """Let another program edit the text, which has the terminal for that time."""
        before = event.current_buffer.text
        self.is_away = True
        failure = ""
        try:
            text = await run_in_terminal(
                lambda: edited(before, self.input.fileno(), self.output.fileno()), in_executor=True
            )
            event.current_buffer.document = Document(cleaned(text))
        except InvalidInput as error:
            failure = f"localv4: {error}\n"
        finally:
            self.is_away = False
        self.say(failure)  # and what was said meanwhile


def _enter(event: KeyPressEvent) -> None:
    buffer = event.current_buffer
    menu = buffer.complete_state
    if menu is not None and menu.current_completion is not None:
        buffer.complete_state = None  # what is chosen there stands in the line already
    elif is_open(buffer.text):
        buffer.insert_text("\n")
    else:
        event.app.exit(result=buffer.text)


def _line_end(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


def _drop(event: KeyPressEvent) -> None:
    """Take no notice: nobody asked for a mouse, and what looks like one may be a pasted colour."""


def _complete(event: KeyPressEvent) -> None:
    buffer = event.current_buffer
    if buffer.complete_state is not None:
        buffer.complete_next()
        return
    found = [*buffer.completer.get_completions(buffer.document, CompleteEvent())]
    if len(found) == 1:
        buffer.apply_completion(found[0])
    else:
        buffer.start_completion(insert_common_part=True)


def _close_menu(event: KeyPressEvent) -> None:
    event.current_buffer.cancel_completion()


class _Completer(Completer):
    """Makes completions of suggestions; a failure makes none."""

    def __init__(self, suggest: "Callable[[str], Iterable[Suggestion]]") -> None:
        self._suggest = suggest

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        with contextlib.suppress(Exception):
            for found in self._suggest(document.text_before_cursor):
                yield Completion(
                    found.text, -found.behind, display=found.text.strip(), display_meta=found.about
                )


class _Plain(StyleTransformation):
    """Takes away all looks."""

    def transform_attrs(self, attrs: Attrs) -> Attrs:
        return DEFAULT_ATTRS


def open_terminal() -> tuple[Input, Output]:
    """Return the terminal to edit lines in.

    It is standard error's: standard output, which has the answers, may be a file.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    output = create_output(sys.stderr if is_terminal else sys.stdout)
    if isinstance(output, Vt100_Output):
        # One that does not say where its cursor is would be waited for, and be complained of.
        output.enable_cpr = False
    return create_input(), output


def take_typed_ahead(source: Input) -> None:
    """Take in what was typed since the last line; the terminal is in raw mode already.

    In its usual mode it made a line end of Enter, which here would be Ctrl-J, and a zero of Ctrl-D.
    """
    terminal = source.fileno()
    if not os.isatty(terminal):
        return
    typed = b""
    while select.select([terminal], [], [], 0)[0] and (piece := os.read(terminal, 2**16)):
        typed += piece
    presses: list[KeyPress] = []
    parser = Vt100Parser(presses.append)
    parser.feed(typed.translate(_AS_RAW).decode("utf-8", "surrogateescape"))
    store_typeahead(source, presses)
