"""Policies that keep keys in queues: LRU, 2Q, S3-FIFO; and pinning, which keeps what it has.

Each is written as its paper describes it and as small as it goes; to compare with, not to use.
"""

from collections import OrderedDict
from collections.abc import Collection
from itertools import chain

import numpy as np

from localv4.bench.policies import Cache, Keys, oldest
from localv4.bench.traces import Trace

__all__ = ["Lru", "Pinned", "S3Fifo", "TwoQueues"]

Order = OrderedDict[int, None]


class Lru(Cache):
    """The key that was used longest ago goes."""

    def __init__(self, n_slots: int, n_ring: int = 0) -> None:
        super().__init__(n_slots, n_ring)
        self._order: Order = OrderedDict()

    def __contains__(self, key: int) -> bool:
        """Whether a key is resident."""
        return key in self._order

    def __len__(self) -> int:
        """Resident keys."""
        return len(self._order)

    def touch(self, key: int) -> None:
        """Make a key the youngest."""
        self._order.move_to_end(key)

    def insert(self, key: int) -> None:
        """Add the youngest key."""
        self._order[key] = None

    def evict(self, in_use: Collection[int]) -> None:
        """Drop the oldest key."""
        del self._order[oldest(self._order, in_use)]

    def use(self, choices: Keys) -> int:
        """Pass one token through a layer; its experts' order must not depend on what missed."""
        n_missing = super().use(choices)
        for key in choices.tolist():
            self.touch(key)
        return n_missing


class TwoQueues(Cache):
    """Two LRU queues: new keys wait in one, those used again are protected in the other."""

    def __init__(self, n_slots: int, n_ring: int = 0, protected: float = 0.5) -> None:
        super().__init__(n_slots, n_ring)
        self._waiting: Order = OrderedDict()
        self._protected: Order = OrderedDict()
        self._share = protected

    def __contains__(self, key: int) -> bool:
        """Whether a key is resident."""
        return key in self._waiting or key in self._protected

    def __len__(self) -> int:
        """Resident keys."""
        return len(self._waiting) + len(self._protected)

    def touch(self, key: int) -> None:
        """Protect a key; the oldest protected one may have to wait again."""
        self._waiting.pop(key, None)
        self._protected[key] = None
        self._protected.move_to_end(key)
        if len(self._protected) > self.n_slots * self._share:
            self._waiting[self._protected.popitem(last=False)[0]] = None

    def insert(self, key: int) -> None:
        """Let a new key wait."""
        self._waiting[key] = None

    def evict(self, in_use: Collection[int]) -> None:
        """Drop the oldest key that waits; if all of those are in use, the oldest protected."""
        key = oldest(chain(self._waiting, self._protected), in_use)
        self._waiting.pop(key, None)
        self._protected.pop(key, None)


class S3Fifo(Cache):
    """Yang et al. 2023: a small queue for new keys, a main one, ghosts of those that left early."""

    def __init__(self, n_slots: int, n_ring: int = 0, small: float = 0.1) -> None:
        super().__init__(n_slots, n_ring)
        self._small: Order = OrderedDict()
        self._main: Order = OrderedDict()
        self._ghosts: Order = OrderedDict()
        self._uses: dict[int, int] = {}
        self._n_small = max(1, int(n_slots * small))

    def __contains__(self, key: int) -> bool:
        """Whether a key is resident."""
        return key in self._uses

    def __len__(self) -> int:
        """Resident keys."""
        return len(self._uses)

    def touch(self, key: int) -> None:
        """Count a use, up to three."""
        self._uses[key] = min(3, self._uses[key] + 1)

    def insert(self, key: int) -> None:
        """Add a key to the small queue, or to the main one if it left not long ago."""
        known = key in self._ghosts
        self._ghosts.pop(key, None)
        (self._main if known else self._small)[key] = None
        self._uses[key] = 0

    def evict(self, in_use: Collection[int]) -> None:
        """Let keys move on until one drops out."""
        before = len(self)
        while len(self) == before:
            if len(self._small) >= self._n_small or not self._main:
                self._leave_small(in_use)
            else:
                self._leave_main(in_use)

    def _leave_small(self, in_use: Collection[int]) -> None:
        key, _ = self._small.popitem(last=False)
        if self._uses[key] or key in in_use:
            self._main[key] = None
            self._uses[key] = 0
            return
        del self._uses[key]
        self._ghosts[key] = None
        if len(self._ghosts) > self.n_slots:
            self._ghosts.popitem(last=False)

    def _leave_main(self, in_use: Collection[int]) -> None:
        key, _ = self._main.popitem(last=False)
        if self._uses[key] or key in in_use:
            self._uses[key] = max(0, self._uses[key] - 1)
            self._main[key] = None
        else:
            del self._uses[key]


class Pinned(Cache):
    """The experts that the first tokens of a trace chose most; nothing else ever stays.

    Parameters
    ----------
    n_slots, n_ring
        As `Cache`.
    trace
        The choices.
    n_tokens
        How many of its first tokens are counted.
    """

    def __init__(self, n_slots: int, n_ring: int, trace: Trace, n_tokens: int) -> None:
        super().__init__(n_slots, n_ring)
        base = np.arange(trace.n_layers)[:, None] * trace.n_experts
        keys = (trace.chosen[:n_tokens] + base).reshape(-1)
        counts = np.bincount(keys, minlength=trace.n_keys)
        self._keys = set(np.argsort(-counts, kind="stable")[:n_slots].tolist())

    def __contains__(self, key: int) -> bool:
        """Whether a key is resident."""
        return key in self._keys

    def __len__(self) -> int:
        """Resident keys."""
        return len(self._keys)

    def begin(self, n_tokens: int) -> None:
        """Keep what is there."""

    def admit(self, key: int, in_use: Collection[int]) -> None:
        """Keep what is there."""

    def consider(self, key: int) -> None:
        """Keep what is there."""
