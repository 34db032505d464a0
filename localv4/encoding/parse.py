"""The strict parser: a finished completion back to an assistant message, or an error.

Accepts exactly what the encoder writes after the generation prompt. For text that a model is
still writing, or that may be broken, see ``stream.py``. Source: section 6 of the chat encoding
specification.
"""

import re
from typing import Final, NotRequired, TypedDict

from localv4.encoding.arguments import join_arguments, string_value
from localv4.encoding.literals import (
    BOS,
    CALLS_CLOSE,
    CALLS_OPEN,
    DSML,
    ENDTHINK,
    EOS,
    INVOKE_CLOSE,
    INVOKE_OPEN,
    PARAMETER_END,
    PARAMETER_OPEN,
    THINK,
)
from localv4.errors import FormatError

_BLOCK: Final = f"\n\n{CALLS_OPEN}"
_PARAMETER: Final = re.compile(r' name="(.*?)" string="(true|false)">(.*)<', re.DOTALL)
_FORBIDDEN: Final = (BOS, EOS, THINK, ENDTHINK, DSML)


class ParsedFunction(TypedDict):
    """What a tool call calls; ``arguments`` is the JSON text of an object."""

    name: str
    arguments: str


class ParsedCall(TypedDict):
    """A tool call; the strict parser gives no ids."""

    id: NotRequired[str]
    type: str
    function: ParsedFunction


class ParsedMessage(TypedDict):
    """An assistant message in the shape the encoder takes."""

    role: str
    content: str
    reasoning_content: str
    tool_calls: list[ParsedCall]


def parse(text: str, thinking_mode: str) -> ParsedMessage:
    """Parse a finished completion.

    Parameters
    ----------
    text
        All the model wrote after the prompt, control tokens as their literals, EOS included.
    thinking_mode
        ``"thinking"`` if the prompt ended with the think token, else ``"chat"``.

    Returns
    -------
    ParsedMessage
        Its tool calls carry no ids. An argument written as JSON is passed on unvalidated.

    Raises
    ------
    FormatError
        At the first departure from the format, saying what was expected.
    """
    if thinking_mode not in ("chat", "thinking"):
        raise FormatError(f"unknown thinking_mode {thinking_mode!r}; use 'chat' or 'thinking'")
    if not isinstance(text, str):
        raise FormatError(f"the completion is {type(text).__name__}; pass its text")
    cursor = _Cursor(text)
    reasoning = ""
    if thinking_mode == "thinking":
        reasoning, stop = cursor.until(ENDTHINK, _BLOCK)
        if stop != ENDTHINK:
            raise FormatError(f"the completion is missing {ENDTHINK} after its reasoning")
    content, stop = cursor.until(EOS, _BLOCK)
    if not stop:
        raise FormatError(f"the completion is missing {EOS} at its end")
    calls = []
    if stop == _BLOCK:
        calls = _parse_calls(cursor)
        extra, _ = cursor.until(EOS)  # which may be missing here
        if extra:
            raise FormatError(f"the completion goes on with {extra[:40]!r} after its tool calls")
    if not cursor.at_end():
        raise FormatError(f"the completion goes on after {EOS}; cut it there")
    for literal in _FORBIDDEN:
        if literal in content or literal in reasoning:
            raise FormatError(f"the completion has {literal} inside its text")
    return ParsedMessage(
        role="assistant", content=content, reasoning_content=reasoning, tool_calls=calls
    )


class _Cursor:
    """A position in the text that only moves forward."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def until(self, *stops: str) -> tuple[str, str]:
        """Step behind the nearest stop; return the text before it, and the stop.

        If there is none, that is the rest of the text and an empty string.
        """
        # One search for all stops: a search for each would run to the end of the text every time.
        match = re.compile("|".join(map(re.escape, stops))).search(self._text, self._at)
        before = self._text[self._at : match.start() if match else None]
        stop = match.group() if match else ""
        self._at += len(before) + len(stop)
        return before, stop

    def expect(self, between: str, *stops: str) -> str:
        """Step behind the nearest stop, to which exactly ``between`` must lead; return the stop."""
        before, stop = self.until(*stops)
        if before != between or not stop:
            wanted = " or ".join(repr(between + stop) for stop in stops)
            raise FormatError(f"the tool calls go on with {before[:40] + stop!r}, not {wanted}")
        return stop

    def at_end(self) -> bool:
        return self._at == len(self._text)


def _parse_calls(cursor: _Cursor) -> list[ParsedCall]:
    """Parse a block of tool calls; the cursor stands behind its opening name."""
    calls = []
    while cursor.expect(">\n", INVOKE_OPEN, CALLS_CLOSE) == INVOKE_OPEN:
        calls.append(_parse_call(cursor))
    return calls


def _parse_call(cursor: _Cursor) -> ParsedCall:
    header, stop = cursor.until(PARAMETER_OPEN, INVOKE_CLOSE)
    name, end, rest = header.lstrip().removeprefix('name="').partition('">\n')
    if not stop or not header.lstrip().startswith('name="') or not end or rest not in ("", "\n"):
        raise FormatError(f"a tool call starts with {header[:40]!r}, not ' name=\"...\">'")
    arguments: dict[str, str] = {}
    while stop == PARAMETER_OPEN:
        key, value = _parse_parameter(cursor)
        if key in arguments:
            raise FormatError(f"a call of {name!r} gives the argument {key!r} twice")
        arguments[key] = value
        stop = cursor.expect(">\n", PARAMETER_OPEN, INVOKE_CLOSE)
    function = ParsedFunction(name=name, arguments=join_arguments(arguments))
    return ParsedCall(type="function", function=function)


def _parse_parameter(cursor: _Cursor) -> tuple[str, str]:
    """Return an argument's key and its value as JSON."""
    text, stop = cursor.until(PARAMETER_END)
    match = _PARAMETER.fullmatch(text) if stop else None
    if match is None:
        raise FormatError(
            f'an argument reads {text[:40]!r}, not \' name="..." string="true|false">...\''
        )
    key, is_string, value = match.groups()
    return key, string_value(value) if is_string == "true" else value
