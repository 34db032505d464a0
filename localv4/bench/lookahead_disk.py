"""A disk that reads one expert after the other, as events in time: what is wanted comes first.

A read that has begun goes on to its end; one that has not can be taken back.  Time is in
milliseconds and only moves on.  Knows nothing of caches or layers.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable

__all__ = ["Disk"]


class Disk:
    """Two queues before one reader.

    Parameters
    ----------
    read_ms
        Of one expert.
    begun
        Told of every expected read that begins; so its slot need not be taken before.

    Attributes
    ----------
    n_reads
        Reads begun.
    """

    def __init__(self, read_ms: float, begun: Callable[[int], None]) -> None:
        self.n_reads = 0
        self._begun = begun
        self._read_ms = read_ms
        self._free_ms = 0.0
        self._wanted: deque[int] = deque()
        self._expected: deque[int] = deque()
        self._landed_ms: dict[int, float] = {}

    def submit(self, now_ms: float, keys: Iterable[int], expected: bool = False) -> None:
        """Queue reads, behind those that are queued; expected ones behind all wanted ones."""
        self.run(now_ms)
        (self._expected if expected else self._wanted).extend(keys)

    def withdraw(self, now_ms: float, keys: Collection[int]) -> set[int]:
        """Take back expected reads; return those that had not begun."""
        self.run(now_ms)
        back = {key for key in self._expected if key in keys}
        self._expected = deque(key for key in self._expected if key not in back)
        return back

    def forget(self, keys: Iterable[int]) -> None:
        """Let reads that have begun end without being waited for."""
        for key in keys:
            del self._landed_ms[key]

    def landings(self, keys: Iterable[int]) -> list[float]:
        """Return when reads that were submitted end, first ones first, and forget them.

        The caller does nothing else until the last one has begun.
        """
        times = []
        for key in keys:
            while key not in self._landed_ms:
                self._begin()
            times.append(self._landed_ms.pop(key))
        return sorted(times)

    def run(self, now_ms: float) -> None:
        """Begin all reads that begin before a moment."""
        while (self._wanted or self._expected) and self._free_ms < now_ms:
            self._begin()
        self._free_ms = max(self._free_ms, now_ms)

    def _begin(self) -> None:
        expected = not self._wanted
        key = (self._expected if expected else self._wanted).popleft()
        self._free_ms += self._read_ms
        self._landed_ms[key] = self._free_ms
        self.n_reads += 1
        if expected:
            self._begun(key)
