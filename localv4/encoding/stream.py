"""The tolerant parser: a completion as it arrives, to reasoning, text and tool calls.

Never raises, whatever a model writes, and never lets markup into the answer's text: what cannot
be read is left out. Works on marked text (see ``marks.py``), so nothing here depends on how the
text was cut into pieces. Source: sections 6 (tolerant mode) and 7 of the chat encoding
specification.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Literal

from localv4.encoding.arguments import (
    arguments_not_strings,
    join_arguments,
    json_value,
    string_value,
)
from localv4.encoding.marks import (
    DSML_MARKS,
    END_MARKS,
    ENDTHINK_MARK,
    Marker,
    as_content,
    as_reasoning,
    as_value,
)
from localv4.encoding.parse import ParsedCall, ParsedFunction, ParsedMessage
from localv4.errors import FormatError

_END: Final = re.compile(f"[{END_MARKS}]")
_DSML: Final = re.compile(f"[{DSML_MARKS}]")
_TAG: Final = re.compile(f"<(/?)[{DSML_MARKS}]")
_TAG_NAME: Final = re.compile(r"[A-Za-z0-9_]{0,64}")
_VALUE_CLOSE: Final = re.compile(f"</[{DSML_MARKS}]parameter")
_LONGEST_PATTERN: Final = len("</#parameter")
_TAG_LEADS: Final = ("\n\n</", "\n\n<", "\n</", "\n\n", "\n<", "</", "\n", "<")
"""What may turn out to lead to a tag, longest first: not content until the next piece tells."""

_INVOKE_HEADER: Final = re.compile(r'\s*name="(.*?)">\s*', re.DOTALL)
_PARAMETER: Final = re.compile(r' name="(.*?)" string="(true|false)">(.*)', re.DOTALL)
_LOOSE_PARAMETER: Final = re.compile(r'\s*name="([^"]*)"([^>]*)>(.*)', re.DOTALL)


@dataclass(frozen=True)
class ParseEvent:
    """Something a completion said.

    ``kind`` tells which fields are set: ``text`` for reasoning and text (to be concatenated, never
    empty); ``id`` (made here, unique), ``name`` and ``arguments`` (the JSON text of an object,
    valid) for a completed tool call.
    """

    kind: Literal["reasoning", "text", "tool_call"]
    text: str = ""
    id: str = ""
    name: str = ""
    arguments: str = ""


class _State(Enum):
    REASONING = auto()
    CONTENT = auto()
    BLOCK = auto()  # inside DSML, between calls
    HEADER = auto()  # behind the name of an invoke tag
    CALL = auto()  # inside a call, between its arguments
    PARAMETER = auto()  # behind the name of a parameter tag


class StreamParser:
    """Parses one completion from pieces of any size.

    Parameters
    ----------
    thinking_mode
        ``"thinking"`` if the prompt ended with the think token, else ``"chat"``
        (:func:`localv4.encoding.generation_mode` tells).
    tagged
        True: control tokens come as pieces of their own with ``control=True``, and ordinary
        pieces are never matched against them. This is what an engine wants. False: the text is
        plain, and control literals in it count. None: plain until the first control piece, tagged
        from then on.
    tools
        The tools offered, as in a message. Their schemas say which arguments are strings where
        the model left that out.

    Attributes
    ----------
    ended
        Whether an end token was read; what is fed after it is ignored.
    dropped_call
        Whether a tool call was left out because it was cut off or malformed.

    Raises
    ------
    FormatError
        On construction, for an unknown ``thinking_mode``; never later.

    Notes
    -----
    - Reasoning goes on to its end token, whatever it quotes: without one, all is reasoning.
    - Any DSML tag in the answer opens a block, with or without the wrapper tag, whatever it is
      called. Text between calls is dropped; text after the block is answer text again.
    - Of an argument given twice, the last counts. One announced as JSON that is not is a string.
    """

    def __init__(
        self,
        thinking_mode: str,
        tagged: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if thinking_mode not in ("chat", "thinking"):
            raise FormatError(f"unknown thinking_mode {thinking_mode!r}; use 'chat' or 'thinking'")
        self.ended = False
        self.dropped_call = False
        self._marker = Marker(tagged)
        self._not_strings = arguments_not_strings(tools or ())
        self._state = _State.REASONING if thinking_mode == "thinking" else _State.CONTENT
        self._buffer = ""  # marked text; what lies before _at is done with
        self._at = 0
        self._searched = 0  # the pattern being waited for was not found up to here
        self._closing = False
        self._after_block = False  # blank text is dropped
        self._wrapped = False  # a wrapper tag around the calls was opened
        self._name = ""
        self._arguments: dict[str, str] = {}
        self._events: list[ParseEvent] = []

    def feed(self, text: str, control: bool = False) -> list[ParseEvent]:
        """Read a piece; return what it completes.

        Parameters
        ----------
        text
            Any stretch of the completion, also empty.
        control
            True if the piece is exactly one control token's literal.
        """
        if self._closing:
            return []
        marked = self._marker.mark(text, control)
        end = _END.search(marked)
        if end is None:
            return self._advance(marked)
        self.ended = True
        return self._finish(marked[: end.start()])

    def close(self) -> list[ParseEvent]:
        """End the completion; return what was held back. A call left open is dropped."""
        return [] if self._closing else self._finish(self._marker.close())

    def _finish(self, marked: str) -> list[ParseEvent]:
        self._closing = True
        events = self._advance(marked)
        if self._state in (_State.HEADER, _State.CALL, _State.PARAMETER):
            self.dropped_call = True
        return events

    def _advance(self, marked: str) -> list[ParseEvent]:
        """Add marked text (without end marks) and read as far as it allows."""
        self._buffer = self._buffer[self._at :] + marked
        self._searched = max(0, self._searched - self._at)
        self._at = 0
        while self._step():
            pass
        events, self._events = self._events, []
        return events

    def _step(self) -> bool:
        """Read one element; return False if that has to wait for more text."""
        match self._state:
            case _State.REASONING:
                return self._read_reasoning()
            case _State.CONTENT:
                return self._read_content()
            case _State.BLOCK:
                return self._read_between_calls()
            case _State.HEADER:
                return self._read_header()
            case _State.CALL:
                return self._read_between_arguments()
            case _State.PARAMETER:
                return self._read_argument()

    def _move(self, state: _State, position: int) -> bool:
        self._state = state
        self._at = position
        return True

    def _search(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Search from the current position, but not again where a longer wait began."""
        start = max(self._at, self._searched - _LONGEST_PATTERN)
        found = pattern.search(self._buffer, start)
        self._searched = 0 if found else len(self._buffer)
        return found

    def _read_reasoning(self) -> bool:
        end = self._buffer.find(ENDTHINK_MARK, self._at)
        stop = end if end >= 0 else len(self._buffer)
        text = as_reasoning(self._buffer[self._at : stop])
        if text:
            self._events.append(ParseEvent("reasoning", text))
        self._at = stop
        return end >= 0 and self._move(_State.CONTENT, end + 1)

    def _read_content(self) -> bool:
        mark = _DSML.search(self._buffer, self._at)
        if mark is None:
            self._write_content(self._buffer[self._at :])
            return False
        text = self._buffer[self._at : mark.start()]
        lead = _tag_lead(text)
        if "<" not in lead:  # the token alone makes no tag
            self._emit_content(text + mark.group())
            return self._move(_State.CONTENT, mark.end())
        self._emit_content(text.removesuffix(lead))
        self._wrapped = False
        return self._move(_State.BLOCK, mark.start() - len(lead.lstrip("\n")))

    def _write_content(self, text: str) -> None:
        """Emit text that no tag follows yet, but for what may belong to a tag."""
        if not self._closing:
            text = text.removesuffix(_tag_lead(text))
            if self._after_block and not as_content(text).strip():
                return
        self._emit_content(text)
        self._at += len(text)

    def _emit_content(self, marked: str) -> None:
        text = as_content(marked)
        if self._after_block and not text.strip():
            return
        self._after_block = False
        if text:
            self._events.append(ParseEvent("text", text))

    def _next_tag(self) -> tuple[re.Match[str], str] | None:
        """Find a whole tag opening, dropping the text before it; return it with the tag's name."""
        tag = _TAG.search(self._buffer, self._at)
        if tag is None:
            self._at = max(self._at, len(self._buffer) - len("</"))
            return None
        self._at = tag.start()
        for name in ("invoke", "parameter"):
            if self._buffer.startswith(name, tag.end()):
                return tag, name
        other = _TAG_NAME.match(self._buffer, tag.end())
        if other is None or (other.end() == len(self._buffer) and not self._closing):
            return None
        return tag, other.group()

    def _read_between_calls(self) -> bool:
        found = self._next_tag()
        if found is None:
            return False
        tag, name = found
        end = tag.end() + len(name)
        is_wrapper = name not in ("invoke", "parameter")
        if not tag[1]:
            self._wrapped = self._wrapped or is_wrapper
            return self._move(_State.HEADER if name == "invoke" else _State.BLOCK, end)
        if self._wrapped and not is_wrapper:
            return self._move(_State.BLOCK, end)
        if end == len(self._buffer) and not self._closing:
            return False
        self._after_block = True
        return self._move(_State.CONTENT, end + self._buffer.startswith(">", end))

    def _read_header(self) -> bool:
        tag = self._search(_TAG)
        if tag is None:
            return False
        header = _INVOKE_HEADER.fullmatch(as_value(self._buffer[self._at : tag.start()]))
        if header is None:
            return self._drop_call(tag.start())
        self._name, self._arguments = header[1], {}
        return self._move(_State.CALL, tag.start())

    def _read_between_arguments(self) -> bool:
        found = self._next_tag()
        if found is None:
            return False
        tag, name = found
        if not tag[1] and name == "parameter":
            return self._move(_State.PARAMETER, tag.end() + len(name))
        if not tag[1] or name != "invoke":
            return self._drop_call(tag.start())
        self._events.append(
            ParseEvent(
                "tool_call",
                id=f"call_{os.urandom(12).hex()}",
                name=self._name,
                arguments=join_arguments(self._arguments),
            )
        )
        return self._move(_State.BLOCK, tag.start())

    def _read_argument(self) -> bool:
        close = self._search(_VALUE_CLOSE)
        if close is None:
            return False
        text = as_value(self._buffer[self._at : close.start()])
        argument = _PARAMETER.fullmatch(text) or _LOOSE_PARAMETER.fullmatch(text)
        if argument is None:
            return self._drop_call(close.start())
        key, declared, value = argument.groups()
        is_json = "false" in declared or (
            "true" not in declared and (self._name, key) in self._not_strings
        )
        self._arguments[key] = json_value(value) if is_json else string_value(value)
        return self._move(_State.CALL, close.end())

    def _drop_call(self, position: int) -> bool:
        self.dropped_call = True
        return self._move(_State.BLOCK, position)


def parse_tolerant(
    text: str, thinking_mode: str, tools: Sequence[Mapping[str, Any]] | None = None
) -> ParsedMessage:
    """Parse a whole completion as :class:`StreamParser` does, from plain text.

    Raises
    ------
    FormatError
        For an unknown ``thinking_mode`` only.
    """
    parser = StreamParser(thinking_mode, tagged=False, tools=tools)
    return collect([*parser.feed(text), *parser.close()])


def collect(events: Iterable[ParseEvent]) -> ParsedMessage:
    """Put events together to the message they make; its tool calls have ids."""
    message = ParsedMessage(role="assistant", content="", reasoning_content="", tool_calls=[])
    for event in events:
        if event.kind == "reasoning":
            message["reasoning_content"] += event.text
        elif event.kind == "text":
            message["content"] += event.text
        else:
            function = ParsedFunction(name=event.name, arguments=event.arguments)
            message["tool_calls"].append(
                ParsedCall(id=event.id, type="function", function=function)
            )
    return message


def _tag_lead(text: str) -> str:
    return next((lead for lead in _TAG_LEADS if text.endswith(lead)), "")
