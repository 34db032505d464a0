"""How long tokens take with experts on a disk, and what knowing them earlier would gain.

One thread computes and one disk reads: dense part, gate, misses submitted, hits computed, each
miss as it lands.  Before that, experts of layers to come may be read because they are known or
expected.  The cache is the engine's own policy.  A simulation: knows nothing of models.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from localv4.bench.lookahead_disk import Disk
from localv4.bench.policies_scored import Popular
from localv4.bench.traces import NOTHING, Trace

__all__ = ["MACHINES", "LookAhead", "Machine", "Timing", "simulate"]


@dataclass(frozen=True)
class Machine:
    """What a layer takes, in milliseconds: its dense part, an expert, reading an expert."""

    name: str
    dense_ms: float
    expert_ms: float
    read_ms: float


MACHINES = (Machine("2 cores", 8.7, 0.75, 8.0), Machine("16 cores", 1.7, 0.12, 3.0))


@dataclass(frozen=True)
class LookAhead:
    """What is known before a layer's gate.

    Attributes
    ----------
    name
        For tables.
    known
        Exactly: nothing; hash layers, from the token; the next layer too, at a layer's gate; the
        whole token.
    asked
        Whose predictions are followed (`Trace.predicted`), or None.
    width
        How many of the most likely are read.
    late
        Asked after a layer's experts, not at its gate.
    """

    name: str
    known: Literal["nothing", "hash", "next", "token"] = "hash"
    asked: str | None = None
    width: int = 0
    late: bool = False


@dataclass
class Timing:
    """What a simulation came to, in the part that was counted.

    Attributes
    ----------
    n_tokens, ms
        Decoded tokens and their time.
    wanted, missing
        Experts, and those of them that were neither resident at the gate nor being read.
    ahead, useful
        Reads begun before the gate, and those of them that the layer wanted.
    n_reads
        All reads.
    """

    n_tokens: int = 0
    ms: float = 0.0
    wanted: int = 0
    missing: int = 0
    ahead: int = 0
    useful: int = 0
    n_reads: int = 0

    @property
    def token_ms(self) -> float:
        """Milliseconds a token."""
        return self.ms / max(1, self.n_tokens)

    @property
    def recall(self) -> float:
        """Share of what was not resident whose read had begun before the gate."""
        return self.useful / max(1, self.useful + self.missing)

    @property
    def waste(self) -> float:
        """Reads for nothing per useful one."""
        return (self.ahead - self.useful) / max(1, self.useful)


def simulate(
    trace: Trace, n_slots: int, machine: Machine, ahead: LookAhead, warm_tokens: int
) -> Timing:
    """Let a trace's decoded tokens take their time; chunks only pass through the cache.

    Parameters
    ----------
    trace
        The choices, and the predictions that `ahead` asks for.
    n_slots
        Experts that the cache holds.
    machine
        How long everything takes.
    ahead
        What is read early.
    warm_tokens
        First tokens, which are not counted.
    """
    run = _Run(trace, n_slots, machine, ahead)
    before = None
    for first, layers in trace.steps():
        if before is None and first >= warm_tokens:
            before = run.so_far()
        if layers.shape[1] == 1:
            run.token(first, layers[:, 0])
        else:
            run.chunk(layers)
    after = run.so_far()
    if before is None:
        return Timing()
    return Timing(*(getattr(after, name) - getattr(before, name) for name in vars(after)))


class _Run:
    """A cache, a disk and a clock."""

    def __init__(self, trace: Trace, n_slots: int, machine: Machine, ahead: LookAhead) -> None:
        self._trace = trace
        self._machine = machine
        self._ahead = ahead
        self._cache = Popular(n_slots, 0, trace.n_keys)
        self._disk = Disk(machine.read_ms, self._admit)
        self._now_ms = 0.0
        self._coming: dict[int, set[int]] = {}  # by layer: keys read ahead
        self._in_use: set[int] = set()
        self._sums = Timing()

    def so_far(self) -> Timing:
        """Return sums from the beginning."""
        sums = self._sums
        return Timing(
            sums.n_tokens,
            self._now_ms,
            sums.wanted,
            sums.missing,
            sums.ahead,
            sums.useful,
            self._disk.n_reads,
        )

    def chunk(self, layers: NDArray[np.int64]) -> None:
        """Pass a chunk through the cache."""
        self._cache.begin(layers.shape[1])
        for choices in layers:
            self._cache.sweep(choices.reshape(-1), layers.shape[1], ring=True)

    def token(self, number: int, layers: NDArray[np.int64]) -> None:
        """Pass one token, keys [n_layers, k], through all layers."""
        ahead, n_layers = self._ahead, len(layers)
        self._cache.begin(1)
        self._sums.n_tokens += 1
        known = {"nothing": 0, "token": n_layers}.get(ahead.known, self._trace.n_hash_layers)
        for layer in range(known):
            self._expect(layer, list(dict.fromkeys(layers[layer].tolist())))
        for layer, choices in enumerate(layers):
            self._now_ms += self._machine.dense_ms
            missing = self._gate(layer, choices)
            following = layer + 1
            if known <= following < n_layers and not ahead.late:
                self._expect(following, self._likely(number, following, layers))
            self._experts(choices, missing)
            if known <= following < n_layers and ahead.late:
                self._expect(following, self._likely(number, following, layers))

    def _likely(self, number: int, layer: int, layers: NDArray[np.int64]) -> list[int]:
        """Return the keys that are expected in a layer."""
        if self._ahead.known == "next":
            return list(dict.fromkeys(layers[layer].tolist()))
        if self._ahead.asked is None:
            return []
        row = self._trace.predicted[self._ahead.asked][number, layer, : self._ahead.width]
        base = layer * self._trace.n_experts
        return [base + expert for expert in dict.fromkeys(row.tolist()) if expert != NOTHING]

    def _expect(self, layer: int, keys: list[int]) -> None:
        """Begin to read ahead what is missing, as far as half of the slots."""
        coming = self._coming.setdefault(layer, set())
        for key in keys:
            held = self._in_use.union(*self._coming.values())
            if key not in self._cache and len(held) < self._cache.n_slots // 2:
                coming.add(key)
        self._disk.submit(self._now_ms, [key for key in keys if key in coming], expected=True)

    def _admit(self, key: int) -> None:
        self._cache.admit(key, self._in_use.union(*self._coming.values()))

    def _gate(self, layer: int, choices: NDArray[np.int64]) -> list[int]:
        """Learn a layer's experts; return those to wait for."""
        back = self._disk.withdraw(self._now_ms, self._coming.get(layer, ()))
        begun = self._coming.pop(layer, set()) - back
        wanted = dict.fromkeys(choices.tolist())
        self._disk.forget(begun.difference(wanted))
        self._cache.count(choices, 1)
        self._in_use = set(wanted)
        useful = [key for key in wanted if key in begun]
        missing = [key for key in wanted if key not in self._cache]
        for key in missing:
            self._admit(key)
        self._disk.submit(self._now_ms, missing)
        self._sums.wanted += len(wanted)
        self._sums.missing += len(missing)
        self._sums.ahead += len(begun)
        self._sums.useful += len(useful)
        return useful + missing

    def _experts(self, choices: NDArray[np.int64], missing: list[int]) -> None:
        """Compute hits, then each expert that was missing as it lands."""
        n_hits = len(set(choices.tolist())) - len(missing)
        self._now_ms += n_hits * self._machine.expert_ms
        for landed_ms in self._disk.landings(missing):
            self._now_ms = max(self._now_ms, landed_ms) + self._machine.expert_ms
