"""The golden cases of the chat format, and how tests cut and compare completions."""

import json
import re
from pathlib import Path
from typing import Any

from localv4.encoding import ParseEvent, StreamParser, collect
from localv4.encoding.literals import CONTROL_LITERALS

_FILE = Path(__file__).parents[1] / "golden" / "encoding_cases.json"
_CASES = json.loads(_FILE.read_text(encoding="utf-8"))
ENCODE_CASES: list[dict[str, Any]] = _CASES["encode"]
PARSE_CASES: list[dict[str, Any]] = _CASES["parse"]

CONTROL = re.compile("(" + "|".join(map(re.escape, CONTROL_LITERALS)) + ")")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"depth": {"type": "integer"}, "place": {"type": "string"}},
            },
        },
    }
]


def case_id(case: dict[str, Any]) -> str:
    return str(case["id"])


def tagged_pieces(text: str) -> list[tuple[str, bool]]:
    """Cut a completion as a detokeniser would at its coarsest: control tokens apart."""
    parts = [(part, bool(i % 2)) for i, part in enumerate(CONTROL.split(text))]
    return [part for part in parts if part[0]]


def run(parser: StreamParser, pieces: list[tuple[str, bool]]) -> dict[str, Any]:
    """Feed pieces and close; return the message, without the calls' ids, and the flags."""
    events: list[ParseEvent] = []
    for text, control in pieces:
        events += parser.feed(text, control)
    events += parser.close()
    return summary(parser, events)


def summary(parser: StreamParser, events: list[ParseEvent]) -> dict[str, Any]:
    message: dict[str, Any] = dict(collect(events))
    ids = [call.pop("id") for call in message["tool_calls"]]
    assert len(set(ids)) == len(ids)
    return {**message, "ended": parser.ended, "dropped_call": parser.dropped_call}
