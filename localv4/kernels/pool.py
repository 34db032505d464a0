"""The threads that run programs, and how a program gets to them within a microsecond or two.

The calling thread posts a program and works on it like everybody else.  The others look for the
next one again and again for a while, then let other programs have the core in between, and after
a millisecond or so sleep in a read from a pipe: between two programs of a
token nobody sleeps, and an idle engine takes no CPU.  Who comes late finds the program closed
and touches nothing of it, so a slow or busy core delays nobody.

One thread may call at a time (threads.py).  Knows nothing of what kernels are for.
"""

import atexit
import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from localv4.kernels._jit import entry, leaf
from localv4.kernels.arrays import LINE, address, aligned
from localv4.kernels.calls import (
    GIVE_WAY,
    READ,
    WRITE,
    add,
    call,
    claim,
    count,
    finish,
    give_way_by,
    load,
    move_bytes_by,
    pointer,
    put_word,
    replace,
    word,
)

__all__ = ["Schedule"]

_WORD = 8
_COLUMNS = 5  # of a schedule's rows
_LOOKS = 5000  # tens or hundreds of microseconds, as long as a CPU pauses
_YIELDS = 1000  # about a millisecond

# Where things lie in a pool's state: what threads write at any time has a line of its own.
_POSTED = 0 * LINE  # programs posted and closed so far: odd while one is open
_INSIDE = 1 * LINE  # threads, beside the caller, that may be at work on the open one
_ASLEEP = 2 * LINE  # threads to wake by a byte
_STOP = 3 * LINE  # 1 when all threads are to end
_SCHEDULE = 4 * LINE  # the open one: six words, as `_run` puts them
_SYSTEM = 5 * LINE  # GIVE_WAY, READ, WRITE, the pipe's two ends
_BYTES = 6 * LINE  # to send and receive; nobody looks at them
_GIVE_WAY, _READ, _WRITE, _READ_END, _WRITE_END = range(5)

_i64_pointer = pointer("i64")
_compiled: list[object] = []


@leaf
def _is_stopped(stop: int) -> bool:
    """Return whether a phase said that those behind it must not run."""
    return stop != 0 and load(stop) != 0


@leaf
def _wait(
    done: int, needed: int, give_way: int, stop: int, ahead: int, arguments: int, unit: int
) -> None:
    """Return when so many units of a phase are done, or never will be.

    Meanwhile call `ahead`, unless it is 0, for the unit that waits.
    """
    looks = 0
    while count(done) < needed and not _is_stopped(stop):
        if ahead != 0 and looks < _LOOKS:
            call(ahead, arguments, unit, looks)
        looks += 1
        if looks > _LOOKS and give_way != 0:
            give_way_by(give_way)


@leaf
def _units_before(table: NDArray[np.int64], row: int) -> int:
    """Return the units of all tasks before a row of the table, which may be its end."""
    units: int = table[row, 2] if row < len(table) else table[row - 1, 2] + table[row - 1, 3]
    return units


@leaf
def _work(schedule: int, give_way: int, worker: int) -> None:
    """Take units of all phases until none is left."""
    table = numba.carray(_i64_pointer(word(schedule, 0)), (word(schedule, 1), _COLUMNS))
    ends = numba.carray(_i64_pointer(word(schedule, 2)), word(schedule, 3))
    counters, stop = word(schedule, 4), word(schedule, 5)
    phase, task = 0, ends[0]
    begin, end = table[task, 2], _units_before(table, ends[-1])
    while True:
        unit = begin + claim(counters)
        if unit >= end:
            break
        while unit >= table[task, 2] + table[task, 3]:
            task += 1
        while task >= ends[phase + 1]:
            phase += 1
        arguments, unit = table[task, 1], unit - table[task, 2]
        if phase > 0:
            needed = table[ends[phase], 2] - table[ends[phase - 1], 2]
            done, ahead = counters + LINE * phase, table[task, 4]
            _wait(done, needed, give_way, stop, ahead, arguments, unit)
            if _is_stopped(stop):
                break
        call(table[task, 0], arguments, unit, worker)
        finish(counters + LINE * (phase + 1))


@leaf
def _is_open(posted: int, seen: int) -> bool:
    """Return whether there is a program that the thread has not seen."""
    return posted != seen and posted % 2 == 1


@leaf
def _withdraw(asleep: int) -> bool:
    """Count one thread less among those to wake, unless somebody wakes them all right now."""
    threads = load(asleep)
    while threads > 0:
        if replace(asleep, threads, threads - 1):
            return True
        threads = load(asleep)
    return False


@leaf
def _sleep(state: int, seen: int) -> None:
    """Wait for a byte, unless there is something to do by now."""
    add(state + _ASLEEP, 1)
    awake = _is_open(load(state + _POSTED), seen) or load(state + _STOP) != 0
    if not (awake and _withdraw(state + _ASLEEP)):
        read, end = word(state + _SYSTEM, _READ), word(state + _SYSTEM, _READ_END)
        move_bytes_by(read, end, state + _BYTES, 1)


def _serve(state: int, worker: int) -> None:
    """Work on every program that is posted, until told to stop."""
    give_way = word(state + _SYSTEM, _GIVE_WAY)
    seen, looks = 0, 0
    while load(state + _STOP) == 0:
        posted = count(state + _POSTED)
        if _is_open(posted, seen):
            add(state + _INSIDE, 1)
            # who is inside keeps it; if it was closed just before, nothing of it may be touched
            if load(state + _POSTED) == posted:
                _work(state + _SCHEDULE, give_way, worker)
            add(state + _INSIDE, -1)
            seen, looks = posted, 0
            continue
        looks += 1
        if looks > _LOOKS + _YIELDS:
            _sleep(state, seen)
            looks = 0
        elif looks > _LOOKS and give_way != 0:
            give_way_by(give_way)


def _run(
    state: int,
    table: int,
    n_rows: int,
    ends: int,
    n_ends: int,
    counters: int,
    stop: int,
    alone: int,
) -> None:
    """Run a schedule with the threads of a pool, or alone."""
    rows = numba.carray(_i64_pointer(table), (n_rows, _COLUMNS))
    phases = numba.carray(_i64_pointer(ends), n_ends)
    for line in range(n_ends + 1):
        put_word(counters + LINE * line, 0, 0)
    for place, value in enumerate((table, n_rows, ends, n_ends, counters, stop)):
        put_word(state + _SCHEDULE, place, value)
    give_way = word(state + _SYSTEM, _GIVE_WAY)
    if alone:
        _work(state + _SCHEDULE, give_way, 0)
        return
    add(state + _POSTED, 1)
    asleep = load(state + _ASLEEP)
    if asleep > 0:
        while not replace(state + _ASLEEP, asleep, 0):
            asleep = load(state + _ASLEEP)
        write, end = word(state + _SYSTEM, _WRITE), word(state + _SYSTEM, _WRITE_END)
        move_bytes_by(write, end, state + _BYTES, asleep)
    _work(state + _SCHEDULE, give_way, 0)
    last = _units_before(rows, phases[-1]) - _units_before(rows, phases[-2])
    _wait(counters + LINE * (n_ends - 1), last, give_way, stop, 0, 0, 0)
    add(state + _POSTED, 1)
    looks = 0
    while count(state + _INSIDE) > 0:
        looks += 1
        if looks > _LOOKS and give_way != 0:
            give_way_by(give_way)


@cache
def _native(function: Callable[..., None], n_arguments: int) -> Callable[..., None]:
    """Return the compiled function; while it runs, other threads of Python may."""
    compiled = entry(function, types.void(*[types.int64] * n_arguments))
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * n_arguments)
    native: Callable[..., None] = kind(compiled.address)
    _compiled.append(compiled)  # an address keeps nothing alive
    return native


class _Pool:
    """The threads beside the caller's, numbered from 1."""

    def __init__(self, n_threads: int) -> None:
        self._memory = aligned((_BYTES // _WORD + n_threads + 1,), np.int64)
        self._memory[:] = 0
        self._pipe: tuple[int, ...] = os.pipe()
        self._memory[_SYSTEM // _WORD :][:5] = GIVE_WAY, READ, WRITE, *self._pipe
        self.state = address(self._memory)
        serve = _native(_serve, 2)
        self._threads = [
            threading.Thread(target=serve, args=(self.state, 1 + n), daemon=True)
            for n in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Return the number of threads."""
        return len(self._threads)

    def close(self) -> None:
        """Let all threads end."""
        self._memory[_STOP // _WORD] = 1
        if self._pipe:
            os.write(self._pipe[1], bytes(len(self)))
        for thread in self._threads:
            thread.join()
        self.forget()

    def forget(self) -> None:
        """Close the pipe of threads that are gone; programs run without them from now on."""
        self._memory[_ASLEEP // _WORD] = 0  # nobody is to be woken through what is no pipe any more
        for end in self._pipe:
            os.close(end)
        self._pipe = ()


_pools: list[_Pool] = []  # one, once a program has run on more than one thread


def _pool_of(n_threads: int) -> _Pool:
    """Return the pool, of so many threads unless none is wanted."""
    if not _pools or (n_threads and len(_pools[0]) != n_threads):
        _close()
        _pools.append(_Pool(n_threads))
    return _pools[0]


def _close() -> None:
    while _pools:
        _pools.pop().close()


def _end() -> None:
    """Let the threads end with the program; a thread that still computes goes on alone."""
    for pool in _pools:
        pool.close()


def _forget() -> None:
    """In a copy of the process there is the caller's thread only."""
    while _pools:
        _pools.pop().forget()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Schedule:
    """Phases of tasks as the threads read them.

    Parameters
    ----------
    rows
        int64 [n, 5]: of each task the address of its kernel, that of its arguments, how many
        units all tasks before have, how many it has, and the address of what to call while one of
        them waits, or 0.
    ends
        The first row of every phase, and the number of rows.
    stop
        int64 [1], or None: once a phase has put another number than 0 there, those behind it do
        not run.
    """

    def __init__(
        self, rows: NDArray[np.int64], ends: Sequence[int], stop: NDArray[np.int64] | None = None
    ) -> None:
        assert rows.shape[1] == _COLUMNS
        self.n_phases = len(ends) - 1
        self._rows = np.ascontiguousarray(rows)
        self._ends = np.array(ends, np.int64)
        self._stop = stop
        # units taken, and units done in each phase, on lines of their own
        self._counters = aligned((len(ends) + 1, LINE), np.uint8)
        before = np.append(rows[:, 2], rows[-1:, 2:4].sum())
        self._is_single = (np.diff(before[self._ends]) == 1).tolist()
        self._table = address(self._rows), len(rows)
        self._shared = address(self._counters), 0 if stop is None else address(stop)
        self._run = _native(_run, 8)

    def run(self, n_workers: int, first: int = 0, last: int | None = None) -> None:
        """Run phases `first` to `last`, that one left out, on so many threads with the caller's."""
        last = self.n_phases if last is None else last
        if last <= first:
            return
        alone = n_workers == 1 or (last - first == 1 and self._is_single[first])
        state, ends = _pool_of(n_workers - 1).state, address(self._ends) + _WORD * first
        self._run(state, *self._table, ends, last - first + 1, *self._shared, alone)
