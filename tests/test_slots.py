import mmap

import numpy as np
import psutil
import pytest

from localv4.slots import PAGE, Slots, private_memory


def held_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def test_slots_do_not_overlap_and_begin_at_pages() -> None:
    slots = Slots(5, 3 * PAGE)
    assert slots.memory.size == 15 * PAGE
    for slot in range(5):
        view = slots.view(slot)
        assert view.size == 3 * PAGE
        assert view.ctypes.data % PAGE == 0
        view[:] = slot + 1
    assert [int(slots.view(slot).min()) for slot in range(5)] == [1, 2, 3, 4, 5]
    assert [int(slots.view(slot).max()) for slot in range(5)] == [1, 2, 3, 4, 5]


def test_a_slot_of_half_pages_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        Slots(2, PAGE + 1)


def test_memory_is_taken_when_it_is_written_and_can_be_given_back() -> None:
    mebi = 2**20
    before = held_bytes()
    slots = Slots(64, mebi)
    assert held_bytes() - before < 8 * mebi
    slots.memory[::PAGE] = 7
    assert held_bytes() - before > 60 * mebi
    slots.give_back(16)
    assert held_bytes() - before < 28 * mebi
    assert bool((slots.view(15)[::PAGE] == 7).all())
    # usable as before, from zeros
    assert not slots.view(16).any()
    slots.view(63)[:] = 9
    assert int(slots.view(63)[-1]) == 9


def test_giving_back_nothing_is_nothing() -> None:
    slots = Slots(2, PAGE)
    slots.memory[:] = 3
    slots.give_back(2)
    assert bool((slots.memory == 3).all())


def test_giving_back_where_the_system_has_larger_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "PAGESIZE", 16 * PAGE)
    slots = Slots(64, PAGE)
    slots.memory[:] = 3
    slots.give_back(17)
    assert bool((slots.memory[: 32 * PAGE] == 3).all())
    assert not slots.memory[32 * PAGE :].any()


def test_no_slots_at_all() -> None:
    slots = Slots(0, PAGE)
    slots.give_back(0)
    assert slots.memory.size == 0


def test_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    memory = np.frombuffer(private_memory(10), np.uint8)
    assert memory.size >= 10
    assert not memory.any()
