"""Rows of bytes that grow at the end, and marks in them.

A cache only ever appends, so what it held earlier is the beginning of what it holds now: going
back is forgetting the end, as long as nobody needs that.  If a mark further on is still held, the
beginning is copied and the old memory left to the marks.

Knows nothing of what the rows mean.
"""

import contextlib
import mmap
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.errors import OutOfBudget
from localv4.sizes import format_bytes, up
from localv4.slots import PAGE, give_back, private_memory

__all__ = ["Block", "Rows", "RowsMark", "rows_bytes"]

U8 = NDArray[np.uint8]


def rows_bytes(n_rows: int, row_bytes: int) -> int:
    """Return the memory that rows take: whole pages."""
    return up(n_rows * row_bytes, PAGE)


class Block:
    """Memory for rows, reserved at once and taken as it is written to.

    Parameters
    ----------
    row_bytes
        Of each row.
    most
        How many rows there may be.

    Attributes
    ----------
    rows
        uint8 [most, row_bytes]: all of them, written or not.
    marks
        Who holds marks in it, weakly.

    Raises
    ------
    OutOfBudget
        The system refuses to reserve so many addresses.
    """

    def __init__(self, row_bytes: int, most: int) -> None:
        size = row_bytes * most
        try:
            self._map = private_memory(size, huge=False)
        except OSError as error:
            raise OutOfBudget(
                f"the system refuses to reserve {format_bytes(size)} for KV state ({error}); give "
                "a smaller context"
            ) from None
        advice: Any = getattr(mmap, "MADV_NOHUGEPAGE", None)
        if advice is not None:
            # a system that gives huge pages unasked would hold more than is counted
            with contextlib.suppress(OSError):
                self._map.madvise(advice)
        self.rows: U8 = np.frombuffer(self._map, np.uint8)[:size].reshape(most, row_bytes)
        self.marks: weakref.WeakSet[RowsMark] = weakref.WeakSet()
        self._n_written = 0

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self.n_bytes_with(0)

    def n_bytes_with(self, n_rows: int) -> int:
        """Return the bytes held once so many rows are written."""
        return rows_bytes(max(self._n_written, n_rows), int(self.rows.shape[1]))

    def write(self, n_rows: int) -> None:
        """Note that so many rows are written from now on."""
        self._n_written = max(self._n_written, n_rows)

    def needs(self, n_rows: int) -> bool:
        """Return whether a mark is held that needs more than the first rows."""
        return any(mark.count > n_rows for mark in self.marks)

    def forget(self, n_rows: int) -> None:
        """Give the memory of all rows but the first ones back to the system."""
        if n_rows < self._n_written:
            give_back(self._map, n_rows * int(self.rows.shape[1]))
            self._n_written = n_rows


@dataclass(frozen=True, eq=False)
class RowsMark:
    """The first rows of a block.

    Attributes
    ----------
    block
        Their memory.
    count
        How many.
    """

    block: Block
    count: int


class Rows:
    """Rows that grow at the end; the only writer of their block.

    Parameters
    ----------
    row_bytes
        Of each row.
    most
        How many there may be.

    Attributes
    ----------
    block
        Their memory.
    """

    def __init__(self, row_bytes: int, most: int) -> None:
        self.block = Block(row_bytes, most)
        self._count = 0

    @property
    def used(self) -> U8:
        """All rows, uint8 [n, row bytes]."""
        return self.memory[: self._count]

    @property
    def memory(self) -> U8:
        """The rows and the room for more: the same array until `go_to` has to copy."""
        return self.block.rows

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def n_bytes_with(self, n_rows: int) -> int:
        """Return the bytes held once there are so many rows."""
        return self.block.n_bytes_with(n_rows)

    def extend(self, count: int) -> U8:
        """Add rows, at most as many as there is room for, and return them for writing."""
        first, self._count = self._count, self._count + count
        assert self._count <= len(self.memory), (self._count, len(self.memory))
        self.block.write(self._count)
        return self.memory[first : self._count]

    def cut(self, count: int) -> None:
        """Forget all rows but the first ones; no mark needs them."""
        self._count = count
        self.block.forget(count)

    def clear(self) -> None:
        """Forget all rows, which marks may still need."""
        if self.block.needs(0):
            self.block = Block(int(self.memory.shape[1]), len(self.memory))
        self.cut(0)

    def mark(self) -> RowsMark:
        """Return what `go_to` returns to."""
        return self.mark_at(self._count)

    def mark_at(self, count: int) -> RowsMark:
        """Return a mark in the middle, for which `go_to` would forget the rest."""
        mark = RowsMark(self.block, count)
        self.block.marks.add(mark)
        return mark

    def cost_of(self, mark: RowsMark) -> int:
        """Return the bytes that `go_to` would take."""
        if self._shares(mark):
            return 0
        return rows_bytes(mark.count, int(self.memory.shape[1]))

    def go_to(self, mark: RowsMark) -> None:
        """Return to a mark, of these rows or of others of the same size."""
        if self._shares(mark):
            self.cut(mark.count)
            return
        size = int(self.memory.shape[1])
        block = Block(size, len(self.memory))
        block.rows[: mark.count] = mark.block.rows[: mark.count]
        block.write(mark.count)
        self.block, self._count = block, mark.count

    def _shares(self, mark: RowsMark) -> bool:
        return mark.block is self.block and not self.block.needs(mark.count)
