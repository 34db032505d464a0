"""One answer, token by token: prefill, sample, decode, and what the tokens say, as events.

Joins a session (ids in, logits out), a sampler, a tokenizer and the chat format's parser; knows
nothing of weights, templates or terminals. Source: DeepSeek-V4 encoding, sections 5 and 7.

A token is decoded only when the next one is wanted, so at the end the session lacks the last
sampled token: `Generation.pending_ids` says what to feed it before anything else.
"""

import operator
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from localv4.checks import whole_number
from localv4.encoding import ParseEvent, ThinkingMode
from localv4.encoding.literals import EOS, USER
from localv4.errors import ContextOverflow, InvalidInput
from localv4.events import Event, FinishReason, Timings, ToolCall, Usage
from localv4.reader import CompletionReader, read_all
from localv4.sampling import Sampler, TokenLogprob, token_logprob
from localv4.tokenizer import Tokenizer

__all__ = ["Generation", "TokenSession", "default_stop_ids", "generate"]


class TokenSession(Protocol):
    """What `generate` needs of a session: one sequence of tokens with its KV state."""

    @property
    def position(self) -> int:
        """Tokens held."""

    @property
    def chunk_tokens(self) -> int:
        """Most tokens that are appended at a time."""

    def prefill(
        self,
        ids: Sequence[int],
        logits: Literal["last", "none"] = "last",
        *,
        progress: Callable[[float], None] | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens; return the logits (vocab,) after the last one, or nothing.

        `progress` is called now and then with how many are done.
        """

    def keep(self) -> None:
        """Keep a snapshot of the present state, to come back to."""

    def decode(self, token_id: int) -> NDArray[np.float32]:
        """Append one token; return the logits (vocab,) after it.

        Raises `ContextOverflow`, with nothing changed, if the session is full.
        """


def default_stop_ids(tokenizer: Tokenizer | None, eos_token_id: int = 1) -> frozenset[int]:
    """Return the ids that end an answer: EOS, and USER for a model that opens the next turn."""
    ids = {eos_token_id}
    if tokenizer is not None:
        found = (tokenizer.control_id(literal) for literal in (EOS, USER))
        ids.update(token_id for token_id in found if token_id is not None)
    return frozenset(ids)


def generate(
    session: TokenSession,
    tokenizer: Tokenizer | None,
    prompt_ids: Sequence[int] | NDArray[np.integer],
    *,
    sampler: Sampler,
    max_tokens: int | None,
    stop: Sequence[str] = (),
    stop_ids: Collection[int] | None = None,
    thinking_mode: ThinkingMode | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    logprobs: int | None = None,
    branches: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
    begun: Sequence[int] = (),
) -> "Generation":
    """Start an answer; nothing is computed before the first event is asked for.

    Parameters
    ----------
    session
        Takes the prompt behind the tokens it already holds. Nobody else may feed it meanwhile.
    tokenizer
        None: events carry ids and no text.
    prompt_ids
        At least one token.
    sampler
        Chooses the tokens; its random sequence moves on by one for each.
    max_tokens
        Most tokens to sample; 0 only does the prefill, None goes on until the session is full.
    stop
        Strings that end the answer. The text before the first one to be complete is kept, the
        string itself is not. They are looked for in the answer only: not in reasoning, not in
        tool calls, and not across either.
    stop_ids
        Tokens that end the answer and say nothing; None means `default_stop_ids`.
    thinking_mode
        How the prompt ended: ``"thinking"`` behind the think token, ``"chat"`` behind its end.
        None: the completion is plain text, control tokens included.
    tools
        The tools offered, for the types of their arguments.
    logprobs
        Also give each token's logprob beside this many of the most likely ones.
    branches
        After how many tokens of the prompt the session keeps a snapshot.
    progress
        Called while the prompt is read, with how many of its tokens are done and how many there
        are.
    begun
        Tokens of this answer that were sampled before, all of them: it goes on behind them, as
        if it had never ended. The session holds those that `prompt_ids` does not end with.

    Returns
    -------
    Generation
        An iterator of `Event`. Errors of the session and the sampler come out of it unchanged;
        a full session only ends the answer, unless the prompt itself does not fit.

    Raises
    ------
    InvalidInput
        If the prompt is empty, an argument is out of its range, or what was begun is complete.
    """
    try:
        prompt = [operator.index(token_id) for token_id in prompt_ids]
    except TypeError:
        raise InvalidInput("prompt_ids holds something that is not a whole number") from None
    if not prompt:
        raise InvalidInput("the prompt has no tokens; give at least one (BOS begins a text)")
    if max_tokens is not None:
        max_tokens = whole_number("max_tokens", max_tokens, 0)
    if logprobs is not None:
        logprobs = whole_number("logprobs", logprobs, 0)
    for name, given in (("stop", stop), ("tools", tools)):
        if given is not None and not isinstance(given, Sequence):
            raise InvalidInput(f"{name} is {given!r}; give a list or leave it out")
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    reader = CompletionReader(tokenizer, thinking_mode, tools, strings)
    ends = frozenset(default_stop_ids(tokenizer) if stop_ids is None else stop_ids)
    if begun:
        if begun[-1] in ends:
            raise InvalidInput("the answer is complete, so it cannot go on")
        sampler.skip(len(begun))
        ended = CompletionReader(tokenizer, thinking_mode, tools, strings)
        _, let_out = read_all(ended, begun)
        reader.go_on(begun, "".join(event.text for event in let_out))
    return Generation(
        session, prompt, sampler, reader, max_tokens, ends, logprobs, branches, progress
    )


class Generation(Iterator[Event]):
    """The events of one answer; made by `generate`.

    May be abandoned between any two events: the session then holds all tokens but `pending_ids`.
    """

    def __init__(
        self,
        session: TokenSession,
        prompt: list[int],
        sampler: Sampler,
        reader: CompletionReader,
        max_tokens: int | None,
        stop_ids: frozenset[int],
        logprobs: int | None,
        branches: Collection[int],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._session = session
        self._start = session.position
        self._prompt = prompt
        self._sampler = sampler
        self._reader = reader
        self._max_tokens = max_tokens
        self._stop_ids = stop_ids
        self._n_logprobs = logprobs
        self._branches = branches
        self._progress = progress
        self._ids: list[int] = []
        self._n_sent = 0  # of _ids, in events so far
        self._unsent_logprobs: list[TokenLogprob] = []
        self._interrupted = False
        self._prefill_s = 0.0
        self._decode_s = 0.0
        self._events = self._run()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> Event:
        """Return the next event, computing what it needs."""
        return next(self._events)

    def close(self) -> None:
        """Abandon the answer; no further event comes."""
        self._events.close()

    def interrupt(self) -> None:
        """End the answer after the current token, with its held-back text and ``"done"``.

        While the prompt is read, after the current chunk of it: what was read stays read.

        Safe from a signal handler or another thread.
        """
        self._interrupted = True

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens sampled so far, whether an event has carried them or not."""
        return tuple(self._ids)

    @property
    def pending_ids(self) -> tuple[int, ...]:
        """Tokens of the prompt and the answer that the session does not hold.

        Once the prefill is done this is the last sampled token, or nothing. To go on, prefill
        the session with these and the new tokens; read it before anything else is fed.
        """
        return (*self._prompt, *self._ids)[self._session.position - self._start :]

    def _run(self) -> Generator[Event, None, None]:
        """Yield all events."""
        began = time.perf_counter()
        logits = self._read()
        self._prefill_s = time.perf_counter() - began
        finish_reason: FinishReason = "interrupted"
        if logits is not None:
            yield Event("prefill", usage=self._usage(), timings=self._timings())
            finish_reason = yield from self._answer(logits)
        was_stopped = self._reader.stopped
        yield from self._emit(self._reader.close())
        if self._reader.stopped and not was_stopped and finish_reason == "length":
            finish_reason = "stop"
        ids, logprobs = self._take_ids()
        yield Event(
            "done",
            ids=ids,
            logprobs=logprobs,
            finish_reason=finish_reason,
            dropped_call=self._reader.dropped_call,
            usage=self._usage(),
            timings=self._timings(),
        )

    def _read(self) -> NDArray[np.float32] | None:
        """Feed the prompt; return the logits behind it, None if interrupted."""
        total, first = len(self._prompt), 0
        while not self._interrupted:
            behind = [place for place in self._branches if place > first]
            last = min(first + self._session.chunk_tokens, total, *behind)
            logits = self._session.prefill(
                self._prompt[first:last],
                "last" if last == total else "none",
                progress=self._progress_from(first),
            )
            if last in self._branches:
                self._session.keep()
            if last == total:
                return logits
            first = last
        return None

    def _progress_from(self, first: int) -> Callable[[float], None] | None:
        progress, total = self._progress, len(self._prompt)
        return None if progress is None else lambda done: progress(first + int(done), total)

    def _answer(self, logits: NDArray[np.float32]) -> Generator[Event, None, FinishReason]:
        """Yield the events of sampled tokens; return why they ended."""
        while self._max_tokens is None or len(self._ids) < self._max_tokens:
            if self._interrupted:
                return "interrupted"
            began = time.perf_counter()
            if self._ids:
                try:
                    logits = self._session.decode(self._ids[-1])
                except ContextOverflow:
                    return "length"
            token_id = self._sampler.sample(logits)
            self._ids.append(token_id)
            if self._n_logprobs is not None:
                self._unsent_logprobs.append(token_logprob(logits, token_id, self._n_logprobs))
            self._decode_s += time.perf_counter() - began
            if token_id in self._stop_ids:
                yield from self._emit(self._reader.end(token_id))
                return "stop"
            yield from self._emit(self._reader.read(token_id))
            if self._reader.stopped:
                return "stop"
        return "length"

    def _emit(self, parsed: list[ParseEvent]) -> Iterator[Event]:
        """Turn what was read into events; the first one carries the tokens not yet sent."""
        for item in parsed:
            ids, logprobs = self._take_ids()
            call = None
            if item.kind == "tool_call":
                call = ToolCall(item.id, item.name, item.arguments)
            yield Event(item.kind, item.text, ids, logprobs, call)

    def _take_ids(self) -> tuple[tuple[int, ...], tuple[TokenLogprob, ...] | None]:
        """Return the tokens that no event has carried yet, and their logprobs if asked for."""
        ids = tuple(self._ids[self._n_sent :])
        self._n_sent = len(self._ids)
        if self._n_logprobs is None:
            return ids, None
        logprobs = tuple(self._unsent_logprobs)
        self._unsent_logprobs.clear()
        return ids, logprobs

    def _usage(self) -> Usage:
        return Usage(len(self._prompt), len(self._ids), self._reader.reasoning_tokens)

    def _timings(self) -> Timings:
        return Timings(self._prefill_s, self._decode_s)
