"""Which snapshots a session keeps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localv4.kept import MOST_KEPT, Kept
from localv4.kv_cache import KVMark
from localv4.rows import Rows


def mark_at(ids: list[int]) -> KVMark:
    """Return a mark behind some tokens."""
    rows = Rows(4, max(len(ids), 1))
    rows.extend(len(ids)).view(np.int32)[:, 0] = ids
    return KVMark(np.zeros(1, np.uint8), (rows.mark(),), None)


def places(kept: Kept) -> list[int]:
    return [mark.ids.size for mark in kept]


def filled(*ends: int) -> Kept:
    kept = Kept()
    for end in ends:
        kept.add(mark_at(list(range(end))))
    return kept


@pytest.mark.parametrize(
    ("ids", "place"),
    [
        (range(100), 50),
        (range(50), 20),  # all of it would leave nothing to read
        (range(51), 50),
        (range(20), None),
        ([*range(49), 7, 8], 20),
        ([9, *range(99)], None),
    ],
)
def test_the_longest_beginning(ids, place):
    found = filled(20, 50).longest(np.array(ids))
    assert (None if found is None else found.ids.size) == place


def test_what_is_behind_is_dropped():
    kept = filled(20, 50, 70)
    kept.drop_behind(50)
    assert places(kept) == [20, 50]
    assert kept.has(50)
    assert not kept.has(70)


def test_the_first_and_the_last_two_stay():
    kept = filled(*range(10, 10 * (MOST_KEPT + 6), 10))
    assert len(places(kept)) == MOST_KEPT
    assert places(kept)[0] == 10
    assert places(kept)[-2:] == [10 * (MOST_KEPT + 4), 10 * (MOST_KEPT + 5)]


def test_what_costs_least_to_read_again_goes_first():
    kept = filled(100, 200, 205, 400, 500)
    assert kept.drop_one()
    assert places(kept) == [100, 200, 400, 500]


@given(st.sets(st.integers(1, 300), max_size=12))
def test_all_can_be_dropped(ends):
    kept = filled(*sorted(ends))
    count = len(places(kept))
    assert count == min(len(ends), MOST_KEPT)
    assert [kept.drop_one() for _ in range(count + 1)] == [True] * count + [False]
