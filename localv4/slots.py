"""Memory of one's own, in slots of equal size: taken as it is written to, given back at will.

The memory is anonymous and private, so that it counts once and exactly, and asks for huge pages,
into which a disk reads up to a third faster (study of streaming).  Knows nothing of what is kept
in a slot.
"""

import contextlib
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.sizes import up

__all__ = ["PAGE", "Slots", "give_back", "private_memory"]

PAGE = 4096
"""Slots begin at a multiple of it, and direct reads begin and end at one in the file."""
_HUGE_PAGE = 2**21

U8 = NDArray[np.uint8]


def private_memory(n_bytes: int, huge: bool = True) -> mmap.mmap:
    """Return anonymous memory that takes no room until it is written to.

    Unlike what `numpy.empty` returns, it goes back to the system as soon as nobody holds it.

    Parameters
    ----------
    n_bytes
        How much.
    huge
        Ask for huge pages, and round up to them.

    Raises
    ------
    OSError
        The system refuses to reserve so many addresses.
    """
    size = up(max(n_bytes, 1), _HUGE_PAGE if huge else PAGE)
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, size, flags=flags)
    advice: Any = getattr(mmap, "MADV_HUGEPAGE", None)
    if huge and advice is not None:
        # a kernel without huge pages reads more slowly, and that is all
        with contextlib.suppress(OSError):
            memory.madvise(advice)
    return memory


def give_back(memory: mmap.mmap, begin: int) -> None:
    """Give whole pages from a place on back to the system; they read as zeros then."""
    begin = up(begin, mmap.PAGESIZE)
    if begin < len(memory) and hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED, begin, len(memory) - begin)


class Slots:
    """Slots of equal size.

    Parameters
    ----------
    n_slots
        How many.
    slot_bytes
        A multiple of `PAGE`.

    Attributes
    ----------
    memory
        uint8 [n_slots * slot_bytes], beginning at a multiple of `PAGE`.
    """

    def __init__(self, n_slots: int, slot_bytes: int) -> None:
        assert slot_bytes % PAGE == 0, slot_bytes
        self.n_slots = n_slots
        self.slot_bytes = slot_bytes
        self._map = private_memory(n_slots * slot_bytes)
        self.memory: U8 = np.frombuffer(self._map, np.uint8)[: n_slots * slot_bytes]

    def view(self, slot: int) -> U8:
        """Return a slot's memory, uint8 [slot_bytes]."""
        return self.memory[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]

    def give_back(self, first: int) -> None:
        """Give the memory of all slots from this one on back to the system; they stay usable."""
        give_back(self._map, first * self.slot_bytes)
