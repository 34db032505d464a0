"""What a Markdown page of the project says: its blocks, its commands, its links and names.

Blocks marked ``sh`` are commands, one a line, to be run as written in the order of the page; a
comment ``# exit N`` behind one says with what it ends. ``python`` blocks are run too, ``toml``
blocks are config.toml; ``text`` and ``json`` show something.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["LANGUAGES", "Block", "Command", "Page"]

LANGUAGES = ("sh", "python", "toml", "text", "json")

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_EXIT = re.compile(r" +# exit (\d+)$")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"\bLOCALV4_[A-Z0-9_]*")


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A line of a block that is to be typed."""

    text: str
    code: int
    line: int


class Page:
    """A Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text("utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        return [
            Block(match[2], match[3], self.text.count("\n", 0, match.start()) + 1)
            for match in _FENCE.finditer(self.text)
        ]

    @property
    def steps(self) -> Iterator[Command | Block]:
        """What a reader would do, in order: commands, and blocks of Python."""
        for block in self.blocks:
            if block.language == "python":
                yield block
            elif block.language == "sh":
                yield from _commands(block)

    @cached_property
    def prose(self) -> str:
        """The page without its blocks."""
        return _FENCE.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        """What is set as code in the prose."""
        return [span.replace(r"\|", "|") for span in _SPAN.findall(self.prose)]

    @property
    def typed(self) -> Iterator[str]:
        """Every line that begins with localv4, in blocks and in the prose."""
        lines = [step.text for step in self.steps if isinstance(step, Command)]
        for text in (*lines, *_SPAN.findall(self.prose)):
            for part in re.split(r"[|;()]|&&|\bdo\b", text.replace(r"\|", "|")):
                if part.strip().startswith(("localv4 ", "scripts/localv4 ")):
                    yield part.strip()

    @property
    def links(self) -> Iterator[tuple[str, str]]:
        """Relative links: file, empty for this one, and anchor, empty for none."""
        for target in _LINK.findall(self.prose):
            if "://" not in target:
                name, _, anchor = target.partition("#")
                yield name, anchor

    @property
    def anchors(self) -> set[str]:
        return {_slug(heading) for heading in _HEADING.findall(self.prose)}

    @property
    def flags(self) -> set[str]:
        return set(_FLAG.findall(self.text))

    @property
    def variables(self) -> set[str]:
        return set(_VARIABLE.findall(self.text)) - {"LOCALV4_"}


def _commands(block: Block) -> Iterator[Command]:
    for offset, line in enumerate(block.text.splitlines(), 1):
        expected = _EXIT.search(line)
        text = re.sub(r" {2,}# .*$", "", line.strip())
        if text and not text.startswith("#"):
            yield Command(text, int(expected[1]) if expected else 0, block.line + offset)


def _slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
