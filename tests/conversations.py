"""A conversation of ten turns, and what each of them makes the engine read.

``python -m tests.conversations`` prints the table of benchmarks/README.md.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import localv4
from localv4.session import Session
from localv4.synthetic import synthesise
from tests.small_checkpoints import never_ending

__all__ = ["Turn", "converse", "model"]

_SYSTEM = "You are terse. " * 8
_MODES = {"off": ["off"] * 10, "on": ["high"] * 10, "in turns": ["high", "off"] * 5}


@dataclass(frozen=True)
class Turn:
    """One turn.

    Attributes
    ----------
    prompt
        Tokens of the whole conversation up to the question.
    new
        Those of them that are behind what an earlier prompt or answer had in common with it.
    read
        Tokens that the engine read.
    goes_on
        Whether the prompt begins with all tokens of before: those of a random model are often
        not the ones that its text is encoded to.
    """

    prompt: int
    new: int
    read: int
    goes_on: bool


def model(folder: Path) -> Path:
    """Make a small model with random weights and a byte tokenizer."""
    synthesise(folder, "flash", 2, compress_ratios=(0, 4, 128))
    return never_ending(folder)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two lists begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def converse(engine: localv4.Engine, session: Session, levels: Sequence[str]) -> list[Turn]:
    """Ask ten questions, a short and a long one in turns; return what they made."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": _SYSTEM}]
    turns: list[Turn] = []
    for number, level in enumerate(levels):
        text = f"Question {number}: " + "why is that so? " * (1 + 7 * (number % 2))
        messages.append({"role": "user", "content": text})
        held, before = session.ids, engine.stats.prefill_tokens
        ids, _ = engine.prompt_format.ids(messages, level)
        sampling = localv4.SamplingParams(seed=number)
        answer, reasoning = "", ""
        for event in engine.generate(
            messages, sampling, max_tokens=40, session=session, thinking=level
        ):
            answer += event.text if event.kind == "text" else ""
            reasoning += event.text if event.kind == "reasoning" else ""
        turn = {"role": "assistant", "content": answer, "reasoning_content": reasoning}
        messages.append(turn)
        read = engine.stats.prefill_tokens - before
        known = common(held, ids)
        turns.append(Turn(len(ids), len(ids) - known, read, known == len(held)))
    return turns


def _table(engine: localv4.Engine) -> None:
    for name, levels in _MODES.items():
        turns = converse(engine, engine.session(), levels)
        print(f"thinking {name}")
        for title in ("prompt", "new", "read"):
            figures = " | ".join(str(getattr(turn, title)) for turn in turns)
            print(f"| {title} | {figures} |")


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as parent,
        localv4.load(model(Path(parent) / "model")) as opened,
    ):
        _table(opened)
