"""Snapshots that a session keeps where its conversation may branch off again.

V4's compressed state cannot be rolled back, so coming back to an earlier token takes a snapshot
from there.  Knows nothing of conversations: whoever feeds the session says where to keep one.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from localv4.kv_cache import KVMark

__all__ = ["MOST_KEPT", "Kept"]

MOST_KEPT = 8
"""Each holds the state that does not grow: 15 MB for Flash."""


class Kept:
    """Marks in one history, by position."""

    def __init__(self) -> None:
        self._marks: list[KVMark] = []

    def __iter__(self) -> Iterator[KVMark]:
        """Return all, the earliest first."""
        return iter(self._marks)

    def has(self, position: int) -> bool:
        """Return whether there is one at a position."""
        return any(mark.ids.size == position for mark in self._marks)

    def add(self, mark: KVMark) -> None:
        """Keep a mark behind all others; if that is one too many, some other is dropped."""
        self._marks.append(mark)
        if len(self._marks) > MOST_KEPT:
            self.drop_one()

    def drop_one(self) -> bool:
        """Drop the one that is missed least; return whether there was any.

        The last two are where a conversation goes back to most, the first ends what all turns
        share; of the others that which is closest behind another.
        """
        if not self._marks:
            return False
        places = [0, *(mark.ids.size for mark in self._marks)]
        between = range(1, len(self._marks) - 2)
        chosen = min(between, key=lambda i: places[i + 1] - places[i], default=0)
        del self._marks[chosen]
        return True

    def drop_behind(self, position: int) -> None:
        """Drop all that are further on than a position."""
        self._marks = [mark for mark in self._marks if mark.ids.size <= position]

    def longest(self, ids: NDArray[np.int64]) -> KVMark | None:
        """Return the last mark whose tokens are a beginning of others, but not all of them."""
        for mark in reversed(self._marks):
            held = mark.ids
            if held.size < ids.size and np.array_equal(held, ids[: held.size]):
                return mark
        return None
