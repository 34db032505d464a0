"""The store of streamed experts by itself: its books, its loans, and what an interruption leaves.

Nothing here computes with an expert.  The engine on top of it: tests/test_streaming_engine.py.
"""

import contextlib
import linecache
import random
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty
from types import FrameType
from typing import Any, cast

import numpy as np
import pytest

from localv4.checkpoint import Checkpoint
from localv4.errors import DamagedCheckpoint, LocalV4Error
from localv4.expert_records import ExpertRecords
from localv4.reads import Read, Readers
from localv4.shard_files import Piece, ShardFiles
from localv4.streaming import StreamedExperts, fewest_slots
from localv4.weights import ExpertWeights, bind_expert
from tests.small_checkpoints import make_small

N_EXPERTS = 8
N_LAYERS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    folder = tmp_path_factory.mktemp("streaming") / "model"
    make_small(folder, layout="scattered", ratios=(0, 4), n_routed_experts=N_EXPERTS)
    with Checkpoint.open(folder) as opened:
        yield opened


class ScriptedReaders:
    """Readers whose reads land when and in the order that a generator chooses; some fail.

    Until it lands, the memory of a read holds something else at every look.
    """

    def __init__(self, checkpoint: Checkpoint, generator: random.Random, failing: float) -> None:
        records = ExpertRecords(checkpoint)
        self.files = ShardFiles(checkpoint.path, records.shards)
        self.failing = failing
        self.pending: list[tuple[Read, list[Piece]]] = []
        self._generator = generator
        self._landed: deque[Read] = deque()
        self.n_reads = self.n_withdrawn = 0
        self.bytes_read, self.busy_s = 0, 0.0

    @property
    def outstanding(self) -> int:
        return len(self.pending)

    def submit(
        self, key: Any, pieces: Sequence[Piece], landed: Any, finish: Any, urgent: bool = True
    ) -> Read:
        self.n_reads += 1
        read = Read(key, pieces, finish, landed, urgent)
        for piece in pieces:
            piece.target[:] = self._generator.randrange(256)
        self.pending.append((read, list(pieces)))
        return read

    def hurry(self, read: Read) -> None:
        assert any(read is other for other, _ in self.pending) or read.landed

    def withdraw(self, read: Read) -> None:
        """Let a read land incomplete, now or as late as others: it may be half under way."""
        if not read.landed:
            read.withdrawn = True
            read.error = LocalV4Error("withdrawn")
            if self._generator.random() < 0.5:
                self.land_one([other for other, _ in self.pending].index(read))

    def land_one(self, index: int | None = None) -> None:
        index = self._generator.randrange(len(self.pending)) if index is None else index
        read, pieces = self.pending.pop(index)
        if read.withdrawn:
            self.n_withdrawn += 1
        elif self._generator.random() < self.failing:
            read.error = DamagedCheckpoint("injected")
        else:
            for piece in pieces:
                self.files.read(piece)
            read.result = read._finish()
        self._landed.append(read)
        read.landed = True

    def land_some(self) -> None:
        while self.pending and self._generator.random() < 0.3:
            self.land_one()

    # what the store takes for the queue of what has landed

    def get_nowait(self) -> Read:
        if not self._landed:
            raise Empty
        return self._landed.popleft()

    def get(self, timeout: float) -> Read:
        if not self._landed:
            assert self.pending, "waits for ever: nothing is being read"
            self.land_one()
        return self._landed.popleft()


def check_tables(store: StreamedExperts) -> None:
    """Kernels find every resident expert where it is, and no other."""
    n_found = 0
    for layer in range(N_LAYERS):
        for expert, words in enumerate(store.table(layer)):
            slot, weights = store.books.resident.get(layer * N_EXPERTS + expert, (None, None))
            expected = np.zeros_like(words) if weights is None else weights.words
            assert words.tolist() == expected.tolist()
            if slot is not None:
                memory = store._slots.view(slot)
                assert 0 <= words[0, 0] - memory.ctypes.data < memory.size
                n_found += 1
    assert n_found == len(store.books.resident)


class Checked:
    """A store with checks of its books and of the bytes it lends."""

    def __init__(self, checkpoint: Checkpoint, n_slots: int, seed: int, failing: float) -> None:
        self.generator = random.Random(seed)
        self.readers = ScriptedReaders(checkpoint, self.generator, failing)
        self.store = StreamedExperts(checkpoint, cast(Readers, self.readers), n_slots, N_LAYERS)
        self.store.landed = cast(Any, self.readers)
        self.held: dict[tuple[int, int], ExpertWeights] = {}
        self.asked = 0
        self._checkpoint = checkpoint

    def check(self) -> None:
        """Every slot has one place in the books; what is held has the bytes of the file."""
        store = self.store
        resident = {slot: key for key, (slot, _) in store.books.resident.items()}
        reading = {slot: key for key, (slot, _) in store.books.reading.items()}
        assert sorted([*store.books.free, *resident, *reading]) == list(range(store.n_slots))
        assert not store.books.resident.keys() & store.books.reading.keys()
        for slot in range(store.n_slots):
            assert store.books.keys[slot] == resident.get(slot, -1)
        check_tables(store)
        for (layer, expert), weights in self.held.items():
            check_expert(self._checkpoint, layer, expert, weights)

    def step(self, n_tokens: int) -> None:
        """Pass a chunk through all layers as the maths does."""
        store, generator = self.store, self.generator
        store.begin(n_tokens)
        wanted = [self._draw(n_tokens) for _ in range(N_LAYERS)]
        for layer in range(N_LAYERS):
            if generator.random() < 0.5:
                store.expect(layer, sorted(wanted[layer]))
            self.readers.land_some()
            experts = sorted(wanted[layer])
            counts = [wanted[layer][expert] for expert in experts]
            try:
                with store.lend(layer, experts, counts) as loan:
                    self.asked += len(experts)
                    self.check()
                    run = self._run_single if n_tokens == 1 else self._run_chunk
                    run(loan, layer, experts)
            except DamagedCheckpoint as error:
                assert str(error) == "injected"  # noqa: PT017 (some reads fail, others must not)
            self.held.clear()
            self.check()

    def _draw(self, n_tokens: int) -> dict[int, int]:
        """Return experts with how many tokens chose each, some by a table that repeats them."""
        chosen: dict[int, int] = {}
        popular = self.generator.choice([4, N_EXPERTS])
        for _ in range(3 * n_tokens):
            expert = self.generator.randrange(popular)
            chosen[expert] = chosen.get(expert, 0) + 1
        return chosen

    def _hold(self, loan: Any, layer: int, experts: list[int], index: int) -> None:
        self.held[layer, experts[index]] = loan.get(index)
        self.check()

    def _run_single(self, loan: Any, layer: int, experts: list[int]) -> None:
        waiting = [index for index in range(len(experts)) if not loan.ready(index)]
        for index in range(len(experts)):
            if index not in waiting:
                self._hold(loan, layer, experts, index)
        while waiting:
            self.readers.land_some()
            index = loan.first_ready(waiting)
            waiting.remove(index)
            self._hold(loan, layer, experts, index)

    def _run_chunk(self, loan: Any, layer: int, experts: list[int]) -> None:
        group: list[int] = []
        for index in range(len(experts)):
            self.readers.land_some()
            if group and (len(group) == loan.most or not loan.ready(index)):
                self._give_back(loan, layer, experts, group)
            self._hold(loan, layer, experts, index)
            group.append(index)
        if self.generator.random() < 0.9:  # else it is closed without
            self._give_back(loan, layer, experts, group)

    def _give_back(self, loan: Any, layer: int, experts: list[int], group: list[int]) -> None:
        if loan.asked and layer + 1 < N_LAYERS:
            self.store.expect(layer + 1, range(N_EXPERTS))
        self.check()
        for index in group:
            del self.held[layer, experts[index]]
            loan.done(index)
        group.clear()
        self.check()


def check_expert(checkpoint: Checkpoint, layer: int, expert: int, ours: ExpertWeights) -> None:
    stored = bind_expert(checkpoint, layer, expert)
    for name in ("w1", "w2", "w3"):
        our, other = getattr(ours, name), getattr(stored, name)
        assert np.array_equal(our.weights, other.weights), (layer, expert, name)
        assert np.array_equal(our.scales, other.scales), (layer, expert, name)


@pytest.mark.parametrize("failing", [0.0, 0.1])
@pytest.mark.parametrize("n_slots", [6, 7, 9, 13, N_LAYERS * N_EXPERTS])
def test_whatever_lands_when_the_right_bytes_are_lent(
    checkpoint: Checkpoint, n_slots: int, failing: float
) -> None:
    for seed in range(2):
        checked = Checked(checkpoint, n_slots, seed, failing)
        for _ in range(25):
            checked.step(checked.generator.choice([1, 1, 1, 2, 5, 40]))
            if checked.generator.random() < 0.2:
                checked.store.resize(checked.generator.randrange(6, n_slots + 3))
                checked.check()
        counters = checked.store.counters
        assert counters.hits + counters.misses == checked.asked
        checked.store.collect()
        readers = checked.readers
        assert checked.store.asked.sum() == readers.n_reads - readers.n_withdrawn
        while checked.readers.pending:
            checked.readers.land_one()
        assert checked.store.verify() == len(checked.store.books.resident) > 0


def test_what_fits_is_read_once(checkpoint: Checkpoint) -> None:
    checked = Checked(checkpoint, N_LAYERS * N_EXPERTS, seed=1, failing=0)
    while len(checked.store.books.resident) < N_LAYERS * N_EXPERTS:
        checked.step(40)
    before = checked.readers.n_reads
    for _ in range(5):
        checked.step(1)
        checked.step(40)
    assert checked.readers.n_reads == before


def test_a_chunk_leaves_what_is_popular(checkpoint: Checkpoint) -> None:
    checked = Checked(checkpoint, 8, seed=1, failing=0)
    store = checked.store
    for _ in range(20):
        store.begin(1)
        with store.lend(0, [0, 1, 2], [1, 1, 1]) as loan:
            for index in range(3):
                loan.get(index)
    # a prompt that likes the others of another layer
    store.begin(9)
    with store.lend(1, list(range(N_EXPERTS)), [3] * 7 + [6]) as loan:
        for index in range(N_EXPERTS):
            loan.get(index)
            loan.done(index)
    before = checked.readers.n_reads
    store.begin(1)
    with store.lend(0, [0, 1, 2], [1, 1, 1]) as loan:
        assert all(loan.ready(index) for index in range(3))
    assert checked.readers.n_reads == before
    checked.check()


def test_what_is_popular_stays_resident(checkpoint: Checkpoint) -> None:
    checked = Checked(checkpoint, fewest_slots(3), seed=1, failing=0)
    store = checked.store
    for number in range(30):
        store.begin(1)
        other = 2 + number % 6
        with store.lend(0, [0, 1, other], [1, 1, 1]) as loan:
            for index in range(3):
                loan.get(index)
    assert store.counters.hits >= 2 * 29
    assert {0, 1} <= store.books.resident.keys()


def test_a_read_that_failed_is_tried_again(checkpoint: Checkpoint) -> None:
    checked = Checked(checkpoint, 6, seed=1, failing=1)
    store = checked.store
    for _ in range(10):
        store.begin(1)
        with store.lend(1, [2, 4, 5], [1, 1, 1]) as loan, pytest.raises(DamagedCheckpoint):
            loan.get(loan.first_ready([0, 1, 2]))
    checked.readers.failing = 0
    store.begin(1)
    with store.lend(1, [2, 4, 5], [1, 1, 1]) as loan:
        for index, expert in enumerate([2, 4, 5]):
            check_expert(checkpoint, 1, expert, loan.get(index))
    checked.check()


def test_an_expectation_that_fails_is_no_error_until_it_is_wanted(checkpoint: Checkpoint) -> None:
    checked = Checked(checkpoint, 8, seed=1, failing=1)
    store = checked.store
    store.begin(1)
    store.expect(1, [3])
    while checked.readers.pending:
        checked.readers.land_one()
    checked.readers.failing = 0
    with store.lend(1, [3], [3]) as loan:
        check_expert(checkpoint, 1, 3, loan.get(0))
    checked.check()


@pytest.mark.parametrize("late", [False, True])
def test_what_was_withdrawn_can_be_wanted_at_once(checkpoint: Checkpoint, late: bool) -> None:
    checked = Checked(checkpoint, 8, seed=1, failing=0)
    store, readers = checked.store, checked.readers
    store.begin(1)
    store.expect(1, [3])
    ((read, _),) = readers.pending
    # half of it is under way: it lands when the disk gives that half
    read.withdrawn, read.error = True, LocalV4Error("withdrawn")
    if not late:
        readers.land_one()
    with store.lend(1, [3], [3]) as loan:
        check_expert(checkpoint, 1, 3, loan.get(loan.first_ready([0])))
    checked.check()
    assert readers.n_reads == 2


def test_a_read_that_nobody_remembers_lands_nowhere(checkpoint: Checkpoint) -> None:
    """As one that an interruption cut off from its books."""
    checked = Checked(checkpoint, 8, seed=1, failing=0)
    store, readers = checked.store, checked.readers
    store.begin(1)
    store.expect(1, [3])
    slot, known = store.books.reading[8 + 3]
    memory = np.zeros(store.records.slot_bytes, np.uint8)
    readers.submit(8 + 3, store.records.pieces(1, 3, memory), None, lambda: "another")
    readers.land_one(1)
    store.collect()
    assert store.books.reading == {8 + 3: (slot, known)}
    assert not store.books.resident
    readers.land_one()
    with store.lend(1, [3], [3]) as loan:
        check_expert(checkpoint, 1, 3, loan.get(0))
    checked.check()


def test_experts_that_nobody_asked_for_count_as_well(checkpoint: Checkpoint) -> None:
    asked, passed = (Checked(checkpoint, N_LAYERS * N_EXPERTS, 0, 0).store for _ in range(2))
    chosen = np.array([[[0, 2, 5], [1, 1, 7]], [[2, 5, 6], [1, 3, 7]]], np.int32)  # 1 twice
    for store in (asked, passed):
        lend_all(store)
    for token in chosen:
        asked.begin(1)
        passed.begin(1)
        for layer, experts in enumerate(token.tolist()):
            counts = [experts.count(expert) for expert in sorted(set(experts))]
            with asked.lend(layer, sorted(set(experts)), counts):
                pass
        passed.passed(0, token[:1])
        passed.passed(1, token[1:])
    assert asked.counters.hits == passed.counters.hits
    assert asked._popularity.scores.tolist() == passed._popularity.scores.tolist()


def test_what_tokens_read_is_counted_apart(checkpoint: Checkpoint) -> None:
    store = Checked(checkpoint, 7, 0, 0).store
    readers = cast(Any, store.readers)
    for n_tokens, n_bytes in ((5, 1000), (1, 10), (1, 7), (2, 500), (1, 3), (9, 100)):
        store.begin(n_tokens)
        readers.bytes_read += n_bytes
        readers.busy_s += n_bytes / 4
    assert (store.counters.decode_bytes, store.counters.decode_read_s) == (20, 5.0)


def lend_all(store: StreamedExperts) -> None:
    """Bring in the experts of two layers."""
    store.begin(8)
    for layer in range(2):
        with store.lend(layer, range(N_EXPERTS), [3] * N_EXPERTS) as loan:
            for index in range(N_EXPERTS):
                loan.get(index)
                loan.done(index)


def test_memory_given_up_is_forgotten_and_can_be_had_back(checkpoint: Checkpoint) -> None:
    checked = Checked(checkpoint, 16, seed=1, failing=0)
    store = checked.store
    for _ in range(4):
        checked.step(40)
    assert len(store.books.resident) > 6
    store.resize(6)
    checked.check()
    assert store.n_slots == 6
    assert len(store.books.resident) <= 6
    assert not store._slots.memory[6 * store.records.slot_bytes :].any()
    store.verify()
    store.resize(100)
    assert store.n_slots == 16
    for _ in range(4):
        checked.step(40)
    assert len(store.books.resident) > 6
    store.verify()


def test_a_byte_that_changed_in_memory_is_noticed(checkpoint: Checkpoint) -> None:
    checked = Checked(checkpoint, 8, seed=1, failing=0)
    checked.step(1)
    store = checked.store
    for key, (slot, weights) in store.books.resident.items():
        for matrix in (weights.w1, weights.w2, weights.w3):
            for values in (matrix.weights, matrix.scales):
                assert values is not None
                corner = values.reshape(-1).view(np.uint8)[-1:]
                corner ^= 1
                layer, expert = divmod(key, N_EXPERTS)
                with pytest.raises(
                    DamagedCheckpoint, match=f"expert {expert} of layer {layer} in memory differs"
                ):
                    store.verify()
                corner ^= 1
        assert store._slots.view(slot).size
    assert store.verify() == len(store.books.resident)


# Interruptions


class Interrupter:
    """Raises KeyboardInterrupt at a line of the store or the readers when it is run in this thread.

    None for no line.  Counts how often each is run.
    """

    FILES = (
        "streaming.py", "streamed_loan.py", "slot_books.py", "reads.py", "shard_files.py",
        "expert_records.py", "slots.py",
    )  # fmt: skip

    def __init__(self, line: str | None, number: int) -> None:
        self.counts = Counter[str]()
        self._line_and_number = line, number

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.endswith(self.FILES):
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        # Python sees no signal between the end of a "with" and what it does then
        if event == "line" and not text.strip().startswith("with "):
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            self.counts[line] += 1
            if (line, self.counts[line]) == self._line_and_number:
                raise KeyboardInterrupt
        return self._line


def use_interrupted(
    checkpoint: Checkpoint, records: ExpertRecords, line: str | None, number: int
) -> Counter[str]:
    """Use a store with an interruption, check it, and return how often each line was run."""
    readers = Readers(ShardFiles(checkpoint.path, records.shards, direct=False), 2)
    store = StreamedExperts(checkpoint, readers, 7, N_LAYERS)
    store.records = records
    interrupter, before = Interrupter(line, number), sys.gettrace()
    sys.settrace(interrupter)
    with contextlib.suppress(KeyboardInterrupt):
        use(store)
    sys.settrace(before)
    check_all(checkpoint, store)
    assert readers.close()
    return interrupter.counts


def use(store: StreamedExperts) -> None:
    """Two tokens, a chunk, less memory and more."""
    for experts in ([0, 1, 2], [2, 5, 7]):
        store.begin(1)
        store.expect(1, experts)
        with store.lend(0, experts, [1, 1, 1]) as loan:
            waiting = {index for index in range(3) if not loan.ready(index)}
            while waiting:
                index = loan.first_ready(waiting)
                waiting.remove(index)
                loan.get(index)
    store.resize(6)
    store.begin(4)
    with store.lend(1, [1, 2, 4, 6], [3, 3, 3, 3]) as loan:
        for index in range(4):
            loan.get(index)
            loan.done(index)
    store.resize(7)


def check_all(checkpoint: Checkpoint, store: StreamedExperts) -> None:
    """Check that all slots and all experts can be used."""
    for layer in range(2):
        store.begin(5)
        check_tables(store)
        counts = [1] * (N_EXPERTS - 1) + [3 * 5 - N_EXPERTS + 1]
        with store.lend(layer, range(N_EXPERTS), counts) as loan:
            for index in range(N_EXPERTS):
                check_expert(checkpoint, layer, index, loan.get(index))
                loan.done(index)
    store._settle()
    books = store.books
    assert len(books.free) + len(books.resident) + len(books.reading) == store.n_slots
    assert not (store.books.guards > 1).any()
    store.verify()


def test_an_interruption_between_any_two_lines_does_no_harm(tmp_path: Path) -> None:
    """Line by line: an interruption, and then the same store lends the right bytes again."""
    folder = make_small(tmp_path / "model", ratios=(0, 4), n_routed_experts=N_EXPERTS)
    with Checkpoint.open(folder) as checkpoint:
        records = ExpertRecords(checkpoint)
        counts = use_interrupted(checkpoint, records, None, 0)
        assert len(counts) > 100
        for line, count in counts.items():
            for number in {1, 1 + count // 2 if "streaming.py" in line else 1}:
                use_interrupted(checkpoint, records, line, number)


def test_after_the_end_nobody_waits_for_ever(checkpoint: Checkpoint) -> None:
    files = ShardFiles(checkpoint.path, ExpertRecords(checkpoint).shards)
    readers = Readers(files, 2)
    store = StreamedExperts(checkpoint, readers, 7, N_LAYERS)
    store.begin(1)
    with store.lend(0, [0, 1, 2], [1, 1, 1]) as loan:
        loan.get(0)
        readers.close()
        with pytest.raises(LocalV4Error, match="closed"):
            store.lend(1, [0, 1, 2], [1, 1, 1])
    store.begin(1)
