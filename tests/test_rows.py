"""Rows and marks in them, against plain copies."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import localv4.rows
from localv4.errors import OutOfBudget
from localv4.rows import Rows, rows_bytes
from localv4.slots import PAGE

WIDTH, MOST = 12, 2000

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.integers(0, 300)),
        st.tuples(st.just("mark"), st.just(0)),
        st.tuples(st.just("go"), st.integers(0, 5)),
        st.tuples(st.just("drop"), st.integers(0, 5)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=200)
@given(STEPS)
def test_marks_hold_what_they_marked(steps):
    rows, expected, marks = Rows(WIDTH, MOST), np.empty((0, WIDTH), np.uint8), []
    rng = np.random.default_rng(0)
    for what, number in steps:
        if what == "extend":
            count = min(number, MOST - len(rows))
            new = rng.integers(0, 256, (count, WIDTH), np.uint8)
            rows.extend(count)[:] = new
            expected = np.concatenate([expected, new])
        elif what == "mark":
            marks.append((rows.mark(), expected))
        elif what == "clear":
            rows.clear()
            expected = expected[:0]
        elif marks and what == "go":
            mark, expected = marks[number % len(marks)]
            before, cost = rows.block, rows.cost_of(mark)
            rows.go_to(mark)
            assert (cost == 0) == (rows.block is before or len(rows) == 0)
        elif marks:
            del marks[number % len(marks)]
        assert len(rows) == len(expected)
        np.testing.assert_array_equal(rows.used, expected)
        for mark, content in marks:
            np.testing.assert_array_equal(mark.block.rows[: mark.count], content)


def test_going_back_shares_the_memory_and_gives_it_back():
    rows = Rows(PAGE, 100)
    rows.extend(10)[:] = 1
    mark = rows.mark()
    block = rows.block
    rows.extend(80)[:] = 2
    assert block.n_bytes == 90 * PAGE
    rows.go_to(mark)
    assert rows.block is block
    assert block.n_bytes == 10 * PAGE == rows_bytes(10, PAGE)
    assert (rows.used == 1).all()


def test_rows_that_a_later_mark_needs_are_copied():
    rows = Rows(PAGE, 100)
    rows.extend(10)[:] = 1
    early = rows.mark()
    rows.extend(10)[:] = 2
    late = rows.mark()
    old = weakref.ref(rows.block)
    assert rows.cost_of(early) == 10 * PAGE
    rows.go_to(early)
    assert rows.block is not old()
    rows.extend(10)[:] = 3
    assert (late.block.rows[10:20] == 2).all()
    del early, late
    gc.collect()
    assert old() is None


def test_rows_of_others_are_copied():
    one, other = Rows(WIDTH, 10), Rows(WIDTH, 10)
    one.extend(3)[:] = 7
    mark = one.mark()
    other.go_to(mark)
    other.extend(1)[:] = 9
    one.extend(1)[:] = 8
    assert (one.used[:3] == other.used[:3]).all()
    assert (one.used[3] == 8).all()
    assert (other.used[3] == 9).all()


def test_memory_is_taken_as_it_is_written_to():
    rows = Rows(64, 10**7)
    assert rows.block.n_bytes == 0
    assert rows.n_bytes_with(3) == PAGE
    rows.extend(65)[:] = 1
    assert rows.block.n_bytes == 2 * PAGE
    assert rows.n_bytes_with(3) == 2 * PAGE


def test_no_addresses_left(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(localv4.rows, "private_memory", refuse)
    with pytest.raises(OutOfBudget, match="smaller context"):
        Rows(64, 10**6)


def test_more_rows_than_there_is_room_for():
    rows = Rows(64, 2)
    with pytest.raises(AssertionError):
        rows.extend(3)
