import os
import threading

import pytest

from localv4.errors import InvalidInput
from localv4.kernels.threads import choose_threads, computing, usable_cpus

MOST = os.cpu_count() or 1


def test_the_default_is_what_the_process_may_use():
    assert choose_threads(None) == usable_cpus() <= MOST


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs cannot be chosen here")
def test_the_default_follows_affinity():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert choose_threads(None) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("cpus", "beside_reads"), [(1, 1), (2, 2), (8, 8), (12, 11), (64, 63)])
def test_one_of_many_is_left_to_threads_that_read(monkeypatch, cpus: int, beside_reads: int):
    monkeypatch.setattr("localv4.kernels.threads.usable_cpus", lambda: cpus)
    assert choose_threads(None) == cpus
    assert choose_threads(None, beside_reads=True) == beside_reads
    assert choose_threads(MOST, beside_reads=True) == MOST


def test_a_wish_is_granted():
    assert [choose_threads(wish) for wish in range(1, MOST + 1)] == list(range(1, MOST + 1))


@pytest.mark.parametrize("wish", [0, -1, MOST + 1])
def test_an_impossible_wish_names_the_limits(wish: int):
    with pytest.raises(InvalidInput, match=rf"^threads is {wish}; .* from 1 to {MOST}$"):
        choose_threads(wish)


def fail_while_computing() -> None:
    with computing():
        raise RuntimeError("on purpose")


def compute_once() -> None:
    with computing():
        pass


def test_an_error_gives_the_right_back():
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_while_computing()
    worker = threading.Thread(target=compute_once, daemon=True)
    worker.start()
    worker.join(10)
    assert not worker.is_alive()


def test_two_threads_compute_one_after_the_other():
    inside, entered = threading.Event(), []

    def compute() -> None:
        inside.set()
        with computing():
            entered.append(True)

    worker = threading.Thread(target=compute)
    with computing():
        worker.start()
        assert inside.wait(10)
        worker.join(0.05)
        assert entered == []
    worker.join(10)
    assert entered == [True]
