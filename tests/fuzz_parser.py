"""The tolerant parser against made-up completions: ``python -m tests.fuzz_parser SECONDS [SEED]``.

From the root of the checkout. Every completion is read whole, cut at random and cut off, with its
control tokens tagged, plain, and found out on the way. `encoding/test_fuzz.py` does this briefly.
"""

import contextlib
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from localv4.encoding import ParseEvent, StreamParser
from localv4.encoding.literals import DSML, ENDTHINK, EOS, USER
from tests.encoding.cases import CONTROL, TOOLS, summary
from tests.encoding.completions import ASCII_DSML, Completion, Part, draw

Message = dict[str, Any]
_CUTS = 3  # of each completion, in each way of reading
_SAID_S = 10.0

# How control tokens are written while a completion is looked at: no decoded text holds these.
_DSML, _ASCII, _ENDTHINK, _END, _OTHER = "\ud800\ud801\ud802\ud803\ud804"
_MARKS = {DSML: _DSML, ENDTHINK: _ENDTHINK, EOS: _END, USER: _END}
_TAG = re.compile(f"\n{{0,2}}</?[{_DSML}{_ASCII}]")
_SURROGATES = re.compile("[\ud800-\udfff]")


class MisreadError(AssertionError):
    """A completion was misread; `pieces` show how."""

    def __init__(self, why: str, pieces: Sequence[Part]) -> None:
        super().__init__(why)
        self.pieces = pieces


def check(completion: Completion, seed: int) -> None:
    """Read a completion in all ways; raise MisreadError if any promise is broken."""
    rng = random.Random(seed)
    parts, mode = completion.parts, completion.mode
    tagged = _read(mode, True, parts, rng)
    untold = _read(mode, None, parts, rng)
    _check_text(tagged, mode, parts, parts)
    if parts and parts[0][1]:
        _expect(untold == tagged, f"untold {untold} is not tagged {tagged}", parts)
    if completion.is_forged:
        return
    whole = ((completion.text, False),)
    plain = _read(mode, False, whole, rng)
    _check_text(plain, mode, _with_ascii_bars(parts), whole)
    _check_cut_off(plain, completion, rng)
    _check_expected(plain, completion, whole)
    if ASCII_DSML not in completion.text:
        _expect(plain == tagged, f"plain {plain} is not tagged {tagged}", parts)
        _expect(untold == tagged, f"untold {untold} is not tagged {tagged}", parts)


def _expect(holds: bool, why: str, pieces: Sequence[Part]) -> None:
    if not holds:
        raise MisreadError(why, pieces)


def _read(mode: str, tagged: bool | None, parts: Sequence[Part], rng: random.Random) -> Message:
    """Read a completion whole and cut, which must say the same."""
    whole = _run(mode, tagged, parts)
    for _ in range(_CUTS):
        pieces = [piece for part in parts for piece in _cut(part, rng)]
        found = _run(mode, tagged, pieces)
        _expect(found == whole, f"tagged={tagged}: cut {found} is not whole {whole}", pieces)
    return whole


def _run(mode: str, tagged: bool | None, pieces: Sequence[Part]) -> Message:
    parser = StreamParser(mode, tagged=tagged, tools=TOOLS)
    try:
        events = [event for piece in pieces for event in parser.feed(*piece)] + parser.close()
    except Exception as error:
        raise MisreadError(f"tagged={tagged}: {error!r}", pieces) from error
    _check_events(events, tagged, pieces)
    return summary(parser, events)


def _cut(part: Part, rng: random.Random) -> Iterable[Part]:
    text, control = part
    if control:
        yield part
        return
    longest = rng.choice((1, 3, 10, 100))
    start = 0
    while start < len(text):
        stop = start + rng.randrange(longest + 1)  # a piece may be empty
        yield text[start:stop], False
        start = stop


def _check_events(
    events: Iterable[ParseEvent], tagged: bool | None, pieces: Sequence[Part]
) -> None:
    """Hold every event against its contract."""
    # what is left out may leave two halves of a literal behind, and ordinary text may spell it
    ordinary = "".join(text for text, control in pieces if not control)
    spelled = DSML in CONTROL.sub("", ordinary) or (tagged is not False and DSML in ordinary)
    for event in events:
        if event.kind != "tool_call":
            _expect(event.text != "", "an event is empty", pieces)
            leaks = event.kind == "text" and DSML in event.text and not spelled
            _expect(not leaks, f"markup in the content: {event.text!r}", pieces)
            continue
        arguments = event.arguments.encode().decode()
        is_object = isinstance(json.loads(arguments, parse_constant=_refuse), dict)
        _expect(is_object, f"arguments are {arguments!r}", pieces)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _check_text(message: Message, mode: str, parts: Iterable[Part], pieces: Sequence[Part]) -> None:
    """Hold reasoning and content against the ordinary text outside of blocks."""
    marked = "".join(map(_marked, parts)).partition(_END)[0]
    reasoning, _, answer = marked.partition(_ENDTHINK) if mode == "thinking" else ("", "", marked)
    _expect(message["reasoning_content"] == _unmarked(reasoning, DSML), "reasoning differs", pieces)
    content, tag = message["content"], _TAG.search(answer)
    if tag is None:
        _expect(content == _unmarked(answer), f"content differs: {content!r}", pieces)
        return
    before = _unmarked(answer[: tag.start()])
    _expect(content.startswith(before), f"text before a block is lost: {content!r}", pieces)


def _with_ascii_bars(parts: Iterable[Part]) -> list[Part]:
    """Tell apart what counts as a control token in plain text, too."""
    found: list[Part] = []
    for text, control in parts:
        cut = [text] if control else re.split(f"({re.escape(ASCII_DSML)})", text)
        found += [(piece, control or piece == ASCII_DSML) for piece in cut]
    return found


def _marked(part: Part) -> str:
    text, control = part
    if not control:
        return _SURROGATES.sub("\ufffd", text)
    return _ASCII if text == ASCII_DSML else _MARKS.get(text, _OTHER)


def _unmarked(marked: str, dsml: str = "") -> str:
    """Return the ordinary text of marked text; `dsml` stands for the token of tags."""
    return _SURROGATES.sub("", marked.replace(_ASCII, ASCII_DSML).replace(_DSML, dsml))


def _check_cut_off(whole: Message, completion: Completion, rng: random.Random) -> None:
    """Cut a completion off: the calls before that stay as they are."""
    text = completion.text[: rng.randrange(len(completion.text) + 1)]
    calls = _calls(_run(completion.mode, False, [(text, False)]))
    _expect(calls == _calls(whole)[: len(calls)], f"calls are {calls}", [(text, False)])


def _check_expected(message: Message, completion: Completion, pieces: Sequence[Part]) -> None:
    said = message["reasoning_content"], message["content"]
    found = *said, _calls(message), message["dropped_call"]
    holds = completion.expected is None or found == completion.expected
    _expect(holds, f"{found} is not {completion.expected}", pieces)


def _calls(message: Message) -> list[tuple[str, Any]]:
    calls = [call["function"] for call in message["tool_calls"]]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


def shortened(completion: Completion, seed: int) -> Completion:
    """Return a failing completion without the parts that it fails without."""
    completion = replace(completion, expected=None)
    for size in (16, 4, 1):
        for start in range(len(completion.parts) - size, -1, -1):
            parts = completion.parts[:start] + completion.parts[start + size :]
            try:
                check(replace(completion, parts=parts), seed)
            except MisreadError:
                completion = replace(completion, parts=parts)
    return completion


def search(seeds: Iterable[int], seconds: float) -> int:
    """Check the completions of seeds until the time is over; return how many.

    Raises
    ------
    MisreadError
        With the seed in its message, and no part that it does not need.
    """
    begun_s = said_s = time.monotonic()
    count = 0
    for seed in seeds:
        completion = draw(seed)
        try:
            check(completion, seed)
        except MisreadError as failure:
            with contextlib.suppress(MisreadError):
                check(completion := shortened(completion, seed), seed)
            raise MisreadError(f"seed {seed}, {completion}: {failure}", failure.pieces) from failure
        count += 1
        now_s = time.monotonic()
        if now_s - said_s > _SAID_S:
            said_s = now_s
            print(f"{count:,} completions, {count / (now_s - begun_s):,.0f} a second", flush=True)
        if now_s - begun_s > seconds:
            break
    return count


def main() -> int:
    """Search for as long as the command line says; 1 if something is misread."""
    seconds = float(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    begun_s = time.monotonic()
    try:
        count = search(itertools.count(first), seconds)
    except MisreadError as failure:
        print(failure, f"pieces {failure.pieces}", sep="\n")
        return 1
    print(f"{count:,} completions, {count / (time.monotonic() - begun_s):,.0f} a second: all read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
