"""Timing in turns: what is compared is measured side by side, and medians are taken."""

import statistics
import time
from collections.abc import Callable, Sequence

__all__ = ["fast", "in_turns", "lasting", "median_ratio"]

_LEAST_S = 1e-3


def in_turns(
    functions: Sequence[Callable[[int], None]], turns: int, least_s: float = 0.0
) -> list[list[float]]:
    """Time functions in turns.

    Parameters
    ----------
    functions
        Called with the number of the turn.
    turns, least_s
        How often at least, and for how long in all at least.

    Returns
    -------
    For each function its seconds, turn by turn.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    begun_s = time.perf_counter()
    turn = 0
    while turn < turns or time.perf_counter() - begun_s < least_s:
        for function, times in zip(functions, seconds, strict=True):
            started_s = time.perf_counter()
            function(turn)
            times.append(time.perf_counter() - started_s)
        turn += 1
    return seconds


def lasting(function: Callable[[int], None]) -> tuple[Callable[[int], None], int]:
    """Return a function that calls another as often as fills a millisecond, and how often that is.

    What takes some microseconds is measured at work, like the long loops that it is compared with,
    and not while caches, the clock and the matrix unit still are as the loop before left them.
    """
    function(0)
    started_s = time.perf_counter()
    function(0)
    count = max(1, round(_LEAST_S / max(time.perf_counter() - started_s, 1e-7)))

    def several(turn: int) -> None:
        for _ in range(count):
            function(turn)

    return several, count


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios, turn by turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def fast(seconds: Sequence[float]) -> float:
    """Return what the fastest seventh stays below.

    Of two functions these may come from different turns: where the machine changes its speed,
    their ratio is no share (`median_ratio` is).
    """
    return sorted(seconds)[len(seconds) // 7]
