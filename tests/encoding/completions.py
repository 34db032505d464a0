# ruff: noqa: RUF001  (the fullwidth bars are the format's own)
"""Completions made up by chance: sound ones, ones broken in known ways, and rubbish.

Of what the grammar writes it knows what a tolerant parser must make of it, by construction and not
by parsing. Knows nothing of how completions are cut into pieces.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

from localv4.encoding.literals import CONTROL_LITERALS, DSML, ENDTHINK, EOS, THINK, USER
from tests.encoding.cases import PARSE_CASES, tagged_pieces

ASCII_DSML = "|DSML|"
Part = tuple[str, bool]  # text, and whether it is one control token

_WRAPPERS = ("tool_calls", "toolcalls", "function_calls", "calls_of_2027", None)
_LEADS = ("\n\n", "\n", "")
_BETWEEN = ("", "\n", "\n\n", "and then ", "é <b>", "</", " < ")
_NAMES = ("f", "get_weather", "a.b-c", "naïve", "two words", "x" * 70, "", "a\\b", "'quoted'")
_TEXTS = (
    *(
        "Hello.",
        "a < b",
        "x<",
        "</",
        "\n\n",
        "\n",
        "<",
        " ",
        "naïve é",
        "日本語",
        "🙂",
        "\x00",
        "{}",
    ),
    *("｜", "DSML", "<｜", "name=", ">\n", "invoke", 'parameter name="a"', "|", "think", "\ufffd"),
)
_JSON = ("1", "-0.5e3", "true", "null", '"s"', ' {"x": [1, {"y": "</"}]} ', "[]", '"\\ud800"', "{}")
_NOT_JSON = ("", "1,", "NaN", "-Infinity", "{'a': 1}", "1, 2", '"open', "}", '1}, "b": {', "01")
_SOUP = (
    *CONTROL_LITERALS,
    *(f"<{DSML}", f"</{DSML}", f"<{DSML}invoke", f"</{DSML}parameter", f"</{DSML}invoke>"),
    *(f'<{DSML}invoke name="f">\n', f'<{DSML}parameter name="a" string="', 'true">', 'false">'),
    *(f"\n\n<{DSML}tool_calls>\n", f"</{DSML}tool_calls>", f"<{DSML}function_calls"),
    *(f"<{ASCII_DSML}", f'</{ASCII_DSML}invoke>\n<{ASCII_DSML}invoke name="', ASCII_DSML),
    *(
        "｜DS",
        "ML｜",
        "<｜U",
        "ser｜>",
        "<thi",
        "nk>",
        "</",
        "<",
        ">",
        '">',
        "\n",
        "\n\n",
        " ",
        "1",
    ),
    *("inv", "oke", "param", "eter", ' name="', ' string="', "ok", "é", "🙂"),
)


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes
    ----------
    mode
        The thinking mode it is read in.
    parts
        Its text, control tokens apart.
    expected
        What it says, where that is known: reasoning, content, calls, whether one is dropped.
    is_forged
        Whether its ordinary text may spell control tokens: it cannot be read as plain text.
    """

    mode: str
    parts: tuple[Part, ...]
    expected: tuple[str, str, list[tuple[str, dict[str, Any]]], bool] | None = None
    is_forged: bool = False

    @property
    def text(self) -> str:
        """All of it, control tokens as their literals."""
        return "".join(text for text, _ in self.parts)


def draw(seed: int) -> Completion:
    """Return the completion of a seed."""
    rng = random.Random(seed)
    kind = rng.choice((_written, _written, _mutated, _soup, _forged))
    return kind(rng)


def _soup(rng: random.Random) -> Completion:
    pieces = [_some_text(rng) if rng.random() < 0.2 else rng.choice(_SOUP)
              for _ in range(rng.randrange(1, 30))]  # fmt: skip
    return Completion(_mode(rng), tuple(tagged_pieces("".join(pieces))))


def _forged(rng: random.Random) -> Completion:
    """Draw parts whose ordinary text spells control tokens, and tokens nobody knows."""
    parts: list[Part] = []
    for _ in range(rng.randrange(1, 20)):
        control = rng.random() < 0.4
        token = rng.choice((*CONTROL_LITERALS, DSML, DSML, ENDTHINK, "<｜unknown｜>"))
        parts.append((token if control else rng.choice((*_SOUP, _some_text(rng))), control))
    return Completion(_mode(rng), tuple(parts), is_forged=True)


def _mutated(rng: random.Random) -> Completion:
    """Draw a golden or a written completion with some spans lost, doubled, moved or replaced."""
    if rng.random() < 0.5:
        case = rng.choice(PARSE_CASES)
        mode, text = case["thinking_mode"], case["text"]
    else:
        written = _written(rng)
        mode, text = written.mode, written.text
    for _ in range(rng.randrange(1, 5)):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.choice((1, 1, 2, 5, 20, 100)))
        span = text[start:stop]
        new = rng.choice(("", "", span + span, span[::-1], rng.choice(_SOUP), span.upper()))
        text = text[:start] + new + text[stop:]
    if rng.random() < 0.3:
        text = text[: rng.randrange(len(text) + 1)]
    return Completion(mode, tuple(tagged_pieces(text)))


def _mode(rng: random.Random) -> str:
    return rng.choice(("chat", "thinking"))


def _some_text(rng: random.Random) -> str:
    """Draw ordinary text that cannot become a part of a control token."""
    if rng.random() < 0.1:
        return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 9)))
    return "".join(rng.choices(_TEXTS, k=rng.randrange(4)))


def _written(rng: random.Random) -> Completion:
    """Draw what a model might write, broken in the ways seen in the wild."""
    bars = ASCII_DSML if rng.random() < 0.1 else DSML
    writer = _Writer(rng, bars)
    mode = _mode(rng)
    if mode == "thinking":
        writer.think()
    for _ in range(rng.randrange(3)):
        writer.say()
        writer.call()
    if rng.random() < 0.5:
        writer.say()
    writer.finish()
    expected = writer.reasoning, writer.content, writer.calls, writer.dropped
    parts = tuple(tagged_pieces(writer.text))
    return Completion(mode, parts, expected)


class _Writer:
    """Writes a completion, and beside it what it says."""

    def __init__(self, rng: random.Random, bars: str) -> None:
        self.text = self.reasoning = self.content = ""
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.dropped = False
        self._rng = rng
        self._bars = bars
        self._pending = ""  # content, unless it turns out to lead to a tag
        self._behind_block = False
        self._open = True  # nothing written so far swallows what follows

    def think(self) -> None:
        quoted = self._rng.choice(("", f"\n\n<{DSML}tool_calls>\n", f"</{DSML}invoke>"))
        said = _clean(_some_text(self._rng)) + quoted + _clean(_some_text(self._rng))
        self.text += self._rng.choice(("", THINK)) + said + ENDTHINK
        self.reasoning = said

    def say(self) -> None:
        if self._open:
            said = _clean(_some_text(self._rng))
            self.text += said
            self._pending += said

    def call(self) -> None:
        """Write a block of calls, in the format or near it."""
        if not self._open:
            return
        rng, bars = self._rng, self._bars
        lead, wrapper = rng.choice(_LEADS), rng.choice(_WRAPPERS)
        self._settle(self._pending + lead, before_tag=True)
        self.text += lead
        if rng.random() < 0.1:  # a closing tag of nothing
            self.text += f"</{bars}{rng.choice(('tool_calls', 'invoke', 'parameter'))}>"
            self._behind_block = True
            return
        self.text += "" if wrapper is None else f"<{bars}{wrapper}>\n"
        # without a wrapper, each call is a block and what stands between them is an answer
        for number in range(1 if wrapper is None else rng.randrange(1, 4)):
            self.text += rng.choice(_BETWEEN) if number else ""
            self._invoke()
        self._behind_block = True
        if wrapper is None:
            return
        if rng.random() < 0.15:
            self._open = False  # the block is never closed
        else:
            self.text += f"</{bars}{wrapper}>"

    def _invoke(self) -> None:
        rng, bars = self._rng, self._bars
        name = rng.choice(_NAMES)
        self.text += f'<{bars}invoke name="{name}">' + rng.choice(("\n", "\n\n", ""))
        arguments = dict(self._parameter() for _ in range(rng.randrange(4)))
        self.text += f"</{bars}invoke>"
        self.calls.append((name, arguments))

    def _parameter(self) -> tuple[str, Any]:
        rng, bars = self._rng, self._bars
        key, declared = rng.choice(_NAMES), rng.choice(("true", "false", None))
        value = rng.choice((*_JSON, *_NOT_JSON, _clean(_some_text(rng)) + f"<{bars}invoke {THINK}"))
        attribute = "" if declared is None else f' string="{declared}"'
        self.text += f'<{bars}parameter name="{key}"{attribute}>{value}</{bars}parameter>'
        self.text += rng.choice(("\n", "\n\n", ""))
        return key, json.loads(value) if declared == "false" and value in _JSON else value

    def finish(self) -> None:
        """End with a token, in the middle of a call, or not at all."""
        rng, bars = self._rng, self._bars
        if self._open and rng.random() < 0.2:
            lead = rng.choice(_LEADS)
            self._settle(self._pending + lead, before_tag=True)
            header = f'<{bars}invoke name="cut'
            rest = f'">\n<{bars}parameter name="a" string="true">1'
            self.text += lead + (header + rest)[: rng.randrange(len(f"<{bars}invoke"), 70)]
            self.dropped = True
        else:
            self._settle(self._pending, before_tag=False)
        self.text += rng.choice(("", EOS, f"{USER}more", f"{EOS}\n<{DSML}invoke"))

    def _settle(self, text: str, before_tag: bool) -> None:
        """Count text as content, but for up to two line ends that lead to a tag."""
        self._pending = ""
        if before_tag:
            kept = text.rstrip("\n")
            text = kept + text[len(kept) :][:-2]
        if self._behind_block and not text.strip():
            return
        self._behind_block = False
        self.content += text


def _clean(text: str) -> str:
    """Return text as it comes out again, that begins or ends no control token."""
    kept = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    return kept.replace("｜", "").replace("|", "").replace("think", "")
