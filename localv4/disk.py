"""How fast a checkpoint's disk gives its experts, read at random and past the page cache.

Some ways of reading are tried for half a second each; the best is kept in the cache folder, for
whoever streams from that disk later.  Who does adds what the disk gave in the long run, which may
be less: some are faster for a minute, rented ones as long as an allowance lasts.  Knows nothing of
what the bytes mean.
"""

import contextlib
import datetime
import json
import logging
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, product
from pathlib import Path
from queue import SimpleQueue

from localv4.checkpoint import Checkpoint
from localv4.errors import DamagedCheckpoint
from localv4.expert_records import ExpertRecords, Run
from localv4.reads import Read, Readers
from localv4.replacing import replacing
from localv4.settings import cache_folder
from localv4.shard_files import ShardFiles
from localv4.slots import PAGE, Slots
from localv4.untrusted import read_object

__all__ = [
    "DiskProfile",
    "DiskTry",
    "RandomExperts",
    "best_try",
    "keep_disk_in_use",
    "load_disk_profile",
    "measure_disk",
    "save_disk_profile",
]

_log = logging.getLogger(__name__)
_WAYS = ((True, 1), (True, 2), (True, 4), (True, 16), (False, 4))  # direct, readers
_ROUNDS = 2  # apart in time, as disks have good and bad seconds
_IN_FLIGHT = 6  # experts asked for at a time: as many as a layer of the releases may miss
_TOTAL_S = 6.0  # after which no further way is tried: the disk is slow in all of them
_BUFFERED_GAIN = 1.1  # buffered reads keep a core busy, so they must be worth it
_READER_GAIN = 1.08  # of fewer readers
_PROFILE_BYTES = 2**12
_MOST_READERS = 64
_TELLING_BYTES = 2**32


@dataclass(frozen=True)
class DiskProfile:
    """The best way to read experts from a disk.

    Attributes
    ----------
    direct
        Past the page cache.
    readers
        Threads.
    bytes_per_s
        What they reached.
    measured
        When.
    in_use
        Bytes/s while a streamed model last decoded tokens, if ever.
    """

    direct: bool
    readers: int
    bytes_per_s: float
    measured: datetime.date
    in_use: float | None = None

    @property
    def lasting(self) -> float:
        """The bytes/s to count on."""
        return self.bytes_per_s if self.in_use is None else self.in_use


@dataclass(frozen=True)
class DiskTry:
    """What one way of reading reached; see `DiskProfile`."""

    direct: bool
    readers: int
    bytes_per_s: float


def measure_disk(checkpoint: Checkpoint, seconds: float = 0.5) -> list[DiskTry]:
    """Read experts at random in some ways.

    Parameters
    ----------
    checkpoint
        Its experts are read from their files, past its maps.
    seconds
        Of each way.

    Returns
    -------
    At least one; direct ones are left out where the file system refuses direct reads.

    Raises
    ------
    DamagedCheckpoint
        A shard cannot be read.
    """
    experts = RandomExperts(checkpoint)
    speeds: dict[tuple[bool, int], list[float]] = {}
    refused, began_s = False, time.perf_counter()
    for direct, n_readers in _WAYS * _ROUNDS:
        if speeds and (time.perf_counter() - began_s > _TOTAL_S or (direct and refused)):
            continue
        files = ShardFiles(checkpoint.path, experts.records.shards, direct)
        readers = Readers(files, n_readers)
        try:
            speed = experts.bytes_s(readers, seconds / _ROUNDS)
            refused |= direct and not files.direct
            way = files.direct, n_readers
            speeds.setdefault(way, []).append(speed)
        finally:
            if readers.close():
                files.close()
    return [DiskTry(*way, statistics.mean(found)) for way, found in speeds.items()]


def best_try(tries: Sequence[DiskTry]) -> DiskProfile:
    """Return the way to prefer: direct before buffered, many readers before few, if as good.

    A reader that has nothing to do costs nothing, and beside a busy CPU a lone one is often late.
    """
    best, *others = sorted(tries, key=lambda tried: (not tried.direct, -tried.readers))
    for tried in others:
        is_costlier = best.direct and not tried.direct
        gain = _BUFFERED_GAIN if is_costlier else _READER_GAIN
        if tried.bytes_per_s > gain * best.bytes_per_s:
            best = tried
    return DiskProfile(best.direct, best.readers, best.bytes_per_s, _today())


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


class RandomExperts:
    """Experts of the body to be read at random.

    Parameters
    ----------
    checkpoint
        Whose.

    Attributes
    ----------
    records
        Where they lie.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.records = ExpertRecords(checkpoint)
        config = checkpoint.config
        keys = [*product(range(config.num_hidden_layers), range(config.n_routed_experts))]
        random.Random(0).shuffle(keys)
        # none twice, as far as there are enough: a disk has a cache of its own
        self._following = cycle(keys)
        self._slots = Slots(_IN_FLIGHT, self.records.slot_bytes)
        self._slots.memory[::PAGE] = 0  # so that the first way does not pay for the memory

    def bytes_s(self, readers: Readers, seconds: float) -> float:
        """Return the bytes/s that readers reach while some experts are always asked for.

        Nothing is being read afterwards.
        """
        landed: SimpleQueue[Read] = SimpleQueue()

        def ask(slot: int) -> None:
            layer, expert = next(self._following)
            if not readers.files.direct:
                _drop_cached(readers.files.folder, self.records.runs(layer, expert))
            pieces = self.records.pieces(layer, expert, self._slots.view(slot))
            readers.submit(slot, pieces, landed)

        before, began_s = readers.bytes_read, time.perf_counter()
        for slot in range(_IN_FLIGHT):
            ask(slot)
        speed, outstanding = 0.0, _IN_FLIGHT
        while outstanding:
            read = landed.get()
            if read.error is not None:
                raise read.error
            taken_s = time.perf_counter() - began_s
            if taken_s < seconds:
                ask(read.key)
                continue
            speed = speed or (readers.bytes_read - before) / taken_s
            outstanding -= 1
        return speed


def _drop_cached(folder: Path, runs: Sequence[Run]) -> None:
    """Let the page cache forget an expert: it is the disk that is measured."""
    if not hasattr(os, "posix_fadvise"):
        return
    for run in runs:
        with contextlib.suppress(OSError):
            file = os.open(folder / run.shard, os.O_RDONLY)
            try:
                os.posix_fadvise(file, run.offset, run.n_bytes, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


def _profile_file(shard: Path) -> Path | None:
    """Return where the profile of a shard's disk is kept; None if there is no such shard."""
    try:
        device = shard.stat().st_dev
    except OSError:
        return None
    return cache_folder() / f"disk-{os.major(device)}-{os.minor(device)}.json"


def keep_disk_in_use(readers: Readers, n_bytes: int, seconds: float, shard: Path) -> None:
    """Keep what readers reached while tokens were decoded, if that was enough to tell.

    Parameters
    ----------
    readers
        Which read past the page cache, or nothing is kept.
    n_bytes, seconds
        Read, and how long that took.
    shard
        Tells the disk.
    """
    if not readers.files.direct or n_bytes < _TELLING_BYTES:
        return
    bytes_s = n_bytes / seconds
    known = load_disk_profile(shard) or DiskProfile(True, readers.n_threads, bytes_s, _today())
    with contextlib.suppress(OSError):  # it is a hint
        save_disk_profile(replace(known, in_use=bytes_s), shard)


def save_disk_profile(profile: DiskProfile, shard: Path) -> None:
    """Keep a profile for the disk that holds a shard.

    Raises
    ------
    OSError
        The cache folder cannot be written.
    """
    file = _profile_file(shard)
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    values = asdict(profile) | {"measured": profile.measured.isoformat()}
    with replacing(file) as descriptor:
        os.write(descriptor, f"{json.dumps(values, indent=2)}\n".encode())


def load_disk_profile(shard: Path) -> DiskProfile | None:
    """Return what was kept for the disk that holds a shard; None if that is nothing of use."""
    file = _profile_file(shard)
    if file is None:
        return None
    try:
        values = read_object(file, _PROFILE_BYTES)
        return None if values is None else _checked(values)
    except (DamagedCheckpoint, ValueError, TypeError, KeyError) as error:
        _log.warning("%s is damaged and not used (%s); localv4 doctor makes it anew", file, error)
        return None


def _checked(values: dict[str, object]) -> DiskProfile:
    """Return a profile from JSON; raise ValueError, TypeError or KeyError for what is none."""
    direct, readers, in_use = values["direct"], values["readers"], values.get("in_use")
    if type(direct) is not bool or type(readers) is not int:
        raise ValueError("a value is of another type")
    if not 1 <= readers <= _MOST_READERS:
        raise ValueError("a value is out of range")
    measured = datetime.date.fromisoformat(str(values["measured"]))
    used = None if in_use is None else _speed(in_use)
    return DiskProfile(direct, readers, _speed(values["bytes_per_s"]), measured, used)


def _speed(value: object) -> float:
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError("a speed is none")
    return float(value)
