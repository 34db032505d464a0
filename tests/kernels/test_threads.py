import threading

import numba
import pytest

from localv4.errors import InvalidInput
from localv4.kernels.threads import choose_threads, computing

MOST = int(numba.config.NUMBA_NUM_THREADS)


def test_the_default_is_no_more_than_the_machine_has():
    assert 1 <= choose_threads(None) <= MOST


def test_a_wish_is_granted():
    assert [choose_threads(wish) for wish in range(1, MOST + 1)] == list(range(1, MOST + 1))


@pytest.mark.parametrize("wish", [0, -1, MOST + 1])
def test_an_impossible_wish_names_the_limits(wish: int):
    with pytest.raises(InvalidInput, match=rf"^threads is {wish}; .* from 1 to {MOST}$"):
        choose_threads(wish)


def test_the_count_holds_inside_and_is_put_back():
    before = numba.get_num_threads()
    with computing(1):
        assert numba.get_num_threads() == 1
        with computing(MOST):
            assert numba.get_num_threads() == MOST
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before


def fail_while_computing() -> None:
    with computing(1):
        raise RuntimeError("on purpose")


def compute_once() -> None:
    with computing(1):
        pass


def test_an_error_gives_the_right_back():
    before = numba.get_num_threads()
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_while_computing()
    assert numba.get_num_threads() == before
    worker = threading.Thread(target=compute_once, daemon=True)
    worker.start()
    worker.join(10)
    assert not worker.is_alive()


def test_two_threads_compute_one_after_the_other():
    inside, entered = threading.Event(), []

    def compute() -> None:
        inside.set()
        with computing(1):
            entered.append(numba.get_num_threads())

    worker = threading.Thread(target=compute)
    with computing(1):
        worker.start()
        assert inside.wait(10)
        worker.join(0.05)
        assert entered == []
    worker.join(10)
    assert entered == [1]
