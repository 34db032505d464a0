"""The real command line on an engine that recites: ``python -m tests.scripted_chat SCRIPT chat``.

SCRIPT is a JSON list of answers, see `Answer`; each question gets the next one, the last one again
and again. The engine says that it is Flash in 24 GiB. What it counts are words, and its speeds are
always the same, so that a screen shows the same each time. Knows nothing of terminals.
"""

import itertools
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import localv4
from localv4 import expected
from localv4.aliases import ALIASES
from localv4.cli.app import run_command
from localv4.errors import ContextOverflow
from localv4.events import Event, FinishReason, Usage
from localv4.inventory import take_inventory
from localv4.machine_rates import CpuRates
from localv4.memory import MemoryPlan
from localv4.releases import released_config
from localv4.token_work import token_work
from tests.cli.played_back import FakeEngine, FakeSession

__all__ = ["GO", "HELD", "Answer", "write_script"]

HELD, GO = ".held", ".go"
"""Files beside the script: one is there while an answer is held, the other lets it go on."""

_READS, _SPEAKS = 48.0, 5.2  # tokens a second, as statistics have it
_CHOSEN, _FOUND, _EXPERT_BYTES = 258, 232, 13_500_000  # experts of a token
_DISK = 3.5e9
_TOKEN = re.compile(r"\s*\S+(?:\s+\Z)?")
_ANSWER_IDS = 10_000  # what tells the tokens of two answers apart
_PIECES = 20  # in which a slow prompt is read
_LOOK_S = 0.005
_DRAWN_S = 0.12  # after which a line of progress is drawn anew
_MOST_HELD_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What is said to a question.

    Attributes
    ----------
    text, thinking
        Of the answer.
    read_s, token_s
        Seconds that the prompt takes, and each token.
    opens_s
        Seconds that the model takes to open, of the first answer.
    holds
        Before which of its tokens it waits until it is stopped, or a file lets it go on; at -1 in
        the middle of the prompt.
    """

    text: str
    thinking: str = ""
    read_s: float = 0.0
    token_s: float = 0.001
    opens_s: float = 0.0
    holds: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[tuple[str, str]]:
        """Kind and text of all tokens; the end of thinking and the end have no text."""
        thought = [("reasoning", word) for word in _TOKEN.findall(self.thinking)]
        ended = [("reasoning", "")] if thought else []
        return [*thought, *ended, *(("text", word) for word in _TOKEN.findall(self.text))]


def write_script(path: Path, answers: Sequence[Answer]) -> None:
    """Write what an engine is to recite."""
    path.write_text(json.dumps([asdict(answer) for answer in answers]))


class Words:
    """A tokenizer whose tokens are words."""

    def encode(self, text: str) -> list[int]:
        return [zlib.crc32(word.strip().encode()) for word in _TOKEN.findall(text)]


@dataclass
class Reciter(FakeEngine):
    """Gives one answer after the other."""

    script: Path = Path()
    answers: list[Answer] = field(default_factory=list)
    n_asked: int = 0
    tokenizer: Words = field(default_factory=Words)
    profile: str = "official"

    def generate(self, prompt: Any, progress: Any, **rest: Any) -> Any:
        begun = rest["begun"]
        number = begun[0] // _ANSWER_IDS if begun else self.n_asked
        self.n_asked = number + 1
        words = "\n".join(f"<{message['role']}> {message['content']}" for message in prompt)
        ids = self.tokenizer.encode(f"{words}\n<answer>")
        return Recital(self, min(number, len(self.answers) - 1), number, ids, progress, **rest)

    @property
    def prompt_format(self) -> Any:
        return SimpleNamespace(answer=self._answer)

    def _answer(self, ids: Sequence[int], thinking: str) -> tuple[str, str]:
        """Return thinking and text of an answer's first tokens."""
        number = ids[0] // _ANSWER_IDS if ids else 0
        tokens = self.answers[min(number, len(self.answers) - 1)].tokens[: len(ids)]
        kinds = ("reasoning", "text")
        reasoning, text = ("".join(said for at, said in tokens if at == kind) for kind in kinds)
        return reasoning, text

    def count(self, **more: float) -> None:
        """Add to what was done."""
        now = asdict(self.stats)
        self.stats = replace(self.stats, **{name: now[name] + more[name] for name in more})


class Recital:
    """The events of one answer."""

    def __init__(
        self,
        engine: Reciter,
        which: int,
        number: int,
        prompt: list[int],
        progress: Callable[[int, int], None],
        *,
        session: FakeSession,
        thinking: str,
        max_tokens: int | None,
        begun: Sequence[int],
        sampling: object,
    ) -> None:
        if len(prompt) > session.context:
            raise ContextOverflow(
                f"{len(prompt):,} tokens do not fit a context of {session.context:,}; shorten the "
                "input or ask for a larger context"
            )
        answer = engine.answers[which]
        if thinking == "off":
            answer = replace(answer, thinking="")
        self._engine, self._session, self._answer = engine, session, answer
        self._ids = [number * _ANSWER_IDS + place for place in range(len(answer.tokens) + 1)]
        self._n_begun, self._n_said = len(begun), 0
        self._max_tokens, self._progress = max_tokens, progress
        self._interrupted = False
        for _, text in answer.tokens[: len(begun)]:
            prompt += engine.tokenizer.encode(text)
        pairs = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(session.ids, prompt, strict=False)
        )
        n_same = len([*pairs])
        del session.ids[n_same:]
        self._unread = prompt[n_same:]

    @property
    def pending_ids(self) -> tuple[int, ...]:
        return tuple(self._unread)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._ids[self._n_begun : self._n_begun + self._n_said])

    def interrupt(self) -> None:
        self._interrupted = True

    def __iter__(self) -> Iterator[Event]:
        self._read()
        yield Event("prefill", usage=self._usage)
        reason: FinishReason | None = None
        while reason is None:
            reason = self._reason()
            if reason is None:
                yield self._next()
        if reason == "stop":
            self._n_said += 1  # the token that ends it
        yield Event("done", finish_reason=reason, usage=self._usage)

    @property
    def _usage(self) -> Usage:
        return Usage(0, self._n_said, 0)

    def _read(self) -> None:
        total = len(self._unread)
        for piece in range(_PIECES):
            if piece == _PIECES // 2 and -1 in self._answer.holds:
                self._hold()
            time.sleep(self._answer.read_s / _PIECES)
            n_done = total * (piece + 1) // _PIECES
            new = n_done - (total - len(self._unread))
            self._session.ids += self._unread[:new]
            del self._unread[:new]
            self._engine.count(prefill_tokens=new, prefill_s=new / _READS)
            self._progress(n_done, total)

    def _reason(self) -> FinishReason | None:
        """Return why no token follows, if none does."""
        if self._n_begun + self._n_said == len(self._answer.tokens):
            return "stop"
        if self._interrupted:
            return "interrupted"
        is_full = self._session.position >= self._session.context
        return "length" if is_full or self._n_said == self._max_tokens else None

    def _next(self) -> Event:
        place = self._n_begun + self._n_said
        kind, text = self._answer.tokens[place]
        time.sleep(self._answer.token_s)
        if place in self._answer.holds:
            self._hold()
        elif place + 1 in self._answer.holds:
            time.sleep(_DRAWN_S)
        self._n_said += 1
        self._session.ids += self._engine.tokenizer.encode(text)
        missed = _CHOSEN - _FOUND
        self._engine.count(
            decode_tokens=1, decode_s=1 / _SPEAKS, expert_hits=_FOUND, expert_misses=missed,
            bytes_read=missed * _EXPERT_BYTES, read_s=missed * _EXPERT_BYTES / _DISK,
        )  # fmt: skip
        return Event(kind, text, (self._ids[place],))  # type: ignore[arg-type]  # one of two

    def _hold(self) -> None:
        go, held = (self._engine.script.with_suffix(suffix) for suffix in (GO, HELD))
        held.touch()
        until = time.monotonic() + _MOST_HELD_S
        while not go.exists() and not self._interrupted and time.monotonic() < until:
            time.sleep(_LOOK_S)
        for file in (go, held):
            file.unlink(missing_ok=True)


def _engine(script: Path) -> Reciter:
    config = released_config(ALIASES["flash"].repo_id)
    gib = 2**30
    plan = MemoryPlan(
        dense=9 * gib, head=gib, experts=12 * gib, kv=gib // 2, workspace=gib // 2,
        process=gib // 2, total=23 * gib, budget=24 * gib, chunk_tokens=2048, streams=True,
        n_slots=954, slot_bytes=_EXPERT_BYTES, kv_most=7 * gib // 2,
    )  # fmt: skip
    answers = [Answer(**answer) for answer in json.loads(script.read_text())]
    time.sleep(answers[0].opens_s)
    engine = Reciter(config=config, plan=plan, script=script, answers=answers)
    engine.stats = replace(engine.stats, prefill_s=0, prefill_tokens=0, decode_s=0, decode_tokens=0)
    return engine


def _expected(config: Any, plan: MemoryPlan, *_: object) -> expected.Expectation:
    rates = CpuRates(memory=1.5e11, fp4=9e10, fp8=1e11, bf16=1.1e11, flops=4e12)
    return expected.expect(token_work(take_inventory(config)), plan, rates, _DISK, "skewed")


def main() -> int:
    """Run a command line on a script."""
    script, arguments = Path(sys.argv[1]), sys.argv[2:]
    vars(localv4).update(load=lambda *_, **__: _engine(script), kernels_are_cached=lambda: True)
    vars(expected).update(expected=_expected)
    return run_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
