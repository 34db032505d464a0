"""Reads of shards: right bytes or an error that says where, whatever files and disks do."""

import errno
import gc
import logging
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import localv4.reads
import localv4.shard_files
from localv4.errors import DamagedCheckpoint, LocalV4Error
from localv4.reads import Read, Readers, Wait, join_for
from localv4.shard_files import Piece, ShardFiles, piece_bytes, split
from localv4.slots import PAGE, private_memory

U8 = NDArray[np.uint8]
SIZE = 6 * PAGE + 123
CONTENT = random.Random(5).randbytes(SIZE)
PATIENCE_S = 20.0  # for what happens at once, on a machine that is busy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(CONTENT)
    return tmp_path


@pytest.fixture(params=[True, False], ids=["direct", "buffered"])
def files(folder: Path, request: pytest.FixtureRequest) -> Iterator[ShardFiles]:
    files = ShardFiles(folder, ["a", "b"], request.param)
    yield files
    files.close()


def memory_for(offset: int, n_bytes: int) -> U8:
    memory = np.frombuffer(private_memory(piece_bytes(offset, n_bytes)), np.uint8)
    memory[:] = 0xAA
    return memory


def read(files: ShardFiles, shard: str, offset: int, n_bytes: int) -> bytes:
    memory = memory_for(offset, n_bytes)
    for piece in split(shard, offset, n_bytes, memory):
        files.read(piece)
    return memory[offset % PAGE :][:n_bytes].tobytes()


def serve(
    monkeypatch: pytest.MonkeyPatch, files: ShardFiles, counts: Callable[[int], int]
) -> list[tuple[int, int]]:
    """Let every read give as many bytes as `counts` says of those asked for; list the reads."""
    reads: list[tuple[int, int]] = []

    def preadv(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        (target,) = buffers
        if file in files._direct.values():
            address = np.frombuffer(target, np.uint8).ctypes.data
            assert address % 512 == len(target) % 512 == offset % 512 == 0
        available = CONTENT[offset : offset + len(target)]
        given = available[: max(1, min(counts(len(available)), len(available)))]
        target[: len(given)] = given
        reads.append((offset, len(given)))
        return len(given)

    monkeypatch.setattr(os, "preadv", preadv)
    return reads


PLACES = [(0, SIZE), (1, SIZE - 1), (PAGE - 1, 2), (PAGE, PAGE), (5000, 9000), (SIZE - 1, 1)]


@pytest.mark.parametrize(("offset", "n_bytes"), PLACES)
def test_bytes_land_where_they_lie_in_a_page(
    files: ShardFiles, monkeypatch: pytest.MonkeyPatch, offset: int, n_bytes: int
) -> None:
    for most in (PAGE, 2 * PAGE, 2**22):
        monkeypatch.setattr(localv4.shard_files, "_PIECE_BYTES", most)
        assert read(files, "b", offset, n_bytes) == CONTENT[offset : offset + n_bytes]


def test_pieces_are_whole_pages_of_the_file_and_of_the_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(localv4.shard_files, "_PIECE_BYTES", 2 * PAGE)
    generator = random.Random(1)
    for _ in range(300):
        offset, n_bytes = generator.randrange(9 * PAGE), generator.randrange(1, 9 * PAGE)
        room = piece_bytes(offset, n_bytes)
        pieces = split("a", offset, n_bytes, np.zeros(room, np.uint8))
        assert pieces[0].first == offset - offset % PAGE
        assert pieces[-1].first + pieces[-1].needed == offset + n_bytes
        assert sum(piece.target.size for piece in pieces) == room
        for piece in pieces:
            assert piece.first % PAGE == piece.target.size % PAGE == 0
            assert 0 < piece.needed <= piece.target.size < piece.needed + PAGE
        for piece, following in pairwise(pieces):
            assert piece.first + piece.needed == following.first


@pytest.mark.parametrize("most", [1, 7, 511, 512, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 5])
def test_short_reads_go_on(files: ShardFiles, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    reads = serve(monkeypatch, files, lambda asked: most)
    offset, n_bytes = PAGE + 10, 3 * PAGE if most > 1 else 600
    assert read(files, "a", offset, n_bytes) == CONTENT[offset : offset + n_bytes]
    target = np.zeros(700, np.uint8)
    files.read_small("a", 333, target)
    assert target.tobytes() == CONTENT[333:1033]
    assert len(reads) > 1 or most > 3 * PAGE


def test_short_reads_of_any_length(files: ShardFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(2)
    serve(monkeypatch, files, lambda asked: generator.choice([1, 512, PAGE, asked]))
    for _ in range(40):
        offset = generator.randrange(SIZE - 1)
        n_bytes = generator.randrange(1, min(SIZE - offset, 2 * PAGE) + 1)
        assert read(files, "a", offset, n_bytes) == CONTENT[offset : offset + n_bytes]


CUTS = [0, 1, PAGE - 1, PAGE, PAGE + 1, PAGE + 512, 3 * PAGE, SIZE - 124, SIZE - 1]


@pytest.mark.parametrize("size", CUTS)
def test_a_file_that_was_cut_short_is_an_error_at_its_end(files: ShardFiles, size: int) -> None:
    os.truncate(files.folder / "a", size)
    with pytest.raises(DamagedCheckpoint, match=rf"a cannot be read at byte {size:,}: .*cut short"):
        read(files, "a", 0, SIZE)
    if size:
        assert read(files, "a", 0, size) == CONTENT[:size]
    with pytest.raises(DamagedCheckpoint, match=rf"at byte {size:,}: .*cut short"):
        files.read_small("a", max(size - 3, 0), np.zeros(SIZE, np.uint8))
    assert read(files, "b", 0, SIZE) == CONTENT


def test_a_name_that_is_removed_or_replaced_keeps_its_old_bytes(files: ShardFiles) -> None:
    (files.folder / "a").unlink()
    (files.folder / "new").write_bytes(bytes(SIZE))
    (files.folder / "new").rename(files.folder / "b")
    for name in ("a", "b"):
        assert read(files, name, 9, 5000) == CONTENT[9:5009]
        target = np.zeros(100, np.uint8)
        files.read_small(name, 9, target)
        assert target.tobytes() == CONTENT[9:109]


def test_a_read_error_says_where_and_the_next_read_is_right(
    files: ShardFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "preadv", fail)
        with pytest.raises(DamagedCheckpoint, match=r"a cannot be read at byte 4,096: Input/outp"):
            read(files, "a", PAGE + 5, 100)
        with pytest.raises(DamagedCheckpoint, match=r"a cannot be read at byte 4,101: Input/outp"):
            files.read_small("a", PAGE + 5, np.zeros(9, np.uint8))
    assert read(files, "a", PAGE + 5, 100) == CONTENT[PAGE + 5 : PAGE + 105]


def test_an_error_after_some_bytes_is_an_error(
    files: ShardFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([PAGE, 2 * PAGE])

    def counts(asked: int) -> int:
        for count in given:
            return count
        raise OSError(errno.EIO, "broken")

    serve(monkeypatch, files, counts)
    with pytest.raises(DamagedCheckpoint, match="at byte 12,288: broken"):
        read(files, "a", 0, SIZE)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_direct_reads_refused_at_opening(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(number, "refused", str(path))
        return real(path, flags, *rest)

    with monkeypatch.context() as refusing, caplog.at_level(logging.WARNING):
        refusing.setattr(os, "open", refuse)
        files = ShardFiles(folder, ["a", "b"])
    assert not files.direct
    assert read(files, "b", 3, 5000) == CONTENT[3:5003]
    assert [record.message for record in caplog.records if "without direct" in record.message] == [
        f"{folder / 'a'} is on a file system without direct reads; reading through the page "
        "cache, which takes more of the CPU"
    ]
    files.close()


def test_direct_reads_refused_at_a_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files, real = ShardFiles(folder, ["a"]), os.preadv
    direct = set(files._direct.values())
    if not direct:
        pytest.skip("a file system without direct reads")

    def refuse(file: int, *rest: Any) -> int:
        if file in direct:
            raise OSError(errno.EINVAL, "refused")
        return real(file, *rest)

    monkeypatch.setattr(os, "preadv", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert read(files, "a", 3, 5000) == CONTENT[3:5003]
    assert not files.direct
    assert sum("without direct reads" in record.message for record in caplog.records) == 1
    files.close()


def test_a_file_that_is_not_there_is_named_and_the_others_are_closed(folder: Path) -> None:
    def handles() -> set[str]:
        return {link.name for link in Path("/proc/self/fd").glob("*")}

    before = handles()
    with pytest.raises(DamagedCheckpoint, match=r"/c cannot be opened \(No such file"):
        ShardFiles(folder, ["a", "b", "c"])
    assert handles() == before


def test_too_many_open_files_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *rest: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as refusing:
        refusing.setattr(os, "open", refuse)
        with pytest.raises(DamagedCheckpoint, match=r"Too many open files.*limit on open files"):
            ShardFiles(folder, ["a"])


def test_reads_after_the_end_say_so(files: ShardFiles) -> None:
    files.close()
    files.close()
    with pytest.raises(LocalV4Error, match="closed"):
        read(files, "a", 0, 5)
    with pytest.raises(LocalV4Error, match="closed"):
        files.read_small("a", 0, np.zeros(5, np.uint8))


def test_files_that_nobody_holds_are_closed(folder: Path) -> None:
    files = ShardFiles(folder, ["a"])
    handles = [*files._buffered.values(), *files._direct.values()]
    del files
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


class GatedFiles(ShardFiles):
    """Reads that wait to be let through by name; a name among `broken` fails."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [])
        self.begun: SimpleQueue[str] = SimpleQueue()
        self.gates: dict[str, threading.Event] = {}
        self.broken: set[str] = set()
        self.order: list[str] = []

    def read(self, piece: Piece) -> None:
        gate = self.gates.setdefault(piece.shard, threading.Event())
        self.begun.put(piece.shard)
        assert gate.wait(PATIENCE_S)
        self.order.append(piece.shard)
        if piece.shard in self.broken:
            raise DamagedCheckpoint(f"{piece.shard} is broken")

    def open(self, *names: str) -> None:
        for name in names:
            self.gates.setdefault(name, threading.Event()).set()


class Gated:
    """Readers whose reads wait at gates."""

    def __init__(self, folder: Path, n_threads: int) -> None:
        self.files = GatedFiles(folder)
        self.readers = Readers(self.files, n_threads)
        self.landed: SimpleQueue[Read] = SimpleQueue()

    def submit(self, key: str, *names: str, **rest: Any) -> Read:
        memory = np.zeros(PAGE, np.uint8)
        pieces = [Piece(name, 0, 10, memory) for name in names or (key,)]
        return self.readers.submit(key, pieces, self.landed, **rest)

    def begun(self) -> str:
        return self.files.begun.get(timeout=PATIENCE_S)

    def next(self) -> Read:
        return self.landed.get(timeout=PATIENCE_S)


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Gated]]:
    monkeypatch.setattr(localv4.reads, "CLOSING_S", 0.05)
    made: list[Gated] = []

    def make(n_threads: int) -> Gated:
        made.append(Gated(tmp_path, n_threads))
        return made[-1]

    yield make
    for each in made:
        each.files.open(*each.files.gates)
        each.readers.close()
        assert join_for(each.readers._threads, PATIENCE_S)


def test_urgent_reads_go_first_then_those_that_were_asked_for_first(gated) -> None:
    one = gated(1)
    one.submit("blocks")
    one.begun()
    one.submit("later 1", urgent=False)
    second = one.submit("later 2", urgent=False)
    one.submit("later 3", urgent=False)
    one.submit("urgent 1")
    one.submit("urgent 2")
    one.readers.hurry(second)
    one.files.open("blocks", "later 1", "later 2", "later 3", "urgent 1", "urgent 2")
    order = [one.next().key for _ in range(6)]
    assert order == ["blocks", "later 2", "urgent 1", "urgent 2", "later 1", "later 3"]
    assert one.readers.outstanding == 0


def test_pieces_of_a_read_are_shared_and_it_lands_once_all_are_there(gated) -> None:
    two = gated(2)
    finished: list[str] = []

    def finish() -> str:
        finished.append("x")
        return "result"

    read = two.submit("x", "x1", "x2", "x3", finish=finish)
    assert {two.begun(), two.begun()} == {"x1", "x2"}
    two.files.open("x2")
    assert two.begun() == "x3"
    two.files.open("x3")
    assert not finished
    assert not read.landed
    two.files.open("x1")
    assert two.next() is read
    assert finished == ["x"]
    assert (read.result, read.error) == ("result", None)
    assert two.readers.bytes_read == 30


def test_a_read_that_fails_lands_when_no_thread_touches_its_memory(gated) -> None:
    two = gated(2)
    two.files.broken.add("x1")
    read = two.submit("x", "x1", "x2", "x3", finish=lambda: pytest.fail("not all is there"))
    assert {two.begun(), two.begun()} == {"x1", "x2"}
    two.files.open("x1", "x3")
    other = two.submit("other")
    assert two.begun() == "other"  # x3 is not read any more
    two.files.open("other")
    assert two.next() is other
    assert not read.landed
    two.files.open("x2")
    assert two.next() is read
    assert str(read.error) == "x1 is broken"
    assert two.files.order == ["x1", "other", "x2"]
    assert two.readers.bytes_read == 20


def test_what_is_withdrawn_lands_when_no_thread_touches_its_memory(gated) -> None:
    one = gated(1)
    begun, waits = one.submit("x", "x1", "x2"), one.submit("y")
    assert one.begun() == "x1"
    one.readers.withdraw(waits)
    assert one.next() is waits
    one.readers.withdraw(begun)
    one.readers.withdraw(begun)
    assert not begun.landed
    one.files.open("x1")
    assert one.next() is begun
    assert begun.withdrawn
    assert waits.withdrawn
    one.readers.withdraw(begun)
    whole = one.submit("z")
    assert one.begun() == "z"
    one.readers.withdraw(whole)  # too late: it will be whole
    one.files.open("z")
    assert one.next() is whole
    assert (whole.withdrawn, whole.error) == (False, None)
    assert one.files.order == ["x1", "z"]
    assert one.readers.outstanding == 0


def test_what_finish_raises_is_the_error(gated) -> None:
    one = gated(1)

    def finish() -> None:
        raise DamagedCheckpoint("NaN")

    one.files.open("x", "y")
    one.submit("x", finish=finish)
    one.submit("y")
    assert str(one.next().error) == "NaN"
    assert one.next().error is None


def test_closing_cancels_what_was_not_begun_and_does_not_wait_for_the_disk(gated) -> None:
    two = gated(2)
    stuck = two.submit("stuck", "stuck", "stuck 2")
    free = two.submit("free")
    assert {two.begun(), two.begun()} == {"stuck", "stuck 2"}
    assert not two.readers.close()
    with pytest.raises(LocalV4Error, match="closed"):
        two.submit("too late")
    two.files.open("stuck 2")  # one thread comes back, and lets go of the others' reads
    assert two.next() is free
    assert isinstance(free.error, LocalV4Error)
    two.files.open("stuck")
    assert two.next() is stuck
    assert stuck.error is None
    assert two.readers.outstanding == 0
    assert "free" not in two.files.order


def test_idle_threads_end_at_once_and_twice_is_no_harm(gated) -> None:
    four = gated(4)
    assert four.readers.close()
    assert four.readers.close()
    assert not any(thread.is_alive() for thread in four.readers._threads)


def test_closing_on_a_reading_thread(gated) -> None:
    """As the collector of garbage does if it comes by there."""
    two = gated(2)
    closed: list[bool] = []
    two.files.open("x")
    two.submit("x", finish=lambda: closed.append(two.readers.close()))
    assert two.next().error is None
    assert closed == [False]  # the thread itself goes on for a moment
    assert join_for(two.readers._threads, PATIENCE_S)


def test_a_token_without_a_read_is_no_harm(gated) -> None:
    """An interruption may leave one behind."""
    one = gated(1)
    one.readers._tokens.put(True)
    one.files.open("x")
    one.submit("x")
    assert one.next().key == "x"


def test_idle_threads_hold_no_memory(gated) -> None:
    one = gated(1)
    memory = np.zeros(PAGE, np.uint8)
    one.files.open("x", "y")
    one.readers.submit("x", [Piece("x", 0, 10, memory)], one.landed)
    gone = weakref.ref(memory)
    del memory
    one.next()
    one.submit("y")  # begins when the thread has let go of x
    one.next()
    gc.collect()
    assert gone() is None


def test_the_time_the_disk_was_busy(gated) -> None:
    one = gated(1)
    assert one.readers.busy_s == 0
    one.submit("x")
    one.begun()
    first = one.readers.busy_s
    assert one.readers.busy_s > first > 0
    one.files.open("x")
    one.next()
    while one.readers.outstanding:
        pass
    assert one.readers.busy_s == one.readers.busy_s > first


def test_a_wait_says_now_and_then_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("localv4.reads.time.perf_counter", lambda: now[0])
    wait = Wait()
    with caplog.at_level(logging.WARNING):
        for second in range(1, 13):
            now[0] = float(second)
            wait.goes_on()
    assert [record.message for record in caplog.records] == [
        f"the disk has not answered for {n} s; still waiting (Ctrl-C stops)" for n in (6, 12)
    ]
    assert wait.seconds == 12
