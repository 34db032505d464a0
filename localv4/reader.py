"""Sampled tokens to what they say: reasoning, answer text and tool calls, up to a stop string.

Three steps, each of which may hold text back until the next token tells: bytes to characters
(`TextStream`), characters to kinds of text (`StreamParser`), answer text to the part before a stop
string (`StopStrings`). Knows nothing of sessions or sampling. Source: DeepSeek-V4 encoding,
section 7.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from localv4.encoding import ParseEvent, StreamParser, ThinkingMode
from localv4.encoding.literals import ENDTHINK
from localv4.errors import InvalidInput
from localv4.tokenizer import Tokenizer

__all__ = ["CompletionReader", "StopStrings", "read_all"]


class StopStrings:
    """Passes text on until one of some strings is complete in it, however the text is cut.

    If several could match, the one that is complete first counts, and of those the longest.

    Raises
    ------
    InvalidInput
        On construction, if one of the strings is empty or not text.
    """

    def __init__(self, strings: Iterable[object]) -> None:
        self._strings: list[str] = []
        for string in strings:
            if not isinstance(string, str) or not string:
                raise InvalidInput(
                    f"a stop string is {string!r}; it must be text of at least one character"
                )
            self._strings.append(string)
        self._longest_start = max(map(len, self._strings), default=1) - 1
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Return the text that can be passed on, and whether a stop string ended it."""
        text = self._held + text
        starts = ((text.find(string), string) for string in self._strings)
        found = min(((at + len(s), at) for at, s in starts if at >= 0), default=None)
        if found is not None:
            self._held = ""
            return text[: found[1]], True
        first = max(0, len(text) - self._longest_start)
        split = next((i for i in range(first, len(text)) if self._may_start(text[i:])), len(text))
        self._held = text[split:]
        return text[:split], False

    def release(self) -> str:
        """Return what was held back: nothing that follows can complete it."""
        held, self._held = self._held, ""
        return held

    def _may_start(self, tail: str) -> bool:
        return any(string.startswith(tail) for string in self._strings)


class CompletionReader:
    """Reads one completion token by token.

    Parameters
    ----------
    tokenizer
        None: every token reads as empty text.
    thinking_mode
        ``"thinking"`` or ``"chat"``: parse the chat format. None: all of it is plain text, control
        tokens as their literals.
    tools
        The tools offered, for the types of their arguments.
    stop
        Strings that end the answer text; reasoning and tool calls are not searched.

    Attributes
    ----------
    stopped
        Whether a stop string or the chat format's end token was read; nothing comes after it.
    reasoning_tokens
        Tokens read as reasoning so far, its end token included.

    Raises
    ------
    InvalidInput
        On construction, for text options without a tokenizer, an unknown mode or an empty string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        thinking_mode: ThinkingMode | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stop: Iterable[str] = (),
    ) -> None:
        if thinking_mode not in (None, "chat", "thinking"):
            raise InvalidInput(
                f"thinking_mode is {thinking_mode!r}; it must be 'chat', 'thinking' or None"
            )
        strings = tuple(stop)
        if tokenizer is None and (thinking_mode is not None or strings):
            raise InvalidInput(
                "without a tokenizer there is no text to parse or to search for stop strings; "
                "leave thinking_mode and stop out"
            )
        self.stopped = False
        self.reasoning_tokens = 0
        self._stops = StopStrings(strings)
        self._cut_off = False  # by a stop string
        self._tokenizer = tokenizer
        self._stream = None if tokenizer is None else tokenizer.stream()
        self._parser = None
        if thinking_mode is not None:
            self._parser = StreamParser(thinking_mode, tagged=True, tools=tools)
        self._in_reasoning = thinking_mode == "thinking"
        self._said_ahead = ""

    def go_on(self, token_ids: Iterable[int], said_ahead: str) -> None:
        """Read the tokens of an answer that ended early, to go on behind them.

        Parameters
        ----------
        token_ids
            What they say is not said again.
        said_ahead
            What `close` let out of what was held back: it is not said again either.

        Raises
        ------
        InvalidInput
            The answer is complete.
        """
        for token_id in token_ids:
            self.read(token_id)
        if self.stopped:
            raise InvalidInput("the answer is complete, so it cannot go on")
        self.reasoning_tokens = 0
        self._said_ahead = said_ahead

    @property
    def dropped_call(self) -> bool:
        """Whether a tool call was left out because it was cut off or malformed."""
        return self._parser is not None and self._parser.dropped_call

    def read(self, token_id: int) -> list[ParseEvent]:
        """Return what a sampled token completes, perhaps nothing.

        Without a tokenizer that is one empty text a token.
        """
        if self._tokenizer is None:
            return [ParseEvent("text")]
        if self._in_reasoning:
            self.reasoning_tokens += 1
        return self._until_stop(self._parse(token_id))

    def end(self, token_id: int) -> list[ParseEvent]:
        """Read the token that ended the completion; as plain text it says nothing."""
        return self._until_stop(self._parse(token_id)) if self._parser is not None else []

    def close(self) -> list[ParseEvent]:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        if self._stream is None:
            return []
        tail = self._stream.close()
        if self._parser is None:
            events = self._until_stop(_as_text(tail))
        else:
            events = self._until_stop(self._parser.feed(tail) + self._parser.close())
        return events + self._not_said(_as_text(self._stops.release()))

    def _parse(self, token_id: int) -> list[ParseEvent]:
        """Return what the token says, stop strings apart."""
        if self._tokenizer is None or self._stream is None:
            return []
        if token_id >= self._tokenizer.vocab_size:  # a spare row of the model's vocabulary
            return []
        if self._parser is None:
            return _as_text(self._stream.feed(token_id))
        if not self._tokenizer.is_control(token_id):
            return self._parser.feed(self._stream.feed(token_id))
        literal = self._tokenizer.token_bytes(token_id).decode("utf-8")
        if literal == ENDTHINK:
            self._in_reasoning = False
        return self._parser.feed(self._stream.close()) + self._parser.feed(literal, control=True)

    def _until_stop(self, events: Iterable[ParseEvent]) -> list[ParseEvent]:
        """Pass events on until a stop string is complete in their answer text."""
        passed: list[ParseEvent] = []
        for event in events:
            if self._cut_off:
                break
            if event.kind == "text":
                text, self._cut_off = self._stops.feed(event.text)
                passed += _as_text(text)
            else:
                passed += [*_as_text(self._stops.release()), event]
        self.stopped = self._cut_off or (self._parser is not None and self._parser.ended)
        return self._not_said(passed)

    def _not_said(self, events: list[ParseEvent]) -> list[ParseEvent]:
        """Leave out what was said ahead; what differs, half a character, is said again."""
        if not self._said_ahead:
            return events
        new: list[ParseEvent] = []
        for event in events:
            known = _common_length(event.text, self._said_ahead)
            is_known = known == len(event.text)
            self._said_ahead = self._said_ahead[known:] if is_known else ""
            if not is_known or event.kind == "tool_call":
                new.append(replace(event, text=event.text[known:]))
        return new


def read_all(
    reader: CompletionReader, token_ids: Iterable[int]
) -> tuple[list[ParseEvent], list[ParseEvent]]:
    """Read the tokens of an answer; return what they say, and what its end lets out."""
    said = [event for token_id in token_ids for event in reader.read(token_id)]
    return said, reader.close()


def _as_text(text: str) -> list[ParseEvent]:
    return [ParseEvent("text", text)] if text else []


def _common_length(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)
