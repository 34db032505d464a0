"""Which expert is in which slot, which slots are free, and which one to give up next.

Knows nothing of reading, nor of what an expert consists of but for its words.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from localv4.kernels.matmul import MATRIX_WORDS
from localv4.reads import Read
from localv4.weights import ExpertWeights

__all__ = ["Guard", "SlotBooks"]


class Guard(IntEnum):
    """How far a slot is from being given up."""

    NOBODY = 0  # wants the expert now
    EXPECTED = 1  # by a layer to come
    WANTED = 2  # by the layer at hand
    HELD = 3  # being computed with


class SlotBooks:
    """The books of a number of slots.

    Parameters
    ----------
    n_slots
        How many.
    scores
        float64 [n_keys], of all experts, kept up to date by somebody else: the lowest goes first.

    Attributes
    ----------
    n_slots
        Slots in use.
    free
        Slots without an expert.
    resident
        Slot and matrices of every expert in memory, by key.
    words
        int64 [n_keys, 3, MATRIX_WORDS]: `ExpertWeights.words` of the same, and zeros.
    reading
        Slot and read of every expert that is being read.
    keys
        int64 [n_slots]: the resident expert of a slot, or -1.
    guards
        int8 [n_slots], of resident experts and of those being read.
    """

    def __init__(self, n_slots: int, scores: NDArray[np.float64]) -> None:
        self.n_slots = n_slots
        self.free = list(range(n_slots))[::-1]
        self.resident: dict[int, tuple[int, ExpertWeights]] = {}
        self.reading: dict[int, tuple[int, Read]] = {}
        self.keys: NDArray[np.int64] = np.full(n_slots, -1)
        self.guards: NDArray[np.int8] = np.zeros(n_slots, np.int8)
        self.words: NDArray[np.int64] = np.zeros((scores.size, 3, MATRIX_WORDS), np.int64)
        self._scores = scores

    def guard(self, key: int, guard: Guard) -> None:
        """Guard an expert that is resident or being read; others are left alone."""
        known = self.resident.get(key) or self.reading.get(key)
        if known is not None:
            self.guards[known[0]] = guard

    def expect(self, key: int) -> None:
        """Guard a resident expert for a layer to come, unless it is guarded better."""
        slot = self.resident[key][0]
        self.guards[slot] = max(self.guards[slot], Guard.EXPECTED)

    def take(
        self, guard: Guard = Guard.NOBODY, after: int = -1, below: int | None = None
    ) -> int | None:
        """Return a slot: a free one, or that of the least popular expert; None if there is none.

        Parameters
        ----------
        guard
            Up to which guard experts may be evicted.  Of those that the layer at hand wants, it is
            the last one, and only if its key is above `after`.
        after
            See `guard`.
        below
            Rather evict experts whose keys are lower: those of later layers are about to be needed.
        """
        if self.free:
            return self.free.pop()
        resident = self.keys[: self.n_slots] >= 0
        guards = self.guards[: self.n_slots]
        for level in range(guard + 1):
            slots = np.flatnonzero(resident & (guards == level))
            if level == Guard.WANTED:
                slots = slots[self.keys[slots] > after]
            if slots.size:
                nobody = level == Guard.NOBODY
                slot = self._coldest(slots, below) if nobody else self._last(slots)
                self.evict(slot)
                return slot
        return None

    def is_worth_keeping(self, key: int, below: int) -> bool:
        """Whether an expert is more popular than one with a key below that could be evicted."""
        if self.free:
            return True
        keys = self.keys[: self.n_slots]
        others = keys[(keys >= 0) & (keys < below) & (self.guards[: self.n_slots] == Guard.NOBODY)]
        return bool(others.size) and bool(self._scores[others].min() < self._scores[key])

    def enter(self, key: int, slot: int, weights: ExpertWeights) -> None:
        """Note that an expert is in a slot."""
        self.keys[slot] = key
        self.resident[key] = slot, weights
        self.words[key] = weights.words

    def evict(self, slot: int) -> None:
        """Forget a slot's expert; the slot is the caller's."""
        self._forget(slot)
        self.keys[slot] = -1
        self.guards[slot] = Guard.NOBODY

    def release(self, slot: int) -> None:
        """Make a slot free, without its expert if it has one."""
        self.evict(slot)
        self.free.append(slot)

    def resize(self, n_slots: int) -> None:
        """Use only so many slots, at most as many as at first; none beyond is being read to."""
        if n_slots >= self.n_slots:
            self.free = [*range(self.n_slots, n_slots)][::-1] + self.free
        else:
            for slot in range(n_slots, self.n_slots):
                self._forget(slot)
            self.keys[n_slots:] = -1
            self.guards[n_slots:] = Guard.NOBODY
            self.free = [slot for slot in self.free if slot < n_slots]
        self.n_slots = n_slots

    @property
    def add_up(self) -> bool:
        """Whether every slot is accounted for and nothing is lent."""
        n_known = len(self.free) + len(self.resident) + len(self.reading)
        return n_known == self.n_slots and not bool((self.guards > Guard.EXPECTED).any())

    def make_anew(self) -> None:
        """Make the books from what is resident; nothing is being read."""
        taken = {slot: key for key, (slot, _) in self.resident.items()}
        self.words[:] = 0
        for key, (_, weights) in self.resident.items():
            self.words[key] = weights.words
        self.keys[:] = -1
        self.keys[list(taken)] = list(taken.values())
        self.guards[:] = Guard.NOBODY
        self.free = [slot for slot in range(self.n_slots)[::-1] if slot not in taken]

    def _forget(self, slot: int) -> None:
        """Forget that a slot's expert is resident, if it has one."""
        # tolerant: Ctrl-C may have come between two of these lines before
        key = int(self.keys[slot])
        if key >= 0:
            self.resident.pop(key, None)
            self.words[key] = 0

    def _coldest(self, slots: NDArray[np.intp], below: int | None) -> int:
        keys = self.keys[slots]
        if below is not None and bool((keys < below).any()):
            slots, keys = slots[keys < below], keys[keys < below]
        return int(slots[self._scores[keys].argmin()])

    def _last(self, slots: NDArray[np.intp]) -> int:
        return int(slots[self.keys[slots].argmax()])
