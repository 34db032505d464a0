"""Experts of one layer, lent from slots: those that are missing are asked for in their order."""

from collections import deque
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Protocol

from localv4.experts import Loan
from localv4.reads import Read, Readers
from localv4.slot_books import Guard, SlotBooks
from localv4.weights import ExpertWeights

__all__ = ["Lender", "StreamedLoan"]


class Lender(Protocol):
    """Who lends: see `localv4.streaming.StreamedExperts`."""

    books: SlotBooks
    readers: Readers
    failed: dict[int, Exception]
    landed: SimpleQueue[Read]

    def submit(self, key: int, slot: int, guard: Guard, urgent: bool) -> None:
        """Ask for an expert."""

    def collect(self) -> None:
        """Take in what has landed."""

    def wait(self) -> None:
        """Wait for one read to land."""


class StreamedLoan(Loan):
    """Experts of one layer.

    Parameters
    ----------
    lender
        Whose slots.
    keys
        Of the experts, ascending.
    window
        How many experts it may read at a time.
    below
        The first key of the next layer, for a chunk that passes through many experts: of those it
        reads, only those stay that are worth more than others of the layers so far.  None keeps
        all.
    """

    def __init__(self, lender: Lender, keys: list[int], window: int, below: int | None) -> None:
        self._lender = lender
        self._books = books = lender.books
        self._keys = keys
        self._window = window
        self._below = below
        self.most = len(keys) if below is None else max(1, (books.n_slots - 1) // 2)
        self._missing: deque[int] = deque()
        self._read: set[int] = set()  # by this loan, and not done
        self._open = set(keys)
        for key in keys:
            if key in books.resident:
                books.guard(key, Guard.WANTED)
            elif key in books.reading:
                books.guard(key, Guard.WANTED)
                lender.readers.hurry(books.reading[key][1])
                self._read.add(key)
            else:
                self._missing.append(key)
        self._ask()

    @property
    def asked(self) -> bool:
        """Whether the disk was asked for all of them."""
        return not self._missing

    def ready(self, index: int) -> bool:
        """Whether an expert is in memory."""
        self._lender.collect()
        return self._keys[index] in self._books.resident

    def get(self, index: int) -> ExpertWeights:
        """Return an expert's matrices; see `Loan.get`."""
        key, books, lender = self._keys[index], self._books, self._lender
        while key not in books.resident:
            if key not in books.reading:
                if key in lender.failed and key in self._read:
                    raise lender.failed.pop(key)
                if not self._ask_for(key):
                    lender.wait()  # for a slot
                continue
            lender.wait()
        slot, weights = books.resident[key]
        books.guards[slot] = Guard.HELD
        return weights

    def first_ready(self, indices: Iterable[int]) -> int:
        """Return one of some experts that is ready; see `Loan.first_ready`."""
        chosen, books, lender = list(indices), self._books, self._lender
        while True:
            for index in chosen:
                key = self._keys[index]
                if key in books.resident or (key in lender.failed and key in self._read):
                    return index  # get says what failed
            if not any(self._keys[index] in books.reading for index in chosen):
                return chosen[0]
            lender.wait()

    def done(self, index: int) -> None:
        """Give an expert back, and ask for the next one that is missing."""
        key, books = self._keys[index], self._books
        if key not in self._open:
            return
        self._open.remove(key)
        slot, _ = books.resident[key]
        # still guarded, not to be compared with itself
        stays = key not in self._read or self._below is None
        stays = stays or books.is_worth_keeping(key, self._below or 0)
        self._read.discard(key)
        if stays:
            books.guards[slot] = Guard.NOBODY
        else:
            books.release(slot)
        self._ask()

    def close(self) -> None:
        """Give all of them back."""
        while self._open:
            self._books.guard(self._open.pop(), Guard.NOBODY)

    def _ask(self) -> None:
        """Ask for missing experts, in order, as far as there is room."""
        while self._missing and len(self._read) < self._window:
            slot = self._books.take(below=self._below)
            if slot is None:
                return
            self._submit(self._missing.popleft(), slot)

    def _ask_for(self, key: int) -> bool:
        """Ask for an expert that is needed now; return whether there was a slot for it."""
        slot = self._books.take(Guard.WANTED, after=key, below=self._below)
        if slot is None:
            return False
        if key in self._missing:
            self._missing.remove(key)
        self._submit(key, slot)
        return True

    def _submit(self, key: int, slot: int) -> None:
        self._lender.submit(key, slot, Guard.WANTED, urgent=True)
        self._read.add(key)
