"""How rows are cut for threads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localv4.kernels.slices import Slices, slice_of


@given(st.integers(1, 40), st.integers(1, 20_000), st.sampled_from([16, 128, 256, 512]))
def test_slices_cover_every_row_once(n_rows: int, n_columns: int, grain: int):
    slices = Slices.of(n_rows, n_columns, grain)
    assert slices.per_row == 1 or slices.size % grain == 0
    covered: list[tuple[int, int]] = []
    for unit in range(n_rows * slices.per_row):
        row, first, last = slice_of(unit, slices.per_row, slices.size, n_columns)
        assert last > first
        covered += [(row, column) for column in (first, last - 1)]
        assert first == (0 if unit % slices.per_row == 0 else covered[-3][1] + 1)
        if unit % slices.per_row == slices.per_row - 1:
            assert last == n_columns
    assert covered == sorted(covered)


@pytest.mark.parametrize("n_rows", [1, 6, 8, 31])
def test_there_is_work_for_many_threads_and_not_much_more(n_rows: int):
    for n_columns in (2048, 4096):
        slices = Slices.of(n_rows, n_columns, 256)
        assert 8 <= n_rows * slices.per_row <= 62
