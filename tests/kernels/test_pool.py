"""The threads that run programs: started, put to sleep, woken, changed in number, ended."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4.kernels import pool
from localv4.kernels.arrays import address
from localv4.kernels.calls import add, load
from localv4.kernels.launch import Program, kernel
from localv4.kernels.threads import computing
from tests.kernels.compare import COMPILED

pytestmark = pytest.mark.skipif(not COMPILED, reason="without compiled code there are no threads")

I64 = NDArray[np.int64]
DESCRIPTORS = Path("/proc/self/fd")
SLEEPS_AFTER_S = 0.2  # far more than it takes


@kernel("i64[1]", name="count_in_pool")
def count(counts: I64, unit: int) -> None:
    counts[unit] += 1


@kernel("i64, i64, i64[1]", name="meet_in_pool")
def meet(arrived: int, threads: int, met: I64, unit: int) -> None:
    """Wait for the other units to arrive, which only threads of their own can do."""
    add(arrived, 1)
    for _ in range(100_000_000):
        if load(arrived) == threads:
            met[unit] = 1
            break


@kernel("i64, i64", name="wait_for_a_call_in_pool")
def wait_for_a_call(calls: int, threads: int, unit: int) -> None:
    """Take until somebody who waits for this phase has looked twice."""
    for _ in range(100_000_000):
        if load(calls) >= threads:
            break


@kernel("i64, i64", name="called_in_pool")
def called(calls: int, threads: int, unit: int, worker: int) -> None:
    """Count the calls in order: the one after n others has the number n."""
    if load(calls) == worker:
        add(calls, 1)


@kernel("i64, i64", name="nothing_in_pool")
def nothing(calls: int, threads: int, unit: int) -> None:
    pass


def meeting(threads: int) -> bool:
    """Run a unit on every thread at the same time; return whether all got there."""
    arrived, met = np.zeros(1, np.int64), np.zeros(threads, np.int64)
    program = Program()
    program.phase("other")
    program.add(meet, threads, address(arrived), threads, met).keep(arrived)
    program.run(threads)
    return bool(met.all())


def counting(units: int, phases: int = 1) -> tuple[Program, I64]:
    program, counts = Program(), np.zeros(units, np.int64)
    for _ in range(phases):
        program.phase("other")
        program.add(count, units, counts)
    return program, counts


def test_all_threads_take_part():
    assert meeting(2)
    assert meeting(4)


def test_threads_that_sleep_are_woken():
    program, counts = counting(40, phases=3)
    for _ in range(5):
        program.run(3)
        time.sleep(SLEEPS_AFTER_S)
        assert meeting(3)
    assert set(counts.tolist()) == {15}


def test_an_idle_pool_takes_no_cpu():
    program, _ = counting(40)
    program.run(4)
    time.sleep(SLEEPS_AFTER_S)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.25  # one thread that spins would take 0.5


@pytest.mark.parametrize("pause_s", [0.0, 0.0005, 0.001, 0.0015, 0.002])
def test_programs_that_come_while_threads_fall_asleep(pause_s: float):
    program, counts = counting(7, phases=2)
    runs = 300
    for _ in range(runs):
        program.run(3)
        until = time.perf_counter() + pause_s
        while time.perf_counter() < until:
            pass
    assert set(counts.tolist()) == {2 * runs}


def test_the_number_of_threads_changes():
    program, counts = counting(30, phases=2)
    for threads in (1, 2, 5, 3, 1, 8, 2):
        program.run(threads)
    assert set(counts.tolist()) == {14}
    assert threading.active_count() < 8, "threads of former pools are still there"


def test_a_copy_of_the_process_has_threads_of_its_own():
    if not hasattr(os, "fork"):
        pytest.skip("this system does not copy processes")
    program, counts = counting(30)
    program.run(3)
    child = os.fork()
    if child == 0:
        program.run(3)
        os._exit(0 if set(counts.tolist()) == {2} else 1)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended, "the copy waits for threads that it does not have"
    assert os.waitstatus_to_exitcode(status) == 0
    program.run(3)
    assert set(counts.tolist()) == {2}


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="this system does not list descriptors")
def test_descriptors_are_given_back():
    program, _ = counting(30)
    program.run(2)
    before = len([*DESCRIPTORS.iterdir()])
    for threads in (3, 2, 4, 2):
        program.run(threads)
    assert len([*DESCRIPTORS.iterdir()]) == before


def test_a_process_ends_while_its_threads_look_for_work():
    script = (
        "import numpy as np\n"
        "from localv4.kernels.launch import Program\n"
        "from localv4.bench.roof import Reader\n"
        "program = Reader(64, 0).program(np.zeros(6400, np.uint8))\n"
        "program.run(4)\n"
        "print('done')\n"
    )
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_thread_that_calls_leaves_the_others_alone():
    program, counts = counting(20, phases=2)

    def run_often() -> None:
        for _ in range(100):
            with computing():
                program.run(2)

    callers = [threading.Thread(target=run_often) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert set(counts.tolist()) == {600}


def test_a_schedule_of_nothing_runs():
    pool.Schedule(np.zeros((0, 5), np.int64), [0]).run(2)


def test_a_thread_that_waits_asks_for_what_it_will_read():
    calls = np.zeros(1, np.int64)
    program = Program()
    program.phase("other")
    program.add(wait_for_a_call, 1, address(calls), 2).keep(calls)
    program.phase("other")
    task = program.add(nothing, 1, address(calls), 2)
    task.ask_ahead(called)
    program.run(2)
    assert calls[0] >= 2
    calls[0] = 7  # nobody waits for a first phase
    program.run(2, first=1)
    assert calls[0] == 7


def test_nobody_asks_unless_told():
    calls = np.zeros(1, np.int64)
    program, counts = counting(40, phases=2)
    program.phase("other")
    task = program.add(nothing, 40, address(calls), 2)
    task.ask_ahead(called)
    task.ask_ahead(None)
    program.run(2)
    assert calls[0] == 0
    assert set(counts.tolist()) == {2}
