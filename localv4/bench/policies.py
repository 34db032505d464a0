"""Caches of experts replayed on a routing trace: what one is, and how it is driven.

A decoded token's experts of a layer are in use together: all of them get a slot, and none of
them is evicted for another.  A chunk sweeps through the union of its tokens' experts, either
through the cache, or through a ring of slots that leaves hits where they are.  Plain Python, to
be read; knows nothing of memory, disks or time.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localv4.bench.traces import Trace
from localv4.errors import InvalidInput

__all__ = ["Cache", "Keys", "Outcome", "oldest", "replay"]

Keys = NDArray[np.int64]


class Cache:
    """Keys in slots; a policy says which one goes.

    Parameters
    ----------
    n_slots
        Keys that it may hold.
    n_ring
        Of those, slots that are empty while a chunk sweeps.
    """

    def __init__(self, n_slots: int, n_ring: int = 0) -> None:
        self.n_slots = self.limit = n_slots
        self._n_ring = n_ring

    def __contains__(self, key: int) -> bool:
        """Whether a key is resident."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Resident keys."""
        raise NotImplementedError

    def touch(self, key: int) -> None:
        """Note that a resident key was used."""

    def insert(self, key: int) -> None:
        """Put a key into a free slot."""
        raise NotImplementedError

    def evict(self, in_use: Collection[int]) -> None:
        """Empty the slot of a key that is not in use."""
        raise NotImplementedError

    def count(self, choices: Keys, n_tokens: int) -> None:
        """Learn what a chunk's tokens chose in a layer: a key for each choice."""

    def admit(self, key: int, in_use: Collection[int]) -> None:
        """Give a missing key a slot."""
        while len(self) >= self.limit:
            self.evict(in_use)
        self.insert(key)

    def consider(self, key: int) -> None:
        """Keep a key that a sweep has read, if it is worth it: here, if a slot is free."""
        if len(self) < self.limit:
            self.insert(key)

    def begin(self, n_tokens: int) -> None:
        """Let a chunk of tokens begin; one that sweeps needs the ring."""
        self.limit = self.n_slots - (self._n_ring if n_tokens > 1 else 0)
        while len(self) > self.limit:
            self.evict(())

    def use(self, choices: Keys) -> int:
        """Pass one token through a layer; return how many experts were missing."""
        wanted = list(dict.fromkeys(choices.tolist()))
        missing = [key for key in wanted if key not in self]
        self.count(choices, 1)
        for key in wanted:
            if key in self:
                self.touch(key)
        for key in missing:
            self.admit(key, wanted)
        return len(missing)

    def sweep(self, choices: Keys, n_tokens: int, ring: bool) -> int:
        """Pass a chunk through a layer; return how many experts were missing."""
        union = np.unique(choices).tolist()
        missing = [key for key in union if key not in self]
        self.count(choices, n_tokens)
        if ring:
            for key in missing:
                self.consider(key)
        else:
            for key in union:
                if key in self:
                    self.touch(key)
                else:
                    self.admit(key, (key,))
        return len(missing)


@dataclass(frozen=True)
class Outcome:
    """What a replay came to, in the part that was counted.

    Attributes
    ----------
    wanted, missing
        Experts of decoded tokens, and those of them that had to be read.
    n_sweeps, swept
        Chunks, and experts that they had to read in all.
    """

    wanted: int
    missing: int
    n_sweeps: int
    swept: int

    @property
    def hit_rate(self) -> float:
        """Share of the decoded tokens' experts that were resident."""
        return 1 - self.missing / self.wanted if self.wanted else 1.0


def replay(
    trace: Trace,
    cache: Cache,
    warm_tokens: int,
    ring: bool = True,
    seen: Callable[[Cache], None] = lambda cache: None,
) -> Outcome:
    """Pass a trace through a cache.

    Parameters
    ----------
    trace
        The choices.
    cache
        Empty.
    warm_tokens
        First tokens, which are not counted.
    ring
        Whether chunks sweep through a ring or through the cache.
    seen
        Shown the cache after every layer.

    Raises
    ------
    InvalidInput
        The cache has fewer slots than a token's experts of a layer.
    """
    if cache.n_slots - cache._n_ring < trace.chosen.shape[2]:
        raise InvalidInput(
            f"a cache of {cache.n_slots} experts is too small for the {trace.chosen.shape[2]} of "
            "one layer; give a larger share"
        )
    wanted = missing = n_sweeps = swept = 0
    for first, layers in trace.steps():
        n_tokens = layers.shape[1]
        counted = first >= warm_tokens
        cache.begin(n_tokens)
        n_sweeps += counted and n_tokens > 1
        for choices in layers:
            if n_tokens == 1:
                n_missing = cache.use(choices[0])
                if counted:
                    wanted += len(set(choices[0].tolist()))
                    missing += n_missing
            else:
                n_missing = cache.sweep(choices.reshape(-1), n_tokens, ring)
                swept += n_missing if counted else 0
            seen(cache)
    return Outcome(wanted, missing, n_sweeps, swept)


def oldest(order: Iterable[int], in_use: Collection[int]) -> int:
    """Return the first key that is not in use."""
    return next(key for key in order if key not in in_use)
