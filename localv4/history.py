"""The KV state of one session: whole or torn, what of its past is kept, and room for more of it.

Knows nothing of models or of what the tokens are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from localv4.errors import LocalV4Error, OutOfBudget
from localv4.kept import Kept
from localv4.kv_cache import KVCache, KVMark
from localv4.kv_ledger import KVLedger
from localv4.session_state import take_state
from localv4.state_file import StateFile

__all__ = ["History"]


class History:
    """The present state and marks in its past; who calls sees to it that nobody else computes.

    Parameters
    ----------
    cache
        The present state, which there is room for.
    ledger
        Of all KV state.

    Attributes
    ----------
    cache, kept
        The state, and what is kept of its past.
    """

    def __init__(self, cache: KVCache, ledger: KVLedger) -> None:
        self.cache = cache
        self.kept = Kept()
        self._ledger = ledger
        self._torn = False
        self._admitted: int | None = None
        ledger.enter(cache)

    def check_whole(self) -> None:
        """Raise LocalV4Error if a step was interrupted, or is running, that left half of itself."""
        if self._torn:
            raise LocalV4Error(
                "the session's state is not whole, because a step was interrupted or is still "
                "running in another thread; restore a snapshot, reset it or start a new session"
            )

    @contextmanager
    def stepping(self, n_tokens: int) -> Iterator[None]:
        """Grow by some tokens inside.

        What fails leaves the state as it was; a single token's would cost more to note than it is
        worth, so then the state is torn.

        Raises
        ------
        OutOfBudget
            There is no room, even with nothing kept.
        """
        position = self.cache.ids.size
        # the KV state grows with every fourth token at most, and with a page
        quarter = (position + n_tokens) // 4
        if quarter != self._admitted:
            self._admit(self.cache.n_bytes_at(position + n_tokens) - self.cache.n_bytes)
            self._admitted = quarter
        self._torn = True
        if n_tokens > 1:
            self.cache.remember()
        try:
            yield
        except BaseException:
            if n_tokens > 1:
                self.cache.take_back()
                self._torn, self._admitted = False, None
            raise
        self._torn = False

    def mark(self) -> KVMark:
        """Return a mark of the present state.

        Raises
        ------
        OutOfBudget
            There is no room for what does not grow.
        """
        self._admit(self.cache.fixed.nbytes)
        mark = self.cache.mark()
        self._ledger.enter(mark)
        return mark

    def go_to(self, mark: KVMark) -> None:
        """Make a mark the present state.

        Raises
        ------
        OutOfBudget
            There is no room for it; nothing has changed.
        """
        self._admit(self.cache.cost_of(mark))
        self._torn = True
        self.cache.go_to(mark)
        self._torn, self._admitted = False, None

    def reset(self) -> None:
        """Forget everything."""
        self.kept = Kept()
        self.cache.clear()
        self._torn, self._admitted = False, None

    def keep(self) -> None:
        """Keep a mark of the present state, if there is room and something to keep."""
        position = self.cache.ids.size
        if position and not self.kept.has(position):
            with suppress(OutOfBudget):
                self.kept.add(self.mark())

    def rewind(self, ids: NDArray[np.int64]) -> None:
        """Go back to the longest beginning of these tokens that is held, and not all of them."""
        held = self.cache.ids
        if self._torn or held.size >= ids.size or not np.array_equal(held, ids[: held.size]):
            self._go_to_kept(self.kept.longest(ids))

    def mend(self) -> None:
        """If the state is torn, go back to the last that was kept."""
        if self._torn:
            self._go_to_kept(next(reversed([*self.kept]), None))

    def load(self, file: StateFile, n_tokens: int, kept: Sequence[int]) -> None:
        """Read the state from a file, which `take_state` explains.

        Raises
        ------
        DamagedSession, OutOfBudget
            Nothing is held then.
        """
        self.reset()
        try:
            fixed = len(kept) * self.cache.fixed.nbytes
            self._ledger.admit(self.cache.n_bytes_at(n_tokens) - self.cache.n_bytes + fixed)
            self._torn = True
            marks = take_state(file, self.cache, n_tokens, kept)
        except BaseException:
            self.reset()
            raise
        for mark in marks:
            self._ledger.enter(mark)
            self.kept.add(mark)
        self._torn = False

    def _go_to_kept(self, mark: KVMark | None) -> None:
        if mark is None:
            self.reset()
        else:
            # what is further on can't be shared with what comes now
            self.kept.drop_behind(mark.ids.size)
            self.go_to(mark)

    def _admit(self, n_bytes: int) -> None:
        """Make room for more; what is kept gives way."""
        while True:
            try:
                return self._ledger.admit(n_bytes)
            except OutOfBudget:
                if not self.kept.drop_one():
                    raise
