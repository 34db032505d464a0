"""An engine that plays back events, and what it is made of.

Commands run on it quickly, and say the same each time. Knows nothing of pytest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from localv4.errors import ContextOverflow
from localv4.events import Event, Usage
from localv4.memory import MemoryPlan
from localv4.state_file import read_head, state_bytes, write_state
from localv4.stats import Stats

__all__ = ["FakeEngine", "FakeFormat", "FakeSession", "Playback", "done", "event"]


def event(kind: Any, text: str = "", **rest: Any) -> Event:
    return Event(kind, text, **rest)


def done(reason: Any = "stop") -> Event:
    return Event("done", ids=(1,), finish_reason=reason, usage=Usage(5, 2, 1))


@dataclass
class FakeSession:
    """Holds tokens, and saves them without a state; `refusal` is raised by `load`."""

    context: int = 2**20
    ids: list[int] = field(default_factory=list)
    refusal: BaseException | None = None
    n_mended: int = 0

    @property
    def position(self) -> int:
        return len(self.ids)

    @property
    def kv_bytes(self) -> int:
        return 3514 * self.position

    def reset(self) -> None:
        self.ids = []

    def mend(self) -> None:
        self.n_mended += 1

    def check_fits(self, ids: list[int], rewound: bool) -> None:
        if len(ids) > self.context:
            raise ContextOverflow(f"{len(ids)} tokens do not fit a context of {self.context}")

    def rewind(self, ids: list[int]) -> None:
        self.ids = []

    def prefill(self, ids: list[int], logits: str) -> None:
        self.ids = [*self.ids, *ids]

    def keep(self) -> None:
        pass

    def saved_bytes(self, facts: dict[str, Any]) -> int:
        return state_bytes(self._head(facts), {})

    def save(self, path: Path, facts: dict[str, Any]) -> int:
        return write_state(path, self._head(facts), {})

    def load(self, path: Path) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.ids = read_head(path)["state"]

    def _head(self, facts: dict[str, Any]) -> dict[str, Any]:
        return {"n_tokens": self.position, **facts, "state": self.ids}


class FakeFormat:
    """Turns text into its bytes, and messages into those of their contents."""

    def ids(self, prompt: Any, thinking: str, tools: Any = None) -> tuple[list[int], None]:
        if not isinstance(prompt, str):
            prompt = "".join(str(message["content"]) for message in prompt)
        return [*prompt.encode()], None

    def answer(self, ids: tuple[int, ...], thinking: str) -> tuple[str, str]:
        return "", ""


class Playback:
    """Events; an exception among them is raised, a function called.

    A number is how many of the prompt's tokens are read now.
    """

    def __init__(self, steps: list[Any], progress: Callable[[int, int], None]) -> None:
        self._steps = iter(steps)
        self._progress = progress
        self._interrupted = False
        self._n_read = 0
        self._ids: list[int] = []

    @property
    def pending_ids(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 5)[self._n_read :]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._ids)

    def interrupt(self) -> None:
        self._interrupted = True

    def __iter__(self) -> Iterator[Event]:
        for step in self._steps:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, int):
                self._n_read = step
                self._progress(step, 5)
            elif callable(step):
                step()
            else:
                self._ids += step.ids
                yield step
            if self._interrupted:
                yield done("interrupted")
                return


@dataclass
class FakeEngine:
    """Answers everything with `events`."""

    events: list[Any] = field(default_factory=lambda: [event("text", "Hello"), done()])
    is_base: bool = False
    tokenizer: object | None = "a tokenizer"
    profile: str = "preview"
    threads: int = 2
    default_thinking: str = "high"
    config: Any = field(
        default_factory=lambda: SimpleNamespace(
            max_position_embeddings=2**20,
            num_hidden_layers=3,
            n_routed_experts=8,
            num_experts_per_tok=2,
        )
    )
    plan: MemoryPlan = field(default_factory=lambda: MemoryPlan(1, 2, 3, 4, 5, 6, 7, 2**30, 1024))
    stats: Stats = field(
        default_factory=lambda: Stats(
            prefill_s=0.5, prefill_tokens=5, decode_s=1.0, decode_tokens=2
        )
    )
    refusal: BaseException | None = None
    closed: bool = False
    loaded: dict[str, Any] = field(default_factory=dict)
    later: list[list[Any]] = field(default_factory=list)  # events of this answer and the next ones
    asked: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[int | None] = field(default_factory=list)

    def session(self, context: int | None = None) -> FakeSession:
        self.contexts.append(context)
        return FakeSession(context or self.config.max_position_embeddings, refusal=self.refusal)

    def generate(self, prompt: Any, progress: Any, **rest: Any) -> "Playback":
        self.asked.append({"prompt": [*prompt] if isinstance(prompt, list) else prompt, **rest})
        return Playback(self.later.pop(0) if self.later else self.events, progress)

    @property
    def prompt_format(self) -> FakeFormat:
        return FakeFormat()

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
