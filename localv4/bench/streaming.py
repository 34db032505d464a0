"""Decode and prefill of a model that does not fit: beside the disk's best, and beside their bound.

The disk's best is what the same readers reach, in the same run, when they are always asked for
some experts at random.  The bound of a token is the sum over its layers of the dense part and the
longer of two: reading its missing experts at the disk's best, or computing with its experts.  Both
parts are those that were measured in the very token.  Memory is sampled all the while.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.block import hidden_buffer
from localv4.checkpoint import Checkpoint
from localv4.disk import reading_speed, shuffled_experts
from localv4.errors import InvalidInput
from localv4.kernels import tiers
from localv4.kernels.threads import choose_threads, computing
from localv4.kv_cache import KVCache
from localv4.limits import resident
from localv4.memory import MemoryPlan, make_plan
from localv4.model import Model
from localv4.sampling import Sampler, SamplingParams
from localv4.sizes import format_bytes
from localv4.slots import PAGE, Slots
from localv4.step import Step
from localv4.streams import Streams

__all__ = ["measure_streaming"]

_Say = Callable[[str], None]
_DEPTH = 6  # experts that are always asked for while the disk's best is measured
_DISK_S = 1.5
_ROUNDS = 4  # of the disk's best, between which tokens are decoded
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
    For JSON: plan; prompts (seconds, tokens_s, hits, misses, read_gb, read_gb_s of each); token_s
    (median), tokens_s (of all), hit_share, misses (a token), bound_s, bound_ratio (median of token
    over its bound), disk_gb_s (the best), read_gb_s (while reads were outstanding) and disk_share;
    wait_s a token; peak_bytes; verified (experts compared, or None).

    Raises
    ------
    InvalidInput
        All weights fit into the budget.
    LocalV4Error
        The checkpoint cannot be run.
    """
    n_threads = choose_threads(threads)
    with (
        Checkpoint.open(folder) as checkpoint,
        computing(),
        _opened(checkpoint, budget, n_threads) as (plan, streams),
        _Peak() as peak,
    ):
        model = Model(streams.weights, streams.store, n_threads)
        run = _Run(model, streams, plan.chunk_tokens, n_prompt + n_warm + n_tokens)
        say("reading the dense weights ...")
        for group in range(-1, len(model.blocks)):
            streams.weights.wait(group)
        disk = _Disk(checkpoint, streams)
        disk.measure()
        prompts = []
        for number in range(2):
            say(f"reading a prompt of {n_prompt:,} tokens, {number + 1} of 2 ...")
            prompts.append(run.prompt(n_prompt))
        say(f"decoding {n_warm:,} tokens ...")
        for _ in range(n_warm):
            run.token()
        say(f"decoding and measuring {n_tokens:,} tokens ...")
        measured = []
        for number in range(n_tokens):
            if number % max(1, n_tokens // _ROUNDS) == 0:
                disk.measure()
            measured.append(run.token())
        verified = streams.store.verify() if check else None
        best = statistics.median(disk.bytes_s)
        return {
            "tier": tiers.active(),
            "threads": n_threads,
            "layers": len(model.blocks),
            "plan": {name: value for name, value in vars(plan).items() if name != "notes"},
            "notes": plan.notes,
            "prompts": prompts,
            "tokens": n_tokens,
            **_summary(measured, best),
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
    """The speed at which the same readers read experts at random."""

    def __init__(self, checkpoint: Checkpoint, streams: Streams) -> None:
        self.bytes_s: list[float] = []
        self._store = streams.store
        self._slots = Slots(_DEPTH, self._store.records.slot_bytes)
        self._slots.memory[::PAGE] = 0
        self._experts = cycle(shuffled_experts(checkpoint))

    def measure(self) -> None:
        """Measure once more."""
        store = self._store
        self.bytes_s.append(
            reading_speed(store.readers, store.records, self._experts, self._slots, _DISK_S)
        )


@dataclass
class _Token:
    """What one token took; of each layer: seconds of all but experts, of experts, bytes read."""

    seconds: float
    head_s: float
    wait_s: float
    busy_s: float
    n_bytes: int
    hits: int
    misses: int
    dense_s: list[float] = field(default_factory=list)
    experts_s: list[float] = field(default_factory=list)
    layer_bytes: list[int] = field(default_factory=list)

    def bound_s(self, bytes_s: float) -> float:
        """Return the sum over layers of dense and the longer of reads and experts, and the head."""
        layers = zip(self.dense_s, self.experts_s, self.layer_bytes, strict=True)
        return self.head_s + sum(d + max(n / bytes_s, e) for d, e, n in layers)


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
        self._model.logits(hidden[-1:], True, self._logits)
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

    def token(self) -> _Token:
        """Decode a token, layer by layer as `Model.forward` does, and take the time of each."""
        model, counters, readers = self._model, self._store.counters, self._store.readers
        step = self._fed(np.array([self._sampler.sample(self._logits[0])], np.int64))
        began_s = time.perf_counter()
        token = _Token(
            0.0, 0.0, counters.wait_s, readers.busy_s, readers.bytes_read, counters.hits,
            counters.misses,
        )  # fmt: skip
        seconds: dict[str, float] = {}
        model.workspaces.seconds = seconds
        asked = self._store.asked.copy()
        workspace = model.workspaces.get(1, True)
        embedded = model.embed(step.ids)
        model.begin(step)
        hidden = hidden_buffer(model.config, workspace)
        hidden.reshape(1, model.config.hc_mult, -1)[:] = embedded[:, None]
        for block in model.blocks:
            before = time.perf_counter(), seconds.get("experts", 0.0), counters.wait_s
            block.forward(self._cache.layers[block.layer], step, workspace)
            experts_s = seconds.get("experts", 0.0) - before[1]
            whole_s = time.perf_counter() - before[0]
            token.experts_s.append(experts_s)
            token.dense_s.append(whole_s - experts_s - (counters.wait_s - before[2]))
        asked = self._store.asked - asked
        token.layer_bytes += (asked * self._store.records.expert_bytes).tolist()
        before_head_s = time.perf_counter()
        model.logits(hidden, True, self._logits)
        model.workspaces.seconds = None
        ended_s = time.perf_counter()
        token.head_s, token.seconds = ended_s - before_head_s, ended_s - began_s
        token.wait_s = counters.wait_s - token.wait_s
        token.busy_s = readers.busy_s - token.busy_s
        token.n_bytes = readers.bytes_read - token.n_bytes
        token.hits, token.misses = counters.hits - token.hits, counters.misses - token.misses
        return token


def _summary(tokens: list[_Token], best_bytes_s: float) -> dict[str, Any]:
    total_s, busy_s = sum(t.seconds for t in tokens), sum(t.busy_s for t in tokens)
    hits, misses = sum(t.hits for t in tokens), sum(t.misses for t in tokens)
    read_bytes_s = sum(t.n_bytes for t in tokens) / busy_s if busy_s else None
    return {
        "token_s": statistics.median(t.seconds for t in tokens),
        "tokens_s": len(tokens) / total_s,
        "hit_share": hits / (hits + misses),
        "misses": misses / len(tokens),
        "read_bytes": sum(t.n_bytes for t in tokens) / len(tokens),
        "bound_s": statistics.median(t.bound_s(best_bytes_s) for t in tokens),
        "bound_ratio": statistics.median(t.seconds / t.bound_s(best_bytes_s) for t in tokens),
        "dense_s": statistics.median(sum(t.dense_s) + t.head_s for t in tokens),
        "experts_s": statistics.median(sum(t.experts_s) for t in tokens),
        "wait_s": statistics.median(t.wait_s for t in tokens),
        "disk_gb_s": best_bytes_s / 1e9,
        "read_gb_s": None if read_bytes_s is None else read_bytes_s / 1e9,
        "disk_share": None if read_bytes_s is None else read_bytes_s / best_bytes_s,
    }
