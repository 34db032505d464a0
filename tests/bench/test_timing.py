import time

import pytest

from localv4.bench.timing import fast, in_turns, lasting, median_ratio


def test_functions_take_turns():
    calls: list[tuple[str, int]] = []
    seconds = in_turns([lambda n: calls.append(("a", n)), lambda n: calls.append(("b", n))], 3)
    assert calls == [(name, turn) for turn in range(3) for name in "ab"]
    assert [len(times) for times in seconds] == [3, 3]
    assert all(time >= 0 for times in seconds for time in times)


def test_turns_go_on_for_the_time_asked():
    (seconds,) = in_turns([lambda _: None], 1, least_s=0.01)
    assert len(seconds) > 1


def test_what_is_short_is_called_again_and_again():
    calls: list[int] = []
    several, count = lasting(calls.append)
    assert count > 1
    calls.clear()
    several(7)
    assert calls == [7] * count


def test_what_is_long_is_called_once():
    calls: list[int] = []

    def long(turn: int) -> None:
        calls.append(turn)
        time.sleep(0.003)

    several, count = lasting(long)
    assert count == 1
    calls.clear()
    several(7)
    assert calls == [7]


def test_medians_and_the_fastest_seventh():
    assert median_ratio([2, 6, 40], [1, 2, 4]) == 3
    with pytest.raises(ValueError, match="shorter"):
        median_ratio([1, 2], [1])
    assert fast([3.0, 1.0, 2.0]) == 1.0
    assert fast(list(range(14))) == 2
