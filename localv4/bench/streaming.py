"""Decode and prefill of a model that does not fit: beside the disk's best, and beside their bound.

The disk's best is what as many readers reach when they are always asked for some experts at
random.  The bound of a token is the sum over its layers of the dense part and the longer of two:
reading what was asked of the disk for this layer at its best, or computing with its experts.  What
is computed is measured in the same run, in every fourth token, which is timed part by part and
does not count otherwise.  Memory is sampled all the while.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.bench.streamed_tokens import Round, Token, summary
from localv4.checkpoint import Checkpoint
from localv4.disk import RandomExperts
from localv4.errors import InvalidInput
from localv4.kernels import tiers
from localv4.kernels._jit import kernels_are_cached
from localv4.kernels.threads import choose_threads, computing
from localv4.kernels.warm import warm_up
from localv4.kv_cache import KVCache
from localv4.limits import resident
from localv4.memory import MemoryPlan, make_plan
from localv4.model import Model
from localv4.reads import Readers
from localv4.sampling import Sampler, SamplingParams
from localv4.sizes import format_bytes
from localv4.step import Step
from localv4.streaming import StreamedExperts
from localv4.streams import Streams

__all__ = ["measure_streaming"]

_Say = Callable[[str], None]
_DISK_S = 0.25
_ROUNDS = 24
_TIMED = 3  # tokens that count for one that is timed part by part
_SAMPLE_S = 0.01


def measure_streaming(
    folder: Path,
    budget: int | None,
    n_prompt: int,
    n_warm: int,
    n_tokens: int,
    threads: int | None,
    check: bool,
    say: _Say,
) -> dict[str, Any]:
    """Measure prompts of random tokens and an answer that the model samples.

    Parameters
    ----------
    folder, budget, threads
        As for `localv4.load`; the budget must be too small for the weights.
    n_prompt
        Tokens of the prompt, read twice: the second time with what the first one left in memory.
    n_warm
        Tokens decoded before those that are measured.
    n_tokens
        Tokens to measure.
    check
        Compare all resident experts with the file in the end.
    say
        Told what is done.

    Returns
    -------
    For JSON: plan; prompts (seconds, tokens_s, hits, misses, read_gb, read_gb_s of each); what
    `summary` makes of the tokens; peak_bytes; verified (experts compared, or None).

    Raises
    ------
    InvalidInput
        All weights fit into the budget.
    LocalV4Error
        The checkpoint cannot be run.
    """
    n_threads = choose_threads(threads, beside_reads=True)
    if not kernels_are_cached():
        warm_up(lambda begun, count: say(f"compiling: {begun} of {count} ..."))
    with (
        Checkpoint.open(folder) as checkpoint,
        computing(),
        _opened(checkpoint, budget, n_threads) as (plan, streams),
        _Disk(checkpoint, streams.store) as disk,
        _Peak() as peak,
    ):
        model = Model(streams.weights, streams.store, n_threads)
        n_all = n_prompt + n_warm + n_tokens + -(-n_tokens // _TIMED)
        run = _Run(model, streams, plan.chunk_tokens, n_all)
        say("reading the dense weights ...")
        for group in range(-1, len(model.blocks)):
            streams.weights.wait(group)
        disk.bytes_s()
        prompts = []
        for number in range(2):
            say(f"reading a prompt of {n_prompt:,} tokens, {number + 1} of 2 ...")
            prompts.append(run.prompt(n_prompt))
        say(f"decoding {n_warm:,} tokens ...")
        for _ in range(n_warm):
            run.token()
        say(f"decoding and measuring {n_tokens:,} tokens ...")
        rounds = []
        before = disk.bytes_s()
        for numbers in np.array_split(np.arange(n_tokens), min(_ROUNDS, n_tokens)):
            tokens = run.tokens(numbers)
            after = disk.bytes_s()
            beside = disk.bytes_s_beside(run.head)
            rounds.append(Round(tokens, (before + after) / 2, beside))
            before = after
        verified = streams.store.verify() if check else None
        return {
            "tier": tiers.active(),
            "threads": n_threads,
            "layers": len(model.blocks),
            "plan": {name: value for name, value in vars(plan).items() if name != "notes"},
            "notes": plan.notes,
            "prompts": prompts,
            "tokens": n_tokens,
            **summary(rounds),
            "peak_bytes": peak.n_bytes,
            "verified": verified,
        }


@contextmanager
def _opened(
    checkpoint: Checkpoint, budget: int | None, threads: int
) -> Iterator[tuple[MemoryPlan, Streams]]:
    plan = make_plan(checkpoint, budget, threads, True, False)
    if not plan.streams:
        raise InvalidInput(
            f"all weights fit into {format_bytes(plan.budget)}, so nothing is streamed; give a "
            "smaller --memory"
        )
    streams = Streams(checkpoint, plan, False)
    try:
        yield plan, streams
    finally:
        streams.close()


class _Peak:
    """The most memory of its own that the process held, sampled on a thread."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            held = resident()
            self.n_bytes = max(self.n_bytes, held.anonymous + held.shared)


class _Disk:
    """The speed at which such readers as the store's read experts at random."""

    def __init__(self, checkpoint: Checkpoint, store: StreamedExperts) -> None:
        self._experts = RandomExperts(checkpoint)
        # of its own, as what the store's read counts as what tokens read
        self._readers = Readers(store.readers.files, store.readers.n_threads)

    def __enter__(self) -> "_Disk":
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.close()

    def bytes_s(self) -> float:
        """Measure it now."""
        return self._experts.bytes_s(self._readers, _DISK_S)

    def bytes_s_beside(self, compute: Callable[[], None]) -> float:
        """Measure it while this thread calls something that computes."""
        with ThreadPoolExecutor(1) as pool:
            measured = pool.submit(self.bytes_s)
            while not measured.done():
                compute()
            return measured.result()


class _Run:
    """A sequence of random tokens through a model that streams."""

    def __init__(self, model: Model, streams: Streams, chunk_tokens: int, context: int) -> None:
        self._model = model
        self._store = streams.store
        self._chunk_tokens = chunk_tokens
        self._context = context
        self._cache = self._empty()
        self._position = 0
        self._rng = np.random.default_rng(0)
        self._logits = np.empty((1, model.config.vocab_size), np.float32)
        self._hidden = np.zeros((1, model.config.hc_mult * model.config.hidden_size), np.float32)
        self._sampler = Sampler(SamplingParams(seed=0))

    def _empty(self) -> KVCache:
        return KVCache(self._model.config, trained=True, mtp=False, context=self._context)

    def _step(self, count: int) -> Step:
        ids = self._rng.integers(0, self._model.config.vocab_size, count)
        return self._fed(ids)

    def _fed(self, ids: NDArray[np.int64]) -> Step:
        step = Step(ids, self._position, True, self._model.rope)
        self._position += ids.size
        return step

    def prompt(self, n_tokens: int) -> dict[str, Any]:
        """Read a prompt from an empty state."""
        self._cache = self._empty()
        self._position = 0
        counters, readers = self._store.counters, self._store.readers
        before = counters.hits, counters.misses, readers.bytes_read, readers.busy_s
        began_s = time.perf_counter()
        for first in range(0, n_tokens, self._chunk_tokens):
            step = self._step(min(self._chunk_tokens, n_tokens - first))
            hidden = self._model.forward(self._cache, step)
        self._hidden[:] = hidden[-1:]
        self.head()
        seconds = time.perf_counter() - began_s
        n_bytes, busy_s = readers.bytes_read - before[2], readers.busy_s - before[3]
        return {
            "tokens": n_tokens,
            "seconds": seconds,
            "tokens_s": n_tokens / seconds,
            "hits": counters.hits - before[0],
            "misses": counters.misses - before[1],
            "read_gb": n_bytes / 1e9,
            "read_gb_s": n_bytes / busy_s / 1e9 if busy_s else None,
            "outstanding_share": busy_s / seconds,
        }

    def head(self) -> None:
        """Compute logits once more: weights pass through all threads."""
        self._model.logits(self._hidden, True, self._logits)

    def tokens(self, numbers: Iterable[int]) -> list[Token]:
        """Decode a token for each number, and one before some of them that is timed."""
        tokens = []
        for number in numbers:
            if number % _TIMED == 0:
                tokens.append(self.token(timed=True))
            tokens.append(self.token())
        return tokens

    def token(self, timed: bool = False) -> Token:
        """Decode a token as `localv4.load`'s engine does; if timed, part by part."""
        model, counters, readers = self._model, self._store.counters, self._store.readers
        step = self._fed(np.array([self._sampler.sample(self._logits[0])], np.int64))
        asked, before = self._store.asked.copy(), replace(counters)
        busy_s, n_bytes = readers.busy_s, readers.bytes_read
        parts: dict[str, float] | None = {} if timed else None
        model.workspaces.seconds = parts
        began_s = time.perf_counter()
        self._hidden[:] = model.forward(self._cache, step)
        self.head()
        seconds = time.perf_counter() - began_s
        model.workspaces.seconds = None
        asked = (self._store.asked - asked) * self._store.records.expert_bytes
        return Token(
            seconds,
            counters.wait_s - before.wait_s,
            readers.busy_s - busy_s,
            readers.bytes_read - n_bytes,
            counters.hits - before.hits,
            counters.misses - before.misses,
            asked.tolist(),
            parts,
        )
