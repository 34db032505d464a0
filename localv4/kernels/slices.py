"""Rows cut into slices of columns, so that all threads have a share of a few rows.

What one thread has written lies in its core's cache; a few thousand numbers that one thread alone
fetches from there cost ten microseconds, and shared out hardly one.
"""

from dataclasses import dataclass

from localv4.kernels._jit import leaf

__all__ = ["Slices", "slice_of"]

_FEW_ROWS = 32
_COLUMNS = 256
_MOST = 32  # slices of all rows, about: threads take units one after the other, at 0.1 us each


@dataclass(frozen=True)
class Slices:
    """How rows are cut.

    Attributes
    ----------
    per_row
        Slices of a row.
    size
        Columns of a slice; the last one of a row may have fewer.
    """

    per_row: int
    size: int

    @classmethod
    def of(cls, n_rows: int, n_columns: int, grain: int = 16) -> "Slices":
        """Return slices of whole grains, by default lines: whole rows where there are many."""
        if n_rows >= _FEW_ROWS:
            return cls(1, max(n_columns, 1))
        size = max(_COLUMNS, n_rows * n_columns // _MOST)
        size = -(-size // grain) * grain
        return cls(max(-(-n_columns // size), 1), size)


@leaf
def slice_of(unit: int, per_row: int, size: int, n_columns: int) -> tuple[int, int, int]:
    """Return a unit's row, its first column and the one behind its last."""
    first = unit % per_row * size
    return unit // per_row, first, min(first + size, n_columns)
