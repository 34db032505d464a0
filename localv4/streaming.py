"""Routed experts that do not fit into memory: kept in slots, and read when they are missing.

A layer's experts that are resident are lent at once, others as the disk gives them; one token
finds resident ones by itself, in tables that change with the books.  What is evicted is the
resident expert that was chosen least lately (residency.py), and never one that the layer at hand
still needs while another is there.  A chunk of many tokens passes through nearly all experts of a
layer: it gets a few slots for those it has to read, and only those that are worth more than what
is resident stay behind.

The bytes of a result do not depend on any of this: experts are the same wherever they lie, and
sums are in the order of their numbers.  All state belongs to the thread that computes; reading
threads see files and memory only.  Follows the study of streaming (recommended design).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint import Checkpoint
from localv4.errors import DamagedCheckpoint
from localv4.expert_records import ExpertRecords
from localv4.experts import ExpertStore
from localv4.reads import Read, Readers, Wait
from localv4.residency import Popularity
from localv4.slot_books import Guard, SlotBooks
from localv4.slots import PAGE, Slots, private_memory
from localv4.streamed_loan import StreamedLoan
from localv4.weights import ExpertWeights

__all__ = ["ExpertCounters", "StreamedExperts", "fewest_slots"]

_SWEEP_SLOTS = 64  # that a chunk's missing experts pass through


def fewest_slots(n_chosen: int) -> int:
    """Return the fewest slots for layers that choose so many experts for a token."""
    # those of a token, and as many again that the next layer's reads may go to
    return 2 * n_chosen


@dataclass
class ExpertCounters:
    """What the store counts.

    Attributes
    ----------
    hits, misses
        Experts asked for that were resident, and that were not.
    wait_s
        Seconds spent waiting.
    decode_bytes, decode_read_s
        Bytes read while single tokens passed, and how long the disk had something to do.
    """

    hits: int = 0
    misses: int = 0
    wait_s: float = 0.0
    decode_bytes: int = 0
    decode_read_s: float = 0.0


class StreamedExperts(ExpertStore):
    """Routed experts in slots of memory.

    Parameters
    ----------
    checkpoint
        Whose experts.
    readers
        Read them.
    n_slots
        Experts that may be resident; at least `fewest_slots`.
    n_layers
        Layers that have experts, the MTP block included if it is in use.

    Attributes
    ----------
    records
        Where experts lie.
    readers
        As given.
    counters
        Since the store was made.
    books
        Which experts are in memory or being read.
    landed, failed
        Reads to be taken in, and what went wrong with earlier ones, by key.
    asked
        int64 [n_layers]: experts of each layer that the disk was asked for.
    """

    looks_ahead = True

    def __init__(
        self, checkpoint: Checkpoint, readers: Readers, n_slots: int, n_layers: int
    ) -> None:
        self.format = checkpoint.expert_format
        self.records = ExpertRecords(checkpoint)
        self.readers = readers
        self.counters = ExpertCounters()
        self._n_experts = checkpoint.config.n_routed_experts
        self._n_chosen = checkpoint.config.num_experts_per_tok
        self._slots = Slots(n_slots, self.records.slot_bytes)
        self._blank = np.frombuffer(private_memory(self.records.slot_bytes), np.uint8)
        self._popularity = Popularity(n_layers * self._n_experts)
        self._n_tokens = 0  # of the chunk under way, which is none yet
        self._read = 0, 0.0  # bytes and seconds when it began
        self.books = SlotBooks(n_slots, self._popularity.scores)
        self.failed: dict[int, Exception] = {}
        self.landed: SimpleQueue[Read] = SimpleQueue()
        self.asked: NDArray[np.int64] = np.zeros(n_layers, np.int64)

    @property
    def n_slots(self) -> int:
        """Slots in use; see `resize`."""
        return self.books.n_slots

    @property
    def sweep_slots(self) -> int:
        """How many slots a chunk's missing experts get."""
        return max(1, min(_SWEEP_SLOTS, self.n_slots // 2))

    def begin(self, n_tokens: int) -> None:
        """Let a chunk of tokens begin."""
        self._count_reads()
        self._popularity.begin(n_tokens)
        self._n_tokens = n_tokens
        guards = self.books.guards
        guards[guards == Guard.EXPECTED] = Guard.NOBODY
        self._settle()

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read experts that a layer will ask for, behind all that is asked for now."""
        self.collect()
        books, below = self.books, self._key(layer, 0) if self._n_tokens > 1 else None
        expected = sum(books.guards[slot] == Guard.EXPECTED for slot, _ in books.reading.values())
        for expert in experts:
            key = self._key(layer, expert)
            if key in books.resident:
                books.expect(key)
            elif key not in books.reading:
                slot = books.take(below=below) if expected < self.sweep_slots else None
                if slot is None:
                    return
                expected += 1
                self.submit(key, slot, Guard.EXPECTED, urgent=False)

    def table(self, layer: int) -> NDArray[np.int64]:
        """Return where a layer's experts lie; see `ExpertStore.table`."""
        return self.books.words[self._key(layer, 0) : self._key(layer + 1, 0)]

    def example(self, layer: int) -> ExpertWeights:
        """Return matrices in memory that nobody writes to."""
        return self.records.bind(layer, 0, self._blank)

    def passed(self, layer: int, experts: NDArray[np.int32]) -> None:
        """Count experts that were found in the tables; see `ExpertStore.passed`."""
        firsts = np.arange(layer, layer + len(experts), dtype=np.int64)[:, None] * self._n_experts
        self._popularity.count((firsts + experts).reshape(-1))
        # a hash table may name an expert twice
        self.counters.hits += experts.size - int((experts[:, 1:] == experts[:, :-1]).sum())

    def lend(self, layer: int, experts: Sequence[int], counts: Sequence[int]) -> StreamedLoan:
        """Lend experts; see `ExpertStore.lend`.  One loan at a time."""
        self._settle()
        keys = [self._key(layer, expert) for expert in experts]
        self._withdraw(layer, keys)
        n_tokens = sum(counts) // self._n_chosen
        self._popularity.count(np.repeat(keys, counts), n_tokens)
        hits = sum(key in self.books.resident for key in keys)
        self.counters.hits += hits
        self.counters.misses += len(keys) - hits
        if n_tokens == 1:
            return StreamedLoan(self, keys, self.n_slots, None)
        return StreamedLoan(self, keys, self.sweep_slots, self._key(layer + 1, 0))

    def resize(self, n_slots: int) -> None:
        """Use only so many slots from now on, at most as many as at first; between chunks.

        Experts in the slots given up are forgotten and their memory goes back to the system.
        """
        self._settle()
        n_slots = max(1, min(n_slots, self._slots.n_slots))
        while any(slot >= n_slots for slot, _ in self.books.reading.values()):
            self.wait()
        self.books.resize(n_slots)
        self._slots.give_back(n_slots)

    def forget(self) -> None:
        """Give all memory back to the system; nothing may be computed afterwards."""
        self._slots.give_back(0)

    def verify(self) -> int:
        """Compare every resident expert with the shards; return how many there are.

        Raises
        ------
        DamagedCheckpoint
            One of them differs.
        """
        self.collect()
        for key, (slot, _) in self.books.resident.items():
            layer, expert = divmod(key, self._n_experts)
            for run in self.records.runs(layer, expert):
                stored = np.empty(run.n_bytes, np.uint8)
                self.readers.files.read_small(run.shard, run.offset, stored)
                begin = run.place + run.offset % PAGE
                if not np.array_equal(stored, self._slots.view(slot)[begin : begin + run.n_bytes]):
                    raise DamagedCheckpoint(
                        f"expert {expert} of layer {layer} in memory differs from {run.shard}; the "
                        "file was changed, or memory fails"
                    )
        return len(self.books.resident)

    def submit(self, key: int, slot: int, guard: Guard, urgent: bool) -> None:
        """Ask for an expert, to be read into a slot that nobody else has."""
        layer, expert = divmod(key, self._n_experts)
        memory, records = self._slots.view(slot), self.records
        self.failed.pop(key, None)
        self.books.guards[slot] = guard
        read = self.readers.submit(
            key,
            records.pieces(layer, expert, memory),
            self.landed,
            lambda: records.bind(layer, expert, memory),
            urgent,
        )
        self.books.reading[key] = slot, read
        self.asked[layer] += 1

    def collect(self) -> None:
        """Take in what has landed."""
        while True:
            try:
                self._land(self.landed.get_nowait())
            except Empty:
                return

    def wait(self) -> None:
        """Wait for one read to land."""
        assert self.books.reading
        wait = Wait()
        while True:
            try:
                read = self.landed.get(timeout=wait.EVERY_S)
                break
            except Empty:
                wait.goes_on()
        self.counters.wait_s += wait.seconds
        self._land(read)

    def _count_reads(self) -> None:
        """Count what was read for the chunk before, if it was one token."""
        before, self._read = self._read, (self.readers.bytes_read, self.readers.busy_s)
        if self._n_tokens == 1:
            self.counters.decode_bytes += self._read[0] - before[0]
            self.counters.decode_read_s += self._read[1] - before[1]

    def _key(self, layer: int, expert: int) -> int:
        return layer * self._n_experts + expert

    def _withdraw(self, layer: int, keys: list[int]) -> None:
        """Take back what was expected, up to this layer, and is not wanted after all."""
        books, end = self.books, self._key(layer + 1, 0)
        for key, (slot, read) in books.reading.items():
            if books.guards[slot] == Guard.EXPECTED and key < end and key not in keys:
                self.readers.withdraw(read)

    def _land(self, read: Read) -> None:
        books = self.books
        slot, known = books.reading.get(read.key, (-1, None))
        if known is not read:
            return  # from before an interruption
        if read.error is not None:
            if read.withdrawn:  # whoever wants it now asks again
                self.asked[read.key // self._n_experts] -= 1
            else:
                self.failed[read.key] = read.error
            books.release(slot)
        else:
            books.enter(read.key, slot, read.result)
        del books.reading[read.key]

    def _settle(self) -> None:
        """Take in what has landed while nothing is lent.

        An interruption may have come between any two lines before; the books are put right then.
        """
        reading = self.books.reading
        landed = [read for _, read in reading.values() if read.landed]
        self.collect()
        lost = any(reading.get(read.key, (0, None))[1] is read for read in landed)
        if lost or not self.books.add_up:
            self._mend()

    def _mend(self) -> None:
        """Make the books anew from what is resident.

        Nothing is being read when that is done: a read that was lost may write to any slot.
        """
        wait = Wait()
        while self.readers.outstanding:
            try:
                self._land(self.landed.get(timeout=wait.EVERY_S))
            except Empty:
                wait.goes_on()
        for _, read in list(self.books.reading.values()):
            self._land(read)
        self.books.make_anew()
