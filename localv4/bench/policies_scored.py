"""Policies that compare keys: the engine's own, by decayed frequency, and the clairvoyant one.

The engine's uses `localv4.residency`, so that what is replayed is what runs.
"""

import heapq
from collections.abc import Collection, Iterator

import numpy as np

from localv4.bench.policies import Cache, Keys
from localv4.bench.traces import Trace
from localv4.residency import HALF_LIFE, Popularity

__all__ = ["Clairvoyant", "Popular"]


class Popular(Cache):
    """The resident key of the lowest score goes; a sweep's key stays if its score is higher.

    Parameters
    ----------
    n_slots, n_ring
        As `Cache`.
    n_keys
        Experts of all layers.
    half_life
        Tokens after which a choice counts half.
    spares
        A sweep evicts nothing of the layers that it has not passed yet: it will need them, and
        their scores do not have the chunk in them.
    """

    def __init__(
        self,
        n_slots: int,
        n_ring: int,
        n_keys: int,
        half_life: float = HALF_LIFE,
        spares: bool = False,
    ) -> None:
        super().__init__(n_slots, n_ring)
        self._spares = spares
        self._n_passed = n_keys
        self._popularity = Popularity(n_keys, half_life)
        self._keys: set[int] = set()
        self._absent = np.full(n_keys, np.inf)

    def __contains__(self, key: int) -> bool:
        """Whether a key is resident."""
        return key in self._keys

    def __len__(self) -> int:
        """Resident keys."""
        return len(self._keys)

    @property
    def keys(self) -> frozenset[int]:
        """Resident keys."""
        return frozenset(self._keys)

    def begin(self, n_tokens: int) -> None:
        """Let scores decay."""
        super().begin(n_tokens)
        self._popularity.begin(n_tokens)

    def count(self, choices: Keys, n_tokens: int) -> None:
        """Add to scores."""
        self._popularity.count(choices, n_tokens)
        if self._spares:
            self._n_passed = int(choices.max()) + 1

    def insert(self, key: int) -> None:
        """Put a key into a free slot."""
        self._keys.add(key)
        self._absent[key] = 0

    def evict(self, in_use: Collection[int]) -> None:
        """Drop the coldest key."""
        self.remove(self.coldest(in_use))

    def consider(self, key: int) -> None:
        """Keep a key with a higher score than the coldest one has."""
        if len(self._keys) >= self.limit:
            scores, absent = self._popularity.scores, self._absent
            costs = scores[: self._n_passed] + absent[: self._n_passed]
            coldest = int(costs.argmin())
            if scores[key] <= costs[coldest]:
                return
            self.remove(coldest)
        self.insert(key)

    def coldest(self, in_use: Collection[int]) -> int:
        """Return the resident key of the lowest score that is not in use."""
        scores = self._popularity.scores + self._absent
        scores[list(in_use)] = np.inf
        return int(scores.argmin())

    def remove(self, key: int) -> None:
        """Empty the slot of a key."""
        self._keys.remove(key)
        self._absent[key] = np.inf


class Clairvoyant(Cache):
    """Knows the trace: the key that is wanted last goes (Belady's optimum); none is better.

    Parameters
    ----------
    n_slots, n_ring
        As `Cache`.
    trace
        What will be replayed, once and from its beginning.
    """

    def __init__(self, n_slots: int, n_ring: int, trace: Trace) -> None:
        super().__init__(n_slots, n_ring)
        self._future = _next_uses(trace)
        self._due: dict[int, int] = {}
        self._latest: list[tuple[int, int]] = []  # heap of (-due, key), with entries of the past
        self._upcoming: dict[int, int] = {}

    def __contains__(self, key: int) -> bool:
        """Whether a key is resident."""
        return key in self._due

    def __len__(self) -> int:
        """Resident keys."""
        return len(self._due)

    def count(self, choices: Keys, n_tokens: int) -> None:
        """Go on in the trace."""
        self._upcoming = next(self._future)
        for key in self._upcoming:
            if key in self._due:
                self.insert(key)

    def insert(self, key: int) -> None:
        """Put a key into a free slot, or note when it is wanted again."""
        self._due[key] = self._upcoming[key]
        heapq.heappush(self._latest, (-self._due[key], key))

    def evict(self, in_use: Collection[int]) -> None:
        """Drop the key that is wanted last."""
        kept = []
        while self._last() in in_use:
            kept.append(heapq.heappop(self._latest))
        del self._due[heapq.heappop(self._latest)[1]]
        for entry in kept:
            heapq.heappush(self._latest, entry)

    def consider(self, key: int) -> None:
        """Keep a key that is wanted before the last one is."""
        if len(self) >= self.limit:
            if not self._due or self._upcoming[key] >= self._due[self._last()]:
                return
            self.evict(())
        self.insert(key)

    def _last(self) -> int:
        """Return the resident key that is wanted last, which is then on top of the heap."""
        while True:
            due, key = self._latest[0]
            if self._due.get(key) == -due:
                return key
            heapq.heappop(self._latest)


def _next_uses(trace: Trace) -> Iterator[dict[int, int]]:
    """Yield, for every layer of every chunk, when each of its keys is wanted again."""
    wanted = [np.unique(choices).tolist() for _, layers in trace.steps() for choices in layers]
    never = len(wanted)
    following: dict[int, int] = {}
    uses: list[dict[int, int]] = []
    for time in reversed(range(len(wanted))):
        # the farther of two that never come is as good as any
        uses.append({key: following.get(key, never) for key in wanted[time]})
        following.update(dict.fromkeys(wanted[time], time))
    while uses:
        yield uses.pop()
